"""Does a hospital that chooses its model by held-out cases end below training alone? Train, choose, compare.

    python experiments/selection/run.py            started again, it continues
    python experiments/selection/run.py --seeds 0  one seed, to check that it works

Each training is a run of ``train.py`` with five folds, one after another on one core. ``analysis.py`` chooses among
those of a seed, and writes table and figure of what is finished. Each seed draws images of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import write_comparison

sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiment_runs import run_folder, run_seeds, train_command, train_unless_finished

FINE_TUNED = "strategy.fine_tune_epochs=3"
TRAININGS = {
    "local": ["strategy=local"],
    "ffe": ["strategy=ffe", FINE_TUNED],
    "asym": ["strategy=asym", FINE_TUNED],
    "ditto": ["strategy=ditto"],
}
"""Each scores two models at every hospital, but for ``local``: that of the federation, and the hospital's own."""
CASES = {"ISPY1": 20, "ISPY2": 40, "DUKE": 30, "NACT": 10}
"""Of each centre, as unlike in number as the phantom's own; NACT's own six would leave too few to choose by."""
FOLDERS = {
    "ISPY1": "Dataset101_PhantomISPY1",
    "ISPY2": "Dataset102_PhantomISPY2",
    "DUKE": "Dataset103_PhantomDUKE",
    "NACT": "Dataset104_PhantomNACT",
}
IMAGES = {
    "ISPY1": ("[7,32,32]", "[4.8,2.7,2.7]"),
    "ISPY2": ("[8,36,36]", "[4,2.43,2.43]"),
    "DUKE": ("[8,48,48]", "[2.2,1.76,1.76]"),
    "NACT": ("[6,32,32]", "[4,2.64,2.64]"),
}
"""Shape (Z, Y, X) and spacing (mm): the phantom's field of view with two thirds of its pixels a side, of DUKE half."""
SETTINGS = [
    *("dataset=phantom", "configuration=2d", "fold=[0,1,2,3,4]", "dataset.generator.seed=${seed}"),
    f"dataset.centres=[{', '.join(f'{{name: {name}, dataset: {folder}}}' for name, folder in FOLDERS.items())}]",
    *(f"dataset.generator.centres.{name}.cases={cases}" for name, cases in CASES.items()),
    *(f"dataset.generator.centres.{name}.shape={shape}" for name, (shape, _) in IMAGES.items()),
    *(f"dataset.generator.centres.{name}.spacing={spacing}" for name, (_, spacing) in IMAGES.items()),
    # Without augmentation, 256 steps of a node learn what takes a thousand with it.
    *("trainer.class=nnUNetTrainerNoDA", "trainer.epochs=8", "trainer.iterations=32", "trainer.val_iterations=1"),
    *("model.overrides.UNet_min_batch_size=4", "trainer.save_probabilities=true"),
    *("compute.device=cpu", "compute.threads=1", "federation.workers=1"),
]


def command(out: Path, training: str, seed: int, overrides: Sequence[str] = ()) -> list[str]:
    """The command that trains it, or continues."""
    settings = [
        *(*SETTINGS, *TRAININGS[training], f"seed={seed}"),
        *(f"dataset.raw_folder={out / 'images'}/seed${{seed}}", f"paths.cache={out / 'cache'}"),
    ]
    return train_command(run_folder(out, training, seed), settings, overrides)


def train(out: Path, training: str, seed: int, overrides: Sequence[str] = ()) -> None:
    """Train, or continue; what is finished stays.

    Raises:
        subprocess.CalledProcessError: the training failed; its output says why.
    """
    folder = run_folder(out, training, seed)
    train_unless_finished(f"{training}, seed {seed}", folder, command(out, training, seed, overrides))


def main() -> int:
    """Run or continue the experiment; the exit status of a training that failed, else 0."""
    return run_seeds(__doc__ or "", Path("outputs/selection"), TRAININGS, train, write_comparison)


if __name__ == "__main__":
    sys.exit(main())
