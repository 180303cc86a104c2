"""Epochs that a node was not in leave gaps in nnU-Net's log, and no more than that."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from fednnunet.training.epochs import skip_epochs


def log_epoch(trainer: Any, pseudo_dice: float) -> None:
    """What nnUNetTrainer logs in an epoch."""
    epoch = trainer.current_epoch
    for key in ("lrs", "train_losses", "val_losses", "epoch_start_timestamps", "epoch_end_timestamps"):
        trainer.logger.log(key, 1.0 + epoch, epoch)
    trainer.logger.log("mean_fg_dice", pseudo_dice, epoch)
    trainer.logger.log("dice_per_class_or_region", [pseudo_dice], epoch)
    trainer.current_epoch += 1


@pytest.fixture
def trainer(tmp_path: Any) -> Any:
    return SimpleNamespace(current_epoch=0, logger=MetaLogger(str(tmp_path), False))


def test_gaps_are_nan_and_the_moving_average_goes_on(trainer: Any) -> None:
    log_epoch(trainer, 0.5)
    skip_epochs(trainer, 3)
    assert trainer.current_epoch == 3
    log_epoch(trainer, 0.7)
    logged = trainer.logger.get_checkpoint()
    assert {len(values) for values in logged.values()} == {4}
    assert [math.isnan(loss) for loss in logged["train_losses"]] == [False, True, True, False]
    assert logged["ema_fg_dice"] == pytest.approx([0.5, 0.5, 0.5, 0.9 * 0.5 + 0.1 * 0.7])
    assert logged["epoch_end_timestamps"] == [1.0, 1.0, 1.0, 4.0]


def test_a_node_may_begin_late_or_never(trainer: Any, tmp_path: Any) -> None:
    skip_epochs(trainer, 2)
    log_epoch(trainer, 0.6)
    assert trainer.logger.get_value("ema_fg_dice", step=-1) == pytest.approx(0.06)
    skip_epochs(trainer, 2)
    assert trainer.current_epoch == 3, "it never goes back"
    skip_epochs(trainer, 5)
    assert {len(values) for values in trainer.logger.get_checkpoint().values()} == {5}
    trainer.logger.plot_progress_png(str(tmp_path))
    assert (tmp_path / "progress.png").is_file()
