"""Refer to a raw dataset from another folder, digest its content, and estimate its size once preprocessed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fednnunet.datasets.checked_file import read_file
from fednnunet.datasets.image_checks import choose_reader, naming
from fednnunet.datasets.raw import Case, RawDataset
from fednnunet.errors import DataError
from fednnunet.files import write_atomically


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
    sizes = {case: sum(path.stat().st_size for path in case.files) for case in dataset.cases}
    largest = max(dataset.cases, key=lambda case: sizes[case])
    paths = [str(path) for path in largest.images]
    reader = choose_reader(dataset, dataset.cases[0], centre)()
    with naming(centre):
        image, _ = read_file(reader.read_images, paths, largest.images[0])
    voxels = image[0].size
    return round((4 * len(image) + 1) * voxels * sum(sizes.values()) / max(sizes[largest], 1))


def raw_digest(dataset: RawDataset) -> str:
    """Short digest of the dataset: ``dataset.json``, case names, size and modification time of each file.

    How files follow from the hospital's own counts, too: in other label values they may have the same size and time.
    Labels and channels in another order are another dataset: nnU-Net goes by it.
    """
    files = [
        [
            case.name,
            [[path.stat().st_size, path.stat().st_mtime_ns] for path in case.files],
            *([case.made] if case.made else []),
        ]
        for case in dataset.cases
    ]
    content = json.dumps([dataset.dataset_json, files])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def case_digest(case: Case) -> str:
    """Short digest of a case's name and the sizes of its images, which stays when files are copied or relabelled."""
    content = json.dumps([case.name, [path.stat().st_size for path in case.images]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def cache_of(cache: Path, dataset: RawDataset) -> Path:
    """Folder in a node's cache for what is computed from the files of a dataset, as they are now."""
    return cache.resolve() / f"{dataset.name}_{raw_digest(dataset)}"
