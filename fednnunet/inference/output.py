"""The folder of segmentations: whole files at any moment, and what nnU-Net's tools look for beside them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fednnunet.datasets.file_integrity import check_written
from fednnunet.errors import ConfigError, one_line
from fednnunet.files import write_atomically
from fednnunet.lock import LOCK_FILE, locked
from fednnunet.models.fold_digests import SUMMARY

RECORD = "predict.json"
"""What the segmentations of a folder were made with."""
IMAGES = "images"
"""Its field with a fingerprint of each case's files: one name may stand for other images."""
OF_SERIES = (".dcm",)
"""Endings of what is written of DICOM series, too."""
SOFTMAX = (".npz", ".pkl")
"""Endings of what is kept of probabilities."""


@dataclass(frozen=True)
class Segmented:
    """A case that is to be written.

    Attributes:
        name: of the case.
        labels: label values (Z, Y, X).
        properties: of nnU-Net's reader and preprocessing.
        probabilities: (classes, Z, Y, X), where they are to be kept.
        write_more: writes further files beside the segmentation, whose path it is given.
    """

    name: str
    labels: np.ndarray
    properties: dict[str, Any]
    probabilities: np.ndarray | None = None
    write_more: Callable[[Path], None] | None = None


class OutputFolder:
    """A folder of segmentations of one model with one choice of options.

    Args:
        path: the folder; it is made where it is not there.
        ending: of segmentations.
        probabilities: whether softmax outputs are kept, too.
        more: endings of further files of each case.
    """

    def __init__(self, path: Path, ending: str, probabilities: bool, more: Sequence[str] = ()) -> None:
        self.path = path
        self.ending = ending
        self.probabilities = probabilities
        self.endings = (ending, *SOFTMAX * probabilities, *more)

    @contextlib.contextmanager
    def opened(
        self, record: Mapping[str, Any], beside: Mapping[str, Any], images: Mapping[str, str], overwrite: bool
    ) -> Iterator[None]:
        """The folder, for this process alone; what an interrupted process has left unfinished is removed.

        Args:
            record: what segmentations are made with; where others are there, of the same.
            beside: name to content of JSON files that nnU-Net's tools look for.
            images: name to fingerprint of the files of each case that can be segmented.
            overwrite: whether segmentations of these cases are removed first.

        Raises:
            ConfigError: the folder cannot be written, is in use, or holds something else: segmentations made with other
                models or of other images, or a model. Nothing is changed then.
        """
        with contextlib.ExitStack() as stack:
            with self._writable():
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.path))
                stack.callback((self.path / LOCK_FILE).unlink, missing_ok=True)
                known = self._check_record(record, beside, images, overwrite)
                if overwrite:
                    for name in images:
                        self._remove_case(name)
                for left in self.path.glob(".partial_*"):
                    _remove(left)
                whole = {**record, IMAGES: {**known, **images}}
                write_atomically(self.path / RECORD, json.dumps(whole, indent=2) + "\n")
                for name, content in beside.items():
                    write_atomically(self.path / name, json.dumps(content, indent=4) + "\n")
            yield

    def _remove_case(self, name: str) -> None:
        """Remove all files of a case: what another model left beside its segmentation would be taken for this one's."""
        for ending in dict.fromkeys((self.ending, *self.endings, *SOFTMAX, *OF_SERIES)):
            (self.path / f"{name}{ending}").unlink(missing_ok=True)

    def is_done(self, name: str) -> bool:
        """Whether all files of a case are there. They appear whole, the segmentation last."""
        return all(_has_content(self.path / f"{name}{ending}") for ending in self.endings)

    def write(self, segmented: Segmented, writer: Any) -> None:
        """Write the files of a case, as nnU-Net does.

        Args:
            segmented: the case.
            writer: nnU-Net's reader and writer of the model.

        Raises:
            ConfigError: the folder cannot be written.
        """
        with self._writable():
            partial = Path(tempfile.mkdtemp(prefix=".partial_", dir=self.path))
            try:
                last = f"{segmented.name}{self.ending}"
                writer.write_seg(segmented.labels, str(partial / last), segmented.properties)
                check_written(partial / last)
                if segmented.probabilities is not None:
                    np.savez_compressed(partial / f"{segmented.name}.npz", probabilities=segmented.probabilities)
                    with (partial / f"{segmented.name}.pkl").open("wb") as file:
                        pickle.dump(segmented.properties, file)
                if segmented.write_more is not None:
                    segmented.write_more(partial / last)
                for path in sorted(partial.iterdir(), key=lambda path: path.name == last):
                    os.replace(path, self.path / path.name)
            finally:
                _remove(partial)

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{self.path} is, or lies below, a file; give a folder for segmentations") from None
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of SimpleITK's
            lines = str(error).strip().splitlines() or [type(error).__name__]
            cause = error.strerror if isinstance(error, OSError) and error.strerror else lines[-1]
            raise ConfigError(f"{self.path} cannot be written: {one_line(cause)}") from error

    def _check_record(
        self, record: Mapping[str, Any], beside: Mapping[str, Any], images: Mapping[str, str], overwrite: bool
    ) -> dict[str, Any]:
        """Refuse a folder with segmentations that were made with something else, or nobody knows with what.

        Returns:
            Fingerprints of the images of other cases, whose segmentations stay.
        """
        advice = "give another folder" + ", or --overwrite" * (not overwrite)
        try:
            found = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            # nnU-Net's summary.json lies beside the segmentations of a fold's held-out cases.
            if other := next((name for name in (*beside, SUMMARY.name) if (self.path / name).exists()), None):
                raise ConfigError(
                    f"{self.path} holds a {other} and no {RECORD}: it is a model's folder, or a dataset's, or of other "
                    "segmentations; give another folder"
                )
            found = {}
        known = found.pop(IMAGES, {})
        known = dict(known) if isinstance(known, dict) else {}
        replaced = {f"{name}{self.ending}" for name in images} if overwrite else set()
        there = {path.name for path in self.path.glob(f"*{self.ending}") if path.is_file()} - replaced
        if not there:
            return {}
        first = min(there)
        if not found:
            raise ConfigError(f"{self.path} holds {first}, and no {RECORD} that says of which model; {advice}")
        differs = sorted(key for key in {**record, **found} if found.get(key) != record.get(key))
        if differs:
            raise ConfigError(
                f"{self.path} holds {first}, made with other {' and '.join(differs)} ({RECORD}); {advice}"
            )
        for name, fingerprint in sorted(images.items()):
            if f"{name}{self.ending}" in there and known.get(name) != fingerprint:
                raise ConfigError(
                    f"{self.path} holds {name}{self.ending}, made of other images of this name, or before they were "
                    f"changed or copied ({RECORD}); {advice}"
                )
        return {name: fingerprint for name, fingerprint in known.items() if f"{name}{self.ending}" in there}


def _has_content(path: Path) -> bool:
    """Whether a file is there; after a power failure, it may be empty."""
    return path.is_file() and path.stat().st_size > 0


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
