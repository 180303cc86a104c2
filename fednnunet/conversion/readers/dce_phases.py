"""What the readers of breast DCE-MRI share: a tree in MAMA-MIA's layout, and its phases as channels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from fednnunet.conversion.readers.source_files import NIFTI_ENDINGS
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.errors import ConfigError, DataError

Phases = Literal["first", "all", "subtraction"]

LABEL_VALUES = {1: "tumour"}
PHASE_FILE = re.compile(r"(.+)_(\d{4})\.nii\.gz", re.IGNORECASE)

PhasesOption = Annotated[
    Phases,
    "first: the first phase after contrast, on which the tumours were drawn; all: the first --number-of-phases, as "
    "channels; subtraction: the first phase after contrast minus that before it",
]
NumberOption = Annotated[
    int, "channels of --phases all, the phase before contrast included; studies with fewer phases are left out"
]


class Channel(NamedTuple):
    """A phase, minus the phase ``baseline`` where there is one."""

    name: str
    phase: int
    baseline: int | None = None


def phase_channels(phases: Phases, number: int) -> list[Channel]:
    """Channels of a case.

    Args:
        phases: the user's choice.
        number: number of channels, if ``phases`` is ``all``.

    Raises:
        ConfigError: ``number`` is less than 2.
    """
    if phases == "first":
        return [Channel(_phase_name(1), 1)]
    if phases == "subtraction":
        return [Channel(f"{_phase_name(1)} minus {_phase_name(0)}", 1, 0)]
    if number < 2:
        raise ConfigError(
            f"--number-of-phases is {number}; it must be at least 2, the phases before and after contrast"
        )
    return [Channel(_phase_name(phase), phase) for phase in range(number)]


def _phase_name(phase: int) -> str:
    return f"post-contrast {phase}" if phase else "pre-contrast"


@dataclass(frozen=True)
class Tree:
    """A folder in MAMA-MIA's layout.

    Attributes:
        folder: folder that holds ``images``.
        masks: folder of the label maps.
        centre_of: returns a patient's centre; raises DataError where it is not known.
        holds: what the source should hold, for errors.
    """

    folder: Path
    masks: Path
    centre_of: Callable[[str], str]
    holds: str

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def list_patients(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """Patient to folders of images, and patient to label maps; several where names differ in case only.

        Raises:
            DataError: a folder is missing or empty.
        """
        for folder in (self.folder, self.images):
            if not folder.is_dir():
                raise DataError(f"there is no folder {folder}; {self.holds}")
        folders = _by_patient((path.name, path) for path in visible_paths(self.images) if path.is_dir())
        if not folders:
            raise DataError(f"{self.images} holds no folder of a patient; {self.holds}")
        if not self.masks.is_dir():
            raise DataError(f"{self.images} is there and {self.masks} is not: download that too; {self.holds}")
        masks = _by_patient(
            (path.name[: -len(".nii.gz")], path)
            for path in visible_paths(self.masks)
            if path.name.lower().endswith(".nii.gz")
        )
        if not masks:
            raise DataError(f"{self.masks} holds no label map (.nii.gz): download them too; {self.holds}")
        return folders, masks


def visible_paths(folder: Path) -> Iterator[Path]:
    """Paths in ``folder``, sorted, without those of operating systems: ``.DS_Store``, ``._NAME``, ``__MACOSX``."""
    return (path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__")))


def _by_patient(found: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    patients: dict[str, list[Path]] = {}
    for name, path in found:
        patients.setdefault(name.upper(), []).append(path)
    return patients


def read_trees(trees: Sequence[Tree], channels: Sequence[Channel], fewest: int) -> ScanResult:
    """Cases of all trees; what cannot be a case is listed.

    Args:
        trees: folders to read.
        channels: channels of every case.
        fewest: smallest number of phases of a complete study; with fewer, files are missing.

    Raises:
        DataError: a folder is missing or empty.
    """
    cases: list[SourceCase] = []
    problems: list[ConversionIssue] = []
    left_out: list[ConversionIssue] = []
    for tree in trees:
        folders, masks = tree.list_patients()
        for patient in sorted({*folders, *masks}):
            centre = ""
            try:
                centre = tree.centre_of(patient)
                folder = _only(folders.get(patient, []), f"{tree.images / patient} is missing, its label map is there")
                phases, others = _list_phases(folder, patient)
                left_out += [
                    ConversionIssue(str(path), f"is not named {patient}_000N.nii.gz, N the phase", centre)
                    for path in others
                ]
                if shorter := _too_short(phases, folder, patient, channels, fewest):
                    left_out.append(ConversionIssue(patient, shorter, centre))
                    continue
                label = _only(masks.get(patient, []), f"{tree.masks / patient}.nii.gz is missing, its images are there")
            except (DataError, OSError) as error:
                problems.append(ConversionIssue(patient, str(error), centre))
                continue
            sources = tuple(
                SourceImage(
                    phases[channel.phase], baseline=None if channel.baseline is None else phases[channel.baseline]
                )
                for channel in channels
            )
            cases.append(SourceCase(patient, centre, sources, SourceImage(label), LABEL_VALUES))
    return ScanResult(tuple(cases), tuple(channel.name for channel in channels), tuple(problems), tuple(left_out))


def _only(paths: Sequence[Path], missing: str) -> Path:
    if not paths:
        raise DataError(f"{missing}: download it too")
    if len(paths) > 1:
        raise DataError(f"{paths[0]} and {paths[1].name} differ in upper and lower case only: remove one")
    return paths[0]


def _list_phases(folder: Path, patient: str) -> tuple[dict[int, Path], list[Path]]:
    """Phase to file, and images that are not one of this patient's phases."""
    phases: dict[int, list[Path]] = {}
    others = []
    for path in visible_paths(folder):
        match = PHASE_FILE.fullmatch(path.name)
        if match and match[1].upper() == patient:
            phases.setdefault(int(match[2]), []).append(path)
        elif path.name.lower().endswith(NIFTI_ENDINGS):
            others.append(path)
    return {phase: _only(paths, f"{folder}: phase {phase} is missing") for phase, paths in phases.items()}, others


def _too_short(phases: Mapping[int, Path], folder: Path, patient: str, channels: Sequence[Channel], fewest: int) -> str:
    """Why a complete study has too few phases for the channels; empty if it has enough.

    Raises:
        DataError: a file is missing from the study.
    """
    needed = {channel.phase for channel in channels} | {
        channel.baseline for channel in channels if channel.baseline is not None
    }
    missing = sorted(needed - set(phases))
    if not missing:
        return ""
    if len(phases) >= fewest and set(phases) == set(range(len(phases))):
        return f"has {len(phases)} phases; --number-of-phases asks for {max(needed) + 1}"
    names = [f"{patient}_{phase:04d}.nii.gz" for phase in missing]
    raise DataError(f"{folder} lacks {' and '.join(names)}: download it again")


def centre_by_id(centres: Sequence[str], advice: str, patient: str) -> str:
    """The centre that a patient's id begins with.

    Raises:
        DataError: it begins with none of ``centres``; ends with ``advice``.
    """
    centre = re.split("[_-]", patient, maxsplit=1)[0]
    if centre not in centres:
        raise DataError(f"its id begins with none of {', '.join(centres)}{advice}")
    return centre
