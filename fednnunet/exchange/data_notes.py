"""What a node says of its images beside numbers: how many cases are unusual, in which of a few ways; never which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, le=2**53)]


class NoteKind(StrEnum):
    """What training goes on with, and people should know."""

    NOT_FINITE = "not_finite"
    ONE_VALUE = "one_value"
    IGNORED_EVERYWHERE = "ignored_everywhere"
    LABEL_ROUNDED = "label_rounded"
    LABEL_REORIENTED = "label_reoriented"
    CHANNEL_REORIENTED = "channel_reoriented"
    NEARLY_ONE_GRID = "nearly_one_grid"
    HEADERS_IGNORED = "headers_ignored"
    NO_POSITION = "no_position"
    UNIT = "unit"
    TWO_SPACINGS = "two_spacings"


SENTENCES: Mapping[NoteKind, str] = {
    NoteKind.NOT_FINITE: "images of {cases} hold NaN or infinity ({voxels:,} voxels), which are read as 0",
    NoteKind.ONE_VALUE: "a channel of {cases} has the same value in all voxels, and tells the network nothing",
    NoteKind.IGNORED_EVERYWHERE: "the label map of {cases} is ignore everywhere; nothing is learned from it",
    NoteKind.LABEL_ROUNDED: "labels of {cases} hold values a hair off integers; they were rounded",
    NoteKind.LABEL_REORIENTED: "labels of {cases} were brought onto their image's grid by their headers",
    NoteKind.CHANNEL_REORIENTED: "channels of {cases} were brought onto the grid of the first by their headers",
    NoteKind.NEARLY_ONE_GRID: "image and label of {cases} lie up to half a voxel apart by their headers; they are "
    "taken voxel by voxel",
    NoteKind.HEADERS_IGNORED: "image and label of {cases} lie apart by their headers; image_headers is ignore, so they "
    "are taken voxel by voxel: check that they overlie each other",
    NoteKind.NO_POSITION: "the header of either image or label of {cases} does not say where it lies (neither qform "
    "nor sform); they are taken voxel by voxel",
    NoteKind.UNIT: "headers of {cases} give lengths in micrometres or metres; they are taken in mm",
    NoteKind.TWO_SPACINGS: "headers of {cases} give two spacings, in pixdim and in sform; pixdim is taken",
}


class DataNote(BaseModel):
    """Number of cases of a kind.

    Attributes:
        kind: the kind.
        cases: number of cases.
        voxels: number of voxels in them, where the kind counts them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: NoteKind
    cases: Annotated[int, Field(ge=1, le=10**6)]
    voxels: Count = 0

    def __str__(self) -> str:
        cases = "1 case" if self.cases == 1 else f"{self.cases} cases"
        return SENTENCES[self.kind].format(cases=cases, voxels=self.voxels)


def count_notes(cases: Iterable[Mapping[NoteKind, int]]) -> list[DataNote]:
    """Notes of all cases, in the order of the kinds.

    Args:
        cases: for each case, kinds and numbers of voxels.
    """
    found = list(cases)
    having = {kind: [case[kind] for case in found if kind in case] for kind in NoteKind}
    return [DataNote(kind=kind, cases=len(voxels), voxels=sum(voxels)) for kind, voxels in having.items() if voxels]


def add_notes(notes: Iterable[DataNote]) -> list[DataNote]:
    """Notes of several datasets as those of one."""
    found = list(notes)
    by_kind = {kind: [note for note in found if note.kind is kind] for kind in NoteKind}
    return [
        DataNote(kind=kind, cases=sum(note.cases for note in same), voxels=sum(note.voxels for note in same))
        for kind, same in by_kind.items()
        if same
    ]
