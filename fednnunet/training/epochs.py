"""Skip the epochs of rounds that a node missed."""

from __future__ import annotations

import math
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

FIRST_MOVING_AVERAGE = 0.0


def skip_epochs(trainer: nnUNetTrainer, until: int) -> None:
    """Let ``trainer`` train epoch ``until`` next, so that its schedule keeps to the federation's rounds.

    nnU-Net logs one value per epoch. The values of skipped epochs are NaN; time stamps and the moving average of the
    pseudo-Dice, which later values build on, stay as they were.

    Args:
        trainer: trainer to move forward; one that is at ``until`` or beyond stays as it is.
        until: number of the epoch, counted from 0.
    """
    missing = until - trainer.current_epoch
    if missing <= 0:
        return
    logged: dict[str, list[Any]] = trainer.logger.get_checkpoint()
    has_trained = trainer.current_epoch > 0
    for key, values in logged.items():
        if key == "ema_fg_dice":
            filling = values[-1] if has_trained else FIRST_MOVING_AVERAGE
        elif key.startswith("epoch_"):
            filling = values[-1] if has_trained else 0.0
        else:
            filling = math.nan
        values.extend([filling] * missing)
    trainer.current_epoch = until
