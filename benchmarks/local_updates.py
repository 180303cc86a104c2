"""Updates of local training, for benchmarks of what sending them costs; and how well they stand for those of long runs.

    python benchmarks/local_updates.py

The paper's networks cannot be trained for long without a GPU, and need not be: how many bits a codec needs depends on
the shape of an update's distribution, not on its size. :func:`record` trains nnU-Net's networks for the plans of the
paper's Table 1 (MAMA-MIA, 2d, 8 GB: 33.5 M parameters in 7 stages, 46.3 M in 8) at four nodes on the phantom, with
nnU-Net's own trainer: its loader, augmentation, loss, optimizer and schedule. Batches are of 2 patches of the smallest
size that the network takes, and a round has few steps. Between rounds the real strategy averages. What is kept of
every round and node is the trained layers less those that the round began with.

:class:`Sender` plays them to a server: it decodes what the server sends in any precision, adds the update, and encodes
the sum as a node does.

The script compares: bits of a value on the line, of the large networks' last round, and of a small network of the same
kind that is trained for long, in rounds of few steps and of many.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for the next imports, however this script is started

import lightning as L  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402

from fednnunet.config.groups import ModelConfig, TrainerConfig  # noqa: E402
from fednnunet.datasets.raw import read_dataset  # noqa: E402
from fednnunet.datasets.staging import raw_digest, stage_dataset  # noqa: E402
from fednnunet.exchange.messages import ExchangeDtype, TrainRequest  # noqa: E402
from fednnunet.exchange.quantisation import BITS, StepFeedback, encode_step, is_quantised  # noqa: E402
from fednnunet.exchange.records import from_array_record, to_array_record  # noqa: E402
from fednnunet.exchange.rounding import ErrorFeedback, decode  # noqa: E402
from fednnunet.fingerprint import extract  # noqa: E402
from fednnunet.node.layer_receiver import LayerReceiver  # noqa: E402
from fednnunet.phantoms.breast_small import make_small_phantom  # noqa: E402
from fednnunet.planning.plans import make_plans  # noqa: E402
from fednnunet.preprocessing import cache_key, preprocess  # noqa: E402
from fednnunet.server.local_grid import LocalGrid  # noqa: E402
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg  # noqa: E402
from fednnunet.training.network_state import layer_shapes, load_state, state_arrays  # noqa: E402
from fednnunet.training.trainer import build_nnunet_trainer  # noqa: E402

FEATURES, MOST_FEATURES = 32, 512
ROUNDS, STEPS = 2, 4
BATCH = 2
FOREGROUND_VOXELS = 1e5
"""That nnU-Net draws for statistics of intensities, instead of 1e8; MRI is not normalised by them."""
LARGE_STAGES = 7
SMALL_ROUNDS = {STEPS: 60, 50: 12}
"""Of the small network: steps of a round to the number of rounds."""
TWO = ("ISPY1", "DUKE")
MODEL = ModelConfig(planner="ExperimentPlanner", overrides={})
# Scanners and lesions of conf/dataset/phantom.yaml; the images are large enough for a patch of 7 stages.
SCANNERS = {
    "ISPY1": (1.0, 1.0, 0.15, 0.04, (8.0, 14.0), (0.4, 0.2, 0.2, 0.2)),
    "ISPY2": (0.6, 0.8, 0.1, 0.03, (7.0, 13.0), (0.25, 0.25, 0.25, 0.25)),
    "DUKE": (1.6, 1.3, 0.2, 0.05, (6.0, 11.0), (0.2, 0.2, 0.3, 0.3)),
    "NACT": (0.9, 1.1, 0.25, 0.07, (7.0, 13.0), (0.3, 0.3, 0.2, 0.2)),
}
FIELDS = ("gain", "gamma", "bias", "noise", "lesion_radius", "appearances")
IMAGE = {"cases": 5, "shape": (4, 128, 128), "spacing": (4.0, 0.68, 0.68)}

Layers = dict[str, np.ndarray]


# training ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """What a node trains: stages, features of the first stage and the largest number of features."""

    stages: int
    features: int = FEATURES
    most: int = MOST_FEATURES

    @property
    def patch(self) -> int:
        """Side of the smallest patch, in pixels: instance normalization needs more than one at the lowest stage."""
        return 2**self.stages


SMALL = Network(5, 8, 128)


def architecture(network: Network) -> dict[str, Any]:
    """Keyword arguments of nnU-Net's ``PlainConvUNet``, as its plans have them for so many stages in 2d."""
    levels = range(network.stages)
    return {
        "n_stages": network.stages,
        "features_per_stage": [min(network.features * 2**level, network.most) for level in levels],
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
    }


class Nodes:
    """nnU-Net trainers of the phantom's centres, with networks as asked for; use it as a context manager.

    Args:
        networks: centre to what it trains.
        epochs: that the schedule of the learning rate is for.
    """

    def __init__(self, networks: Mapping[str, Network], epochs: int = 1000) -> None:
        self.networks, self.epochs = networks, epochs

    def __enter__(self) -> Nodes:
        self._stack = contextlib.ExitStack()
        root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fednnunet-")))
        os.environ["nnUNet_n_proc_DA"] = "0"
        for variable in ("nnUNet_raw", "nnUNet_results"):
            os.environ[variable] = str(root / variable)
        centres = {
            name: {
                "dataset": f"Dataset{100 + number}_{name}",
                **IMAGE,
                **dict(zip(FIELDS, SCANNERS[name], strict=True)),
            }
            for number, name in enumerate(self.networks, start=1)
        }
        folders = make_small_phantom(root / "raw", centres, seed=0)
        with quiet():
            self.trainers = {
                name: self._build(root, name, folder, network)
                for (name, network), folder in zip(self.networks.items(), folders, strict=True)
            }
            self._loaders = {name: trainer.get_dataloaders()[0] for name, trainer in self.trainers.items()}
        self._epoch = dict.fromkeys(self.trainers, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _build(self, root: Path, name: str, folder: Path, network: Network) -> nnUNetTrainer:
        preprocessed = root / "nnUNet_preprocessed"
        os.environ["nnUNet_preprocessed"] = str(preprocessed)
        dataset = read_dataset(folder, name)
        stage_dataset(dataset, root / "nnUNet_raw")
        plans = make_plans(dataset.name, extract.extract_fingerprint(dataset), MODEL, 8.0)
        planned = plans["configurations"]["2d"]
        planned |= {"patch_size": [network.patch] * 2, "batch_size": BATCH}
        planned["architecture"]["arch_kwargs"] = architecture(network)
        cache = root / "cache" / cache_key(raw_digest(dataset), plans, "2d", [])
        os.environ["nnUNet_preprocessed"] = str(preprocess(dataset, preprocessed / dataset.name, plans, "2d", cache))
        settings = TrainerConfig(class_="nnUNetTrainer", epochs=self.epochs)
        L.seed_everything(0, verbose=False)
        trainer = build_nnunet_trainer(plans, "2d", 0, dataset.dataset_json, settings, torch.device("cpu"))
        trainer.network.train()
        return trainer

    def shapes(self, name: str) -> dict[str, list[int]]:
        """Layers of a node's network."""
        return layer_shapes(self.trainers[name].network)

    def layers(self, name: str) -> Layers:
        """Copies of all layers of a node's network."""
        network = self.trainers[name].network
        return {layer: array.copy() for layer, array in state_arrays(network, layer_shapes(network)).items()}

    def train(self, name: str, received: Mapping[str, np.ndarray], steps: int) -> tuple[Layers, Layers]:
        """Load what the node has received, train an epoch of so many steps; all layers before and after it."""
        trainer = self.trainers[name]
        load_state(trainer.network, received)
        before = self.layers(name)
        trainer.lr_scheduler.step(self._epoch[name])
        self._epoch[name] += 1
        for _ in range(steps):
            trainer.train_step(next(self._loaders[name]))
        return before, self.layers(name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what nnU-Net prints."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield


Look = Callable[[int, str, Layers, Layers], None]


def federate(nodes: Nodes, strategy: AsymFedAvg, rounds: int, steps: int, look: Look) -> None:
    """Rounds of local training, averaged by the strategy without rounding.

    Args:
        nodes: who trains.
        strategy: what averages.
        rounds: how many.
        steps: of a node's training in a round.
        look: gets the round, the node, and all layers of its network before and after training.
    """
    ids = dict(enumerate(nodes.networks, start=1))
    strategy.prepare({node: {k: tuple(v) for k, v in nodes.shapes(name).items()} for node, name in ids.items()}, ids)
    grid = LocalGrid(ClientApp(), {node: {} for node in ids}, 1)

    def replies(messages: Sequence[Message], server_round: int) -> Iterator[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            name, layers = ids[node], strategy.groups.layers_of(node)
            received = from_array_record(message.content.array_records["arrays"], "the server")
            before, after = nodes.train(name, received, steps)
            look(server_round, name, before, after)
            trained = {layer: after[layer] for layer in layers}
            content = {"arrays": to_array_record(trained), "metrics": MetricRecord({"num-examples": 1})}
            reply = Message(RecordDict(content), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = node
            yield reply

    initial: Layers = {}
    for node, name in ids.items():
        own = nodes.layers(name)
        initial |= {strategy.groups.group_of(node, layer): own[layer] for layer in strategy.groups.layers_of(node)}
    arrays: ArrayRecord | None = to_array_record(initial)
    with contextlib.closing(grid):
        for server_round in range(1, rounds + 1):
            assert arrays is not None, strategy.failures
            messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
            arrays, _ = strategy.aggregate_train(server_round, replies(messages, server_round))


# records -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """Updates on disk.

    Attributes:
        folder: where they lie.
        nodes: names of the nodes.
        rounds: how many there are.
    """

    folder: Path
    nodes: Sequence[str]
    rounds: int

    def initial(self, node: str) -> Layers:
        """What a node's first round began with: all layers of its network."""
        return _read(self.folder / f"{node}.npz")

    def update(self, node: str, server_round: int) -> Layers:
        """What a node's round made of them: the difference."""
        return _read(self.folder / f"{node}_{server_round}.npz")


def _read(file: Path) -> Layers:
    with np.load(file) as arrays:
        return dict(arrays)


def record(
    folder: Path, networks: Mapping[str, Network], rounds: int = ROUNDS, steps: int = STEPS, first: int = 1
) -> Recorded:
    """Train, and write the updates into ``folder``, which is made; those before round ``first`` are not kept."""
    folder.mkdir(parents=True)

    def write(server_round: int, name: str, before: Layers, after: Layers) -> None:
        if server_round == first:
            np.savez(folder / f"{name}.npz", **before)
        if server_round >= first:
            updates = {layer: after[layer] - array for layer, array in before.items()}
            np.savez(folder / f"{name}_{server_round - first + 1}.npz", **updates)

    with Nodes(networks) as nodes, quiet():
        federate(nodes, AsymFedAvg(max_update_norm=None), rounds, steps, write)
    return Recorded(folder, list(networks), rounds - first + 1)


class Sender:
    """A node's part of the exchange, in one precision.

    Args:
        dtype: in which layers travel.
    """

    def __init__(self, dtype: ExchangeDtype) -> None:
        self.dtype = dtype
        self._receiver = LayerReceiver()
        self._steps = StepFeedback(dtype) if is_quantised(dtype) else None
        self._rounding = ErrorFeedback("float32" if is_quantised(dtype) else dtype)

    def reply(self, body: TrainRequest, arrays: Mapping[str, np.ndarray], update: Mapping[str, np.ndarray]) -> Layers:
        """The layers asked for, after training has changed those received by ``update``, as they travel."""
        start = decode(self._receiver.decode(body, arrays))
        trained = {layer: start[layer] + update[layer] for layer in body.layers}
        if self._steps is None:
            return self._rounding.encoded(trained, "a node") if self._rounding.rounds else trained
        return {layer: self._steps.encode(layer, trained[layer], start[layer], "a node") for layer in body.layers}


# comparison ----------------------------------------------------------------------------------------------


def bits_per_value(update: Mapping[str, np.ndarray], dtype: ExchangeDtype) -> float:
    """Bits of a value of an update on the line."""
    sent = 0
    for array in update.values():
        wire = encode_step(array.copy(), dtype)
        assert wire is not None
        sent += 8 * wire.size
    return sent / sum(array.size for array in update.values())


def rows(folder: Path, few: bool) -> Iterator[tuple[str, Recorded]]:
    """Title of each training, and its updates."""
    large = Network(LARGE_STAGES - (4 if few else 0))
    yield f"large, {STEPS} steps a round", record(folder / "large", dict.fromkeys(TWO, large), 2, STEPS, 2)
    for steps, rounds in SMALL_ROUNDS.items():
        count = 2 if few else rounds
        title = f"small, {steps} steps a round, round {count}"
        yield title, record(folder / f"small{steps}", dict.fromkeys(TWO, SMALL), count, steps, count)


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small networks for seconds, to see that it works")
    options = parser.parse_args()
    print(f"{'bits of a value':<40}" + "".join(f"{dtype:>8}" for dtype in BITS))
    figures = []
    with tempfile.TemporaryDirectory(prefix="fednnunet-") as folder:
        for title, recorded in rows(Path(folder), options.tiny):
            updates = [recorded.update(node, 1) for node in recorded.nodes]
            found = {dtype: statistics.mean(bits_per_value(update, dtype) for update in updates) for dtype in BITS}
            print(f"{title:<40}" + "".join(f"{bits:8.2f}" for bits in found.values()), flush=True)
            key = "_".join([*title.replace(",", "").split()[:2], "steps"])
            figures += [(f"bits_per_value_{key}_{dtype}", bits) for dtype, bits in found.items()]
    for metric, value in figures:
        print(json.dumps({"metric": metric, "value": round(value, 3), "unit": "bits", "target": None}))


if __name__ == "__main__":
    main()
