"""Files of a finished round: which are kept, and which are known to be damaged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fednnunet.errors import ProtocolError
from fednnunet.training.checkpoint import finished_rounds, intact_rounds, load_round, save_round


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """Of a network whose weights are the number of the epoch."""
    base = "/cache/key/Dataset001"
    trainer = SimpleNamespace(
        output_folder=str(tmp_path), current_epoch=0, preprocessed_dataset_folder_base=base, weight=0.0
    )

    def load(path: str) -> None:
        trainer.weight = float(torch.load(path, weights_only=True)["weights"][0])

    trainer.save_checkpoint = lambda path: torch.save({"weights": torch.full((5000,), trainer.weight)}, path)
    trainer.load_checkpoint = load
    return trainer


def train(trainer: Any, *rounds: int) -> None:
    for server_round in rounds:
        trainer.current_epoch, trainer.weight = server_round, float(server_round)
        save_round(trainer, {"server_round": server_round}, {"layer": np.ones(3, dtype=np.float32)}, ["layer"])


def test_the_last_three_rounds_are_kept(trainer: Any, tmp_path: Path) -> None:
    train(trainer, 1, 2, 3, 4)
    assert intact_rounds(tmp_path) == [2, 3, 4]
    assert len(list(tmp_path.iterdir())) == 3 * 3 + 1, "each with its rounding errors; and nnU-Net's name for the last"


def test_rounds_that_were_gone_back_from_are_removed(trainer: Any, tmp_path: Path) -> None:
    train(trainer, 1, 2, 3, 4)
    train(trainer, 3)
    assert sorted(finished_rounds(tmp_path)) == [2, 3]
    train(trainer, 1)
    assert sorted(finished_rounds(tmp_path)) == [1], "the server began anew"
    trainer.weight = 0.0
    assert load_round(trainer, 1)["reply"] == {"server_round": 1}
    assert load_round(trainer, 1)["layers"] == ["layer"]
    assert trainer.weight == 1


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".json"])
@pytest.mark.parametrize("damage", ["a bit flipped", "the end missing"])
def test_damage_of_any_file_is_noticed(trainer: Any, tmp_path: Path, suffix: str, damage: str) -> None:
    train(trainer, 1, 2)
    path = tmp_path / f"checkpoint_round_2{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "a bit flipped" else content[: len(content) // 2])
    assert intact_rounds(tmp_path) == [1]
    assert load_round(trainer, 1)["epochs"] == 1
    if suffix == ".json":
        with pytest.raises(ProtocolError, match="the checkpoint of round 2 is damaged"):
            load_round(trainer, 2)


@pytest.mark.parametrize("damage", ["a bit flipped", "missing"])
def test_a_round_is_as_sound_as_the_checkpoint_of_the_network_beside_it(
    trainer: Any, tmp_path: Path, damage: str
) -> None:
    own = SimpleNamespace(**{**vars(trainer), "output_folder": str(tmp_path / "own")})
    (tmp_path / "own").mkdir()
    for server_round in (1, 2):
        own.current_epoch = trainer.current_epoch = server_round
        beside = save_round(own, {"server_round": server_round}, {})
        save_round(trainer, {"server_round": server_round}, {}, beside=beside)
    assert intact_rounds(tmp_path) == [1, 2]
    content = bytearray(beside.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        beside.unlink()
    else:
        beside.write_bytes(content)
    assert intact_rounds(tmp_path) == [1]
