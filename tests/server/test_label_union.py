"""Every label of a federation: values, who annotates it, and what cannot be united."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fednnunet.errors import DataError
from fednnunet.exchange.messages import FingerprintReply
from fednnunet.server.label_union import plain_labels, unite, without_company

OSLO = {"background": 0, "liver": 1, "spleen": 2}
PORTO = {"background": 0, "aorta": 1, "liver": 2}
"""The value 1 is the liver at Oslo and the aorta here."""


def reply(labels: dict[str, Any], **fields: Any) -> FingerprintReply:
    return FingerprintReply(
        node="Oslo",
        external=False,
        num_training=5,
        configuration="2d",
        channel_names={"0": "CT"},
        labels=labels,
        file_ending=".nii.gz",
        **fields,
    )


def test_values_follow_from_names_in_whatever_order_nodes_join() -> None:
    riga = {"background": 0, "kidney": 1, "ignore": 2}
    nodes = {"Oslo": OSLO, "Porto": PORTO, "Riga": riga}
    for order in itertools.permutations(nodes):
        union = unite({node: nodes[node] for node in order}, {})
        assert union.values == {"background": 0, "aorta": 1, "kidney": 2, "liver": 3, "spleen": 4, "ignore": 5}
        assert union.rows_of("Oslo") == [True, False, False, True, True]
        assert union.rows_of("Porto") == [True, True, False, True, False]
        assert union.rows_of("Riga") == [True, False, True, False, False]


def test_equal_labels_keep_their_values_and_nobody_has_to_be_told() -> None:
    labels = {"background": 0, "spleen": 1, "liver": 2}
    union = unite({"Oslo": labels, "Porto": dict(reversed(labels.items()))}, {"Riga": {"background": 0, "liver": 1}})
    assert (union.values, union.for_training) == (labels, None)
    assert union.for_external(labels) is None
    assert union.for_external({"background": 0, "liver": 1}) == labels, "it has the liver under another value"


def test_one_name_under_two_values_has_to_be_told() -> None:
    union = unite({"Oslo": {"background": 0, "a": 1, "b": 2}, "Porto": {"background": 0, "a": 2, "b": 1}}, {})
    assert union.for_training == {"background": 0, "a": 1, "b": 2}
    assert union.rows_of("Oslo") == union.rows_of("Porto") == [True, True, True]


def test_what_an_external_node_alone_ignores_gets_the_highest_value() -> None:
    external = {"background": 0, "liver": 1, "ignore": 2}
    union = unite({"Oslo": OSLO, "Porto": PORTO}, {"Riga": external})
    assert "ignore" not in union.values
    assert union.for_external(external) == {"background": 0, "aorta": 1, "liver": 2, "spleen": 3, "ignore": 4}


def test_an_interrupted_run_keeps_the_labels_of_its_networks() -> None:
    known = {"background": 0, "aorta": 1, "kidney": 2, "liver": 3, "spleen": 4}
    assert unite({"Oslo": OSLO, "Porto": PORTO}, {}, known).for_training == known
    with pytest.raises(
        DataError, match=r"^node Riga: labels in dataset.json: lung is not among the labels that the run"
    ):
        unite({"Oslo": OSLO, "Riga": {"background": 0, "lung": 1}}, {}, known)


def test_a_node_without_a_label_of_others_is_noticed_where_others_have_some_in_common() -> None:
    lung = {"background": 0, "lung": 1}
    assert without_company({"Oslo": OSLO, "Porto": PORTO, "Riga": lung}) == ["Riga"]
    assert without_company({"Oslo": {"background": 0, "spleen": 1}, "Riga": lung}) == [], "one organ each is usual"
    assert without_company({"Oslo": OSLO, "Porto": PORTO}) == []


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "whole is a region; task.labels=union takes labels of one"),
        ({"background": 0, "liver": 1, "spleen": 1}, "liver and spleen both have value 1; give each its own"),
        ({"background": 0, "liver": 0}, "background and liver both have value 0"),
        ({"background": 1, "liver": 0}, "background must have value 0"),
        ({"background": 0, "liver": 255}, "liver has value 255; it must be 0 to 254"),
        ({"background": 0, "liver": -1}, "liver has value -1"),
        ({"background": 0, "ignore": 1}, "there is none but background, so it annotates nothing"),
        ({"background": 0, "": 1}, "'' must be 1 to 128 printable characters"),
        ({"background": 0, "li\nver": 1}, r"'li\\nver' must be 1 to 128 printable characters"),
        ({"background": 0, "x" * 129: 1}, "'x{128}' must be 1 to 128 printable characters"),
        ({str(value): value for value in range(256)}, "there are 256; at most 255 are possible"),
    ],
)
def test_labels_that_cannot_be_united_are_refused(labels: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"^node Oslo: labels in dataset.json: {problem}") as refused:
        plain_labels(reply(labels))
    assert "\n" not in str(refused.value)


def test_an_order_of_regions_is_refused() -> None:
    with pytest.raises(DataError, match=r"^node Oslo: labels in dataset.json: regions_class_order is set"):
        plain_labels(reply(OSLO, regions_class_order=[1, 2]))


def test_a_list_of_one_value_is_no_region() -> None:
    assert plain_labels(reply({"background": 0, "liver": [1]})) == {"background": 0, "liver": 1}


def many(prefix: str, number: int, ignore: bool = False) -> dict[str, int]:
    names = ["background", *(f"{prefix}{n}" for n in range(number)), *(["ignore"] if ignore else [])]
    return {name: value for value, name in enumerate(names)}


def test_no_more_labels_than_values_of_a_byte() -> None:
    assert len(unite({"Oslo": many("a", 127), "Porto": many("b", 127)}, {}).values) == 255
    too_many = r"^the nodes Oslo, Porto.* have 256 labels in dataset.json altogether; at most 255 are possible"
    with pytest.raises(DataError, match=too_many):
        unite({"Oslo": many("a", 127), "Porto": many("b", 128)}, {})
    with pytest.raises(DataError, match=too_many):
        unite({"Oslo": many("a", 127), "Porto": many("b", 127)}, {"Riga": many("a", 3, ignore=True)})
