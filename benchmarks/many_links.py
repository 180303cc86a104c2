"""Memory, open files and seconds per round of many nodes at one server, and what late ones cost the others.

    python benchmarks/many_links.py [--links 50] [--rounds 3] [--stragglers 5] [--values 10000]

Our server with TLS and node keys, and the connection process of ``fednnunet node up`` for each node, all on this
machine; workers are threads that change small arrays, so that what is measured is the links. Stragglers hold their
replies back: the round closes at the time limit with all others, and the next ones go on without them until they are
back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for the next imports, however this script is started

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from child_processes import Processes, free_port  # noqa: E402
from flwr.app import ArrayRecord, ConfigRecord  # noqa: E402

from fednnunet.audit.log import AuditLog  # noqa: E402
from fednnunet.config.node_file import NodeFile  # noqa: E402
from fednnunet.deployment.keys import make_keys  # noqa: E402
from fednnunet.deployment.node.connection import run_connection  # noqa: E402
from fednnunet.deployment.server.superlink_grid import RunLost, SuperLinkGrid  # noqa: E402
from fednnunet.errors import ConfigError  # noqa: E402
from fednnunet.exchange.arrays import SharedArrays  # noqa: E402
from fednnunet.exchange.channel import WorkerChannel  # noqa: E402
from fednnunet.exchange.messages import TrainReply, TrainRequest  # noqa: E402
from fednnunet.server.node_client import NodeClient  # noqa: E402
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg  # noqa: E402

LINKS, ROUNDS, STRAGGLERS, VALUES = 50, 3, 5, 10_000
WARM_UP = 1
KEY = b"benchmark" * 4
START_SECONDS = 600
LEAST_LIMIT_S = 3.0
"""Time limit of a round with stragglers, at least; else twice the median of the rounds without."""
MB = 1e6
LINK_MB, SERVER_MB_PER_LINK, FILES_PER_LINK, BESIDE_STRAGGLERS = 100, 2.0, 4.0, 1.2
"""Targets."""


def work(folder: Path, number: int, values: int, is_late: threading.Event, on_time: threading.Event) -> None:
    """A worker without training: sends what it got a little changed; while it is late, not before it is told to."""
    state = np.full(values, number, np.float32)
    outgoing = SharedArrays.allocate({"layer": (state.shape, state.dtype)})
    address = str(folder / f"{number}.sock")
    channel = WorkerChannel(address, KEY, AuditLog(Path(f"{address}.audit.jsonl"), str(number)).record)
    while True:
        request = channel.receive()
        if request is None:
            continue
        body = TrainRequest.model_validate_json(request.body)
        if "layer" in request.arrays:
            np.copyto(state, request.arrays["layer"])
        state *= np.float32(1 - 0.001 * number)
        if is_late.is_set():
            on_time.wait()
        np.copyto(outgoing.views()["layer"], state)
        reply = TrainReply(server_round=body.server_round, num_examples=10, seconds_train=0.0)
        request.reply(reply.model_dump_json(), outgoing)


def work_all(folder: Path, links: int, values: int, pipe: Connection) -> None:
    """All workers, a thread each. ``pipe`` takes how many of them are late from now on; 0 lets them reply."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    late = {number: threading.Event() for number in range(1, links + 1)}
    on_time = threading.Event()
    for number in late:
        threading.Thread(target=work, args=(folder, number, values, late[number], on_time), daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            stragglers = pipe.recv()
            (on_time.set if stragglers == 0 else on_time.clear)()
            for number, event in late.items():
                (event.set if number <= stragglers else event.clear)()
            pipe.send(None)


class Usage:
    """Memory and open files of some processes and all that they started."""

    def __init__(self, roots: Sequence[int]) -> None:
        found = [psutil.Process(pid) for pid in roots]
        self.parts = [*found, *(child for root in found for child in root.children(recursive=True))]

    @property
    def pss(self) -> float:
        """Bytes: memory that processes share counts once."""
        return float(sum(part.memory_full_info().pss for part in self.parts))

    @property
    def files(self) -> int:
        """Open files and sockets."""
        return sum(part.num_fds() for part in self.parts)


@contextlib.contextmanager
def connected(
    folder: Path, links: int
) -> Iterator[tuple[SuperLinkGrid, dict[str, Usage], dict[str, float], list[int]]]:
    """A server with its nodes: the grid, memory and files of the server before and after they came, their processes."""
    names = [f"node{number:03}" for number in range(1, links + 1)]
    made, state = folder / "keys", folder / "server"
    (folder / "key").write_bytes(KEY)
    make_keys(made, ["127.0.0.1"], names)
    port = free_port()
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(Processes(folder, {}))
        up = ("server", "up", str(made), "--address", f"127.0.0.1:{port}", "--state", str(state))
        processes.start("server", sys.executable, "-m", "fednnunet.cli.main", *up)
        grids: list[SuperLinkGrid] = []

        def is_up() -> bool:
            with contextlib.suppress(RunLost, ConfigError):  # it is still starting
                grids.append(SuperLinkGrid(state, print))
            return bool(grids) and len(grids[0].names()) == links

        processes.wait_for("the server", is_up, START_SECONDS)
        grid = stack.enter_context(contextlib.closing(grids[-1]))
        server = processes.pid("server")
        empty = {"pss": Usage([server]).pss, "files": float(Usage([server]).files)}
        context = multiprocessing.get_context("spawn")
        started = []
        for number, name in enumerate(names, start=1):
            node_file = NodeFile(
                name=name,
                data=1,  # never read
                server=f"127.0.0.1:{port}",
                certificate=made / "ca.crt",
                key=made / "nodes" / name / "node.key",
                folder=folder / name,
            )
            config = {"socket": str(folder / f"{number}.sock"), "key-file": str(folder / "key")}
            process = context.Process(target=run_connection, args=(node_file, config, folder / f"{name}.log"))
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            started.append(process)
        processes.wait_for("all nodes", lambda: len(grid.get_node_ids()) == links, START_SECONDS)
        yield grid, {"server": Usage([server])}, empty, [process.pid or 0 for process in started]


class Rounds:
    """Rounds of a strategy over a grid, as a run makes them: nodes that are away or late are left out.

    Args:
        grid: of the server.
        values: of a node's only tensor.
    """

    def __init__(self, grid: SuperLinkGrid, values: int) -> None:
        self.grid = grid
        self.names = grid.names()
        self.client = NodeClient(grid, wait_for_nodes=True)
        self.strategy = AsymFedAvg()
        self.strategy.prepare({node: {"layer": (values,)} for node in self.names}, self.names)
        self.arrays = ArrayRecord()
        self.round = 0

    def run(self, limit: float | None, least: int) -> tuple[float, int]:
        """One round with at least ``least`` replies: its seconds, and how many nodes were in it."""
        self.round += 1
        start = time.perf_counter()
        nodes = self.client.wait_until_connected(list(self.names), least)
        config = ConfigRecord({"fold": 0, "epochs": 1, "nodes": nodes})
        messages = list(self.strategy.configure_train(self.round, self.arrays, config, self.grid))
        replies = 0

        def counted() -> Iterator:
            nonlocal replies
            for reply in self.client.stream(messages, limit, least):
                replies += 1
                yield reply

        averaged, _ = self.strategy.aggregate_train(self.round, counted())
        assert averaged is not None, self.strategy.failures
        self.arrays = averaged
        return time.perf_counter() - start, replies


def measure(links: int, rounds: int, stragglers: int, values: int) -> Iterator[tuple[str, float, str, float | None]]:
    """Name, value, unit and target of each figure."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="fednnunet-") as place:
        folder = Path(place)
        workers = context.Process(target=work_all, args=(folder, links, values, theirs), daemon=True)
        workers.start()
        try:
            with connected(folder, links) as (grid, usage, empty, pids):
                run = Rounds(grid, values)
                seconds = [run.run(None, links) for _ in range(WARM_UP + rounds)][WARM_UP:]
                assert {replies for _, replies in seconds} == {links}
                usual = statistics.median(wall for wall, _ in seconds)
                server = usage["server"]
                yield "many_links_round_seconds", usual, "s", None
                yield "many_links_link_memory", Usage(pids).pss / links / MB, "MB", LINK_MB
                yield "many_links_link_files", Usage(pids).files / links, "files", None
                memory, files = server.pss, server.files
                yield "many_links_server_memory", memory / MB, "MB", None
                per_link = (memory - empty["pss"]) / links / MB, (files - empty["files"]) / links
                yield "many_links_server_memory_per_link", per_link[0], "MB", SERVER_MB_PER_LINK
                yield "many_links_server_files", files, "files", None
                yield "many_links_server_files_per_link", per_link[1], "files", FILES_PER_LINK
                if not stragglers:
                    return
                limit = max(LEAST_LIMIT_S, 2 * usual)
                ours.send(stragglers)
                ours.recv()
                late, arrived = run.run(limit, links - stragglers)
                assert arrived == links - stragglers
                yield "many_links_round_with_stragglers_over_time_limit", late / limit, "ratio", None
                beside = [run.run(limit, links - stragglers) for _ in range(rounds)]
                assert {replies for _, replies in beside} == {links - stragglers}
                ratio = statistics.median(wall for wall, _ in beside) / usual
                yield "many_links_round_beside_stragglers", ratio, "ratio", BESIDE_STRAGGLERS
                ours.send(0)
                ours.recv()
                run.run(None, links)  # waits until all are back
        finally:
            workers.terminate()
            workers.join()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--links", type=int, default=LINKS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"counted, after {WARM_UP} that is not")
    parser.add_argument("--stragglers", type=int, default=STRAGGLERS, help="nodes that hold their replies back")
    parser.add_argument("--values", type=int, default=VALUES, help="of a node's only tensor, float32")
    options = parser.parse_args()
    # However this process is asked to end, what it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"{options.links} nodes, {options.stragglers} of them late, {options.values * 4 / MB:g} MB each", flush=True)
    for metric, value, unit, target in measure(options.links, options.rounds, options.stragglers, options.values):
        print(json.dumps({"metric": metric, "value": round(value, 3), "unit": unit, "target": target}), flush=True)


if __name__ == "__main__":
    main()
