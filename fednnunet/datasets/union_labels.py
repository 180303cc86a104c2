"""Labels of a federation whose centres have annotated different structures: by name, in values that all share."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
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

ANNOTATED = "annotated"
"""Key of ``dataset.json``, where not all labels are: names that are, or of a pooled dataset, case to names."""
BACKGROUND, IGNORE = "background", "ignore"


def with_common_names(dataset: RawDataset, names: Mapping[str, str], centre: str) -> RawDataset:
    """The dataset with other names of labels; values, and files, stay.

    What ``dataset.json`` may say under :data:`ANNOTATED` is left out: nnU-Net knows no such key.

    Args:
        dataset: the centre's dataset.
        names: own name of a label to the common one.
        centre: named in errors.

    Raises:
        DataError: there is no label of that name, or another one has the new name.
    """
    description = dataset.dataset_json
    if not names and ANNOTATED not in description:
        return dataset
    own = dataset.labels
    for old, new in names.items():
        if old not in own:
            raise DataError(
                f"centre {centre}: task.rename_labels.{centre}.{old}: labels in {dataset.folder / 'dataset.json'} are "
                f"{', '.join(own)}; rename one of them",
                f"task.rename_labels.{centre} renames {old}, which its dataset.json does not have",
            )
        if any(new == names.get(other, other) for other in own if other != old):
            raise DataError(
                f"centre {centre}: task.rename_labels.{centre}.{old}={new}: another label in "
                f"{dataset.folder / 'dataset.json'} is called {new}; choose another name, or rename that one, too",
                f"task.rename_labels.{centre} renames {old} to {new}, which another label is called",
            )
    labels = {names.get(name, name): value for name, value in own.items()}
    kept = {key: value for key, value in description.items() if key != ANNOTATED}
    return replace(dataset, dataset_json=kept | {"labels": labels})


def union_of(labels: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every label that a centre has: ``background`` 0, then by name, ``ignore`` last.

    Where all centres have the same labels, these stay as they are.

    Args:
        labels: centre to nnU-Net's ``labels``.

    Raises:
        DataError: a centre has regions, or two names for one value.

    >>> union_of({"A": {"background": 0, "spleen": 1}, "B": {"background": 0, "liver": 1, "ignore": 2}})
    {'background': 0, 'liver': 1, 'spleen': 2, 'ignore': 3}
    """
    first, *others = labels.values()
    if all(of_centre == first for of_centre in others):
        return dict(first)
    names = {name for centre, of_centre in labels.items() for name in single_values(of_centre, centre)}
    ordered = [BACKGROUND, *sorted(names - {BACKGROUND, IGNORE}), *([IGNORE] if IGNORE in names else [])]
    return {name: value for value, name in enumerate(ordered)}


def single_values(labels: Mapping[str, Any], centre: str) -> dict[str, int]:
    """Label to its one value.

    Raises:
        DataError: a label is a region of several values, or has the value of another; or there is none but background.
            Names the centre and the label.
    """
    values: dict[str, int] = {}
    for name, value in labels.items():
        held = value if isinstance(value, list) else [value]
        if len(held) != 1:
            raise DataError(
                f"centre {centre}: task.labels=union, but label {name} in dataset.json is a region of the values "
                f"{', '.join(map(str, held))}; give each structure one label of its own",
                f"task.labels=union, but label {name} in its dataset.json is a region; each label needs one value",
            )
        same = next((other for other, taken in values.items() if taken == held[0]), None)
        if same is not None:
            raise DataError(
                f"centre {centre}: labels {same} and {name} in dataset.json both have value {held[0]}; keep one",
                f"labels {same} and {name} in its dataset.json have the same value",
            )
        values[name] = held[0]
    if not values.keys() - {BACKGROUND, IGNORE}:
        raise DataError(
            f"centre {centre}: labels in dataset.json are none but {', '.join(values)}, so it annotates nothing; leave "
            "it out of task.labels=union",
            "nothing is annotated by labels in its dataset.json",
        )
    return values


def with_union_labels(
    dataset: RawDataset,
    union: Mapping[str, int],
    centre: str,
    cache: Path,
    workers: int = 1,
    external: bool = False,
) -> RawDataset:
    """The dataset as one of the federation's: all of its labels, in the common values.

    Label maps whose values change are written anew into ``cache``, once; all other files are referred to.

    Args:
        dataset: the centre's dataset, with files that were checked.
        union: every label of the federation, name to value.
        centre: named in errors.
        cache: folder of the node's caches.
        workers: number of processes that read and write.
        external: whether the centre trains nothing: what it alone has annotated is then background, as no model
            segments it.

    Returns:
        The dataset; the same object where its labels are the union already. Else ``dataset.json`` has the labels of
        the union and, where the centre lacks some, the names that it has annotated under :data:`ANNOTATED`.

    Raises:
        DataError: the centre has regions, or a label map cannot be read or written.
        ProtocolError: the union lacks a label of the centre, and it trains.
    """
    if dataset.labels == union:
        return dataset
    own = single_values(dataset.labels, centre)
    unknown = sorted(own.keys() - union.keys())
    if external and unknown and IGNORE not in unknown:
        log.warning("centre %s: no model segments %s: it is background, and not scored", centre, ", ".join(unknown))
    elif unknown:
        raise ProtocolError(f"the server's labels lack {unknown[0]}, which centre {centre} has in its dataset.json")
    annotated = [name for name in union if name in own and name not in (BACKGROUND, IGNORE)]
    description = dataset.dataset_json | {"labels": dict(union)}
    if len(annotated) < len(union.keys() - {BACKGROUND, IGNORE}):
        description |= {ANNOTATED: annotated}
    values = {value: union.get(name, 0) for name, value in own.items() if value != union.get(name, 0)}
    cases = _cases_in_values(dataset, values, centre, cache, workers) if values else dataset.cases
    return replace(dataset, dataset_json=description, cases=cases)


def annotated_labels(dataset: RawDataset) -> list[str]:
    """Labels that are annotated in every case of a centre's dataset."""
    everything = [name for name in dataset.labels if name not in (BACKGROUND, IGNORE)]
    return list(dataset.dataset_json.get(ANNOTATED, everything))


def _cases_in_values(
    dataset: RawDataset, values: Mapping[int, int], centre: str, cache: Path, workers: int
) -> tuple[Case, ...]:
    """The cases with label maps in other values; written once for these files and values."""
    digest = hashlib.sha256(json.dumps(sorted(values.items())).encode()).hexdigest()[:12]
    folder = cache_of(cache, dataset) / f"labels_{digest}"
    record = folder / "written.json"
    ending = dataset.file_ending
    written = _read_record(record, folder, ending)
    if written is None:
        log.info("centre %s: label maps are written in the federation's values, to %s", centre, folder)
        reader = choose_reader(dataset, dataset.cases[0], centre)()
        write = partial(_write_in_values, values=dict(values), reader=reader, ending=ending, folder=folder)
        with naming(centre):
            found = zip(dataset.cases, map_in_processes(write, dataset.cases, workers), strict=True)
            written = {case.name for case, is_written in found if is_written}
        write_atomically(record, json.dumps({"version": __version__, "written": sorted(written)}))
    return tuple(
        replace(case, label=_place(folder, case.name, ending)) if case.name in written else case
        for case in dataset.cases
    )


def _read_record(record: Path, folder: Path, ending: str) -> set[str] | None:
    """Cases whose label maps were written; None where that is not known, or one is gone."""
    try:
        found = json.loads(record.read_text())
        names = {str(name) for name in found["written"]}
        is_whole = found["version"] == __version__ and all(_place(folder, name, ending).is_file() for name in names)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return names if is_whole else None


def _place(folder: Path, case: str, ending: str) -> Path:
    return folder / case / f"{case}{ending}"


def _write_in_values(case: Case, values: Mapping[int, int], reader: Any, ending: str, folder: Path) -> bool:
    """Write the label map of ``case`` with ``values`` (old to new); False where it holds none of them."""
    voxels, properties = read_file(reader.read_seg, str(case.label), case.label)
    changed = voxels.copy()
    for old, new in values.items():
        changed[voxels == old] = new
    if np.array_equal(changed, voxels):
        return False
    target = _place(folder, case.name, ending)
    with complete_folder(target.parent, [target.name]) as partial_folder:
        reader.write_seg(changed[0], str(partial_folder / target.name), properties)
        check_written(partial_folder / target.name)
        times = case.label.stat()
        for path in partial_folder.iterdir():  # written again, it is the same to raw_digest
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return True
