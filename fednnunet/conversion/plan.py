"""What a conversion would write, and what stands against it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fednnunet.conversion.study import ConversionIssue, ScanResult, SourceCase
from fednnunet.conversion.targets import TargetCentre
from fednnunet.errors import DataError

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class CentrePlan:
    """A centre's share of a survey."""

    centre: TargetCentre
    studies: list[SourceCase] = field(default_factory=list)
    problems: list[ConversionIssue] = field(default_factory=list)
    left_out: list[ConversionIssue] = field(default_factory=list)

    @property
    def patients(self) -> int:
        """How many the studies are of: what the paper counts."""
        return len({study.patient or study.case for study in self.studies})


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion would write.

    Attributes:
        parts: one per centre.
        problems: of no known centre.
        left_out: likewise.
        survey: what was found.
        labels: name to value, as they are written.
    """

    parts: tuple[CentrePlan, ...]
    problems: tuple[ConversionIssue, ...]
    left_out: tuple[ConversionIssue, ...]
    survey: ScanResult
    labels: Mapping[str, int]

    @property
    def all_problems(self) -> list[ConversionIssue]:
        """Of all centres and of none."""
        return [*self.problems, *(remark for part in self.parts for remark in part.problems)]


def plan_conversion(survey: ScanResult, centres: Sequence[TargetCentre], labels: Mapping[str, int]) -> ConversionPlan:
    """Sort studies by centre, and find what can be found without opening an image.

    A centre that is not listed, a name that two studies of a centre share, a name that is none for a file, a label
    that the dataset does not have, and a file that is not there are problems.

    Raises:
        DataError: the source holds no study.
    """
    if not survey.studies:
        first = f"; the first problem: {survey.problems[0].line}" if survey.problems else ""
        raise DataError(f"no study was found{first}")
    parts = {centre.name: CentrePlan(centre) for centre in centres}
    problems = []
    names: Counter[tuple[str, str]] = Counter((study.centre, study.case) for study in survey.studies)
    for study in survey.studies:
        problem = _problem_of(study, parts, names, labels)
        if problem is None:
            parts[study.centre].studies.append(study)
        elif study.centre in parts:
            parts[study.centre].problems.append(ConversionIssue(study.case, problem, study.centre))
        else:
            problems.append(ConversionIssue(study.case, problem))
    for remark in survey.problems:
        (parts[remark.centre].problems if remark.centre in parts else problems).append(remark)
    left_out: list[ConversionIssue] = []
    for remark in survey.left_out:
        (parts[remark.centre].left_out if remark.centre in parts else left_out).append(remark)
    for part in parts.values():
        part.studies.sort(key=lambda study: study.case)
    return ConversionPlan(tuple(parts.values()), tuple(problems), tuple(left_out), survey, labels)


def _problem_of(
    study: SourceCase,
    centres: Mapping[str, CentrePlan],
    names: Mapping[tuple[str, str], int],
    labels: Mapping[str, int],
) -> str | None:
    if study.centre not in centres:
        return f"its centre {study.centre!r} is none of {', '.join(centres)}"
    if not SAFE_NAME.fullmatch(study.case):
        return "a case's name may hold letters, digits, _ and - only"
    if names[study.centre, study.case] > 1:
        return f"{names[study.centre, study.case]} studies of {study.centre} have this name"
    unknown = sorted(set(study.label_values.values()) - set(labels))
    if unknown:
        return f"label {unknown[0]} is none of the dataset's: {', '.join(labels)}"
    missing = [path for path in study.files if not path.is_file()]
    return f"{missing[0]} is missing" if missing else None
