"""Channels of a federation whose centres have acquired different ones: by name, in one order, zeros where one lacks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fednnunet import __version__
from fednnunet.datasets.checked_file import read_file
from fednnunet.datasets.corrections import complete_folder
from fednnunet.datasets.file_integrity import check_written
from fednnunet.datasets.image_checks import choose_reader, naming
from fednnunet.datasets.raw import Case, RawDataset
from fednnunet.datasets.staging import cache_of
from fednnunet.errors import DataError, ProtocolError
from fednnunet.files import write_atomically
from fednnunet.processes import map_in_processes

log = logging.getLogger(__name__)

ACQUIRED = "acquired"
"""Key of ``dataset.json``, where not all channels are the centre's own: names of those that are."""
ZEROS_WHERE_MISSING = "zeros_where_missing"
"""Key of a model's ``dataset.json``: names of channels that it was trained to do without, as zeros."""
INTENSITIES = "foreground_intensity_properties_per_channel"
"""Key of nnU-Net's fingerprint: channel number to properties."""


def without_acquired(dataset: RawDataset) -> RawDataset:
    """The dataset without what its ``dataset.json`` may say under :data:`ACQUIRED`: nnU-Net knows no such key."""
    if ACQUIRED not in dataset.dataset_json:
        return dataset
    return replace(dataset, dataset_json={key: v for key, v in dataset.dataset_json.items() if key != ACQUIRED})


def missing_channels(dataset_json: Mapping[str, Any]) -> dict[int, str]:
    """Channels that are zeros in every case: number in the network's input to name; none without :data:`ACQUIRED`."""
    acquired = dataset_json.get(ACQUIRED)
    names = enumerate(dataset_json["channel_names"].values())
    return {} if acquired is None else {number: name for number, name in names if name not in acquired}


def learnt_to_miss(dataset_json: Mapping[str, Any], drop: float) -> list[str]:
    """Names of the channels that a network is trained to do without: each that training sets to zero at times.

    Args:
        dataset_json: of the node that trains.
        drop: probability with which training drops a channel.
    """
    names = list(dataset_json["channel_names"].values())
    return names if drop and len(names) > 1 else list(missing_channels(dataset_json).values())


def with_union_channels(
    dataset: RawDataset, union: Sequence[str], centre: str, cache: Path, workers: int = 1
) -> RawDataset:
    """The dataset as one of the federation's: all of its channels, in the common order.

    The centre's own files are referred to. For a channel that it lacks, each case gets an image of zeros in its own
    grid and file format, written into ``cache`` once for all cases of one grid.

    Args:
        dataset: the centre's dataset, with files that were checked.
        union: names of all channels of the federation, in the order of the network's input.
        centre: named in errors.
        cache: folder of the node's caches.
        workers: number of processes that read and write.

    Returns:
        The dataset; the same object where its channels are the union already. Else ``dataset.json`` has the channels of
        the union and, where the centre lacks some, the names of its own under :data:`ACQUIRED`.

    Raises:
        DataError: the centre has two channels of one name, or all channels in one file; or a file cannot be read or
            written.
        ProtocolError: the union lacks a channel of the centre.
    """
    own = list(dataset.channel_names.values())
    if own == list(union):
        return dataset
    where = f"centre {centre}: task.channels=union"
    twice = next((name for name in own if own.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{where}, but channel_names in {dataset.folder / 'dataset.json'} has {twice} twice; give each channel a "
            "name of its own",
            f"task.channels=union, but channel_names in its dataset.json has {twice} twice",
        )
    unknown = [name for name in own if name not in union]
    if unknown:
        raise ProtocolError(f"the server's channels lack {unknown[0]}, which centre {centre} has in its dataset.json")
    for case in dataset.cases:
        if len(case.images) != len(own):
            raise DataError(
                f"{where} orders channels anew, but {case.images[0]} holds all of a case; write a file per channel",
                "task.channels=union orders channels anew, but its images hold all channels in one file; write a file "
                "per channel",
            )
    description = {key: value for key, value in dataset.dataset_json.items() if key != "modality"}
    description["channel_names"] = {str(number): name for number, name in enumerate(union)}
    zeros: dict[str, Path] = {}
    if len(own) < len(union):
        description[ACQUIRED] = [name for name in union if name in own]
        zeros = _images_of_zeros(dataset, centre, cache, workers)
    cases = []
    order = f"channels_{json.dumps(own)}"
    for case in dataset.cases:
        files = dict(zip(own, case.images, strict=True))
        images = tuple(files[name] if name in files else zeros[case.name] for name in union)
        cases.append(replace(case, images=images, made=case.made + order))
    return replace(dataset, dataset_json=description, cases=tuple(cases))


def fingerprint_of_union(fingerprint: Mapping[str, Any], own: Sequence[str], union: Sequence[str]) -> dict[str, Any]:
    """nnU-Net's fingerprint of a node's own channels, for those of the union.

    A channel that the node lacks has no properties, as one without any foreground: nnU-Net's planner copies them into
    its plans, and only ``CTNormalization`` reads them.

    Args:
        fingerprint: of the node's own channels.
        own: their names.
        union: names of all channels, in the order of the network's input.
    """
    of_name = {name: fingerprint[INTENSITIES].get(str(number), {}) for number, name in enumerate(own)}
    return {**fingerprint, INTENSITIES: {str(number): of_name.get(name, {}) for number, name in enumerate(union)}}


# images of zeros ---------------------------------------------------------------------------------------


def _images_of_zeros(dataset: RawDataset, centre: str, cache: Path, workers: int) -> dict[str, Path]:
    """Case to an image of zeros in its grid; one for all cases of one grid, written once for these files."""
    folder, ending = cache_of(cache, dataset) / "zeros", dataset.file_ending
    record = folder / "written.json"
    grids = _read_record(record, folder, dataset)
    if grids is None:
        log.info("centre %s: channels that it lacks are zeros, in %s", centre, folder)
        reader = choose_reader(dataset, dataset.cases[0], centre)()
        with naming(centre):
            found = map_in_processes(partial(_grid_of, reader=reader), dataset.cases, workers)
            grids = {case.name: grid for case, grid in zip(dataset.cases, found, strict=True)}
            first = {grids[case.name]: case for case in reversed(dataset.cases)}
            times = dataset.cases[0].images[0].stat()
            write = partial(
                _write_zeros,
                reader=reader,
                folder=folder,
                ending=ending,
                times=(times.st_atime_ns, times.st_mtime_ns),
            )
            list(map_in_processes(write, list(first.items()), workers))
        write_atomically(record, json.dumps({"version": __version__, "grids": grids}))
    return {case: _place(folder, grid, ending) for case, grid in grids.items()}


def _read_record(record: Path, folder: Path, dataset: RawDataset) -> dict[str, str] | None:
    """Case to its grid, as was written; None where that is not known, or an image is gone."""
    try:
        found = json.loads(record.read_text())
        grids = {case.name: str(found["grids"][case.name]) for case in dataset.cases}
        places = {_place(folder, grid, dataset.file_ending) for grid in grids.values()}
        is_whole = found["version"] == __version__ and all(place.is_file() for place in places)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return grids if is_whole else None


def _place(folder: Path, grid: str, ending: str) -> Path:
    return folder / grid / f"zeros_0000{ending}"


def _grid_of(case: Case, reader: Any) -> str:
    """Short digest of the shape of a case's images, and of all that their reader tells of the grid."""
    voxels, properties = read_file(reader.read_images, [str(case.images[0])], case.images[0])
    content = json.dumps([voxels.shape, properties], default=lambda value: value.tolist(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _write_zeros(grid_and_case: tuple[str, Case], reader: Any, folder: Path, ending: str, times: Any) -> None:
    """Write zeros in the grid of a case, and check that nnU-Net reads them beside the case's own channel."""
    grid, case = grid_and_case
    voxels, properties = read_file(reader.read_images, [str(case.images[0])], case.images[0])
    target = _place(folder, grid, ending)
    with complete_folder(target.parent, [target.name]) as partial_folder:
        written = partial_folder / target.name
        # A label map of zeros is an image of zeros: nnU-Net writes it in the grid that it has read.
        reader.write_seg(np.zeros(voxels.shape[1:], dtype=np.uint8), str(written), properties)
        check_written(written)
        spacing = written.with_suffix(".json")
        if spacing.is_file():  # of Tiff3DIO, which looks for that of an image without the number of its channel
            spacing.rename(spacing.with_name("zeros.json"))
        both, _ = read_file(reader.read_images, [str(written), str(case.images[0])], written)
        if both[0].any():
            raise DataError(f"{case.images[0]}: zeros for a channel that is not there cannot be written in its format")
        for path in partial_folder.iterdir():  # written again, it is the same to raw_digest
            os.utime(path, ns=times)
