"""Checkpoints: nnU-Net's own files, plus what an exact resume needs beside them.

After every round, before its state leaves the node, ``checkpoint_round_<n>.pth`` is written: it holds what is sent.
Where that is rounded, ``checkpoint_round_<n>.npz`` holds the rounding errors of the rounds before; where it is sent as
steps, these as they are sent, and what is left over after them.
The last three are kept: a crash can find some nodes one round ahead of others, and a disk can damage a checkpoint; all
nodes then still have a round in common that can be repeated. The one that falls out is overwritten by the next, which
then needs no memory and no place of its own; while that is written, two are whole.
``checkpoint_latest.pth`` is the newest of them under nnU-Net's name; so is ``checkpoint_best.pth`` where a round's last
epoch is the best.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.messages import Fold
from fednnunet.files import archive_damage, archive_digest, is_in_use, write_arrays, write_atomically
from fednnunet.training.checkpoint_types import NUMBERS
from fednnunet.training.final_checkpoint import FINAL
from fednnunet.training.trainer import plot_progress

log = logging.getLogger(__name__)

LATEST = "checkpoint_latest.pth"
ROUND = re.compile(r"checkpoint_round_(\d+)\.json")
KEPT_ROUNDS = 3
PROGRESS_DPI = 30
"""nnU-Net's figure is 30 x 54 inches."""


def save_round(
    trainer: nnUNetTrainer,
    reply: dict[str, Any],
    residuals: Mapping[str, np.ndarray],
    layers: Sequence[str] = (),
    beside: Path | None = None,
) -> Path:
    """Write the checkpoint of the round just finished, remove those that are no longer needed.

    Args:
        trainer: after its ``on_epoch_end`` (``current_epoch`` counts finished epochs).
        reply: body of the :class:`~fednnunet.exchange.messages.TrainReply` of the round.
        residuals: what :meth:`~fednnunet.node.layer_sender.LayerSender.finish_round` returned; empty where nothing is
            rounded.
        layers: names of the layers that were asked for.
        beside: checkpoint of another network, without which this one is not sound.

    Returns:
        The checkpoint.
    """
    folder = Path(trainer.output_folder)
    checkpoint = folder / f"checkpoint_round_{reply['server_round']}.pth"
    left = _take_back(trainer)
    partial = folder / "checkpoint_round.partial"
    _remove_rounds(folder, reply["server_round"], partial)
    trainer.current_epoch -= 1  # nnU-Net saves before it counts the epoch
    try:
        _save(trainer, partial)
        os.replace(partial, checkpoint)
    finally:
        trainer.current_epoch += 1
        partial.unlink(missing_ok=True)  # an incomplete one, where the disk is full: its space is needed
    if residuals:
        write_arrays(_residuals_of(checkpoint), residuals)
    for path in dict.fromkeys((*left, folder / LATEST)):
        _name_also(checkpoint, path)
    # The .json is written last: where it exists, its checkpoint is complete.
    note = {
        "reply": reply,
        "layers": list(layers),
        "epochs": trainer.current_epoch,
        "data": _data_of(trainer),
        "random": random_state(),
        "archive": archive_digest(checkpoint),
    }
    if beside is not None:
        note["beside"] = os.path.relpath(beside, folder)
    write_atomically(checkpoint.with_suffix(".json"), json.dumps({"note": note, "sha256": _digest(note)}))
    return checkpoint


def _remove_rounds(folder: Path, new: int, partial: Path) -> None:
    """Remove what is not kept beside round ``new``; one of its checkpoints becomes ``partial``, to be overwritten."""
    rounds = sorted(finished_rounds(folder))
    before = [number for number in rounds if number < new]
    gone_back_from = [number for number in rounds if number > new]
    for old in [*gone_back_from, *before[: 1 - KEPT_ROUNDS]]:
        checkpoint = folder / f"checkpoint_round_{old}.pth"
        checkpoint.with_suffix(".json").unlink()  # first: without it there is no such round
        _residuals_of(checkpoint).unlink(missing_ok=True)
        os.replace(checkpoint, partial)
        if is_in_use(partial):
            partial.unlink()


def _save(trainer: nnUNetTrainer, path: Path) -> None:
    """Write the trainer's checkpoint, over the file that is there."""
    is_nnunets = getattr(type(trainer), "save_checkpoint", None) is nnUNetTrainer.save_checkpoint
    if not is_nnunets or trainer.disable_checkpointing:
        path.unlink(missing_ok=True)
        trainer.save_checkpoint(str(path))
        return
    with path.open("r+b" if path.exists() else "wb") as file:  # of a path, torch would write a new file
        trainer.save_checkpoint(file)
        file.truncate()


def leave_to_round(trainer: nnUNetTrainer) -> None:
    """Let what nnU-Net saves at the end of an epoch, the last of its round, be names of the round's own checkpoint.

    That holds the same, and each is as large as network and optimizer. A trainer that saves in a way of its own goes on
    doing so: its checkpoints may hold something else.
    """
    methods = ("on_epoch_end", "save_checkpoint")
    if all(getattr(type(trainer), name, None) is getattr(nnUNetTrainer, name) for name in methods):
        left: list[Path] = []
        trainer.save_checkpoint = lambda filename: left.append(Path(filename))
        trainer.left_to_round = left


def _take_back(trainer: nnUNetTrainer) -> list[Path]:
    """What :func:`leave_to_round` has left, if it was called; the trainer saves by itself again."""
    left: list[Path] | None = vars(trainer).pop("left_to_round", None)
    if left is not None:
        del trainer.save_checkpoint  # the class has one
    return left or []


def _name_also(checkpoint: Path, path: Path) -> None:
    """Give ``checkpoint`` another name too, as a hard link where the file system has them."""
    link = path.with_name(f"{path.name}.partial")
    link.unlink(missing_ok=True)
    try:
        os.link(checkpoint, link)
    except OSError:
        shutil.copyfile(checkpoint, link)
    os.replace(link, path)


def _data_of(trainer: nnUNetTrainer) -> str:
    """Name of the cache entry trained on, which stands for images, plans and folds."""
    return Path(trainer.preprocessed_dataset_folder_base).parent.name


def finished_rounds(folder: Path) -> dict[int, Path]:
    """Rounds from which training can resume, each with its checkpoint in ``folder``."""
    found = ((ROUND.fullmatch(path.name), path.with_suffix(".pth")) for path in folder.glob("checkpoint_round_*.json"))
    return {int(match[1]): checkpoint for match, checkpoint in found if match and checkpoint.is_file()}


def intact_rounds(folder: Path) -> list[int]:
    """The :func:`finished_rounds` whose files are intact, by the checksums in them."""
    return sorted(finished for finished, checkpoint in finished_rounds(folder).items() if _is_intact(checkpoint))


def _is_intact(checkpoint: Path) -> bool:
    archives = [path for path in (checkpoint, _residuals_of(checkpoint)) if path.is_file()]
    damaged = {path: damage for path in archives if (damage := archive_damage(path)) is not None}
    if not checkpoint.is_file():
        damaged[checkpoint] = "it is missing"
    note = read_note(checkpoint)
    if note is None:
        damaged[checkpoint.with_suffix(".json")] = "its checksum is another"
    elif not damaged and note.get("archive") not in (None, archive_digest(checkpoint)):
        damaged[checkpoint] = "it is of another round"
    elif "beside" in note and not _is_intact(beside := checkpoint.parent / note["beside"]):
        damaged[checkpoint] = f"it belongs to {beside}"
    for path, damage in damaged.items():
        log.warning("%s is damaged (%s); the node goes on from a checkpoint before it", path, damage)
    return not damaged


def read_note(checkpoint: Path) -> dict[str, Any] | None:
    """What is noted of a checkpoint; None where that is damaged."""
    try:
        stored = json.loads(checkpoint.with_suffix(".json").read_text())
        note: dict[str, Any] = stored["note"]
        return note if stored["sha256"] == _digest(note) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(note: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note).encode()).hexdigest()


def _residuals_of(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".npz")


def checkpoint_of(trainer: nnUNetTrainer, server_round: int) -> Path:
    """The checkpoint of a finished round.

    Raises:
        ProtocolError: there is none.
    """
    rounds = finished_rounds(Path(trainer.output_folder))
    if server_round not in rounds:
        raise ProtocolError(
            f"round {server_round} was asked for, but there are checkpoints of {sorted(rounds) or 'no round'} only"
        )
    return rounds[server_round]


def load_round(trainer: nnUNetTrainer, server_round: int) -> dict[str, Any]:
    """Restore an initialised trainer as it was after ``server_round``.

    The file is the node's own (nnU-Net reads it with pickle); nothing received from the network gets here.

    Returns:
        ``reply``, the body that was sent to the server; ``residuals`` and ``layers``, as given to :func:`save_round`;
        and ``random``, for :func:`restore_random_state`.

    Raises:
        ProtocolError: that round has no checkpoint, or a damaged one.
        ConfigError: it was trained on other images, or for other plans.
    """
    checkpoint = checkpoint_of(trainer, server_round)
    state = read_note(checkpoint)
    if state is None:
        raise ProtocolError(f"the checkpoint of round {server_round} is damaged")
    if state["data"] != _data_of(trainer):
        raise ConfigError(
            f"the checkpoint of round {server_round} is of another dataset: images, plans or folds have changed since; "
            "start a new run, in another folder"
        )
    trainer.load_checkpoint(str(checkpoint))
    trainer.current_epoch = state["epochs"]
    return state | {"residuals": _load_residuals(_residuals_of(checkpoint))}


def _load_residuals(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as residuals:
        return dict(residuals)


def save_final(trainer: nnUNetTrainer) -> None:
    """Write ``checkpoint_final.pth`` from the state after the last aggregation, and end the loaders."""
    trainer.on_train_end()
    with plt.rc_context({"savefig.dpi": PROGRESS_DPI}):
        plot_progress(trainer)


def end_loaders(trainer: nnUNetTrainer) -> None:
    """End the background processes of augmentation, as nnU-Net does after training."""
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if isinstance(loader, NonDetMultiThreadedAugmenter | MultiThreadedAugmenter):
            loader._finish()


def read_final(trainer: nnUNetTrainer, fold: Fold) -> dict[str, Any]:
    """Content of a fold's ``checkpoint_final.pth``; ``trainer`` may be on another fold.

    Raises:
        ProtocolError: the fold is not finished.
    """
    path = Path(trainer.output_folder_base) / f"fold_{fold}" / FINAL
    if not path.is_file():
        raise ProtocolError(f"the model of fold {fold} was asked for before the fold was finished")
    with torch.serialization.safe_globals(NUMBERS):
        return torch.load(path, map_location="cpu", weights_only=True)


def random_state() -> dict[str, Any]:
    """States of Python's, numpy's and torch's global generators, for :func:`restore_random_state`."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set Python's, numpy's and torch's global generators to what :func:`random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.tensor(s, dtype=torch.uint8) for s in state["cuda"]])
