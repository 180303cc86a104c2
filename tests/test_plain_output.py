"""Output where the terminal, or the pipe behind it, cannot show every character."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fednnunet.plain_output import PLAINER

pytestmark = pytest.mark.unit
CHECK = """
from rich.console import Console
from fednnunet.deployment.node.preflight.results import CheckResult, show_results
from fednnunet.plain_output import write_plainer
write_plainer()
show_results([("data", CheckResult("good", "Köln …")), ("key", CheckResult("bad", "none", "make one"))], Console())
"""


@pytest.mark.parametrize(("encoding", "city"), [("ascii", "Koln"), ("latin-1", "Köln"), ("utf-8", "Köln")])
def test_every_command_shows_plainer_signs_where_the_terminal_has_no_others(encoding: str, city: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    shown = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, check=True, env=environment).stdout
    lines = [" ".join(line.split()) for line in shown.decode(encoding).splitlines()]
    plain = encoding != "utf-8"
    assert lines[:3] == (
        [f"+ data {city} ...", "x key none", "-> make one"] if plain else ["✓ data Köln …", "✗ key none", "→ make one"]
    )


def test_tables_keep_their_lines() -> None:
    table = ["DSC ↑       │ krum", "━━━━╇━━━━", "HD95 (mm) ↓ ┃ 0.3", "────┼────", "╺━━ 3 •"]
    assert [line.encode("ascii", PLAINER).decode() for line in table] == [
        *("DSC ^       | krum", "----+----", "HD95 (mm) v | 0.3", "----+----", "--- 3 *"),
    ]


def test_what_has_no_plainer_sign_becomes_a_question_mark() -> None:
    assert "αβ é ﬁ 2²".encode("ascii", PLAINER) == b"?? e fi 22"


def test_logs_are_utf_8_whatever_the_terminal(tmp_path: Path) -> None:
    redirected = f"redirect_output(Path({str(tmp_path / 'log')!r}), 0o600); print('Köln ✓')"
    script = f"from pathlib import Path; from fednnunet.processes import redirect_output; {redirected}"
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (tmp_path / "log").read_text(encoding="utf-8") == "Köln ✓\n"
