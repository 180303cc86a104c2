"""A list of checks, run in order and shown with ticks and crosses."""

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
    """Result of a check.

    Attributes:
        state: ``warning`` means that it works, but badly or not for long; ``skipped`` that it could not be tested.
        found: what the check found.
        advice: how to fix it.
        value: what later checks need; with a value they run after a ``bad`` result, too.
    """

    state: Literal["good", "warning", "bad", "skipped"]
    found: str
    advice: str = ""
    value: Any = None


@dataclass(frozen=True)
class Check:
    """One line of the list.

    Attributes:
        name: shown at the start of the line.
        run: makes the result from the values of the checks in ``needs``.
        needs: names of earlier checks.
    """

    name: str
    run: Callable[..., CheckResult]
    needs: tuple[str, ...] = ()


def run_checks(checks: Sequence[Check]) -> Iterator[tuple[str, CheckResult]]:
    """Run ``checks`` in order; each name with its result.

    An error that a user can fix is a result, and so is a file that cannot be read. A check that needs the value of
    a failed check is skipped.
    """
    values: dict[str, Any] = {}
    for check in checks:
        missing = [name for name in check.needs if name not in values]
        if missing:
            yield check.name, CheckResult("skipped", f"not tested: needs {' and '.join(missing)}")
            continue
        try:
            result = check.run(*(values[name] for name in check.needs))
        except (FednnUNetError, OSError) as error:
            result = CheckResult("bad", str(error))
        if result.state != "bad" or result.value is not None:
            values[check.name] = result.value
        yield check.name, result


def show_results(results: Iterable[tuple[str, CheckResult]], console: Console) -> bool:
    """Print each result as it comes; true if none is bad."""
    bad = warnings = 0
    for name, result in results:
        mark, colour = MARKS[result.state]
        line = Text.assemble((mark, colour), f" {name:<{NAME_WIDTH}}", (result.found, "dim" * (mark == "–")))
        console.print(line, soft_wrap=True)
        if result.advice:
            console.print(Text(f"{'':<{NAME_WIDTH + 2}}→ {result.advice}", style=colour), soft_wrap=True)
        bad += result.state == "bad"
        warnings += result.state == "warning"
    if bad:
        console.print(f"\n{bad} to fix before this node can join.")
    else:
        console.print(f"\nThis node can join{f'; {warnings} worth checking' if warnings else ''}.")
    return not bad
