"""Settings of trainings on generated abdominal images, of ``experiments/union`` and ``experiments/channels``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiment_runs import train_command

CENTRES = {
    "Oslo": "Dataset161_OrgansOslo",
    "Porto": "Dataset162_OrgansPorto",
    "Turin": "Dataset163_OrgansTurin",
}
"""Centres that train; Ghent is only scored."""
GRID = ("shape=[5,32,32]", "spacing=[6,5,5]")
"""Half as fine as ``phantom_organs``: a step takes a third of the time."""
SETTINGS = [
    *("dataset=phantom_organs", "fold=0"),
    f"dataset.centres=[{', '.join(f'{{name: {name}, dataset: {dataset}}}' for name, dataset in CENTRES.items())}]",
    *(f"dataset.generator.centres.{centre}.{one}" for centre in (*CENTRES, "Ghent") for one in GRID),
    *("trainer.epochs=24", "trainer.iterations=20", "trainer.val_iterations=1", "trainer.initial_lr=0.01"),
    *("compute.device=cpu", "compute.threads=1", "federation.workers=1"),
]


def organ_command(
    folder: Path, cache: Path, images: Path, seed: int, settings: Sequence[str], overrides: Sequence[str] = ()
) -> list[str]:
    """The command that trains it, or continues.

    Args:
        folder: folder of the run.
        cache: folder of preprocessed data, which the trainings share.
        images: folder of the raw datasets.
        seed: of the images, and of the training.
        settings: keys by which it differs from others.
        overrides: keys that go before these.
    """
    keys = [
        *(*SETTINGS, *settings, f"seed={seed}", f"dataset.generator.seed={seed}"),
        *(f"dataset.raw_folder={images}", f"paths.cache={cache}"),
    ]
    return train_command(folder, keys, overrides)
