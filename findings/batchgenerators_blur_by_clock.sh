#!/usr/bin/env bash
# The Gaussian blur of nnU-Net's augmentation.
#
# Versions:  batchgeneratorsv2 0.3.6, torch 2.13.0 (CPU)
# Guess:     with a fixed seed the augmented image is the same in every run on one machine.
# Behaviour: with benchmark=True, as nnU-Net's trainer sets it, the transform times a direct and an FFT convolution once
#            per shape and kernel size, and takes the faster one from then on. The two differ in their last bits, so the
#            load of the machine decides between two results.
# Output:    same clock: equal; another clock: differs by up to 2e-07
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check batchgeneratorsv2==0.3.6 torch==2.13.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import itertools

import torch
from batchgeneratorsv2.transforms.noise import gaussian_blur

image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))


def clock(slow):
    """A clock by which one of the two convolutions is slow: each is timed nine times, the direct one first."""
    ticks = itertools.count()

    def time():
        tick = next(ticks)
        timed = ("direct", "fft")[tick // 18 % 2]
        return float(timed == slow and tick % 2)

    return time


def blurred(slow):
    torch.manual_seed(0)
    gaussian_blur.time = clock(slow)
    transform = gaussian_blur.GaussianBlurTransform(blur_sigma=2.0, p_per_channel=1, benchmark=True)
    return transform(image=image.clone())["image"]


direct, again, fft = blurred("fft"), blurred("fft"), blurred("direct")
difference = float((direct - fft).abs().max())
same = "equal" if torch.equal(direct, again) else "differs"
print(f"same clock: {same}; another clock: differs by up to {difference:.0e}")
assert torch.equal(direct, again)
assert 0 < difference < 1e-4
PYTHON
