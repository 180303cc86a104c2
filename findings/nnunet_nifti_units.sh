#!/usr/bin/env bash
# NIfTI files whose unit of length is micrometre (xyzt_units 3), as microscopes and micro-CT write them.
#
# Versions:  nnunetv2 2.8.1, SimpleITK 2.5.7, nibabel 5.4.2
# Guess:     nnU-Net's spacing is in mm whatever the file ending.
# Behaviour: nnU-Net chooses the reader by the ending: SimpleITK for .nii.gz, which converts to mm, nibabel for .nii,
#            which hands out the number in the header. The same image is 1000 times larger as .nii.
# Output:    .nii.gz SimpleITKIO [0.03, 0.01, 0.01]; .nii NibabelIO [30.0, 10.0, 10.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps nnunetv2==2.8.1 batchgenerators==0.25.5 SimpleITK==2.5.7 nibabel==5.4.2 numpy==2.3.5 scipy==1.16.3 \
    scikit-image==0.25.2 tifffile==2025.10.16 imageio==2.37.2 lazy-loader==0.4 packaging==25.0 pillow==12.0.0 networkx==3.5 \
    typing-extensions==4.15.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import nibabel as nib
import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending

image = nib.Nifti1Image(np.ones((16, 16, 8), np.float32), np.diag([10.0, 10.0, 30.0, 1.0]))
image.header.set_xyzt_units("micron")
found = {}
for ending in (".nii.gz", ".nii"):
    nib.save(image, f"image{ending}")
    reader = determine_reader_writer_from_file_ending(ending, verbose=False)
    _, properties = reader().read_images([f"image{ending}"])
    found[ending] = reader.__name__, [round(float(value), 6) for value in properties["spacing"]]
print("; ".join(f"{ending} {name} {spacing}" for ending, (name, spacing) in found.items()))
assert found[".nii.gz"] == ("SimpleITKIO", [0.03, 0.01, 0.01])
assert found[".nii"] == ("NibabelIO", [30.0, 10.0, 10.0])
PYTHON
