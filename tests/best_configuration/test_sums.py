"""Files of sums: what is refused, and what cannot be added."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednnunet.best_configuration.sums import NodeSums, check_copies, check_together, read_sums, write_sums
from fednnunet.errors import DataError
from tests.best_configuration.test_decision import TWO, tell

Change = Callable[[dict[str, Any]], Any]


def valid(node: str = "Oslo") -> NodeSums:
    return tell(node, TWO, {"2d": {"1": [0.25, 0.5], "2": [0.3]}, "3d_fullres": {"1": [0.5, 0.5], "2": [0.1]}})


def sums_of(content: dict[str, Any]) -> dict[str, Any]:
    """The sums of the first label of the first configuration."""
    return content["candidates"][0]["states"][0]["sums"]["1"]


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_sums(tmp_path / "oslo.json", valid())
    assert read_sums(tmp_path / "oslo.json") == valid()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: sums_of(content).update(cases=-1), "candidates.0.states.0.sums.1.cases"),
        (lambda content: sums_of(content).update(cases=True), "candidates.0.states.0.sums.1.cases"),
        (lambda content: sums_of(content).update(cases=11), "2d, label 1: 11 cases, more than its 10"),
        (lambda content: sums_of(content).update(dice=2.1), "2d, label 1: the sum of Dice, 2.1, is more than"),
        (lambda content: sums_of(content).update(dice=0.1, cases=0), "the sum of Dice, 0.1, is more than"),
        (lambda content: sums_of(content).update(dice=-0.1), "candidates.0.states.0.sums.1.dice"),
        (lambda content: sums_of(content).update(dice=float("nan")), "candidates.0.states.0.sums.1.dice"),
        (lambda content: sums_of(content).update(dice=float("inf")), "candidates.0.states.0.sums.1.dice"),
        (lambda content: sums_of(content).update(dice=10**400), "candidates.0.states.0.sums.1.dice"),
        (lambda content: sums_of(content).update(case="case_001"), "candidates.0.states.0.sums.1.case"),
        (lambda content: content["candidates"][0]["states"].clear(), "states of 2d are not those of its labels"),
        (lambda content: content["candidates"][0]["states"][0]["sums"].pop("1"), "states of 2d are not those"),
        (lambda content: content["candidates"].pop(), "candidates must be of models (0,), (1,)"),
        (lambda content: content.update(ensembles=True), "candidates must be of models (0,), (1,), (0, 1)"),
        (lambda content: content.update(postprocessing=True), "states of 2d are not those of its labels"),
        (lambda content: content["models"].reverse(), "models must be in nnU-Net's order"),
        (lambda content: content["models"][1].update(configuration="2d"), "models must be in nnU-Net's order"),
        (lambda content: content["models"][0].update(plans="../x"), "models.0.plans"),
        (lambda content: content.update(folds=[1, 0]), "folds must be sorted"),
        (lambda content: content.update(folds=[]), "folds"),
        (lambda content: content["digests"].pop(), "digests must be of each model, in its folds"),
        (lambda content: content["digests"][0].update({"1": 64 * "0"}), "digests must be of each model, in its folds"),
        (lambda content: content["digests"][0].update({"0": "/data/case_001"}), "digests.0.0"),
        (lambda content: content.update(labels={"background": 1, "tumour": 2}), "labels must have background 0"),
        (lambda content: content.update(labels={"background": 0, "ignore": 1}), "labels are none but background"),
        (lambda content: content["labels"].update(tumour=[]), "labels.tumour"),
        (lambda content: content.update(format=2), "format"),
        (lambda content: content.update(node="a/b"), "node"),
        (lambda content: content.pop("num_cases"), "num_cases: is missing"),
        (lambda content: content.update(paths=["/data"]), "unknown key paths"),
    ],
)
def test_numbers_that_cannot_be_are_one_line(tmp_path: Path, change: Change, problem: str) -> None:
    content = valid().model_dump(mode="json")
    change(content)
    path = tmp_path / "oslo.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as raised:
        read_sums(path)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(str(path))
    assert problem in line
    assert line.endswith("write it again with --node-sums")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"{", "is not JSON"), (b"[" * 100_000, "is not JSON"), (b"\xff", "is not JSON"), (b"[]", "the sums: ")],
    ids=["cut", "nested", "no text", "list"],
)
def test_files_of_something_else_are_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "oslo.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as raised:
        read_sums(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"node": "Oslo"}, "a.json and b.json are both of node Oslo"),
        (
            {"labels": {"background": 0, "liver": 2, "tumour": 1}},
            "labels of node Porto .b.json. are background 0, liver 2",
        ),
        ({"folds": [0, 1]}, "folds of node Porto .b.json. are 0, 1, those of node Oslo .a.json. 0;"),
        (
            {"models": valid().models[:1]},
            "configurations of node Porto .b.json. are nnUNetTrainer__nnUNetPlans__2d, those",
        ),
        ({"ensembles": True}, "ensembles of node Porto .b.json. are compared, those of node Oslo .a.json. left out"),
        ({"postprocessing": True}, "steps of post-processing of node Porto"),
    ],
)
def test_sums_that_cannot_be_added_are_one_line(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        check_together([("a.json", valid()), ("b.json", valid("Porto").model_copy(update=change))])


def test_a_copy_under_another_name_is_refused_unless_it_may_be_none() -> None:
    with pytest.raises(DataError, match=r"a.json and b.json hold the same numbers under two names"):
        check_copies([("a.json", valid()), ("b.json", valid("Porto"))])
    check_copies([(node, tell(node, TWO, {"2d": {"1": [0.0, 1.0], "2": []}})) for node in ("Oslo", "Porto")])


def test_labels_may_be_listed_in_another_order_unless_they_are_regions() -> None:
    other = valid("Porto").model_copy(update={"labels": dict(reversed(TWO.items())), "num_cases": 3})
    check_together([("a.json", valid()), ("b.json", other)])
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    ours, theirs = (
        valid(node).model_copy(update={"labels": labels, "num_cases": cases})
        for node, labels, cases in (("Oslo", regions, 3), ("Porto", dict(reversed(regions.items())), 4))
    )
    with pytest.raises(DataError, match="labels of node Porto"):
        check_together([("a.json", ours), ("b.json", theirs)])
