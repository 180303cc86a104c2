"""A trainer that a user has written, and names by its import path."""

from __future__ import annotations

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
