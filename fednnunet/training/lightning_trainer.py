"""The Lightning trainer that runs an nnU-Net trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy

from fednnunet.config.groups import ComputeConfig
from fednnunet.training.module import NNUNetModule


class NNUNetDDPStrategy(DDPStrategy):
    """Lightning's DDP for a network that nnU-Net has wrapped already, as its checkpoints and metrics expect."""

    def configure_ddp(self) -> None:
        """The module stays as it is."""


def build_lightning_trainer(
    module: NNUNetModule, compute: ComputeConfig, callbacks: Sequence[L.Callback], root: Path
) -> L.Trainer:
    """A Lightning trainer that runs the remaining epochs of an nnU-Net trainer.

    Args:
        module: the nnU-Net trainer as a module.
        compute: precision to train with, and whether to look for NaN.
        callbacks: callbacks of the fit.
        root: Lightning's default folder.
    """
    nnunet = module.nnunet
    cuda = nnunet.device.type == "cuda"
    plugins: list[Any] = [LightningEnvironment()]  # not SLURM's: the tasks of a job are not the node's processes
    precision: Any = compute.precision
    if precision == "auto":
        precision = "16-mixed" if cuda else "32-true"  # nnU-Net: autocast on CUDA only
    if not module.automatic_optimization:
        precision = "32-true"  # the trainer's own train_step has its own autocast and scaler
    if precision == "16-mixed":
        # The trainer's scaler is the one that nnU-Net's checkpoints save.
        plugins.append(MixedPrecision("16-mixed", nnunet.device.type, nnunet.grad_scaler))
        precision = None
    distributed = torch.distributed.get_world_size() if nnunet.is_ddp else 1
    return L.Trainer(
        accelerator={"cuda": "gpu"}.get(nnunet.device.type, nnunet.device.type),
        devices=distributed,
        strategy=NNUNetDDPStrategy() if distributed > 1 else "auto",
        precision=precision,
        plugins=plugins,
        max_epochs=nnunet.num_epochs - nnunet.current_epoch,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        inference_mode=False,
        benchmark=cuda,
        detect_anomaly=compute.detect_anomaly,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=root,
    )
