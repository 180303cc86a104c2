"""What a reader finds in a published dataset: cases, and issues that keep something from becoming a case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import SimpleITK as sitk


class VolumeSource(Protocol):
    """A volume that is no file of its own, such as a series of slices."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        ...

    def read(self) -> sitk.Image:
        """The volume, checked.

        Raises:
            DataError: names the file.
        """
        ...


@dataclass(frozen=True)
class SourceImage:
    """One image or label map of the source.

    Attributes:
        path: any file that SimpleITK reads; with ``volume``, what it is called in messages.
        frame: index on the last axis, of a cine (X, Y, Z, T) or a stack of 2D frames (X, Y, N); None for all of it.
        baseline: an image on the same grid that is subtracted from this one, such as the phase before contrast.
        volume: what reads it, where it is no file that SimpleITK reads.
    """

    path: Path
    frame: int | None = None
    baseline: Path | None = None
    volume: VolumeSource | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        if self.volume is not None:
            return self.volume.files
        return (self.path,) if self.baseline is None else (self.path, self.baseline)


@dataclass(frozen=True)
class SourceCase:
    """Images and label map that become one case.

    Attributes:
        name: name of the case in the dataset; letters, digits, ``_`` and ``-``.
        centre: name of the centre in ``conf/dataset``.
        channels: images on one grid, in the order of :attr:`ScanResult.channel_names`.
        label: the label map.
        label_values: value in the source's label map to the name of the label; 0 is background and need not be named.
        patient: id of the patient, if it is not the name of the case.
    """

    name: str
    centre: str
    channels: tuple[SourceImage, ...]
    label: SourceImage
    label_values: Mapping[int, str]
    patient: str = ""

    @property
    def patient_id(self) -> str:
        """The patient's id, or the case's name; cases of one patient stay together in the folds."""
        return self.patient or self.name

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read, each once."""
        return tuple(dict.fromkeys(path for source in (*self.channels, self.label) for path in source.files))


@dataclass(frozen=True)
class ConversionIssue:
    """Something in the source that does not become a case.

    Attributes:
        name: name of the case in the source, or the path of a file there.
        reason: what is missing or wrong and what to do, or the rule that leaves it out.
        centre: name of the centre, where it is known.
    """

    name: str
    reason: str
    centre: str = ""

    @property
    def line(self) -> str:
        """Centre, name and reason."""
        return ": ".join(filter(None, (self.centre, self.name, self.reason)))


@dataclass(frozen=True)
class ScanResult:
    """All that a reader finds in a source.

    Attributes:
        cases: cases that can be converted.
        channel_names: names of their channels.
        problems: what should be a case and cannot: a file is missing or cannot be read.
        left_out: what a rule of the dataset leaves out: duplicates, cases without annotation.
        file_ending: ending of the files to write, ``.nii.gz`` or ``.png`` (2D images without spacing).
        labels: label name to value, where the source names them; else the dataset's configuration does.
        notes: what the user should know about the source as a whole, such as a choice that was made.
    """

    cases: tuple[SourceCase, ...]
    channel_names: tuple[str, ...]
    problems: tuple[ConversionIssue, ...] = ()
    left_out: tuple[ConversionIssue, ...] = ()
    file_ending: str = ".nii.gz"
    labels: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
