"""What experiments share: train what is not finished, one after another, and put tables into a README.

Their scripts find it by the folder above their own, which they append to ``sys.path``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fednnunet.evaluation.statistics import Interval
from fednnunet.files import write_atomically
from fednnunet.run_files import RUN_FILE

ROOT = Path(__file__).resolve().parents[1]


def train_command(folder: Path, settings: Sequence[str], overrides: Sequence[str] = ()) -> list[str]:
    """The command that trains into ``folder``, or continues there.

    Args:
        folder: folder of the run.
        settings: keys of the training.
        overrides: keys that go before these.
    """
    return [sys.executable, str(ROOT / "train.py"), *settings, f"hydra.run.dir={folder}", *overrides]


def train_unless_finished(name: str, folder: Path, command: Sequence[str]) -> None:
    """Train, or continue, and say what; a run that is finished stays.

    Args:
        name: what is trained.
        folder: folder of the run.
        command: as :func:`train_command` gives it.

    Raises:
        subprocess.CalledProcessError: the training failed; its output says why.
    """
    if not (folder / RUN_FILE).is_file():
        print(name, flush=True)
        subprocess.run(command, cwd=ROOT, check=True)


def exit_status(train: Callable[[], None]) -> int:
    """Exit status of a script that trains: that of a training that failed, 130 after Ctrl-C, else 0."""
    try:
        train()
    except KeyboardInterrupt:  # Ctrl-C reached the training too; it keeps its checkpoints and ends
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    except subprocess.CalledProcessError as failed:
        return failed.returncode
    return 0


def as_text(interval: Interval, sign: str = "") -> str:
    """Mean, and its interval where there is one."""
    mean = f"{interval.mean:{sign}.3f}"
    return mean if np.isnan(interval.low) else f"{mean} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def is_below(interval: Interval) -> str:
    """Whether a difference is below 0 by more than its interval."""
    return "not known" if np.isnan(interval.high) else "**yes**" if interval.high < 0 else "no"


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are numbers."""
    aligned = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, aligned, *rows)) + "\n"


def publish_between(readme: Path, begins: str, ends: str, text: str) -> None:
    """Replace what a README has between two marks.

    Raises:
        SystemExit: it lacks a mark.
    """
    before, mark, rest = readme.read_text(encoding="utf-8").partition(begins)
    _, end, after = rest.partition(ends)
    if not end:
        raise SystemExit(f"{readme} has no place for the table: it lacks {ends if mark else begins}")
    write_atomically(readme, f"{before}{mark}\n{text}\n{end}{after}")
