"""Bytes that a round moves, by strategy and exchange.dtype, against the original FednnU-Net.

    python benchmarks/bytes_per_round.py            about three minutes on two cores
    python benchmarks/bytes_per_round.py --all      every matching of layers, too
    python benchmarks/bytes_per_round.py --tiny     networks of 3 and 4 stages, to see that it works

The networks are nnU-Net's for the plans of the paper's Table 1 (MAMA-MIA, 2d, 8 GB: three of 7 stages, DUKE's of 8);
FFE's is the one of 7 stages. Our bytes are those of real messages between the real strategy and what a node decodes and
encodes by, counted as for ``rounds.csv``. Their content is real, too, since steps are coded in as few bits as they
need: updates of training on the phantom (``local_updates.py``, which also says how well its few steps stand for long
trainings). Counted is the last round: up with what quantising has left over of the rounds before, and down the average
of it, which is sent in the next.

The original's bytes come from its own serialisation. Up: ``torch.save`` of nnU-Net's ``state_dict()``, which stores
tensors that share memory once. Down: ``np.save`` of the average of every key, aliases included; with AsymFedAvg, of
every key that all nodes have with one shape. It uploads twice in each round and discards the first upload, so each
ratio is given without and with the second upload.

Last, what a precision costs a node: seconds for one network of 7 stages, one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for the next imports, however this script is started

import numpy as np  # noqa: E402
import torch  # noqa: E402
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from local_updates import ROUNDS, STEPS, Layers, Network, Recorded, Sender, architecture, record  # noqa: E402
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # noqa: E402
from torch import nn  # noqa: E402

from fednnunet.exchange.messages import ExchangeDtype, TrainRequest  # noqa: E402
from fednnunet.exchange.quantisation import StepFeedback, decode_step, is_quantised  # noqa: E402
from fednnunet.exchange.records import from_array_record, to_array_record  # noqa: E402
from fednnunet.exchange.rounding import ErrorFeedback  # noqa: E402
from fednnunet.server.local_grid import LocalGrid  # noqa: E402
from fednnunet.server.node_messages import arrays_of, num_bytes  # noqa: E402
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg  # noqa: E402
from fednnunet.server.strategy.layer_matching import AverageOver, Matching  # noqa: E402
from fednnunet.training.network_state import load_state  # noqa: E402

STAGES = {"ISPY1": 7, "ISPY2": 7, "DUKE": 8, "NACT": 7}
FFE_STAGES = 7
NODES = dict(enumerate(STAGES, start=1))
DTYPES: tuple[ExchangeDtype, ...] = get_args(ExchangeDtype)
TARGETS: dict[ExchangeDtype, float] = {"float32": 0.6, "float16": 0.3, "bfloat16": 0.3, "int8": 0.115, "int4": 0.055}
REPEATS = 3
MB = 1e6


def network(stages: int) -> nn.Module:
    """nnU-Net's network for plans of so many stages, without memory for its weights."""
    with torch.device("meta"):
        return get_network_from_plans(
            "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            architecture(Network(stages)),
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


def bytes_of_a_round(
    strategy: AsymFedAvg, recorded: Recorded, dtype: ExchangeDtype, grid: LocalGrid
) -> dict[int, tuple[int, int]]:
    """Node id to bytes down and up, of the last round whose updates are recorded."""
    first = {node: recorded.initial(name) for node, name in NODES.items()}
    shapes = {node: {layer: array.shape for layer, array in layers.items()} for node, layers in first.items()}
    strategy.prepare(shapes, NODES, dtype)
    senders = {node: Sender(dtype) for node in NODES}
    up: dict[int, int] = {}

    def replies(messages: list[Message], server_round: int) -> Iterator[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            body = TrainRequest.model_validate_json(str(message.content.config_records["config"]["body"]))
            received = from_array_record(arrays_of(message), "the server")
            sent = senders[node].reply(body, received, recorded.update(NODES[node], server_round))
            content = {"arrays": to_array_record(sent), "metrics": MetricRecord({"num-examples": 1})}
            reply = Message(RecordDict(content), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = node
            up[node] = num_bytes(reply)
            yield reply

    groups = strategy.groups
    initial = {
        groups.group_of(node, layer): layers[layer]
        for node, layers in first.items()
        for layer in groups.layers_of(node)
    }
    del first
    arrays: ArrayRecord | None = to_array_record(initial)
    for server_round in range(1, recorded.rounds + 1):
        assert arrays is not None
        messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        arrays, _ = strategy.aggregate_train(server_round, replies(messages, server_round))
        assert not strategy.failures, strategy.failures
    assert arrays is not None
    following = strategy.configure_train(recorded.rounds + 1, arrays, ConfigRecord(), grid)
    return {
        message.metadata.dst_node_id: (num_bytes(message), up[message.metadata.dst_node_id]) for message in following
    }


def seconds(work: Callable[[], object]) -> float:
    """Median wall seconds of ``work``."""
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def print_costs(state: Layers, update: Layers) -> list[tuple[str, float]]:
    """What a node spends on decoding what it receives and loading it, and on encoding what it sends."""
    stages = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.stages."))
    target = network(stages).to_empty(device="cpu")
    trained = {name: array + update[name] for name, array in state.items()}
    figures = []
    for dtype in DTYPES:
        if is_quantised(dtype):
            steps = StepFeedback(dtype)
            encode = partial(_encode_steps, steps, trained, state)
            wire = encode()
            decoding = seconds(lambda w=wire, d=dtype: load_state(target, _decode_steps(w, state, d)))
        else:
            feedback = ErrorFeedback(dtype)
            wire = feedback.encoded(trained, "a node")
            if feedback.rounds:
                encode = partial(feedback.encode, trained, wire, "a node")
            else:
                encode = partial(_copy, trained, wire)
            decoding = seconds(lambda w=wire: load_state(target, w))
        encoding = seconds(encode)
        print(f"{dtype:<9} send {encoding:6.3f} s, load {decoding:6.3f} s")
        figures.append((f"exchange_seconds_{dtype}", encoding + decoding))
    return figures


def _copy(arrays: Layers, out: Layers) -> None:
    for name, array in arrays.items():
        np.copyto(out[name], array)


def _encode_steps(steps: StepFeedback, arrays: Layers, start: Layers) -> Layers:
    return {name: steps.encode(name, array, start[name], "a node") for name, array in arrays.items()}


def _decode_steps(wire: Layers, start: Layers, dtype: ExchangeDtype) -> Layers:
    return {name: decode_step(array, start[name], dtype, name) for name, array in wire.items()}


Figure = tuple[str, float, str, float | None]


def print_originals(fewer: int) -> tuple[dict[str, int], list[Figure]]:
    """The original's bytes of a round: strategy to their sum, and figures."""
    stages = {name: count - fewer for name, count in STAGES.items()}
    originals = {count: original_state(count) for count in sorted(set(stages.values()))}
    uploads = {count: original_upload(state) for count, state in originals.items()}
    downloads = {
        "asym": original_download(list(originals.values())),
        "ffe": original_download([originals[FFE_STAGES - fewer]]),
    }
    up = {"asym": [uploads[count] for count in stages.values()], "ffe": [uploads[FFE_STAGES - fewer]] * len(NODES)}
    sums, figures = {}, []
    for kind, sent in up.items():
        cells = "".join(f"{downloads[kind] / MB:8.1f}{value / MB:8.1f}" for value in sent)
        print(f"{'original, ' + kind:<32}{cells}")
        sums[kind] = downloads[kind] * len(NODES) + sum(sent)
        sums[f"{kind}, uploading twice"] = sums[kind] + sum(sent)
        figures.append((f"original_bytes_{kind}", sums[kind] / MB, "MB", None))
        figures.append((f"original_bytes_{kind}_uploading_twice", (sums[kind] + sum(sent)) / MB, "MB", None))
    return sums, figures


def main() -> None:
    """Print the tables and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every matching of layers, and what it is averaged over")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of training (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a round (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="networks of four stages less")
    options = parser.parse_args()
    fewer = 4 if options.tiny else 0
    matchings: list[tuple[Matching, AverageOver]] = [("name", "all")]
    if options.all:
        matchings = list(itertools.product(get_args(Matching), get_args(AverageOver)))
    print("MB per round, down / up; ratio of all bytes to the original's, without and with its second upload")
    print(f"{'':<32}" + "".join(f"{name:>16}" for name in STAGES) + f"{'ratios':>16}")
    originals, figures = print_originals(fewer)
    with tempfile.TemporaryDirectory(prefix="fednnunet-") as folder:
        own = record(
            Path(folder) / "asym",
            {name: Network(count - fewer) for name, count in STAGES.items()},
            options.rounds,
            options.steps,
        )
        for matching, average_over in matchings:
            strategy = partial(AsymFedAvg, matching=matching, average_over=average_over, max_update_norm=None)
            figures += print_rows("asym", f"asym {matching} {average_over}", own, strategy, originals)
        equal = dict.fromkeys(STAGES, Network(FFE_STAGES - fewer))
        shared = record(Path(folder) / "ffe", equal, options.rounds, options.steps)
        figures += print_rows("ffe", "ffe", shared, partial(AsymFedAvg, max_update_norm=None), originals)
        node = shared.nodes[0]
        costs = print_costs(shared.initial(node), shared.update(node, shared.rounds))
    figures += [(metric, value, "s", None) for metric, value in costs]
    for metric, value, unit, target in figures:
        if options.tiny:
            target = None  # small networks have other proportions
        print(json.dumps({"metric": metric, "value": round(value, 4), "unit": unit, "target": target}))


def print_rows(
    kind: str, title: str, recorded: Recorded, build: Callable[[], AsymFedAvg], originals: Mapping[str, int]
) -> list[Figure]:
    """A row for each precision, and their figures."""
    figures: list[Figure] = []
    grid = LocalGrid(ClientApp(), {node: {} for node in NODES}, 1)
    with contextlib.closing(grid):
        for dtype in DTYPES:
            found = bytes_of_a_round(build(), recorded, dtype, grid)
            ours = sum(down + sent for down, sent in found.values())
            ratio, ratio_twice = ours / originals[kind], ours / originals[f"{kind}, uploading twice"]
            cells = "".join(f"{found[node][0] / MB:8.1f}{found[node][1] / MB:8.1f}" for node in NODES)
            print(f"{title + ' ' + dtype:<32}{cells}{ratio:8.3f}{ratio_twice:8.3f}", flush=True)
            name = f"{title.replace(' ', '_')}_{dtype}"
            figures.append((f"bytes_{name}", ours / MB, "MB", None))
            figures.append((f"bytes_over_original_{name}", ratio, "ratio", TARGETS[dtype]))
            figures.append((f"bytes_over_original_uploading_twice_{name}", ratio_twice, "ratio", None))
    return figures


if __name__ == "__main__":
    main()
