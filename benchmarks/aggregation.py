"""What averaging 100 models of 33.5 M parameters costs the server: memory and time.

    python benchmarks/aggregation.py [--nodes 100]

The layers are those of the paper's 7-stage 2d network. States arrive one after another, as from a SuperLink; each is
one of a few random ones, so that making them costs nothing. **Memory** is the peak of what the average itself
allocates (sums and means), in models. **With norms**, the pass that looks for values that are not finite also measures
the norm of each update. **Time** stands beside a copy of the same bytes, which is what the memory can do,
and beside numpy's ``stack(states).mean(0)``, which holds all states at once and is therefore timed on fewer nodes and
scaled.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from fednnunet.exchange.arrays import check_finite
from fednnunet.exchange.update_limit import RoundReference
from fednnunet.server.strategy.averaging import StreamingAverage, check_layers
from fednnunet.training.network_state import layer_shapes

TARGET_MODELS = 2.5
TARGET_NORMS = 1.25
DISTINCT = 4
NAIVE_NODES = 8
GIB = 2**30

State = dict[str, np.ndarray]


def table_1_layers() -> dict[str, list[int]]:
    """Layers of the network that nnU-Net plans for the paper's MAMA-MIA centres of 7 stages."""
    with torch.device("meta"):
        network = PlainConvUNet(
            1,
            7,
            [32, 64, 128, 256, 512, 512, 512],
            nn.Conv2d,
            3,
            [1, 2, 2, 2, 2, 2, 2],
            2,
            2,
            2,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d,
            norm_op_kwargs={"affine": True},
            deep_supervision=True,
        )
    return layer_shapes(network)


def random_states(layers: dict[str, list[int]]) -> list[State]:
    """A few states with different values."""
    generator = np.random.default_rng(0)
    return [
        {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in layers.items()}
        for _ in range(DISTINCT)
    ]


def aggregate(streaming: StreamingAverage, states: Sequence[State], nodes: int, start: State | None = None) -> State:
    """One round of checks and sums; with ``start``, what nodes were sent, the norm of every update is measured too."""
    streaming.reset()
    reference = None if start is None else RoundReference(start)
    shapes = {name: array.shape for name, array in states[0].items()}
    groups = {name: name for name in shapes}
    for node in range(nodes):
        state, where = states[node % DISTINCT], f"node {node}"
        check_layers(state, shapes, where)
        if reference is None:
            check_finite(state, where)
        else:
            reference.validate_and_measure(state, groups, where)
        streaming.add(state)
    return streaming.result()


def peak_models(states: Sequence[State], nodes: int) -> float:
    """Largest memory that a round's average takes at a time, in models."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    aggregate(StreamingAverage(), states, nodes, states[0])
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return peak / sum(array.nbytes for array in states[0].values())


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of ``work``."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copy_all(states: Sequence[State], nodes: int) -> None:
    """Copy as many bytes as a round reads."""
    target = {name: np.empty_like(array) for name, array in states[0].items()}
    for node in range(nodes):
        for name, array in states[node % DISTINCT].items():
            np.copyto(target[name], array)


def stack_and_mean(states: Sequence[State], nodes: int) -> State:
    """The average as one would write it first."""
    chosen = [states[node % DISTINCT] for node in range(nodes)]
    return {name: np.mean(np.stack([state[name] for state in chosen]), axis=0) for name in states[0]}


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description="Memory and time of averaging on the server.")
    parser.add_argument("--nodes", type=int, default=100, help="nodes to average (default: %(default)s)")
    nodes = parser.parse_args().nodes
    states = random_states(table_1_layers())
    gib = nodes * sum(array.nbytes for array in states[0].values()) / GIB
    models = peak_models(states, nodes)
    streaming = StreamingAverage()
    aggregate(streaming, states, 1)  # the first round of a run makes the memory for the sums
    ours = seconds(lambda: aggregate(streaming, states, nodes))
    with_norms = seconds(lambda: aggregate(streaming, states, nodes, states[0]))
    copy = seconds(lambda: copy_all(states, nodes))
    naive = seconds(lambda: stack_and_mean(states, NAIVE_NODES)) * nodes / NAIVE_NODES
    print(f"{nodes} nodes, {gib:.1f} GiB in all, peak memory of the average: {models:.2f} models")
    for name, taken in (
        ("streaming average", ours),
        ("with norms", with_norms),
        ("copy", copy),
        ("stack and mean", naive),
    ):
        print(f"{name:<18} {taken:7.2f} s {gib / taken:7.2f} GiB/s")
    for metric, value, unit, target in (
        ("aggregation_peak_models", models, "models", TARGET_MODELS),
        ("aggregation_gib_per_second", gib / ours, "GiB/s", None),
        ("aggregation_over_copy", ours / copy, "ratio", None),
        ("aggregation_norms_over_none", with_norms / ours, "ratio", TARGET_NORMS),
        ("aggregation_over_stack_and_mean", ours / naive, "ratio", None),
    ):
        print(json.dumps({"metric": metric, "value": round(value, 4), "unit": unit, "target": target}))


if __name__ == "__main__":
    main()
