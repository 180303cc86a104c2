#!/usr/bin/env bash
# A DICOM slice with RescaleSlope and no RescaleIntercept (pydicom, SimpleITK).
#
# Versions:  pydicom 3.0.2, SimpleITK 2.5.7
# Guess:     a lacking intercept counts as 0, and values are stored value times slope.
# Behaviour: pydicom's apply_rescale returns stored values, without a warning: it needs both elements. SimpleITK applies the
#            slope.
# Output:    stored 200, slope 0.5: pydicom 200.0, with an intercept of 0 100.0, SimpleITK 100.0
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
cd "$folder"
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" venv/bin/python -W ignore - <<'PYTHON'
import SimpleITK as sitk
from dicom_series import slice_at
from pydicom.pixels import apply_rescale
from pydicom.uid import generate_uid

one = slice_at(0, *[generate_uid() for _ in range(3)])
one.RescaleSlope = 0.5
one.save_as("slice.dcm", enforce_file_format=True)
alone = float(apply_rescale(one.pixel_array, one)[0, 0])
one.RescaleIntercept = 0
both = float(apply_rescale(one.pixel_array, one)[0, 0])
by_simpleitk = float(sitk.GetArrayFromImage(sitk.ReadImage("slice.dcm", sitk.sitkFloat32))[0, 0, 0])
print(f"stored 200, slope 0.5: pydicom {alone}, with an intercept of 0 {both}, SimpleITK {by_simpleitk}")
assert (alone, both, by_simpleitk) == (200, 100, 100)
PYTHON
