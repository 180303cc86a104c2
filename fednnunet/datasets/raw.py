"""The nnUNet_raw contract: find a dataset, read its description, check its images."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fednnunet.errors import DataError
from fednnunet.files import write_atomically

log = logging.getLogger(__name__)

DATASET_NAME = re.compile(r"Dataset(\d{3})_.+")
MIN_TRAINING_CASES = 5
"""nnU-Net's five-fold split needs as many cases."""
SPACING_TOLERANCE = 1e-3
"""mm; images and labels of one case may differ by rounding in their headers."""
RGB_ENDINGS = (".png", ".bmp", ".tif")
"""Files that may hold several channels (``nnunetv2.imageio.natural_image_reader_writer``)."""
TIFF_ENDINGS = (".tif", ".tiff")
"""Files of volumes whose spacing stands in a ``.json`` beside them."""
IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".tiff", *RGB_ENDINGS)
"""What nnU-Net's readers open; any other file beside the images, such as a ``.json``, is let be."""


@dataclass(frozen=True)
class Case:
    """Files of one case: one image a channel (or one RGB image of all), and the label map."""

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
                f"centre {centre}: dataset {text} cannot be looked up; set dataset.raw_folder, the environment "
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
        raise DataError(
            f"centre {centre}: dataset {text} is not in {raw_folder}, which holds {names}; put it there, or give its "
            "path in dataset.centres"
        )
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
    dataset = list_cases(folder, centre, external)
    for case in dataset.cases:
        for path in (*case.images, case.label):
            if not path.is_file():
                raise DataError(f"centre {centre}: {path} is missing")
    if not external and len(dataset.cases) < MIN_TRAINING_CASES:
        raise DataError(
            f"centre {centre}: {folder} holds {len(dataset.cases)} training cases; five-fold cross-validation needs "
            f"{MIN_TRAINING_CASES} (a centre without enough can be external: true)"
        )
    return dataset


def list_cases(folder: Path, centre: str, external: bool = False) -> RawDataset:
    """As :func:`read_dataset`, also where files of a case are missing or the cases are too few to train on.

    Raises:
        DataError: names centre, file or field, and what is wrong.
    """
    description = _read_description(folder, centre)
    ending = description["file_ending"]
    if "dataset" in description:
        cases = _listed_cases(folder, description, centre)
    else:
        part = "Ts" if external and not (folder / "imagesTr").is_dir() else "Tr"
        cases = _cases_in_folders(folder, part, ending, len(description["channel_names"]), centre)
    if not cases:
        raise DataError(f"centre {centre}: {folder} holds no case with file ending {ending}")
    return RawDataset(folder, folder.name, description, tuple(sorted(cases, key=lambda case: case.name)))


def _read_description(folder: Path, centre: str) -> dict[str, Any]:
    path = folder / "dataset.json"
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"centre {centre}: {path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"centre {centre}: {path} is not JSON: {error}") from None
    if not isinstance(description, dict):
        raise DataError(f"centre {centre}: {path} must be a JSON object with channel_names, labels and file_ending")
    for key in ("channel_names", "labels", "file_ending"):
        if key not in description:
            raise DataError(f"centre {centre}: {path} has no field {key}")
    if not isinstance(description["channel_names"], dict) or not description["channel_names"]:
        raise DataError(f'centre {centre}: {path}: channel_names must map numbers to names, such as {{"0": "MRI"}}')
    if not isinstance(description["file_ending"], str) or not description["file_ending"].startswith("."):
        raise DataError(f"centre {centre}: {path}: file_ending must be text such as .nii.gz")
    problem = _problem_of_labels(description)
    if problem:
        raise DataError(f"centre {centre}: {path}: {problem}")
    return description


def _problem_of_labels(description: dict[str, Any]) -> str | None:
    """What nnU-Net's ``LabelManager`` and ``verify_dataset_integrity`` would stop at, later and with less said."""
    labels = description["labels"]
    if not isinstance(labels, dict) or labels.get("background") != 0:
        return "labels must map names to values, background to 0"
    for name, value in labels.items():
        values = value if isinstance(value, list) and name != "ignore" else [value]
        if not values or any(type(single) is not int for single in values):
            return f"label {name} has value {value!r}; it must be an integer, or for a region a list of integers"
    foreground = {name: value for name, value in labels.items() if name not in ("background", "ignore")}
    named = {0} | label_values(foreground)
    if named != set(range(len(named))):
        return f"label values must be 0, 1, 2 … without a gap; they are {', '.join(map(str, sorted(named)))}"
    if "ignore" in labels and labels["ignore"] != len(named):
        return f"label ignore must have the highest value, {len(named)}; it has {labels['ignore']}"
    order = description.get("regions_class_order")
    has_regions = any(isinstance(value, list) and len(value) > 1 for value in foreground.values())
    if has_regions and (not isinstance(order, list) or len(order) != len(foreground)):
        return f"labels with regions need regions_class_order, a list of {len(foreground)} values"
    return None


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


def check_images(dataset: RawDataset, centre: str, progress: Callable[[int], None] | None = None) -> None:
    """Open every file once, with the reader that nnU-Net will use.

    Image and label of different origin or direction are a warning, as in nnU-Net, which ignores both.

    Args:
        dataset: whose images.
        centre: for the error's text.
        progress: called after every case with the number of cases done.

    Raises:
        DataError: unreadable file, wrong number of channels, image and label of different shape or spacing, NaN or
            infinity in an image, or label values that ``dataset.json`` does not name.
    """
    reader = choose_reader(dataset, dataset.cases[0], centre)()
    shifted: dict[str, list[str]] = {}
    for number, case in enumerate(dataset.cases, start=1):
        for what in _check_case(case, reader, dataset, centre):
            shifted.setdefault(what, []).append(case.name)
        if progress is not None:
            progress(number)
    for what, names in shifted.items():
        log.warning(
            "centre %s: image and label differ in %s in %d cases, the first %s; nnU-Net ignores it: look whether they "
            "lie on each other",
            centre,
            what,
            len(names),
            names[0],
        )


def choose_reader(dataset: RawDataset, example: Case, centre: str) -> type:
    """The class that nnU-Net reads ``dataset`` with, going by the first image of ``example``.

    Raises:
        DataError: none can read it.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    first = example.images[0]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints the traceback of every reader that fails
            return determine_reader_writer_from_dataset_json(dataset.dataset_json, str(first), verbose=False)
    except RuntimeError:
        raise DataError(
            f"centre {centre}: {first} cannot be read by any of nnU-Net's readers for {dataset.file_ending}"
        ) from None


def _check_case(case: Case, reader: Any, dataset: RawDataset, centre: str) -> list[str]:
    """What of the geometry differs between images and label without being an error."""
    label, properties = read_file(reader.read_seg, str(case.label), case.label, centre)
    if len(label) != 1:
        raise DataError(f"centre {centre}: {case.label} has {len(label)} channels; a label map has one")
    values = np.unique(label)
    unknown = values[~np.isin(values, list(label_values(dataset.labels)))]
    if unknown.size:
        raise DataError(
            f"centre {centre}: {case.label} holds value {unknown[0]:g}, which labels in dataset.json does not name"
        )
    spacing, geometry = properties["spacing"], geometry_of(properties)
    channels, differs = 0, set()
    for path in case.images:
        image, properties = read_file(reader.read_images, [str(path)], path, centre)
        channels += len(image)
        if image.shape[1:] != label.shape[1:]:
            raise DataError(
                f"centre {centre}: {path} has shape {_times(image.shape[1:])}, its label {case.label.name} "
                f"{_times(label.shape[1:])} (Z, Y, X)"
            )
        if not np.allclose(properties["spacing"], spacing, atol=SPACING_TOLERANCE):
            raise DataError(
                f"centre {centre}: {path} has spacing {_times(properties['spacing'])} mm, its label {case.label.name} "
                f"{_times(spacing)} mm (Z, Y, X)"
            )
        if not np.isfinite(image).all():
            raise DataError(f"centre {centre}: {path} holds NaN or infinity")
        differs |= {
            what
            for what, value in geometry_of(properties).items()
            if not np.allclose(value, geometry[what], atol=SPACING_TOLERANCE)
        }
    if channels != len(dataset.channel_names):
        raise DataError(
            f"centre {centre}: {case.images[0]} has {channels} channels, channel_names in dataset.json "
            f"{len(dataset.channel_names)}"
        )
    return sorted(differs)


def geometry_of(properties: dict[str, Any]) -> dict[str, Any]:
    """Where the voxels lie besides their spacing, as far as nnU-Net's reader tells."""
    if "sitk_stuff" in properties:
        return {what: properties["sitk_stuff"][what] for what in ("origin", "direction")}
    if "nibabel_stuff" in properties:
        return {"affine matrix": properties["nibabel_stuff"]["original_affine"]}
    return {}


def read_file(read: Any, argument: Any, path: Path, centre: str) -> tuple[np.ndarray, dict[str, Any]]:
    """What a method of nnU-Net's readers returns for ``argument``: voxels (C, Z, Y, X) and properties.

    Raises:
        DataError: it cannot be read; names centre and ``path``.
    """
    try:
        return read(argument)
    except Exception as error:
        cause = str(error).strip().splitlines()
        raise DataError(
            f"centre {centre}: {path} cannot be read: {cause[-1] if cause else type(error).__name__}"
        ) from error


def _times(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)


def label_values(labels: dict[str, Any]) -> set[int]:
    """All values that ``labels`` of ``dataset.json`` name."""
    values = set()
    for value in labels.values():
        values.update(value if isinstance(value, list) else [value])
    return values


def stage_dataset(dataset: RawDataset, nnunet_raw: Path) -> Path:
    """Refer to ``dataset`` from the folder ``nnunet_raw`` without copying, linking or touching its files.

    nnU-Net reads case files from the entry ``dataset`` of ``dataset.json`` where there is one.

    Returns:
        ``nnunet_raw/DatasetXXX_Name``.

    Raises:
        DataError: that folder holds images, so its ``dataset.json`` is someone's own.
    """
    folder = nnunet_raw / dataset.name
    for part in ("imagesTr", "imagesTs"):
        if (folder / part).exists():
            raise DataError(f"{folder} holds images; a reference to a dataset needs a folder of its own")
    description = {
        **dataset.dataset_json,
        "numTraining": len(dataset.cases),
        "dataset": {
            case.name: {
                # not resolve(): what a link points to may lack the file ending that readers go by
                "images": [str(path.absolute()) for path in case.images],
                "label": str(case.label.absolute()),
            }
            for case in dataset.cases
        },
    }
    write_atomically(folder / "dataset.json", json.dumps(description, indent=1))
    return folder


def estimate_size(dataset: RawDataset, centre: str) -> int:
    """Bytes that all cases take as nnU-Net preprocesses them (float32 images, 8-bit labels), at their own spacing.

    Opens the case with the largest files; the others are taken to be compressed as well as it.

    Raises:
        DataError: that case cannot be read.
    """
    sizes = {case: sum(path.stat().st_size for path in _files(case)) for case in dataset.cases}
    largest = max(dataset.cases, key=lambda case: sizes[case])
    paths = [str(path) for path in largest.images]
    image, _ = read_file(
        choose_reader(dataset, dataset.cases[0], centre)().read_images, paths, largest.images[0], centre
    )
    voxels = image[0].size
    return round((4 * len(image) + 1) * voxels * sum(sizes.values()) / max(sizes[largest], 1))


def raw_digest(dataset: RawDataset) -> str:
    """Short name of the dataset's content: description, and name, size and time of every file."""
    files = [
        [case.name, [[path.stat().st_size, path.stat().st_mtime_ns] for path in _files(case)]] for case in dataset.cases
    ]
    content = json.dumps([dataset.dataset_json, files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _files(case: Case) -> list[Path]:
    """Images, label, and what ``nnunetv2.imageio.tif_reader_writer`` reads spacings from where it is there."""
    files = [*case.images, case.label]
    if case.label.suffix in TIFF_ENDINGS:
        spacings = (case.images[0].with_name(f"{case.images[0].stem[:-5]}.json"), case.label.with_suffix(".json"))
        files += [path for path in spacings if path.is_file()]
    return files
