"""Digests of what a decision was about: they notice other weights and scores, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from fednnunet.errors import DataError
from fednnunet.models.fold_digests import check_folds, digest_folds

ONE, TWO = {"network_weights": {"a": torch.zeros(1000)}}, {"network_weights": {"a": torch.zeros(1000)}}
TWO["network_weights"]["a"][500] = 1e-6


def write_fold(model: Path, checkpoint: object, scores: str = "{}", archive: bool = True) -> Path:
    (model / "fold_0" / "validation").mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth", _use_new_zipfile_serialization=archive)
    (model / "fold_0" / "validation" / "summary.json").write_text(scores)
    return model


@pytest.mark.parametrize("archive", [True, False])
def test_other_weights_or_scores_have_another_digest(tmp_path: Path, archive: bool) -> None:
    digests = [
        digest_folds(write_fold(tmp_path / str(number), *content, archive=archive), ["0"])["0"]
        for number, content in enumerate([(ONE,), (TWO,), (ONE, "[]"), (ONE,)])
    ]
    assert len(set(digests[:3])) == 3
    assert digests[3] == digests[0]


def test_copies_and_times_are_no_change(tmp_path: Path) -> None:
    model = write_fold(tmp_path / "a", ONE)
    before = digest_folds(model, ["0"])
    shutil.copytree(model, tmp_path / "b")
    os.utime(tmp_path / "b" / "fold_0" / "checkpoint_final.pth", (0, 0))
    assert digest_folds(tmp_path / "b", ["0"]) == before
    check_folds(tmp_path / "b", ["0"], before, again="again")


def test_what_is_not_what_was_decided_on_is_one_line(tmp_path: Path) -> None:
    model = write_fold(tmp_path / "a", ONE)
    before = digest_folds(model, ["0"])
    write_fold(model, TWO)
    with pytest.raises(DataError, match="of fold 0 have changed since it was decided on; decide again: fednnunet"):
        check_folds(model, ["0"], before, again="fednnunet select")
    with pytest.raises(DataError, match="fold 0 was no part of the decision; leave it out"):
        check_folds(model, ["0"], {"1": before["0"]}, again="fednnunet select")
    (model / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(DataError, match="fold_0 cannot be read: No such file"):
        check_folds(model, ["0"], before, again="fednnunet select")
