"""What a node tells of its dataset so that the server can build the fingerprint of all of them.

Never an image, a case name or a path. Intensities are told as count, mean, squared deviations and a histogram over
a range that all nodes share: such contributions add up exactly, whatever node a case lies at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fednnunet.errors import ProtocolError, first_problem

BINS = 2**16
"""Bins of a histogram of intensities that are not integers; a bin is 1.5e-5 of the range."""
MAX_INTEGER_BINS = 2**20
"""Integer intensities have a bin a value, where their range is not wider than this."""
SHAPE_GRID = 8
"""Voxels; ``quantised`` fingerprints round sizes to multiples of it, below 64 voxels of a finer grid."""
SIGNIFICANT_DIGITS = 2
"""Of spacings and ranges in ``quantised`` fingerprints."""
RELATIVE_SIZE_GRID = 0.05

Spacing = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
Shape = Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=3, max_length=3)]
RelativeSize = Annotated[float, Field(gt=0, le=1)]


class Strict(BaseModel):
    """Unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


LARGEST = float(np.finfo(np.float32).max)
"""Of intensities: images are read as float32."""
MAX_COUNT = 2**53
"""Of sampled voxels: what a float can count."""
Intensity = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class IntensityRange(Strict):
    """Foreground intensities of one channel at one node, or at all.

    Attributes:
        low: smallest value.
        high: largest value.
        integer: all values are integers.
    """

    low: Intensity
    high: Intensity
    integer: bool

    @model_validator(mode="after")
    def _in_order(self) -> IntensityRange:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self

    def quantised(self) -> IntensityRange:
        """Wider, with bounds of :data:`SIGNIFICANT_DIGITS` digits."""
        return IntensityRange(low=_round(self.low, math.floor), high=_round(self.high, math.ceil), integer=self.integer)


class IntensityBins(Strict):
    """Bins of a histogram: ``number`` of ``width``, the first from ``low``. Bins of integers hold one value each."""

    low: float
    width: float = Field(gt=0)
    number: int = Field(ge=1, le=MAX_INTEGER_BINS)
    integer: bool

    @classmethod
    def over(cls, ranges: Sequence[IntensityRange]) -> IntensityBins:
        """Bins over the ranges of all nodes.

        Raises:
            ValueError: no ranges.
        """
        if not ranges:
            raise ValueError("there is no range to divide")
        low, high = min(r.low for r in ranges), max(r.high for r in ranges)
        number = high - low + 1
        if all(r.integer for r in ranges) and number <= MAX_INTEGER_BINS:
            return cls(low=low, width=1.0, number=int(number), integer=True)
        return cls(low=low, width=(high - low) / BINS or 1.0, number=BINS, integer=False)

    def index(self, values: np.ndarray) -> np.ndarray:
        """Bin of each of ``values``, which lie in the range."""
        place = (values.astype(np.float64) - self.low) / self.width
        return np.clip(place, 0, self.number - 1).astype(np.int64)


class ChannelIntensities(Strict):
    """Sampled foreground intensities of one channel.

    Attributes:
        count: sampled voxels, as nnU-Net samples them: the same number of every case with foreground.
        mean: of them; 0 where there are none.
        squared_deviations: sum of squared deviations from ``mean``.
        low: smallest sampled value.
        high: largest sampled value.
        bins: of the histogram, the same at all nodes.
        histogram: voxels in each bin.
    """

    count: int = Field(ge=0, le=MAX_COUNT)
    mean: Intensity
    squared_deviations: float = Field(ge=0, le=MAX_COUNT * LARGEST**2)
    low: Intensity
    high: Intensity
    bins: IntensityBins
    histogram: list[Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def _consistent(self) -> ChannelIntensities:
        if len(self.histogram) != self.bins.number:
            raise ValueError("histogram has another length than bins.number")
        if sum(self.histogram) != self.count:
            raise ValueError("histogram does not add up to count")
        return self


class IntensityProperties(Strict):
    """nnU-Net's statistics of the foreground intensities of one channel."""

    max: float
    mean: float
    median: float
    min: float
    percentile_00_5: float
    percentile_99_5: float
    std: float = Field(ge=0)


class LocalFingerprint(Strict):
    """One node's contribution to the federated fingerprint.

    Either of contributions that add up (``intensities`` and ``relative_sizes``), or nnU-Net's own fingerprint of the
    node (``foreground_intensity_properties_per_channel`` and ``median_relative_size_after_cropping``), of which the
    original FednnU-Net makes weighted means.

    Attributes:
        spacings: mm, (Z, Y, X), one per case.
        shapes_after_crop: voxels, (Z, Y, X), one per case.
        relative_sizes: size after cropping to nonzero over size before, one per case.
        intensities: by channel number.
        foreground_intensity_properties_per_channel: nnU-Net's, by channel number.
        median_relative_size_after_cropping: nnU-Net's.
    """

    spacings: list[Spacing] = Field(min_length=1)
    shapes_after_crop: list[Shape]
    relative_sizes: list[RelativeSize] | None = None
    intensities: dict[str, ChannelIntensities] | None = None
    foreground_intensity_properties_per_channel: dict[str, IntensityProperties] | None = None
    median_relative_size_after_cropping: RelativeSize | None = None

    @model_validator(mode="after")
    def _whole(self) -> LocalFingerprint:
        if len(self.spacings) != len(self.shapes_after_crop):
            raise ValueError("spacings and shapes_after_crop differ in length")
        adding = self.intensities is not None and self.relative_sizes is not None
        own = bool(self.foreground_intensity_properties_per_channel) and bool(self.median_relative_size_after_cropping)
        if adding == own:
            raise ValueError(
                "there must be either intensities and relative_sizes, or foreground_intensity_properties_per_channel "
                "and median_relative_size_after_cropping"
            )
        if self.relative_sizes is not None and len(self.relative_sizes) != len(self.spacings):
            raise ValueError("spacings and relative_sizes differ in length")
        return self

    @property
    def num_cases(self) -> int:
        """Cases the fingerprint was taken from."""
        return len(self.spacings)

    @property
    def adds_up(self) -> bool:
        """Whether it is of contributions that add up, not of nnU-Net's statistics."""
        return self.intensities is not None

    @property
    def channels(self) -> list[str]:
        """Numbers of its channels."""
        return list(self.intensities or self.foreground_intensity_properties_per_channel or {})

    @classmethod
    def parse(cls, content: Any, where: str) -> LocalFingerprint:
        """Validate what ``where`` sent.

        Raises:
            ProtocolError: naming ``where`` and the field.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ProtocolError(
                f"{where} sent a malformed fingerprint: {first_problem(error, 'fingerprint')}"
            ) from None

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "the file") -> LocalFingerprint:
        """Read :meth:`to_json`, or nnU-Net's ``dataset_fingerprint.json``.

        Raises:
            ProtocolError: not JSON, or not of the schema; naming ``where`` and the field.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ProtocolError(f"{where} sent a fingerprint that is not JSON: {error}") from None
        return cls.parse(content, where)

    def to_json(self) -> str:
        """JSON that :meth:`from_json` reads; floats keep all their digits."""
        return json.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; of a node's own fingerprint nnU-Net's ``dataset_fingerprint.json``."""
        return self.model_dump(exclude_none=True)

    def quantised(self) -> LocalFingerprint:
        """Spacings, shapes, relative sizes and ranges on a grid and in no order: no case can be told by them."""
        shapes = [[_on_grid(size) for size in shape] for shape in self.shapes_after_crop]
        spacings = [[_round(size, round) for size in spacing] for spacing in self.spacings]
        grid = RELATIVE_SIZE_GRID
        relative = [min(1.0, max(grid, grid * round(size / grid))) for size in self.relative_sizes or []]
        cases = sorted(zip(spacings, shapes, strict=True))
        return self.model_copy(
            update={
                "spacings": [spacing for spacing, _ in cases],
                "shapes_after_crop": [shape for _, shape in cases],
                "relative_sizes": sorted(relative) if self.relative_sizes is not None else None,
                "intensities": {
                    channel: intensities.model_copy(
                        update={"low": _round(intensities.low, math.floor), "high": _round(intensities.high, math.ceil)}
                    )
                    for channel, intensities in (self.intensities or {}).items()
                }
                or None,
            }
        )


def common_ranges(ranges: Sequence[Mapping[str, IntensityRange]]) -> dict[str, IntensityBins]:
    """Bins of every channel over the ranges of all nodes with foreground.

    Raises:
        ValueError: a channel without any range.
    """
    channels = dict.fromkeys(channel for node in ranges for channel in node)
    return {channel: IntensityBins.over([node[channel] for node in ranges if channel in node]) for channel in channels}


def _on_grid(size: int) -> int:
    """A multiple of :data:`SHAPE_GRID`, or for less than eight times that, of a finer grid: 6 % away at most."""
    step = min(SHAPE_GRID, max(1, 2 ** (size.bit_length() - 4)))
    return step * round(size / step)


def _round(value: float, rounding: Any) -> float:
    """``value`` with :data:`SIGNIFICANT_DIGITS` digits, by ``rounding`` of whole numbers."""
    if value == 0:
        return 0.0
    scale = 10.0 ** (math.floor(math.log10(abs(value))) - SIGNIFICANT_DIGITS + 1)
    return float(f"{rounding(round(value / scale, 9)) * scale:.12g}")
