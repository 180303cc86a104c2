#!/usr/bin/env bash
# nnU-Net's predictor with a network that is sure of one class everywhere.
#
# Versions:  nnunetv2 2.8.1, torch 2.13.0 (CPU), numpy 2.3.5
# Guess:     the sliding window weighs outputs with a Gaussian and divides by the sum of weights: of a network that
#            gives the same logits at every voxel, these come back.
# Behaviour: weights and sums are of half precision. In the corners of an image, which no other tile covers, the 3D
#            Gaussian is as small as half precision can say, where logits times weight are whole multiples of it: there,
#            logits come back as whole numbers. Classes that are closer than that are a tie, which the lowest label wins.
# Output:    logits 1.3 1.4 -2.0 come back as 1.0 1.0 -2.0 in a corner, and class 0 in place of 1 in
#            1.57 % of an image of one tile of 32 x 32 x 32, in 0.20 % of one of 64 x 64 x 64
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 nnunetv2==2.8.1
cd "$folder"
venv/bin/python - 2> /dev/null <<'PYTHON'
from types import SimpleNamespace

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

LOGITS = (1.3, 1.4, -2.0)


class Sure(torch.nn.Module):
    def forward(self, tile):
        return torch.tensor(LOGITS).reshape(1, -1, 1, 1, 1).repeat(1, 1, *tile.shape[2:])


predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
predictor.configuration_manager = SimpleNamespace(patch_size=[32, 32, 32])
predictor.label_manager = SimpleNamespace(num_segmentation_heads=len(LOGITS))
predictor.allowed_mirroring_axes = None
predictor.network = Sure()
predictor.list_of_parameters = [predictor.network.state_dict()]
wrong = []
for size in (32, 64):
    found = predictor.predict_logits_from_preprocessed_data(torch.zeros(1, size, size, size))
    wrong.append(round(100 * (found.argmax(0) != 1).float().mean().item(), 2))
    corner, centre = found[:, 0, 0, 0].tolist(), found[:, 16, 16, 16].tolist()
    print(f"{size}: {found.dtype}, corner {corner}, centre {centre}, class 0 in {wrong[-1]} %")
    assert corner == [1.0, 1.0, -2.0], "logits in the corner"
    assert max(abs(one - logit) for one, logit in zip(centre, LOGITS)) < 0.01
assert wrong == [1.57, 0.2], "voxels of the wrong class"
PYTHON
