"""The nnUNet_raw contract: find a dataset, read its description, list its cases."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednnunet.datasets.description import read_description
from fednnunet.errors import DataError

DATASET_NAME = re.compile(r"Dataset(\d{3})_.+")
RGB_ENDINGS = (".png", ".bmp", ".tif")
"""Endings of files that may hold several channels (``nnunetv2.imageio.natural_image_reader_writer``)."""
TIFF_ENDINGS = (".tif", ".tiff")
"""Endings of volumes whose spacing is in a ``.json`` file beside them."""
IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".tiff", *RGB_ENDINGS)
"""Endings of files that nnU-Net's readers open; any other file beside the images, such as a ``.json``, is ignored."""


@dataclass(frozen=True)
class Case:
    """Files of one case: one image per channel (or one RGB image of all), and the label map.

    Attributes:
        name: as in the names of its files.
        images: in the order of the channels.
        label: the label map.
        made: short text of how these files follow from the hospital's own, where size and time of a file do not tell:
            label values that were changed, channels that were put in another order.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    made: str = ""

    @property
    def files(self) -> list[Path]:
        """Images, label map, and what ``nnunetv2.imageio.tif_reader_writer`` reads spacings from, if it is there."""
        files = [*self.images, self.label]
        if self.label.suffix in TIFF_ENDINGS:
            spacings = (self.images[0].with_name(f"{self.images[0].stem[:-5]}.json"), self.label.with_suffix(".json"))
            files += [path for path in spacings if path.is_file()]
        return files


@dataclass(frozen=True)
class RawDataset:
    """A dataset in nnU-Net's raw format.

    Attributes:
        folder: folder of the dataset.
        name: ``DatasetXXX_Name``.
        dataset_json: content of ``dataset.json``.
        cases: sorted by name.
    """

    folder: Path
    name: str
    dataset_json: dict[str, Any]
    cases: tuple[Case, ...]

    @property
    def channel_names(self) -> dict[str, str]:
        """Channel number to name."""
        return {str(key): str(value) for key, value in self.dataset_json["channel_names"].items()}

    @property
    def labels(self) -> dict[str, Any]:
        """Label name to value; a list of values is a region."""
        return dict(self.dataset_json["labels"])

    @property
    def file_ending(self) -> str:
        """Ending of images and label maps, such as ``.nii.gz``."""
        return str(self.dataset_json["file_ending"])


def find_dataset(dataset: int | str, raw_folder: Path | None, centre: str, origin: str | None = None) -> Path:
    """Folder of a dataset given by nnU-Net id, name or path.

    Args:
        dataset: ``101``, ``Dataset101_Name``, or a path to a folder of that name.
        raw_folder: folder in which ids and names are looked up; None for the environment variable ``nnUNet_raw``.
        centre: named in errors.
        origin: how to get the dataset, said where it is not found.

    Raises:
        DataError: not found, ambiguous, or not named ``DatasetXXX_Name``.
    """
    text, advice = str(dataset), f"; {origin}" if origin else ""
    if os.sep in text or text.startswith("."):
        folder = Path(text).expanduser()
        if not folder.is_dir():
            raise DataError(f"centre {centre}: there is no folder {folder}{advice}")
    else:
        folder = _look_up(text, raw_folder, centre, advice)
    if not DATASET_NAME.fullmatch(folder.name):
        raise DataError(f"centre {centre}: folder {folder} must be named DatasetXXX_Name, XXX three digits")
    return folder


def _look_up(text: str, raw_folder: Path | None, centre: str, advice: str) -> Path:
    if raw_folder is None:
        if "nnUNet_raw" not in os.environ:
            raise DataError(
                f"centre {centre}: dataset {text} cannot be looked up; set dataset.raw_folder, the environment "
                f"variable nnUNet_raw, or give the folder's path{advice}"
            )
        raw_folder = Path(os.environ["nnUNet_raw"])
    if not raw_folder.is_dir():
        raise DataError(f"centre {centre}: there is no raw folder {raw_folder}{advice}")
    datasets = sorted(path for path in raw_folder.iterdir() if path.is_dir() and DATASET_NAME.fullmatch(path.name))
    if text.isdigit():
        found = [path for path in datasets if path.name.startswith(f"Dataset{int(text):03d}_")]
    else:
        found = [path for path in datasets if path.name == text]
    if len(found) > 1:
        raise DataError(f"centre {centre}: id {text} is ambiguous in {raw_folder}: {', '.join(p.name for p in found)}")
    if not found:
        names = ", ".join(path.name for path in datasets) or "no datasets"
        raise DataError(
            f"centre {centre}: dataset {text} is not in {raw_folder}, which holds {names}; put it there, or give its "
            f"path in dataset.centres{advice}"
        )
    return found[0]


def read_dataset(folder: Path, centre: str, external: bool = False) -> RawDataset:
    """Read ``dataset.json`` and list the cases; no image is opened.

    Args:
        folder: ``…/DatasetXXX_Name``.
        centre: named in errors.
        external: whether training cases are not needed; ``imagesTs`` and ``labelsTs`` serve without ``imagesTr``.

    Raises:
        DataError: names centre, file or field, and what is wrong.
    """
    dataset = list_cases(folder, centre, external)
    for case in dataset.cases:
        for path in (*case.images, case.label):
            if not path.is_file():
                raise DataError(f"centre {centre}: {path} is missing")
    return dataset


def list_cases(folder: Path, centre: str, external: bool = False) -> RawDataset:
    """As :func:`read_dataset`, but files of a case may be missing.

    Raises:
        DataError: names centre, file or field, and what is wrong.
    """
    description = read_description(folder, centre)
    ending = description["file_ending"]
    if "dataset" in description:
        cases = _listed_cases(folder, description, centre)
    else:
        part = "Ts" if external and not (folder / "imagesTr").is_dir() else "Tr"
        cases = _cases_in_folders(folder, part, ending, len(description["channel_names"]), centre)
    if not cases:
        raise DataError(f"centre {centre}: {folder} holds no case with file ending {ending}")
    return RawDataset(folder, folder.name, description, tuple(sorted(cases, key=lambda case: case.name)))


def _listed_cases(folder: Path, description: dict[str, Any], centre: str) -> list[Case]:
    def locate(text: str) -> Path:
        return folder / os.path.expandvars(text)  # an absolute path replaces folder

    where, listed = f"centre {centre}: {folder / 'dataset.json'}: dataset", description["dataset"]
    if not isinstance(listed, dict):
        raise DataError(f"{where} must map case names to images and label")
    ending, channels = description["file_ending"], len(description["channel_names"])
    cases = []
    for name, files in listed.items():
        images, label = (files.get("images"), files.get("label")) if isinstance(files, dict) else (None, None)
        if (
            not isinstance(images, list)
            or not isinstance(label, str)
            or any(type(image) is not str for image in images)
        ):
            raise DataError(f"{where}: {name} must have images, a list of paths, and label, a path")
        wrong = [text for text in [*images, label] if not text.endswith(ending)]
        if wrong:
            raise DataError(f"{where}: {name}: {wrong[0]} has another file ending than {ending}")
        if len(images) != channels and not (len(images) == 1 and ending in RGB_ENDINGS):
            raise DataError(f"{where}: {name} has {len(images)} images, channel_names {channels} channels")
        cases.append(Case(name, tuple(locate(image) for image in images), locate(label)))
    return cases


def _cases_in_folders(folder: Path, part: str, ending: str, channels: int, centre: str) -> list[Case]:
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    for needed in (images, labels):
        if not needed.is_dir():
            raise DataError(f"centre {centre}: there is no folder {needed}")
    image_name = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    found: dict[str, list[Path]] = {}
    others = []
    for path in sorted(images.iterdir()):
        if match := image_name.fullmatch(path.name):
            found.setdefault(match[1], []).append(path)
        elif path.name.endswith(ending):
            raise DataError(f"centre {centre}: {path} has no channel number; name it NAME_0000{ending}")
        elif path.name.endswith(IMAGE_ENDINGS):
            others.append(path)
    left_out = [path for path in others if re.split(r"_\d{4}\.", path.name)[0] not in found]
    if left_out:
        raise DataError(f"centre {centre}: {left_out[0]} has another file ending than {ending} in dataset.json")
    for path in sorted(labels.iterdir()):
        if path.name.endswith(ending) and path.name.removesuffix(ending) not in found:
            raise DataError(f"centre {centre}: {path} has no image in {images}")
    cases = []
    for name, files in found.items():
        expected = [images / f"{name}_{channel:04d}{ending}" for channel in range(channels)]
        if ending in RGB_ENDINGS and files == expected[:1]:
            expected = files
        unnamed = [path for path in files if path not in expected]
        if unnamed:
            raise DataError(f"centre {centre}: {unnamed[0]} is a channel that channel_names in dataset.json lacks")
        cases.append(Case(name, tuple(expected), labels / f"{name}{ending}"))
    return cases
