"""What ``dataset.json`` says of a dataset, and whether nnU-Net does with it what its author meant."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fednnunet.errors import DataError

FILE_ENDING = re.compile(r"(\.[A-Za-z0-9_-]+)+", re.ASCII)


def read_description(folder: Path, centre: str) -> dict[str, Any]:
    """The content of ``dataset.json`` in ``folder``, checked; its keys keep their order, by which nnU-Net goes.

    Raises:
        DataError: names centre, file and field, and what is wrong.
    """
    path = folder / "dataset.json"
    where = f"centre {centre}: {path}"
    repeated: list[str] = []

    def note_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        return dict(pairs)

    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=note_repeated)
    except FileNotFoundError:
        raise DataError(f"{where} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(description, dict):
        raise DataError(f"{where} must be a JSON object with channel_names, labels and file_ending")
    if repeated:
        raise DataError(f"{where} has the key {repeated[0]} twice, of which only the last would count; keep one")
    check_description(description, where)
    return description


def check_description(description: Mapping[str, Any], where: str) -> None:
    """Check the content of a ``dataset.json``, wherever it was read from.

    Raises:
        DataError: names ``where`` and the field, and what is wrong.
    """
    for key in ("channel_names", "labels", "file_ending"):
        if key not in description:
            raise DataError(f"{where} has no field {key}")
    ending = description["file_ending"]
    if not isinstance(ending, str) or not FILE_ENDING.fullmatch(ending):  # it becomes a part of paths
        raise DataError(f"{where}: file_ending must be text such as .nii.gz")
    for check in (_problem_of_channels, _problem_of_labels, _problem_of_regions):
        problem = check(description)
        if problem:
            raise DataError(f"{where}: {problem}")


def _problem_of_channels(description: Mapping[str, Any]) -> str | None:
    """Why nnU-Net would take a channel for another one.

    It normalises channel i by the i-th entry of ``channel_names``, whatever its key, and counts the channels of the
    older field ``modality`` where there is one.
    """
    names = description["channel_names"]
    numbers = [str(number) for number in range(len(names))] if isinstance(names, dict) else []
    if not numbers or list(names) != numbers or any(type(name) is not str for name in names.values()):
        return f'channel_names must be {{"0": name, "1": name, …}} in that order; it is {_as_json(names)}'
    older = description.get("modality", names)
    if not isinstance(older, dict) or list(older.items()) != list(names.items()):
        return (
            f"modality, the older name of channel_names, says {_as_json(older)}, channel_names {_as_json(names)}; "
            "remove modality"
        )
    return None


def _problem_of_labels(description: Mapping[str, Any]) -> str | None:
    """Why nnU-Net's ``LabelManager`` or ``verify_dataset_integrity`` would stop, later and with less explanation."""
    labels = description["labels"]
    if not isinstance(labels, dict) or type(labels.get("background")) is not int or labels["background"] != 0:
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
    return None


def _problem_of_regions(description: Mapping[str, Any]) -> str | None:
    """Why a perfect prediction of all regions would not become the label map that it was learnt from.

    nnU-Net has one output per region, in the order of ``labels``, and paints the i-th with the i-th value of
    ``regions_class_order``, one over the other (``LabelManager.convert_probabilities_to_segmentation``).
    """
    regions = regions_of(description["labels"])
    if not _have_regions(description["labels"]):
        return None
    order = description.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(regions) or any(type(value) is not int for value in order):
        return f"labels with regions need regions_class_order, a list of {len(regions)} values, one per region"
    for value in sorted({0}.union(*regions.values())):
        painted = 0
        for values, colour in zip(regions.values(), order, strict=True):
            painted = colour if value in values else painted
        if painted != value:
            return (
                f"by regions_class_order {order}, value {value} becomes {painted}: nnU-Net paints the regions in the "
                f"order of labels ({', '.join(regions)}), each over those before it; {_advice_on_order(regions)}"
            )
    return None


def _advice_on_order(regions: Mapping[str, set[int]]) -> str:
    """How every value can come back: each region needs one value that no region after it holds."""
    from_large_to_small = sorted(regions, key=lambda name: -len(regions[name]))
    for names in (list(regions), from_large_to_small):
        left = _only_here(names, regions)
        if all(len(values) == 1 for values in left):
            order = [values[0] for values in left]
            return f"it must be {order}" + (
                "" if names == list(regions) else f" and labels in the order {', '.join(names)}"
            )
    for name, values in zip(from_large_to_small, left, strict=True):
        if len(values) > 1:
            return f"no region tells {values[0]} from {values[1]} of {name}: add one, or map both to one value"
    return "give each region a value that no smaller one holds"


def _only_here(names: Sequence[str], regions: Mapping[str, set[int]]) -> list[list[int]]:
    """Of each region, the values that none of those after it holds."""
    return [
        sorted(regions[name].difference(*(regions[later] for later in names[place + 1 :])))
        for place, name in enumerate(names)
    ]


def regions_of(labels: Mapping[str, Any]) -> dict[str, set[int]]:
    """Regions, or labels, that nnU-Net has an output for in region-based training, in its order, with their values."""
    values = {name: set(value if isinstance(value, list) else [value]) for name, value in labels.items()}
    return {name: held for name, held in values.items() if name != "ignore" and held != {0}}


def _have_regions(labels: Mapping[str, Any]) -> bool:
    return any(isinstance(value, list) and len(value) > 1 for value in labels.values())


def in_nnunets_order(field: str, value: Any) -> str:
    """A field of ``dataset.json`` as text, the same exactly where nnU-Net makes the same of it.

    Dicts that compare equal may not be: nnU-Net has its channels, and the outputs of region-based training, in the
    order of the entries. Outputs for plain labels are in the order of the values.

    >>> in_nnunets_order("labels", {"background": 0, "x": 1, "y": 2})
    '{"background": 0, "x": 1, "y": 2}'
    >>> in_nnunets_order("labels", {"background": 0, "y": 2, "x": 1})
    '{"background": 0, "x": 1, "y": 2}'
    >>> in_nnunets_order("labels", {"background": 0, "y": [1, 2], "x": 1})
    '{"background": 0, "y": [1, 2], "x": 1}'
    """
    is_sorted = field == "labels" and isinstance(value, Mapping) and not _have_regions(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=is_sorted)


def label_values(labels: Mapping[str, Any]) -> set[int]:
    """All values that ``labels`` of ``dataset.json`` name."""
    values = set()
    for value in labels.values():
        values.update(value if isinstance(value, list) else [value])
    return values


def unknown_label_values(found: Iterable[float], known: Collection[int | None]) -> list[float]:
    """Values of label maps that ``dataset.json`` does not name, sorted."""
    return sorted({value for value in found if value not in known})


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
