"""Which images, of which centres: group ``dataset`` of the configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fednnunet.config import numbered_centres as numbered_centres  # registers its resolver
from fednnunet.config.groups import Config
from fednnunet.exchange.messages import ENSEMBLE, NodeName

POOLED_NODE = "centralized"
"""Name of the one node that holds all centres' cases."""

ImageHeaders = Literal["check", "ignore"]


class CentreConfig(Config):
    """One centre of a dataset.

    Attributes:
        name: Name in tables.
        dataset: nnU-Net dataset id, name (``Dataset101_X``), or a folder; ignored where nodes are other machines, which
            know their own.
        external: The centre has no training cases; it is for evaluation only.
        studies: Number of studies in the paper; `fednnunet convert` compares it.
    """

    name: NodeName
    dataset: int | str | None = None
    external: bool = False
    studies: int | None = Field(default=None, ge=1)


class DatasetConfig(Config):
    """Which images: group ``dataset``.

    Attributes:
        name: Name in folders and reports.
        raw_folder: Folder where dataset ids and names are looked up; null means the variable ``nnUNet_raw``.
        centres: Centres that the images come from.
        image_headers: ``check``: label maps, and channels after the first, lie where their headers say: flipped or
            turned where that brings them onto their image's grid, else an error. ``ignore``: they lie on the first
            channel voxel by voxel, as nnU-Net takes them.
        origin: How to get the images, said where they are not found; null where there is nothing to say.
        labels: Value of each label, which `fednnunet convert` writes; null where only ``dataset.json`` defines them.
        generator: Function that makes the dataset when it does not exist (a Hydra ``_target_``), or null.
    """

    name: str
    raw_folder: str | None
    image_headers: ImageHeaders = "check"
    origin: str | None = None
    labels: dict[str, int] | None = None
    centres: list[CentreConfig]
    generator: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> DatasetConfig:
        if not self.centres:
            example = "'dataset.centres=[{name: A, dataset: 101}, {name: B, dataset: /data/Dataset102_B}]'"
            raise ValueError(f"centres: none is named; add yours: {example}")
        names = [centre.name for centre in self.centres]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"centres: two centres have the name {repeated[0]}")
        for reserved in (POOLED_NODE, ENSEMBLE):
            if reserved in names:
                raise ValueError(f"centres: no centre can have the name {reserved}, which is a model in the tables")
        if all(centre.external for centre in self.centres):
            raise ValueError("centres: all are external; at least one must have training cases")
        return self
