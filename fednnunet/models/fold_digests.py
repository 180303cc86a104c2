"""Which folds of a model a decision was about: digests that are written with it, and compared when it is followed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fednnunet.errors import DataError
from fednnunet.files import archive_digest
from fednnunet.training.final_checkpoint import FINAL

SUMMARY = Path("validation") / "summary.json"
"""In a fold's folder: nnU-Net's scores of its held-out cases."""
FoldDigests = dict[
    Annotated[str, Field(pattern=r"^(\d{1,3}|all)$")],
    Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")],
]
"""Fold to SHA-256, as :func:`digest_folds` makes it."""


def digest_folds(model: Path, folds: Sequence[str]) -> FoldDigests:
    """Fold to SHA-256 of its final checkpoint and of the scores of its held-out cases.

    Of a checkpoint in torch's archive, names, lengths and CRC-32 of its parts are digested, which are read in
    milliseconds: enough to notice another training, not to notice a forger.

    Args:
        model: folder of the model.
        folds: finished folds.

    Raises:
        DataError: a file cannot be read.
    """
    return {fold: _digest(model / f"fold_{fold}") for fold in folds}


def check_folds(model: Path, folds: Sequence[str], *decided: Mapping[str, str], again: str) -> None:
    """Check that folds of a model are those that a decision was about.

    Args:
        model: folder of the model.
        folds: folds to use.
        decided: digests of models, of which this must be one.
        again: command that decides.

    Raises:
        DataError: one was not part of the decision, or has changed since.
    """
    now = digest_folds(model, folds)
    for fold in folds:
        known = [digests[fold] for digests in decided if fold in digests]
        if not known:
            raise DataError(f"{model}: fold {fold} was no part of the decision; leave it out, or decide again: {again}")
        if now[fold] not in known:
            raise DataError(
                f"{model}: checkpoint or held-out scores of fold {fold} have changed since it was decided on; decide "
                f"again: {again}"
            )


def _digest(fold: Path) -> str:
    checkpoint, scores = fold / FINAL, fold / SUMMARY
    digest = hashlib.sha256()
    try:
        if (content := archive_digest(checkpoint)) is None:  # torch's older format
            with checkpoint.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(content.encode())
        digest.update(scores.read_bytes() if scores.is_file() else b"")
    except OSError as error:
        raise DataError(f"{fold} cannot be read: {error.strerror}") from None
    return digest.hexdigest()
