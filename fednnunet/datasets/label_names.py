"""Labels of a centre in the federation's words: other names, one value each, which of all are annotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fednnunet.config.task import RESERVED, unite_labels
from fednnunet.datasets.raw import RawDataset
from fednnunet.errors import DataError

ANNOTATED = "annotated"
"""Key of ``dataset.json``, where not all labels are: names that are, or of a pooled dataset, case to names."""


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
    """Every label that a centre has, in the values of :func:`~fednnunet.config.task.unite_labels`.

    Args:
        labels: centre to nnU-Net's ``labels``.

    Raises:
        DataError: centres differ, and one has regions, two names for one value, or no label.
    """
    first, *others = labels.values()
    if all(of_centre == first for of_centre in others):
        return dict(first)
    return unite_labels({centre: single_values(of_centre, centre) for centre, of_centre in labels.items()})


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
    if not values.keys() - {*RESERVED}:
        raise DataError(
            f"centre {centre}: labels in dataset.json are none but {', '.join(values)}, so it annotates nothing; leave "
            "it out of task.labels=union",
            "nothing is annotated by labels in its dataset.json",
        )
    return values


def annotated_labels(dataset: RawDataset) -> list[str]:
    """Labels that are annotated in every case of a centre's dataset."""
    everything = [name for name in dataset.labels if name not in RESERVED]
    return list(dataset.dataset_json.get(ANNOTATED, everything))
