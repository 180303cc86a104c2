"""A list of checks, run in order and shown as ticks and crosses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from fednnunet.errors import FednnUNetError

MARKS = {"good": ("✓", "green"), "warning": ("!", "yellow"), "bad": ("✗", "red"), "skipped": ("–", "dim")}
NAME_WIDTH = 14


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        state: ``warning`` is for what works, but badly or not for long; ``skipped`` for what could not be tested.
        found: what is there.
        advice: how to fix it.
        value: what later checks need of it; they run after a ``bad`` finding, too, if it has one.
    """

    state: Literal["good", "warning", "bad", "skipped"]
    found: str
    advice: str = ""
    value: Any = None


@dataclass(frozen=True)
class Check:
    """One line of the list.

    Attributes:
        name: of the line.
        run: makes the finding from the values of the checks that it needs.
        needs: names of checks before it.
    """

    name: str
    run: Callable[..., CheckResult]
    needs: tuple[str, ...] = ()


def run_checks(checks: Sequence[Check]) -> Iterator[tuple[str, CheckResult]]:
    """Run ``checks`` in order; each name with its finding.

    An error that a user can fix is a finding, and so is a file that cannot be read. A check that needs the value
    of one that failed is skipped.
    """
    values: dict[str, Any] = {}
    for check in checks:
        lacking = [name for name in check.needs if name not in values]
        if lacking:
            yield check.name, CheckResult("skipped", f"not tested: it needs {' and '.join(lacking)}")
            continue
        try:
            finding = check.run(*(values[name] for name in check.needs))
        except (FednnUNetError, OSError) as error:
            finding = CheckResult("bad", str(error))
        if finding.state != "bad" or finding.value is not None:
            values[check.name] = finding.value
        yield check.name, finding


def show_findings(findings: Iterable[tuple[str, CheckResult]], console: Console) -> bool:
    """Print each finding as it comes; whether none is bad."""
    bad = warnings = 0
    for name, finding in findings:
        mark, colour = MARKS[finding.state]
        line = Text.assemble((mark, colour), f" {name:<{NAME_WIDTH}}", (finding.found, "dim" * (mark == "–")))
        console.print(line, soft_wrap=True)
        if finding.advice:
            console.print(Text(f"{'':<{NAME_WIDTH + 2}}→ {finding.advice}", style=colour), soft_wrap=True)
        bad += finding.state == "bad"
        warnings += finding.state == "warning"
    if bad:
        console.print(f"\n{bad} to fix before this node can join.")
    else:
        console.print(f"\nThis node can join{f'; {warnings} worth a look' if warnings else ''}.")
    return not bad
