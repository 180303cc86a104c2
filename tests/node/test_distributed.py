"""Processes of one node: what they are told between two epochs."""

from __future__ import annotations

from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fednnunet.node import distributed
from fednnunet.node.distributed import Ranks, _Rank


def test_every_process_is_taught_by_what_the_node_received(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("share_state", "skip_epochs"):
        monkeypatch.setattr(distributed, name, lambda *_: None)
    settings: Any = SimpleNamespace(config=SimpleNamespace(compute=SimpleNamespace(num_devices=1)))
    ours, theirs = Pipe()
    ranks = Ranks(settings, torch.device("cpu"))
    ranks._connections.append(ours)
    rank, kept = _Rank(settings, 1, torch.device("cpu"), theirs), []
    for epoch, is_taught in enumerate((True, False, True)):
        module: Any = SimpleNamespace(
            network=None, nnunet=None, update_pseudo_labels=lambda epoch=epoch: kept.append(epoch)
        )
        ranks.start_epoch(module.network, epoch, first=False, is_taught=is_taught)
        assert rank.end_epoch(module)
        rank.start_epoch(module)
    assert kept == [0, 2]
