"""``train.py`` in the process of the tests."""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_local(arguments: Sequence[str], report: bool = False) -> subprocess.CompletedProcess[str]:
    """A ``python train.py …`` in this process: the same script, arguments, output and exit code.

    What it takes seconds to import, here and for the nodes, is imported once for all tests. It must be no sweep.
    Figures and report take 3 CPU seconds, and measuring memory every second a tenth of the rest; both are left out
    unless a test reads them.
    """
    out, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(sys, "argv", arguments[1:])
        patch.setenv("COLUMNS", "200")
        # Hydra composes all twice, first to see whether a file asks for a sweep.
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        if not report:
            patch.setattr("fednnunet.reporting.finish.write_report", lambda folder, results: folder / "report.html")
            patch.setattr("fednnunet.node.launcher.MEMORY_SAMPLE_SECONDS", 600.0)
        try:
            runpy.run_path(arguments[1], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), errors.getvalue())
