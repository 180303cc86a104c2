"""Training data in DICOM: a folder per case, with one series per channel, and SEG or RTSTRUCT objects as labels.

Layout, as archives export it; names of files and of folders below a case's do not matter::

    SRC/
        CASE/                      or deeper: --cases "*/*"
            …                      one or several series of slices; one or several SEG or RTSTRUCT objects

Series are volumes, or refused, by :mod:`fednnunet.dicom.gate`. A CSV file with the columns ``case`` (the folder) and
``centre``, and ``patient`` if one has several cases, names the centres; without it all cases are of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fednnunet.conversion.manifest import digest
from fednnunet.conversion.names import name_cases
from fednnunet.conversion.readers.centre_table import Origin, read_origins
from fednnunet.conversion.readers.dicom.case_folder import (
    Absent,
    CaseFolder,
    choose_channels,
    label_source,
    open_case,
    safe_name,
)
from fednnunet.conversion.readers.dicom.patterns import parse_patterns
from fednnunet.conversion.readers.dicom.sources import annotation_image, series_image
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.dicom.label_map import Overlaps
from fednnunet.dicom.library import require_dicom
from fednnunet.dicom.patterns import Patterns, split_patterns
from fednnunet.dicom.series import Series
from fednnunet.errors import ConfigError, DataError
from fednnunet.listing import join_first

MOST_SHOWN = 12


def read_dicom(
    source: Path,
    *,
    labels: Annotated[
        str | None,
        "Labels, and what their structures are called: liver=Liver*|hepar,tumour=GTV*, or a JSON file. They get the "
        "values 1, 2, … in this order. Without it, the command lists the structures it found.",
    ] = None,
    channels: Annotated[
        str | None,
        "Channels, and what their series are called, by SeriesDescription or folder: T2=t2_tse*,ADC=*ADC*. If not "
        "given, the series that the labels were drawn on, named by its modality. nnU-Net chooses the normalisation by "
        "the name: CT for CT.",
    ] = None,
    annotations: Annotated[
        str | None,
        "Which SEG and RTSTRUCT objects to read, by SeriesDescription or file: *expert*|final; all if not given.",
    ] = None,
    cases: Annotated[str, "Which folders in SRC are cases: * for SRC/CASE, */* for SRC/PATIENT/STUDY."] = "*",
    overlaps: Annotated[
        Overlaps, "Voxels in two labels: stop, or the highest value wins, of the later label."
    ] = "stop",
    absent: Annotated[
        Absent, "A case without a structure for one of the labels: stop, or take the label as background there."
    ] = "stop",
    centres: Annotated[
        Path | None, "CSV file with the columns case and centre (and patient); without it all cases are of one centre."
    ] = None,
) -> ScanResult:
    """DICOM series with segmentations (SEG) or contours (RTSTRUCT): SRC holds a folder per case.

    See the module for the layout. Headers of all files are read. Cases are named by their folders; where that is the
    patient's name or id, by a digest of the series.

    Args:
        source: folder of the cases.
        labels: names of labels, and what their structures are called.
        channels: names of channels, and what their series are called.
        annotations: what the objects are called that hold the labels.
        cases: pattern of the folders that are cases.
        overlaps: what becomes of voxels in two labels.
        absent: what becomes of a case that lacks a label.
        centres: table of cases and their centres.

    Raises:
        ConfigError: the extra ``dicom`` is not installed; no labels; an option that cannot be read.
        DataError: there is no such folder, or no case in it; a table cannot be read.
    """
    require_dicom()
    wanted = parse_patterns(labels, "--labels") if labels is not None else None
    series_of = parse_patterns(channels, "--channels") if channels is not None else None
    origins = read_origins(centres, str) if centres else None
    opened, problems = _open_all(source, cases, split_patterns(annotations or ""))
    if wanted is None:
        raise ConfigError(f"give the labels, such as --labels liver=Liver*,tumour=GTV*; {_structures(opened)}")
    found: list[_Found] = []
    if "ignore" in wanted.names[:-1]:
        raise ConfigError("--labels: ignore must be the last label, as nnU-Net wants it")
    for case in opened:
        origin = _origin(case.name, origins, centres, source)
        try:
            if origin.problem:
                raise DataError(origin.problem)
            chosen = choose_channels(case, series_of)
            label = annotation_image(label_source(case, chosen, wanted, overlaps, absent))
        except DataError as error:
            problems.append(ConversionIssue(case.name, str(error), origin.centre))
        else:
            found.append(_Found(case, chosen, label, origin))
    found, copies, unlike = _without_copies(found)
    problems += unlike
    values = dict(enumerate(wanted.names, start=1))
    names = name_cases(one.name for one in found)
    patients: dict[str, str] = {}
    return ScanResult(
        tuple(
            SourceCase(
                names[one.name],
                one.origin.centre,
                tuple(map(series_image, one.series)),
                one.label,
                values,
                one.origin.patient or patients.setdefault(one.series[0].patient_id or one.name, names[one.name]),
            )
            for one in found
        ),
        _channel_names(found, series_of),
        tuple(problems),
        tuple(copies),
        labels={"background": 0} | {name: value for value, name in values.items()},
        notes=tuple(_notes(found, wanted)),
    )


@dataclass(frozen=True)
class _Found:
    """A case with its channels and label map."""

    case: CaseFolder
    series: list[Series]
    label: SourceImage
    origin: Origin

    @property
    def name(self) -> str:
        """What the case is to be called."""
        return safe_name(self.case, self.series[0])


def _without_copies(
    found: Sequence[_Found],
) -> tuple[list[_Found], list[ConversionIssue], list[ConversionIssue]]:
    """Each series in one case alone: a copy of a case is left out, and one with other channels or annotations, or of
    another centre, is a problem.

    Returns:
        Cases, copies that are left out, and problems.
    """
    kept: list[_Found] = []
    copies, problems = [], []
    first_of: dict[str, _Found] = {}
    for one in found:
        uids = [series.uid for series in one.series]
        first = next((first_of[uid] for uid in uids if uid in first_of), None)
        if first is None:
            kept.append(one)
            first_of |= dict.fromkeys(uids, one)
            continue
        if _content(one) == _content(first):
            reason = f"is a copy of {first.case.name}: the same series and annotations; it is taken once"
            copies.append(ConversionIssue(one.case.name, reason, one.origin.centre))
            continue
        same = next(series for series in one.series if first_of.get(series.uid) is first)
        problems.append(
            ConversionIssue(
                one.case.name,
                f"{same.where} is also in {first.case.folder}, with other channels or annotations, or of another "
                "centre: one image would be two cases; remove one, or choose by --cases",
                one.origin.centre,
            )
        )
    return kept, copies, problems


def _content(one: _Found) -> tuple[object, ...]:
    """By which copies of a case are told: its centre, its slices, and the bytes of its annotations."""
    slices = [series.sop_uids for series in one.series]
    return one.origin.centre, slices, sorted(digest(path) for path in one.label.files)


def _open_all(
    source: Path, pattern: str, annotations: tuple[str, ...]
) -> tuple[list[CaseFolder], list[ConversionIssue]]:
    """The cases' folders, and those that are none."""
    if not source.is_dir():
        raise DataError(f"{source} is no folder; SRC holds a folder of DICOM files per case")
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts or not pattern.strip():
        raise ConfigError(f"--cases: {pattern!r} must be a pattern of folders in SRC, such as * or */*")
    folders = sorted(path for path in source.glob(pattern) if path.is_dir() and not path.name.startswith("."))
    if not folders:
        own = (
            " (it holds files itself: give the folder above it)"
            if any(path.is_file() for path in source.iterdir())
            else ""
        )
        raise DataError(f"{source} holds no folder {pattern}{own}; SRC holds a folder of DICOM files per case")
    opened, problems = [], []
    for folder in folders:
        try:
            opened.append(open_case(source, folder, annotations))
        except DataError as error:
            problems.append(ConversionIssue(str(folder.relative_to(source)), str(error)))
    if not opened:
        raise DataError(f"no case was found; the first problem: {problems[0].line}")
    return opened, problems


def _origin(name: str, origins: dict[str, Origin] | None, table: Path | None, source: Path) -> Origin:
    if origins is None:
        return Origin(source.resolve().name)
    return origins.get(name, Origin("", problem=f"is not in {table}"))


def _channel_names(found: list[_Found], channels: Patterns | None) -> tuple[str, ...]:
    """Names that were given, or the modality that all cases have."""
    if channels is not None:
        return channels.names
    modalities = sorted({one.series[0].modality for one in found})
    if len(modalities) > 1:
        raise DataError(f"cases are of several modalities, {' and '.join(modalities)}; choose one by --channels")
    return tuple(modalities) or ("image",)


def _structures(cases: list[CaseFolder]) -> str:
    """Names of the structures that were found, and in how many cases."""
    counts = Counter(
        name for case in cases for name in {name for one in case.annotations for name in one.names.values()}
    )
    listed = [f"{name} ({count})" for name, count in _by_count(counts)]
    return f"structures, and in how many of {len(cases)} cases: {join_first(listed, MOST_SHOWN) or 'none'}"


def _by_count(counts: Counter[str]) -> list[tuple[str, int]]:
    """The commonest first; names of one count by their letters."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def _notes(found: list[_Found], labels: Patterns) -> list[str]:
    """What was found and is not read, and cases that are not called as their folders."""
    others = Counter(
        name
        for one in found
        for name in {name for annotation in one.case.annotations for name in annotation.names.values()}
        if labels.name_of(name) is None
    )
    renamed = sum(one.name != one.case.name for one in found)
    notes = []
    if others:
        listed = [f"{name} ({count})" for name, count in _by_count(others)]
        notes.append(f"structures that no label fits, which are background: {join_first(listed, MOST_SHOWN)}")
    if renamed:
        notes.append(
            f"folders that are named after patients, whose cases are called by a digest of the series: {renamed}"
        )
    return notes
