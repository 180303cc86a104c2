"""Table of participants in BIDS: who is listed, and which centre each is from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fednnunet.conversion.readers.bids.entities import BidsFile
from fednnunet.conversion.readers.bids.layout import Layout
from fednnunet.conversion.readers.csv_table import Table, read_table
from fednnunet.conversion.scan_result import ConversionIssue

CENTRE_COLUMNS = ("site", "centre", "center")
MAY_NAME_CENTRE = re.compile(
    r"(site|centre|center|institut\w*|hospital|clinic|scanner|facility|manufacturers?)(id|name|code|number|no|nr)?s?"
)
"""A word of a column's name that says that the column may tell the centre."""
NOT_AVAILABLE = ("", "n/a")


@dataclass
class Participants:
    """Subjects that are listed, and the centre of each.

    Attributes:
        path: file of the table.
        column: column that holds the centre; empty if all subjects are from ``only_centre``.
        only_centre: name of the dataset, which then names the centre.
        centres: subject to all centres that the table gives.
        note: columns that may name the centre and were not chosen; empty where there is no doubt.
    """

    path: Path
    column: str
    only_centre: str
    centres: dict[str, set[str]] = field(default_factory=dict)
    note: str = ""

    def centre_of(self, file: BidsFile) -> str:
        """The centre of a file's subject; empty where it is not clear."""
        if not self.column:
            return self.only_centre
        found = self.centres.get(file.subject, set())
        return next(iter(found)) if len(found) == 1 else ""

    def problem_of(self, file: BidsFile) -> str:
        """Why its centre is not clear."""
        found = self.centres.get(file.subject)
        if found is None:
            return f"sub-{file.subject} is not in {self.path}, so its centre is not known"
        given = f"has the centres {', '.join(sorted(found))}" if found else "has no centre"
        return f"sub-{file.subject} {given} in the column {self.column} of {self.path}"

    def without_files(self, files: Iterable[BidsFile]) -> list[ConversionIssue]:
        """Listed subjects that have neither an image nor a label map."""
        subjects = {file.subject for file in files}
        return [
            ConversionIssue(
                f"sub-{subject}", f"is in {self.path.name} and has no file", "".join(found) if len(found) == 1 else ""
            )
            for subject, found in self.centres.items()
            if subject not in subjects
        ]


def read_participants(layout: Layout, given: Path | None, column: str | None) -> Participants:
    """Read the table of participants.

    Args:
        layout: where the dataset's table lies.
        given: table to read in its place.
        column: column that holds the centre; the usual one if not given.

    Raises:
        DataError: the table cannot be read, or lacks a column.
    """
    path = given or layout.participants
    if not given and not column and not path.is_file():
        return Participants(path, "", layout.name)
    table = read_table(path, ("participant_id", column) if column else ("participant_id",))
    usual = [name for wanted in CENTRE_COLUMNS for name in table.columns if name.lower() == wanted]
    participants = Participants(path, column or next(iter(usual), ""), layout.name)
    for row in table.rows:
        found = participants.centres.setdefault(row.cells["participant_id"].removeprefix("sub-"), set())
        centre = row.cells.get(participants.column, "")
        if centre not in NOT_AVAILABLE and not row.problem:
            found.add(centre)
    if not column:
        participants.note = _note_of(participants, table)
    return participants


def _note_of(participants: Participants, table: Table) -> str:
    """What to say where the centre's column was not chosen by the user, and others may be meant."""
    values = {
        name: len({row.cells[name] for row in table.rows} - set(NOT_AVAILABLE))
        for name in table.columns
        if name != participants.column and any(map(MAY_NAME_CENTRE.fullmatch, _words(name)))
    }
    others = [name for name, count in values.items() if count > 1]
    if not others:
        return ""
    if participants.column:
        taken = f"the column {participants.column} of {table.path.name} names the centres"
    else:
        taken = f"all subjects become one centre, {participants.only_centre}"
    listed = ", ".join(f"{name} ({values[name]} values)" for name in others)
    return f"{taken}; {table.path} has {listed}: choose what names the centre by --centre-column, as in {others[0]}"


def _words(column: str) -> list[str]:
    """Words of a column's name in lower case: ``institution``, ``id`` of ``InstitutionID`` or ``institution_id``."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", column).lower())
