#!/usr/bin/env bash
# A NIfTI file whose qform and sform place the voxels differently (a registered image: its sform is that of the atlas).
#
# Versions:  SimpleITK 2.5.7 (ITK), nibabel 5.4.2
# Guess:     both readers take the sform where it is set.
# Behaviour: nibabel does. SimpleITK takes it where its code is 1 (scanner); for 2 to 4 (aligned, Talairach, MNI) it takes
#            the qform, but again the sform where both differ by a mirrored axis alone. nnU-Net reads .nii.gz with
#            SimpleITK and .nii with nibabel, so the ending decides where an image lies.
# Output:    turned by 10 degrees: sform, qform, qform, qform; shifted: sform, qform, qform, qform; mirrored: sform, sform,
#            sform, sform (SimpleITK, for the codes 1 to 4); nibabel: always sform
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

voxels = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
qform = np.eye(4)
turned, shifted, mirrored = np.eye(4), np.eye(4), np.diag([-1.0, 1.0, 1.0, 1.0])
cosine, sine = np.cos(np.radians(10)), np.sin(np.radians(10))
turned[:2, :2] = [[cosine, -sine], [sine, cosine]]
shifted[0, 3] = 10.0


def sitk_affine(path):
    image = sitk.ReadImage(path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def chosen(affine, sform):
    (name,) = (name for name, form in (("qform", qform), ("sform", sform)) if np.allclose(affine, form, atol=1e-3))
    return name


found = {}
for name, sform in (("turned by 10 degrees", turned), ("shifted", shifted), ("mirrored", mirrored)):
    found[name] = []
    for code in (1, 2, 3, 4):
        image = nib.Nifti1Image(voxels, None)
        image.set_qform(qform, 1)
        image.set_sform(sform, code)
        nib.save(image, "image.nii.gz")
        found[name].append(chosen(sitk_affine("image.nii.gz"), sform))
        assert chosen(nib.load("image.nii.gz").affine, sform) == "sform"
print("; ".join(f"{name}: {', '.join(forms)}" for name, forms in found.items()))
other = ["sform", "qform", "qform", "qform"]
assert found == {"turned by 10 degrees": other, "shifted": other, "mirrored": ["sform"] * 4}
PYTHON
