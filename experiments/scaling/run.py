"""What becomes of a federation as it grows? Train 4 to 100 hospitals that share the same number of cases; compare.

    python experiments/scaling/run.py                started again, it continues
    python experiments/scaling/run.py --nodes 4,10   the smallest, to check that it works

Each training is a run of ``train.py experiment=scaling`` (``conf/experiment/scaling.yaml``), one after another, so that
time and memory are those of one. ``analysis.py`` writes table and figure of what is finished.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import TRAININGS, run_folder, write_scaling

from fednnunet.run_files import RUN_FILE

ROOT = Path(__file__).resolve().parents[2]
NODES = (4, 10, 30, 100)


def command(out: Path, nodes: int, training: str, overrides: Sequence[str] = ()) -> list[str]:
    """The command that trains it, or continues."""
    return [
        *(sys.executable, str(ROOT / "train.py"), "experiment=scaling", *TRAININGS[training]),
        *(f"dataset.generator.centres={nodes}", f"paths.data={out / 'images'}", f"paths.cache={out / 'cache'}"),
        *(f"hydra.run.dir={run_folder(out, nodes, training)}", *overrides),
    ]


def train(out: Path, nodes: Sequence[int], trainings: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Train, or continue; what is finished stays.

    Raises:
        subprocess.CalledProcessError: a training failed; its output says why.
    """
    for number in nodes:
        for training in trainings:
            if (run_folder(out, number, training) / RUN_FILE).is_file():
                continue
            print(f"{number} nodes, {training}", flush=True)
            subprocess.run(command(out, number, training, overrides), cwd=ROOT, check=True)


def main() -> int:
    """Run or continue the experiment; the exit status of a training that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default=",".join(map(str, NODES)), help="comma-separated (default: %(default)s)")
    parser.add_argument("--trainings", default=",".join(TRAININGS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/scaling"), help="folder of the experiment")
    parser.add_argument("overrides", nargs="*", help="keys of all trainings, such as trainer.epochs=1")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    try:
        nodes = [int(number) for number in arguments.nodes.split(",")]
        train(out, nodes, arguments.trainings.split(","), arguments.overrides)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    except subprocess.CalledProcessError as failed:
        return failed.returncode
    print(write_scaling(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
