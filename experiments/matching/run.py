"""Does sharing more layers train better? Run the experiment of the docs on layer matching; write its tables and figure.

    python experiments/matching/run.py            about 70 minutes on two cores; started again, it continues
    python experiments/matching/run.py --seeds 0  one seed, to check that it works

Two sweeps, 2d and 3d_fullres, run side by side on one core each: every strategy of ``conf/experiment/matching/`` with
every seed. Then ``analysis.py`` compares them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from analysis import write_comparison

ROOT = Path(__file__).resolve().parents[2]
SMALLER_3D = {  # the phantom's centres at two thirds of the resolution: a 3d step takes a tenth of a second
    "ISPY1": ((7, 32, 32), (4.8, 2.7, 2.7)),
    "ISPY2": ((8, 40, 40), (4.0, 2.18, 2.18)),
    "DUKE": ((8, 64, 64), (2.2, 1.32, 1.32)),
    "NACT": ((6, 32, 32), (4.0, 2.64, 2.64)),
}
SETTINGS: dict[str, list[str]] = {
    "2d": ["trainer.epochs=28", "model.overrides.UNet_min_batch_size=4"],
    "3d_fullres": [
        "trainer.epochs=16",
        "model.overrides.UNet_min_batch_size=2",
        *(f"dataset.generator.centres.{name}.shape={list(shape)}" for name, (shape, _) in SMALLER_3D.items()),
        *(f"dataset.generator.centres.{name}.spacing={list(spacing)}" for name, (_, spacing) in SMALLER_3D.items()),
    ],
}


def main() -> int:
    """Run or continue both sweeps, then compare; the exit status of the first sweep that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/matching"), help="folder of the runs")
    arguments = parser.parse_args()
    begin = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    strategies = [f"matching/{path.stem}" for path in sorted((ROOT / "conf/experiment/matching").glob("*.yaml"))]
    sweeps = {}
    for configuration, settings in SETTINGS.items():
        command = [
            *(sys.executable, str(ROOT / "train.py"), "--multirun"),
            *(f"seed={arguments.seeds}", f"experiment={','.join(strategies)}"),
            *(f"configuration={configuration}", *settings),
            f"hydra.sweep.dir={arguments.out / configuration}",
        ]
        log = arguments.out / f"{configuration}.log"
        print(f"{configuration}: progress in {log}", flush=True)
        with log.open("w") as file:
            sweeps[configuration] = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        failed = [sweep.wait() for sweep in sweeps.values()]
    except KeyboardInterrupt:
        for sweep in sweeps.values():  # Ctrl-C reached them too; they keep their checkpoints and end
            sweep.wait()
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    print(f"trained for {(time.monotonic() - begin) / 60:.0f} minutes")
    for configuration in SETTINGS:
        print(write_comparison(arguments.out / configuration))
    return next((code for code in failed if code), 0)


if __name__ == "__main__":
    sys.exit(main())
