"""What is known of a centre's cases once each was opened, as plain numbers; opens no image itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np


class Percentiles(NamedTuple):
    """Intensities of a channel of one image, of the voxels that are not 0."""

    low: float
    median: float
    high: float


SHARES = Percentiles(0.5, 50.0, 99.5)
"""Which percentiles, in %: those by which nnU-Net clips CT, and the median."""


@dataclass(frozen=True)
class CaseMeasures:
    """One case.

    Attributes:
        name: of the case.
        shape: voxels (Z, Y, X).
        spacing: mm (Z, Y, X), of a 2D file (Y, X); None where the format has none.
        orientation: where the file's axes X, Y, Z run to, such as ``LPS`` (left, posterior, superior); empty in 2D.
        plane: of the slices: ``axial``, ``sagittal``, ``coronal`` or ``oblique``; empty in 2D.
        intensities: of every channel.
        label_voxels: value to number of voxels; without background.
        digest: of the decoded images; the same for two copies, however compressed.
        differs: in what image and label differ: ``shape``, ``spacing``, ``origin``, ``direction``, ``affine matrix``.
    """

    name: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    orientation: str
    plane: str
    intensities: tuple[Percentiles, ...]
    label_voxels: dict[float, int]
    digest: str
    differs: tuple[str, ...] = ()

    @property
    def lies(self) -> str:
        """Plane and orientation as text; for oblique slices the plane alone: the nearest axes say little then."""
        return self.plane if self.plane == "oblique" else f"{self.plane} {self.orientation}".strip()

    @property
    def voxel(self) -> float:
        """Size of a voxel in the unit of its centre."""
        return 1.0 if self.spacing is None else float(np.prod(self.spacing))


@dataclass(frozen=True)
class UnreadableCase:
    """One case that cannot be measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class CentreSummary:
    """A centre and what was measured of its cases.

    Attributes:
        name: of the centre.
        dataset: ``DatasetXXX_Name``.
        external: its cases only test.
        channels: names.
        labels: name to values (a region has several); without background.
        ignored: value of the label ``ignore``, if there is one.
        cases: that could be read.
        unreadable: the others.
    """

    name: str
    dataset: str
    external: bool
    channels: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    ignored: int | None
    cases: tuple[CaseMeasures, ...]
    unreadable: tuple[UnreadableCase, ...] = ()

    @property
    def number(self) -> int:
        """Of all cases."""
        return len(self.cases) + len(self.unreadable)

    @property
    def unit(self) -> str:
        """Of label volumes: ``mm³``, of 2D images ``mm²``, where there is no spacing ``pixels``."""
        return {3: "mm³", 2: "mm²", 0: "pixels"}[self._axes]

    @property
    def _axes(self) -> int:
        """That most cases have a spacing of."""
        numbers = Counter(len(case.spacing or ()) for case in self.cases)
        return numbers.most_common(1)[0][0] if numbers else 0

    @property
    def shapes(self) -> np.ndarray:
        """Voxels (case, axis)."""
        return np.array([case.shape for case in self.cases]).reshape(len(self.cases), 3)

    @property
    def spacings(self) -> np.ndarray:
        """Mm (case, axis), of the cases with as many axes as most; no rows where there is no spacing."""
        axes = self._axes
        rows = [case.spacing for case in self.cases if axes and len(case.spacing or ()) == axes]
        return np.array(rows, dtype=float).reshape(len(rows), axes)

    def intensities(self, channel: int) -> np.ndarray:
        """Percentiles of a channel (case, percentile)."""
        return np.array([case.intensities[channel] for case in self.cases], dtype=float).reshape(-1, len(SHARES))

    def voxels(self, label: str) -> np.ndarray:
        """Voxels of a label (case)."""
        values = self.labels[label]
        return np.array([sum(case.label_voxels.get(value, 0) for value in values) for case in self.cases], dtype=int)

    def volumes(self, label: str) -> np.ndarray:
        """Volume of a label in :attr:`unit` (case); 0 where a case does not have it."""
        return self.voxels(label) * np.array([case.voxel for case in self.cases])

    @property
    def orientations(self) -> Counter[str]:
        """How cases lie (:attr:`CaseMeasures.lies`) to their number; of 2D cases nothing."""
        return Counter(case.lies for case in self.cases if case.plane)

    @property
    def plane(self) -> str:
        """Of most cases; empty where there is none."""
        planes = Counter(case.plane for case in self.cases if case.plane)
        return planes.most_common(1)[0][0] if planes else ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the summary, and the measures of every case."""
        summary: dict[str, Any] = {
            "name": self.name,
            "dataset": self.dataset,
            "external": self.external,
            "number": self.number,
            "shape": spread(self.shapes),
            "spacing": spread(self.spacings),
            "orientations": dict(self.orientations),
            "intensities": {
                name: dict(zip(SHARES._fields, np.median(self.intensities(channel), axis=0).tolist(), strict=True))
                for channel, name in enumerate(self.channels)
                if self.cases
            },
            "unit": self.unit,
            "labels": {name: self._label(name) for name in self.labels},
        }
        cases = [asdict(case) | {"intensities": [i._asdict() for i in case.intensities]} for case in self.cases]
        return summary | {"cases": cases, "unreadable": [asdict(case) for case in self.unreadable]}

    def _label(self, name: str) -> dict[str, Any]:
        volumes = self.volumes(name)
        return {"cases": int((volumes > 0).sum()), "volume": spread(volumes[volumes > 0])}


@dataclass(frozen=True)
class DataIssue:
    """One thing that will hurt.

    Attributes:
        severity: ``bad`` where training stops at it.
        centre: whose.
        what: in a few words.
        found: what is there.
        cases: that it concerns, sorted; empty where it is the centre as a whole.
        of: cases of the centre.
        advice: what to do.
    """

    severity: Literal["warning", "bad"]
    centre: str
    what: str
    found: str
    cases: tuple[str, ...]
    of: int
    advice: str


def spread(values: np.ndarray) -> dict[str, Any] | None:
    """Smallest, median and largest over cases (first axis); None without cases."""
    if not values.size:
        return None
    return {
        "min": values.min(axis=0).tolist(),
        "median": np.median(values, axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
    }


def commonest(values: Sequence[str]) -> str:
    """The value that is there most often; of equals the first."""
    return Counter(values).most_common(1)[0][0]
