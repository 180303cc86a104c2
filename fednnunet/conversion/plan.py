"""What a conversion would write, and the problems it would meet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase
from fednnunet.conversion.targets import TargetCentre
from fednnunet.errors import DataError

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class CentrePlan:
    """Cases and issues of one centre."""

    centre: TargetCentre
    cases: list[SourceCase] = field(default_factory=list)
    problems: list[ConversionIssue] = field(default_factory=list)
    left_out: list[ConversionIssue] = field(default_factory=list)

    @property
    def patients(self) -> int:
        """Number of patients, which the paper counts."""
        return len({case.patient_id for case in self.cases})


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion would write.

    Attributes:
        centres: one plan per centre.
        problems: problems that belong to no known centre.
        left_out: what is left out and belongs to no known centre.
        scan: what was found.
        labels: label name to value, as they are written.
    """

    centres: tuple[CentrePlan, ...]
    problems: tuple[ConversionIssue, ...]
    left_out: tuple[ConversionIssue, ...]
    scan: ScanResult
    labels: Mapping[str, int]

    @property
    def all_problems(self) -> list[ConversionIssue]:
        """Problems of no known centre, then those of each centre."""
        return [*self.problems, *(issue for centre in self.centres for issue in centre.problems)]

    @property
    def all_left_out(self) -> list[ConversionIssue]:
        """What is left out of no known centre, then of each centre."""
        return [*self.left_out, *(issue for centre in self.centres for issue in centre.left_out)]


def plan_conversion(scan: ScanResult, centres: Sequence[TargetCentre], labels: Mapping[str, int]) -> ConversionPlan:
    """Sort cases by centre, and find the problems that can be found without opening an image.

    Problems are: a centre that is not listed, a name that two cases of a centre share, a name that cannot be a file's,
    a label that the dataset does not have, and a missing file.

    Raises:
        DataError: the source holds no case.
    """
    if not scan.cases:
        first = f"; the first problem: {scan.problems[0].line}" if scan.problems else ""
        raise DataError(f"no case was found{first}")
    plans = {centre.name: CentrePlan(centre) for centre in centres}
    problems = []
    names: Counter[tuple[str, str]] = Counter((case.centre, case.name) for case in scan.cases)
    for case in scan.cases:
        problem = _problem_of(case, plans, names, labels)
        if problem is None:
            plans[case.centre].cases.append(case)
        elif case.centre in plans:
            plans[case.centre].problems.append(ConversionIssue(case.name, problem, case.centre))
        else:
            problems.append(ConversionIssue(case.name, problem))
    for issue in scan.problems:
        (plans[issue.centre].problems if issue.centre in plans else problems).append(issue)
    left_out: list[ConversionIssue] = []
    for issue in scan.left_out:
        (plans[issue.centre].left_out if issue.centre in plans else left_out).append(issue)
    for centre_plan in plans.values():
        centre_plan.cases.sort(key=lambda case: case.name)
    return ConversionPlan(tuple(plans.values()), tuple(problems), tuple(left_out), scan, labels)


def _problem_of(
    case: SourceCase,
    centres: Mapping[str, CentrePlan],
    names: Mapping[tuple[str, str], int],
    labels: Mapping[str, int],
) -> str | None:
    if case.centre not in centres:
        return f"its centre {case.centre!r} is none of {', '.join(centres)}"
    if not SAFE_NAME.fullmatch(case.name):
        return "a case's name may hold letters, digits, _ and - only"
    if names[case.centre, case.name] > 1:
        return f"{names[case.centre, case.name]} cases of {case.centre} have this name"
    unknown = sorted(set(case.label_values.values()) - set(labels))
    if unknown:
        return f"label {unknown[0]} is none of the dataset's: {', '.join(labels)}"
    missing = [path for path in case.files if not path.is_file()]
    return f"{missing[0]} is missing" if missing else None
