#!/usr/bin/env bash
# A DICOM series with its first slice twice (SimpleITK).
#
# Versions:  SimpleITK 2.5.7, pydicom 3.0.2
# Guess:     the series is refused, or read with a warning as one with a missing slice is.
# Behaviour: 9 slices are read where 8 positions exist, 1.0 mm apart instead of 2.5: the first two positions are the same, and
#            the distance of 0 becomes 1. No warning, and no mark of a series that is not uniform.
# Output:    9 slices of 1.0 mm; marked as not uniform: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
cd "$folder"
venv/bin/python -W ignore - <<'PYTHON'
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def slice_at(z, series, frame, study):
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


folder, uids = Path("series"), [generate_uid() for _ in range(3)]
folder.mkdir()
for name, z in enumerate((*range(8), 0)):  # the first position twice, as where a slice was sent again
    slice_at(z, *uids).save_as(folder / f"{name}.dcm", enforce_file_format=True)
image = sitk.ReadImage(sitk.ImageSeriesReader().GetGDCMSeriesFileNames("series"))
marked = image.HasMetaDataKey("ITK_non_uniform_sampling_deviation")
print(f"{image.GetSize()[2]} slices of {image.GetSpacing()[2]} mm; marked as not uniform: {marked}")
assert (image.GetSize()[2], image.GetSpacing()[2], marked) == (9, 1.0, False)
PYTHON
