"""RTSTRUCT objects of given contours, written with pydicom alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

Contour = tuple[int, Sequence[tuple[float, float]]]
"""Number of a slice, and corners as (column, row)."""


def write_structures(
    path: Path, slices: Sequence[Path], structures: Mapping[str, Sequence[Contour]], kind: str = "CLOSED_PLANAR"
) -> Path:
    """Write structures drawn on slices, whose geometry is taken from each slice's own header.

    Args:
        path: file to write.
        slices: files of the series.
        structures: name to contours.
        kind: ContourGeometricType of all.
    """
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in slices]
    first = headers[0]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.Modality = first.PatientName, first.PatientID, "RTSTRUCT"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = first.StudyInstanceUID, generate_uid()
    dataset.StructureSetLabel = "contours"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name, "MANUAL"
        roi.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        drawn.ReferencedROINumber = number
        drawn.ContourSequence = [_contour(headers[index], corners, kind) for index, corners in contours]
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _contour(header: Dataset, corners: Sequence[tuple[float, float]], kind: str) -> Dataset:
    origin = np.array(header.ImagePositionPatient, dtype=float)
    x, y = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
    row_spacing, column_spacing = map(float, header.PixelSpacing)  # of rows first (DICOM PS3.3, 10.7.1.3)
    contour = Dataset()
    contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(corners)
    points = [origin + column * column_spacing * x + row * row_spacing * y for column, row in corners]
    contour.ContourData = [round(float(value), 4) for point in points for value in point]
    return contour
