"""Readers of breast DCE-MRI: MAMA-MIA, and EuCanImage laid out alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from fednnunet.conversion.readers.csv_table import read_table
from fednnunet.conversion.study import ConversionIssue, ScanResult, Source, SourceCase
from fednnunet.errors import ConfigError, DataError

Phases = Literal["first", "all", "subtraction"]

MAMAMIA_CENTRES = ("ISPY1", "ISPY2", "DUKE", "NACT")
MAMAMIA_FEWEST_PHASES = 3
"""``num_phases`` in ``clinical_and_imaging_info.xlsx`` is at least 3 in each of the four cohorts."""
MAMAMIA_HOLDS = (
    "MAMA-MIA as downloaded from Synapse (syn60868042) holds images/PATIENT/PATIENT_000N.nii.gz and "
    "segmentations/expert/PATIENT.nii.gz, with PATIENT such as ISPY1_1001 and N the phase"
)
EUCANIMAGE_CENTRES = ("GUMED", "KAUNO", "HCB")
EUCANIMAGE_FEWEST_PHASES = 2
"""Before contrast, and the first after it."""
EUCANIMAGE_HOLDS = (
    "the EuCanImage reader takes MAMA-MIA's layout: images/PATIENT/PATIENT_000N.nii.gz, N the phase, and "
    "segmentations/PATIENT.nii.gz or segmentations/expert/PATIENT.nii.gz; all centres in one such tree, or one tree a "
    f"centre in folders named {', '.join(EUCANIMAGE_CENTRES)}"
)
LABEL_VALUES = {1: "tumour"}
PHASE_FILE = re.compile(r"(.+)_(\d{4})\.nii\.gz", re.IGNORECASE)
IMAGE_FILES = (".nii.gz", ".nii")

PhasesOption = Annotated[
    Phases,
    "first: the first phase after contrast, on which the tumours were drawn; all: the first --number-of-phases, as "
    "channels; subtraction: the first phase after contrast minus that before it",
]
NumberOption = Annotated[
    int, "channels of --phases all, that before contrast included; studies with fewer phases are left out"
]


def read_mamamia(
    source: Path,
    *,
    phases: PhasesOption = "first",
    number_of_phases: NumberOption = 3,
    segmentation: Annotated[
        Literal["expert", "automatic"], "label maps by experts, as in the paper, or by the authors' nnU-Net"
    ] = "expert",
) -> ScanResult:
    """Breast DCE-MRI of MAMA-MIA: ISPY1, ISPY2, DUKE and NACT.

    The layout is that of the figure and the readers in https://github.com/LidiaGarrucho/MAMA-MIA (commit bfc321a;
    ``docs/_static/dataset_info.png``, ``src/preprocessing.py``) for the dataset of Garrucho et al., Scientific Data
    12:453, 2025, Synapse syn60868042. Phase 0000 is before contrast, 0001 the first after it, on which the experts
    drew; the FednnU-Net paper does not say which it trained on. The case of letters does not matter: the figure has
    ``DUKE_001/DUKE_001_0001.nii.gz``, code of users ``DUKE_001/duke_001_0001.nii.gz`` (such as
    https://github.com/FraunhoferMEVIS/MAMA-MIA-Challange-FME). Tables and ``patient_info_files`` are not read. Axial
    and sagittal volumes are mixed, as in the paper.

    Args:
        source: folder with ``images`` and ``segmentations``.
        phases: what becomes the channels.
        number_of_phases: channels of ``phases="all"``; every published study has 3.
        segmentation: which label maps.

    Raises:
        DataError: ``source`` is no whole download: says which folder or what in it is missing.
        ConfigError: ``number_of_phases`` is less than 2.
    """
    channels = _channels(phases, number_of_phases)
    centre_of = partial(_centre_by_id, MAMAMIA_CENTRES, "")
    tree = _Tree(source, source / "segmentations" / segmentation, centre_of, MAMAMIA_HOLDS)
    return _read_trees([tree], channels, MAMAMIA_FEWEST_PHASES)


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

    No layout is published. Read is MAMA-MIA's, which is of the same authors. Where ``segmentations`` has no folder
    ``expert``, the label maps lie in it, as in ``src/challenge/scoring_task1.py`` of
    https://github.com/LidiaGarrucho/MAMA-MIA (commit bfc321a), for the challenge's hidden European test set.

    Args:
        source: folder with ``images`` and ``segmentations``, or with one such folder per centre.
        phases: what becomes the channels.
        number_of_phases: channels of ``phases="all"``.
        centres: table of patients and centres, separated by comma or semicolon. Without it the centre is the folder's
            name where ``source`` has one per centre, else what the patient's id begins with (``GUMED_0001``).

    Raises:
        DataError: ``source`` has not that layout, or ``centres`` is no such table: says what is missing.
        ConfigError: ``number_of_phases`` is less than 2.
    """
    channels = _channels(phases, number_of_phases)
    table = None if centres is None else _CentreTable.read(centres)
    trees, problems = _eucanimage_trees(source, table)
    survey = _read_trees(trees, channels, EUCANIMAGE_FEWEST_PHASES)
    if table is not None:
        found = {remark.study for remark in survey.problems + survey.left_out} | {s.case for s in survey.studies}
        problems += table.problems(found)
    return ScanResult(survey.studies, survey.channel_names, (*survey.problems, *problems), survey.left_out)


class _Channel(NamedTuple):
    """A phase, less that of ``baseline`` where there is one."""

    name: str
    phase: int
    baseline: int | None = None


def _channels(phases: Phases, number: int) -> list[_Channel]:
    if phases == "first":
        return [_Channel(_phase_name(1), 1)]
    if phases == "subtraction":
        return [_Channel(f"{_phase_name(1)} minus {_phase_name(0)}", 1, 0)]
    if number < 2:
        raise ConfigError(
            f"--number-of-phases is {number}; it must be at least 2, the phases before and after contrast"
        )
    return [_Channel(_phase_name(phase), phase) for phase in range(number)]


def _phase_name(phase: int) -> str:
    return f"post-contrast {phase}" if phase else "pre-contrast"


@dataclass(frozen=True)
class _Tree:
    """A folder in MAMA-MIA's layout.

    Attributes:
        folder: that holds ``images``.
        masks: folder of the label maps.
        centre_of: a patient's centre; raises DataError where it is not known.
        holds: what should be there, for errors.
    """

    folder: Path
    masks: Path
    centre_of: Callable[[str], str]
    holds: str

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def list_patients(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """Patient to folders of images, and to label maps; more than one where names differ in case only.

        Raises:
            DataError: a folder is missing or empty.
        """
        for folder in (self.folder, self.images):
            if not folder.is_dir():
                raise DataError(f"there is no folder {folder}; {self.holds}")
        folders = _by_patient((path.name, path) for path in _visible(self.images) if path.is_dir())
        if not folders:
            raise DataError(f"{self.images} holds no folder of a patient; {self.holds}")
        if not self.masks.is_dir():
            raise DataError(f"{self.images} is there and {self.masks} is not: download that too; {self.holds}")
        masks = _by_patient(
            (path.name[: -len(".nii.gz")], path)
            for path in _visible(self.masks)
            if path.name.lower().endswith(".nii.gz")
        )
        if not masks:
            raise DataError(f"{self.masks} holds no label map (.nii.gz): download them too; {self.holds}")
        return folders, masks


def _visible(folder: Path) -> Iterator[Path]:
    """Sorted, without what systems leave: ``.DS_Store``, ``._NAME``, ``__MACOSX``."""
    return (path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__")))


def _by_patient(found: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    patients: dict[str, list[Path]] = {}
    for name, path in found:
        patients.setdefault(name.upper(), []).append(path)
    return patients


def _read_trees(trees: Sequence[_Tree], channels: Sequence[_Channel], fewest: int) -> ScanResult:
    studies: list[SourceCase] = []
    problems: list[ConversionIssue] = []
    left_out: list[ConversionIssue] = []
    for tree in trees:
        folders, masks = tree.list_patients()
        for patient in sorted({*folders, *masks}):
            centre = ""
            try:
                centre = tree.centre_of(patient)
                folder = _only(folders.get(patient, []), f"{tree.images / patient} is missing, its label map is there")
                phases, strangers = _list_phases(folder, patient)
                left_out += [
                    ConversionIssue(str(path), f"is not named {patient}_000N.nii.gz, N the phase", centre)
                    for path in strangers
                ]
                if shorter := _too_short(phases, folder, patient, channels, fewest):
                    left_out.append(ConversionIssue(patient, shorter, centre))
                    continue
                label = _only(masks.get(patient, []), f"{tree.masks / patient}.nii.gz is missing, its images are there")
            except (DataError, OSError) as error:
                problems.append(ConversionIssue(patient, str(error), centre))
                continue
            sources = tuple(
                Source(phases[channel.phase], baseline=None if channel.baseline is None else phases[channel.baseline])
                for channel in channels
            )
            studies.append(SourceCase(patient, centre, sources, Source(label), LABEL_VALUES))
    return ScanResult(tuple(studies), tuple(channel.name for channel in channels), tuple(problems), tuple(left_out))


def _only(paths: Sequence[Path], missing: str) -> Path:
    if not paths:
        raise DataError(f"{missing}: download it too")
    if len(paths) > 1:
        raise DataError(f"{paths[0]} and {paths[1].name} differ in upper and lower case only: remove one")
    return paths[0]


def _list_phases(folder: Path, patient: str) -> tuple[dict[int, Path], list[Path]]:
    """Phase to file, and images that are none of this patient's phases."""
    phases: dict[int, list[Path]] = {}
    strangers = []
    for path in _visible(folder):
        match = PHASE_FILE.fullmatch(path.name)
        if match and match[1].upper() == patient:
            phases.setdefault(int(match[2]), []).append(path)
        elif path.name.lower().endswith(IMAGE_FILES):
            strangers.append(path)
    return {phase: _only(paths, f"{folder}: phase {phase} is missing") for phase, paths in phases.items()}, strangers


def _too_short(
    phases: Mapping[int, Path], folder: Path, patient: str, channels: Sequence[_Channel], fewest: int
) -> str:
    """Why a study without a gap has too few phases for the channels; empty where it has enough."""
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


def _centre_by_id(centres: Sequence[str], advice: str, patient: str) -> str:
    centre = re.split("[_-]", patient, maxsplit=1)[0]
    if centre not in centres:
        raise DataError(f"its id begins with none of {', '.join(centres)}{advice}")
    return centre


def _centre_by_folder(centre: str, _patient: str) -> str:
    return centre


def _eucanimage_trees(source: Path, table: _CentreTable | None) -> tuple[list[_Tree], list[ConversionIssue]]:
    """Trees to read, and folders in the place of a centre's that are named like none."""
    if not source.is_dir():
        raise DataError(f"there is no folder {source}; {EUCANIMAGE_HOLDS}")
    if (source / "images").is_dir():
        advice = "; give a CSV with columns patient and centre by --centres"
        by_id = partial(_centre_by_id, EUCANIMAGE_CENTRES, advice)
        return [_eucanimage_tree(source, by_id if table is None else table.centre_of)], []
    trees: list[_Tree] = []
    problems: list[ConversionIssue] = []
    for folder in _visible(source):
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
        first = f"; {problems[0].study}: {problems[0].reason}" if problems else ""
        raise DataError(
            f"{source} has neither a folder images nor a centre's folder with one{first}; {EUCANIMAGE_HOLDS}"
        )
    return trees, problems


def _eucanimage_tree(folder: Path, centre_of: Callable[[str], str]) -> _Tree:
    masks = folder / "segmentations"
    return _Tree(folder, masks / "expert" if (masks / "expert").is_dir() else masks, centre_of, EUCANIMAGE_HOLDS)


@dataclass(frozen=True)
class _CentreTable:
    """Patients and their centres, as a CSV gives them.

    Attributes:
        path: of the CSV.
        centres: patient in upper case to what stands for the centre, once or more often.
        nameless: lines without a patient.
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
        """Lines without a patient, and patients of whom nothing was ``found``."""
        return [
            *(ConversionIssue(f"{self.path}, line {line}", "names no patient") for line in self.nameless),
            *(
                ConversionIssue(patient, f"{self.path} names it; there are neither images nor a label map of it")
                for patient in sorted(set(self.centres) - found)
            ),
        ]
