#!/usr/bin/env bash
# SpacingBetweenSlices of the source images of a DICOM segmentation (highdicom).
#
# Versions:  highdicom 0.28.2, pydicom 3.0.2
# Guess:     the geometry of a segmentation follows the positions of its source images; SpacingBetweenSlices, which scanners
#            often fill in wrongly, plays no part.
# Behaviour: the tag is copied into the segmentation and wins when it is read: with 1.25 where slices lie 2.5 mm apart, a mask
#            of 8 slices comes back as 15, every second one empty, without a warning.
# Output:    tag None and 2.5: 8 slices of 2.5 mm, 8 of them filled; tag 1.25: 15 slices of 1.25 mm, 8 of them filled
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    highdicom==0.28.2 pydicom==3.0.2 numpy==2.4.6
cd "$folder"
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" venv/bin/python -W ignore - <<'PYTHON'
from dicom_series import slice_at
import highdicom as hd
import numpy as np
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid


def volume_of_segmentation(tag):
    uids = [generate_uid() for _ in range(3)]
    source = [slice_at(z, *uids) for z in range(8)]
    for one in source if tag else ():
        one.SpacingBetweenSlices = tag
    mask = np.zeros((8, 16, 16), np.uint8)
    mask[:, 4:8, 4:8] = 1
    by = hd.AlgorithmIdentificationSequence("phantom", codes.DCM.ArtificialIntelligence, "1")
    kind = hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
    organ = hd.seg.SegmentDescription(1, "organ", codes.SCT.Organ, codes.SCT.Organ, kind, by)
    binary = hd.seg.SegmentationTypeValues.BINARY
    written = hd.seg.Segmentation(source, mask, binary, [organ], generate_uid(), 2, generate_uid(), 1, "a", "b", "1", "2")
    return written.get_volume(combine_segments=True)


seen = {}
for tag in (None, 2.5, 1.25):
    volume = volume_of_segmentation(tag)
    filled = int(volume.array.any(axis=(1, 2)).sum())
    seen[tag] = len(volume.array), filled, float(volume.spacing[0])
    print(f"tag {tag}: {seen[tag][0]} slices of {seen[tag][2]} mm, {filled} of them filled")
assert seen == {None: (8, 8, 2.5), 2.5: (8, 8, 2.5), 1.25: (15, 8, 1.25)}, seen
PYTHON
