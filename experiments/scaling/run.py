"""What becomes of a federation as it grows? Train 4 to 100 hospitals that share the same number of cases; compare.

    python experiments/scaling/run.py                started again, it continues
    python experiments/scaling/run.py --nodes 4,10   the smallest, to check that it works

Each training is a run of ``train.py experiment=scaling`` (``conf/experiment/scaling.yaml``), one after another, so that
time and memory are those of one. ``analysis.py`` writes table and figure of what is finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import TRAININGS, run_folder, write_scaling

sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiment_runs import exit_status, train_command, train_unless_finished

NODES = (4, 10, 30, 100)


def command(out: Path, nodes: int, training: str, overrides: Sequence[str] = ()) -> list[str]:
    """The command that trains it, or continues."""
    settings = [
        *("experiment=scaling", *TRAININGS[training], f"dataset.generator.centres={nodes}"),
        *(f"paths.data={out / 'images'}", f"paths.cache={out / 'cache'}"),
    ]
    return train_command(run_folder(out, nodes, training), settings, overrides)


def train(out: Path, nodes: Sequence[int], trainings: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Train, or continue; what is finished stays.

    Raises:
        subprocess.CalledProcessError: a training failed; its output says why.
    """
    for number in nodes:
        for training in trainings:
            folder = run_folder(out, number, training)
            train_unless_finished(f"{number} nodes, {training}", folder, command(out, number, training, overrides))


def main() -> int:
    """Run or continue the experiment; the exit status of a training that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default=",".join(map(str, NODES)), help="comma-separated (default: %(default)s)")
    parser.add_argument("--trainings", default=",".join(TRAININGS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/scaling"), help="folder of the experiment")
    parser.add_argument("overrides", nargs="*", help="keys of all trainings, such as trainer.epochs=1")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    nodes, trainings = [int(number) for number in arguments.nodes.split(",")], arguments.trainings.split(",")
    if status := exit_status(lambda: train(out, nodes, trainings, arguments.overrides)):
        return status
    print(write_scaling(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
