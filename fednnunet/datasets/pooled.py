"""The pooled dataset that the strategy ``centralized`` trains on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fednnunet.datasets.description import in_nnunets_order
from fednnunet.datasets.label_names import ANNOTATED, annotated_labels
from fednnunet.datasets.raw import RawDataset
from fednnunet.datasets.staging import stage_dataset
from fednnunet.errors import DataError


def pooled_name(centre: str, case: str) -> str:
    """Name of a centre's case in the pooled dataset."""
    return f"{re.sub(r'[^A-Za-z0-9]', '-', centre)}__{case}"


def centre_of(identifier: str) -> tuple[str, str]:
    """Centre, as written by :func:`pooled_name`, and case of a name in the pooled dataset."""
    centre, separator, case = identifier.partition("__")
    if not separator:
        raise ValueError(f"{identifier} is not a name of a pooled case: it must be CENTRE__CASE")
    return centre, case


def pool_datasets(datasets: Mapping[str, RawDataset], nnunet_raw: Path, name: str) -> RawDataset:
    """One dataset of all centres' cases in ``nnunet_raw/name``, which refers to their files.

    Where a centre has not annotated all labels, ``annotated`` in ``dataset.json`` lists for each centre, as it is
    written in names of cases, those it has. This goes into models, so that no case is named there.

    Raises:
        DataError: centres disagree on channels, labels or file ending; names both and the field. Or the names of
            two centres differ only in characters that a file name cannot hold.
    """
    (first_centre, first), *others = datasets.items()
    names: dict[str, str] = {}
    for centre in datasets:
        other_centre = names.setdefault(pooled_name(centre, ""), centre)
        if other_centre != centre:
            raise DataError(f"centres {other_centre} and {centre} cannot be told apart in file names; rename one")
    for centre, other in others:
        for field in ("channel_names", "labels", "regions_class_order", "file_ending"):
            ours, theirs = (data.dataset_json.get(field) for data in (first, other))
            if in_nnunets_order(field, ours) != in_nnunets_order(field, theirs):
                raise DataError(
                    f"centres {first_centre} and {centre} disagree on {field} in dataset.json: {ours} and {theirs}; "
                    "make them the same, and in the same order, before pooling"
                    + (" (unlike structures: task.labels=union)" if field == "labels" else "")
                )
    cases = tuple(
        sorted(
            (
                replace(case, name=pooled_name(centre, case.name))
                for centre, dataset in datasets.items()
                for case in dataset.cases
            ),
            key=lambda case: case.name,
        )
    )
    folder = nnunet_raw / name
    description = {key: value for key, value in first.dataset_json.items() if key not in ("dataset", ANNOTATED)}
    if any(ANNOTATED in dataset.dataset_json for dataset in datasets.values()):
        description[ANNOTATED] = {
            centre_of(pooled_name(centre, ""))[0]: annotated_labels(dataset) for centre, dataset in datasets.items()
        }
    pooled = RawDataset(folder, name, description | {"name": name, "numTraining": len(cases)}, cases)
    stage_dataset(pooled, nnunet_raw)
    return pooled
