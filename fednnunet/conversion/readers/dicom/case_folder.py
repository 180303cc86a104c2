"""One case: which series are its channels, and which structures its labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fednnunet.conversion.readers.dicom.sources import AnnotationSource
from fednnunet.dicom.annotations import Annotation, open_annotation
from fednnunet.dicom.label_map import Overlaps
from fednnunet.dicom.patterns import Patterns, is_called, texts_of
from fednnunet.dicom.series import FolderContent, Refusal, Series, check_one_patient, look_into
from fednnunet.errors import DataError
from fednnunet.listing import join_first

Absent = Literal["stop", "background"]
SHORTEST_PART = 3
"""Letters of a part of a patient's name or id that is looked for in a folder's name."""
MOST_SHOWN = 8


@dataclass(frozen=True)
class CaseFolder:
    """A folder of one case.

    Attributes:
        name: its path below the source.
        folder: the folder.
        content: series and objects in it.
        annotations: SEG and RTSTRUCT objects that are to be read.
    """

    name: str
    folder: Path
    content: FolderContent
    annotations: tuple[Annotation, ...]


def open_case(source: Path, folder: Path, annotations: Sequence[str]) -> CaseFolder:
    """What a case's folder holds.

    Args:
        source: folder of all cases.
        folder: the case's.
        annotations: patterns of the SEG and RTSTRUCT objects that are to be read, by description or path; all if empty.

    Raises:
        DataError: a file cannot be read; the folder holds no image, or no annotation.
    """
    content = look_into(folder)
    if not content.series and not content.refusals:
        raise DataError(f"{folder} holds no DICOM image")
    opened = [open_annotation(header) for header in (*content.segmentations, *content.structure_sets)]
    kept = tuple(
        one for one in opened if not annotations or is_called(texts_of(one.description, one.path, folder), annotations)
    )
    if not kept:
        others = f" that --annotations fits; it has {_listed(one.path.name for one in opened)}" if opened else ""
        raise DataError(f"{folder} holds no segmentation (SEG) or structure set (RTSTRUCT){others}")
    return CaseFolder(str(folder.relative_to(source)), folder, content, kept)


def choose_channels(case: CaseFolder, channels: Patterns | None) -> list[Series]:
    """The series of a case's channels, in their order.

    Args:
        case: the case.
        channels: how the series of each channel is called, by description or path; if not given, the only channel is
            the series that the annotations were drawn on, or else the only one.

    Raises:
        DataError: none or several series for a channel, or one that is no clean volume; several patients.
    """
    listed: list[Series | Refusal] = [
        *case.content.series,
        *(refusal for refusal in case.content.refusals if not refusal.is_set_aside),
    ]
    if channels is None:
        drawn_on = {uid for annotation in case.annotations for uid in annotation.drawn_on}
        known = [one for one in listed if one.uid in drawn_on]
        chosen = [_the_one(case, known or listed, "")]
    else:
        chosen = [
            _the_one(case, [one for one in listed if channels.matches(name, _series_texts(one, case.folder))], name)
            for name in channels.names
        ]
    check_one_patient(chosen, case.folder)
    other = next((one for one in case.annotations if one.patient_id != chosen[0].patient_id), None)
    if other is not None:
        raise DataError(f"{other.path} is of another patient (PatientID) than {chosen[0].where}; separate them")
    return chosen


def label_source(
    case: CaseFolder, channels: Sequence[Series], labels: Patterns, overlaps: Overlaps, absent: Absent
) -> AnnotationSource:
    """Where a case's label map comes from: 1, 2, … for the labels in their order.

    Raises:
        DataError: a case has no structure for a label (unless ``absent`` says that it is background), or several
            objects have one; a structure fits two labels.
    """
    found: dict[str, Annotation] = {}
    values: list[tuple[Annotation, Mapping[int, int]]] = []
    for annotation in case.annotations:
        named = {number: labels.name_of(text) for number, text in annotation.names.items()}
        for name in dict.fromkeys(filter(None, named.values())):
            first = found.setdefault(name, annotation)
            if first is not annotation:
                raise DataError(
                    f"{name} is in {first.path.name} and in {annotation.path.name}, in {case.folder}; choose one by "
                    "--annotations"
                )
        numbers = {number: labels.names.index(name) + 1 for number, name in named.items() if name}
        if numbers:
            values.append((annotation, numbers))
    lacking = [name for name in labels.names if name not in found]
    if lacking and (absent == "stop" or not values):
        names = _listed(name for annotation in case.annotations for name in annotation.names.values())
        raise DataError(
            f"{case.folder} has no structure for {' and '.join(lacking)}; it has {names}. Correct --labels, or take it "
            "as background where others are there: --absent background"
        )
    drawn_on = {uid for annotation, _ in values for uid in annotation.drawn_on}
    series = next((one for one in channels if one.uid in drawn_on), channels[0])
    return AnnotationSource(series, tuple(values), overlaps)


def safe_name(case: CaseFolder, series: Series) -> str:
    """The folder's name; a digest of the series instead, where the folder is named after the patient."""
    return f"case_{digest(series.uid)}" if names_patient(case.name, series) else case.name


def names_patient(text: str, series: Series) -> bool:
    """Whether a text holds the patient's id, or a part of the name, and the files are not said to be de-identified."""
    if series.is_deidentified:
        return False
    parts = [series.patient_id, *re.split(r"[\W_]+", series.patient_name)]
    return any(part.casefold() in text.casefold() for part in parts if len(part) >= SHORTEST_PART)


def digest(text: str) -> str:
    """Eight letters that a text always gives, and that do not give the text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _the_one(case: CaseFolder, candidates: Sequence[Series | Refusal], channel: str) -> Series:
    """The only candidate, if it is a clean volume."""
    what = f"channel {channel}" if channel else "the image"
    if len(candidates) != 1:
        series: list[Series | Refusal] = [*case.content.series, *case.content.refusals]
        names = _listed(one.description or "without description" for one in (candidates or series))
        count = f"{len(candidates)} series fit" if candidates else "no series fits"
        raise DataError(f"{count} {what} in {case.folder}: {names}; choose by --channels, such as CT=*thin*")
    (only,) = candidates
    if isinstance(only, Refusal):
        raise DataError(only.reason)
    return only


def _series_texts(series: Series | Refusal, folder: Path) -> list[str]:
    place = series.folder if isinstance(series, Refusal) else series.files[0].parent
    return texts_of(series.description, place, folder)


def _listed(names: Iterable[str]) -> str:
    return join_first(list(dict.fromkeys(names)), MOST_SHOWN) or "none"
