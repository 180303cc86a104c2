"""What the readers of short-axis cine MRI share: the phases ED and ES, names of files, and the cases found so far."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.errors import DataError

CHANNEL_NAMES = ("cineMRI",)
PHASES = ("ED", "ES")


@dataclass
class Collector:
    """Cases found so far, by patient id in the source, issues with others, and all ids that were seen.

    Attributes:
        patients: patient id to the patient's cases.
        problems: what should be a case and cannot.
        left_out: what a rule of the dataset leaves out.
        seen: all patient ids of the source.
    """

    patients: dict[str, tuple[SourceCase, ...]] = field(default_factory=dict)
    problems: list[ConversionIssue] = field(default_factory=list)
    left_out: list[ConversionIssue] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def add(
        self, patient: str, centre: str, pairs: Mapping[str, tuple[SourceImage, SourceImage]], labels: dict[int, str]
    ) -> None:
        """Add a patient's cases, or a problem where a file is missing.

        Args:
            patient: id in the source.
            centre: name of the centre.
            pairs: phase to image and label map.
            labels: value in the label map to label name.
        """
        missing = dict.fromkeys(source.path for pair in pairs.values() for source in pair if not source.path.is_file())
        if missing:
            self.add_problem(patient, f"missing: {', '.join(map(str, missing))}; unpack the download again", centre)
            return
        self.patients[patient] = tuple(
            SourceCase(f"{patient}_{phase}", centre, (image,), label, labels, patient)
            for phase, (image, label) in pairs.items()
        )

    def add_problem(self, name: str, reason: str, centre: str = "") -> None:
        self.problems.append(ConversionIssue(name, reason, centre))

    def leave_out(self, name: str, reason: str, centre: str = "") -> None:
        self.left_out.append(ConversionIssue(name, reason, centre))

    def result(self) -> ScanResult:
        """Everything that was found, sorted by patient id."""
        cases = tuple(case for _, cases in sorted(self.patients.items()) for case in cases)
        return ScanResult(cases, CHANNEL_NAMES, tuple(self.problems), tuple(self.left_out))


def list_folders(parent: Path, holds: str) -> Iterator[Path]:
    """Folders in ``parent``, sorted, without hidden ones.

    Raises:
        DataError: ``parent`` is missing; ends with ``holds``, which says what the source should hold.
    """
    if not parent.is_dir():
        raise DataError(f"there is no folder {parent}; {holds}")
    return (path for path in sorted(parent.iterdir()) if path.is_dir() and not path.name.startswith("."))


def image_and_label(stem: str) -> tuple[SourceImage, SourceImage]:
    """``STEM.nii.gz`` and its label map ``STEM_gt.nii.gz``."""
    return SourceImage(Path(f"{stem}.nii.gz")), SourceImage(Path(f"{stem}_gt.nii.gz"))


def whole_number(text: str) -> int | None:
    """The number that a cell holds, such as ``12`` or ``12.0``; None if it holds none."""
    return int(float(text)) if re.fullmatch(r"\d{1,6}(\.0*)?", text) else None
