"""Small, valid DICOM series, written with pydicom alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from fednnunet.dicom.series import Series, look_into
from fednnunet.errors import DataError

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, -0.6)
ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": OBLIQUE}


def write_series(
    folder: Path,
    voxels: np.ndarray,
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float, float] = (0.6, 0.8, 2.5),
    origin: tuple[float, float, float] = (-10.0, 20.0, 30.0),
    description: str = "T2 axial",
    modality: str = "MR",
    patient: tuple[str, str] = ("Doe^Jane", "12345"),
    study: str | None = None,
    frame_of_reference: str | None = None,
    change: Callable[[int, Dataset], None] | None = None,
    names: Callable[[int], str] = lambda index: f"slice_{index:03d}.dcm",
) -> list[Path]:
    """Write voxels (Z, Y, X), int16, as a series of slices along the normal; file ``names(0)`` is voxels[0].

    Args:
        folder: made if it is not there.
        voxels: stored values.
        orientation: direction cosines of columns, then rows.
        spacing: of columns, rows, slices (x, y, z) in mm.
        origin: position of the first pixel of voxels[0].
        description: SeriesDescription.
        modality: MR or CT.
        patient: name and id.
        study: StudyInstanceUID.
        frame_of_reference: FrameOfReferenceUID.
        change: called with a slice's number and dataset before it is written.
        names: name of a slice's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, study = generate_uid(), study or generate_uid()
    frame_of_reference = frame_of_reference or generate_uid()
    normal = np.cross(orientation[:3], orientation[3:])
    paths = []
    for index, values in enumerate(voxels):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / names(index)
        dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.PatientName, dataset.PatientID = patient
        dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = dataset.StudyID = ""
        dataset.StudyDate, dataset.StudyTime, dataset.ReferringPhysicianName = "20200101", "120000", ""
        dataset.Modality, dataset.Manufacturer = modality, "none"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.FrameOfReferenceUID = frame_of_reference
        dataset.SeriesDescription, dataset.SeriesNumber, dataset.InstanceNumber = description, 1, index + 1
        dataset.ImageOrientationPatient = [round(float(cosine), 10) for cosine in orientation]
        position = np.array(origin) + index * spacing[2] * normal
        dataset.ImagePositionPatient = [round(float(coordinate), 6) for coordinate in position]
        dataset.PixelSpacing, dataset.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        dataset.Rows, dataset.Columns = values.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        if modality == "CT":
            dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
        dataset.PixelData = values.astype("<i2").tobytes()
        if change is not None:
            change(index, dataset)
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def change_file(path: Path, **elements: object) -> None:
    """Set elements of a file that is there; None deletes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path)


def phantom_voxels(shape: tuple[int, int, int] = (5, 6, 7)) -> np.ndarray:
    """Values that are all different (Z, Y, X), int16."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 50


def phantom_labels(shape: tuple[int, int, int] = (5, 6, 7)) -> np.ndarray:
    """Two labels without symmetry (Z, Y, X), uint8; the first slice and the last are blank."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[1:-1, 1:4, 2:6] = 1
    labels[2, 2:5, 3] = 2
    labels[1, 4, 1] = 2
    return labels


def find_series(folder: Path) -> list[Series]:
    """The volumes in a folder and its folders, by patient and study.

    Raises:
        DataError: a series is no clean volume, or there is none.
    """
    content = look_into(folder)
    refused = [refusal for refusal in content.refusals if not refusal.is_set_aside]
    if refused:
        raise DataError(refused[0].reason)
    if not content.series:
        raise DataError(next((refusal.reason for refusal in content.refusals), f"{folder} holds no DICOM image"))
    return list(content.series)
