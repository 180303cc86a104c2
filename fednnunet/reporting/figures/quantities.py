"""What figures show of a centre's images and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fednnunet.datasets.quality.summary import CentreSummary, channels_of, labels_of

Columns = Callable[[CentreSummary], np.ndarray]


@dataclass(frozen=True)
class Quantity:
    """A quantity of cases.

    Attributes:
        name: with its unit.
        parts: axes or percentiles; none where it is one number.
        note: what to say of the parts.
        columns: values of a centre (case, part).
        label: name of the label whose volume it is.
    """

    name: str
    parts: tuple[str, ...]
    note: str
    columns: Columns
    label: str | None = None

    @property
    def title(self) -> str:
        """All of it in a line."""
        return f"{self.name}:  {', '.join(self.parts)}{self.note}" if self.parts else self.name

    @property
    def may_be_logarithmic(self) -> bool:
        """Intensities may be negative, and differ by an offset."""
        return not self.name.startswith("intensity")

    def absent(self, centre: CentreSummary) -> int:
        """How many cases of a centre lack the label; 0 where there is no label, or the centre's task has none such."""
        if self.label is None or self.label not in centre.labels:
            return 0
        return int((centre.voxels(self.label) == 0).sum())


def quantities_of(centres: Sequence[CentreSummary]) -> list[Quantity]:
    """Sizes, spacings, intensities of each channel, and volumes of each label."""
    found = [Quantity("image size in voxels", ("Z", "Y", "X"), " from left to right", lambda centre: centre.shapes)]
    if any(centre.spacings.size for centre in centres):
        axes = ("Z", "Y", "X") if any(centre.spacings.shape[1] == 3 for centre in centres) else ("Y", "X")
        found.append(Quantity("spacing in mm", axes, "", lambda centre: centre.spacings))
    parts, note = ("0.5 %", "median", "99.5 %"), " of a case's voxels that are not 0"
    for channel, name in channels_of(centres):
        found.append(Quantity(f"intensity of {name}", parts, note, partial(_of_channel, channel=channel)))
    units = " or ".join(dict.fromkeys(centre.unit for centre in centres if centre.cases))
    for label in labels_of(centres):
        columns = partial(_of_label, label=label)
        found.append(Quantity(f"volume of {label} in {units}", (), "", columns, label))
    return found


def _of_channel(centre: CentreSummary, channel: int) -> np.ndarray:
    return centre.intensities(channel) if channel < len(centre.channels) else np.empty((0, 3))


def _of_label(centre: CentreSummary, label: str) -> np.ndarray:
    """Volumes of the cases that have the label (case, 1)."""
    volumes = centre.volumes(label) if label in centre.labels else np.empty(0)
    return volumes[volumes > 0][:, None]
