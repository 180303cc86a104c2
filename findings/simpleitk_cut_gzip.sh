#!/usr/bin/env bash
# A .nii.gz that an interrupted copy has cut off.
#
# Versions:  SimpleITK 2.5.7 (ITK), nibabel 5.4.2
# Guess:     reading it is an error, as the compressed stream lacks its end marker and checksum.
# Behaviour: SimpleITK returns an image of the full size; voxels after the cut are zeros. nibabel raises EOFError.
#            nnU-Net reads .nii.gz with SimpleITK, so such a case is trained on, partly black.
# Output:    SimpleITK: (24, 48, 48), 33 % zeros; nibabel: EOFError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check SimpleITK==2.5.7 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PYTHON'
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

array = np.random.default_rng(0).normal(100, 10, (24, 48, 48)).astype(np.float32)
sitk.WriteImage(sitk.GetImageFromArray(array), "whole.nii.gz")
data = Path("whole.nii.gz").read_bytes()
Path("cut.nii.gz").write_bytes(data[: len(data) * 2 // 3])

read = sitk.GetArrayFromImage(sitk.ReadImage("cut.nii.gz"))
zeros = float((read == 0).mean())
try:
    nib.load("cut.nii.gz").get_fdata()
    error = "no error"
except EOFError:
    error = "EOFError"
print(f"SimpleITK: {read.shape}, {zeros:.0%} zeros; nibabel: {error}".replace("%", " %"))
assert read.shape == array.shape
assert 0.3 < zeros < 0.4
assert not (array == 0).any()
assert error == "EOFError"
PYTHON
