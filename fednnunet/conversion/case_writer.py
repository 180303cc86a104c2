"""Check one case and write its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fednnunet.conversion.images import LoadedImage, can_reuse_file, copy_or_link, read_image, write
from fednnunet.conversion.label_maps import CHANNEL_REORIENTED, bring_onto, labelled_frames, place_label, read_label
from fednnunet.conversion.manifest import CaseRecord, SourceFile, digest, place_of
from fednnunet.conversion.options import Options
from fednnunet.conversion.scan_result import ConversionIssue, SourceCase
from fednnunet.errors import DataError
from fednnunet.files import DISK_FULL

EMPTY = "the label map is empty"
IGNORED = "the label map is ignore everywhere; nothing is learned from it"
ONE_VALUE = "an image has the same value in all voxels; normalised, it is 0"


@dataclass(frozen=True)
class CaseTask:
    """One case to convert, with all that a process needs for it.

    Attributes:
        case: where its images are.
        source: folder of the source.
        folder: folder of the dataset.
        images: name of the folder of images in it.
        labels: name of the folder of label maps in it.
        ending: ending of the files to write.
        values: value in the source's label map to the value to write.
        ignored: value to write that training ignores; None if there is none.
        options: the user's choices.
    """

    case: SourceCase
    source: Path
    folder: Path
    images: str
    labels: str
    ending: str
    values: Mapping[int, int]
    ignored: int | None
    options: Options

    @property
    def files(self) -> list[Path]:
        """Files to write: channels, then label map."""
        name = self.case.name
        channels = [self.folder / self.images / f"{name}_{n:04d}{self.ending}" for n in range(len(self.case.channels))]
        return [*channels, self.folder / self.labels / f"{name}{self.ending}"]


def convert_case(task: CaseTask) -> CaseRecord | ConversionIssue:
    """Check a case and write its files; a problem leaves no file."""
    case = task.case
    try:
        channels, label = _read_case(task)
        sources = [*case.channels, case.label]
        for path, loaded, source in zip(task.files, [*channels, label], sources, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            if can_reuse_file(source, loaded, task.ending):
                copy_or_link(source.path, path, task.options.files)
            else:
                write(loaded.image, path)
        return CaseRecord(
            patient=case.patient_id,
            sources={place_of(path, task.source): SourceFile.of(path) for path in case.files},
            files={str(path.relative_to(task.folder)): digest(path) for path in task.files},
            notes=_notes(task, channels, label),
        )
    except (DataError, OSError) as error:
        for path in task.files:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        return ConversionIssue(case.name, str(error), case.centre)


def _read_case(task: CaseTask) -> tuple[list[LoadedImage], LoadedImage]:
    """Channels and label map, all on the grid of the first channel."""
    case, first = task.case, task.case.channels[0].path
    channels = [read_image(source) for source in case.channels]
    for loaded, source in zip(channels, case.channels, strict=True):
        if loaded.image.GetDimension() == 2 and task.ending != ".png":
            if source.frame is not None:
                raise DataError(f"{source.path} has no frames; it is one volume")
            components = loaded.image.GetNumberOfComponentsPerPixel()
            if components > 1:
                raise DataError(f"{source.path} has {components} values per voxel; it must have one")
    label = read_label(case.label, task.values)
    if case.label.frame is not None and not has_voxels(label, but=0):
        labelled = ", ".join(map(str, labelled_frames(case.label.path))) or "none"
        raise DataError(f"frame {case.label.frame} of {case.label.path} has no label; the frames that have: {labelled}")
    others = [
        bring_onto(loaded, channels[0], source.path, first, CHANNEL_REORIENTED)
        for loaded, source in zip(channels[1:], case.channels[1:], strict=True)
    ]
    return [channels[0], *others], place_label(label, channels[0], case.label.path, first, task.options.headers)


def _notes(task: CaseTask, channels: list[LoadedImage], label: LoadedImage) -> list[str]:
    notes = [note for loaded in (*channels, label) for note in loaded.notes]
    for loaded, source in zip(channels, task.case.channels, strict=True):
        voxels = sitk.GetArrayViewFromImage(loaded.image)
        if voxels.min() == voxels.max():
            notes.append(f"{ONE_VALUE} ({voxels.min():g} in {source.path})")
    if not has_voxels(label, but=0):
        notes.append(EMPTY)
    elif task.ignored is not None and not has_voxels(label, but=task.ignored):
        notes.append(IGNORED)
    return notes


def has_voxels(label: LoadedImage, but: int) -> bool:
    """Whether any voxel has another value than ``but``."""
    return bool(np.any(sitk.GetArrayViewFromImage(label.image) != but))
