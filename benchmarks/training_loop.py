"""What the Lightning loop costs over nnU-Net's own, labels annotated in part, and rebuilding the loop each round.

    python benchmarks/training_loop.py [--pairs 4] [--epochs 3] [--only labels] [--features 32]

**Loop.** Two processes train on the same plans, data and seed, one with ``nnUNetTrainer.run_training``, the other
with our Lightning loop, and take turns step by step in the order ABBA, so that whatever else the machine does meets
both alike. A turn goes from one forward pass to the next, so an epoch's turns hold all that a loop does in it and
between it and the next. Where its memory happens to lie makes a process some per cent faster or slower for all its
life, so several pairs are measured. With augmentation in the training process both loops do the same computation,
bit for bit. The figure is the median over all epochs of our seconds over nnU-Net's; beside it the table has the same
of CPU seconds, which tells noise from cost. Torch computes with one thread in both, and nnU-Net's ``progress.png``
(0.7 s per epoch) is switched off in both. The same is measured in 2d with two background processes each for
augmentation; those work on while their loop waits for its turn.

**Labels.** In the same way, epochs of a node that has annotated one label of three (``task.labels=union``) against
those of a node that has annotated all: our loop in both, with the same network, images and seed. The one node has no
pseudo-labels, has as many as it has by default, and three times as many (``task.pseudo_labels``); at the start of each
epoch, as if that were a round, cases are labelled in the time that is measured.

**Rounds.** The seconds between the end of an epoch and the start of the next, where a round hands over all layers
and loads them again: with our callback in one living ``Trainer.fit``; with trainer, loaders and Lightning built anew
and a checkpoint loaded in the same process; and the same in a new process, Python's start and imports included.
No messages are sent, no checkpoint is written, and augmentation needs no processes of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.config.groups import ComputeConfig, ModelConfig, TrainerConfig
from fednnunet.config.task import PSEUDO_LABELS, TaskConfig
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.staging import raw_digest, stage_dataset
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.phantoms.breast_small import make_small_phantom
from fednnunet.phantoms.organs import ORGANS, TRUTH_LABELS, make_organ_phantom
from fednnunet.planning.plans import make_plans
from fednnunet.preprocessing import cache_key, preprocess
from fednnunet.training.callback import FederatedCallback
from fednnunet.training.data import NNUNetDataModule
from fednnunet.training.epochs import skip_epochs
from fednnunet.training.lightning_trainer import build_lightning_trainer
from fednnunet.training.module import NNUNetModule
from fednnunet.training.network_state import layer_shapes, load_state, read_state, state_spec
from fednnunet.training.partial_labels import use_partial_labels
from fednnunet.training.trainer import build_nnunet_trainer

Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
Figure = tuple[str, float, str, float | None]
"""Metric, value, unit and target."""

TARGET_RATIO = 1.02
TARGET_PARTIAL_RATIO = 1.05
CONFIGURATIONS = ("2d", "3d_fullres")
BACKGROUND_PROCESSES = 2
WARM_UP = 1
"""Epochs that are not counted, before the others."""
ROUNDS = 12
REBUILDS = 5
NEW_PROCESSES = 3
TRAINER = TrainerConfig(
    class_="nnUNetTrainer",
    epochs=3,
    iterations=25,
    val_iterations=5,
    initial_lr=0.01,
    weight_decay=3e-5,
    oversample_foreground=0.33,
)
COMPUTE = ComputeConfig(
    device="cpu", precision="auto", augmentation_workers=0, preprocessing_workers=1, threads=1, compile=False
)
FEATURES = 8
"""Of the network's first stage."""


def network_of(features: int) -> ModelConfig:
    """nnU-Net's network with so many features in the first stage, and at most 16 times as many in 2d, 4 times in 3d."""
    most = {"UNet_max_features_2d": 16 * features, "UNet_max_features_3d": 4 * features}
    return ModelConfig(planner="ExperimentPlanner", overrides={"UNet_base_num_features": features, **most})


MODEL = network_of(FEATURES)
CENTRE = {
    "dataset": "Dataset102_Benchmark",
    "cases": 24,
    "shape": (8, 56, 56),
    "spacing": (2.0, 1.5, 1.5),
    "gain": 0.6,
    "gamma": 0.8,
    "bias": 0.1,
    "noise": 0.03,
    "lesion_radius": (7.0, 13.0),
    "appearances": (0.25, 0.25, 0.25, 0.25),
}
ORGANS_CENTRE = {
    "dataset": "Dataset103_Organs",
    "cases": 24,
    "shape": (8, 56, 56),
    "spacing": (4.0, 3.0, 3.0),
    "gain": 1.0,
    "gamma": 1.0,
    "bias": 0.1,
    "noise": 0.05,
}


@dataclass(frozen=True)
class Prepared:
    """Plans, and the preprocessed data of each configuration, below ``root``."""

    root: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    caches: dict[str, str]
    pseudo_labels: float = 0.0
    model: ModelConfig = MODEL

    def build(
        self, configuration: str, device: str = "cpu", precision: Precision = "auto", **settings: Any
    ) -> nnUNetTrainer:
        """A freshly seeded, initialised trainer."""
        os.environ["nnUNet_preprocessed"] = self.caches[configuration]
        L.seed_everything(7, verbose=False)
        chosen = TRAINER.model_copy(update=settings)
        trainer = build_nnunet_trainer(
            self.plans, configuration, 0, self.dataset_json, chosen, torch.device(device), precision
        )
        use_partial_labels(trainer, TaskConfig(labels="union", pseudo_labels=self.pseudo_labels))
        return trainer

    def save(self) -> None:
        """Leave a note for :meth:`load` in another process."""
        note = {"plans": self.plans, "dataset_json": self.dataset_json, "caches": self.caches}
        (self.root / "prepared.json").write_text(json.dumps(note))

    @classmethod
    def load(cls, root: Path) -> Prepared:
        """What another process prepared."""
        return cls(root, **json.loads((root / "prepared.json").read_text()))


def prepare(
    root: Path,
    centre: Mapping[str, Any] = CENTRE,
    model: ModelConfig = MODEL,
    make: Callable[..., list[Path]] = make_small_phantom,
) -> Prepared:
    """Generate data, plan and preprocess."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(root / variable)
    os.environ["nnUNet_n_proc_DA"] = "0"
    (folder,) = make(root / "raw", {"Benchmark": centre}, seed=1234)
    dataset = read_dataset(folder, "Benchmark")
    stage_dataset(dataset, root / "nnUNet_raw")
    plans = make_plans(dataset.name, extract_fingerprint(dataset), model, 8.0)
    planned = root / "nnUNet_preprocessed" / dataset.name
    caches = {}
    for configuration in CONFIGURATIONS:
        cache = root / "cache" / cache_key(raw_digest(dataset), plans, configuration, [])
        caches[configuration] = str(preprocess(dataset, planned, plans, configuration, cache))
    prepared = Prepared(root, plans, dataset.dataset_json, caches, model=model)
    prepared.save()
    return prepared


def prepare_organs(root: Path, model: ModelConfig) -> dict[str, Prepared]:
    """The same images for each of :data:`NODES`, of organs, of which its label maps show what it has annotated."""
    found = {}
    for name, (annotated, share) in NODES.items():
        drawn = list(ORGANS[:annotated])
        make = partial(make_organ_phantom, annotated={"Benchmark": drawn}, unannotated="unknown")
        node = prepare(root / name, ORGANS_CENTRE, model, make)
        labels = {"labels": TRUTH_LABELS} | ({"annotated": drawn} if annotated < len(ORGANS) else {})
        found[name] = replace(node, dataset_json=node.dataset_json | labels, pseudo_labels=share)
    return found


def nnunet_loop(trainer: nnUNetTrainer) -> None:
    """nnU-Net's own loop."""
    trainer.run_training()


def lightning_loop(
    trainer: nnUNetTrainer, callbacks: Sequence[L.Callback] = (), compute: ComputeConfig = COMPUTE
) -> None:
    """Our loop, with nnU-Net's hooks before and after it as a node calls them."""
    trainer.on_train_start()
    module = NNUNetModule(trainer)
    lightning_trainer = build_lightning_trainer(module, compute, callbacks, Path(trainer.output_folder))
    lightning_trainer.fit(module, datamodule=NNUNetDataModule(trainer))
    trainer.on_train_end()


def set_up() -> None:
    """What every process of this script does first."""
    torch.set_num_threads(COMPUTE.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what nnU-Net and Lightning print."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield


# loop ----------------------------------------------------------------------------------------------------

LOOPS = {"ours": lightning_loop, "theirs": nnunet_loop}
NODES = {"all": (3, 0.0), "partial": (1, 0.0), "pseudo": (1, PSEUDO_LABELS), "pseudo, 3 times": (1, 3 * PSEUDO_LABELS)}
"""Number of organs that a node has annotated, of three, and its ``task.pseudo_labels``; epochs of each are compared
with those of the first, all with our loop."""


def repeat_first_batch(trainer: nnUNetTrainer) -> None:
    """Let a trainer train on its first batch again and again, without augmentation: what is left is the loop."""
    get_dataloaders = trainer.get_dataloaders

    def repeated() -> tuple[Iterator[Any], ...]:
        return tuple(itertools.repeat(next(loader)) for loader in get_dataloaders())

    trainer.get_dataloaders = repeated


class Turns:
    """Makes forward passes of a network wait for a turn, and reports the turn before it.

    Args:
        pipe: takes wall and CPU seconds of each turn (the first is the setup); gives the next turn.
        passes: forward passes in a turn. What a GPU still computes at its end belongs to it.

    Attributes:
        is_labelling: whether passes make pseudo-labels: they belong to the turn that has begun.
    """

    def __init__(self, pipe: Connection, passes: int = 1) -> None:
        self.pipe = pipe
        self.passes = passes
        self.left = 0
        self.is_labelling = False
        self.started = _now()

    def __call__(self, *_: Any) -> None:
        if self.is_labelling:
            return
        if self.left:
            self.left -= 1
            return
        self.left = self.passes - 1
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.pipe.send(_now() - self.started)
        self.pipe.recv()
        self.started = _now()


class LabelEachEpoch(L.Callback):
    """Begins each epoch as a node begins a round of it; ``turns`` of the network go on meanwhile."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Label what has its turn."""
        self.turns.is_labelling = True
        pl_module.update_pseudo_labels()
        self.turns.is_labelling = False


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


@dataclass(frozen=True)
class Comparison:
    """How both loops train.

    Attributes:
        configuration: nnU-Net's.
        processes: for augmentation, of each loop.
        epochs: that are counted.
        device: device to train on.
        turn: forward passes in a turn; divides those of an epoch.
        augments: whether batches are augmented; else the first one is taken again and again.
        names: two of :data:`LOOPS`, or of :data:`NODES`.
    """

    configuration: str
    processes: int
    epochs: int
    device: str = "cpu"
    turn: int = 1
    augments: bool = True
    names: tuple[str, ...] = tuple(LOOPS)


STEPS = TRAINER.iterations + TRAINER.val_iterations
"""Forward passes in an epoch."""


def train_in_turns(name: str, prepared: Prepared, comparison: Comparison, pipe: Connection) -> None:
    """Process entry: train from the beginning with the loop, or the labels, of this name."""
    set_up()
    os.environ["nnUNet_results"] = str(prepared.root / name)
    with quiet():
        # The last turn of the last epoch has no forward pass after it, so that epoch is not counted either.
        epochs = WARM_UP + comparison.epochs + 1
        trainer = prepared.build(comparison.configuration, comparison.device, epochs=2 * epochs)
        skip_epochs(trainer, epochs)  # pseudo-labels are made from some epoch on
        if not comparison.augments:
            repeat_first_batch(trainer)
        turns = Turns(pipe, comparison.turn)
        trainer.network.register_forward_pre_hook(turns)
        labelled = partial(lightning_loop, callbacks=[LabelEachEpoch(turns)])
        with contextlib.suppress(EOFError):  # the parent closes the pipe when it has seen enough
            LOOPS.get(name, labelled)(trainer)
        trainer.on_train_end()  # ends the processes of the augmentation


@contextlib.contextmanager
def both_sides(prepared: Mapping[str, Prepared], comparison: Comparison) -> Iterator[dict[str, Connection]]:
    """A process for each of both, with the parent's end of its pipe."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in comparison.names:
        pipes[name], far_end = context.Pipe()
        process = context.Process(target=train_in_turns, args=(name, prepared[name], comparison, far_end))
        process.start()
        processes.append(process)
        far_end.close()
    try:
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()  # one that still waits for a turn ends
        for process in processes:
            process.join()


def compare(prepared: Mapping[str, Prepared], comparison: Comparison) -> dict[str, np.ndarray]:
    """Wall and CPU seconds of every counted epoch, (epochs, 2), of both, each of its own data."""
    turns: dict[str, list[np.ndarray]] = {name: [] for name in comparison.names}
    turns_of_epoch = STEPS // comparison.turn
    os.environ["nnUNet_n_proc_DA"] = str(comparison.processes)
    with both_sides(prepared, comparison) as pipes:
        for pipe in pipes.values():
            pipe.recv()
        for turn in range((WARM_UP + comparison.epochs) * turns_of_epoch):
            for name in comparison.names[:: 1 if turn % 2 else -1]:
                pipes[name].send(None)
                turns[name].append(pipes[name].recv())
    os.environ["nnUNet_n_proc_DA"] = "0"
    return {name: np.reshape(taken, (-1, turns_of_epoch, 2))[WARM_UP:].sum(axis=1) for name, taken in turns.items()}


# rounds --------------------------------------------------------------------------------------------------


class Clock:
    """When the epochs of a trainer begin and end, in wall seconds."""

    def __init__(self, trainer: nnUNetTrainer) -> None:
        self.started: list[float] = []
        self.ended: list[float] = []
        begin, end = trainer.on_epoch_start, trainer.on_epoch_end

        def on_epoch_start() -> None:
            self.started.append(time.perf_counter())
            begin()

        def on_epoch_end() -> None:
            end()
            self.ended.append(time.perf_counter())

        trainer.on_epoch_start, trainer.on_epoch_end = on_epoch_start, on_epoch_end

    def gaps(self) -> list[float]:
        """Seconds from the end of each epoch to the start of the next."""
        return [started - ended for ended, started in zip(self.ended, self.started[1:], strict=False)]

    def inside(self) -> float:
        """Seconds inside epochs."""
        return sum(self.ended) - sum(self.started)


class Exchange:
    """A node's end of the exchange without messages: hands over all layers, loads what it handed over."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.layers = list(layer_shapes(network))
        spec = state_spec(network, self.layers)
        self.arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in spec.items()}
        read_state(network, self.layers, self.arrays)

    def start_epoch(self, module: NNUNetModule) -> None:
        """Load the layers."""
        load_state(module.network, self.arrays)

    def end_epoch(self, module: NNUNetModule) -> bool:
        """Hand the layers over."""
        read_state(module.network, self.layers, self.arrays)
        return True


def build_for_rounds(prepared: Prepared) -> nnUNetTrainer:
    """A trainer with short epochs, whose length does not matter here, and one epoch more than there are rounds."""
    return prepared.build("2d", epochs=ROUNDS + 1, iterations=2, val_iterations=1)


def supervise(prepared: Prepared) -> tuple[list[float], Path]:
    """Seconds of each round in one living fit, and the checkpoint after the last."""
    with quiet():
        trainer = build_for_rounds(prepared)
        trainer.num_epochs = ROUNDS
        clock = Clock(trainer)
        lightning_loop(trainer, [FederatedCallback(Exchange(trainer.network))])
    return clock.gaps(), Path(trainer.output_folder) / "checkpoint_final.pth"


def rebuild(prepared: Prepared, checkpoint: Path) -> tuple[float, float]:
    """Build everything anew for one round; seconds outside and inside its epoch."""
    started = time.perf_counter()
    with quiet():
        trainer = build_for_rounds(prepared)
        trainer.load_checkpoint(str(checkpoint))
        trainer.disable_checkpointing = True
        clock = Clock(trainer)
        lightning_loop(trainer, [FederatedCallback(Exchange(trainer.network))])
    return time.perf_counter() - started - clock.inside(), clock.inside()


def rebuild_in_new_process(prepared: Prepared, checkpoint: Path) -> float:
    """Seconds outside the epoch of a process that is started for one round."""
    command = [sys.executable, __file__, "--one-round", str(prepared.root), str(checkpoint)]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - started - float(done.stdout.splitlines()[-1])


def measure_rounds(prepared: Prepared) -> dict[str, float]:
    """Metric to its median seconds per round."""
    alive, checkpoint = supervise(prepared)
    rebuilt = [rebuild(prepared, checkpoint)[0] for _ in range(REBUILDS)]
    started = [rebuild_in_new_process(prepared, checkpoint) for _ in range(NEW_PROCESSES)]
    return {
        "round_keep_alive_seconds": statistics.median(alive),
        "round_rebuild_seconds_in_process": statistics.median(rebuilt),
        "round_rebuild_seconds_new_process": statistics.median(started),
    }


# output --------------------------------------------------------------------------------------------------


def print_comparison(name: str, seconds: dict[str, np.ndarray]) -> float:
    """One row of the table; the ratio of wall seconds, the first to the second."""
    ours, theirs = (np.median(of_one[:, 0]) for of_one in seconds.values())
    first, second = seconds.values()
    ratios = first / second
    lower, ratio, upper = np.quantile(ratios[:, 0], [0.25, 0.5, 0.75])
    cpu = np.median(ratios[:, 1])
    print(f"{name:<24} {ours:8.3f} {theirs:10.3f} {ratio:8.3f}   {lower:.3f} – {upper:.3f} {cpu:10.3f}", flush=True)
    return float(ratio)


def compare_pairs(prepared: Mapping[str, Prepared], comparison: Comparison, pairs: int) -> dict[str, np.ndarray]:
    """As :func:`compare`, over the epochs of several pairs of processes."""
    compared = [compare(prepared, comparison) for _ in range(pairs)]
    return {name: np.concatenate([pair[name] for pair in compared]) for name in comparison.names}


def measure_loops(prepared: Prepared, pairs: int, epochs: int) -> Iterator[Figure]:
    """Epochs of our loop against nnU-Net's."""
    print(f"{'':<24} {'ours s':>8} {'nnU-Net s':>10} {'ratio':>8} {'quartiles':>15} {'CPU ratio':>10}")
    for name, processes in (("2d", 0), ("3d_fullres", 0), ("2d_background", BACKGROUND_PROCESSES)):
        comparison = Comparison(name.removesuffix("_background"), processes, epochs)
        ratio = print_comparison(name, compare_pairs(dict.fromkeys(LOOPS, prepared), comparison, pairs))
        yield f"training_loop_ratio_{name}", ratio, "ratio", TARGET_RATIO


def measure_labels(prepared: Prepared, pairs: int, epochs: int) -> Iterator[Figure]:
    """Epochs with labels annotated in part against those with all."""
    print(f"{'':<24} {'part s':>8} {'all s':>10} {'ratio':>8} {'quartiles':>15} {'CPU ratio':>10}")
    whole, *others = NODES
    with quiet():
        organs = prepare_organs(prepared.root / "organs", prepared.model)
    for configuration, name in itertools.product(CONFIGURATIONS, others):
        comparison = Comparison(configuration, 0, epochs, names=(name, whole))
        ratio = print_comparison(f"{configuration}, {name}", compare_pairs(organs, comparison, pairs))
        yield f"partial_labels_ratio_{name.replace(', ', '_')}_{configuration}", ratio, "ratio", TARGET_PARTIAL_RATIO


def measure_changes(prepared: Prepared, pairs: int, epochs: int) -> Iterator[Figure]:
    """Seconds between rounds."""
    print("median seconds outside the epoch, a round:")
    for metric, seconds in measure_rounds(prepared).items():
        print(f"  {metric:<34} {seconds:8.4f}")
        yield metric, seconds, "s", None


PARTS = {"loop": measure_loops, "labels": measure_labels, "rounds": measure_changes}


def measure(parts: Sequence[str], pairs: int, epochs: int, features: int) -> list[Figure]:
    """Print the tables of these parts; all figures."""
    with tempfile.TemporaryDirectory(prefix="fednnunet-") as folder:
        with quiet():
            prepared = prepare(Path(folder), model=network_of(features))
        return [figure for part in parts for figure in PARTS[part](prepared, pairs, epochs)]


def main() -> None:
    """Print the tables and the figures."""
    parser = argparse.ArgumentParser(description="Time the training loop and the change of rounds.")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of processes (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=TRAINER.epochs, help="epochs of each pair (default: %(default)s)")
    parser.add_argument("--only", choices=PARTS, help="measure this alone (default: all)")
    parser.add_argument(
        "--features",
        type=int,
        default=FEATURES,
        help="of the network's first stage (default: %(default)s; nnU-Net: 32)",
    )
    parser.add_argument("--one-round", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_up()
    if arguments.one_round:
        root, checkpoint = arguments.one_round
        print(rebuild(Prepared.load(root), checkpoint)[1])
        return
    parts = [arguments.only] if arguments.only else list(PARTS)
    for metric, value, unit, target in measure(parts, arguments.pairs, arguments.epochs, arguments.features):
        print(json.dumps({"metric": metric, "value": round(value, 4), "unit": unit, "target": target}))


if __name__ == "__main__":
    main()
