"""What does a model, an average or a noisy model tell of its cases? Train, attack, write tables and figure.

    python experiments/privacy/run.py            started again, it continues
    python experiments/privacy/run.py --seeds 0  one seed, to check that it works

Trainings are the product's own, alone, in a federation and with noise (``trainings.py``). Their models are attacked by
membership inference (``membership.py``), training steps by inversion (``observations.py``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from membership import attack
from observations import attack_patches
from report import write_report
from trainings import TRAININGS, train

from fednnunet.files import write_atomically


def stored(file: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table in ``file``, made and written where there is none yet."""
    if not file.is_file():
        print(f"attacking: {file.stem}", flush=True)
        write_atomically(file, make().to_csv(index=False))
    return pd.read_csv(file)


def run(out: Path, seeds: Sequence[int], trainings: Sequence[str], steps: int, overrides: Sequence[str] = ()) -> str:
    """Train, attack and report; what is finished stays. Returns the tables as Markdown.

    Args:
        out: folder of the experiment.
        seeds: seeds of images, trainings and attacks.
        trainings: keys of :data:`trainings.TRAININGS`; the first two are needed.
        steps: steps of an inversion.
        overrides: of all trainings, for tests.
    """
    train(out, trainings, seeds, overrides)
    attacks = out / "attacks"
    cases = [
        stored(attacks / f"{training.replace(' ', '_')}_seed{seed}.csv", lambda t=training, s=seed: attack(out, t, s))
        for training in trainings
        for seed in seeds
    ]
    patches = [stored(attacks / f"inversion_seed{s}.csv", lambda s=s: attack_patches(out, s, steps)) for s in seeds]
    return write_report(out, pd.concat(cases, ignore_index=True), pd.concat(patches, ignore_index=True))


def main() -> int:
    """Run or continue the experiment; the exit status of a training that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default: %(default)s)")
    parser.add_argument("--trainings", default=",".join(TRAININGS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=150, help="steps of an inversion (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/privacy"), help="folder of the experiment")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    try:
        print(run(arguments.out.resolve(), seeds, arguments.trainings.split(","), arguments.steps))
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    except subprocess.CalledProcessError as failed:
        return failed.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
