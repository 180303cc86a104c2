"""A long federation under random kills: does anything leak, and do the records agree?

    python benchmarks/soak.py [--rounds 200] [--nodes 4] [--seed 0] [--kill-every 8] [--folder soak]

Server, nodes and ``train.py`` run as users start them, with TLS and node keys, on tiny images. Every few rounds, drawn
with the seed, something is killed with ``kill -9``: a node's worker, its connection or all of it, the SuperLink, the
whole server, or ``train.py``. What keeps it alive starts it again: ``node up`` and ``server up`` their parts, this
script the rest, as systemd would. Every ten rounds memory, open files, processes and disk are measured.

At the end: whether any of these grew over the second half of the run, and whether ``rounds.csv``, the nodes' audit
logs, their final checkpoints and the run's own end agree. Exit code 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' federation, however this script is started

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from scipy.stats import theilslopes  # noqa: E402

SAMPLE_EVERY = 10
"""Rounds."""
PARTS = ("worker", "connection", "node", "superlink", "server", "train")
STALL_SECONDS = 900.0
"""Without a new round for so long, the federation hangs."""
POLL_SECONDS = 0.2
MIB = 2**20
LIMITS = {"memory_mib": 0.5, "handles": 0.05, "processes": 0.01, "state_mib": 0.02, "run_mib": 0.02, "nodes_mib": 0.1}
"""Most that each may grow a round. A tiny network is 0.1 MiB, a round's row 0.3 KiB and an audit line 10 KiB."""


# kills ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """What is killed, and when.

    Attributes:
        after_round: once this round is over.
        part: of :data:`PARTS`.
        node: whose, for ``worker``, ``connection`` and ``node``.
        wait: share of a usual round's time that passes before.
    """

    after_round: int
    part: str
    node: str | None
    wait: float

    def __str__(self) -> str:
        return f"{self.part}{f' of {self.node}' if self.node else ''}"


def plan_kills(rounds: int, every: float, nodes: Sequence[str], seed: int) -> list[Kill]:
    """Kills at random moments, on average one in ``every`` rounds; each part about as often; the same for a seed."""
    rng = random.Random(seed)
    kills: list[Kill] = []
    parts: list[str] = []
    now = rng.expovariate(1 / every)
    while now < rounds - 1:  # the last round goes undisturbed into the final checkpoint
        if not parts:
            parts = rng.sample(PARTS, len(PARTS))
        part = parts.pop()
        node = rng.choice(list(nodes)) if part in ("worker", "connection", "node") else None
        kills.append(Kill(int(now), part, node, now % 1))
        now += rng.expovariate(1 / every)
    return kills


# measures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """What the federation uses at the end of a round.

    Attributes:
        round: that is over.
        seconds: since the beginning.
        memory_mib: proportional set size of all processes, MiB.
        handles: open files and sockets of all processes.
        processes: how many.
        state_mib: of the server's state folder on disk, MiB.
        run_mib: of the run folder.
        nodes_mib: of the nodes' work folders.
    """

    round: int
    seconds: float
    memory_mib: float
    handles: int
    processes: int
    state_mib: float
    run_mib: float
    nodes_mib: float


def trees(pids: Iterable[int]) -> list[psutil.Process]:
    """These processes and all that descend from them, each once; those that have ended are left out."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                if one.status() != psutil.STATUS_ZOMBIE:
                    found[one.pid] = one
    return list(found.values())


def measure_processes(processes: Iterable[psutil.Process]) -> tuple[float, int, int]:
    """Memory in MiB, open handles, and number of the processes that still live."""
    memory, handles, number = 0.0, 0, 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            # Proportional: pages that forked workers share count once.
            memory += process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss
            handles += process.num_fds()
            number += 1
    return memory / MIB, handles, number


def disk_mib(folder: Path) -> float:
    """Of all files in a folder, as far as they are still there when they are looked at."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            total += status.st_size if path.is_file() and not path.is_symlink() else 0
    return total / MIB


# verdicts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A slope and its limit.

    Attributes:
        measure: field of :class:`Sample`.
        slope: growth per round.
        limit: of it.
    """

    measure: str
    slope: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether it does not grow by more than the limit; not, where that is not known."""
        return self.slope <= self.limit


def growth(samples: Sequence[Sample], measure: str) -> float:
    """Slope a round over the second half of the samples; Theil-Sen: what a kill does to one does not count."""
    half = samples[len(samples) // 2 :]
    if len(half) < 3:
        return float("nan")
    values = [float(getattr(sample, measure)) for sample in half]
    return float(theilslopes(values, [sample.round for sample in half]).slope)


def judge(samples: Sequence[Sample], limits: Mapping[str, float] = LIMITS) -> list[Verdict]:
    """Every measure's growth against its limit."""
    return [Verdict(measure, growth(samples, measure), limit) for measure, limit in limits.items()]


# records ---------------------------------------------------------------------------------------------------


def read_rounds(path: Path) -> list[tuple[int, str]]:
    """Round and node of every row of ``rounds.csv``."""
    with path.open(newline="") as file:
        return [(int(row["round"]), row["node"]) for row in csv.DictReader(file)]


def read_audit(path: Path) -> Counter[int]:
    """How often a node's log has a good reply to each round's request to train."""
    replies: Counter[int] = Counter()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                raise ValueError(f"{path}, line {number}, is torn") from None
            if entry["kind"] == "train" and entry["ok"]:
                replies[int(entry.get("asked", {}).get("server_round", 0))] += 1
    return replies


def compare_records(
    rounds: int, recorded: Sequence[tuple[int, str]], audits: Mapping[str, Mapping[int, int]], least_nodes: int
) -> list[str]:
    """What does not agree between the server's rounds and what the nodes say that they sent.

    Args:
        rounds: of the run.
        recorded: round and node of every row that the server has.
        audits: node to round to number of replies.
        least_nodes: that a round must have.
    """
    problems = []
    for (server_round, node), count in sorted(Counter(recorded).items()):
        if count > 1:
            problems.append(f"round {server_round} has node {node} {count} times")
        if node not in audits:
            problems.append(f"round {server_round} has node {node}, which there is not")
        elif not audits[node].get(server_round):
            problems.append(f"round {server_round} has node {node}, whose audit log has no such reply")
    nodes_of = Counter(server_round for server_round, _ in set(recorded))
    for server_round in range(1, rounds + 1):
        if nodes_of[server_round] < least_nodes:
            problems.append(f"round {server_round} has {nodes_of[server_round]} nodes instead of {least_nodes}")
    problems += [f"round {extra} is recorded; there are {rounds}" for extra in sorted(nodes_of) if extra > rounds]
    return problems


def check_ends(run: Path, status: Mapping[str, Any], work_folders: Mapping[str, Path]) -> list[str]:
    """What is missing of the run's end: scores, the server's own word, and every node's final checkpoint."""
    from fednnunet.reporting.run_folder import read_run

    problems = [] if read_run(run).finished else ["the run folder holds no finished run"]
    if not status.get("finished"):
        problems.append(f"the server says that the run is at stage {status.get('stage')}")
    for node, folder in work_folders.items():
        found = list(folder.glob("runs/*/nnUNet_results/*/*/fold_0/checkpoint_final.pth"))
        if len(found) != 1:
            problems.append(f"node {node} has {len(found)} final checkpoints")
    return problems


# the run -------------------------------------------------------------------------------------------------


class Soak:
    """The federation, what is done to it, and what it uses.

    Args:
        folder: takes everything.
        options: of the command line.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        from tests.conftest import write_boxes
        from tests.support.deployed_federation import Federation

        self.rounds, self.run = options.rounds, folder / "run"
        self.nodes = {f"Node{number}": 300 + number for number in range(1, options.nodes + 1)}
        for number, (name, dataset) in enumerate(self.nodes.items()):
            write_boxes(folder / "raw", f"Dataset{dataset}_{name}", cases=5, shape=(4, 32, 32), seed=number)
        self.federation = Federation(folder, folder / "raw", list(self.nodes))
        self.least = options.min_nodes or options.nodes
        self.options = (f"trainer.epochs={self.rounds}", "strategy=asym", f"federation.min_nodes={self.least}")
        self.kills = plan_kills(self.rounds, options.kill_every, list(self.nodes), options.seed)
        self.samples: list[Sample] = []
        self.deaths = 0
        self.started = time.monotonic()

    def soak(self) -> None:
        """To the end of the run.

        Raises:
            TimeoutError: no round ended for a long time; names the round.
        """
        self.federation.start_server()
        for name, dataset in self.nodes.items():
            self.federation.start_node(name, data=dataset)
        self.federation.start_train(self.run, *self.options)
        kills, seen, since, usual = list(self.kills), 0, time.monotonic(), 1.0
        while not self._ended():
            now, done = time.monotonic(), self.last_round()
            if done > seen:
                usual, seen, since = (now - since) / (done - seen), done, now
                if done % SAMPLE_EVERY == 0:
                    self.sample(done)
            elif now - since > STALL_SECONDS:
                raise TimeoutError(f"nothing came after round {seen}: {self.federation.everything()}")
            if kills and done >= kills[0].after_round and now - since >= kills[0].wait * usual:
                self.kill(kills.pop(0), done)
            time.sleep(POLL_SECONDS)

    def _ended(self) -> bool:
        """Whether ``train.py`` has come to its end; one that failed is started again."""
        train = self.federation.processes.get("train")
        if train is None or train.poll() is None:
            return False
        if train.returncode:
            raise RuntimeError(f"train.py ended with {train.returncode}: {self.federation.output('train')[-4000:]}")
        return True

    def last_round(self) -> int:
        """That is recorded."""
        path = self.run / "rounds.csv"
        return max((number for number, _ in read_rounds(path)), default=0) if path.is_file() else 0

    def kill(self, kill: Kill, done: int) -> None:
        """Kill, and start again what nothing else starts again."""
        print(f"{time.monotonic() - self.started:7.0f} s  round {done:4d}  kill -9: {kill}", flush=True)
        self.deaths += 1
        federation = self.federation
        if kill.part == "superlink":
            federation.kill("server", "superlink")
        elif kill.part == "server":
            federation.kill_all_of("server")
            federation.start_server()
        elif kill.part == "train":
            federation.kill_all_of("train")
            federation.start_train(self.run, *self.options)
        elif kill.part == "node":
            assert kill.node is not None
            federation.kill_all_of(kill.node)
            federation.start_node(kill.node, data=self.nodes[kill.node])
        else:
            assert kill.node is not None
            federation.kill(kill.node, kill.part)

    def sample(self, done: int) -> None:
        """Measure."""
        federation = self.federation
        memory, handles, number = measure_processes(trees(p.pid for p in federation.processes.values()))
        folders = [disk_mib(folder) for folder in (federation.state, self.run, federation.folder / "nodes")]
        found = Sample(done, time.monotonic() - self.started, memory, handles, number, *folders)
        self.samples.append(found)
        print(f"{found.seconds:7.0f} s  round {done:4d}  {json.dumps(asdict(found))}", flush=True)

    def problems(self) -> list[str]:
        """What does not agree at the end."""
        work = {name: self.federation.work_folder(name) for name in self.nodes}
        audits = {name: read_audit(folder / "audit.jsonl") for name, folder in work.items()}
        problems = compare_records(self.rounds, read_rounds(self.run / "rounds.csv"), audits, self.least)
        return [*problems, *check_ends(self.run, self.federation.status(), work)]


def figures(
    soak: Soak, verdicts: Sequence[Verdict], problems: Sequence[str]
) -> Iterator[tuple[str, float, str, float]]:
    """Name, value, unit and target of each figure."""
    for verdict in verdicts:
        yield f"soak_{verdict.measure}_per_round", verdict.slope, verdict.measure.rpartition("_")[2], verdict.limit
    yield "soak_kills", soak.deaths, "kills", len(soak.kills)
    yield "soak_problems_in_the_records", len(problems), "problems", 0


def main() -> int:
    """Print the kills, the samples, the verdicts and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill-every", type=float, default=8, help="rounds, on average")
    parser.add_argument("--min-nodes", type=int, help="with which a round is closed; all if not given")
    parser.add_argument("--folder", type=Path, help="takes everything and is kept; a temporary one if not given")
    options = parser.parse_args()
    # However this process is asked to end, what it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fednnunet-soak-")))
        folder.mkdir(parents=True, exist_ok=True)
        soak = Soak(folder.resolve(), options)
        print(f"{options.rounds} rounds, {options.nodes} nodes, {len(soak.kills)} kills", flush=True)
        stack.callback(soak.federation.end)
        soak.soak()
        verdicts, problems = judge(soak.samples), soak.problems()
    print(f"\n{'measure':<12} {'a round':>10} {'limit':>8}  verdict")
    for verdict in verdicts:
        told = "holds" if verdict.holds else "too few samples" if np.isnan(verdict.slope) else "grows"
        print(f"{verdict.measure:<12} {verdict.slope:10.4f} {verdict.limit:8.3f}  {told}")
    print("\n".join(problems) or "the records agree")
    for metric, value, unit, target in figures(soak, verdicts, problems):
        told_value = None if np.isnan(value) else round(value, 4)
        print(json.dumps({"metric": metric, "value": told_value, "unit": unit, "target": target}))
    return 0 if not problems and all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
