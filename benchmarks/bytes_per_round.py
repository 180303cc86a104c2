"""Bytes that a round moves, by strategy and exchange.dtype, against the original FednnU-Net.

    python benchmarks/bytes_per_round.py

The networks are nnU-Net's for the plans of the paper's Table 1 (MAMA-MIA, 2d, 8 GB: three of 7 stages, DUKE's of 8);
FFE's is the one of 7 stages. Our bytes are those of real messages, counted as for ``rounds.csv``: up of the first
round, down of the second, whose averages are the first that are rounded.

The original's bytes come from its own serialisation. Up: ``torch.save`` of nnU-Net's ``state_dict()``, which stores
tensors that share memory once. Down: ``np.save`` of the average of every key, aliases included; with AsymFedAvg, of
every key that all nodes have with one shape. It uploads twice in each round and discards the first upload, so each
ratio is given without and with the second upload.

Last, what rounding costs a node: seconds for one network of 7 stages.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

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
from fednnunet.server.node_messages import num_bytes
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.layer_matching import AverageOver, Matching
from fednnunet.training.network_state import layer_shapes, load_state

STAGES = {"ISPY1": 7, "ISPY2": 7, "DUKE": 8, "NACT": 7}
FFE_STAGES = 7
NODES = dict(enumerate(STAGES, start=1))
DTYPES: tuple[ExchangeDtype, ...] = ("float32", "float16", "bfloat16")
TARGETS: dict[ExchangeDtype, float] = {"float32": 0.6, "float16": 0.3, "bfloat16": 0.3}
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


class _Counter(io.RawIOBase):
    """A file that keeps nothing but the number of bytes written to it."""

    written = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Count ``data``."""
        size = memoryview(data).nbytes
        self.written += size
        return size


def original_state(stages: int) -> dict[str, torch.Tensor]:
    """What the original exchanges: ``state_dict()`` of the network, whose aliased keys share memory."""
    return network(stages).to_empty(device="cpu").state_dict()


def original_upload(state: Mapping[str, torch.Tensor]) -> int:
    """Bytes of ``torch.save``: tensors that share memory are stored once."""
    file = _Counter()
    torch.save(state, file)
    return file.written


def original_download(states: Sequence[Mapping[str, torch.Tensor]]) -> int:
    """Bytes of one array for every key that all ``states`` have with one shape, aliases included."""
    file = _Counter()
    for key, tensor in states[0].items():
        if all(key in state and state[key].shape == tensor.shape for state in states):
            buffer = io.BytesIO()
            np.save(buffer, tensor.numpy(), allow_pickle=False)
            file.write(buffer.getbuffer())
    return file.written


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
        initial |= {strategy.groups.group_of(node, layer): state[layer] for layer in strategy.groups.layers_of(node)}
    first = list(strategy.configure_train(1, to_array_record(initial), ConfigRecord(), grid))
    averages, _ = strategy.aggregate_train(1, replies(first))
    assert averages is not None, strategy.failures
    second = strategy.configure_train(2, averages, ConfigRecord(), grid)
    return {message.metadata.dst_node_id: (num_bytes(message), up[message.metadata.dst_node_id]) for message in second}


def seconds(work: Callable[[], object]) -> float:
    """Median wall seconds of ``work``."""
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
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
    originals = {stages: original_state(stages) for stages in sorted(set(STAGES.values()))}
    uploads = {stages: original_upload(state) for stages, state in originals.items()}
    downloads = {
        "asym": original_download(list(originals.values())),
        "ffe": original_download([originals[FFE_STAGES]]),
    }
    up = {"asym": [uploads[stages] for stages in STAGES.values()], "ffe": [uploads[FFE_STAGES]] * len(NODES)}
    del originals
    states = {stages: random_state(stages) for stages in sorted(set(STAGES.values()))}
    own = {node: states[STAGES[name]] for node, name in NODES.items()}
    equal = dict.fromkeys(NODES, states[FFE_STAGES])
    strategies: list[tuple[str, str, dict[int, State], Matching, AverageOver]] = [
        ("asym", f"asym {matching} {average_over}", own, matching, average_over)
        for matching, average_over in itertools.product(get_args(Matching), get_args(AverageOver))
    ]
    strategies.append(("ffe", "ffe", equal, "name", "all"))
    figures: list[tuple[str, float, str, float | None]] = []
    grid = LocalGrid(ClientApp(), {node: {} for node in NODES}, 1)
    print("MB per round, down / up; ratio of all bytes to the original's, without and with its second upload")
    print(f"{'':<32}" + "".join(f"{name:>16}" for name in STAGES) + f"{'ratios':>16}")
    for kind, sent in up.items():
        cells = "".join(f"{downloads[kind] / MB:8.1f}{value / MB:8.1f}" for value in sent)
        print(f"{'original, ' + kind:<32}{cells}")
        once = downloads[kind] * len(NODES) + sum(sent)
        figures.append((f"original_bytes_{kind}", once / MB, "MB", None))
        figures.append((f"original_bytes_{kind}_uploading_twice", (once + sum(sent)) / MB, "MB", None))
    for (kind, title, held, matching, average_over), dtype in itertools.product(strategies, DTYPES):
        strategy = AsymFedAvg(matching=matching, average_over=average_over, max_update_norm=None)
        found = bytes_of_a_round(strategy, held, dtype, grid)
        ours = sum(down + sent for down, sent in found.values())
        once = downloads[kind] * len(NODES) + sum(up[kind])
        ratio, ratio_twice = ours / once, ours / (once + sum(up[kind]))
        cells = "".join(f"{found[node][0] / MB:8.1f}{found[node][1] / MB:8.1f}" for node in NODES)
        print(f"{title + ' ' + dtype:<32}{cells}{ratio:8.3f}{ratio_twice:8.3f}", flush=True)
        name = f"{title.replace(' ', '_')}_{dtype}"
        figures.append((f"bytes_{name}", ours / MB, "MB", None))
        figures.append((f"bytes_over_original_{name}", ratio, "ratio", TARGETS[dtype]))
        figures.append((f"bytes_over_original_uploading_twice_{name}", ratio_twice, "ratio", None))
    grid.close()
    figures += [(metric, value, "s", None) for metric, value in print_costs(states[FFE_STAGES])]
    for metric, value, unit, target in figures:
        print(json.dumps({"metric": metric, "value": round(value, 4), "unit": unit, "target": target}))


if __name__ == "__main__":
    main()
