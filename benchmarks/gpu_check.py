"""Does training work on the GPU of this machine as it should, and what does it cost there?

    make gpu-check                              # or: python benchmarks/gpu_check.py [--only parity turns]
    python benchmarks/gpu_check.py --device cpu # what needs no GPU, at the smallest size

Generated images are planned for 8 GB with nnU-Net's full networks, in 2d and 3d. The checks:

**precision.** Two epochs in mixed precision: are losses finite, is the gradient scaler used, and is its state in a
node's checkpoint the one that it had?

**memory.** The most memory that plans for 8 GB take, and whether a worker that is capped stays below its cap: it must
get half of it, and must not get twice.

**parity.** Losses of our loop and of ``nnUNetTrainer.run_training``, step by step. Kernels of a GPU add in no fixed
order, so nnU-Net's loop runs twice, which shows how far apart two runs of the same code are. The first step may differ
by the machine epsilon of float16 (2⁻¹⁰, relative), all steps in the mean by that or by three times what the two runs
differ by.

**compile.** Losses and seconds of an epoch with ``compute.compile=true``, relative to those without.

**epochs.** Seconds of an epoch of our loop relative to nnU-Net's, which take turns epoch by epoch on one batch that is
loaded once, so that nothing but loop and GPU is timed; and with augmentation in background processes.

**turns.** Two nodes that train in turns in one process, an epoch each: GPU memory that a waiting node holds in a worker
of its own, in a shared worker, and parked in main memory; seconds to park and to take up again; how far the losses are
from those of the same nodes trained without interruption.

**run.** ``train.py`` with four nodes that do not fit on the GPU at once: they share a worker, and park. Does the run
end, and does every node stay below its target?

A check that fails is named, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for the next imports, however this script is started

import numpy as np  # noqa: E402
import torch  # noqa: E402
import training_loop  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402
from training_loop import CENTRE, COMPUTE, MODEL, Clock, Comparison, Precision, Prepared  # noqa: E402

from fednnunet.config.groups import ModelConfig  # noqa: E402
from fednnunet.node.fold_fit import FoldFit  # noqa: E402
from fednnunet.node.gpus import find_gpus  # noqa: E402
from fednnunet.training.checkpoint import load_round, save_round  # noqa: E402
from fednnunet.training.devices import GIGABYTE, cap_memory, peak_memory_gib, reset_peak_memory  # noqa: E402
from fednnunet.training.module import NNUNetModule  # noqa: E402
from fednnunet.training.parking import ParkedTrainer  # noqa: E402

CARD = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
EPSILON = 2.0**-10
"""Machine epsilon of float16."""
NOISE = 3.0
"""So many times the difference of two runs of the same code may two loops differ."""
TARGET_GB = 8.0
"""What plans aim at (:func:`training_loop.prepare`)."""
PARKED_GIB = 0.1
"""What a parked node may leave on its GPU: workspaces of cuBLAS, which belong to the process."""
FIRST_SCALE = 65536.0
"""Of torch's gradient scaler."""


@dataclass(frozen=True)
class Figure:
    """A measured value, which is as it should be where it is no more than its target."""

    metric: str
    value: float
    unit: str
    target: float | None = None

    @property
    def verdict(self) -> str:
        """Empty where there is no target."""
        if self.target is None:
            return ""
        return "ok" if self.value <= self.target else "NOT MET"  # NaN meets nothing


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        centre: fields of the generated centre.
        model: planner and what it changes.
        device: torch's name of the device.
        epochs: of the comparison of loops.
        settings: of each training: lengths of epochs.
    """

    centre: Mapping[str, Any]
    model: ModelConfig
    device: str
    epochs: int
    settings: Mapping[str, int]


FULL = Size(
    {**CENTRE, "cases": 12, "shape": (48, 160, 160), "spacing": (1.5, 1.0, 1.0)},
    ModelConfig(planner="ExperimentPlanner"),
    "cuda",
    5,
    {"epochs": 2, "iterations": 10, "val_iterations": 2},
)
SMALLEST = Size(
    {**CENTRE, "cases": 5, "shape": (6, 40, 40)},
    MODEL.model_copy(update={"overrides": {**MODEL.overrides, "UNet_base_num_features": 4}}),
    "cpu",
    1,
    {"epochs": 2, "iterations": 2, "val_iterations": 1},
)


def card() -> str:
    """Name, driver and memory of each GPU, and versions of torch and its libraries."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(CARD, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
        return "\n".join([*told.splitlines(), _versions()])
    return "\n".join(["no NVIDIA driver", _versions()])


def _versions() -> str:
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


# training ------------------------------------------------------------------------------------------------


def record_losses(trainer: nnUNetTrainer) -> list[list[float]]:
    """A list that gets the losses of each epoch, step by step."""
    losses: list[list[float]] = []
    end_epoch = trainer.on_train_epoch_end

    def on_train_epoch_end(outputs: list[dict[str, Any]]) -> None:
        losses.append([float(output["loss"]) for output in outputs])
        end_epoch(outputs)

    trainer.on_train_epoch_end = on_train_epoch_end
    return losses


def build(prepared: Prepared, size: Size, name: str, configuration: str, **settings: Any) -> nnUNetTrainer:
    """A trainer with results of its own, under ``name``."""
    os.environ["nnUNet_results"] = str(prepared.root / name)
    return prepared.build(configuration, size.device, **{**size.settings, **settings})


def train(trainer: nnUNetTrainer, loop: Callable[[nnUNetTrainer], None]) -> np.ndarray:
    """Losses of every step, (epochs, steps)."""
    losses = record_losses(trainer)
    loop(trainer)
    return np.array(losses)


def free_memory() -> None:
    """Let nothing of earlier trainings stay on the GPU."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def difference(losses: np.ndarray, others: np.ndarray) -> float:
    """Mean absolute difference of two trainings, step by step."""
    return float(np.abs(losses - others).mean())


# checks --------------------------------------------------------------------------------------------------


def check_precision(prepared: Prepared, size: Size, precision: Precision = "auto") -> Iterator[Figure]:
    """Mixed precision, and its part of a checkpoint."""
    compute = COMPUTE.model_copy(update={"device": size.device, "precision": precision})
    trainer = build(prepared, size, "precision", "2d", precision=precision)
    losses = train(trainer, lambda trainer: training_loop.lightning_loop(trainer, compute=compute))
    yield Figure("amp_losses_not_finite", float((~np.isfinite(losses)).sum()), "steps", 0)
    state = trainer.grad_scaler.state_dict()
    is_used = state["_growth_tracker"] > 0 or state["scale"] != FIRST_SCALE
    yield Figure("amp_gradient_scaler_unused", float(not is_used), "count", 0)
    save_round(trainer, {"server_round": 1}, {})
    resumed = build(prepared, size, "precision", "2d", precision=precision)
    load_round(resumed, 1)
    lost = [name for name, value in resumed.grad_scaler.state_dict().items() if value != state[name]]
    yield Figure("amp_scaler_entries_lost_by_checkpoint", len(lost), "count", 0)


def check_memory(prepared: Prepared, size: Size) -> Iterator[Figure]:
    """Memory that plans take, and the cap."""
    device = torch.device(size.device)
    for configuration in training_loop.CONFIGURATIONS:
        free_memory()
        reset_peak_memory(device)
        train(build(prepared, size, "memory", configuration, epochs=1), training_loop.lightning_loop)
        peak = peak_memory_gib(device)
        assert peak is not None
        yield Figure(f"gpu_memory_of_plans_{configuration}", peak, "GiB", TARGET_GB)
    free_memory()
    cap = 1 + torch.cuda.memory_reserved(device) / GIGABYTE
    cap_memory(device, cap)
    try:
        torch.empty(GIGABYTE // 2, dtype=torch.uint8, device=device)
        torch.cuda.empty_cache()
        taken = 0.0
        with contextlib.suppress(torch.OutOfMemoryError):
            torch.empty(int(2 * cap * GIGABYTE), dtype=torch.uint8, device=device)
            taken = 1.0
        yield Figure("gpu_memory_cap_not_kept", taken, "count", 0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def check_parity(prepared: Prepared, size: Size) -> Iterator[Figure]:
    """Losses of both loops."""
    for configuration in training_loop.CONFIGURATIONS:
        theirs, again, ours = (
            train(build(prepared, size, name, configuration), loop)
            for name, loop in (
                ("theirs", training_loop.nnunet_loop),
                ("again", training_loop.nnunet_loop),
                ("ours", training_loop.lightning_loop),
            )
        )
        first = abs(ours[0, 0] - theirs[0, 0]) / abs(theirs[0, 0])
        repeated = difference(again, theirs)
        yield Figure(f"parity_first_step_{configuration}", first, "relative", EPSILON)
        yield Figure(f"parity_nnunet_with_itself_{configuration}", repeated, "loss")
        yield Figure(f"parity_{configuration}", difference(ours, theirs), "loss", max(EPSILON, NOISE * repeated))


def check_compile(prepared: Prepared, size: Size) -> Iterator[Figure]:
    """``torch.compile`` on and off."""
    seconds: list[float] = []
    losses: list[np.ndarray] = []
    for compiles in ("False", "False", "True"):
        os.environ["nnUNet_compile"] = compiles
        try:
            trainer = build(prepared, size, "compile", "2d", epochs=4)
            training_loop.repeat_first_batch(trainer)
            clock = Clock(trainer)
            losses.append(train(trainer, training_loop.lightning_loop))
        finally:
            os.environ["nnUNet_compile"] = "False"
        epochs = [ended - started for started, ended in zip(clock.started, clock.ended, strict=True)]
        seconds.append(statistics.median(epochs[1:]))  # the first compiles
        free_memory()
    _, plain, compiled = losses
    noise = difference(losses[0], plain)
    yield Figure("compile_loss_difference", difference(compiled, plain), "loss", max(10 * EPSILON, NOISE * noise))
    yield Figure("compile_epoch_ratio", seconds[2] / seconds[1], "ratio")


def check_epochs(prepared: Prepared, size: Size) -> Iterator[Figure]:
    """Seconds of an epoch in both loops."""
    processes = max(1, len(os.sched_getaffinity(0)) // 2) if size.device == "cuda" else 0
    for configuration in training_loop.CONFIGURATIONS:
        alone = Comparison(configuration, 0, size.epochs, size.device, training_loop.STEPS, augments=False)
        for name, comparison in (("", alone), ("_augmented", replace(alone, processes=processes, augments=True))):
            seconds = training_loop.compare(dict.fromkeys(comparison.names, prepared), comparison)
            ours, theirs = (float(np.median(seconds[loop][:, 0])) for loop in training_loop.LOOPS)
            target = training_loop.TARGET_RATIO if size.device == "cuda" and not name else None
            step = theirs / training_loop.STEPS
            yield Figure(f"nnunet_step_{configuration}{name}", step, "s")
            yield Figure(f"epoch_ratio_{configuration}{name}", ours / theirs, "ratio", target)


# turns ---------------------------------------------------------------------------------------------------


class Epochs:
    """A node's end of an exchange without messages: a fit is set aside after each epoch, or goes on.

    Attributes:
        held: bytes that torch has reserved on the GPU at the end of each epoch, where a node waits in its fit.
    """

    def __init__(self, goes_on: bool) -> None:
        self.goes_on = goes_on
        self.held: list[int] = []

    def start_epoch(self, module: NNUNetModule) -> None:
        """Nothing is received."""

    def end_epoch(self, module: NNUNetModule) -> bool:
        """Note what is held."""
        self.held.append(reserved(module.nnunet.device))
        return self.goes_on and module.nnunet.current_epoch < module.nnunet.num_epochs


def reserved(device: torch.device) -> int:
    """Bytes that torch has reserved on a GPU; 0 on other devices."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


class WaitingNode:
    """A node that trains an epoch at a time, as in a worker that it shares.

    Attributes:
        losses: of its epochs.
        held: GiB that it leaves on the GPU while it waits, of each wait.
        in_fit: GiB that it would hold if it waited in its fit.
        seconds: to park and to take up again, of each wait.
    """

    def __init__(self, trainer: nnUNetTrainer, parks: bool, goes_on: bool = False) -> None:
        training_loop.repeat_first_batch(trainer)
        self.trainer, self.parks = trainer, parks
        self.losses = record_losses(trainer)
        self.held: list[float] = []
        self.seconds: list[float] = []
        trainer.on_train_start()
        self._epochs = Epochs(goes_on)
        compute = COMPUTE.model_copy(update={"device": trainer.device.type})
        self._fit = FoldFit(trainer, self._epochs, compute, Path(trainer.output_folder), None)
        self._parked = self._park()

    @property
    def in_fit(self) -> list[float]:
        return [held / GIGABYTE for held in self._epochs.held]

    def run(self, baseline: int) -> None:
        """Take up, train, and set aside; ``baseline`` bytes of the GPU are not the node's."""
        started = time.perf_counter()
        if self._parked is not None:
            self._parked.restore()
        synchronise()
        taken_up = time.perf_counter()
        self._fit.run()
        synchronise()
        trained = time.perf_counter()
        self._fit.free_gradients()
        self._parked = self._park()
        synchronise()
        self.seconds.append(time.perf_counter() - trained + taken_up - started)
        free_memory()
        self.held.append((reserved(self.trainer.device) - baseline) / GIGABYTE)

    def _park(self) -> ParkedTrainer | None:
        return ParkedTrainer(self.trainer) if self.parks else None


def synchronise() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def take_turns(prepared: Prepared, size: Size, parks: bool) -> list[WaitingNode]:
    """Two unlike nodes train in turns, all epochs."""
    free_memory()
    baseline = reserved(torch.device(size.device))
    nodes = [WaitingNode(trainer, parks) for trainer in _two_trainers(prepared, size, f"turns_{parks}")]
    for _ in range(size.settings["epochs"]):
        for node in nodes:
            node.run(baseline)
    return nodes


def _two_trainers(prepared: Prepared, size: Size, name: str) -> Iterator[nnUNetTrainer]:
    for node, rate in enumerate((0.01, 0.02)):
        yield build(prepared, size, f"{name}_{node}", "3d_fullres", initial_lr=rate)


def check_turns(prepared: Prepared, size: Size) -> Iterator[Figure]:
    """Memory and losses of nodes that wait for their turn."""
    undisturbed: list[list[np.ndarray]] = []
    in_fit = 0.0
    for again in range(2):
        losses = []
        for trainer in _two_trainers(prepared, size, f"undisturbed_{again}"):
            free_memory()
            node = WaitingNode(trainer, parks=False, goes_on=True)
            node.run(0)
            losses.append(np.array(node.losses))
            in_fit = max(in_fit, *node.in_fit)
        undisturbed.append(losses)
    noise = max(map(difference, *undisturbed))
    for name, parks in (("set_aside", False), ("parked", True)):
        nodes = take_turns(prepared, size, parks)
        apart = max(difference(np.array(node.losses), alone) for node, alone in zip(nodes, undisturbed[0], strict=True))
        yield Figure(f"turns_loss_difference_{name}", apart, "loss", max(EPSILON, NOISE * noise))
        yield Figure(f"turns_seconds_{name}", statistics.median(nodes[0].seconds + nodes[1].seconds), "s")
        if size.device == "cuda":
            yield Figure(f"waiting_node_{name}", max(nodes[1].held), "GiB", PARKED_GIB if parks else None)
        del nodes
    if size.device == "cuda":
        yield Figure("waiting_node_in_a_worker_of_its_own", in_fit, "GiB")


def check_run(prepared: Prepared, size: Size) -> Iterator[Figure]:
    """A whole run, whose nodes do not fit on the GPU at once."""
    run, data = prepared.root / "run", prepared.root / "data"
    keys = [f"{key}={value}" for key, value in size.settings.items()]
    command = [sys.executable, str(ROOT / "train.py"), "dataset=phantom", "strategy=asym", f"paths.data={data}"]
    command += [f"hydra.run.dir={run}", f"paths.cache={prepared.root / 'nodes'}", f"compute.device={size.device}"]
    command += [f"trainer.{key}" for key in keys]
    target = None
    if size.device == "cuda":
        gpu = find_gpus()[0]
        target = 0.6 * gpu.memory_gb  # two do not fit
        command += [f"compute.gpus=['{gpu}']" if gpu.number is None else f"compute.gpus=[{gpu}]"]
        command += [f"gpu_memory.gb={target:.1f}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
    with (run / "rounds.csv").open(encoding="utf-8", newline="") as file:
        rounds = list(csv.DictReader(file))
    losses = [float(row["train_loss"]) for row in rounds]
    yield Figure("run_losses_not_finite", float((~np.isfinite(losses)).sum()), "rounds", 0)
    if target is not None:
        peak = max(float(row["gpu_memory_gib"]) for row in rounds)
        yield Figure("run_gpu_memory", peak, "GiB", target)


Check = Callable[[Prepared, Size], Iterator[Figure]]
CHECKS: dict[str, Check] = {
    "precision": check_precision,
    "memory": check_memory,
    "parity": check_parity,
    "compile": check_compile,
    "epochs": check_epochs,
    "turns": check_turns,
    "run": check_run,
}
NEED_A_GPU = ("precision", "memory", "compile")


def check_all(names: Sequence[str], size: Size) -> tuple[list[Figure], list[str]]:
    """Print a table row by row; all figures, and names of the checks that broke off."""
    figures: list[Figure] = []
    broken: list[str] = []
    print(f"{'':<44} {'measured':>10} {'at most':>10}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fednnunet-") as folder:
        with training_loop.quiet():
            prepared = training_loop.prepare(Path(folder), size.centre, size.model)
        for name in names:
            print(name)
            found = CHECKS[name](prepared, size)
            while True:
                try:
                    with training_loop.quiet():
                        figure = next(found, None)
                except Exception as error:  # noqa: BLE001  the others go on
                    broken.append(name)
                    text = next(iter(str(error).strip().splitlines()), "no message")
                    print(f"  broke off: {type(error).__name__}: {text}", flush=True)
                    break
                if figure is None:
                    break
                figures.append(figure)
                target = "" if figure.target is None else f"{figure.target:.4g}"
                row = f"  {figure.metric:<42} {figure.value:>10.4g} {target:>10} {figure.unit:<9} {figure.verdict}"
                print(row.rstrip(), flush=True)
            free_memory()
    return figures, broken


def main() -> int:
    """Print card, table and figures; 1 where a check broke off or a target is not met."""
    parser = argparse.ArgumentParser(description="Check training on the GPU of this machine.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA GPU here: nothing is checked (--device cpu checks what needs none)")
        return 0
    size = FULL if arguments.device == "cuda" else SMALLEST
    names = arguments.only or [name for name in CHECKS if arguments.device == "cuda" or name not in NEED_A_GPU]
    os.environ["nnUNet_compile"] = "False"  # as at a node; nnU-Net would compile
    training_loop.set_up()
    print(card())
    figures, broken = check_all(names, size)
    for figure in figures:
        line = {"metric": figure.metric, "value": round(figure.value, 6), "unit": figure.unit, "target": figure.target}
        print(json.dumps(line))
    missed = [figure.metric for figure in figures if figure.verdict == "NOT MET"]
    if broken or missed:
        print(f"not as it should be: {', '.join(broken + missed)}", file=sys.stderr)
    return int(bool(broken or missed))


if __name__ == "__main__":
    sys.exit(main())
