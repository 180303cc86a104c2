"""DICOM series as cases: one volume each, and segmentations that refer to it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from fednnunet.datasets.geometry import Grid, format_numbers, grid_differences
from fednnunet.datasets.raw import IMAGE_ENDINGS
from fednnunet.dicom.patterns import Patterns, pairs_of, split_patterns, texts_of
from fednnunet.dicom.series import Refusal, Series, look_into, read_volume
from fednnunet.errors import ConfigError, DataError
from fednnunet.inference.cases import ImageCase, ModelInput
from fednnunet.inference.output import OF_SERIES
from fednnunet.listing import join_all, join_first

Split = Callable[[Series | Refusal], str]
"""By which series are put into parts."""
MOST_SHOWN = 8
MAGIC = b"DICM"
"""After 128 bytes of a DICOM file."""
MOST_LOOKED_AT = 100
"""Files of a folder that are looked at to find out whether it holds DICOM."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""A SeriesInstanceUID that can be the name of a file; one is of digits and dots, and comes from outside."""
MODALITIES = ("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA")
"""Of DICOM images; a channel of such a name is of this modality, as ``fednnunet convert dicom`` names them."""
NUMBERED = re.compile(r".+_\d{4}(" + "|".join(map(re.escape, IMAGE_ENDINGS)) + ")")
"""Names of images in nnU-Net's naming."""


def holds_dicom(inputs: Sequence[Path]) -> bool:
    """Whether the input is one folder in which, or below which, there are DICOM files, and no image of nnU-Net's."""
    if len(inputs) != 1 or not inputs[0].is_dir() or any(map(NUMBERED.fullmatch, os.listdir(inputs[0]))):
        return False
    looked_at = 0
    for folder, _, names in os.walk(inputs[0]):
        for name in sorted(names)[:MOST_LOOKED_AT]:
            looked_at += 1
            if looked_at > MOST_LOOKED_AT:
                return False
            if _is_dicom(Path(folder, name)):
                return True
    return False


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == MAGIC
    except OSError:
        return False


def find_dicom_cases(folder: Path, model: ModelInput, called: Patterns | None = None) -> list[ImageCase]:
    """Cases of a folder and its folders, named by the SeriesInstanceUID of their first channel.

    Of a model of one channel, every series is a case; with ``called``, every series that is called so. Of a model of
    several, a case is what has one series for each channel: the folder, each folder in it, or each study in these.

    Args:
        folder: the folder.
        model: what the model takes.
        called: what the series of each channel are called, by description, by folder below ``folder`` or by its last
            part; None for the names of the channels.

    Raises:
        ConfigError: the extra ``dicom`` is not installed.
        DataError: no series is a clean volume, or is called as asked.
    """
    content = look_into(folder)
    refused = [refusal for refusal in content.refusals if not refusal.is_set_aside]
    if not content.series:
        every = [refusal.reason for refusal in (*refused, *content.refusals)]
        raise DataError(every[0] if every else f"{folder} holds no DICOM image")
    listed: list[Series | Refusal] = [*content.series, *refused]
    if len(model.channels) > 1:
        if len(set(model.channels)) < len(model.channels):
            raise DataError(
                f"the model has several channels of one name ({join_all(list(model.channels))}), which series cannot "
                "be told apart by; give images named CASE_0000, CASE_0001, …"
            )
        cases = _Channels(folder, model, called).cases(listed, (_by_folder(folder), _by_study))
        if not cases:
            raise DataError(
                f"{folder} has no series for a channel of the model ({join_all(list(model.channels))}); it has "
                f"{_names(listed)}; say what they are called: --channels"
            )
    else:
        (channel,) = model.channels
        if called is not None:
            listed = [one for one in listed if called.matches(channel, _texts(one, folder))]
            if not listed:
                raise DataError(f"{folder} has no series for channel {channel}; it has {_names(content.series)}")
        cases = [_as_case((one,), model) for one in listed if not isinstance(one, Refusal)]
        cases += [ImageCase(one.uid or str(one.folder), (), one.reason) for one in listed if isinstance(one, Refusal)]
    return sorted(cases, key=lambda case: case.name)


def parse_channels(text: str, model: ModelInput) -> Patterns:
    """What series are called, of each channel of a model.

    Args:
        text: ``T2=t2_tse*|*t2w*,ADC=*ADC*``.
        model: what the model takes.

    Raises:
        ConfigError: other names than the model's channels, or one without a pattern.
    """
    pairs = pairs_of(text)
    names = {name.casefold(): name for name in model.channels}
    by_name = {names.get(name.casefold(), name): split_patterns(patterns) for name, patterns in pairs}
    if set(by_name) != set(model.channels) or len(by_name) != len(pairs) or not all(by_name.values()):
        example = ",".join(f"{name}=*{name}*" for name in model.channels)
        raise ConfigError(f"--channels {text}: say for each channel what its series are called, such as {example}")
    return Patterns({name: by_name[name] for name in model.channels})


@dataclass(frozen=True)
class _Channels:
    """Which series belong together."""

    folder: Path
    model: ModelInput
    called: Patterns | None

    def cases(self, listed: Sequence[Series | Refusal], splits: Sequence[Split]) -> list[ImageCase]:
        """One case of all of these, or where several fit a channel, the cases of each part of them."""
        fitting = {channel: [one for one in listed if self._fits(one, channel)] for channel in self.model.channels}
        if not any(fitting.values()):
            return []  # a study of something else
        lacking = [name for name, found in fitting.items() if not found and name not in self.model.may_lack]
        several = [name for name, found in fitting.items() if len(found) > 1]
        if not lacking and not several:
            joined = [self._case([found[0] if found else None for found in fitting.values()])]
            patients = {one.patient_id for found in fitting.values() for one in found if isinstance(one, Series)}
            apart = self._split(listed, splits) if len(patients) > 1 else []  # of whom each may lack a channel
            return apart if apart and all(case.problem is None for case in apart) else joined
        if parts := self._split(listed, splits):
            return parts
        where = _place(listed[0], self.folder)
        if several:
            problem = f"several series fit channel {several[0]} in {where}: {_names(fitting[several[0]])}"
        else:
            problem = f"no series fits channel {lacking[0]} in {where}: it has {_names(listed)}"
        return [ImageCase(listed[0].uid or str(where), (), f"{problem}; say what it is called: --channels")]

    def _split(self, listed: Sequence[Series | Refusal], splits: Sequence[Split]) -> list[ImageCase]:
        """Cases of each part, by the first of ``splits`` that makes several; none if none does."""
        for place, split in enumerate(splits):
            parts: dict[str, list[Series | Refusal]] = {}
            for one in listed:
                parts.setdefault(split(one), []).append(one)
            if len(parts) > 1:
                return [case for part in parts.values() for case in self.cases(part, splits[place + 1 :])]
        return []

    def _fits(self, one: Series | Refusal, channel: str) -> bool:
        texts = _texts(one, self.folder)
        if self.called is not None:
            return self.called.matches(channel, texts)
        return channel.casefold() in {text.casefold() for text in texts}

    def _case(self, chosen: Sequence[Series | Refusal | None]) -> ImageCase:
        refused = next((one for one in chosen if isinstance(one, Refusal)), None)
        if refused is not None:
            return ImageCase(refused.uid or str(refused.folder), (), refused.reason)
        series = tuple(one for one in chosen if not isinstance(one, Refusal))
        case = _as_case(series, self.model)
        problem = case.problem or _apart([one for one in series if one is not None], self.folder)
        twice = {one.uid for one in series if one is not None}
        if problem is None and len(twice) < sum(one is not None for one in series):
            problem = f"{case.first_series.where} fits two channels; say what each is called: --channels"  # type: ignore[union-attr]
        return replace(case, problem=problem)


def _by_folder(folder: Path) -> Split:
    """The folder directly below, in which a series lies."""
    return lambda one: next(iter(_folder_of(one).relative_to(folder).parts), "")


def _by_study(one: Series | Refusal) -> str:
    return "" if isinstance(one, Refusal) else one.study_uid


def _folder_of(one: Series | Refusal) -> Path:
    return one.folder if isinstance(one, Refusal) else one.files[0].parent


def _place(one: Series | Refusal, folder: Path) -> Path:
    """The folder below the input that a series is in, for messages."""
    parts = _folder_of(one).relative_to(folder).parts
    return folder / parts[0] if parts else folder


def _texts(one: Series | Refusal, folder: Path) -> list[str]:
    return texts_of(one.description, _folder_of(one), folder)


def _names(listed: Sequence[Series | Refusal]) -> str:
    return join_first([one.description or _folder_of(one).name for one in listed], MOST_SHOWN)


def _apart(series: Sequence[Series], folder: Path) -> str | None:
    """Why series are not channels of one image; nothing is resampled. None if they are."""
    first = series[0]
    for other in series[1:]:
        if other.patient_id != first.patient_id:
            return f"{first.where} and {other.where} are of two patients (PatientID); give each a folder of its own"
        if other.frame_of_reference != first.frame_of_reference:
            return (
                f"{other.where} and {first.where} are in two coordinate systems (FrameOfReferenceUID): where one lies "
                "in the other is not known; register them, and give images"
            )
        if not other.frame_of_reference and other.study_uid != first.study_uid:
            return (
                f"{other.where} and {first.where} are of two studies and name no coordinate system "
                "(FrameOfReferenceUID): where one lies in the other is not known; give images"
            )
        if differences := grid_differences(_grid(other), _grid(first)):
            found = differences[0]
            return (
                f"{other.where} lies on another grid than {first.where}: its {found.what} is "
                f"{format_numbers(found.value)}, and {format_numbers(found.reference)} there; resample one onto the "
                "other, and give images"
            )
    return None


def _grid(series: Series) -> Grid:
    stack = series.stack
    return Grid(series.shape, {"spacing": stack.spacing, "origin": stack.origin, "direction": stack.direction})


def _as_case(series: tuple[Series | None, ...], model: ModelInput) -> ImageCase:
    """A case of a series for each channel."""
    problem, first = None, next(one for one in series if one is not None)
    if not NAME.fullmatch(first.uid):
        problem = f"{first.where}: its SeriesInstanceUID {first.uid[:80]!r} is none; give it one of digits and dots"
    for channel, one in zip(model.channels, series, strict=True):
        if one is not None and channel.upper() in MODALITIES and one.modality != channel.upper():
            found = one.modality or "of no modality"
            problem = problem or f"{one.where} is {found}, and the model takes {channel}; leave it out"
    return ImageCase(first.uid, (), problem, series)


def read_series(series: Sequence[Series], reader: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Voxels (C, Z, Y, X) and properties as a reader of nnU-Net gives them for series on one grid as NIfTI files.

    Raises:
        DataError: a slice cannot be read, or the model's reader takes no volumes with a place.
    """
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    volumes = [read_volume(one) for one in series]
    for one, volume in zip(series, volumes, strict=True):
        if not np.isfinite(volume.array).all():
            raise DataError(f"{one.where} holds NaN or infinity")
    first = volumes[0]
    if type(reader) is SimpleITKIO:
        place = {"spacing": first.spacing, "origin": first.origin, "direction": first.direction}
        voxels = np.stack([volume.array for volume in volumes])
        return voxels, {"sitk_stuff": place, "spacing": list(first.spacing[::-1])}
    if ".nii.gz" not in reader.supported_file_endings:
        raise DataError(
            f"the model's reader, {type(reader).__name__}, takes no volumes with a place, as DICOM series are"
        )
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"series_{number:04d}.nii.gz")) for number in range(len(volumes))]
        for path, volume in zip(paths, volumes, strict=True):
            image = volume.as_image()
            image.CopyInformation(first.as_image())  # they are on one grid, but for rounding
            sitk.WriteImage(image, path)
        return reader.read_images(paths)


def write_seg(segmentation: Path, case: ImageCase, labels: Mapping[str, int | Sequence[int]]) -> None:
    """Write a DICOM SEG beside a segmentation that was written, on the grid of its series.

    Regions are segments, which may overlap.

    Raises:
        DataError: the files of the series do not allow it.
    """
    from fednnunet.dicom.segmentation import write_segmentation

    assert case.first_series is not None, "of a series"
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(segmentation)))
    write_segmentation(segmentation.with_name(case.name + OF_SERIES[0]), voxels, case.first_series, labels)
