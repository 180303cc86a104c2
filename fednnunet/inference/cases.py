"""Which cases are to be segmented: files of images in nnU-Net's naming, by folder or one by one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fednnunet.datasets.raw import IMAGE_ENDINGS, RGB_ENDINGS
from fednnunet.errors import DataError
from fednnunet.listing import join_all

if TYPE_CHECKING:
    from fednnunet.dicom.series import Series


@dataclass(frozen=True)
class ModelInput:
    """What a model takes.

    Attributes:
        channels: their names, in the order of the network's input.
        endings: of files that its reader opens; the first is that of the files it was trained on.
        may_lack: channels that it was trained to do without, as zeros.
    """

    channels: tuple[str, ...]
    endings: tuple[str, ...]
    may_lack: frozenset[str]


@dataclass(frozen=True)
class ImageCase:
    """Files of a case.

    Attributes:
        name: of the case, and of its segmentation.
        images: a file for each channel, None where there is none; or one file (colours) for all.
        problem: why it cannot be segmented, with the file; None if nothing is known.
        series: DICOM series instead of images, one for each channel, None where there is none.
    """

    name: str
    images: tuple[Path | None, ...]
    problem: str | None = None
    series: tuple[Series | None, ...] = ()

    @property
    def missing(self) -> list[int]:
        """Numbers of the channels that are zeros."""
        return [number for number, one in enumerate(self.series or self.images) if one is None]

    @property
    def first_series(self) -> Series | None:
        """The series on whose grid the others lie, and to which a DICOM SEG refers; None of other files."""
        return next((one for one in self.series if one is not None), None)

    def fingerprint(self) -> str:
        """By which other files of the same name, or these after a change, are told apart: names, sizes and times."""
        of_series = [path for one in self.series for path in (one.files if one is not None else (None,))]
        files = of_series or self.images
        said = [None if path is None else (path.name, *_size_and_time(path)) for path in files]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes, and when they were written, in ns; zeros for what cannot be read, which is said when it should be."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def find_cases(inputs: Sequence[Path], model: ModelInput) -> list[ImageCase]:
    """Cases of a folder, or the case of one or several files, sorted by name.

    Args:
        inputs: one folder with files ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, …; or files of one case. Of one file,
            the other channels are found beside it.
        model: what the model takes.

    Raises:
        DataError: there is no case, or none that the model can segment; says what is there, and what is expected.
    """
    files, where = _files_of(inputs)
    by_case: dict[str, dict[int, list[Path]]] = {}
    for path in files:
        if (named := _name_and_channel(path, model)) is not None:
            by_case.setdefault(named[0], {}).setdefault(named[1], []).append(path)
    if not by_case:
        raise DataError(_nothing_found(files, where, model))
    cases = [_as_case(name, by_case[name], model) for name in sorted(by_case)]
    if all(case.problem is not None for case in cases):
        raise DataError(str(cases[0].problem) + f" (and {len(cases) - 1} more cases)" * (len(cases) > 1))
    return cases


def _files_of(inputs: Sequence[Path]) -> tuple[list[Path], str]:
    """Files to look at, and what to call their place."""
    for path in inputs:
        if not path.exists():
            raise DataError(f"there is no {path}; give a folder of images, or the images of one case")
    if len(inputs) == 1 and inputs[0].is_dir():
        return sorted(path for path in inputs[0].iterdir() if path.is_file()), str(inputs[0])
    if any(path.is_dir() for path in inputs):
        raise DataError("give one folder of images, or the images of one case, not both")
    first = inputs[0]
    if len(inputs) == 1 and (match := re.match(r"(.+)_\d{4}(\.[A-Za-z].*)", first.name)):
        pattern = re.compile(re.escape(match[1]) + r"_\d{4}" + re.escape(match[2]))
        return sorted(path for path in first.parent.iterdir() if pattern.fullmatch(path.name)), str(first)
    if len({re.sub(r"_\d{4}(\..*)$", r"\1", path.name) for path in inputs}) > 1:
        raise DataError(
            f"{join_all([path.name for path in inputs])} are of several cases; give a folder of them instead"
        )
    return list(inputs), str(first)


def _name_and_channel(path: Path, model: ModelInput) -> tuple[str, int] | None:
    """Case and number of the channel; None for any other file."""
    for ending in model.endings:
        if path.name.endswith(ending) and (match := re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending))):
            return match[1], int(match[2])
    return None


def _nothing_found(files: Sequence[Path], where: str, model: ModelInput) -> str:
    expected = f"CASE_0000{model.endings[0]}"
    if len(model.channels) > 1:
        last = len(model.channels) - 1
        expected += f" to CASE_{last:04d}{model.endings[0]} ({join_all(list(model.channels))})"
    others = sorted({ending for path in files for ending in IMAGE_ENDINGS if path.name.endswith(ending)})
    unnumbered = next((path for path in files if path.name.endswith(model.endings)), None)
    if unnumbered is not None:
        return f"{unnumbered} has no number of a channel in its name; name images {expected}"
    if others:
        taken = join_all(list(model.endings))
        return f"{where} holds {join_all(others)} images, and the model takes {taken}; convert them"
    return f"{where} holds no images; the model takes files named {expected}"


def _as_case(name: str, found: dict[int, list[Path]], model: ModelInput) -> ImageCase:
    number = len(model.channels)
    twice = next((paths for paths in found.values() if len(paths) > 1), None)
    paths = {channel: paths[0] for channel, paths in found.items()}
    if set(paths) == {0} and number > 1 and paths[0].name.endswith(RGB_ENDINGS):
        return ImageCase(name, (paths[0],))
    images = tuple(paths.get(channel) for channel in range(number))
    beyond = next((path for channel, path in sorted(paths.items()) if channel >= number), None)
    lacking = [channel for channel, path in enumerate(images) if path is None]
    problem = None
    if twice is not None:
        problem = f"{twice[0]} and {twice[1].name} are the same channel of a case; keep one"
    elif beyond is not None:
        takes = f"{number} channel{'s' * (number > 1)} ({', '.join(model.channels)})"
        problem = f"{beyond} is one channel more than the model takes: {takes}"
    elif any(model.channels[channel] not in model.may_lack for channel in lacking):
        channel = next(channel for channel in lacking if model.channels[channel] not in model.may_lack)
        problem = (
            f"case {name} lacks {name}_{channel:04d}{model.endings[0]} ({model.channels[channel]}), which the model "
            "was not trained to do without"
        )
    return ImageCase(name, images, problem)


def endings_of(reader_endings: Collection[str], trained: str) -> tuple[str, ...]:
    """Endings of files that are taken: those that the reader opens, that of training first."""
    return (trained, *sorted(set(reader_endings) - {trained}))
