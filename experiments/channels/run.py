"""One network of hospitals that have unlike channels: train it in every way, score it with each, write the tables.

    python experiments/channels/run.py                          started again, it continues
    python experiments/channels/run.py --seeds 0                one seed, to check that it works
    python experiments/channels/run.py trainer.epochs=2 --out …  keys of all trainings

Trainings are the product's own, one at a time on one core. Each seed draws images and networks of its own, so that
seeds are independent; all trainings of a seed see the same images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import write_results
from channel_scores import ACQUIRED, TRAININGS, images_folder, run_folder, save_predictions

sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiment_runs import exit_status, train_command, train_unless_finished

CENTRES = {
    "Oslo": "Dataset161_OrgansOslo",
    "Porto": "Dataset162_OrgansPorto",
    "Turin": "Dataset163_OrgansTurin",
}
"""Centres that train; Ghent, which has both channels, is only scored."""
GRID = ("shape=[5,32,32]", "spacing=[6,5,5]")
"""Half as fine as ``phantom_organs``, as in ``experiments/union``."""
SETTINGS = [
    *("dataset=phantom_organs", "fold=0", "dataset.generator.annotated=all"),
    "dataset.generator.channels={" + ", ".join(f"{name}: [{', '.join(c)}]" for name, c in ACQUIRED.items()) + "}",
    f"dataset.centres=[{', '.join(f'{{name: {name}, dataset: {dataset}}}' for name, dataset in CENTRES.items())}]",
    *(f"dataset.generator.centres.{centre}.{one}" for centre in (*CENTRES, "Ghent") for one in GRID),
    *("trainer.epochs=24", "trainer.iterations=20", "trainer.val_iterations=1", "trainer.initial_lr=0.01"),
    *("compute.device=cpu", "compute.threads=1", "federation.workers=1"),
]


def command(out: Path, training: str, seed: int, overrides: Sequence[str] = ()) -> list[str]:
    """The command that trains it, or continues."""
    settings = [
        *(*SETTINGS, *TRAININGS[training].overrides, f"seed={seed}", f"dataset.generator.seed={seed}"),
        *(f"dataset.raw_folder={images_folder(out, seed)}", f"paths.cache={out / 'cache'}"),
    ]
    return train_command(run_folder(out, training, seed), settings, overrides)


def train(out: Path, trainings: Sequence[str], seeds: Sequence[int], overrides: Sequence[str] = ()) -> None:
    """Train and predict, or continue; what is finished stays.

    Raises:
        subprocess.CalledProcessError: a training failed; its output says why.
    """
    for seed in seeds:
        for training in trainings:
            folder = run_folder(out, training, seed)
            train_unless_finished(f"seed {seed}, {training}", folder, command(out, training, seed, overrides))
            save_predictions(out, training, seed)


def main() -> int:
    """Run or continue the experiment; the exit status of a training that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated (default: %(default)s)")
    parser.add_argument("--trainings", default=",".join(TRAININGS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/channels"), help="folder of the experiment")
    parser.add_argument("--report-only", action="store_true", help="compare what is finished, train nothing")
    parser.add_argument("overrides", nargs="*", help="keys of all trainings, such as trainer.epochs=1")
    options = parser.parse_args()
    out, trainings = options.out.resolve(), options.trainings.split(",")
    if unknown := set(trainings) - set(TRAININGS):
        parser.error(f"--trainings: {min(unknown)} is none of {', '.join(TRAININGS)}")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.report_only and (status := exit_status(lambda: train(out, trainings, seeds, options.overrides))):
        return status
    print(write_results(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
