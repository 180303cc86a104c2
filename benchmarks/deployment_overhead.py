"""Seconds and bytes that a round costs outside training: one machine, our deployment, bare Flower.

    python benchmarks/deployment_overhead.py [--nodes 2] [--rounds 7] [--stages 7] [--dtype float32 int4]
    python benchmarks/deployment_overhead.py --large 2.2

The same exchange several times, of a network of 33 M random parameters that every node changes every round: on the
local grid; through our server and nodes, in each precision of ``--dtype``; and through Flower's SuperLink and
SuperNodes with Flower's FedAvg and nothing of ours (``benchmarks/bare_flower``), which knows float32 alone. All but the
first use TLS, node keys and a database on disk, over loopback. What goes between nodes and server passes a process
that counts it, for all alike. A round is from the request's making to the average; the first, which starts processes,
is not counted, nor is the second of ``int8`` and ``int4``, in which nodes get the layers whole. Beside seconds stand
CPU seconds of a round, of all processes, training and counting included: what a busy machine leaves comparable.

``--large`` measures time and memory of one message instead; it needs eight times its size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import get_args

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for the next imports, however this script is started

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import round_overhead  # noqa: E402
from child_processes import END_SECONDS, START_SECONDS, Processes, free_port  # noqa: E402
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict  # noqa: E402

from fednnunet.audit.log import AuditLog  # noqa: E402
from fednnunet.config.node_file import NodeFile  # noqa: E402
from fednnunet.deployment.keys import make_keys  # noqa: E402
from fednnunet.deployment.node.connection import run_connection  # noqa: E402
from fednnunet.deployment.server.superlink_grid import RunLost, SuperLinkGrid  # noqa: E402
from fednnunet.errors import ConfigError  # noqa: E402
from fednnunet.exchange.arrays import SharedArrays  # noqa: E402
from fednnunet.exchange.channel import WorkerChannel  # noqa: E402
from fednnunet.exchange.messages import ExchangeDtype, Kind, TrainReply, TrainRequest  # noqa: E402
from fednnunet.exchange.quantisation import is_quantised  # noqa: E402
from fednnunet.exchange.records import to_array_record  # noqa: E402
from fednnunet.server.local_grid import wait_for_next_poll  # noqa: E402
from fednnunet.server.node_messages import num_bytes  # noqa: E402
from tests.support.network import Link  # noqa: E402

NODES = 2
ROUNDS = 7
DTYPES: tuple[ExchangeDtype, ...] = ("float32", "int4")
TARGET_RATIOS = {"float32": 0.15, "int4": 0.06}
BARE_APP = ROOT / "benchmarks" / "bare_flower"
ROUND_SECONDS = 300
TENSOR_BYTES = 64 * 2**20

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Exchange:
    """What one way of exchanging cost.

    Attributes:
        name: of the row.
        seconds: a round outside training, without the first rounds.
        up: bytes per round from all nodes to the server.
        down: bytes per round from the server to all nodes.
        on_wire: whether the bytes were counted on the wire, and not as layers in messages.
        cpu: CPU seconds per round of all processes; NaN where they were not measured.
    """

    name: str
    seconds: list[float]
    up: float
    down: float
    on_wire: bool
    cpu: float = math.nan


# lines and CPU time -------------------------------------------------------------------------------------


def _pass_on(port: int, links: int, bandwidth: float | None, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Link("127.0.0.1", port, bandwidth=bandwidth)) for _ in range(links)]
        pipe.send([link.port for link in opened])
        with contextlib.suppress(EOFError):
            while True:
                pipe.recv()
                pipe.send((sum(link.bytes_up for link in opened), sum(link.bytes_down for link in opened)))


@contextlib.contextmanager
def counted(
    port: int, links: int, bandwidth: float | None = None
) -> Iterator[tuple[list[int], Callable[[], tuple[int, int]]]]:
    """Ports that lead to ``port``, a line each, and what tells the bytes up and down of all of them so far.

    In a process of its own, which costs those that it connects as little as possible.

    Args:
        port: of a server on this machine.
        links: number of lines.
        bandwidth: of each line, bytes per second each way; None for what the machine can do.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_pass_on, args=(port, links, bandwidth, theirs), daemon=True)
    process.start()
    theirs.close()

    def count() -> tuple[int, int]:
        ours.send(None)
        return ours.recv()

    try:
        yield ours.recv(), count
    finally:
        ours.close()
        process.join(END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def cpu_seconds() -> float:
    """User and system time so far of this process and of all that it has started, also of those that have ended."""
    total = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
            if process != me:  # whose children before this measurement do not count
                total += times.children_user + times.children_system
    return total


# the exchanges -------------------------------------------------------------------------------------------


def warm_up(dtype: ExchangeDtype) -> int:
    """First rounds that are not counted: nodes send layers whole in the first, and get them whole in the second."""
    return 2 if is_quantised(dtype) else 1


def local_grid(shapes: Shapes, nodes: int, rounds: int) -> Exchange:
    """The local grid: no wire, the bytes are those of the layers."""
    first = warm_up("float32")
    rows = round_overhead.measure(dict(shapes), nodes, first + rounds)
    payload = 4.0 * nodes * sum(math.prod(shape) for shape in shapes.values())
    return Exchange("LocalGrid", [row["overhead"] for row in rows[first:]], payload, payload, on_wire=False)


def deployment(
    shapes: Shapes, nodes: int, rounds: int, dtype: ExchangeDtype, bandwidth: float | None = None
) -> Exchange:
    """Our server and the connections of our nodes; the workers are those of the local grid.

    Args:
        shapes: of the tensors of every node.
        nodes: how many.
        rounds: that are counted.
        dtype: precision that layers travel in.
        bandwidth: of each node's line, bytes per second each way; None for what the machine can do.
    """
    workers = round_overhead.workers(dict(shapes), nodes)
    with workers as configs, deployed(list(configs.values()), bandwidth) as (grid, count):
        known = grid.names()
        rows, counts, cpu = [], [], []
        first = warm_up(dtype)
        for row in round_overhead.exchange(grid, known, dict(shapes), first + rounds, dtype):
            rows.append(row["overhead"])
            counts.append(count())
            cpu.append(cpu_seconds())
        up_bytes, down_bytes = (_a_round([pair[direction] for pair in counts], first) for direction in (0, 1))
        return Exchange(f"deployment {dtype}", rows[first:], up_bytes, down_bytes, True, _a_round(cpu, first))


@contextlib.contextmanager
def deployed(
    configs: Sequence[Mapping[str, str]], bandwidth: float | None = None
) -> Iterator[tuple[SuperLinkGrid, Callable[[], tuple[int, int]]]]:
    """Our server, and a connection to each worker: the grid, and what tells the bytes up and down so far.

    Args:
        configs: of the workers' relays.
        bandwidth: of each node's line, bytes per second each way; None for what the machine can do.
    """
    names = [f"node{number}" for number in range(1, len(configs) + 1)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fednnunet-")))
        made, state = folder / "keys", folder / "server"
        make_keys(made, ["127.0.0.1"], names)
        port = free_port()
        lines, count = stack.enter_context(counted(port, len(names), bandwidth))
        processes = stack.enter_context(Processes(folder, {}))
        up = ("server", "up", str(made), "--address", f"127.0.0.1:{port}", "--state", str(state))
        processes.start("server", sys.executable, "-m", "fednnunet.cli.main", *up)
        for name, config, line in zip(names, configs, lines, strict=True):
            node_file = NodeFile(
                name=name,
                data=1,  # never read: the workers hold random values
                server=f"127.0.0.1:{line}",
                certificate=made / "ca.crt",
                key=made / "nodes" / name / "node.key",
                folder=folder / name,
            )
            stack.enter_context(connection(node_file, dict(config), folder / f"{name}.log"))
        grid = stack.enter_context(contextlib.closing(_connected_grid(state, len(names), processes)))
        yield grid, count


@contextlib.contextmanager
def connection(node_file: NodeFile, config: dict[str, str], log: Path) -> Iterator[None]:
    """The connection of a node, in a process of its own as ``fednnunet node up`` starts it."""
    process = multiprocessing.get_context("spawn").Process(
        target=run_connection, args=(node_file, config, log), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _connected_grid(state: Path, nodes: int, processes: Processes) -> SuperLinkGrid:
    """The grid of the server with this state folder, once all nodes are connected to it."""
    grids: list[SuperLinkGrid] = []

    def connected() -> bool:
        if not grids:
            with contextlib.suppress(RunLost, ConfigError):  # it is still starting
                grids.append(SuperLinkGrid(state, print))
        return bool(grids) and len(grids[0].get_node_ids()) == nodes

    processes.wait_for("the server with its nodes", connected, START_SECONDS)
    return grids[0]


def bare_flower(shapes: Shapes, nodes: int, rounds: int) -> Exchange:
    """Flower's SuperLink, SuperNodes and FedAvg."""
    names = [f"node{number}" for number in range(1, nodes + 1)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fednnunet-")))
        made, record = folder / "keys", folder / "rounds.jsonl"
        make_keys(made, ["127.0.0.1"], names)
        (folder / "shapes.json").write_text(json.dumps(shapes))
        port = free_port()
        home = folder / "flower"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "bare"\n\n[superlink.bare]\naddress = "127.0.0.1:{port}"\n'
            f'insecure = false\nroot-certificates = "{made / "ca.crt"}"\n'
        )
        lines, count = stack.enter_context(counted(port, nodes))
        processes = stack.enter_context(Processes(folder, {"FLWR_HOME": str(home)}))
        processes.start(
            "superlink",
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(port)),
            *("--ssl-ca-certfile", str(made / "ca.crt")),
            *("--ssl-certfile", str(made / "server.crt"), "--ssl-keyfile", str(made / "server.key")),
            *("--enable-supernode-auth", "--database", str(folder / "state.db")),
            "--disable-runtime-dependency-installation",
        )
        processes.wait_for("the SuperLink", lambda: _listens(port), START_SECONDS)
        for name in names:
            _succeed(processes, "flwr", "supernode", "register", str(made / "nodes" / name / "node.pub"), "bare")
        for number, (name, line) in enumerate(zip(names, lines, strict=True), start=1):
            processes.start(
                name,
                *("flower-supernode", "--superlink", f"127.0.0.1:{line}", "--port", str(free_port())),
                *("--root-certificates", str(made / "ca.crt")),
                *("--auth-supernode-private-key", str(made / "nodes" / name / "node.key")),
                *("--node-config", f"number={number}"),
            )
        first = warm_up("float32")
        config = f'nodes={nodes} rounds={first + rounds} shapes="{folder / "shapes.json"}" record="{record}"'
        processes.start("run", "flwr", "run", str(BARE_APP), "bare", "--stream", "--run-config", config)
        counts, cpu = [], []
        for done in range(1, first + rounds + 1):
            limit = ROUND_SECONDS if done > 1 else START_SECONDS + ROUND_SECONDS
            processes.wait_for(f"round {done}", lambda done=done: _lines(record) >= done, limit)
            counts.append(count())
            cpu.append(cpu_seconds())
        rows = [json.loads(line) for line in record.read_text().splitlines()]
        up, down = (_a_round([pair[direction] for pair in counts], first) for direction in (0, 1))
        turns = round_overhead.turns(nodes)
        seconds = [row["wall"] - turns * row["training"] for row in rows[first:]]
        return Exchange("bare Flower", seconds, up, down, True, _a_round(cpu, first))


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _succeed(processes: Processes, *command: str) -> None:
    done = processes.run(*command)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


def _lines(path: Path) -> int:
    return path.read_text().count("\n") if path.is_file() else 0


def _a_round(counts: Sequence[float], first: int) -> float:
    """Mean over the rounds after the ``first`` ones, from a counter's value at the end of each round."""
    return (counts[-1] - counts[first - 1]) / (len(counts) - first)


# one large message ---------------------------------------------------------------------------------------


def large_message(gigabytes: float) -> dict[str, float]:
    """A message of so many GB to a node, then one from it: seconds, and the most memory of each process, in GB.

    Nothing is averaged. Where the memory of this machine is short, the processes of this script are the first to go.
    """
    Path("/proc/self/oom_score_adj").write_text("1000")
    tensors = max(1, round(gigabytes * 1e9 / TENSOR_BYTES))
    with tempfile.TemporaryDirectory(prefix="fednnunet-") as folder:
        config = {"socket": f"{folder}/s", "key-file": f"{folder}/key"}
        Path(config["key-file"]).write_bytes(round_overhead.KEY)
        context = multiprocessing.get_context("spawn")
        worker = context.Process(target=_answer_twice, args=(config["socket"], tensors), daemon=True)
        worker.start()
        with deployed([config]) as (grid, _), most_memory() as memory:
            seconds_down, none = _ask(grid, 1, to_array_record(large_arrays(tensors)))
            seconds_up, sent = _ask(grid, 2, ArrayRecord())
        worker.terminate()
    assert (none, sent >= tensors * TENSOR_BYTES) == (0, True)
    return {"seconds_down": seconds_down, "seconds_up": seconds_up, **memory}


def _ask(grid: SuperLinkGrid, server_round: int, arrays: ArrayRecord) -> tuple[float, int]:
    """Seconds until the node has replied, and the bytes of arrays in its reply."""
    (node,) = grid.get_node_ids()
    body = TrainRequest(server_round=server_round, layers=[]).model_dump_json()
    content = RecordDict({"config": ConfigRecord({"body": body}), "arrays": arrays})
    started = time.monotonic()
    asked = grid.push_messages([Message(content, node, Kind.TRAIN.value)])
    while not (replies := grid.pull_messages(asked)):
        wait_for_next_poll(grid, asked, 1.0)
    (reply,) = replies
    assert reply.has_content(), reply.error.reason
    return time.monotonic() - started, num_bytes(reply)


def large_arrays(tensors: int) -> dict[str, np.ndarray]:
    """So many random tensors; no two are the same, in any process: Flower stores equal bytes once."""
    rng = np.random.default_rng()
    return {f"layer{n}": rng.random(TENSOR_BYTES // 4, dtype=np.float32) for n in range(tensors)}


def _answer_twice(address: str, tensors: int) -> None:
    """A worker that leaves what it gets, and then sends as much."""
    channel = WorkerChannel(address, round_overhead.KEY, AuditLog(Path(f"{address}.jsonl"), "node1").record)
    for server_round in (1, 2):
        while (request := channel.receive()) is None:
            pass
        outgoing = None
        if server_round == 2:
            spec = dict.fromkeys((f"layer{n}" for n in range(tensors)), ((TENSOR_BYTES // 4,), np.dtype("float32")))
            outgoing = SharedArrays.allocate(spec)
            for view in outgoing.views().values():
                np.random.default_rng().random(out=view, dtype=np.float32)
        request.reply(TrainReply(server_round=server_round, num_examples=10).model_dump_json(), outgoing)
        del request


@contextlib.contextmanager
def most_memory() -> Iterator[dict[str, float]]:
    """Most GB that this process and each that it started has held by itself; filled when it ends."""
    most: dict[str, float] = {}
    done = threading.Event()
    me = psutil.Process()
    known = {process.pid: "server_app" if process == me else _part(process) for process in (me, *me.children(True))}

    def look() -> None:
        while not done.wait(0.1):
            for pid, name in known.items():
                with contextlib.suppress(psutil.Error):
                    held = psutil.Process(pid).memory_info()
                    most[f"GB_{name}"] = max(most.get(f"GB_{name}", 0.0), (held.rss - held.shared) / 1e9)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def _part(process: psutil.Process) -> str:
    """By the log that it writes to."""
    logs = {"server.log": "superlink", "node1.log": "connection"}
    with contextlib.suppress(psutil.Error):
        for file in process.open_files():
            if name := logs.get(Path(file.path).name):
                return name
    return "others"


# report --------------------------------------------------------------------------------------------------


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="counted, after one or two that are not")
    parser.add_argument("--stages", type=int, default=round_overhead.STAGES, help="stages of the network")
    parser.add_argument(
        "--dtype", nargs="+", choices=get_args(ExchangeDtype), default=DTYPES, help="precisions of our exchange"
    )
    parser.add_argument(
        "--large", type=float, metavar="GB", help="instead, one message of this size to a node and one from it"
    )
    options = parser.parse_args()
    # However this process is asked to end, what it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if options.large:
        for name, value in large_message(options.large).items():
            figure = {
                "metric": f"large_message_{name}",
                "value": round(value, 2),
                "unit": "GB" if name.startswith("GB") else "s",
            }
            print(json.dumps({**figure, "target": None, "message_GB": options.large}))
        return
    shapes = round_overhead.unet_shapes(options.stages)
    exchanges: list[Callable[[Shapes, int, int], Exchange]] = [local_grid]
    exchanges += [partial(deployment, dtype=dtype) for dtype in options.dtype]
    exchanges.append(bare_flower)
    print_size(shapes, options.nodes)
    print_header()
    found = {}
    for measure in exchanges:
        exchange = measure(shapes, options.nodes, options.rounds)
        found[exchange.name] = exchange
        print_row(exchange)
    for metric, value, unit, target in figures(found, options.dtype):
        if options.stages != round_overhead.STAGES:
            target = None  # small networks have other proportions
        print(json.dumps({"metric": metric, "value": round(value, 3), "unit": unit, "target": target}))


def print_size(shapes: Shapes, nodes: int) -> None:
    """What is exchanged."""
    values = sum(math.prod(shape) for shape in shapes.values())
    print(f"{nodes} nodes, {len(shapes)} tensors, {values / 1e6:.1f} M parameters, {values * 4 / 1e6:.0f} MB")


def print_header() -> None:
    """Names of the columns of :func:`print_row`."""
    print(
        f"{'exchange':<20} {'s per round':>11} {'least':>8} {'most':>8} {'CPU s':>8} {'MB up':>9} {'MB down':>9}",
        flush=True,
    )


def print_row(exchange: Exchange) -> None:
    """Median, least and most seconds of a round, CPU seconds, and bytes."""
    low, middle, high = min(exchange.seconds), statistics.median(exchange.seconds), max(exchange.seconds)
    sizes = f"{exchange.up / 1e6:9.1f} {exchange.down / 1e6:9.1f}"
    print(f"{exchange.name:<20} {middle:11.3f} {low:8.3f} {high:8.3f} {exchange.cpu:8.2f} {sizes}", flush=True)


def figures(
    found: Mapping[str, Exchange], dtypes: Sequence[ExchangeDtype]
) -> Iterator[tuple[str, float, str, float | None]]:
    """Name, value, unit and target of each figure."""
    theirs = statistics.median(found["bare Flower"].seconds)
    for dtype in dtypes:
        ours = statistics.median(found[f"deployment {dtype}"].seconds)
        name = "deployment_overhead" if dtype == "float32" else f"deployment_overhead_{dtype}"
        yield name, ours / theirs, "ratio", TARGET_RATIOS.get(dtype)
        cpu = found[f"deployment {dtype}"].cpu / found["bare Flower"].cpu
        yield name.replace("overhead", "cpu"), cpu, "ratio", None
    for name, exchange in found.items():
        key = name.replace("LocalGrid", "local_grid").replace(" ", "_").lower()
        yield f"{key}_round_seconds", statistics.median(exchange.seconds), "s", None
        if exchange.on_wire:
            yield f"{key}_round_bytes", exchange.up + exchange.down, "bytes", None
            yield f"{key}_round_cpu_seconds", exchange.cpu, "s", None


if __name__ == "__main__":
    main()
