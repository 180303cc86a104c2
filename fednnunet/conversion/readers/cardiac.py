"""Readers of short-axis cine MRI of the heart: M&Ms-1 and M&Ms-2 merged, and ACDC."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from fednnunet.conversion.readers.csv_table import Row, Table, read_table
from fednnunet.conversion.readers.mnms_overlap import SHARED_DIAGNOSES, find_same_images, read_overlap, subject_code
from fednnunet.conversion.study import ConversionIssue, ScanResult, Source, SourceCase
from fednnunet.errors import ConfigError, DataError

CHANNEL_NAMES = ("cineMRI",)
PHASES = ("ED", "ES")
MNMS_LABELS = {1: "LV", 2: "MYO", 3: "RV"}
ACDC_LABELS = {1: "RV", 2: "MYO", 3: "LV"}

MNMS_CENTRES = {1: "Vall d'Hebron", 2: "Sagrada Familia", 3: "Hamburg", 4: "Dexeus", 5: "Sant Pau"}
"""Column ``Centre`` of M&Ms-1's CSV."""
MCGILL = 6
"""McGill University Health Centre: not in the open release, and no centre of FednnU-Net's paper."""
MNMS2_CENTRES = {"SIEMENS": MNMS_CENTRES[1], "PHILIPS": MNMS_CENTRES[2], "GE": MNMS_CENTRES[4]}
"""First word of column ``VENDOR`` of M&Ms-2's CSV."""

MNMS1_ANNOTATED = ("Training/Labeled", "Validation", "Testing")
MNMS1_UNANNOTATED = "Training/Unlabeled"
MNMS1_COLUMNS = ("External code", "Centre", "ED", "ES")
MNMS2_COLUMNS = ("SUBJECT_CODE", "VENDOR")
MERGED_COLUMNS = ("ID", "Centre")
MNMS_HOLDS = (
    "it should hold M&Ms-1 (https://www.ub.edu/mnms/: OpenDataset with its CSV and Training, Validation, Testing) and "
    "M&Ms-2 (https://www.ub.edu/mnms-2/: MnM2 with dataset_information.csv and dataset), each unpacked, or the merged "
    "collection of the paper (a CSV with columns ID and Centre, and a folder per patient)"
)
ACDC_HOLDS = (
    "it should hold training (patient001 to patient100) and testing (patient101 to patient150), or database with both; "
    "download and unpack https://humanheart-project.creatis.insa-lyon.fr/database/#collection/637218c173e9f0047faa00fb"
)


@dataclass
class Collector:
    """Studies of each patient, by id in the source, what is said of others, and all ids that were seen."""

    patients: dict[str, tuple[SourceCase, ...]] = field(default_factory=dict)
    problems: list[ConversionIssue] = field(default_factory=list)
    left_out: list[ConversionIssue] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def add(
        self, patient: str, centre: str, pairs: Mapping[str, tuple[Source, Source]], labels: dict[int, str]
    ) -> None:
        """Phase to image and label map; a problem where a file is missing."""
        missing = dict.fromkeys(source.path for pair in pairs.values() for source in pair if not source.path.is_file())
        if missing:
            self.problem(patient, f"missing: {', '.join(map(str, missing))}; unpack the download again", centre)
            return
        self.patients[patient] = tuple(
            SourceCase(f"{patient}_{phase}", centre, (image,), label, labels, patient)
            for phase, (image, label) in pairs.items()
        )

    def problem(self, study: str, reason: str, centre: str = "") -> None:
        self.problems.append(ConversionIssue(study, reason, centre))

    def leave_out(self, study: str, reason: str, centre: str = "") -> None:
        self.left_out.append(ConversionIssue(study, reason, centre))

    def survey(self) -> ScanResult:
        """All of it, by id."""
        studies = tuple(study for _, studies in sorted(self.patients.items()) for study in studies)
        return ScanResult(studies, CHANNEL_NAMES, tuple(self.problems), tuple(self.left_out))


# ---------------------------------------------------------------------------------------------------- M&Ms


def read_mnms(
    source: Path,
    *,
    mnms2: Annotated[Path | None, "folder of M&Ms-2 (MnM2), where it is not in SRC"] = None,
    overlap: Annotated[
        Path | None, "CSV with columns mnms1 and mnms2, the two ids of each patient that is in both"
    ] = None,
    duplicates: Annotated[
        Literal["images", "diagnosis", "keep"],
        "without --overlap, who of M&Ms-2 is taken to be in M&Ms-1: images, whoever has a frame of the same voxel "
        "values; diagnosis, whoever has NOR, HCM or LV; keep, nobody",
    ] = "images",
    prefer: Annotated[
        Literal["mnms1", "mnms2"], "whose images and annotation of a patient that is in both become cases"
    ] = "mnms1",
    centres: Annotated[
        Path | None,
        "CSV with columns subject and centre (name or number), where the hospital is another than M&Ms-1's CSV or "
        "M&Ms-2's vendor says",
    ] = None,
) -> ScanResult:
    """Short-axis cine MRI of M&Ms-1 and M&Ms-2 merged: five hospitals, each patient once, ED and ES.

    M&Ms-1 (Campello et al., IEEE TMI 40(12), 2021): the release ``OpenDataset`` with its CSV of 2021-12-30 or of
    2020-10-14, as nnU-Net 2.8.1 (``Dataset114_MNMs.py``) and CineMA 4e352ac (``cinema/data/mnms``) read it; frames
    count from 0. The hospitals' numbers are those of OpenMEDLab's description of the dataset; its number 5, Clínica
    Creu Blanca, is Sant Pau on the challenge's page and in FednnU-Net's paper. M&Ms-2 (Martín-Isla et al., IEEE JBHI
    27(7), 2023): the release ``MnM2``, as CineMA (``cinema/data/mnms2``) and qcardia-data ee01092
    (``setup/reformat/mm2.py``) read it. It names no hospitals; by Table 5 of FednnU-Net's paper each of its three
    vendors is one hospital's. The merged collection of that paper is read as its code b7814cf
    (``Dataset333_MNMs3.py``) does, and needs no list.

    Args:
        source: folder that holds both releases, or the merged collection.
        mnms2: M&Ms-2, where it lies elsewhere.
        overlap: patients of both.
        duplicates: how these are found without ``overlap``.
        prefer: which release's images of them are taken.
        centres: hospitals of subjects.

    Raises:
        DataError: ``source`` holds neither release, a folder of one is missing, or a CSV cannot be read.
        ConfigError: options that cannot go together.
    """
    for folder in (source, mnms2 or source):
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; {MNMS_HOLDS}")
    given = {} if centres is None else _read_centres(centres)
    merged = _find_table(source, MERGED_COLUMNS)
    if merged is not None:
        return _read_merged(merged, given).survey()
    pairs = None if overlap is None else read_overlap(overlap)
    if pairs is None and duplicates == "diagnosis" and prefer == "mnms2":
        raise ConfigError("duplicates=diagnosis pairs nobody: it can only leave out patients of M&Ms-2; prefer=mnms1")
    tables = _find_table(source, MNMS1_COLUMNS), _find_table(mnms2 or source, MNMS2_COLUMNS)
    if tables == (None, None):
        raise DataError(f"{source} holds no CSV of M&Ms-1 or M&Ms-2; {MNMS_HOLDS}")
    first = Collector() if tables[0] is None else _read_mnms1(tables[0], given)
    second = Collector() if tables[1] is None else _read_mnms2(tables[1], given)
    for name, table, folder in (("M&Ms-1", tables[0], source), ("M&Ms-2", tables[1], mnms2 or source)):
        if table is None:
            first.problem(name, f"{folder} holds no CSV of {name}; {MNMS_HOLDS}")
    if pairs is not None:
        _check_overlap(pairs, first, second)
    elif None in tables or duplicates == "keep":
        pairs = {}
    elif duplicates == "images":
        pairs = _pair_by_images(first, second)
    else:
        assert tables[1] is not None
        pairs = {}
        _leave_out_by_diagnosis(second, tables[1])
    _remove_twins(first, second, pairs, prefer)
    first.patients |= second.patients
    first.problems += second.problems
    first.left_out += second.left_out
    return first.survey()


def _read_mnms1(table: Table, given: Mapping[str, str]) -> Collector:
    root, found = table.path.parent, Collector()
    folders = {path.name: path for part in MNMS1_ANNOTATED for path in _folders(root / part, MNMS_HOLDS)}
    bare = root / MNMS1_UNANNOTATED
    unannotated = {path.name for path in _folders(bare, MNMS_HOLDS)} if bare.is_dir() else set()
    rows = _by_id(table, "External code", found)
    found.seen |= {*rows, *folders, *unannotated}
    for patient in sorted(found.seen):
        row = rows.get(patient)
        number = "" if row is None else row.cells["Centre"]
        centre = given.get(patient) or _centre_of_number(number)
        frames = {phase: None if row is None else _whole_number(row.cells[phase]) for phase in PHASES}
        unpacked = patient in folders
        if patient in unannotated or (not unpacked and set(frames.values()) == {0}):
            found.leave_out(patient, f"M&Ms-1 has no annotation of it ({MNMS1_UNANNOTATED})", centre or "")
        elif row is None:
            found.problem(patient, f"{table.path.name} has no line for it, so no centre and no frames", centre or "")
        elif centre is None and _whole_number(number) == MCGILL:
            found.leave_out(patient, "McGill University Health Centre is no centre of the paper")
        elif centre is None:
            found.problem(patient, f"{_where(table, row)}: unknown Centre {number!r}; name its hospital with --centres")
        elif not unpacked:
            parts = ", ".join(MNMS1_ANNOTATED)
            found.problem(
                patient, f"{_where(table, row)} has it, none of {parts} has; unpack the download again", centre
            )
        elif None in frames.values() or frames["ED"] == frames["ES"]:
            shown = ", ".join(f"{phase} {row.cells[phase]!r}" for phase in PHASES)
            found.problem(patient, f"{_where(table, row)}: {shown} must be two frames, counted from 0", centre)
        else:
            image, label = (folders[patient] / f"{patient}_sa{what}.nii.gz" for what in ("", "_gt"))
            pairs = {phase: (Source(image, frame), Source(label, frame)) for phase, frame in frames.items()}
            found.add(patient, centre, pairs, MNMS_LABELS)
    return found


def _read_mnms2(table: Table, given: Mapping[str, str]) -> Collector:
    found = Collector()
    folders = {path.name: path for path in _folders(table.path.parent / "dataset", MNMS_HOLDS)}
    rows = {subject_code(code): row for code, row in _by_id(table, "SUBJECT_CODE", found).items()}
    found.seen |= {*rows, *folders}
    for patient in sorted(found.seen):
        row = rows.get(patient)
        vendor = "" if row is None else row.cells["VENDOR"]
        centre = given.get(patient) or MNMS2_CENTRES.get(vendor.upper().partition(" ")[0])
        if row is None:
            found.problem(patient, f"{table.path.name} has no line for it", centre or "")
        elif centre is None:
            found.problem(patient, f"{_where(table, row)}: unknown VENDOR {vendor!r}; name its hospital with --centres")
        elif patient not in folders:
            found.problem(
                patient, f"{_where(table, row)} has it, the folder dataset does not; unpack the download again", centre
            )
        else:
            stem = folders[patient] / f"{patient}_SA"
            found.add(patient, centre, {phase: _image_and_label(f"{stem}_{phase}") for phase in PHASES}, MNMS_LABELS)
    return found


def _read_merged(table: Table, given: Mapping[str, str]) -> Collector:
    found = Collector()
    for code, row in sorted(_by_id(table, "ID", found).items()):
        patient, number = subject_code(code), row.cells["Centre"]
        centre = given.get(patient) or _centre_of_number(number)
        if centre is None:
            found.problem(patient, f"{_where(table, row)}: unknown Centre {number!r}; name its hospital with --centres")
            continue
        folder = table.path.parent / patient
        plain = {phase: _image_and_label(f"{folder / patient}_{phase}") for phase in PHASES}
        of_mnms2 = {phase: _image_and_label(f"{folder / patient}_SA_{phase}") for phase in PHASES}
        is_of_mnms2 = any(source.path.is_file() for pair in of_mnms2.values() for source in pair)
        found.add(patient, centre, of_mnms2 if is_of_mnms2 else plain, MNMS_LABELS)
    return found


def _check_overlap(pairs: Mapping[str, str], first: Collector, second: Collector) -> None:
    for code, patient in sorted(pairs.items()):
        for release, name, seen in (("M&Ms-1", patient, first.seen), ("M&Ms-2", code, second.seen)):
            if name not in seen:
                first.problem(name, f"the overlap list has it, {release} has not; look for a misspelt id")


def _pair_by_images(first: Collector, second: Collector) -> dict[str, str]:
    cines = {patient: studies[0].channels[0].path for patient, studies in first.patients.items()}
    frames = {code: [study.channels[0].path for study in studies] for code, studies in second.patients.items()}
    pairs = find_same_images(cines, frames)
    if not pairs:
        first.problem(
            "M&Ms-2",
            "nobody has a frame with the voxel values of one in M&Ms-1, yet the paper says that patients are in both: "
            "name them with --overlap, or choose --duplicates diagnosis or --duplicates keep",
        )
    return pairs


def _leave_out_by_diagnosis(second: Collector, table: Table) -> None:
    if "DISEASE" not in table.columns:
        raise DataError(f"{table.path} has no column DISEASE, which --duplicates diagnosis needs")
    for row in table.rows:
        patient, disease = subject_code(row.cells["SUBJECT_CODE"]), row.cells["DISEASE"]
        if disease in SHARED_DIAGNOSES and patient in second.patients:
            centre = second.patients.pop(patient)[0].centre
            second.leave_out(patient, f"may be in M&Ms-1, by its diagnosis {disease}", centre)


def _remove_twins(
    first: Collector, second: Collector, pairs: Mapping[str, str], prefer: Literal["mnms1", "mnms2"]
) -> None:
    """Take one of each pair, where both would become cases."""
    for code, patient in sorted(pairs.items()):
        if code not in second.patients or patient not in first.patients:
            continue
        centre = first.patients[patient][0].centre  # M&Ms-1 names the hospital, M&Ms-2 only the vendor
        if prefer == "mnms1":
            del second.patients[code]
            second.leave_out(code, f"is {patient} of M&Ms-1", centre)
        else:
            del first.patients[patient]
            first.leave_out(patient, f"is {code} of M&Ms-2", centre)
            second.patients[code] = tuple(replace(study, centre=centre) for study in second.patients[code])


def _read_centres(path: Path) -> dict[str, str]:
    given = {}
    for row in (table := read_table(path, ("subject", "centre"))).rows:
        text = row.cells["centre"]
        centre = text if text in MNMS_CENTRES.values() else _centre_of_number(text)
        if centre is None:
            raise DataError(f"{_where(table, row)}: centre {text!r} is none of {', '.join(MNMS_CENTRES.values())}")
        given[subject_code(row.cells["subject"])] = centre
    return given


def _find_table(folder: Path, needed: tuple[str, ...]) -> Table | None:
    """The newest CSV with the needed columns, in a folder or those in it; names of the releases' begin with a date."""
    for path in sorted([*folder.glob("*.csv"), *folder.glob("*/*.csv")], key=lambda path: path.name, reverse=True):
        table = read_table(path)
        if set(needed) <= set(table.columns):
            return table
    return None


def _by_id(table: Table, column: str, found: Collector) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for row in table.rows:
        patient = row.cells[column]
        if row.problem or not patient:
            found.problem(_where(table, row), row.problem or f"no {column}")
        elif patient in rows:
            found.problem(patient, f"{_where(table, row)}: it stands in line {rows[patient].line} already")
        else:
            rows[patient] = row
    return rows


def _centre_of_number(text: str) -> str | None:
    number = _whole_number(text)
    return None if number is None else MNMS_CENTRES.get(number)


# ---------------------------------------------------------------------------------------------------- ACDC


def read_acdc(source: Path) -> ScanResult:
    """Short-axis cine MRI of ACDC: 150 patients of Dijon's University Hospital, ED and ES, which only test.

    The layout is that of nnU-Net 2.8.1 (``Dataset027_ACDC.py``) and CineMA 4e352ac (``cinema/data/acdc``), for the
    dataset of Bernard et al., IEEE TMI 37(11), 2018, https://www.creatis.insa-lyon.fr/Challenge/acdc/. ``Info.cfg``
    numbers the frames from 1, as the files' names do.

    Args:
        source: folder with ``training`` and ``testing``, or with ``database`` that has both.

    Raises:
        DataError: ``source`` is no whole download: says which folder is missing.
    """
    root = source / "database" if (source / "database").is_dir() else source
    found = Collector()
    for part in ("training", "testing"):
        for folder in _folders(root / part, ACDC_HOLDS):
            try:
                frames = _read_info(folder / "Info.cfg")
            except DataError as error:
                found.problem(folder.name, str(error), "ACDC")
                continue
            stem = folder / folder.name
            pairs = {phase: _image_and_label(f"{stem}_frame{frame:02d}") for phase, frame in frames.items()}
            found.add(folder.name, "ACDC", pairs, ACDC_LABELS)
    if not found.patients and not found.problems:
        raise DataError(f"{root / 'training'} and {root / 'testing'} hold no folder of a patient; {ACDC_HOLDS}")
    return found.survey()


def _read_info(path: Path) -> dict[str, int]:
    """Numbers of the frames ED and ES, of lines such as ``ED: 1``."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; unpack the download again") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    values = dict(re.findall(r"^[ \t]*(\w+)[ \t]*:[ \t]*(\S*)", text, re.MULTILINE))
    frames = {phase: _whole_number(values.get(phase, "")) for phase in PHASES}
    known = {phase: frame for phase, frame in frames.items() if frame is not None}
    if len(known) < len(PHASES) or known["ED"] == known["ES"]:
        raise DataError(f"{path} must have lines such as `ED: 1` and `ES: 12` with the numbers of two frames")
    return known


# ---------------------------------------------------------------------------------------------------- both


def _folders(parent: Path, holds: str) -> Iterator[Path]:
    if not parent.is_dir():
        raise DataError(f"there is no folder {parent}; {holds}")
    return (path for path in sorted(parent.iterdir()) if path.is_dir() and not path.name.startswith("."))


def _image_and_label(stem: str) -> tuple[Source, Source]:
    return Source(Path(f"{stem}.nii.gz")), Source(Path(f"{stem}_gt.nii.gz"))


def _whole_number(text: str) -> int | None:
    return int(float(text)) if re.fullmatch(r"\d{1,6}(\.0*)?", text) else None


def _where(table: Table, row: Row) -> str:
    return f"{table.path.name}, line {row.line}"
