"""The nnUNet_raw contract: find a dataset, read its description, check its images."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fednnunet.errors import DataError
from fednnunet.files import write_atomically

log = logging.getLogger(__name__)

DATASET_NAME = re.compile(r"Dataset(\d{3})_\w+")
MIN_TRAINING_CASES = 5
"""nnU-Net's five-fold split needs as many cases."""
SPACING_TOLERANCE = 1e-3
"""mm; images and labels of one case may differ by rounding in their headers."""


@dataclass(frozen=True)
class Case:
    """Files of one case: one image a channel, and the label map."""

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class RawDataset:
    """A dataset in nnU-Net's raw format.

    Attributes:
        folder: where it lies.
        name: ``DatasetXXX_Name``.
        dataset_json: as on disk.
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
        """Such as ``.nii.gz``."""
        return str(self.dataset_json["file_ending"])


def find_dataset(dataset: int | str, raw_folder: Path | None, centre: str) -> Path:
    """Folder of a dataset given by nnU-Net id, name or path.

    Args:
        dataset: ``101``, ``Dataset101_Name``, or a path to a folder of that name.
        raw_folder: where ids and names are looked up; None for the environment variable ``nnUNet_raw``.
        centre: for the error's text.

    Raises:
        DataError: not found, ambiguous, or not named ``DatasetXXX_Name``.
    """
    text = str(dataset)
    if os.sep in text or text.startswith("."):
        folder = Path(text).expanduser()
        if not folder.is_dir():
            raise DataError(f"centre {centre}: there is no folder {folder}")
    else:
        folder = _look_up(text, raw_folder, centre)
    if not DATASET_NAME.fullmatch(folder.name):
        raise DataError(f"centre {centre}: folder {folder} must be named DatasetXXX_Name, XXX three digits")
    return folder


def _look_up(text: str, raw_folder: Path | None, centre: str) -> Path:
    if raw_folder is None:
        if "nnUNet_raw" not in os.environ:
            raise DataError(
                f"centre {centre}: dataset {text} can not be looked up; set dataset.raw_folder, the environment "
                "variable nnUNet_raw, or give the folder's path"
            )
        raw_folder = Path(os.environ["nnUNet_raw"])
    if not raw_folder.is_dir():
        raise DataError(f"centre {centre}: there is no raw folder {raw_folder}")
    there = sorted(path for path in raw_folder.iterdir() if path.is_dir() and DATASET_NAME.fullmatch(path.name))
    if text.isdigit():
        found = [path for path in there if path.name.startswith(f"Dataset{int(text):03d}_")]
    else:
        found = [path for path in there if path.name == text]
    if len(found) > 1:
        raise DataError(f"centre {centre}: id {text} is ambiguous in {raw_folder}: {', '.join(p.name for p in found)}")
    if not found:
        names = ", ".join(path.name for path in there) or "no datasets"
        raise DataError(f"centre {centre}: dataset {text} is not in {raw_folder}, which holds {names}")
    return found[0]


def read_dataset(folder: Path, centre: str, external: bool = False) -> RawDataset:
    """Read ``dataset.json`` and list the cases; no image is opened.

    Args:
        folder: ``…/DatasetXXX_Name``.
        centre: for the error's text.
        external: needs no training cases; ``imagesTs`` and ``labelsTs`` serve where ``imagesTr`` is not there.

    Raises:
        DataError: names centre, file or field, and what is wrong.
    """
    description = _read_description(folder, centre)
    ending = description["file_ending"]
    if "dataset" in description:
        cases = _listed_cases(folder, description["dataset"])
    else:
        part = "Ts" if external and not (folder / "imagesTr").is_dir() else "Tr"
        cases = _cases_in_folders(folder, part, ending, len(description["channel_names"]), centre)
    for case in cases:
        for path in (*case.images, case.label):
            if not path.is_file():
                raise DataError(f"centre {centre}: {path} is missing")
    if not cases:
        raise DataError(f"centre {centre}: {folder} holds no case with file ending {ending}")
    if not external and len(cases) < MIN_TRAINING_CASES:
        raise DataError(
            f"centre {centre}: {folder} holds {len(cases)} training cases; five-fold cross-validation needs "
            f"{MIN_TRAINING_CASES} (a centre without enough can be external: true)"
        )
    return RawDataset(folder, folder.name, description, tuple(sorted(cases, key=lambda case: case.name)))


def _read_description(folder: Path, centre: str) -> dict[str, Any]:
    path = folder / "dataset.json"
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"centre {centre}: {path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"centre {centre}: {path} is not JSON: {error}") from None
    for key in ("channel_names", "labels", "file_ending"):
        if key not in description:
            raise DataError(f"centre {centre}: {path} has no field {key}")
    labels = description["labels"]
    if not isinstance(labels, dict) or labels.get("background") != 0:
        raise DataError(f"centre {centre}: {path}: labels must map names to values, background to 0")
    return description


def _listed_cases(folder: Path, listed: dict[str, Any]) -> list[Case]:
    def resolve(text: str) -> Path:
        return folder / os.path.expandvars(text)  # an absolute path replaces folder

    return [
        Case(name, tuple(resolve(image) for image in files["images"]), resolve(files["label"]))
        for name, files in listed.items()
    ]


def _cases_in_folders(folder: Path, part: str, ending: str, channels: int, centre: str) -> list[Case]:
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    for needed in (images, labels):
        if not needed.is_dir():
            raise DataError(f"centre {centre}: there is no folder {needed}")
    image_name = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    names = {match[1] for path in images.iterdir() if (match := image_name.fullmatch(path.name))}
    for path in labels.iterdir():
        if path.name.endswith(ending) and path.name.removesuffix(ending) not in names:
            raise DataError(f"centre {centre}: {path} has no image in {images}")
    return [
        Case(
            name,
            tuple(images / f"{name}_{channel:04d}{ending}" for channel in range(channels)),
            labels / f"{name}{ending}",
        )
        for name in names
    ]


def check_images(dataset: RawDataset, centre: str) -> None:
    """Open every file once, with the reader that nnU-Net will use.

    Raises:
        DataError: unreadable file, image and label of different shape or spacing, NaN in an image, or label
            values that ``dataset.json`` does not name.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    reader = determine_reader_writer_from_dataset_json(
        dataset.dataset_json, str(dataset.cases[0].images[0]), verbose=False
    )()
    allowed = np.array(sorted(_label_values(dataset.labels)))
    for case in dataset.cases:
        shapes, spacings = {}, {}
        for path in case.images:
            image, properties = _read(reader.read_images, [str(path)], path, centre)
            shapes[path], spacings[path] = image.shape[1:], properties["spacing"]
            if np.isnan(image).any():
                raise DataError(f"centre {centre}: {path} holds NaN")
        label, properties = _read(reader.read_seg, str(case.label), case.label, centre)
        for path in case.images:
            if shapes[path] != label.shape[1:]:
                raise DataError(
                    f"centre {centre}: {path} has shape {_times(shapes[path])}, its label {case.label.name} "
                    f"{_times(label.shape[1:])} (Z, Y, X)"
                )
            if not np.allclose(spacings[path], properties["spacing"], atol=SPACING_TOLERANCE):
                raise DataError(
                    f"centre {centre}: {path} has spacing {_times(spacings[path])} mm, its label {case.label.name} "
                    f"{_times(properties['spacing'])} mm (Z, Y, X)"
                )
        values = np.unique(label)
        unknown = values[~np.isin(values, allowed)]
        if unknown.size:
            raise DataError(
                f"centre {centre}: {case.label} holds value {unknown[0]:g}, which labels in dataset.json does not name"
            )


def _read(read: Any, argument: Any, path: Path, centre: str) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        return read(argument)
    except Exception as error:
        cause = str(error).strip().splitlines()
        raise DataError(
            f"centre {centre}: {path} can not be read: {cause[-1] if cause else type(error).__name__}"
        ) from error


def _times(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _label_values(labels: dict[str, Any]) -> set[int]:
    values = set()
    for value in labels.values():
        values.update(value if isinstance(value, list) else [value])
    return values


def stage_dataset(dataset: RawDataset, nnunet_raw: Path) -> Path:
    """Refer to ``dataset`` from the folder ``nnunet_raw`` without copying, linking or touching its files.

    nnU-Net reads case files from the entry ``dataset`` of ``dataset.json`` where there is one.

    Returns:
        ``nnunet_raw/DatasetXXX_Name``.
    """
    folder = nnunet_raw / dataset.name
    description = {
        **dataset.dataset_json,
        "numTraining": len(dataset.cases),
        "dataset": {
            case.name: {
                "images": [str(path.resolve()) for path in case.images],
                "label": str(case.label.resolve()),
            }
            for case in dataset.cases
        },
    }
    write_atomically(folder / "dataset.json", json.dumps(description, indent=1))
    return folder


def raw_digest(dataset: RawDataset) -> str:
    """Short name of the dataset's content: description, and name, size and time of every file."""
    files = [
        [case.name, [[path.stat().st_size, path.stat().st_mtime_ns] for path in (*case.images, case.label)]]
        for case in dataset.cases
    ]
    content = json.dumps([dataset.dataset_json, files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
