"""Label maps of centres that have annotated different structures: by name, in values that the federation shares."""

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
from fednnunet.config.task import IGNORE, RESERVED
from fednnunet.datasets.checked_file import read_file
from fednnunet.datasets.corrections import complete_folder
from fednnunet.datasets.file_integrity import check_written
from fednnunet.datasets.image_checks import choose_reader, naming
from fednnunet.datasets.label_names import ANNOTATED, single_values
from fednnunet.datasets.raw import Case, RawDataset
from fednnunet.datasets.staging import cache_of
from fednnunet.errors import ProtocolError
from fednnunet.files import write_atomically
from fednnunet.processes import map_in_processes

log = logging.getLogger(__name__)


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
    annotated = [name for name in union if name in own and name not in RESERVED]
    description = dataset.dataset_json | {"labels": dict(union)}
    if len(annotated) < len(union.keys() - {*RESERVED}):
        description |= {ANNOTATED: annotated}
    values = {value: union.get(name, 0) for name, value in own.items() if value != union.get(name, 0)}
    cases = _cases_in_values(dataset, values, centre, cache, workers) if values else dataset.cases
    return replace(dataset, dataset_json=description, cases=cases)


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
        replace(case, label=_place(folder, case.name, ending), made=f"{case.made}labels_{digest}")
        if case.name in written
        else case
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
