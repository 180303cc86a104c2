"""One network of hospitals that have unlike channels: train it in every way, score it with each, write the tables.

    python experiments/channels/run.py                          started again, it continues
    python experiments/channels/run.py --seeds 0                one seed, to check that it works
    python experiments/channels/run.py trainer.epochs=2 --out …  keys of all trainings

Trainings are the product's own, one at a time on one core. Each seed draws images and networks of its own, so that
seeds are independent; all trainings of a seed see the same images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import write_results
from channel_scores import ACQUIRED, TRAININGS, images_folder, save_predictions

sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiment_runs import run_folder, run_seeds, train_unless_finished
from organ_trainings import organ_command

UNLIKE_CHANNELS = (
    "dataset.generator.annotated=all",
    "dataset.generator.channels={" + ", ".join(f"{name}: [{', '.join(c)}]" for name, c in ACQUIRED.items()) + "}",
)


def command(out: Path, training: str, seed: int, overrides: Sequence[str] = ()) -> list[str]:
    """The command that trains it, or continues."""
    settings = [*UNLIKE_CHANNELS, *TRAININGS[training].overrides]
    folder, images = run_folder(out, training, seed), images_folder(out, seed)
    return organ_command(folder, out / "cache", images, seed, settings, overrides)


def train(out: Path, training: str, seed: int, overrides: Sequence[str] = ()) -> None:
    """Train and predict, or continue; what is finished stays.

    Raises:
        subprocess.CalledProcessError: the training failed; its output says why.
    """
    folder = run_folder(out, training, seed)
    train_unless_finished(f"seed {seed}, {training}", folder, command(out, training, seed, overrides))
    save_predictions(out, training, seed)


def main() -> int:
    """Run or continue the experiment; the exit status of a training that failed, else 0."""
    return run_seeds(__doc__ or "", Path("outputs/channels"), TRAININGS, train, write_results)


if __name__ == "__main__":
    sys.exit(main())
