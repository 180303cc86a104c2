"""Checkpoints: nnU-Net's own files, plus what an exact resume needs beside them.

``checkpoint_latest.pth`` is written after every round, before the round's state leaves the node: it holds
what is sent. A round that the server asks for again after a crash is answered from it.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.errors import ProtocolError
from fednnunet.training.build import plot_progress

LATEST = "checkpoint_latest.pth"
PREVIOUS = "checkpoint_previous.pth"
ROUND = "{}.round.json"


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``; a reader sees the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def save_round(trainer: nnUNetTrainer, reply: dict[str, Any]) -> None:
    """Write ``checkpoint_latest.pth`` for the epoch just finished; the one before stays as ``_previous``.

    Args:
        trainer: after its ``on_epoch_end`` (``current_epoch`` counts finished epochs).
        reply: body of the :class:`~fednnunet.exchange.messages.TrainReply` of the round.
    """
    folder = Path(trainer.output_folder)
    partial = folder / f"{LATEST}.partial"
    trainer.current_epoch -= 1  # nnU-Net saves before it counts the epoch
    try:
        trainer.save_checkpoint(str(partial))
    finally:
        trainer.current_epoch += 1
    # The .json goes last: where it is, its checkpoint is whole.
    for name in (LATEST, ROUND.format(LATEST)):
        if (folder / name).exists():
            os.replace(folder / name, folder / name.replace(LATEST, PREVIOUS))
    os.replace(partial, folder / LATEST)
    write_atomically(folder / ROUND.format(LATEST), json.dumps({"reply": reply, "random": _random_state()}))


def finished_rounds(folder: Path) -> dict[int, Path]:
    """Rounds that can be gone on from, each with its checkpoint in ``folder``."""
    rounds = {}
    for name in (PREVIOUS, LATEST):
        state, checkpoint = folder / ROUND.format(name), folder / name
        if state.is_file() and checkpoint.is_file():
            rounds[int(json.loads(state.read_text())["reply"]["server_round"])] = checkpoint
    return rounds


def load_round(trainer: nnUNetTrainer, server_round: int) -> dict[str, Any]:
    """Restore an initialised trainer as it was after ``server_round``.

    The file is the node's own (nnU-Net reads it with pickle); nothing from the network gets here.

    Returns:
        ``reply``, the body that the server was sent then, and ``random``, for :func:`restore_random_state`.

    Raises:
        ProtocolError: there is no checkpoint of that round.
    """
    rounds = finished_rounds(Path(trainer.output_folder))
    if server_round not in rounds:
        raise ProtocolError(
            f"round {server_round} was asked for, but there are checkpoints of {sorted(rounds) or 'no round'} only"
        )
    checkpoint = rounds[server_round]
    trainer.load_checkpoint(str(checkpoint))
    trainer.current_epoch = server_round
    state: dict[str, Any] = json.loads(checkpoint.with_name(ROUND.format(checkpoint.name)).read_text())
    return state


def save_final(trainer: nnUNetTrainer) -> Path:
    """Write ``checkpoint_final.pth`` from the state after the last aggregation, end the loaders.

    nnU-Net removes its latest checkpoint here. It is kept until the run is over:
    that is when every node has been scored.
    """
    folder = Path(trainer.output_folder)
    latest, kept = folder / LATEST, folder / f"{LATEST}.kept"
    if latest.exists():
        os.replace(latest, kept)
    trainer.on_train_end()
    if kept.exists():
        os.replace(kept, latest)
    plot_progress(trainer)
    return folder / "checkpoint_final.pth"


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set Python's, numpy's and torch's global generators to what :func:`save_latest` stored."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.tensor(s, dtype=torch.uint8) for s in state["cuda"]])
