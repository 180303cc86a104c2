#!/usr/bin/env bash
# A DICOM series whose slices have unlike rescale slopes, as PET and some MR have (SimpleITK).
#
# Versions:  SimpleITK 2.5.7, pydicom 3.0.2
# Guess:     values of each slice are stored value times slope, in a type that holds them all.
# Behaviour: each slope is applied, but the type is the first slice's: where that is an integer, the values of the others wrap
#            around or are cut to whole numbers, without a warning. Asked for float32, all are right.
# Output:    expected 200, 80000, 120000, 160000: 200, 14464, 54464, 28928; expected 200, 0.74, 1.1, 1.48: 200, 0, 1, 1
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


def values_of(name, slopes, pixel_type=sitk.sitkUnknown):
    folder, uids = Path(name), [generate_uid() for _ in range(3)]
    folder.mkdir(exist_ok=True)
    for z, slope in enumerate(slopes):
        one = slice_at(z, *uids)
        one.RescaleSlope, one.RescaleIntercept = slope, 0
        one.save_as(folder / f"{z}.dcm", enforce_file_format=True)
    files = sitk.ImageSeriesReader().GetGDCMSeriesFileNames(name)
    return [round(float(value), 2) for value in sitk.GetArrayFromImage(sitk.ReadImage(files, pixel_type))[:, 0, 0]]


large, small = [1, 400, 600, 800], [1, 0.0037, 0.0055, 0.0074]
seen = values_of("large", large), values_of("small", small), values_of("float", large, sitk.sitkFloat32)
print(f"expected {[200 * slope for slope in large]}: {seen[0]}; as float32 {seen[2]}")
print(f"expected {[round(200 * slope, 2) for slope in small]}: {seen[1]}")
assert seen == ([200, 14464, 54464, 28928], [200, 0, 1, 1], [200, 80000, 120000, 160000]), seen
PYTHON
