"""A run's folder is one process's at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fednnunet.errors import ConfigError
from fednnunet.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from fednnunet.lock import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""


def test_a_folder_in_use_is_refused_until_its_process_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ConfigError, match=f"in use by process {other.pid} on"), locked(tmp_path):
            pass
        other.kill()
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
