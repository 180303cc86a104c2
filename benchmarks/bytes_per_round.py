"""Bytes that a round sends, by strategy and exchange.dtype, against the original FednnU-Net's.

    python benchmarks/bytes_per_round.py

The networks are nnU-Net's for the plans of the paper's Table 1 (MAMA-MIA, 2d, 8 GB: three of 7 stages, DUKE's of 8);
FFE's is the one of 7 stages. Bytes are those of real messages, counted as for ``rounds.csv``: up of the first round,
down of the second, whose averages are the first that are rounded. The original sends nnU-Net's ``state_dict()`` both
ways, in which most tensors stand two to four times; that it sends it a second time in every round is not counted here.
Last, what rounding costs a node: seconds for one network of 7 stages.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import get_args

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from fednnunet.exchange.messages import ExchangeDtype, TrainRequest
from fednnunet.exchange.records import to_array_record
from fednnunet.exchange.rounding import ErrorFeedback
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.node_requests import num_bytes
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.layer_matching import AverageOver, Matching
from fednnunet.training.network_state import layer_shapes, load_state

STAGES = {"ISPY1": 7, "ISPY2": 7, "DUKE": 8, "NACT": 7}
FFE_STAGES = 7
NODES = dict(enumerate(STAGES, start=1))
DTYPES: tuple[ExchangeDtype, ...] = get_args(ExchangeDtype)
TARGETS: dict[ExchangeDtype, float] = {"float32": 0.4, "float16": 0.2, "bfloat16": 0.2}
REPEATS = 3
MB = 1e6

State = dict[str, np.ndarray]


def network(stages: int) -> nn.Module:
    """nnU-Net's network for plans of so many stages, without memory for its weights."""
    levels = range(stages)
    with torch.device("meta"):
        return get_network_from_plans(
            "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            {
                "n_stages": stages,
                "features_per_stage": [min(32 * 2**level, 512) for level in levels],
                "conv_op": "torch.nn.modules.conv.Conv2d",
                "kernel_sizes": [[3, 3] for _ in levels],
                "strides": [[1, 1] if level == 0 else [2, 2] for level in levels],
                "n_conv_per_stage": [2 for _ in levels],
                "n_conv_per_stage_decoder": [2 for _ in levels[1:]],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            ["conv_op", "norm_op", "dropout_op", "nonlin"],
            input_channels=1,
            output_channels=2,
            deep_supervision=True,
        )


def original_bytes(stages: int) -> int:
    """Of ``state_dict()`` with all its keys."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network(stages).state_dict().values())


def random_state(stages: int) -> State:
    """Every layer once, with values."""
    rng = np.random.default_rng(0)
    shapes = layer_shapes(network(stages))
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def bytes_of_a_round(
    strategy: AsymFedAvg, states: dict[int, State], dtype: ExchangeDtype, grid: LocalGrid
) -> dict[int, tuple[int, int]]:
    """Node id to bytes down and up."""
    shapes = {node: {name: array.shape for name, array in state.items()} for node, state in states.items()}
    strategy.prepare(shapes, NODES, dtype)
    up: dict[int, int] = {}

    def replies(messages: list[Message]) -> Iterator[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            body = TrainRequest.model_validate_json(str(message.content.config_records["config"]["body"]))
            layers = {name: states[node][name] for name in body.layers}
            sent = layers if body.dtype == "float32" else ErrorFeedback(body.dtype).encoded(layers, NODES[node])
            content = {"arrays": to_array_record(sent), "metrics": MetricRecord({"num-examples": 1})}
            reply = Message(RecordDict(content), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = node
            up[node] = num_bytes(reply)
            yield reply

    initial = {}
    for node, state in states.items():
        initial |= {group: state[layer] for layer, group in strategy.groups.of_node(node).items()}
    first = list(strategy.configure_train(1, to_array_record(initial), ConfigRecord(), grid))
    averages, _ = strategy.aggregate_train(1, replies(first))
    assert averages is not None, strategy.failures
    second = strategy.configure_train(2, averages, ConfigRecord(), grid)
    return {message.metadata.dst_node_id: (num_bytes(message), up[message.metadata.dst_node_id]) for message in second}


def seconds(work: Callable[[], object]) -> float:
    """Median wall seconds of ``work``."""
    taken = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def print_costs(state: State) -> list[tuple[str, float]]:
    """What a node spends on rounding, and on loading what comes back."""
    target = network(FFE_STAGES).to_empty(device="cpu")
    figures = []
    for dtype in DTYPES:
        feedback = ErrorFeedback(dtype)
        out = feedback.encoded(state, "a node")
        if feedback.rounds:
            rounding = seconds(lambda f=feedback, o=out: f.encode(state, o, "a node"))
        else:
            rounding = seconds(lambda o=out: [np.copyto(o[name], array) for name, array in state.items()])
        loading = seconds(lambda o=out: load_state(target, o))
        print(f"{dtype:<9} send {rounding:6.3f} s, load {loading:6.3f} s")
        figures.append((f"exchange_seconds_{dtype}", rounding + loading))
    return figures


def main() -> None:
    """Print the tables and the figures."""
    argparse.ArgumentParser(description="Bytes of a round, against the original's.").parse_args()
    original = {name: original_bytes(stages) for name, stages in STAGES.items()}
    same = original_bytes(FFE_STAGES)
    states = {stages: random_state(stages) for stages in sorted(set(STAGES.values()))}
    own = {node: states[STAGES[name]] for node, name in NODES.items()}
    equal = dict.fromkeys(NODES, states[FFE_STAGES])
    setups: list[tuple[str, dict[int, State], Matching, AverageOver]] = [
        (f"asym {matching} {average_over}", own, matching, average_over)
        for matching, average_over in itertools.product(get_args(Matching), get_args(AverageOver))
    ]
    setups.append(("ffe", equal, "name", "all"))
    figures: list[tuple[str, float, str, float | None]] = []
    grid = LocalGrid(ClientApp(), {node: {} for node in NODES}, 1)
    print("MB per round, down / up")
    print(f"{'':<32}" + "".join(f"{name:>16}" for name in STAGES) + "   of the original")
    for title, row in (("original, asym", original), ("original, ffe", dict.fromkeys(STAGES, same))):
        cells = "".join(f"{value / MB:8.1f}{value / MB:8.1f}" for value in row.values())
        print(f"{title:<32}{cells}{1:18.3f}")
    for (title, held, matching, average_over), dtype in itertools.product(setups, DTYPES):
        strategy = AsymFedAvg(matching=matching, average_over=average_over)
        found = bytes_of_a_round(strategy, held, dtype, grid)
        before = 2 * (sum(original.values()) if held is own else same * len(NODES))
        ratio = sum(down + up for down, up in found.values()) / before
        cells = "".join(f"{found[node][0] / MB:8.1f}{found[node][1] / MB:8.1f}" for node in NODES)
        print(f"{title + ' ' + dtype:<32}{cells}{ratio:18.3f}", flush=True)
        metric = f"bytes_over_original_{title.replace(' ', '_')}_{dtype}"
        figures.append((metric, ratio, "ratio", TARGETS[dtype]))
    grid.close()
    figures += [(metric, value, "s", None) for metric, value in print_costs(states[FFE_STAGES])]
    for metric, value, unit, target in figures:
        print(json.dumps({"metric": metric, "value": round(value, 4), "unit": unit, "target": target}))


if __name__ == "__main__":
    main()
