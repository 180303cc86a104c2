"""Train: ``python train.py --help``. The same as ``fednnunet train``, from a clone."""

from __future__ import annotations

import sys

from fednnunet.cli.train import launch

if __name__ == "__main__":
    sys.exit(launch(["python", sys.argv[0]], sys.argv[1:]))
