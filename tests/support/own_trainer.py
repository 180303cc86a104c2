"""A trainer that a user has written, and names by its import path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class Gentle(nnUNetTrainer):
    """Three epochs of two iterations, with AdamW."""

    # nnU-Net reads the names of these parameters.
    def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: torch.device) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 3, 2, 1

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


GPU_IS_FULL = "gpu_is_full"
"""In the folder of a run: another program holds the memory of the GPU."""


class LargeAtPorto(nnUNetTrainer):
    """Runs out of GPU memory in the second epoch, at its second step, at node Porto while the GPU is full."""

    PART = ""
    """Of the path of the model's folder."""

    def initialize(self) -> None:
        super().initialize()
        self.steps_of_epoch = 0
        self.network.register_forward_pre_hook(self._take_memory)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.steps_of_epoch = 0

    def _take_memory(self, *_: Any) -> None:
        self.steps_of_epoch += 1
        node = Path(os.environ["nnUNet_results"]).parent
        is_full = (node.parents[1] / GPU_IS_FULL).exists() and self.PART in self.output_folder
        if is_full and node.name == "Porto" and self.current_epoch == 1 and self.steps_of_epoch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


class LargeWhileTunedAtPorto(LargeAtPorto):
    """The same of a model that is the node's own alone."""

    PART = "personal"
