"""What is attacked: trainings by the product's own command, alone, in a federation, and with noise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from images import CASES, DATASETS, LARGE, NODES, make_images

ROOT = Path(__file__).resolve().parents[2]
ALONE, FEDERATED = "alone", "federated"
NOISES = (0.5, 1.0, 2.0)
"""Noise multipliers of differential privacy for cases: standard deviation of a step's noise over the clipping norm."""
SETTINGS = [
    *("dataset=custom", "dataset.name=privacy", "configuration=2d", "fold=0"),
    # Rounds of 50 steps. Without augmentation so few steps remember as much of their cases as many do with it.
    *("trainer=short", "trainer.class=nnUNetTrainerNoDA"),
    *("trainer.epochs=5", "trainer.iterations=50", "trainer.val_iterations=1"),
    *("model=small", "model.overrides.UNet_max_features_2d=32", "+model.overrides.UNet_featuremap_min_edge_length=8"),
    *("compute.device=cpu", "compute.threads=1", "federation.workers=1"),
]
DRAWN_CASES, NOISE_STEPS = 20, 150
"""Cases that are expected in a step of noisy training, and its steps: noise of more would leave nothing."""
NOISE_SETTINGS = [
    *("trainer.epochs=3", f"trainer.iterations={NOISE_STEPS // 3}", "privacy.case.epsilon=null"),
    *(f"privacy.case.cases={DRAWN_CASES}", "privacy.case.patches=3", "privacy.case.accept_useless=true"),
]


@dataclass(frozen=True)
class Training:
    """A training.

    Attributes:
        hospitals: who trains.
        overrides: what the command line changes.
    """

    hospitals: Sequence[str]
    overrides: Sequence[str]


def noise_name(noise: float) -> str:
    """Name of the training with this noise multiplier."""
    return f"noise {noise:g}"


TRAININGS = {
    ALONE: Training(list(CASES), ["strategy=local"]),
    FEDERATED: Training(
        NODES,
        [
            "strategy=ffe",
            "strategy.aggregation._target_=experiments.privacy.curious_server.CuriousFedAvg",
            "+strategy.aggregation.folder=${paths.run}/seen",
        ],
    ),
    **{
        noise_name(noise): Training(
            [LARGE], ["strategy=local", "privacy=case", f"privacy.case.noise={noise:g}", *NOISE_SETTINGS]
        )
        for noise in NOISES
    },
}


def run_folder(out: Path, training: str, seed: int) -> Path:
    """Where a training of a seed lies."""
    return out / "runs" / training.replace(" ", "_") / f"seed{seed}"


def images_folder(out: Path, seed: int) -> Path:
    """Where the images of a seed lie."""
    return out / "images" / f"seed{seed}"


def command(out: Path, training: str, seeds: Sequence[int], overrides: Sequence[str] = ()) -> list[str]:
    """The command that trains it with every seed, or continues."""
    chosen = TRAININGS[training]
    centres = ", ".join(f"{{name: {name}, dataset: {DATASETS[name]}}}" for name in chosen.hospitals)
    return [
        *(sys.executable, str(ROOT / "train.py"), "--multirun", *SETTINGS, *chosen.overrides),
        *(f"seed={','.join(map(str, seeds))}", f"dataset.centres=[{centres}]"),
        *(f"dataset.raw_folder={images_folder(out, 0).parent}/seed${{seed}}", f"paths.cache={out / 'cache'}"),
        *(f"hydra.sweep.dir={run_folder(out, training, 0).parent}", "hydra.sweep.subdir=seed${seed}"),
        *overrides,
    ]


def train(out: Path, trainings: Sequence[str], seeds: Sequence[int], overrides: Sequence[str] = ()) -> None:
    """Make the images and train, or continue; what is finished stays.

    Raises:
        subprocess.CalledProcessError: a training failed; its output says why.
    """
    for seed in seeds:
        make_images(images_folder(out, seed), seed)
    for training in trainings:
        print(f"training: {training}", flush=True)
        subprocess.run(command(out, training, seeds, overrides), cwd=ROOT, check=True)
