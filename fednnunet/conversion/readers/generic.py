"""Any multi-centre dataset, listed in a CSV file: one line per case.

======================  ===========================================================================================
column                  what it holds
======================  ===========================================================================================
``image``               path of the image, relative to the CSV's folder or absolute
``image_<channel>``     instead of ``image``: one column per channel, in nnU-Net's order; nnU-Net chooses the
                        normalisation by the channel's name, so CT needs ``image_CT``
``label``               path of the label map
``centre``              name of the centre (``center`` is read as well)
``case``                not needed: name of the case, once per centre; the image's file name if not given
``patient``             not needed: cases of one patient stay together in cross-validation
======================  ===========================================================================================

Other columns are ignored. Commas, semicolons or tabs between cells.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from fednnunet.conversion.names import name_cases, number_labels, read_labels
from fednnunet.conversion.readers.csv_table import Row, Table, read_table
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.errors import ConfigError, DataError

SPELLING = {"center": "centre"} | {name: name for name in ("image", "label", "centre", "case", "patient")}
CHANNEL = "image_"
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
"""Files with a spacing; they become ``.nii.gz``."""
PICTURES = (".png", ".bmp")
"""2D files without spacing; they become ``.png``."""
LABELS_WANTED = "give the labels' names and the values that they have in the label maps: --labels tumour=1,node=2"


def read_generic(
    source: Path,
    *,
    labels: Annotated[
        str | None,
        "Names of the labels and their values in the label maps: tumour=1,node=2, or a JSON file. Two values may have "
        "one name. Background is 0.",
    ] = None,
) -> ScanResult:
    """Any dataset: SRC is a CSV file with the columns image, label and centre.

    See the module for the columns. No image is opened.

    Args:
        source: the CSV file.
        labels: names and values of the labels.

    Raises:
        ConfigError: no labels, or labels that cannot be read.
        DataError: the file cannot be read, lacks a column, or has no line.
    """
    if source.is_dir():
        raise DataError(f"{source} is a folder; SRC is a CSV file with the columns image, label and centre")
    table = read_table(source, ("label", "centre"), SPELLING)
    if labels is None:
        raise ConfigError(LABELS_WANTED)
    values, columns = read_labels(labels), _image_columns(table)
    if not table.rows:
        raise DataError(f"{source} has no line below its header")
    ending = _ending(table, columns)
    good, problems = [], []
    for row in table.rows:
        problem = _problem_of(row, columns, source.parent, ending)
        if problem:
            problems.append(_issue(row, columns, problem))
        else:
            good.append(row)
    used = Counter((row.cells["centre"], _case(row, columns)) for row in good)
    names = name_cases(case for _, case in used)
    cases = []
    for row in good:
        centre, case = row.cells["centre"], _case(row, columns)
        if used[centre, case] > 1:
            problems.append(_issue(row, columns, _shared(case, centre, good, columns)))
            continue
        cases.append(
            SourceCase(
                names[case],
                centre,
                tuple(SourceImage(_path(row.cells[column], source.parent)) for column in columns),
                SourceImage(_path(row.cells["label"], source.parent)),
                values,
                row.cells.get("patient") or case,
            )
        )
    return ScanResult(
        tuple(cases),
        tuple(column.removeprefix(CHANNEL) for column in columns),
        tuple(problems),
        file_ending=".png" if ending == PICTURES else ".nii.gz",
        labels=number_labels([values]),
    )


def _image_columns(table: Table) -> tuple[str, ...]:
    channels = tuple(name for name in table.columns if name.startswith(CHANNEL) and name != CHANNEL)
    has_image = "image" in table.columns
    if has_image and channels:
        raise DataError(f"{table.path} has the columns image and {channels[0]}; name the first image_<channel> as well")
    if not has_image and not channels:
        raise DataError(
            f"{table.path} has no column image, nor image_<channel> for each of several; it has "
            f"{', '.join(name for name in table.columns if name)}"
        )
    return channels or ("image",)


def _ending(table: Table, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Endings of volumes or of pictures, whichever most images are: a dataset holds only one kind."""
    paths = [row.cells[column].lower() for row in table.rows for column in columns]
    pictures = sum(path.endswith(PICTURES) for path in paths)
    return PICTURES if pictures > sum(path.endswith(VOLUMES) for path in paths) else VOLUMES


def _problem_of(row: Row, columns: tuple[str, ...], folder: Path, ending: tuple[str, ...]) -> str:
    if row.problem:
        return row.problem
    needed = (*columns, "label", "centre")
    empty = [column for column in needed if not row.cells[column]]
    if empty:
        return f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty"
    for column in (*columns, "label"):
        path = _path(row.cells[column], folder)
        if not path.name.lower().endswith((*VOLUMES, *PICTURES)):
            return f"{column}: {path} has none of the endings {', '.join((*VOLUMES, *PICTURES))}"
        if not path.name.lower().endswith(ending):
            what = "a volume" if ending == PICTURES else "a 2D image without spacing"
            return f"{column}: {path} is {what}, most images are not; convert them from a CSV file of their own"
        if not path.is_file():
            return f"{column}: {path} is missing"
    return ""


def _path(cell: str, folder: Path) -> Path:
    return folder / cell.replace("\\", "/")  # the table may have been made on Windows


def _case(row: Row, columns: tuple[str, ...]) -> str:
    if row.cells.get("case"):
        return row.cells["case"]
    name = _path(row.cells[columns[0]], Path()).name
    ending = next((ending for ending in (*VOLUMES, *PICTURES) if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)].removesuffix("_0000")


def _shared(case: str, centre: str, rows: list[Row], columns: tuple[str, ...]) -> str:
    lines = [str(row.line) for row in rows if (row.cells["centre"], _case(row, columns)) == (centre, case)]
    return f"lines {', '.join(lines)} of centre {centre} have one case name; give a column case with different ones"


def _issue(row: Row, columns: tuple[str, ...], reason: str) -> ConversionIssue:
    if row.problem:  # its cells may stand under other columns
        return ConversionIssue(f"line {row.line}", reason)
    return ConversionIssue(_case(row, columns) or f"line {row.line}", f"line {row.line}: {reason}", row.cells["centre"])
