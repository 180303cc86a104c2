"""Slices of a DICOM series, for the scripts of findings that read some."""

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def slice_at(z: int, series: str, frame: str, study: str) -> FileDataset:
    """Slice number ``z`` of an axial MR series: 16 x 16 pixels of value 200, slices 2.5 mm apart."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
    one.PatientName, one.PatientID, one.StudyDate, one.StudyTime = "Phantom^One", "1", "20200101", "120000"
    one.PatientBirthDate = one.PatientSex = one.AccessionNumber = one.StudyID = one.ReferringPhysicianName = ""
    one.Modality, one.SeriesNumber, one.InstanceNumber = "MR", 1, z + 1
    one.Rows = one.Columns = 16
    one.PixelSpacing, one.SliceThickness = [1, 1], 5
    one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.5 * z]
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
    one.PixelData = np.full((16, 16), 200, np.uint16).tobytes()
    return one
