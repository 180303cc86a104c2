"""M&Ms: short-axis cine MRI of the heart, M&Ms-1 and M&Ms-2 merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from fednnunet.conversion.readers.cine_mri import (
    PHASES,
    Collector,
    image_and_label,
    list_folders,
    whole_number,
)
from fednnunet.conversion.readers.csv_table import Row, Table, read_table
from fednnunet.conversion.readers.mnms_overlap import SHARED_DIAGNOSES, find_same_images, read_overlap, subject_code
from fednnunet.conversion.scan_result import ScanResult, SourceImage
from fednnunet.errors import ConfigError, DataError

MNMS_LABELS = {1: "LV", 2: "MYO", 3: "RV"}

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


def read_mnms(
    source: Path,
    *,
    mnms2: Annotated[Path | None, "folder of M&Ms-2 (MnM2), where it is not in SRC"] = None,
    overlap: Annotated[
        Path | None, "CSV with columns mnms1 and mnms2, the two ids of each patient that is in both"
    ] = None,
    duplicates: Annotated[
        Literal["images", "diagnosis", "keep"],
        "without --overlap, which patients of M&Ms-2 count as being in M&Ms-1: images, those with a frame of the same "
        "voxel values; diagnosis, those with NOR, HCM or LV; keep, none",
    ] = "images",
    prefer: Annotated[
        Literal["mnms1", "mnms2"], "whose images and annotation of a patient that is in both become cases"
    ] = "mnms1",
    centres: Annotated[
        Path | None,
        "CSV with columns subject and centre (name or number), for subjects whose hospital is not the one that "
        "M&Ms-1's CSV or M&Ms-2's vendor says",
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
        mnms2: folder of M&Ms-2, if it is elsewhere.
        overlap: table of the patients that are in both releases.
        duplicates: how these are found without ``overlap``.
        prefer: release whose images of them are taken.
        centres: table of subjects' hospitals.

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
        return _read_merged(merged, given).result()
    pairs = None if overlap is None else read_overlap(overlap)
    if pairs is None and duplicates == "diagnosis" and prefer == "mnms2":
        raise ConfigError(
            "duplicates=diagnosis finds no pairs: it can only leave out patients of M&Ms-2; set prefer=mnms1"
        )
    tables = _find_table(source, MNMS1_COLUMNS), _find_table(mnms2 or source, MNMS2_COLUMNS)
    if tables == (None, None):
        raise DataError(f"{source} holds no CSV of M&Ms-1 or M&Ms-2; {MNMS_HOLDS}")
    first = Collector() if tables[0] is None else _read_mnms1(tables[0], given)
    second = Collector() if tables[1] is None else _read_mnms2(tables[1], given)
    for name, table, folder in (("M&Ms-1", tables[0], source), ("M&Ms-2", tables[1], mnms2 or source)):
        if table is None:
            first.add_problem(name, f"{folder} holds no CSV of {name}; {MNMS_HOLDS}")
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
    _remove_duplicates(first, second, pairs, prefer)
    first.patients |= second.patients
    first.problems += second.problems
    first.left_out += second.left_out
    return first.result()


def _read_mnms1(table: Table, given: Mapping[str, str]) -> Collector:
    root, found = table.path.parent, Collector()
    folders = {path.name: path for part in MNMS1_ANNOTATED for path in list_folders(root / part, MNMS_HOLDS)}
    bare = root / MNMS1_UNANNOTATED
    unannotated = {path.name for path in list_folders(bare, MNMS_HOLDS)} if bare.is_dir() else set()
    rows = _by_id(table, "External code", found)
    found.seen |= {*rows, *folders, *unannotated}
    for patient in sorted(found.seen):
        row = rows.get(patient)
        number = "" if row is None else row.cells["Centre"]
        centre = given.get(patient) or _centre_of_number(number)
        frames = {phase: None if row is None else whole_number(row.cells[phase]) for phase in PHASES}
        unpacked = patient in folders
        if patient in unannotated or (not unpacked and set(frames.values()) == {0}):
            found.leave_out(patient, f"M&Ms-1 has no annotation of it ({MNMS1_UNANNOTATED})", centre or "")
        elif row is None:
            found.add_problem(
                patient, f"{table.path.name} has no line for it, so no centre and no frames", centre or ""
            )
        elif centre is None and whole_number(number) == MCGILL:
            found.leave_out(patient, "McGill University Health Centre is not a centre of the paper")
        elif centre is None:
            found.add_problem(
                patient, f"{table.locate(row)}: unknown Centre {number!r}; name its hospital with --centres"
            )
        elif not unpacked:
            parts = ", ".join(MNMS1_ANNOTATED)
            found.add_problem(
                patient, f"{table.locate(row)} has it, none of {parts} has; unpack the download again", centre
            )
        elif None in frames.values() or frames["ED"] == frames["ES"]:
            shown = ", ".join(f"{phase} {row.cells[phase]!r}" for phase in PHASES)
            found.add_problem(patient, f"{table.locate(row)}: {shown} must be two frames, counted from 0", centre)
        else:
            image, label = (folders[patient] / f"{patient}_sa{what}.nii.gz" for what in ("", "_gt"))
            pairs = {phase: (SourceImage(image, frame), SourceImage(label, frame)) for phase, frame in frames.items()}
            found.add(patient, centre, pairs, MNMS_LABELS)
    return found


def _read_mnms2(table: Table, given: Mapping[str, str]) -> Collector:
    found = Collector()
    folders = {path.name: path for path in list_folders(table.path.parent / "dataset", MNMS_HOLDS)}
    rows = {subject_code(code): row for code, row in _by_id(table, "SUBJECT_CODE", found).items()}
    found.seen |= {*rows, *folders}
    for patient in sorted(found.seen):
        row = rows.get(patient)
        vendor = "" if row is None else row.cells["VENDOR"]
        centre = given.get(patient) or MNMS2_CENTRES.get(vendor.upper().partition(" ")[0])
        if row is None:
            found.add_problem(patient, f"{table.path.name} has no line for it", centre or "")
        elif centre is None:
            found.add_problem(
                patient, f"{table.locate(row)}: unknown VENDOR {vendor!r}; name its hospital with --centres"
            )
        elif patient not in folders:
            found.add_problem(
                patient,
                f"{table.locate(row)} has it, the folder dataset does not; unpack the download again",
                centre,
            )
        else:
            stem = folders[patient] / f"{patient}_SA"
            found.add(patient, centre, {phase: image_and_label(f"{stem}_{phase}") for phase in PHASES}, MNMS_LABELS)
    return found


def _read_merged(table: Table, given: Mapping[str, str]) -> Collector:
    found = Collector()
    for code, row in sorted(_by_id(table, "ID", found).items()):
        patient, number = subject_code(code), row.cells["Centre"]
        centre = given.get(patient) or _centre_of_number(number)
        if centre is None:
            found.add_problem(
                patient, f"{table.locate(row)}: unknown Centre {number!r}; name its hospital with --centres"
            )
            continue
        folder = table.path.parent / patient
        plain = {phase: image_and_label(f"{folder / patient}_{phase}") for phase in PHASES}
        of_mnms2 = {phase: image_and_label(f"{folder / patient}_SA_{phase}") for phase in PHASES}
        is_of_mnms2 = any(source.path.is_file() for pair in of_mnms2.values() for source in pair)
        found.add(patient, centre, of_mnms2 if is_of_mnms2 else plain, MNMS_LABELS)
    return found


def _check_overlap(pairs: Mapping[str, str], first: Collector, second: Collector) -> None:
    for code, patient in sorted(pairs.items()):
        for release, name, seen in (("M&Ms-1", patient, first.seen), ("M&Ms-2", code, second.seen)):
            if name not in seen:
                first.add_problem(name, f"the overlap list has it, {release} does not; check the id's spelling")


def _pair_by_images(first: Collector, second: Collector) -> dict[str, str]:
    cines = {patient: cases[0].channels[0].path for patient, cases in first.patients.items()}
    frames = {code: [case.channels[0].path for case in cases] for code, cases in second.patients.items()}
    pairs = find_same_images(cines, frames)
    if not pairs:
        first.add_problem(
            "M&Ms-2",
            "no patient has a frame with the voxel values of one in M&Ms-1, yet the paper says that some are in both: "
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


def _remove_duplicates(
    first: Collector, second: Collector, pairs: Mapping[str, str], prefer: Literal["mnms1", "mnms2"]
) -> None:
    """Keep one patient of each pair, where both would become cases."""
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
            second.patients[code] = tuple(replace(case, centre=centre) for case in second.patients[code])


def _read_centres(path: Path) -> dict[str, str]:
    given = {}
    for row in (table := read_table(path, ("subject", "centre"))).rows:
        text = row.cells["centre"]
        centre = text if text in MNMS_CENTRES.values() else _centre_of_number(text)
        if centre is None:
            raise DataError(f"{table.locate(row)}: centre {text!r} is none of {', '.join(MNMS_CENTRES.values())}")
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
            found.add_problem(table.locate(row), row.problem or f"no {column}")
        elif patient in rows:
            found.add_problem(patient, f"{table.locate(row)}: it is in line {rows[patient].line} already")
        else:
            rows[patient] = row
    return rows


def _centre_of_number(text: str) -> str | None:
    number = whole_number(text)
    return None if number is None else MNMS_CENTRES.get(number)
