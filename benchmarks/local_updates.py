"""Updates of local training, for benchmarks of what sending them costs; and how well they stand for those of long runs.

    python benchmarks/local_updates.py [--rounds 3] [--steps 8]

The paper's networks cannot be trained for long without a GPU, and need not be: what a codec makes of an update depends
on the shape of its distribution, not on its size. :func:`record` trains nnU-Net's networks for the plans of the
paper's Table 1 (MAMA-MIA, 2d, 8 GB: 33.5 M parameters in 7 stages, 46.3 M in 8) at four nodes on the phantom, with
nnU-Net's own trainer: its loader, augmentation, loss, optimizer and schedule. Batches are of 2 patches of the smallest
size that the network takes, and a round is of few steps. Between rounds the real strategy averages. What it keeps is,
for every round and node, the trained layers less those that the round began with.

The script compares these updates with those of a small network of the same kind that is trained for long, in rounds
of few steps and of many: bits of a value's entropy after rounding to 8, 4 and 2 bits with one scale for each tensor.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
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
from fednnunet.exchange.records import from_array_record, to_array_record  # noqa: E402
from fednnunet.fingerprint.extract import extract_fingerprint  # noqa: E402
from fednnunet.phantoms.breast_small import make_small_phantom  # noqa: E402
from fednnunet.planning.plans import make_plans  # noqa: E402
from fednnunet.preprocessing import cache_key, preprocess  # noqa: E402
from fednnunet.server.local_grid import LocalGrid  # noqa: E402
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg  # noqa: E402
from fednnunet.training.network_state import layer_shapes, load_state, state_arrays  # noqa: E402
from fednnunet.training.trainer import build_nnunet_trainer  # noqa: E402

TABLE1 = {"ISPY1": 7, "ISPY2": 7, "DUKE": 8, "NACT": 7}
"""Stages of each node's network with its own plans."""
TABLE1_FFE = dict.fromkeys(TABLE1, 7)
FEATURES, MOST_FEATURES = 32, 512
SMALL_STAGES, SMALL_FEATURES, SMALL_MOST_FEATURES = 5, 8, 128
ROUNDS, STEPS = 3, 8
LONG_ROUNDS = {8: (4, 40), 50: (2, 12)}
"""Steps of a round of the small network: rounds that are looked at, first and last."""
BITS = (8, 4, 2)
BATCH = 2
MODEL = ModelConfig(planner="ExperimentPlanner", overrides={})
# Scanners and lesions of conf/dataset/phantom.yaml; the images are large enough for a patch of 7 stages.
SCANNERS = {
    "ISPY1": (1.0, 1.0, 0.15, 0.04, (8.0, 14.0), (0.4, 0.2, 0.2, 0.2)),
    "ISPY2": (0.6, 0.8, 0.1, 0.03, (7.0, 13.0), (0.25, 0.25, 0.25, 0.25)),
    "DUKE": (1.6, 1.3, 0.2, 0.05, (6.0, 11.0), (0.2, 0.2, 0.3, 0.3)),
    "NACT": (0.9, 1.1, 0.25, 0.07, (7.0, 13.0), (0.3, 0.3, 0.2, 0.2)),
}
FIELDS = ("gain", "gamma", "bias", "noise", "lesion_radius", "appearances")
IMAGE = {"cases": 6, "shape": (6, 128, 128), "spacing": (4.0, 0.68, 0.68)}

Layers = dict[str, np.ndarray]


# training ------------------------------------------------------------------------------------------------


def architecture(stages: int, features: int, most_features: int) -> dict[str, Any]:
    """Keyword arguments of nnU-Net's ``PlainConvUNet`` as its plans have them for so many stages, 2d."""
    levels = range(stages)
    return {
        "n_stages": stages,
        "features_per_stage": [min(features * 2**level, most_features) for level in levels],
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


@dataclass(frozen=True)
class Network:
    """What a node trains: stages, features of the first stage and the largest number of features."""

    stages: int
    features: int = FEATURES
    most_features: int = MOST_FEATURES

    @property
    def patch(self) -> int:
        """Side of the smallest patch, in pixels: instance normalization needs more than one at the lowest stage."""
        return 2**self.stages


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
        plans = make_plans(dataset.name, extract_fingerprint(dataset), MODEL, 8.0)
        planned = plans["configurations"]["2d"]
        planned |= {"patch_size": [network.patch] * 2, "batch_size": BATCH}
        planned["architecture"]["arch_kwargs"] = architecture(network.stages, network.features, network.most_features)
        cache = root / "cache" / cache_key(raw_digest(dataset), plans, "2d", [])
        os.environ["nnUNet_preprocessed"] = str(preprocess(dataset, preprocessed / dataset.name, plans, "2d", cache))
        settings = TrainerConfig(class_="nnUNetTrainer", epochs=self.epochs)
        L.seed_everything(len(plans["dataset_name"]), verbose=False)
        trainer = build_nnunet_trainer(plans, "2d", 0, dataset.dataset_json, settings, torch.device("cpu"))
        trainer.network.train()
        return trainer

    def shapes(self, name: str) -> dict[str, list[int]]:
        """Layers of a node's network."""
        return layer_shapes(self.trainers[name].network)

    def layers(self, name: str, wanted: Sequence[str]) -> Layers:
        """Copies of layers of a node's network."""
        return {layer: array.copy() for layer, array in state_arrays(self.trainers[name].network, wanted).items()}

    def train(self, name: str, received: Mapping[str, np.ndarray], steps: int) -> None:
        """Load what the node has received, and train one epoch of so many steps."""
        trainer = self.trainers[name]
        load_state(trainer.network, received)
        trainer.lr_scheduler.step(self._epoch[name])
        self._epoch[name] += 1
        for _ in range(steps):
            trainer.train_step(next(self._loaders[name]))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what nnU-Net prints."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield


Look = Callable[[int, str, Layers, Layers], None]


def federate(nodes: Nodes, strategy: AsymFedAvg, rounds: int, steps: int, look: Look) -> Layers:
    """Rounds of local training, averaged by the strategy without rounding.

    Args:
        nodes: who trains.
        strategy: what averages.
        rounds: how many.
        steps: of a node's training in a round.
        look: gets the round, the node, the layers that it was sent and those that it sends back.

    Returns:
        What the first round began with, by group.
    """
    ids = dict(enumerate(nodes.networks, start=1))
    strategy.prepare({node: {k: tuple(v) for k, v in nodes.shapes(name).items()} for node, name in ids.items()}, ids)
    grid = LocalGrid(ClientApp(), {node: {} for node in ids}, 1)

    def replies(messages: Sequence[Message], server_round: int) -> Iterator[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            name, layers = ids[node], strategy.groups.layers_of(node)
            received = from_array_record(message.content.array_records["arrays"], "the server")
            nodes.train(name, received, steps)
            trained = nodes.layers(name, layers)
            look(server_round, name, received, trained)
            content = {"arrays": to_array_record(trained), "metrics": MetricRecord({"num-examples": 1})}
            reply = Message(RecordDict(content), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = node
            yield reply

    initial: Layers = {}
    for node, name in ids.items():
        own = nodes.layers(name, strategy.groups.layers_of(node))
        initial |= {strategy.groups.group_of(node, layer): array for layer, array in own.items()}
    arrays: ArrayRecord | None = to_array_record(initial)
    with contextlib.closing(grid):
        for server_round in range(1, rounds + 1):
            assert arrays is not None, strategy.failures
            messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
            arrays, _ = strategy.aggregate_train(server_round, replies(messages, server_round))
    return initial


# records -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """Updates on disk.

    Attributes:
        folder: where they lie.
        nodes: names of the nodes.
        shapes: node to layer to shape, of whole networks.
        rounds: how many there are.
    """

    folder: Path
    nodes: Sequence[str]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    rounds: int

    def initial(self) -> Layers:
        """What the first round began with, by group."""
        return _read(self.folder / "initial.npz")

    def update(self, server_round: int, node: str) -> Layers:
        """Layers that a node sent in a round less those it was sent."""
        return _read(self.folder / f"{server_round}_{node}.npz")


def _read(file: Path) -> Layers:
    with np.load(file) as arrays:
        return dict(arrays)


def record(
    folder: Path,
    networks: Mapping[str, Network],
    rounds: int = ROUNDS,
    steps: int = STEPS,
    strategy: AsymFedAvg | None = None,
) -> Recorded:
    """Train, and write every update into ``folder``, which is made."""
    folder.mkdir(parents=True)

    def write(server_round: int, name: str, received: Layers, trained: Layers) -> None:
        updates = {layer: trained[layer] - array for layer, array in received.items()}
        np.savez(folder / f"{server_round}_{name}.npz", **updates)

    with Nodes(networks) as nodes:
        initial = federate(nodes, strategy or AsymFedAvg(max_update_norm=None), rounds, steps, write)
        np.savez(folder / "initial.npz", **initial)
        shapes = {name: {k: tuple(v) for k, v in nodes.shapes(name).items()} for name in networks}
    return Recorded(folder, list(networks), shapes, rounds)
