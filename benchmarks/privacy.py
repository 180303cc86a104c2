"""What secure sums cost: seconds of a round, bytes, and the error of an average.

    python benchmarks/privacy.py

Four nodes with the network of the paper's Table 1 (7 stages, 33.5 M parameters), the code that nodes and server run:

* seconds that a round gets longer by: masking at all four nodes, as if they were one after another on this machine,
  and adding up and unmasking at the server, over what the plain average takes;
* seconds at the server in a round in which one node has masked its layers and is gone: its masks with the others are
  computed and subtracted;
* bytes up, as a fraction of float32's;
* the largest error of an average of 20 nodes, against the float64 mean of the same layers.

Times are medians over the rounds. Each figure is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
from bytes_per_round import FFE_STAGES, network

from fednnunet.config.privacy import SecureSumsConfig
from fednnunet.exchange.messages import LayerClass, PreprocessRequest, TrainReply, TrainRequest, UnmaskRequest
from fednnunet.launch.local_identities import write_identity
from fednnunet.node.secure_rounds import SecureRounds
from fednnunet.node.settings import NodeIdentity
from fednnunet.privacy.identity import make_authority
from fednnunet.privacy.secure_sum import SumRules
from fednnunet.server.strategy.averaging import StreamingAverage
from fednnunet.server.strategy.secure_average import GroupClass, SecureAverage, Shares, SumsToOpen
from fednnunet.training.network_state import layer_shapes

RUN = "0" * 32
TARGETS = {"added": 2.5, "drop_out": 1.0, "bytes": 1.01, "error": 3e-7}
SUMS = SecureSumsConfig()

State = dict[str, np.ndarray]


class Federation:
    """Nodes that know each other's keys, and what they were sent in every round.

    Args:
        names: names of the nodes, sorted.
        layers: what they are sent.
        folder: for their files.
    """

    def __init__(self, names: Sequence[str], layers: Mapping[str, np.ndarray], folder: Path) -> None:
        self.names, self.layers = list(names), layers
        certificate, authority_key = make_authority("authority", timedelta(days=1))
        self.nodes = {}
        for name in names:
            files = folder / name
            identity = NodeIdentity(files / "node.key", files / "node.crt", files / "ca.crt")
            write_identity(identity, name, certificate, authority_key)
            self.nodes[name] = SecureRounds(name, files, SUMS, identity)
        keys = [node.signed_key(RUN) for node in self.nodes.values()]
        for node in self.nodes.values():
            node.join(PreprocessRequest(secure_run=RUN, keys=keys))

    def request(self, server_round: int) -> TrainRequest:
        """Request of a round in which all layers are one class."""
        layers = list(self.layers)
        return TrainRequest(
            server_round=server_round, layers=layers, classes=[LayerClass(members=self.names, layers=layers)]
        )

    def mask(self, name: str, server_round: int, layers: State, out: State) -> TrainReply:
        """What a node does in a round beyond training."""
        request, node = self.request(server_round), self.nodes[name]
        node.start_round(request, self.layers, request.server_round - 1)
        return node.mask(request, layers, TrainReply(server_round=server_round, num_examples=4), out)

    def open(self, sums: SumsToOpen) -> Shares:
        """What the nodes that arrived answer."""
        shares = {}
        for name in sums.arrived[0]:
            bundles = {sender: sums.bundles[sender][0][name] for sender in sums.arrived[0]}
            request = UnmaskRequest(
                fold=0, server_round=sums.server_round, arrived=[list(sums.arrived[0])], shares=[bundles]
            )
            reply = self.nodes[name].unmask(request)
            shares[name] = [
                {arrival: {of: bytes.fromhex(share) for of, share in given.items()} for arrival, given in one.items()}
                for one in reply.shares
            ]
        return shares


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of ``work``."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def layers_of(shapes: Mapping[str, Sequence[int]], seed: int) -> State:
    """Layers of the size of trained ones."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def masked_round(
    federation: Federation, server_round: int, layers: Mapping[str, State], outs: Mapping[str, State]
) -> tuple[dict[str, TrainReply], float]:
    """Replies of all nodes, and the seconds of their work together."""
    replies: dict[str, TrainReply] = {}

    def mask() -> None:
        for name, state in layers.items():
            replies[name] = federation.mask(name, server_round, state, outs[name])

    return replies, seconds_of(mask)


def server_seconds(
    federation: Federation, server_round: int, replies: Mapping[str, TrainReply], outs: Mapping[str, State], absent: int
) -> tuple[float, State]:
    """Seconds of adding up and unmasking while ``absent`` nodes are gone, without the nodes' own; the average."""
    names = federation.names
    average = SecureAverage([GroupClass(tuple(names), tuple(federation.layers))], SumRules(), SUMS.limit)
    asked: list[float] = []
    means: State = {}

    def open_sums(sums: SumsToOpen) -> Shares:
        start = time.perf_counter()
        shares = federation.open(sums)
        asked.append(time.perf_counter() - start)
        return shares

    def work() -> None:
        for name in names[: len(names) - absent]:
            average.add(name, outs[name], 1.0, replies[name].shares)
        means.update(average.result(0, server_round, open_sums))

    return seconds_of(work) - sum(asked), means


def plain_seconds(layers: Mapping[str, State]) -> float:
    """Seconds of the plain average."""
    average = StreamingAverage()

    def work() -> None:
        average.reset()
        for state in layers.values():
            average.add(state)
        average.result()

    work()  # memory of the sums is kept over rounds
    return seconds_of(work)


def largest_error(shapes: Mapping[str, Sequence[int]], number: int) -> float:
    """Largest difference of an average of so many nodes from the float64 mean."""
    names = [f"N{index:02d}" for index in range(number)]
    layers = {name: layers_of(shapes, index) for index, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(names, layers[names[0]], Path(folder))
        outs = empty_outs(federation, layers)
        replies, _ = masked_round(federation, 1, layers, outs)
        _, means = server_seconds(federation, 1, replies, outs, 0)
    exact = {name: np.mean([state[name].astype(np.float64) for state in layers.values()], axis=0) for name in shapes}
    return max(float(np.abs(means[name] - exact[name]).max()) for name in shapes)


def empty_outs(federation: Federation, layers: Mapping[str, State]) -> dict[str, State]:
    """Memory for what each node sends."""
    spec = {name: (array.shape, array.dtype) for name, array in federation.layers.items()}
    wire = {name: node.spec(spec, federation.request(1)) for name, node in federation.nodes.items()}
    return {name: {layer: np.zeros(shape, dtype) for layer, (shape, dtype) in wire[name].items()} for name in layers}


def main() -> None:
    """Measure, and print a line of JSON for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4, help="of which one drops out in every other round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", type=int, default=FFE_STAGES, help="stages of the network")
    arguments = parser.parse_args()
    fewest = SumRules().fewest_arrivals(arguments.nodes)
    if arguments.nodes - 1 < fewest:
        parser.error(
            f"--nodes {arguments.nodes}: without one of them there are fewer than {fewest}, whose sum is not opened"
        )
    if arguments.rounds < 2:
        parser.error("--rounds must be 2 or more: one with all nodes, one without one of them")
    shapes = layer_shapes(network(arguments.stages))
    names = [f"N{index:02d}" for index in range(arguments.nodes)]
    layers = {name: layers_of(shapes, index) for index, name in enumerate(names)}
    times: dict[str, list[float]] = {"nodes": [], "server": [], "plain": [], "drop_out": []}
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(names, layers[names[0]], Path(folder))
        outs = empty_outs(federation, layers)
        for server_round in range(1, arguments.rounds + 1):
            replies, seconds = masked_round(federation, server_round, layers, outs)
            times["nodes"].append(seconds)
            gone = server_round % 2
            seconds, _ = server_seconds(federation, server_round, replies, outs, gone)
            times["drop_out" if gone else "server"].append(seconds)
            times["plain"].append(plain_seconds(layers))
    of = {name: statistics.median(values) for name, values in times.items()}
    parameters = sum(int(np.prod(shape)) for shape in shapes.values())
    sent = sum(array.nbytes for array in outs[names[0]].values()) + len(replies[names[0]].model_dump_json())
    print(f"{arguments.nodes} nodes, {parameters / 1e6:.1f} M parameters, medians of {arguments.rounds} rounds:")
    print(f"  masking at all nodes {of['nodes']:.2f} s, server {of['server']:.2f} s (plain {of['plain']:.2f} s)")
    print(f"  server with one drop-out {of['drop_out']:.2f} s")
    figures = [
        ("secure_sums_added_seconds", of["nodes"] + of["server"] - of["plain"], "s", TARGETS["added"]),
        ("secure_sums_server_seconds_one_drop_out", of["drop_out"], "s", TARGETS["drop_out"]),
        ("secure_sums_bytes_up_over_float32", sent / (4 * parameters), "ratio", TARGETS["bytes"]),
        ("secure_sums_largest_error_of_20", largest_error(layer_shapes(network(4)), 20), "weight", TARGETS["error"]),
    ]
    for metric, value, unit, target in figures:
        print(json.dumps({"metric": metric, "value": float(f"{value:.4g}"), "unit": unit, "target": target}))


if __name__ == "__main__":
    main()
