"""What nodes reveal of their images before training: group ``fingerprint``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fednnunet.config.groups import Config

SMALLEST_EPSILON = 2.0
"""Below it, noise changes plans even of thousands of cases (docs/explanation/fingerprint.md)."""


class FingerprintLimits(Config):
    """What a node reveals of its images before training.

    Attributes:
        geometry: ``cases``: spacing, shape and relative size of every case; ``sums``: only how many cases lie below
            points that the server asks about.
        intensities: ``all``: foreground intensities of every channel; ``needed``: only of channels that nnU-Net
            normalises by them (CT), within a public window.
        precision: ``full``, or ``quantised``: rounded to a grid before it leaves the node; most cases stay unique.
        find_duplicates: Compare salted digests of the nodes' images, and warn of images that two nodes hold.
    """

    geometry: Literal["cases", "sums"] = "cases"
    intensities: Literal["all", "needed"] = "all"
    precision: Literal["full", "quantised"] = "full"
    find_duplicates: bool = False


class FingerprintConfig(FingerprintLimits):
    """What nodes send of their fingerprints, and how the server merges them: group ``fingerprint``.

    Attributes:
        epsilon: Privacy loss of all counts of a node in a run (delta 1e-5), by noise that it adds; null adds none. For
            ``geometry=sums`` and 1000 cases or more.
        intensity: How intensities are merged. ``histogram``: as nnU-Net would from the pooled images;
            ``weighted_mean``: the rule of the original FednnU-Net.
    """

    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    intensity: Literal["histogram", "weighted_mean"] = "histogram"

    @model_validator(mode="after")
    def _is_possible(self) -> FingerprintConfig:
        if self.intensity == "weighted_mean":
            for key, value in {"precision": "quantised", "geometry": "sums", "intensities": "needed"}.items():
                if getattr(self, key) == value:
                    raise ValueError(f"{key}={value} needs intensity=histogram")
        if self.epsilon is not None and self.geometry != "sums":
            raise ValueError("epsilon needs geometry=sums: noise is added to counts")
        if self.epsilon is not None and self.epsilon < SMALLEST_EPSILON:
            raise ValueError(
                f"epsilon={self.epsilon:g} takes so much noise that plans are others; set at least "
                f"{SMALLEST_EPSILON:g}, or null"
            )
        return self

    def within(self, limits: FingerprintLimits) -> FingerprintConfig:
        """The same, but no more telling than ``limits``, and with digests only where ``limits`` allows them."""
        quantised = "quantised" in (self.precision, limits.precision)
        return self.model_copy(
            update={
                "geometry": "sums" if "sums" in (self.geometry, limits.geometry) else "cases",
                "intensities": "needed" if "needed" in (self.intensities, limits.intensities) else "all",
                "precision": "quantised" if quantised else "full",
                "find_duplicates": limits.find_duplicates,
            }
        )
