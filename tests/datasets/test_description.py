"""``dataset.json``: what nnU-Net would take for something else than its author meant is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from fednnunet.datasets.description import read_description
from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import read_dataset
from fednnunet.errors import DataError
from tests.support.raw_datasets import change_description, rewrite, write_description


def refusal(folder: Path, **fields: Any) -> str:
    write_description(folder, **fields)
    with pytest.raises(DataError) as refused:
        read_description(folder, "Oslo")
    assert str(refused.value).startswith(f"centre Oslo: {folder / 'dataset.json'}")
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"channel_names": {"0": "MR"}, "labels": {"background": 0}}', "has no field file_ending"),
        ('{"labels": {"background": 0, "tumour": 1, "tumour": 2}}', "has the key tumour twice"),
    ],
)
def test_a_file_that_is_no_description_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=f"centre Oslo: .*dataset.json {problem}"):
        read_description(tmp_path, "Oslo")


def test_a_mark_of_byte_order_is_passed_over(tmp_path: Path) -> None:
    write_description(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_description(tmp_path, "Oslo")["file_ending"] == ".nii.gz"


# channels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [{"MR": 0}, {"0": "T1", "1": "T2", "3": "FLAIR"}, {"1": "MR", "0": "CT"}, {"1": "MR"}, {"0": 7}, {}, ["MR"], "MR"],
)
def test_channels_that_are_not_numbered_in_order_are_refused(tmp_path: Path, names: Any) -> None:
    problem = refusal(tmp_path, channel_names=names)
    assert f'channel_names must be {{"0": name, "1": name, …}} in that order; it is {json.dumps(names)}' in problem


def test_nnunet_normalises_channels_by_their_order_in_the_file() -> None:
    """The reason: of channel 0, it would take the normalization of the entry that comes first."""
    by_order = [get_normalization_scheme(name).__name__ for name in {"1": "MR", "0": "CT"}.values()]
    assert by_order == ["ZScoreNormalization", "CTNormalization"]


def test_an_older_modality_that_says_otherwise_is_refused(tmp_path: Path) -> None:
    problem = refusal(tmp_path, modality={"0": "MR", "1": "CT"})
    assert 'modality, the older name of channel_names, says {"0": "MR", "1": "CT"}' in problem
    write_description(tmp_path, modality={"0": "MR"})
    assert read_description(tmp_path, "Oslo")["modality"] == {"0": "MR"}


# labels ------------------------------------------------------------------------------------------------

REFUSED_LABELS = [
    ({"background": 0, "tumour": 1, "ignore": 3}, "label ignore must have the highest value, 2"),
    ({"background": 0, "tumour": 1, "ignore": [2]}, "label ignore has value"),
    ({"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order, a list of 2"),
    ({"background": 0, "tumour": 2}, "without a gap; they are 0, 2"),
    ({"background": 0, "tumour": "1"}, "label tumour has value '1'"),
    ({"background": 0, "tumour": []}, "label tumour has value"),
    ({"background": False, "tumour": 1}, "background to 0"),
    ({"tumour": 1}, "background to 0"),
]


@pytest.mark.parametrize(("labels", "problem"), REFUSED_LABELS)
def test_labels_that_cannot_be_trained_on_are_refused(tmp_path: Path, labels: dict[str, Any], problem: str) -> None:
    assert problem in refusal(tmp_path, labels=labels)


@pytest.mark.parametrize("labels", [labels for labels, _ in REFUSED_LABELS[:3]])
def test_nnunet_refuses_these_labels_as_well(labels: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        LabelManager(labels, None)


@pytest.mark.parametrize("ending", [7, "nii.gz", "./../x.nii.gz", ".", ".nii gz"])
def test_a_file_ending_that_is_none_is_refused(tmp_path: Path, ending: Any) -> None:
    assert "file_ending must be text such as .nii.gz" in refusal(tmp_path, file_ending=ending)


# regions -----------------------------------------------------------------------------------------------

BRATS = {"background": 0, "WT": [1, 2, 3], "TC": [1, 2], "ET": 1}
WHOLE_AND_CORE = {"background": 0, "whole": [1, 2], "core": [2]}


@pytest.mark.parametrize(
    ("labels", "order", "becomes", "advice"),
    [
        (WHOLE_AND_CORE, [5, 9], "value 1 becomes 5", "it must be [1, 2]"),
        (BRATS, [1, 2, 3], "value 1 becomes 3", "it must be [3, 2, 1]"),
        (dict(sorted(WHOLE_AND_CORE.items())), [1, 2], "value 1 becomes 2", "labels in the order whole, core"),
        ({"background": 0, "whole": [1, 2]}, [1], "value 2 becomes 1", "no region tells 1 from 2 of whole"),
        ({"background": 0, "all": [0, 1], "core": [1]}, [0, 0], "value 1 becomes 0", "it must be [0, 1]"),
    ],
)
def test_regions_that_cannot_be_painted_are_refused(
    tmp_path: Path, labels: dict[str, Any], order: list[int], becomes: str, advice: str
) -> None:
    problem = refusal(tmp_path, labels=labels, regions_class_order=order)
    assert f"by regions_class_order {order}, {becomes}" in problem
    assert advice in problem


def comes_back(labels: dict[str, Any], order: list[int], values: int) -> bool:
    """Whether nnU-Net turns a perfect prediction of every value of ``labels`` into that value."""
    manager = LabelManager(labels, order)
    truth = np.arange(values)
    perfect = np.array([np.isin(truth, region) for region in manager.foreground_regions], dtype=np.float32)
    return bool((manager.convert_probabilities_to_segmentation(perfect) == truth).all())


def test_regions_are_taken_exactly_where_nnunet_gives_every_value_back(tmp_path: Path) -> None:
    regions = [[1], [2], [1, 2], [1, 3], [2, 3], [1, 2, 3]]
    taken: list[bool] = []
    for chosen in itertools.permutations(regions, 3):
        labels = {"background": 0, **{f"region {place}": values for place, values in enumerate(chosen)}}
        if {value for values in chosen for value in values} != {1, 2, 3}:
            continue
        for order in itertools.permutations((1, 2, 3)):
            write_description(tmp_path, labels=labels, regions_class_order=list(order))
            try:
                read_description(tmp_path, "Oslo")
                taken.append(True)
            except DataError:
                taken.append(False)
            assert taken[-1] == comes_back(labels, list(order), values=4), (labels, order)
    assert 0 < sum(taken) < len(taken)


def test_nnunet_has_plain_labels_in_order_of_their_values_and_regions_in_order_of_the_file() -> None:
    plain = {"background": 0, "x": 1, "y": 2}
    outputs = [LabelManager(labels, None).foreground_labels for labels in (plain, dict(reversed(plain.items())))]
    assert outputs[0] == outputs[1]
    turned = dict(reversed(WHOLE_AND_CORE.items()))
    regions = [LabelManager(labels, [1, 2]).foreground_regions for labels in (WHOLE_AND_CORE, turned)]
    assert regions[0] == list(reversed(regions[1]))


def test_region_and_ignore_labels_are_allowed(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    change_description(folder, labels={**WHOLE_AND_CORE, "ignore": 3}, regions_class_order=[1, 2])
    rewrite(folder / "labelsTr" / "case_001.nii.gz", lambda label: label * 3)
    check_images(read_dataset(folder, "A"), "A")
