"""Open the images and label maps of a dataset with nnU-Net's readers, and check that they can be trained on."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fednnunet import __version__
from fednnunet.config.dataset import ImageHeaders
from fednnunet.datasets.case_check import Rules, check_case
from fednnunet.datasets.checked_file import check_dimensions
from fednnunet.datasets.corrections import write_corrected
from fednnunet.datasets.file_integrity import inspect_file
from fednnunet.datasets.raw import Case, RawDataset
from fednnunet.errors import DataError
from fednnunet.exchange.data_notes import DataNote, NoteKind, count_notes
from fednnunet.files import write_atomically
from fednnunet.processes import map_in_processes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedDataset:
    """A dataset whose images were checked.

    Attributes:
        dataset: the files that nnU-Net is to read: the original ones, or corrected ones instead.
        notes: what people should know of it.
        examples: for each note, the first case that it is about.
    """

    dataset: RawDataset
    notes: tuple[DataNote, ...]
    examples: Mapping[NoteKind, str]

    def __str__(self) -> str:
        """The notes, each with its example."""
        return "; ".join(f"{note} (the first: {self.examples[note.kind]})" for note in self.notes)


def check_images(
    dataset: RawDataset,
    centre: str,
    progress: Callable[[int], None] | None = None,
    image_headers: ImageHeaders = "check",
    corrected: Path | None = None,
    workers: int = 1,
) -> CheckedDataset:
    """Open every file once, with the reader that nnU-Net will use.

    Args:
        dataset: the images to check.
        centre: named in errors.
        progress: called after every case with the number of cases done.
        image_headers: whether label maps lie where their headers say; see
            :class:`~fednnunet.datasets.case_check.Rules`.
        corrected: folder for files to read instead of those that nnU-Net would read wrong; None writes none.
        workers: number of processes that read; 1 reads in this process.

    Raises:
        DataError: unreadable, cut off or damaged file; four dimensions; another number of channels; image and label map
            of different shape or spacing, or elsewhere by their headers; NaN or infinity that nnU-Net would see; label
            values that ``dataset.json`` does not name. The text names centre and file.
    """
    reader = choose_reader(dataset, dataset.cases[0], centre)
    rules = Rules.of(dataset, reader, image_headers)
    check = partial(_check_and_correct, rules=rules, ending=dataset.file_ending, corrected=corrected)
    cases: list[Case] = []
    notes: list[dict[NoteKind, int]] = []
    with naming(centre):
        for case, found in map_in_processes(check, dataset.cases, workers):
            cases.append(case)
            notes.append(found)
            if progress is not None:
                progress(len(cases))
    counted = count_notes(notes)
    examples = {kind: case.name for case, kinds in reversed(list(zip(cases, notes, strict=True))) for kind in kinds}
    return CheckedDataset(replace(dataset, cases=tuple(cases)), tuple(counted), examples)


def _check_and_correct(
    case: Case, rules: Rules, ending: str, corrected: Path | None
) -> tuple[Case, dict[NoteKind, int]]:
    """The case with the files that nnU-Net is to read, and notes with their numbers of voxels.

    Raises:
        DataError: training stops at it.
    """
    checked = check_case(case, rules)
    if checked.problems:
        problem = checked.problems[0]
        raise DataError(problem.text, f"a case cannot be trained on ({problem.kind}); its own terminal and log name it")
    if corrected is not None:
        case = write_corrected(case, checked, rules.reader, ending, corrected)
    return case, checked.notes


def check_images_once(
    dataset: RawDataset, centre: str, image_headers: ImageHeaders, cache: Path, workers: int = 1
) -> CheckedDataset:
    """As :func:`check_images`, or what an earlier call for the same files has found.

    Args:
        dataset: the images to check.
        centre: named in errors, and in the log, which notes are written to.
        image_headers: as in :func:`check_images`.
        cache: folder for these files as they are; what is found, and corrected files, are kept in it.
        workers: number of processes that read.
    """
    record, corrected = cache / f"checked_{image_headers}.json", cache / f"corrected_{image_headers}"
    checked = _read_record(record, dataset)
    if checked is None:
        checked = check_images(dataset, centre, None, image_headers, corrected, workers)
        _write_record(record, dataset, checked)
    if checked.notes:
        log.warning("centre %s: %s", centre, checked)
    return checked


def _write_record(record: Path, dataset: RawDataset, checked: CheckedDataset) -> None:
    corrections = {
        case.name: {
            "images": [_other(*paths) for paths in zip(case.images, original.images, strict=True)],
            "label": _other(case.label, original.label),
        }
        for case, original in zip(checked.dataset.cases, dataset.cases, strict=True)
        if case != original
    }
    notes = [note.model_dump(mode="json") for note in checked.notes]
    found = {"version": __version__, "notes": notes, "examples": dict(checked.examples), "corrections": corrections}
    write_atomically(record, json.dumps(found, indent=1))


def _other(path: Path, original: Path) -> str | None:
    return None if path == original else str(path)


def _read_record(record: Path, dataset: RawDataset) -> CheckedDataset | None:
    """What was found before; None where that is not known, or corrected files are gone."""
    try:
        found = json.loads(record.read_text())
        if found["version"] != __version__:
            return None
        notes = tuple(DataNote.model_validate(note) for note in found["notes"])
        examples = {NoteKind(kind): str(case) for kind, case in found["examples"].items()}
        cases = tuple(_corrected(case, found["corrections"].get(case.name)) for case in dataset.cases)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return CheckedDataset(replace(dataset, cases=cases), notes, examples)


def _corrected(case: Case, correction: dict[str, Any] | None) -> Case:
    """The case with files of an earlier correction.

    Raises:
        OSError: one is gone.
    """
    if correction is None:
        return case
    for path in (*correction["images"], correction["label"]):
        if path is not None:
            os.stat(path)
    images = (Path(path or own) for path, own in zip(correction["images"], case.images, strict=True))
    return Case(case.name, tuple(images), Path(correction["label"] or case.label))


@contextlib.contextmanager
def naming(centre: str) -> Iterator[None]:
    """Name the centre in errors."""
    try:
        yield
    except DataError as error:
        raise DataError(f"centre {centre}: {error}", error.public) from error


def choose_reader(dataset: RawDataset, example: Case, centre: str) -> type:
    """The class that nnU-Net reads ``dataset`` with, chosen by the first image of ``example``.

    Raises:
        DataError: no reader can read it.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    first = example.images[0]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints the traceback of every reader that fails
            return determine_reader_writer_from_dataset_json(dataset.dataset_json, str(first), verbose=False)
    except RuntimeError:
        with naming(centre):
            check_dimensions(first, inspect_file(first))
            raise DataError(f"{first} cannot be read by any of nnU-Net's readers for {dataset.file_ending}") from None
