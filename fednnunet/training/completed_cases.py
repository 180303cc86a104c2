"""Label maps of training cases, completed with pseudo-labels where a node has annotated nothing.

A pseudo-label is another value than the label itself, so that a loss can tell what somebody has drawn from what a
network has seen. Where neither has said anything, there is a value for that; 0 is background.
"""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from fednnunet.files import write_bytes
from fednnunet.training.checkpoint import KEPT_ROUNDS

log = logging.getLogger(__name__)

SMALL = 2**18
"""Bytes of a map up to which reading a patch out of compressed memory would take longer than is worth it."""


class PseudoLabelFiles:
    """Maps of pseudo-labels on the grids of preprocessed cases, compressed: ``CASE/EPOCH.b2nd``.

    A process holds the newest map of each case in its memory; a large one as compressed as in the file.

    Args:
        folder: may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._newest: dict[str, tuple[str, np.ndarray | blosc2.NDArray | None]] = {}

    def write(self, case: str, epoch: int, values: np.ndarray) -> None:
        """Write the map of a case; it keeps one for each checkpoint of a round that training may go on from.

        Args:
            case: identifier of the case.
            epoch: in which it is made; no later one has a map.
            values: (1, Z, Y, X).
        """
        write_bytes(self.folder / case / f"{epoch:06d}.b2nd", blosc2.asarray(values, contiguous=True).to_cframe())
        for old in sorted((self.folder / case).glob("*.b2nd"))[:-KEPT_ROUNDS]:
            old.unlink()

    def newest(self, case: str) -> np.ndarray | blosc2.NDArray | None:
        """The newest map of a case, as in :meth:`write`; None where it has none, or a damaged one."""
        try:
            name = max(name for name in os.listdir(f"{self.folder}/{case}") if name.endswith(".b2nd"))
        except (FileNotFoundError, ValueError):
            return None
        known = self._newest.get(case)
        if known is None or known[0] != name:
            known = self._newest[case] = (name, _read(self.folder / case / name))
        return known[1]

    def remove_from(self, epoch: int) -> int | None:
        """Remove maps of this epoch and of later ones; returns the epoch of the newest that is left, if any."""
        left = []
        for path in self.folder.glob("*/*.b2nd"):
            if int(path.stem) < epoch:
                left.append(int(path.stem))
            else:
                path.unlink()
        self._newest.clear()
        return max(left, default=None)

    def remove(self) -> None:
        """Remove all maps."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._newest.clear()


def _read(path: Path) -> np.ndarray | blosc2.NDArray | None:
    try:
        values = blosc2.ndarray_from_cframe(path.read_bytes(), copy=True)
    except RuntimeError as error:
        log.warning("%s is damaged (%s); its case is trained on without pseudo-labels until its next turn", path, error)
        return None
    return values if values.nbytes > SMALL else values[:]


class CompletedLabels(np.ndarray):
    """A label map (1, Z, Y, X) that is read, and completed, where it is indexed.

    Patches are cut out of Blosc2's arrays or numpy's (acvl_utils' ``crop_and_pad_nd``), nothing else: so this is one of
    numpy's, without memory of its own.
    """

    drawn: Any
    pseudo: Any

    @classmethod
    def of(cls, drawn: Any, pseudo: Any) -> CompletedLabels:
        """``drawn`` with ``pseudo``, of the same shape, where it is 0."""
        made = np.broadcast_to(np.zeros((), drawn.dtype), drawn.shape).view(cls)
        made.drawn, made.pseudo = drawn, pseudo
        return made

    def __getitem__(self, index: Any) -> np.ndarray:
        drawn = np.asarray(self.drawn[index])
        return np.where(drawn == 0, self.pseudo[index], drawn)


def complete_cases(dataset: nnUNetBaseDataset, files: PseudoLabelFiles, unknown: int) -> None:
    """Let label maps that ``dataset`` loads from now on be completed: with ``unknown`` until their case is labelled."""
    dataset.load_case = partial(_load_completed, dataset, files, np.int16(unknown))


def _load_completed(
    dataset: nnUNetBaseDataset, files: PseudoLabelFiles, unknown: np.int16, identifier: str
) -> tuple[Any, ...]:
    image, drawn, previous, properties = type(dataset).load_case(dataset, identifier)
    pseudo = files.newest(identifier)
    completed = CompletedLabels.of(drawn, np.broadcast_to(unknown, drawn.shape) if pseudo is None else pseudo)
    return image, completed, previous, properties
