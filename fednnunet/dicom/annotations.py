"""SEG and RTSTRUCT objects alike: what they name, what they were drawn on, and their label map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fednnunet.dicom.headers import Header
from fednnunet.dicom.label_map import Overlaps
from fednnunet.dicom.segmentation import read_segmentation, segment_names, segmented_series
from fednnunet.dicom.series import Series
from fednnunet.dicom.structures import read_structures, referenced_series, structure_names


@dataclass(frozen=True)
class Annotation:
    """A SEG or RTSTRUCT.

    Attributes:
        path: the file.
        is_segmentation: SEG; else RTSTRUCT.
        names: number to name of its segments or structures.
        drawn_on: SeriesInstanceUIDs; none where it does not say.
        description: description of its own series.
        patient_id: the patient; never shown.
    """

    path: Path
    is_segmentation: bool
    names: Mapping[int, str]
    drawn_on: frozenset[str]
    description: str
    patient_id: str = field(repr=False)


def open_annotation(header: Header) -> Annotation:
    """What a SEG or RTSTRUCT says of itself; no pixel and no contour is read.

    Raises:
        DataError: it cannot be read; names the file.
    """
    path = header.path
    names = segment_names(path) if header.is_segmentation else structure_names(path)
    drawn_on = segmented_series(path) if header.is_segmentation else referenced_series(path)
    return Annotation(path, header.is_segmentation, names, frozenset(drawn_on), header.description, header.patient_id)


def draw_annotation(
    annotation: Annotation, series: Series, values: Mapping[int, int], overlaps: Overlaps = "stop"
) -> np.ndarray:
    """Its label map (Z, Y, X) on the grid of a series, uint16; ``values`` as for each of both kinds.

    Raises:
        DataError: as :func:`read_segmentation` and :func:`read_structures`.
    """
    read = read_segmentation if annotation.is_segmentation else read_structures
    return read(annotation.path, series, values, overlaps)
