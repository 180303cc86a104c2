"""Which cases are labelled when, with what, and what becomes of it in training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.config.task import TaskConfig
from fednnunet.datasets.raw import read_dataset
from fednnunet.errors import ConfigError
from fednnunet.evaluation.predict import NotFiniteError, Predictor
from fednnunet.training import trainer as trainer_module
from fednnunet.training.checkpoint import random_state
from fednnunet.training.partial_labels import use_partial_labels
from fednnunet.training.pseudo_labels import PseudoLabels, Turns, pseudo_labels_of, segmented
from tests.conftest import write_boxes
from tests.support.raw_datasets import change_description
from tests.support.small_trainers import small_trainers

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}
UNKNOWN = 4
"""Value where nothing is known; what a network takes for another label has that much more than its value."""
Build = Callable[..., nnUNetTrainer]


class OwnCases(nnUNetTrainer):
    def get_dataloaders(self) -> tuple[Iterator[None], Iterator[None]]:
        return itertools.repeat(None), itertools.repeat(None)


@pytest.fixture(scope="module")
def build_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    root = tmp_path_factory.mktemp("pseudo")
    folder = write_boxes(root / "raw", shape=(12, 40, 40))
    change_description(folder, labels=LABELS)
    dataset = read_dataset(folder, "A")
    with small_trainers(root, dataset) as build:
        yield lambda configuration, name: build(
            configuration, 0, {**dataset.dataset_json, "labels": LABELS, "annotated": ["liver"]}, name
        )


@pytest.fixture
def build(build_in: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds a node's trainer of 40 epochs, started, with the share of its computation that labelling may take."""

    def make(share: float = 1.0, configuration: str = "2d", name: str = "nnUNetTrainer") -> nnUNetTrainer:
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        trainer = build_in(configuration, name)
        trainer.num_epochs, trainer.num_iterations_per_epoch = 40, 20
        use_partial_labels(trainer, TaskConfig(labels="union", pseudo_labels=share))
        trainer.on_train_start()
        trainer.network.train()
        return trainer

    return make


def labels_of(trainer: nnUNetTrainer) -> PseudoLabels:
    found = pseudo_labels_of(trainer)
    assert found is not None
    return found


def written(trainer: nnUNetTrainer) -> dict[str, bytes]:
    folder = labels_of(trainer).files.folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.b2nd"))}


def train_to(trainer: nnUNetTrainer, *epochs: int) -> list[list[str]]:
    """Begin these epochs, each with other weights; returns what each has labelled."""
    found = []
    for epoch in epochs:
        before = set(written(trainer))
        trainer.current_epoch = epoch
        torch.manual_seed(epoch)
        for parameter in trainer.network.parameters():
            torch.nn.init.normal_(parameter, std=1.0)
        labels_of(trainer).update()
        found.append(sorted(set(written(trainer)) - before))
    return found


def test_cases_have_their_turns_one_after_another_when_there_is_time_for_all_their_patches() -> None:
    turns = Turns({"a": 2, "b": 5, "c": 1}, 2.5)
    # Patches that there is time for: 2.5, 5, 7.5, 10, 12.5, 15; turns end after 2, 7, 8, 10, 15 and 16 patches.
    assert [turns.cases(epoch, epoch + 1) for epoch in range(6)] == [["a"], [], ["b"], ["c", "a"], [], ["b"]]
    assert turns.cases(0, 4) == ["a", "b", "c", "a"][-3:], "each once, where epochs were missed"
    assert Turns({"a": 9}, 0.5).cases(0, 17) == []


def test_the_edge_of_an_image_that_would_take_as_many_patches_as_all_else_is_left_out() -> None:
    whole = (slice(0, 5), slice(0, 60), slice(0, 31))
    assert segmented((5, 60, 31), (32, 32)) == whole, "slices are labelled all"
    assert segmented((5, 33, 36), (32, 32)) == (slice(0, 5), slice(0, 32), slice(2, 34))
    assert segmented((9, 34, 37), (8, 32, 32)) == (slice(0, 8), slice(1, 33), slice(0, 37))


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_case_gets_what_nnunets_predictor_sees_of_unannotated_labels(build: Build, configuration: str) -> None:
    trainer = build(1.0, configuration)
    before = random_state()
    train_to(trainer, 20)
    torch.manual_seed(20)
    network, cases = trainer.network, trainer.do_split()[0]
    assert network.training
    assert isinstance(network(torch.zeros(2, 1, *trainer.configuration_manager.patch_size)), list)
    after = random_state()
    for name in ("python", "numpy"):
        assert after[name] == before[name]
    trainer.inference_allowed_mirroring_axes = None
    predictor = Predictor.of_trainer(trainer)
    seen = set()
    for case in cases:
        image = trainer.dataset_class(trainer.preprocessed_dataset_folder, [case]).load_case(case)[0]
        logits = predictor.logits(image[:]).numpy()
        rest = np.array([0, UNKNOWN + 2, UNKNOWN + 3])[logits[[0, 2, 3]].argmax(0)]
        found = labels_of(trainer).files.newest(case)
        assert found is not None
        expected = np.where(logits[1] >= logits[[0, 2, 3]].max(0), UNKNOWN, rest)
        assert np.mean(found[0] == expected) > 0.99, "nnU-Net's logits are of half precision"
        seen |= set(expected.flat)
    assert len(seen) > 2, "background alone would show little"


def test_what_has_been_labelled_is_trained_on_and_not_validated(build: Build) -> None:
    trainer = build(1.0)
    train_to(trainer, 20)
    values = []
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        batches = [next(loader)["target"] for _ in range(4)]
        values.append({int(value) for target in batches for scale in target for value in scale.unique()})
    assert values[1] <= {0, 1}
    assert values[0] & {UNKNOWN + 2, UNKNOWN + 3}
    assert 1 in values[0], "what is drawn stays"


def test_nothing_is_labelled_before_the_network_can_know_anything_and_then_more_and_more_of_it_counts(
    build: Build,
) -> None:
    trainer, weights = build(1.0), []
    cases = len(trainer.do_split()[0])
    assert [len(one) for one in train_to(trainer, 0, 5)] == [0, 0]
    for epoch in (6, 10, 20, 39):
        assert len(train_to(trainer, epoch)[0]) == cases
        weights.append(trainer.loss.loss.pseudo_weight)
    assert weights == [0.15, 0.25, 0.5, 0.975]


def test_labelling_takes_its_share_of_the_patches_that_are_trained_on(build: Build) -> None:
    trainer = build(0.0152)
    slices = dict.fromkeys(trainer.do_split()[0], 12)  # each is one patch
    labelled = sum(map(len, train_to(trainer, *range(40))))
    patches = 34 * trainer.num_iterations_per_epoch * trainer.batch_size
    assert labelled == int(0.0152 * 3 * patches / 12)
    assert labelled > len(slices)
    assert labels_of(trainer).turns_in_all_epochs == labelled / len(slices)


def test_a_training_that_resumes_or_goes_back_labels_the_same_cases_again(build: Build) -> None:
    trainer = build(0.02)
    train_to(trainer, *range(20))
    at_twenty = written(trainer)
    train_to(trainer, 20, 21, 22)
    after = written(trainer)
    later = set(after) - set(at_twenty)
    assert later
    for name in later:  # of a round that is trained again: what it reads must not be these
        (labels_of(trainer).files.folder / name).write_bytes(b"")
    resumed = build(0.02)
    train_to(resumed, 20, 21, 22)
    assert written(resumed) == after
    from_the_start = build(0.02)
    train_to(from_the_start, *range(20))
    assert written(from_the_start) == at_twenty


def test_the_other_processes_of_a_node_read_what_one_writes(build: Build) -> None:
    trainer = build(1.0)
    trainer.local_rank = 1
    assert train_to(trainer, 20) == [[]]
    assert trainer.loss.loss.pseudo_weight == 0.5


def test_a_model_of_the_nodes_own_reads_what_teaches_the_shared_one(build: Build) -> None:
    shared, own = build(1.0), build(1.0)
    train_to(shared, 15)
    labels_of(own).learn_from(labels_of(shared))
    assert labels_of(own).files is labels_of(shared).files
    assert own.loss.loss.pseudo_weight == 0.375


def test_all_cases_are_labelled_anew_for_a_training_that_begins_with_a_network_which_knows(build: Build) -> None:
    trainer = build(0.001)
    train_to(trainer, 30)
    labels_of(trainer).label_all()
    assert set(written(trainer)) == {f"{case}/000000.b2nd" for case in trainer.do_split()[0]}
    assert trainer.loss.loss.pseudo_weight == 1.0


def test_a_network_whose_output_is_not_finite_labels_nothing(build: Build) -> None:
    trainer = build(1.0)
    trainer.current_epoch = 20
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(torch.nan)
    with pytest.raises(NotFiniteError):
        labels_of(trainer).update()
    assert written(trainer) == {}


def test_a_trainer_that_loads_cases_in_its_own_way_is_refused(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "find_trainer", lambda name: OwnCases)
    trainer = build(name="OwnCases")
    text = r"^task\.pseudo_labels: trainer\.class=OwnCases does not load its cases by .*; set it to 0$"
    with pytest.raises(ConfigError, match=text):
        labels_of(trainer).update()
