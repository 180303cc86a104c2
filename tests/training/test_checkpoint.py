"""Files of a finished round: which are kept, and which are known to be damaged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import TrainRequest
from fednnunet.node.rounds import OpenRound, save_with_round
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


def test_content_of_another_round_is_noticed(trainer: Any, tmp_path: Path) -> None:
    train(trainer, 1, 2, 3)
    (tmp_path / "checkpoint_round_3.pth").write_bytes((tmp_path / "checkpoint_round_1.pth").read_bytes())
    assert intact_rounds(tmp_path) == [1, 2], "a power failure can leave what was overwritten, and it is sound"


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


@pytest.fixture
def nnunets(tmp_path: Path) -> Any:
    """nnU-Net's own trainer."""
    return at_the_end_of_an_epoch(tmp_path / "nnunets")


def train_nnunets(trainer: Any, *rounds: int) -> Path:
    """The folder, after these rounds; the weights are the number of the round."""
    for server_round in rounds:
        trainer.current_epoch = server_round
        nn.init.constant_(trainer.network.weight, server_round)
        save_round(trainer, {"server_round": server_round}, {})
    return Path(trainer.output_folder)


def inode(folder: Path, server_round: int) -> int:
    return (folder / f"checkpoint_round_{server_round}.pth").stat().st_ino


def weight_in(file: Any) -> float:
    return float(torch.load(file, weights_only=True)["network_weights"]["weight"][0, 0])


def test_a_checkpoint_overwrites_the_one_that_falls_out(nnunets: Any) -> None:
    folder = train_nnunets(nnunets, 1, 2, 3)
    first = inode(folder, 1)
    with (folder / "checkpoint_round_1.pth").open("ab") as file:
        file.write(b"longer" * 1000)
    train_nnunets(nnunets, 4)
    assert inode(folder, 4) == first
    assert intact_rounds(folder) == [2, 3, 4]
    assert weight_in(folder / "checkpoint_round_4.pth") == 4
    assert inode(folder, 4) == (folder / "checkpoint_latest.pth").stat().st_ino


@pytest.mark.parametrize("use", ["another name", "a reader"])
def test_a_checkpoint_in_use_is_not_overwritten(nnunets: Any, use: str) -> None:
    folder = train_nnunets(nnunets, 1, 2, 3)
    checkpoint = folder / "checkpoint_round_1.pth"
    with checkpoint.open("rb") as reader:
        if use == "another name":
            (folder / "checkpoint_best.pth").hardlink_to(checkpoint)
            reader.close()
        train_nnunets(nnunets, 4)
        assert weight_in(folder / "checkpoint_best.pth" if reader.closed else reader) == 1
    assert intact_rounds(folder) == [2, 3, 4]


@pytest.mark.parametrize("written", [0, 100, 10_000])
def test_two_rounds_are_whole_while_the_next_is_written(nnunets: Any, monkeypatch: Any, written: int) -> None:
    folder = train_nnunets(nnunets, 1, 2, 3)
    whole: list[list[int]] = []
    save = torch.save

    def save_in_part(checkpoint: Any, file: Any) -> None:
        file.write(b"\0" * written)
        file.flush()
        whole.append(intact_rounds(folder))  # what a worker finds that is started after this one was killed
        file.seek(0)
        save(checkpoint, file)

    monkeypatch.setattr(torch, "save", save_in_part)
    train_nnunets(nnunets, 4)
    assert whole == [[2, 3]]
    assert intact_rounds(folder) == [2, 3, 4]


def test_what_a_killed_worker_left_is_overwritten(nnunets: Any) -> None:
    folder = train_nnunets(nnunets, 1, 2)
    (folder / "checkpoint_round.partial").write_bytes(b"half of one" * 10_000)
    train_nnunets(nnunets, 3)
    assert intact_rounds(folder) == [1, 2, 3]
    assert not list(folder.glob("*.partial"))


class SavesItself(nnUNetTrainer):
    """A trainer that has its own end of an epoch."""

    def on_epoch_end(self) -> None:
        """As nnU-Net's."""
        super().on_epoch_end()


def at_the_end_of_an_epoch(folder: Path, trainer_class: type[nnUNetTrainer] = nnUNetTrainer) -> Any:
    """nnU-Net's trainer in its third epoch of five, which is the best so far; it has trained a step."""
    folder.mkdir()
    torch.manual_seed(0)
    network = nn.Linear(50, 50)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 50)).sum().backward()
    optimizer.step()
    values = {"dice_per_class_or_region": [0.5], "ema_fg_dice": 0.5}
    logger = SimpleNamespace(
        log=lambda *_: None,
        get_value=lambda name, step: values.get(name, 1.0),
        get_checkpoint=lambda: {"ema_fg_dice": [0.1, 0.2, 0.5]},
        plot_progress_png=lambda folder: None,
    )
    trainer = object.__new__(trainer_class)
    vars(trainer).update(
        network=network, optimizer=optimizer, logger=logger, grad_scaler=None, output_folder=str(folder), _best_ema=0.2,
        local_rank=0, disable_checkpointing=False, is_ddp=False, current_epoch=2, num_epochs=5, save_every=3,
        my_init_kwargs={}, inference_allowed_mirroring_axes=(0, 1), print_to_log_file=lambda *_: None,
        preprocessed_dataset_folder_base="/cache/key/Dataset001",
    )  # fmt: skip
    return trainer


def open_round(epochs_left: int) -> OpenRound:
    request: Any = None
    return OpenRound(request, TrainRequest(server_round=3, epochs=2, layers=[]), epochs_left)


def test_what_nnunet_saves_after_the_last_epoch_of_a_round_is_the_rounds_checkpoint(tmp_path: Path) -> None:
    alone, federated = at_the_end_of_an_epoch(tmp_path / "alone"), at_the_end_of_an_epoch(tmp_path / "federated")
    alone.on_epoch_end()
    save_with_round(federated, open_round(1))
    federated.on_epoch_end()
    save_round(federated, {"server_round": 3}, {})
    for name in ("checkpoint_best.pth", "checkpoint_latest.pth"):
        assert (tmp_path / "federated" / name).samefile(tmp_path / "federated" / "checkpoint_round_3.pth")
    theirs, ours = (
        torch.load(tmp_path / name / "checkpoint_best.pth", weights_only=True) for name in ("alone", "federated")
    )
    assert ours.pop("trainer_name") == theirs.pop("trainer_name")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    federated.save_checkpoint(str(tmp_path / "again.pth"))
    assert (tmp_path / "again.pth").is_file(), "it saves by itself again"


@pytest.mark.parametrize(("epochs_left", "trainer_class"), [(2, nnUNetTrainer), (1, SavesItself)])
def test_an_epoch_within_a_round_and_a_trainer_of_its_own_save_at_once(
    tmp_path: Path, epochs_left: int, trainer_class: type[nnUNetTrainer]
) -> None:
    trainer = at_the_end_of_an_epoch(tmp_path / "node", trainer_class)
    save_with_round(trainer, open_round(epochs_left))
    trainer.on_epoch_end()
    assert torch.load(tmp_path / "node" / "checkpoint_best.pth", weights_only=True)["current_epoch"] == 3


def test_the_last_epoch_of_training_ends_a_round_that_is_cut_short(tmp_path: Path) -> None:
    trainer = at_the_end_of_an_epoch(tmp_path / "node")
    trainer.current_epoch = 4
    save_with_round(trainer, open_round(2))
    trainer.on_epoch_end()
    assert not list((tmp_path / "node").iterdir())
    save_round(trainer, {"server_round": 3}, {})
    assert (tmp_path / "node" / "checkpoint_best.pth").is_file()
