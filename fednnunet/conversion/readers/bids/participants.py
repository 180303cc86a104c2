"""Table of participants in BIDS: who is listed, and which centre each is from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fednnunet.conversion.readers.bids.entities import BidsFile
from fednnunet.conversion.readers.csv_table import read_table
from fednnunet.conversion.scan_result import ConversionIssue

CENTRE_COLUMNS = ("site", "centre", "center")
NOT_AVAILABLE = ("", "n/a")


@dataclass
class Participants:
    """Subjects that are listed, and the centre of each.

    Attributes:
        path: file of the table.
        column: column that holds the centre; empty if all subjects are from ``only_centre``.
        only_centre: name of the dataset, which then names the centre.
        centres: subject to all centres that the table gives.
    """

    path: Path
    column: str
    only_centre: str
    centres: dict[str, set[str]] = field(default_factory=dict)

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


def read_participants(source: Path, given: Path | None, column: str | None) -> Participants:
    """Read the table of participants.

    Args:
        source: folder of the dataset.
        given: table to read instead of ``participants.tsv`` in ``source``.
        column: column that holds the centre; the usual one if not given.

    Raises:
        DataError: the table cannot be read, or lacks a column.
    """
    path = given or source / "participants.tsv"
    dataset = source.resolve().name
    if not given and not column and not path.is_file():
        return Participants(path, "", dataset)
    table = read_table(path, ("participant_id", column) if column else ("participant_id",))
    usual = [name for wanted in CENTRE_COLUMNS for name in table.columns if name.lower() == wanted]
    participants = Participants(path, column or next(iter(usual), ""), dataset)
    for row in table.rows:
        found = participants.centres.setdefault(row.cells["participant_id"].removeprefix("sub-"), set())
        centre = row.cells.get(participants.column, "")
        if centre not in NOT_AVAILABLE and not row.problem:
            found.add(centre)
    return participants
