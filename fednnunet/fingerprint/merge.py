"""Federated fingerprint: what the server makes of the nodes' dataset fingerprints (paper, FFE).

Lists of shapes and spacings are concatenated. Intensity statistics are averaged with the number of cases as
weight, minima and maxima taken over all nodes: the original FednnU-Net's rule, which ignores the variance
between centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fednnunet.errors import ProtocolError

Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


class IntensityProperties(BaseModel):
    """Statistics of the foreground intensities of one channel."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max: float
    mean: float
    median: float
    min: float
    percentile_00_5: float
    percentile_99_5: float
    std: float = Field(ge=0)


class LocalFingerprint(BaseModel):
    """nnU-Net's fingerprint of one node, validated.

    Attributes:
        spacings: mm, (Z, Y, X), one a case.
        shapes_after_crop: voxels, (Z, Y, X), one a case.
        foreground_intensity_properties_per_channel: by channel number.
        median_relative_size_after_cropping: size after cropping to nonzero over size before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    spacings: list[Triple] = Field(min_length=1)
    shapes_after_crop: list[Annotated[list[int], Field(min_length=3, max_length=3)]]
    foreground_intensity_properties_per_channel: dict[str, IntensityProperties] = Field(min_length=1)
    median_relative_size_after_cropping: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _one_shape_a_spacing(self) -> LocalFingerprint:
        if len(self.spacings) != len(self.shapes_after_crop):
            raise ValueError("spacings and shapes_after_crop differ in length")
        if min(map(min, self.spacings)) <= 0 or min(map(min, self.shapes_after_crop)) <= 0:
            raise ValueError("spacings and shapes must be positive")
        return self

    @property
    def num_cases(self) -> int:
        """Cases the fingerprint was taken from."""
        return len(self.spacings)

    @classmethod
    def parse(cls, fingerprint: Any, where: str) -> LocalFingerprint:
        """Validate nnU-Net's fingerprint dict of ``where``.

        Raises:
            ProtocolError: naming ``where`` and the field.
        """
        try:
            return cls.model_validate(fingerprint)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "fingerprint"
            raise ProtocolError(f"{where} sent a malformed fingerprint: {field}: {first['msg']}") from None

    def to_dict(self) -> dict[str, Any]:
        """nnU-Net's ``dataset_fingerprint.json``."""
        return self.model_dump()


def merge_fingerprints(parts: Sequence[LocalFingerprint]) -> dict[str, Any]:
    """Merge the fingerprints of all nodes into one in nnU-Net's format.

    Raises:
        ValueError: no parts, or parts with different channels.
    """
    if not parts:
        raise ValueError("there is no fingerprint to merge")
    channels = list(parts[0].foreground_intensity_properties_per_channel)
    if any(list(part.foreground_intensity_properties_per_channel) != channels for part in parts):
        raise ValueError("fingerprints have different channels")
    cases = np.array([part.num_cases for part in parts], dtype=np.float64)
    weights = cases / cases.sum()

    def mean(values: Sequence[float]) -> float:
        return float(np.dot(values, weights))

    intensities = {}
    for channel in channels:
        properties = [part.foreground_intensity_properties_per_channel[channel] for part in parts]
        intensities[channel] = {
            "max": max(p.max for p in properties),
            "mean": mean([p.mean for p in properties]),
            "median": mean([p.median for p in properties]),
            "min": min(p.min for p in properties),
            "percentile_00_5": mean([p.percentile_00_5 for p in properties]),
            "percentile_99_5": mean([p.percentile_99_5 for p in properties]),
            "std": mean([p.std for p in properties]),
        }
    return {
        "spacings": [spacing for part in parts for spacing in part.spacings],
        "shapes_after_crop": [shape for part in parts for shape in part.shapes_after_crop],
        "foreground_intensity_properties_per_channel": intensities,
        "median_relative_size_after_cropping": mean([p.median_relative_size_after_cropping for p in parts]),
    }
