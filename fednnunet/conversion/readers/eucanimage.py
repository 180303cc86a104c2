"""EuCanImage: breast DCE-MRI of three hospitals, in MAMA-MIA's layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from fednnunet.conversion.readers.csv_table import read_table
from fednnunet.conversion.readers.dce_phases import (
    NumberOption,
    PhasesOption,
    Tree,
    centre_by_id,
    phase_channels,
    read_trees,
    visible_paths,
)
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult
from fednnunet.errors import DataError

EUCANIMAGE_CENTRES = ("GUMED", "KAUNO", "HCB")
EUCANIMAGE_FEWEST_PHASES = 2
"""Before contrast, and the first after it."""
EUCANIMAGE_HOLDS = (
    "the EuCanImage reader takes MAMA-MIA's layout: images/PATIENT/PATIENT_000N.nii.gz, N the phase, and "
    "segmentations/PATIENT.nii.gz or segmentations/expert/PATIENT.nii.gz; all centres in one such tree, or one tree "
    f"per centre in folders named {', '.join(EUCANIMAGE_CENTRES)}"
)


def read_eucanimage(
    source: Path,
    *,
    phases: PhasesOption = "first",
    number_of_phases: NumberOption = 3,
    centres: Annotated[
        Path | None,
        "CSV with columns patient and centre (GUMED, KAUNO, HCB); else the centre is that of the folder or the id",
    ] = None,
) -> ScanResult:
    """Breast DCE-MRI of EuCanImage (not public): GUMED, KAUNO and HCB.

    No layout is published. This reads MAMA-MIA's, which has the same authors. Where ``segmentations`` has no folder
    ``expert``, the label maps lie in it, as in ``src/challenge/scoring_task1.py`` of
    https://github.com/LidiaGarrucho/MAMA-MIA (commit bfc321a), for the challenge's hidden European test set.

    Args:
        source: folder with ``images`` and ``segmentations``, or with one such folder per centre.
        phases: phases that become the channels.
        number_of_phases: number of channels if ``phases`` is ``all``.
        centres: table of patients and centres, separated by comma or semicolon. Without it the centre is the folder's
            name where ``source`` has one per centre, else what the patient's id begins with (``GUMED_0001``).

    Raises:
        DataError: ``source`` has another layout, or ``centres`` is no such table: says what is missing.
        ConfigError: ``number_of_phases`` is less than 2.
    """
    channels = phase_channels(phases, number_of_phases)
    table = None if centres is None else _CentreTable.read(centres)
    trees, problems = _eucanimage_trees(source, table)
    result = read_trees(trees, channels, EUCANIMAGE_FEWEST_PHASES)
    if table is not None:
        found = {issue.name for issue in result.problems + result.left_out} | {case.name for case in result.cases}
        problems += table.problems(found)
    return replace(result, problems=(*result.problems, *problems))


def _centre_by_folder(centre: str, _patient: str) -> str:
    return centre


def _eucanimage_trees(source: Path, table: _CentreTable | None) -> tuple[list[Tree], list[ConversionIssue]]:
    """Trees to read, and a problem for each folder whose name is not a centre's."""
    if not source.is_dir():
        raise DataError(f"there is no folder {source}; {EUCANIMAGE_HOLDS}")
    if (source / "images").is_dir():
        advice = "; give a CSV with columns patient and centre by --centres"
        by_id = partial(centre_by_id, EUCANIMAGE_CENTRES, advice)
        return [_eucanimage_tree(source, by_id if table is None else table.centre_of)], []
    trees: list[Tree] = []
    problems: list[ConversionIssue] = []
    for folder in visible_paths(source):
        if not (folder / "images").is_dir():
            continue
        if table is not None:
            trees.append(_eucanimage_tree(folder, table.centre_of))
        elif folder.name.upper() in EUCANIMAGE_CENTRES:
            trees.append(_eucanimage_tree(folder, partial(_centre_by_folder, folder.name.upper())))
        else:
            problems.append(
                ConversionIssue(str(folder), f"its name is none of the centres {', '.join(EUCANIMAGE_CENTRES)}")
            )
    if not trees:
        first = f"; {problems[0].name}: {problems[0].reason}" if problems else ""
        raise DataError(
            f"{source} has neither a folder images nor a centre's folder with one{first}; {EUCANIMAGE_HOLDS}"
        )
    return trees, problems


def _eucanimage_tree(folder: Path, centre_of: Callable[[str], str]) -> Tree:
    masks = folder / "segmentations"
    return Tree(folder, masks / "expert" if (masks / "expert").is_dir() else masks, centre_of, EUCANIMAGE_HOLDS)


@dataclass(frozen=True)
class _CentreTable:
    """Patients and their centres, as a CSV gives them.

    Attributes:
        path: file of the table.
        centres: patient in upper case to all centres that the table gives.
        nameless: numbers of the lines without a patient.
    """

    path: Path
    centres: Mapping[str, set[str]]
    nameless: Sequence[int]

    @classmethod
    def read(cls, path: Path) -> _CentreTable:
        """Read the CSV.

        Raises:
            DataError: as :func:`~fednnunet.conversion.readers.csv_table.read_table`.
        """
        columns = ("patient", "centre")
        centres: dict[str, set[str]] = {}
        nameless = []
        for row in read_table(path, columns, {column: column for column in columns}).rows:
            if patient := row.cells["patient"].upper():
                centres.setdefault(patient, set()).add(row.cells["centre"].upper())
            else:
                nameless.append(row.line)
        return cls(path, centres, nameless)

    def centre_of(self, patient: str) -> str:
        """The centre of ``patient``.

        Raises:
            DataError: no line, several centres, or none of EuCanImage's.
        """
        if patient not in self.centres:
            raise DataError(f"{self.path} has no line for it")
        centre, *others = sorted(self.centres[patient])
        if others:
            raise DataError(f"{self.path} names several centres for it: {', '.join([centre, *others])}")
        if centre not in EUCANIMAGE_CENTRES:
            raise DataError(
                f"{self.path} names the centre {centre!r} for it, which is none of {', '.join(EUCANIMAGE_CENTRES)}"
            )
        return centre

    def problems(self, found: set[str]) -> list[ConversionIssue]:
        """Lines without a patient, and patients who were not ``found``."""
        return [
            *(ConversionIssue(f"{self.path}, line {line}", "names no patient") for line in self.nameless),
            *(
                ConversionIssue(patient, f"{self.path} names it; there are neither images nor a label map of it")
                for patient in sorted(set(self.centres) - found)
            ),
        ]
