"""Seconds that a round costs outside local training: 4 nodes of 33.5 M parameters on the local grid.

    python benchmarks/round_overhead.py [--nodes 4] [--rounds 10] [--stages 7]
    python benchmarks/round_overhead.py --against CHECKOUT [--repeats 3]

Real worker processes behind the real channel hold a network's tensors and change them every round, as training
would; what checks, decodes, loads and encodes layers, messages, audit, relay, grid and strategy are the real ones.
Beside it, what numpy needs to average the same arrays.

``--against`` runs the script of another checkout, which was set up, and this one alternately: each repeat is a run of
either, and the figure is the median of the ratios. Checkouts from before November 2026 have workers that only copy
layers, so that the ratio says less of this one than is true.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from torch import nn

from fednnunet.audit.log import AuditLog
from fednnunet.client_app import app
from fednnunet.exchange.channel import WorkerChannel
from fednnunet.exchange.messages import ExchangeDtype, TrainReply, TrainRequest
from fednnunet.node.layer_receiver import LayerReceiver
from fednnunet.node.layer_sender import LayerSender
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.node_client import NodeClient
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.training.network_state import check_state, load_state

NODES = 4
ROUNDS = 10
WARM_UP = 2
STAGES = 7
REPEATS = 3
TARGET_RATIO = 0.5
ROOT = Path(__file__).parents[1]
PYTHON = Path(".venv/bin/python")
TARGET_SECONDS = 1.0
KEY = b"benchmark" * 4


def unet_shapes(stages: int = STAGES, base: int = 32, largest: int = 512) -> dict[str, tuple[int, ...]]:
    """Unique tensors of nnU-Net's 2d U-Net with this many stages (33 M values with the defaults)."""
    features = [min(base * 2**stage, largest) for stage in range(stages)]
    shapes: dict[str, tuple[int, ...]] = {}

    def block(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.conv.weight"] = (outputs, inputs, 3, 3)
        for part in ("conv.bias", "norm.weight", "norm.bias"):
            shapes[f"{name}.{part}"] = (outputs,)

    for stage, width in enumerate(features):
        block(f"encoder.stages.{stage}.0.convs.0", features[stage - 1] if stage else 1, width)
        block(f"encoder.stages.{stage}.0.convs.1", width, width)
    for stage, width in enumerate(reversed(features[:-1])):
        below = features[stages - 1 - stage]
        shapes[f"decoder.transpconvs.{stage}.weight"] = (below, width, 2, 2)
        shapes[f"decoder.transpconvs.{stage}.bias"] = (width,)
        block(f"decoder.stages.{stage}.convs.0", 2 * width, width)
        block(f"decoder.stages.{stage}.convs.1", width, width)
        shapes[f"decoder.seg_layers.{stage}.weight"] = (2, width, 1, 1)
        shapes[f"decoder.seg_layers.{stage}.bias"] = (2,)
    return shapes


def random_network(shapes: Mapping[str, tuple[int, ...]], seed: int) -> nn.Module:
    """A module with parameters of these names, as nnU-Net's has them; normal values."""
    rng = np.random.default_rng(seed)
    network = nn.Module()
    for name, shape in shapes.items():
        *parts, last = name.split(".")
        parent = network
        for part in parts:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.register_parameter(last, nn.Parameter(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))))
    return network


@torch.no_grad()
def serve(address: str, seed: int, shapes: dict[str, tuple[int, ...]]) -> None:
    """A node worker without training: loads what comes, changes it, sends it back."""
    torch.set_num_threads(1)
    network = random_network(shapes, seed)
    factor = 1 - 0.001 * seed  # no two nodes send the same: Flower stores equal arrays once
    receiver, sender = LayerReceiver(), LayerSender()
    channel = WorkerChannel(address, KEY, AuditLog(Path(f"{address}.audit.jsonl"), str(seed)).record)
    while True:
        request = channel.receive()
        if request is None:
            continue
        body = TrainRequest.model_validate_json(request.body)
        arrays = receiver.decode(body, request.arrays)
        check_state(network, arrays)
        load_state(network, arrays)
        start = time.perf_counter()
        for parameter in network.parameters():  # stands for the epoch: every value changes
            parameter.mul_(factor)
        trained = time.perf_counter() - start
        sender.finish_round(network, body.layers, body.dtype, arrays)
        if body.dtype == "float32":
            outgoing = sender.plain(network, body.layers)
        else:
            outgoing = sender.rounded(network, body.layers, body.dtype)
        reply = TrainReply(server_round=body.server_round, num_examples=10, seconds_train=trained)
        request.reply(reply.model_dump_json(), outgoing)


@contextlib.contextmanager
def workers(shapes: dict[str, tuple[int, ...]], nodes: int = NODES) -> Iterator[dict[int, dict[str, str]]]:
    """Worker processes, and the node configs of their relays."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="fednnunet-") as folder:
        key = Path(folder) / "key"
        key.write_bytes(KEY)
        configs, processes = {}, []
        for node in range(1, nodes + 1):
            address = str(Path(folder) / f"{node}.sock")
            process = context.Process(target=serve, args=(address, node, shapes), daemon=True)
            process.start()
            processes.append(process)
            configs[node] = {"socket": address, "key-file": str(key)}
        while not all(Path(config["socket"]).exists() for config in configs.values()):
            time.sleep(0.05)
        try:
            yield configs
        finally:
            for process in processes:
                process.terminate()


def exchange(
    grid: Grid,
    names: Mapping[int, str],
    shapes: dict[str, tuple[int, ...]],
    rounds: int,
    dtype: ExchangeDtype = "float32",
) -> Iterator[dict[str, float]]:
    """Average over the nodes of any grid; wall seconds of each round, its training and the rest.

    Args:
        grid: the local one, or a SuperLink's.
        names: node id to name.
        shapes: of the tensors of every node.
        rounds: how many.
        dtype: precision that layers travel in.
    """
    strategy, client = AsymFedAvg(), NodeClient(grid)
    strategy.prepare(dict.fromkeys(names, shapes), names, dtype)
    arrays = ArrayRecord()
    for server_round in range(1, rounds + 1):
        start = time.perf_counter()
        messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        averaged, metrics = strategy.aggregate_train(server_round, client.stream(messages, None))
        wall = time.perf_counter() - start
        assert averaged is not None, strategy.failures
        assert metrics is not None
        arrays = averaged
        training = float(metrics["seconds_train"]) * turns(len(names))  # type: ignore[arg-type]
        yield {"round": server_round, "wall": wall, "training": training, "overhead": wall - training}


def turns(nodes: int) -> float:
    """How often one node's training fits into the time in which all nodes train on this machine."""
    return nodes / min(nodes, len(os.sched_getaffinity(0)))


def measure(shapes: dict[str, tuple[int, ...]], nodes: int, rounds: int) -> list[dict[str, float]]:
    """Wall seconds of each round on the local grid, its training (the slowest schedule of it) and the rest."""
    with workers(shapes, nodes) as configs:
        grid = LocalGrid(app, configs, parallel=min(nodes, len(os.sched_getaffinity(0))))
        with contextlib.closing(grid):
            return list(exchange(grid, {node: f"node{node}" for node in configs}, shapes, rounds))


def numpy_average(shapes: dict[str, tuple[int, ...]], nodes: int) -> float:
    """Seconds to average the same arrays in memory with numpy, in float32."""
    rng = np.random.default_rng(0)
    states = [[rng.standard_normal(shape, dtype=np.float32) for shape in shapes.values()] for _ in range(nodes)]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for tensors in zip(*states, strict=True):
            total = tensors[0].copy()
            for tensor in tensors[1:]:
                total += tensor
            total /= nodes
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def compare(checkout: Path, repeats: int) -> None:
    """Run the script of ``checkout`` and this one in turn; print each pair and the figures."""
    pairs = []
    for repeat in range(1, repeats + 1):
        pair = [_overhead_of(root, python) for root, python in ((checkout, checkout / PYTHON), (ROOT, sys.executable))]
        pairs.append(pair)
        print(
            f"{repeat}: {checkout.name} {pair[0]:.3f} s, this checkout {pair[1]:.3f} s, {pair[1] / pair[0]:.3f}",
            flush=True,
        )
    theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    figures = [
        ("round_overhead_over_checkout", statistics.median(b / a for a, b in pairs), "ratio", TARGET_RATIO),
        ("round_overhead", ours, "s", None),
        ("round_overhead_of_checkout", theirs, "s", None),
    ]
    for metric, value, unit, target in figures:
        print(json.dumps({"metric": metric, "value": round(value, 3), "unit": unit, "target": target}))


def _overhead_of(root: Path, python: Path | str) -> float:
    """Seconds that the script in ``root`` measures."""
    command = [str(python), str(root / "benchmarks" / Path(__file__).name)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True)
    figures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(float(figure["value"]) for figure in figures if figure["metric"] == "round_overhead")


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"counted, after {WARM_UP} that are not")
    parser.add_argument("--stages", type=int, default=STAGES, help="stages of the network")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="run the script there and this one in turn")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="with --against: runs of either")
    options = parser.parse_args()
    if options.against is not None:
        compare(options.against.resolve(), options.repeats)
        return
    shapes = unet_shapes(options.stages)
    values = sum(int(np.prod(shape)) for shape in shapes.values())
    print(
        f"{options.nodes} nodes, {len(shapes)} tensors, {values / 1e6:.1f} M parameters, {values * 4 / 1e6:.0f} MB each"
    )
    rows = measure(shapes, options.nodes, WARM_UP + options.rounds)
    print(f"{'round':>5} {'wall s':>8} {'training s':>11} {'overhead s':>11}")
    for row in rows:
        print(f"{row['round']:5.0f} {row['wall']:8.3f} {row['training']:11.3f} {row['overhead']:11.3f}")
    overhead = statistics.median(row["overhead"] for row in rows[WARM_UP:])
    plain = numpy_average(shapes, options.nodes)
    print(f"median after {WARM_UP} rounds: {overhead:.3f} s; numpy averaging alone: {plain:.3f} s")
    figures = [
        ("round_overhead", overhead, "s", TARGET_SECONDS),
        ("round_overhead_over_numpy_average", overhead / plain, "ratio", None),
    ]
    for metric, value, unit, target in figures:
        print(json.dumps({"metric": metric, "value": round(value, 3), "unit": unit, "target": target}))


if __name__ == "__main__":
    main()
