"""One network of hospitals that annotate one organ each: train it in every way, score all organs, write the tables.

    python experiments/union/run.py                          started again, it continues
    python experiments/union/run.py --seeds 0                one seed, to check that it works
    python experiments/union/run.py trainer.epochs=2 --out …  keys of all trainings

Trainings are the product's own, one at a time on one core. Each seed draws images and networks of its own, so that
seeds are independent; all trainings of a seed see the same images, and differ in what is annotated and how it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import write_results
from scoring import TRAININGS, images_folder, save_predictions, trained_folder

sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiment_runs import run_seeds, train_unless_finished
from organ_trainings import organ_command


def command(out: Path, training: str, seed: int, overrides: Sequence[str] = ()) -> list[str]:
    """The command that trains it, or continues."""
    images, settings = images_folder(out, training, seed), TRAININGS[training].overrides
    return organ_command(trained_folder(out, training, seed), out / "cache", images, seed, settings, overrides)


def train(out: Path, training: str, seed: int, overrides: Sequence[str] = ()) -> None:
    """Train and predict, or continue; what is finished stays.

    Raises:
        subprocess.CalledProcessError: the training failed; its output says why.
    """
    folder = trained_folder(out, training, seed)
    train_unless_finished(f"seed {seed}, {training}", folder, command(out, training, seed, overrides))
    save_predictions(out, training, seed)


def main() -> int:
    """Run or continue the experiment; the exit status of a training that failed, else 0."""
    return run_seeds(__doc__ or "", Path("outputs/union"), TRAININGS, train, write_results)


if __name__ == "__main__":
    sys.exit(main())
