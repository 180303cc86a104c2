"""Measures of a centre's cases as plain numbers; opens no image itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from fednnunet.datasets.case_grids import Problem

T = TypeVar("T")


class Percentiles(NamedTuple):
    """Percentiles of the intensities of one channel of an image, over voxels that are not 0."""

    low: float
    median: float
    high: float


SHARES = Percentiles(0.5, 50.0, 99.5)
"""The percentiles in %: those by which nnU-Net clips CT, and the median."""


@dataclass(frozen=True)
class CaseMeasures:
    """Measures of one case.

    Attributes:
        name: name of the case.
        shape: voxels (Z, Y, X).
        spacing: mm (Z, Y, X), or (Y, X) of a 2D file; None where the format has none.
        orientation: directions of the file's axes X, Y, Z, such as ``LPS`` (left, posterior, superior); empty in 2D.
        plane: plane of the slices: ``axial``, ``sagittal``, ``coronal`` or ``oblique``; empty in 2D.
        intensities: percentiles of every channel.
        label_voxels: label value to number of voxels, without background.
        digest: digest of the decoded images; equal for copies, however compressed.
        problems: what training stops at.
        notes: kind of note (:class:`~fednnunet.exchange.data_notes.NoteKind`) to the number of voxels concerned.
    """

    name: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    orientation: str
    plane: str
    intensities: tuple[Percentiles, ...]
    label_voxels: dict[float, int]
    digest: str
    problems: tuple[Problem, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def orientation_label(self) -> str:
        """Plane and orientation as text; for oblique slices only the plane, as the nearest axes then say little."""
        return self.plane if self.plane == "oblique" else f"{self.plane} {self.orientation}".strip()

    @property
    def voxel(self) -> float:
        """Volume of a voxel in the unit of its centre."""
        return 1.0 if self.spacing is None else float(np.prod(self.spacing))


@dataclass(frozen=True)
class UnreadableCase:
    """A case that cannot be measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class CentreSummary:
    """Measures of a centre's cases.

    Attributes:
        name: name of the centre.
        dataset: ``DatasetXXX_Name``.
        external: whether its cases are for testing only.
        channels: names of the channels.
        labels: label name to values (a region has several), without background.
        ignored: value of the label ``ignore``, if there is one.
        cases: cases that could be read.
        unreadable: cases that could not.
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
        """Number of all cases."""
        return len(self.cases) + len(self.unreadable)

    @property
    def unit(self) -> str:
        """Unit of label volumes: ``mm³``, ``mm²`` in 2D, ``pixels`` without spacing."""
        return {3: "mm³", 2: "mm²", 0: "pixels"}[self._axes]

    @property
    def _axes(self) -> int:
        """Number of axes that most cases have a spacing for."""
        return most_common((len(case.spacing or ()) for case in self.cases), default=0)

    @property
    def shapes(self) -> np.ndarray:
        """Shapes in voxels (case, axis)."""
        return np.array([case.shape for case in self.cases]).reshape(len(self.cases), 3)

    @property
    def spacings(self) -> np.ndarray:
        """Spacings in mm (case, axis) of the cases with as many axes as most; no rows without spacing."""
        axes = self._axes
        rows = [case.spacing for case in self.cases if axes and len(case.spacing or ()) == axes]
        return np.array(rows, dtype=float).reshape(len(rows), axes)

    def intensities(self, channel: int) -> np.ndarray:
        """Percentiles of a channel (case, percentile)."""
        return np.array([case.intensities[channel] for case in self.cases], dtype=float).reshape(-1, len(SHARES))

    def voxels(self, label: str) -> np.ndarray:
        """Number of voxels of a label (case)."""
        values = self.labels[label]
        return np.array([sum(case.label_voxels.get(value, 0) for value in values) for case in self.cases], dtype=int)

    def volumes(self, label: str) -> np.ndarray:
        """Volume of a label in :attr:`unit` (case); 0 where a case does not have it."""
        return self.voxels(label) * np.array([case.voxel for case in self.cases])

    @property
    def orientations(self) -> Counter[str]:
        """Orientation (:attr:`CaseMeasures.orientation_label`) to number of cases, without 2D cases."""
        return Counter(case.orientation_label for case in self.cases if case.plane)

    @property
    def plane(self) -> str:
        """Plane of most cases; empty where there is none."""
        return most_common((case.plane for case in self.cases if case.plane), default="")

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
    """A likely training problem.

    Attributes:
        severity: ``bad`` if training stops at it.
        centre: name of the centre.
        kind: kind of issue in a few words.
        found: what was found.
        cases: affected cases, sorted; empty if it is the centre as a whole.
        total: number of cases of the centre.
        advice: what to do.
    """

    severity: Literal["warning", "bad"]
    centre: str
    kind: str
    found: str
    cases: tuple[str, ...]
    total: int
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


def most_common(values: Iterable[T], default: T) -> T:
    """The most frequent value, the first of equals; ``default`` if there is none."""
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else default


def channels_of(centres: Iterable[CentreSummary]) -> list[tuple[int, str]]:
    """Number and name of every channel that a centre has."""
    return list(dict.fromkeys(channel for centre in centres for channel in enumerate(centre.channels)))


def labels_of(centres: Iterable[CentreSummary]) -> list[str]:
    """Every label that a centre has."""
    return list(dict.fromkeys(label for centre in centres for label in centre.labels))
