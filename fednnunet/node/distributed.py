"""A node with several GPUs: the worker is rank 0, helper processes are the others, Lightning's DDP joins them.

nnU-Net decides by ``torch.distributed`` whether a trainer is one of several, and then divides the batch, gathers
losses and wraps the network itself; so every rank joins the process group before it builds its trainer. The worker
sends its orders to the helpers through a pipe, in JSON; weights go from rank 0 to all at the start of every round, so a
state is exchanged with the server once per node.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning as L
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed

from fednnunet.config.groups import TrainerConfig
from fednnunet.node.process_setup import set_up_process
from fednnunet.node.settings import NodeSettings
from fednnunet.processes import end_with
from fednnunet.training.callback import FederatedCallback
from fednnunet.training.data import NNUNetDataModule
from fednnunet.training.devices import cap_memory, resolve_device
from fednnunet.training.epochs import skip_epochs
from fednnunet.training.lightning_trainer import build_lightning_trainer
from fednnunet.training.module import NNUNetModule
from fednnunet.training.network_state import named_tensors
from fednnunet.training.partial_channels import use_partial_channels
from fednnunet.training.partial_labels import use_partial_labels
from fednnunet.training.trainer import build_nnunet_trainer

log = logging.getLogger(__name__)


class Ranks:
    """Rank 0's view of the others; with one device there are none, and every method does nothing.

    Args:
        settings: settings of the node.
        device: device that the node computes on.
    """

    def __init__(self, settings: NodeSettings, device: torch.device) -> None:
        self.size = settings.config.compute.num_devices
        self._connections: list[Connection] = []
        if self.size == 1:
            return
        rendezvous = settings.folder.resolve() / "ranks"
        rendezvous.unlink(missing_ok=True)
        context = multiprocessing.get_context("spawn")
        processes: list[BaseProcess] = []
        for rank in range(1, self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=run_rank, args=(settings, rank, rendezvous, theirs), name=f"rank {rank}")
            process.start()
            theirs.close()
            self._connections.append(ours)
            processes.append(process)
        # A node that lost one of its ranks cannot continue, and would wait for it for ever.
        end_with(lambda: _wait_for_first_end(processes), "rank-watch")
        join_group(0, self.size, rendezvous, device)

    def build(
        self, plans: dict[str, Any], configuration: str, fold: int | str, dataset_json: dict[str, Any], seed: int
    ) -> None:
        """Let the helpers build their trainers; called right before rank 0 builds its own."""
        self._send(
            do="build",
            plans=plans,
            configuration=configuration,
            fold=fold,
            dataset_json=dataset_json,
            seed=seed,
            preprocessed=os.environ["nnUNet_preprocessed"],
        )

    def load(self, checkpoint: Path, epochs: int) -> None:
        """Let the helpers load optimizer and schedule from a checkpoint that was made after ``epochs`` epochs."""
        self._send(do="load", checkpoint=str(checkpoint), epochs=epochs)

    def fit(self, epoch: int, is_taught: bool) -> None:
        """Let the helpers start training with this epoch, whose weights teach it or not, right before rank 0 does."""
        self._send(do="fit", epoch=epoch, is_taught=is_taught)

    def start_epoch(self, network: torch.nn.Module, epoch: int, first: bool, is_taught: bool) -> None:
        """Start another epoch: give every rank the weights of rank 0; ``is_taught``: which teach it or not."""
        if not first:
            self._send(do="epoch", epoch=epoch, is_taught=is_taught)
        if self.size > 1:
            share_state(network)

    def end_fit(self) -> None:
        """Let the helpers end their fit: the rounds of the fold are over."""
        self._send(do="done")

    def _send(self, **order: Any) -> None:
        for connection in self._connections:
            connection.send_bytes(json.dumps(order).encode())


def _wait_for_first_end(processes: list[BaseProcess]) -> None:
    wait([process.sentinel for process in processes])
    log.error("a process of this node ended (%s): see above for its reason", ", ".join(p.name for p in processes))


def join_group(rank: int, size: int, rendezvous: Path, device: torch.device) -> None:
    """Join the process group of a node's ranks: on this machine only, through a file, without open ports.

    Lightning and nnU-Net find the group there.
    """
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, "lo")
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if device.type == "cuda":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=rendezvous.as_uri(),
        rank=rank,
        world_size=size,
    )


@torch.no_grad()
def share_state(network: torch.nn.Module) -> None:
    """Copy parameters and buffers of rank 0 to all ranks."""
    for _, tensor in named_tensors(network):
        distributed.broadcast(tensor, src=0)


def run_rank(settings: NodeSettings, rank: int, rendezvous: Path, connection: Connection) -> None:
    """Entry point of a helper process."""
    set_up_process(settings.folder / "node.log", settings.threads)
    config = settings.config
    device = resolve_device(config.compute.device)
    join_group(rank, config.compute.num_devices, rendezvous, device)
    cap_memory(device, config.gpu_memory_of(settings.name) if config.gpu_memory.cap else None)
    _Rank(settings, rank, device, connection).serve()


class _Rank:
    """A helper: builds, loads and trains as rank 0 orders."""

    def __init__(self, settings: NodeSettings, rank: int, device: torch.device, connection: Connection) -> None:
        self.settings = settings
        self.rank = rank
        self.device = device
        self.connection = connection
        self.trainer: nnUNetTrainer | None = None
        self._is_taught = False

    def serve(self) -> None:
        """Carry out the orders of rank 0 until it ends."""
        while True:
            try:
                order = json.loads(self.connection.recv_bytes())
            except EOFError:
                return
            if order["do"] == "build":
                self.trainer = self._build(self.settings.config.trainer, order)
            elif order["do"] == "load":
                assert self.trainer is not None
                self.trainer.load_checkpoint(order["checkpoint"])
                self.trainer.current_epoch = order["epochs"]
            else:
                self._fit(order["epoch"], order["is_taught"])

    def _build(self, settings: TrainerConfig, order: dict[str, Any]) -> nnUNetTrainer:
        os.environ["nnUNet_preprocessed"] = order["preprocessed"]
        L.seed_everything(order["seed"] + self.rank, verbose=False)  # other patches than the other ranks
        trainer = build_nnunet_trainer(
            order["plans"],
            order["configuration"],
            order["fold"],
            order["dataset_json"],
            settings,
            self.device,
            self.settings.config.compute.precision,
        )
        if self.settings.config.task.labels == "union":
            use_partial_labels(trainer, self.settings.config.task)
        if self.settings.config.task.channels == "union":
            use_partial_channels(trainer, self.settings.config.task.channel_drop, order["seed"], self.rank)
        return trainer

    def _fit(self, epoch: int, is_taught: bool) -> None:
        assert self.trainer is not None
        self._is_taught = is_taught
        skip_epochs(self.trainer, epoch)
        self.trainer.on_train_start()
        module = NNUNetModule(self.trainer)
        compute = self.settings.config.compute
        fit = build_lightning_trainer(module, compute, [FederatedCallback(self)], self.settings.folder).fit
        fit(module, datamodule=NNUNetDataModule(self.trainer))
        self.trainer.on_train_end()

    def start_epoch(self, module: NNUNetModule) -> None:
        """:class:`~fednnunet.training.callback.Rounds`: receive the weights of rank 0."""
        share_state(module.network)
        if self._is_taught:
            module.update_pseudo_labels()

    def end_epoch(self, module: NNUNetModule) -> bool:
        """:class:`~fednnunet.training.callback.Rounds`: wait for the next order of rank 0."""
        order = json.loads(self.connection.recv_bytes())
        if order["do"] != "epoch":
            return False
        skip_epochs(module.nnunet, order["epoch"])
        self._is_taught = order["is_taught"]
        return True
