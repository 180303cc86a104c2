#!/usr/bin/env bash
# NaN and infinity in a NIfTI file.
#
# Versions:  SimpleITK 2.5.7 (ITK), nibabel 5.4.2
# Guess:     a float image is read as it was written, so a check for NaN after reading finds them.
# Behaviour: SimpleITK reads NaN and infinity as 0 from .nii and .nii.gz, and unchanged from .mha and .nrrd. The file
#            holds them: nibabel reads them. A check for NaN on what SimpleITK has read never finds one in NIfTI.
# Output:    nii: 0.0 0.0; nii.gz: 0.0 0.0; mha: nan inf; nrrd: nan inf; nibabel on nii.gz: nan inf
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check SimpleITK==2.5.7 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PYTHON'
import nibabel as nib
import numpy as np
import SimpleITK as sitk

array = np.ones((8, 8, 8), np.float32)
array[0, 0, 0], array[0, 0, 1] = np.nan, np.inf
found = {}
for ending in ("nii", "nii.gz", "mha", "nrrd"):
    sitk.WriteImage(sitk.GetImageFromArray(array), f"image.{ending}")
    read = sitk.GetArrayFromImage(sitk.ReadImage(f"image.{ending}"))
    found[ending] = [str(value) for value in read[0, 0, :2]]
by_nibabel = nib.load("image.nii.gz").get_fdata()
found["nibabel on nii.gz"] = [str(by_nibabel[0, 0, 0]), str(by_nibabel[1, 0, 0])]
print("; ".join(f"{name}: {' '.join(values)}" for name, values in found.items()))
assert found["nii"] == found["nii.gz"] == ["0.0", "0.0"]
assert found["mha"] == found["nrrd"] == found["nibabel on nii.gz"] == ["nan", "inf"]
PYTHON
