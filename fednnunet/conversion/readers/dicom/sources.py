"""Series and their annotations as images and label maps of a case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fednnunet.conversion.scan_result import SourceImage
from fednnunet.dicom.annotations import Annotation, draw_annotation
from fednnunet.dicom.label_map import Overlaps, add_mask
from fednnunet.dicom.series import Series, place_array, read_volume

if TYPE_CHECKING:
    import SimpleITK as sitk


@dataclass(frozen=True)
class SeriesSource:
    """A series as an image; whole numbers as int16, others as float32."""

    series: Series

    @property
    def files(self) -> tuple[Path, ...]:
        return self.series.files

    def read(self) -> sitk.Image:
        volume = read_volume(self.series)
        limits = np.iinfo(np.int16)
        array = volume.array
        if array.min() >= limits.min and array.max() <= limits.max and np.array_equal(array, np.rint(array)):
            array = array.astype(np.int16)
        return place_array(array, volume.spacing, volume.origin, volume.direction)


@dataclass(frozen=True)
class AnnotationSource:
    """Structures of SEG and RTSTRUCT objects as a label map on the grid of a series.

    Attributes:
        series: what they were drawn on.
        values: for each object, number of a structure to its value in the label map.
        overlaps: what becomes of voxels in two structures.
    """

    series: Series
    values: tuple[tuple[Annotation, Mapping[int, int]], ...]
    overlaps: Overlaps

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(annotation.path for annotation, _ in self.values)

    def read(self) -> sitk.Image:
        array = np.zeros(self.series.shape, dtype=np.uint16)
        for annotation, values in self.values:
            drawn = draw_annotation(annotation, self.series, values, self.overlaps)
            for value in sorted(set(values.values())):
                add_mask(array, drawn == value, value, str(annotation.path), self.overlaps)
        stack = self.series.stack
        return place_array(array.astype(np.uint8), stack.spacing, stack.origin, stack.direction)


def series_image(series: Series) -> SourceImage:
    """A series as an image of a case, called by its folder."""
    return SourceImage(series.files[0].parent, volume=SeriesSource(series))


def annotation_image(source: AnnotationSource) -> SourceImage:
    """Annotations as the label map of a case, called by the first file."""
    return SourceImage(source.files[0], volume=source)
