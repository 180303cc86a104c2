"""Read one case with nnU-Net's reader, and find what nnU-Net would stop at, or get wrong without a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fednnunet.config.dataset import ImageHeaders
from fednnunet.datasets.case_grids import Problem, bring_onto
from fednnunet.datasets.checked_file import CheckedFile, header_notes, read_to_end
from fednnunet.datasets.description import label_values, unknown_label_values
from fednnunet.datasets.raw import Case, RawDataset
from fednnunet.errors import DataError
from fednnunet.exchange.data_notes import NoteKind

NEAR_INTEGER = 1e-3
"""Label values at most this far from an integer are that integer."""

UNKNOWN_VALUE = "unknown label"
"""Kind of problem: a value that ``dataset.json`` does not name."""


@dataclass(frozen=True)
class Rules:
    """What the cases of a dataset must be like.

    Attributes:
        reader: one of nnU-Net's readers.
        channels: number of channels.
        labels: nnU-Net's ``labels``.
        image_headers: ``check``: label maps, and channels after the first, lie where their headers say; ``ignore``:
            voxel by voxel on the first channel, as nnU-Net takes them.
    """

    reader: Any
    channels: int
    labels: Mapping[str, Any]
    image_headers: ImageHeaders = "check"

    @classmethod
    def of(cls, dataset: RawDataset, reader: type, image_headers: ImageHeaders) -> Rules:
        """The rules of a dataset."""
        return cls(reader(), len(dataset.channel_names), dataset.labels, image_headers)


@dataclass
class CheckedCase:
    """A case, and what was found.

    Attributes:
        images: the image files, on one grid where that can be.
        label: the label map, on the images' grid where that can be; integers.
        label_voxels: label value to number of voxels, without 0.
        problems: what training stops at.
        notes: what people should know, with the number of voxels concerned.
    """

    images: list[CheckedFile]
    label: CheckedFile
    label_voxels: dict[float, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: dict[NoteKind, int] = field(default_factory=dict)


def check_case(case: Case, rules: Rules) -> CheckedCase:
    """Open every file of ``case`` and compare them.

    Raises:
        DataError: a file was cut off, cannot be read, has more than three dimensions, or holds NaN or infinity that
            nnU-Net would see; or the number of channels is another. Names the file.
    """
    label = read_to_end(case.label, rules.reader.read_seg, str(case.label))
    if len(label.voxels) != 1:
        raise DataError(f"{case.label} has {len(label.voxels)} channels; a label map has one")
    if label.not_finite:
        raise DataError(
            f"{case.label} holds NaN or infinity in {label.not_finite:,} voxels; a label map holds integers"
        )
    images = [read_to_end(path, rules.reader.read_images, [str(path)]) for path in case.images]
    found = sum(len(image.voxels) for image in images)
    if found != rules.channels:
        raise DataError(f"{case.images[0]} has {found} channels, channel_names in dataset.json {rules.channels}")
    checked = CheckedCase(images, label)
    _note_what_files_hold(checked)
    _check_values(checked, rules)
    for file in (*images[1:], label):
        kind = NoteKind.LABEL_REORIENTED if file is label else NoteKind.CHANNEL_REORIENTED
        comparison = bring_onto(file, images[0], kind, rules.image_headers)
        if comparison.problem is not None:
            checked.problems.append(comparison.problem)
        checked.notes.update(dict.fromkeys(comparison.notes, 0))
    return checked


def _note_what_files_hold(checked: CheckedCase) -> None:
    for file in (*checked.images, checked.label):
        checked.notes.update(dict.fromkeys(header_notes(file.nifti), 0))
    not_finite = sum(image.not_finite for image in checked.images)
    if not_finite:
        checked.notes[NoteKind.NOT_FINITE] = not_finite
    if any(image.is_constant for image in checked.images):
        checked.notes[NoteKind.ONE_VALUE] = 0


# values of the label map -------------------------------------------------------------------------------


def _check_values(checked: CheckedCase, rules: Rules) -> None:
    label = checked.label
    counted = count_values(label.voxels)
    broken = [value for value in counted if abs(value - round(value)) > NEAR_INTEGER]
    if broken:
        what = f"{label.path} holds value {_exact(broken[0])}, which is not an integer"
        checked.problems.append(
            Problem("no integer", f"{what}; a label map holds the values of labels in dataset.json")
        )
    elif any(value != round(value) for value in counted):
        label.voxels = np.rint(label.voxels)
        label.changed.add("voxels")
        checked.notes[NoteKind.LABEL_ROUNDED] = 0
        counted = count_values(label.voxels)
    integers = {round(value) for value in counted if value not in broken}
    unknown = unknown_label_values(integers, label_values(dict(rules.labels)))
    if unknown:
        text = f"{label.path} holds value {_exact(unknown[0])}, which labels in dataset.json does not name"
        checked.problems.append(Problem(UNKNOWN_VALUE, text))
    if set(counted) == {rules.labels.get("ignore")}:
        checked.notes[NoteKind.IGNORED_EVERYWHERE] = 0
    checked.label_voxels = {value: number for value, number in counted.items() if value != 0}


def count_values(voxels: np.ndarray) -> dict[float, int]:
    """Each value of a label map and the number of its voxels, sorted; integers are ``int``."""
    bytes_ = voxels.astype(np.uint8) if voxels.min() >= 0 and voxels.max() <= 255 else None
    if bytes_ is not None and np.array_equal(bytes_, voxels):  # sorting takes several times as long
        counts = sum(np.bincount(part.ravel(), minlength=256) for part in bytes_.reshape(-1, *bytes_.shape[-2:]))
        return {value: int(number) for value, number in enumerate(np.asarray(counts)) if number}
    values, numbers = np.unique(voxels, return_counts=True)
    return {
        int(value) if value == int(value) else float(value): int(number)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True)
    }


def _exact(value: float) -> str:
    """As few digits of a 32-bit float as tell it from every other."""
    return np.format_float_positional(np.float32(value), trim="-")
