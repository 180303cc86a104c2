#!/usr/bin/env bash
# Loss of region-based training (DC_and_BCE_loss) with an ignore label that no voxel has.
#
# Versions:  nnunetv2 2.8.1, torch 2.13.0
# Guess:     an ignore label changes the loss only where voxels are ignored.
# Behaviour: with it, cross-entropy is summed over the regions and averaged over voxels; without it, it is averaged over
#            both. So with R regions it weighs R times as much against the Dice loss, even where nothing is ignored.
# Output:    cross-entropy with over without ignore label: 2 regions 2.0, 3 regions 3.0, 5 regions 5.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 nnunetv2==2.8.1
cd "$folder"
venv/bin/python - 2> /dev/null <<'PYTHON'
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss


def loss(logits, target, use_ignore_label):
    dice = {"batch_dice": True, "do_bg": True, "smooth": 1e-5, "ddp": False}
    return DC_and_BCE_loss({}, dice, weight_dice=0, use_ignore_label=use_ignore_label)(logits, target).item()


torch.manual_seed(0)
ratios = []
for regions in (2, 3, 5):
    logits, target = torch.randn(2, regions, 8, 8), (torch.rand(2, regions, 8, 8) > 0.5).float()
    nothing_ignored = torch.cat([target, torch.zeros(2, 1, 8, 8)], 1)
    ratios.append(loss(logits, nothing_ignored, True) / loss(logits, target, False))
shown = ", ".join(f"{regions} regions {ratio:.1f}" for regions, ratio in zip((2, 3, 5), ratios))
print(f"cross-entropy with over without ignore label: {shown}")
assert all(abs(ratio - regions) < 1e-3 for regions, ratio in zip((2, 3, 5), ratios))
PYTHON
