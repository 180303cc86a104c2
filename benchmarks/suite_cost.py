"""CPU and wall seconds of ``make test``'s pytest part in two checkouts, one after the other.

    python benchmarks/suite_cost.py OLD NEW

Each checkout needs a ``.venv``, and its own Makefile says what is run. Counted is the CPU time, user and system, of
everything that the suite starts, also of processes whose parent was killed: this process adopts them (Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TARGET_RATIO = 0.55
"""Of CPU seconds, new over old."""
PR_SET_CHILD_SUBREAPER = 36
ORPHAN_SECONDS = 30.0
"""For processes that the suite has left behind to end by themselves."""
POLL_SECONDS = 0.1
UNSET = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET")
SUMMARY = re.compile(r"(\d+) (failed|passed|errors?|skipped)\b")


@dataclass(frozen=True)
class Cost:
    """What a suite took.

    Attributes:
        cpu_seconds: User and system time of all its processes.
        wall_seconds: Time from its start to its end.
        exit_code: Exit code of pytest.
        counts: Outcome (``passed``, ``failed``, ``error``) to number of tests.
    """

    cpu_seconds: float
    wall_seconds: float
    exit_code: int
    counts: dict[str, int]


def pytest_command(checkout: Path, target: str) -> str:
    """The pytest part of a Makefile's target, as a shell command.

    Raises:
        SystemExit: there is none, or the checkout has no environment.
    """
    if not (checkout / ".venv" / "bin" / "python").exists():
        sys.exit(f"{checkout}: there is no .venv; run `make setup` there")
    printed = subprocess.run(["make", "--dry-run", target], cwd=checkout, capture_output=True, text=True)
    commands = [line.strip() for line in printed.stdout.splitlines() if "-m pytest" in line]
    if len(commands) != 1:
        sys.exit(f"{checkout}: `make {target}` should run pytest once, and runs it {len(commands)} times")
    return commands[0]


def measure(command: str, checkout: Path, log: Path) -> Cost:
    """Run a suite to its end; its output goes to ``log``."""
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    environment |= {"PYTHONNOUSERSITE": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    before, start = _children_cpu_seconds(), time.monotonic()
    with log.open("wb") as out:
        suite = subprocess.Popen(["bash", "-c", command], cwd=checkout, env=environment, stdout=out, stderr=out)
    exit_code = _reap_until_end_of(suite.pid)
    wall_seconds = time.monotonic() - start
    _reap_orphans()
    text = log.read_text(encoding="utf-8", errors="replace")
    (last,) = text.rstrip().splitlines()[-1:] or [""]
    counts = {
        outcome.removesuffix("s") if outcome == "errors" else outcome: int(n) for n, outcome in SUMMARY.findall(last)
    }
    return Cost(_children_cpu_seconds() - before, wall_seconds, exit_code, counts)


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _reap_until_end_of(pid: int) -> int:
    """Exit code of a process. Orphans are reaped as soon as they end, as by init: tests look at who still lives."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _reap_orphans() -> None:
    """Wait for what is left of a suite; kill what does not end."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            if time.monotonic() > deadline:
                for child in _children():
                    print(f"process {child} was left behind; it is killed", file=sys.stderr)
                    os.kill(child, signal.SIGKILL)
            time.sleep(POLL_SECONDS)


def _children() -> list[int]:
    """Process ids of the children of this process, adopted ones included."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def main() -> None:
    """Measure both suites and print the figures."""
    parser = argparse.ArgumentParser(description="CPU and wall seconds of two checkouts' test suites.")
    parser.add_argument("old", type=Path, help="checkout to compare with")
    parser.add_argument("new", type=Path, help="checkout")
    parser.add_argument("--old-target", default="test", help="make target of the old one (default: %(default)s)")
    parser.add_argument("--new-target", default="test", help="make target of the new one (default: %(default)s)")
    parser.add_argument("--logs", type=Path, help="folder for the suites' output (default: a temporary one)")
    options = parser.parse_args()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit("orphans cannot be adopted: suite_cost.py needs Linux")
    logs = options.logs or Path(tempfile.mkdtemp(prefix="suite_cost"))
    logs.mkdir(parents=True, exist_ok=True)
    chosen = {"old": (options.old, options.old_target), "new": (options.new, options.new_target)}
    commands = {name: pytest_command(checkout, target) for name, (checkout, target) in chosen.items()}
    costs = {}
    for name, (checkout, _) in chosen.items():
        print(f"{name}: {commands[name]}", file=sys.stderr, flush=True)
        costs[name] = cost = measure(commands[name], checkout, logs / f"{name}.log")
        outcome = ", ".join(f"{number} {what}" for what, number in cost.counts.items())
        problem = f"; pytest failed with exit code {cost.exit_code}" if cost.exit_code else ""
        print(f"{name}: {outcome or 'no summary'}{problem}; see {logs / name}.log", file=sys.stderr, flush=True)
    figures: list[tuple[str, float, str, float | None]] = []
    for name, cost in costs.items():
        figures += [
            (f"suite_{name}_cpu", cost.cpu_seconds, "s", None),
            (f"suite_{name}_wall", cost.wall_seconds, "s", None),
            (f"suite_{name}_passed", cost.counts.get("passed", 0), "tests", None),
            (f"suite_{name}_failed", cost.counts.get("failed", 0) + cost.counts.get("error", 0), "tests", 0),
        ]
    old, new = costs["old"], costs["new"]
    figures.append(("suite_wall_new_over_old", new.wall_seconds / old.wall_seconds, "ratio", None))
    figures.append(("suite_cpu_new_over_old", new.cpu_seconds / old.cpu_seconds, "ratio", TARGET_RATIO))
    for metric, value, unit, target in figures:
        print(json.dumps({"metric": metric, "value": round(value, 3), "unit": unit, "target": target}))
    sys.exit(1 if any(cost.exit_code for cost in costs.values()) else 0)


if __name__ == "__main__":
    main()
