"""Whether the files of a case lie on one grid by their headers; what lies mirrored or turned is brought onto it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fednnunet.config.dataset import ImageHeaders
from fednnunet.datasets.alignment import Alignment, Placement, align
from fednnunet.datasets.checked_file import CheckedFile
from fednnunet.datasets.file_integrity import NiftiHeader
from fednnunet.datasets.geometry import (
    STOPS_NNUNET,
    TOLERANCE,
    format_numbers,
    format_size,
    grid_differences,
    grid_of,
    orientation_of,
)
from fednnunet.exchange.data_notes import NoteKind

NO_FIT = "label does not fit"
"""Kind of problem: another shape or spacing."""


@dataclass(frozen=True)
class Problem:
    """Why training stops.

    Attributes:
        kind: kind of problem in a few words.
        text: file, what was found, and what to do.
        differs: property of the grid that differs: ``shape`` or ``spacing``; empty for another problem.
    """

    kind: str
    text: str
    differs: str = ""


@dataclass(frozen=True)
class Comparison:
    """What comparing two files has led to.

    Attributes:
        problem: what training stops at.
        notes: what people should know.
    """

    problem: Problem | None = None
    notes: frozenset[NoteKind] = field(default_factory=frozenset)


def bring_onto(file: CheckedFile, image: CheckedFile, reoriented: NoteKind, image_headers: ImageHeaders) -> Comparison:
    """Bring a label map or channel onto the grid of a case's first image where its header says how.

    Args:
        file: its voxels may be flipped and their axes exchanged.
        image: the first image.
        reoriented: what to note then.
        image_headers: as in :class:`~fednnunet.datasets.case_check.Rules`.
    """
    if file.placement is None or image.placement is None:
        one_has = (file.placement is None) != (image.placement is None)
        return Comparison(_misfit(file, image, reoriented), frozenset({NoteKind.NO_POSITION} if one_has else ()))
    notes = set()
    alignment = align(file.placement, image.placement)
    if image_headers == "check" and alignment.is_reoriented and not alignment.is_elsewhere:
        if not forms_agree((file.nifti, image.nifti), (file.placement, image.placement), alignment):
            return Comparison(Problem("ambiguous header", _ambiguous(file, image)))
        file.properties = _reoriented(file, image, alignment)
        file.voxels = np.stack([alignment.apply(channel) for channel in file.voxels])
        file.changed.add("voxels")
        notes.add(reoriented)
    misfit = _misfit(file, image, reoriented)
    if misfit is not None:
        return Comparison(misfit)
    if image_headers == "ignore":
        if alignment.is_reoriented or not alignment.is_exact:
            notes.add(NoteKind.HEADERS_IGNORED)
    elif alignment.is_elsewhere:
        return Comparison(Problem("lies elsewhere", _elsewhere(file, image, alignment)))
    elif not alignment.is_exact:
        notes.add(NoteKind.NEARLY_ONE_GRID)
    return Comparison(None, frozenset(notes))


def _reoriented(file: CheckedFile, image: CheckedFile, alignment: Alignment) -> dict[str, Any]:
    """Properties of ``file`` on the grid of ``image``, with its own spacing."""
    spacing = np.asarray(file.properties["spacing"], dtype=float)[::-1]
    axes = alignment.orientation[: len(spacing), 0].astype(int) if len(spacing) == 3 else np.arange(len(spacing))
    moved = np.empty_like(spacing)
    moved[axes] = spacing
    return {**image.properties, "spacing": moved[::-1].tolist()}


def _misfit(file: CheckedFile, image: CheckedFile, reoriented: NoteKind) -> Problem | None:
    """What differs of the grids, where nnU-Net stops at it."""
    for difference in grid_differences(*(grid_of(each.voxels, each.properties) for each in (image, file))):
        if difference.what in STOPS_NNUNET:
            unit = STOPS_NNUNET[difference.what]
            whose = "label" if reoriented is NoteKind.LABEL_REORIENTED else "channel"
            text = (
                f"{image.path} has {difference.what} {format_size(difference.value)}{unit}, its {whose} "
                f"{file.path.name} {format_size(difference.reference)}{unit} (Z, Y, X)"
            )
            return Problem(NO_FIT, text, difference.what)
    return None


def forms_agree(
    headers: tuple[NiftiHeader | None, NiftiHeader | None],
    placements: tuple[Placement, Placement],
    alignment: Alignment,
) -> bool:
    """Whether qform and sform of two NIfTI files, where set, lead to the same flips and exchanges of axes.

    Args:
        headers: of the file and of the one that it is compared with; None for other formats, which have one form.
        placements: of both, as the reader sees them.
        alignment: of both, as the reader sees them.
    """
    ours, theirs = headers
    if ours is None or theirs is None:
        return True
    for form in ("qform", "sform"):
        one, other = (_affine(header, form) for header in (ours, theirs))
        if one is None or other is None:
            continue
        by_form = align(Placement(placements[0].shape, one), Placement(placements[1].shape, other))
        if not np.array_equal(by_form.orientation, alignment.orientation):
            return False
    return True


def _affine(header: NiftiHeader, form: str) -> np.ndarray | None:
    """The header's ``qform`` or ``sform``, the one that is set where the other is not; in mm."""
    forms = {"qform": header.qform, "sform": header.sform}
    found = forms.pop(form)
    if found is None:
        (found,) = forms.values()
    return None if found is None else np.diag([*[header.millimetres] * 3, 1.0]) @ found


def _ambiguous(file: CheckedFile, image: CheckedFile) -> str:
    return (
        f"{file.path} lies mirrored or turned on {image.path.name} by one of qform and sform, and not by the other: "
        "correct its header, or set image_headers to ignore, to go by voxels as nnU-Net does"
    )


def _elsewhere(file: CheckedFile, image: CheckedFile, alignment: Alignment) -> str:
    ours, theirs = (orientation_of(each.properties) for each in (file, image))
    what = next((key for key in ours if not np.allclose(ours[key], theirs[key], atol=TOLERANCE)), next(iter(ours)))
    apart = f", {alignment.distance:.3g} voxels apart" if np.isfinite(alignment.distance) else ""
    return (
        f"{file.path} lies elsewhere than {image.path.name} by their headers: {what} {format_numbers(ours[what])} and "
        f"{format_numbers(theirs[what])}{apart}; correct the header, or set image_headers to ignore, to go by voxels "
        "as nnU-Net does"
    )
