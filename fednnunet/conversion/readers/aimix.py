"""AIMIX: fetal ultrasound of Algeria, Egypt, Malawi and Spain.

Sources of the layouts:

* African images: Zenodo 10.5281/zenodo.7540448, v1.0 (Sendra-Balcells et al., Scientific Reports 13:2728, 2023).
* Spanish images: FETAL_PLANES_DB, Zenodo 10.5281/zenodo.3904280, v1.0 (Burgos-Artizzu et al., Scientific Reports
  10:10200, 2020).

File names and folders of both are as in ``data/datasets/README.md`` of github.com/xfetus/xfetus. The paper announces
the masks and does not describe their files: their folder is an option.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from fednnunet.conversion.names import as_case_name
from fednnunet.conversion.readers.csv_table import read_table
from fednnunet.conversion.readers.source_files import (
    find_file,
    image_files,
    images_by_name,
    is_image,
    name_of,
    short_path,
)
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.errors import DataError

CHANNELS = ("ultrasound",)
ABDOMEN = "abdomen"

AIMIX_CENTRES = {
    **dict.fromkeys(("algeria", "dza"), "Algeria"),
    **dict.fromkeys(("egypt", "egy"), "Egypt"),
    **dict.fromkeys(("malawi", "mwi"), "Malawi"),
    **dict.fromkeys(("spain", "esp"), "Spain"),
}
"""Name or ISO 3166 code of a country, in lower case, to the centre."""
OTHER_COUNTRIES = ("ghana", "gha", "uganda", "uga")
"""Countries of the African set that are not in the paper."""
PLANE = "fetal abdomen"
AFRICAN_TABLE = "African_planes_database.csv"
SPANISH_TABLE = "FETAL_PLANES_DB_data.csv"
MASK_VALUES = {1: ABDOMEN, 255: ABDOMEN}
"""A binary mask is stored as 0 and 1 or, as images are, as 0 and 255."""
MASK_MARK = "_mask"
Where = tuple[str, str]
"""Centre (empty if not known) and name of a file, in lower case, without ending and ``_mask``."""


@dataclass(frozen=True)
class _Image:
    path: Path
    centre: str
    patient: str


@dataclass
class _Scan:
    """Images and issues found so far."""

    images: list[_Image] = field(default_factory=list)
    other: set[Where] = field(default_factory=set)  # images of other planes and countries
    problems: list[ConversionIssue] = field(default_factory=list)
    left_out: list[ConversionIssue] = field(default_factory=list)


def read_aimix(
    source: Path,
    *,
    masks: Annotated[
        Path | None, "folder of the masks, each named as its image (or with _mask after it); default: masks in SRC"
    ] = None,
    table: Annotated[
        Path | None,
        "CSV with the columns image, mask, centre and, optionally, patient and plane, with paths in SRC; "
        "instead of the published tables and folders",
    ] = None,
    duplicates: Annotated[
        Literal["keep", "drop"],
        "images that are the same file under two names: keep them, as cases of one patient, or drop all but the first",
    ] = "keep",
) -> ScanResult:
    """AIMIX fetal ultrasound: abdominal planes of Algeria, Egypt, Malawi and Spain.

    Without ``table``, ``source`` (or a folder in it) holds any of

    * ``African_planes_database.csv`` (Patient_num, Plane, Train, Center, Filename) beside ``<Center>/<Filename>.png``;
    * ``FETAL_PLANES_DB_data.csv`` (Image_name; Patient_num; Plane; …) beside ``Images/<Image_name>.png``: Spain;
    * folders ``Algeria``, ``Egypt``, ``Malawi``, ``Spain`` of images that no table lists.

    Only images of the plane "Fetal abdomen" count where a table gives the plane, and only images with a mask. A mask
    is in ``<masks>/<centre>/`` or anywhere else in ``<masks>``. Its foreground is 1 or 255.

    Patients are numbered per country. The African set holds images that are byte for byte those of another patient
    number: a fold must not train on one and validate on the other.

    Raises:
        DataError: no image of a centre is found, there are no masks, or a table lacks a column.
    """
    source = source.absolute()
    if not source.is_dir():
        raise DataError(f"there is no folder {source}")
    found = _Scan()
    if table is not None:
        pairs = _read_own_table(source, table, found)
    else:
        folder = (masks or find_file(source, "masks") or source / "masks").absolute()
        _read_published(source, folder, found)
        pairs = _add_masks(source, folder, found)
    cases = _join_duplicates(_cases_of(pairs, found), duplicates == "drop", found)
    return ScanResult(
        cases=tuple(cases),
        channel_names=CHANNELS,
        problems=tuple(found.problems),
        left_out=tuple(found.left_out),
        file_ending=".png",
    )


def _read_published(source: Path, masks: Path, found: _Scan) -> None:
    african, spanish = find_file(source, AFRICAN_TABLE), find_file(source, SPANISH_TABLE)
    if african is not None:
        _read_planes(african, "Filename", "Center", found)
    if spanish is not None:
        _read_planes(spanish, "Image_name", None, found)
    listed = {_where(image.centre, image.path) for image in found.images} | found.other
    for folder in sorted(path for path in (*source.glob("*"), *source.glob("*/*")) if path.is_dir()):
        centre = AIMIX_CENTRES.get(folder.name.lower())
        of_masks = masks in folder.parents and masks not in (source, *source.parents)
        if centre is not None and not of_masks:
            for path in image_files(folder):
                where = _where(centre, path)
                if where not in listed and not name_of(path).lower().endswith(MASK_MARK):
                    found.images.append(_Image(path, centre, f"{centre}_{where[1]}"))
    if not found.images and not found.problems:
        raise DataError(
            f"{source} holds no images of AIMIX: it needs {AFRICAN_TABLE} with the folders Algeria, Egypt and Malawi "
            f"(https://zenodo.org/records/7540448) and a folder Spain, or {SPANISH_TABLE} with the folder Images "
            "(https://zenodo.org/records/3904280)"
        )


def _read_planes(table: Path, name_column: str, centre_column: str | None, found: _Scan) -> None:
    """Add the images that a published table lists; without ``centre_column`` all are Spain's."""
    others: Counter[tuple[str, str]] = Counter()
    files: dict[Path, dict[str, Path]] = {}
    needed = (name_column, "Patient_num", "Plane", *([centre_column] if centre_column else []))
    for line, row in _lines(table, needed, found):
        name, country = row[name_column], row[centre_column] if centre_column else "Spain"
        where = f"{table.name} line {line}: {name or 'no name'}"
        centre = AIMIX_CENTRES.get(country.lower(), "")
        if not name or not row["Plane"]:
            found.problems.append(ConversionIssue(where, f"{name_column} or Plane is empty", centre))
        elif not centre and country.lower() not in OTHER_COUNTRIES:
            found.problems.append(ConversionIssue(where, f"Center {country!r} is not a centre of AIMIX"))
        elif not centre or row["Plane"].lower() != PLANE:
            others[centre, f"of {country}, not in the paper" if not centre else f"of the plane {row['Plane']}"] += 1
            found.other.add((centre or country.lower(), name.lower()))
        else:
            folder = table.parent / (country if centre_column else "Images")
            if folder not in files:
                files[folder] = images_by_name(folder)
            path = files[folder].get(name_of(Path(name)).lower())
            if path is None:
                found.problems.append(ConversionIssue(where, f"there is no image {name}.png in {folder}", centre))
                found.other.add((centre, name.lower()))  # so that its mask does not count as one without an image
            else:
                found.images.append(_Image(path, centre, f"{centre}_{row['Patient_num'] or name}"))
    for (centre, what), number in others.items():
        found.left_out.append(ConversionIssue(table.name, f"{number} images {what}", centre))


def _lines(table: Path, needed: tuple[str, ...], found: _Scan) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Number and cells of every line without a problem."""
    for row in read_table(table, needed).rows:
        if row.problem:
            found.problems.append(ConversionIssue(f"{table.name} line {row.line}", row.problem))
        else:
            yield row.line, row.cells


def _read_own_table(source: Path, table: Path, found: _Scan) -> list[tuple[_Image, Path]]:
    """Images and their masks."""
    pairs = []
    for line, row in _lines(table, ("image", "mask", "centre"), found):
        where = f"{table.name} line {line}: {row['image'] or 'no image'}"
        centre = AIMIX_CENTRES.get(row["centre"].lower(), "")
        missing = [text for text in (row["image"], row["mask"]) if text and not (source / text).is_file()]
        if not row["image"]:
            found.problems.append(ConversionIssue(where, "image is empty", centre))
        elif not centre:
            known = ", ".join(dict.fromkeys(AIMIX_CENTRES.values()))
            found.problems.append(ConversionIssue(where, f"centre {row['centre']!r} is none of {known}"))
        elif row.get("plane") and row["plane"].lower() not in (PLANE, ABDOMEN):
            found.left_out.append(ConversionIssue(where, f"image of the plane {row['plane']}", centre))
        elif missing:
            found.problems.append(ConversionIssue(where, f"there is no file {source / missing[0]}", centre))
        elif not row["mask"]:
            found.left_out.append(ConversionIssue(where, "it has no mask", centre))
        else:
            path = source / row["image"]
            patient = f"{centre}_{row.get('patient') or name_of(path)}"
            pairs.append((_Image(path, centre, patient), source / row["mask"]))
    return pairs


def _add_masks(source: Path, masks: Path, found: _Scan) -> list[tuple[_Image, Path]]:
    """Images and their masks; images without a mask are left out, masks without an image are problems."""
    if not masks.is_dir():
        raise DataError(
            f"there is no folder {masks}: the images of AIMIX are published without masks; put the abdominal masks "
            "(announced on https://github.com/faildeny/FednnUNet) there, each named as its image, or name their "
            "folder with masks or a CSV with table"
        )
    images = {image.path for image in found.images}
    others = {name for _, name in found.other}
    mask_files: dict[Where, Path] = {}
    for path in sorted(path for path in masks.rglob("*") if is_image(path) and path not in images):
        centres = [centre for part in path.relative_to(masks).parts if (centre := AIMIX_CENTRES.get(part.lower()))]
        where = _where(centres[-1] if centres else "", path)
        first = mask_files.setdefault(where, path)
        if first is not path and where[1] not in others:
            found.problems.append(
                ConversionIssue(short_path(path, masks), f"a second mask beside {short_path(first, masks)}", where[0])
            )
    pairs = []
    of_image = {}
    for image in found.images:
        centre, name = _where(image.centre, image.path)
        of_image[image] = (centre, name) if (centre, name) in mask_files else ("", name)
    used = Counter(of_image.values())
    for image, where in of_image.items():
        if where not in mask_files:
            found.left_out.append(
                ConversionIssue(short_path(image.path, source), f"it has no mask in {masks}", image.centre)
            )
        elif used[where] > 1:
            reason = f"the mask {short_path(mask_files[where], masks)} could be of {used[where]} images"
            found.problems.append(ConversionIssue(short_path(image.path, source), reason, image.centre))
        else:
            pairs.append((image, mask_files[where]))
    if images and not used.keys() & mask_files.keys():
        example = found.images[0].path
        raise DataError(
            f"none of the {len(images)} abdominal images of {source} has a mask in {masks}; that of {example.name} "
            f"would be {name_of(example)}.png or {name_of(example)}{MASK_MARK}.png"
        )
    for (centre, name), path in mask_files.items():
        if (centre, name) not in used and name not in others:
            found.problems.append(
                ConversionIssue(short_path(path, masks), f"mask without an image in {source}", centre)
            )
    return pairs


def _cases_of(pairs: list[tuple[_Image, Path]], found: _Scan) -> list[SourceCase]:
    cases: dict[tuple[str, str], SourceCase] = {}
    for image, mask in pairs:
        name, patient = as_case_name(name_of(image.path)), as_case_name(image.patient)
        case = SourceCase(name, image.centre, (SourceImage(image.path),), SourceImage(mask), MASK_VALUES, patient)
        first = cases.setdefault((image.centre, name), case)
        if first is not case:
            reason = f"it has the case name {name} of {first.channels[0].path}"
            found.problems.append(ConversionIssue(str(image.path), reason, image.centre))
    return list(cases.values())


def _join_duplicates(cases: list[SourceCase], drop: bool, found: _Scan) -> list[SourceCase]:
    """The cases; those of the same image (by its bytes) become one patient's, or are dropped but for the first."""
    first: dict[str, SourceCase] = {}
    kept: list[SourceCase] = []
    same: dict[str, str] = {}  # patient to another number of the same patient

    def number(patient: str) -> str:
        while patient in same:
            patient = same[patient]
        return patient

    for case in cases:
        digest = hashlib.sha256(case.channels[0].path.read_bytes()).hexdigest()
        original = first.setdefault(digest, case)
        if original is not case and drop:
            other_centre = f" of {original.centre}" if original.centre != case.centre else ""
            reason = f"the same image as {original.name}{other_centre}"
            found.left_out.append(ConversionIssue(case.name, reason, case.centre))
            continue
        if number(case.patient) != number(original.patient):
            same[number(case.patient)] = number(original.patient)
        kept.append(case)
    return [replace(case, patient=number(case.patient)) for case in kept]


def _where(centre: str, path: Path) -> Where:
    return centre, name_of(path).lower().removesuffix(MASK_MARK)
