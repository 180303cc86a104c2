"""What a reader of a published dataset finds: studies, and what is no study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One image or label map, as it lies in the source.

    Attributes:
        path: any file that SimpleITK reads.
        frame: index on the last axis, of a cine (X, Y, Z, T) or a stack of 2D frames (X, Y, N); None for all of it.
        baseline: an image of the same grid that is subtracted from this one, such as the phase before contrast.
    """

    path: Path
    frame: int | None = None
    baseline: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        return (self.path,) if self.baseline is None else (self.path, self.baseline)


@dataclass(frozen=True)
class SourceCase:
    """What becomes one case.

    Attributes:
        case: its name in the dataset; letters, digits, ``_`` and ``-``.
        centre: as it is named in ``conf/dataset``.
        channels: images of one grid, in the order of :attr:`ScanResult.channel_names`.
        label: the label map.
        label_values: value in the source's label map to the name of the label; 0 is background and need not be named.
        patient: cases of one patient stay together in the folds of cross-validation; the case's name if not given.
    """

    case: str
    centre: str
    channels: tuple[Source, ...]
    label: Source
    label_values: Mapping[int, str]
    patient: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read, each once."""
        return tuple(dict.fromkeys(path for source in (*self.channels, self.label) for path in source.files))


@dataclass(frozen=True)
class ConversionIssue:
    """A study, or a part of the source, that becomes no case.

    Attributes:
        study: its name in the source, or the path of a file there.
        reason: what is missing or wrong, and what to do, or the rule that leaves it out.
        centre: where it is known.
    """

    study: str
    reason: str
    centre: str = ""

    @property
    def line(self) -> str:
        """Centre, study and reason."""
        return ": ".join(filter(None, (self.centre, self.study, self.reason)))


@dataclass(frozen=True)
class ScanResult:
    """All that a reader finds in a source.

    Attributes:
        studies: that become cases.
        channel_names: of their images.
        problems: what should be a case and cannot: a file that is missing or cannot be read.
        left_out: what is no case by a rule of the dataset: duplicates, studies without annotation.
        file_ending: of the dataset that is written, ``.nii.gz`` or ``.png`` (2D images without spacing).
        labels: label name to value, where the source says; else the dataset's configuration does.
    """

    studies: tuple[SourceCase, ...]
    channel_names: tuple[str, ...]
    problems: tuple[ConversionIssue, ...] = ()
    left_out: tuple[ConversionIssue, ...] = ()
    file_ending: str = ".nii.gz"
    labels: Mapping[str, int] = field(default_factory=dict)
