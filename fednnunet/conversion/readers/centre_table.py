"""A table of cases and their centres, for layouts that name none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fednnunet.conversion.readers.csv_table import read_table


@dataclass(frozen=True)
class Origin:
    """Where a case is from.

    Attributes:
        centre: name of the centre; empty where it is not known.
        patient: id of the patient, if the table says.
        problem: why the centre is not known.
    """

    centre: str
    patient: str = ""
    problem: str = ""


def read_origins(path: Path, case_name: Callable[[str], str]) -> dict[str, Origin]:
    """Case to its centre.

    Args:
        path: CSV file with the columns ``case`` and ``centre`` (``center`` is read as well), and ``patient`` if one has
            several cases.
        case_name: the case that a cell of the table names.

    Raises:
        DataError: as :func:`read_table`.
    """
    table = read_table(path, ("case", "centre"), {"case": "case", "centre": "centre", "center": "centre"})
    origins: dict[str, Origin] = {}
    for row in table.rows:
        case, centre = case_name(row.cells["case"]), row.cells["centre"]
        problem = row.problem or ("" if case and centre else "case or centre is empty")
        if problem:
            origin = Origin("", problem=f"{path}, line {row.line}: {problem}")
        else:
            origin = Origin(centre, row.cells.get("patient", ""))
        if origins.setdefault(case, origin) != origin:
            origins[case] = Origin("", problem=f"{path}, line {row.line}: {case} has two centres or patients")
    return origins
