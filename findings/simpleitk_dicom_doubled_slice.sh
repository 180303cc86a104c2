#!/usr/bin/env bash
# A DICOM series with its first slice twice (SimpleITK).
#
# Versions:  SimpleITK 2.5.7, pydicom 3.0.2
# Guess:     the series is refused, or read with a warning as one with a missing slice is.
# Behaviour: 9 slices are read where 8 positions exist, 1.0 mm apart instead of 2.5: the first two positions are the same, and
#            the distance of 0 becomes 1. No warning, and no mark of a series that is not uniform.
# Output:    9 slices of 1.0 mm; marked as not uniform: False
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
cd "$folder"
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" venv/bin/python -W ignore - <<'PYTHON'
from pathlib import Path

import SimpleITK as sitk
from dicom_series import slice_at
from pydicom.uid import generate_uid

folder, uids = Path("series"), [generate_uid() for _ in range(3)]
folder.mkdir()
for name, z in enumerate((*range(8), 0)):  # the first position twice, as where a slice was sent again
    slice_at(z, *uids).save_as(folder / f"{name}.dcm", enforce_file_format=True)
image = sitk.ReadImage(sitk.ImageSeriesReader().GetGDCMSeriesFileNames("series"))
marked = image.HasMetaDataKey("ITK_non_uniform_sampling_deviation")
print(f"{image.GetSize()[2]} slices of {image.GetSpacing()[2]} mm; marked as not uniform: {marked}")
assert (image.GetSize()[2], image.GetSpacing()[2], marked) == (9, 1.0, False)
PYTHON
