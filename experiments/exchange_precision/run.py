"""What do fewer bits on the line cost in DSC? Train with every precision, compare, write the table and the figure.

    python experiments/exchange_precision/run.py            started again, it continues
    python experiments/exchange_precision/run.py --seeds 0  one seed, to check that it works

Runs are the product's own, one at a time on one core: ``asym`` and ``ffe`` with every ``exchange.dtype`` and seed.
Each seed draws images of its own, so that seeds are independent; all precisions of a seed begin alike.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import PRECISIONS, STRATEGIES, write_comparison

ROOT = Path(__file__).resolve().parents[2]
CENTRES = {
    "ISPY1": "Dataset101_PhantomISPY1",
    "ISPY2": "Dataset102_PhantomISPY2",
    "DUKE": "Dataset103_PhantomDUKE",
    "NACT": "Dataset104_PhantomNACT",
}
CASES = 50
"""Of each centre; a fifth is held out. The phantom's own numbers leave NACT a single case."""
SETTINGS = [
    *("dataset=phantom", "configuration=2d", "fold=0", "dataset.generator.seed=${seed}"),
    f"dataset.centres=[{', '.join(f'{{name: {name}, dataset: {dataset}}}' for name, dataset in CENTRES.items())}]",
    *(f"dataset.generator.centres.{name}.cases={CASES}" for name in CENTRES),
    # Two thirds of DUKE's resolution: still the most pixels and a stage more than others, in half the time.
    *("dataset.generator.centres.DUKE.shape=[8,64,64]", "dataset.generator.centres.DUKE.spacing=[2.2,1.32,1.32]"),
    # Without augmentation, 320 steps of a node learn what takes a thousand with it.
    *("trainer.class=nnUNetTrainerNoDA", "trainer.epochs=16", "trainer.iterations=20", "trainer.val_iterations=1"),
    *("model.overrides.UNet_min_batch_size=4", "compute.device=cpu", "compute.threads=1"),
    "federation.workers=1",
]


def command(
    out: Path, seeds: Sequence[int], precisions: Sequence[str], strategies: Sequence[str], overrides: Sequence[str] = ()
) -> list[str]:
    """The command that trains them all, or continues; a precision is finished before the next."""
    return [
        *(sys.executable, str(ROOT / "train.py"), "--multirun", *SETTINGS),
        *(f"exchange.dtype={','.join(precisions)}", f"seed={','.join(map(str, seeds))}"),
        *(f"strategy={','.join(strategies)}", f"dataset.raw_folder={out / 'images'}/seed${{seed}}"),
        *(f"paths.cache={out / 'cache'}", f"hydra.sweep.dir={out / 'runs'}"),
        *("hydra.sweep.subdir=${strategy.name}/${exchange.dtype}/seed${seed}", *overrides),
    ]


def main() -> int:
    """Run or continue the experiment; the exit status of the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated (default: %(default)s)")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/exchange_precision"), help="folder of the experiment")
    parser.add_argument("--report-only", action="store_true", help="compare what is finished, train nothing")
    parser.add_argument("overrides", nargs="*", help="of all runs, such as trainer.epochs=2")
    options = parser.parse_args()
    out = options.out.resolve()
    status = 0
    if not options.report_only:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        chosen = options.precisions.split(","), options.strategies.split(",")
        try:
            status = subprocess.run(command(out, seeds, *chosen, options.overrides), cwd=ROOT).returncode
        except KeyboardInterrupt:  # Ctrl-C reached the sweep too; it keeps its checkpoints and ends
            print("interrupted; the same command continues", file=sys.stderr)
            return 130
    print(write_comparison(out))
    return status


if __name__ == "__main__":
    sys.exit(main())
