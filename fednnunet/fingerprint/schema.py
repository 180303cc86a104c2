"""What a node sends of its dataset so that the server can build the fingerprint of all of them.

It holds no image, no case name and no path. Intensities are sent as count, mean, squared deviations and a histogram
over a range that all nodes share: such contributions add up exactly, whichever node a case belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from fednnunet.errors import ProtocolError, first_problem
from fednnunet.fingerprint.bins import LARGEST, Intensity, IntensityBins, StrictModel

MAX_COUNT = 2**53
"""Largest number of sampled voxels: what a float can count."""

Spacing = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
Shape = Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=3, max_length=3)]
RelativeSize = Annotated[float, Field(gt=0, le=1)]


class ChannelIntensities(StrictModel):
    """Sampled foreground intensities of one channel.

    Attributes:
        count: number of sampled voxels; as in nnU-Net, the same from every case with foreground.
        mean: mean of the sampled values; 0 where there are none.
        squared_deviations: sum of squared deviations from ``mean``.
        low: smallest sampled value.
        high: largest sampled value.
        bins: bins of the histogram, the same at all nodes.
        histogram: number of voxels in each bin.
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


class IntensityProperties(StrictModel):
    """nnU-Net's statistics of the foreground intensities of one channel."""

    max: float
    mean: float
    median: float
    min: float
    percentile_00_5: float
    percentile_99_5: float
    std: float = Field(ge=0)


class NoIntensities(StrictModel):
    """Takes the place of :class:`IntensityProperties` where no case has foreground."""


class FromNode(StrictModel):
    """What a node sends of its fingerprint."""

    @classmethod
    def parse(cls, content: Any, where: str) -> Self:
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


class IntensityContribution(FromNode):
    """A node's contribution to the federated fingerprint without sizes of its cases.

    Attributes:
        intensities: sampled intensities by channel number.
    """

    intensities: dict[str, ChannelIntensities]

    @property
    def has_foreground(self) -> bool:
        """Whether any case has foreground."""
        return any(channel.count for channel in self.intensities.values())

    def renumbered(self, places: Mapping[str, str]) -> IntensityContribution:
        """The same with other numbers of its channels: ``places`` of each."""
        return self.model_copy(update={"intensities": {places[one]: v for one, v in self.intensities.items()}})


class DatasetFingerprint(FromNode):
    """Fingerprint of a dataset: a node's contribution to the federated one, or one in nnU-Net's format.

    It holds either contributions that add up (``intensities`` and ``relative_sizes``), or nnU-Net's own statistics
    (``foreground_intensity_properties_per_channel`` and ``median_relative_size_after_cropping``), of which the original
    FednnU-Net takes weighted means.

    Attributes:
        spacings: mm, (Z, Y, X), one per case.
        shapes_after_crop: voxels, (Z, Y, X), one per case.
        relative_sizes: size after cropping to nonzero, as a fraction of the size before, one per case.
        intensities: sampled intensities by channel number.
        foreground_intensity_properties_per_channel: nnU-Net's statistics by channel number.
        median_relative_size_after_cropping: median of the relative sizes.
    """

    spacings: list[Spacing] = Field(min_length=1)
    shapes_after_crop: list[Shape]
    relative_sizes: list[RelativeSize] | None = None
    intensities: dict[str, ChannelIntensities] | None = None
    foreground_intensity_properties_per_channel: dict[str, IntensityProperties | NoIntensities] | None = None
    median_relative_size_after_cropping: RelativeSize | None = None

    @model_validator(mode="after")
    def _whole(self) -> DatasetFingerprint:
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
        """Number of cases that the fingerprint was extracted from."""
        return len(self.spacings)

    @property
    def adds_up(self) -> bool:
        """Whether it holds contributions that add up, not nnU-Net's statistics."""
        return self.intensities is not None

    @property
    def has_foreground(self) -> bool:
        """Whether any case has foreground."""
        if self.intensities is not None:
            return any(channel.count for channel in self.intensities.values())
        own = self.foreground_intensity_properties_per_channel or {}
        return any(isinstance(channel, IntensityProperties) for channel in own.values())

    @property
    def channels(self) -> list[str]:
        """Numbers of the channels."""
        return list(self.intensities or self.foreground_intensity_properties_per_channel or {})

    def renumbered(self, places: Mapping[str, str]) -> DatasetFingerprint:
        """The same with other numbers of its channels: ``places`` of each."""
        by_channel = ("intensities", "foreground_intensity_properties_per_channel")
        given = {field: found for field in by_channel if (found := getattr(self, field)) is not None}
        return self.model_copy(
            update={field: {places[one]: v for one, v in found.items()} for field, found in given.items()}
        )

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "the file") -> DatasetFingerprint:
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
        """Content ready for JSON; with nnU-Net's statistics, that of ``dataset_fingerprint.json``."""
        return self.model_dump(exclude_none=True)
