#!/usr/bin/env bash
# An image is written, and the disk has no room left for it (here: the process may write files of 300 kB at most).
#
# Versions:  SimpleITK 2.5.7 (ITK)
# Guess:     sitk.WriteImage raises RuntimeError, as it does for every other reason.
# Behaviour: it does for .nrrd, .mha and .tif. For .nii and .nii.gz it returns as if all were well, prints a line to stderr,
#            and leaves a file that is cut off, which SimpleITK then reads without an error, too.
# Output:    .nii.gz: no error; .nii: no error; .nrrd: RuntimeError; .mha: RuntimeError; .tif: RuntimeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check SimpleITK==2.5.7 numpy==2.3.5
cd "$folder"
venv/bin/python 2> errors.txt - <<'PYTHON'
import resource
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LIMIT = 300_000
resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
image = sitk.GetImageFromArray(np.random.default_rng(0).random((60, 64, 64)).astype(np.float32))
found = {}
for ending in (".nii.gz", ".nii", ".nrrd", ".mha", ".tif"):
    try:
        sitk.WriteImage(image, f"image{ending}", True)
        found[ending] = "no error"
    except RuntimeError:
        found[ending] = "RuntimeError"
    assert Path(f"image{ending}").stat().st_size <= LIMIT < image.GetNumberOfPixels() * 4
print("; ".join(f"{ending}: {error}" for ending, error in found.items()))
assert [ending for ending, error in found.items() if error == "no error"] == [".nii.gz", ".nii"]
PYTHON
