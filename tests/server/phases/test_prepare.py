"""What the server asks of the nodes for the federated fingerprint, and what it refuses; over real messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.messages import Kind
from fednnunet.fingerprint.bins import IntensityBins
from fednnunet.fingerprint.geometry import NOISY_QUESTIONS
from fednnunet.fingerprint.schema import DatasetFingerprint
from tests.support.scripted_federation import (
    SAMPLES,
    Answer,
    Fault,
    FinishedRun,
    RunFederation,
    ScriptedNode,
    fingerprint_of,
)

CASES = {"Oslo": 3, "Porto": 5, "Riga": 0}
"""Riga is external."""


def federate(run_federation: RunFederation, fault: Fault | None = None) -> FinishedRun:
    nodes = [ScriptedNode(name, cases=cases) for name, cases in CASES.items()]
    return run_federation(nodes, None, {"fingerprint": "histogram"}, {} if fault is None else {"Porto": fault})


def test_every_node_plans_for_the_federations_cases(run_federation: RunFederation) -> None:
    run = federate(run_federation)
    described = [body for node in run.nodes.values() for body in node.requests_of(Kind.FINGERPRINT)]
    planned = {name: body for name, node in run.nodes.items() for body in node.requests_of(Kind.PLAN)}
    assert {body.total_cases for body in described if body.content == "contribution"} == {8}
    assert {name: body.num_training for name, body in planned.items()} == {"Oslo": 8, "Porto": 8}
    merged = json.loads((run.folder / "federated_fingerprint.json").read_text())
    assert all(body.fingerprint == merged for body in planned.values())
    assert len(merged["spacings"]) == len(merged["shapes_after_crop"]) == 8
    intensities = merged["foreground_intensity_properties_per_channel"]["0"]
    assert intensities["mean"] == pytest.approx(SAMPLES.mean())
    assert intensities["std"] == pytest.approx(SAMPLES.std())
    assert (intensities["min"], intensities["median"], intensities["max"]) == (10, 11, 13)


HEALTHY = "no case has foreground; it teaches that there is nothing to find"


def test_a_node_that_plans_without_foreground_is_named(run_federation: RunFederation) -> None:
    plans = {"foreground_intensity_properties_per_channel": {"0": {}}}
    run = run_federation([ScriptedNode("Oslo"), ScriptedNode("Porto", plans=plans)])
    (message,) = run.messages
    assert message.startswith(f"node Porto: {HEALTHY}")


def test_a_node_that_contributes_no_foreground_is_named(run_federation: RunFederation) -> None:
    def empty(answer: Answer) -> None:
        fingerprint = answer.body["fingerprint"]
        intensities = fingerprint["intensities"]["0"]
        none = {"count": 0, "mean": 0, "squared_deviations": 0, "low": 0, "high": 0}
        fingerprint["intensities"]["0"] = {**intensities, **none, "histogram": [0] * len(intensities["histogram"])}

    run = federate(run_federation, Fault("", empty, kind=Kind.FINGERPRINT, of="contribution"))
    (message,) = run.messages
    assert message.startswith(f"node Porto: {HEALTHY}")
    merged = json.loads((run.folder / "federated_fingerprint.json").read_text())
    assert merged["foreground_intensity_properties_per_channel"]["0"]["mean"] == pytest.approx(SAMPLES.mean())


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (lambda bins: fingerprint_of({"1": bins}, 5), r"other channels .*: \['1'\] instead of \['0'\]"),
        (lambda bins: fingerprint_of({"0": bins}, 2), "other cases .*: 2 instead of 5"),
        (
            lambda bins: fingerprint_of({"0": bins.model_copy(update={"low": 9.0})}, 5),
            "other bins .*'low': 9.0.* instead of .*'low': 10.0",
        ),
    ],
    ids=["channels", "cases", "bins"],
)
def test_a_fingerprint_that_was_not_asked_for_is_refused(
    other: Callable[[IntensityBins], DatasetFingerprint], problem: str, run_federation: RunFederation
) -> None:
    def replace(answer: Answer) -> None:
        bins = DatasetFingerprint.model_validate(answer.body["fingerprint"]).intensities["0"].bins
        answer.body["fingerprint"] = other(bins).to_dict()

    with pytest.raises(ProtocolError, match=f"^node Porto sent a fingerprint of {problem}"):
        federate(run_federation, Fault("", replace, kind=Kind.FINGERPRINT, of="contribution"))


def test_layers_that_are_not_trained_are_not_exchanged(run_federation: RunFederation) -> None:
    nodes = [ScriptedNode("Oslo"), ScriptedNode("Porto")]
    run = run_federation(nodes, None, {"train_layers": ["head"]})
    asked = [body.layers for node in run.nodes.values() for body in node.requests_of(Kind.TRAIN)]
    assert len(asked) > 2
    assert {layer for layers in asked for layer in layers} == {"head"}


# counts instead of a list of cases ---------------------------------------------------------------------

SUMS = {"fingerprint": "histogram", "geometry": "sums"}


def count(
    run_federation: RunFederation, fault: Fault | None = None, cases: Mapping[str, int] = CASES, **settings: Any
) -> FinishedRun:
    nodes = [ScriptedNode(name, cases=number) for name, number in cases.items()]
    return run_federation(nodes, None, {**SUMS, **settings}, {} if fault is None else {"Porto": fault})


def test_plans_come_from_counts_and_no_list_of_cases_is_asked_for(run_federation: RunFederation) -> None:
    run = count(run_federation)
    contents = {name: [body.content for body in node.requests_of(Kind.FINGERPRINT)] for name, node in run.nodes.items()}
    assert set(contents["Oslo"]) == {"ranges", "counts", "intensities"}
    assert set(contents["Riga"]) == {"ranges"}
    merged = json.loads((run.folder / "federated_fingerprint.json").read_text())
    assert np.median(merged["spacings"], 0).tolist() == [3, 1, 1]
    assert np.median(merged["shapes_after_crop"], 0).tolist() == [8, 64, 64]
    assert merged["foreground_intensity_properties_per_channel"]["0"]["mean"] == pytest.approx(SAMPLES.mean())
    planned = [body for node in run.nodes.values() for body in node.requests_of(Kind.PLAN)]
    assert {body.num_training for body in planned} == {8}


def test_channels_that_are_normalised_by_the_image_are_not_asked_for(run_federation: RunFederation) -> None:
    channels = {"channel_names": {"0": "T1"}, "intensity_ranges": {}}
    nodes = [ScriptedNode(name, cases=number, **channels) for name, number in {"Oslo": 3, "Porto": 5}.items()]
    run = run_federation(nodes, None, {**SUMS, "needed_intensities": True})
    asked = [body for node in run.nodes.values() for body in node.requests_of(Kind.FINGERPRINT)]
    assert {body.content for body in asked} == {"ranges", "counts"}
    merged = json.loads((run.folder / "federated_fingerprint.json").read_text())
    assert merged["foreground_intensity_properties_per_channel"] == {"0": {}}
    assert run.messages == []


def test_ranges_of_a_channel_that_was_not_asked_for_are_refused(run_federation: RunFederation) -> None:
    nodes = [ScriptedNode("Oslo", channel_names={"0": "T1"}), ScriptedNode("Porto", channel_names={"0": "T1"})]
    with pytest.raises(ProtocolError, match=r"^node Oslo sent ranges of a channel that it was not asked for: 0$"):
        run_federation(nodes, None, {**SUMS, "needed_intensities": True})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda counts: counts.pop("shape_z"), "sent counts of other points than were asked for"),
        (lambda counts: counts["shape_z"].append(1), "sent counts of other points than were asked for"),
        (lambda counts: counts.update(shape_z=[-1]), "sent shape_z of fewer than none or more than all of 5 cases"),
        (lambda counts: counts.update(shape_z=[6]), "sent shape_z of fewer than none or more than all of 5 cases"),
    ],
)
def test_counts_that_no_cases_have_are_refused(
    change: Callable[[dict[str, Any]], object], problem: str, run_federation: RunFederation
) -> None:
    def send(answer: Answer) -> None:
        change(answer.body["counts"])

    with pytest.raises(ProtocolError, match=rf"^node Porto {problem}"):
        count(run_federation, Fault("", send, kind=Kind.FINGERPRINT, of="counts"))


def test_a_node_whose_counts_cannot_be_used_is_left_out_with_all_that_it_counted(run_federation: RunFederation) -> None:
    def change(answer: Answer) -> None:
        answer.body["counts"]["extent_z"] = [6] * len(answer.body["counts"]["extent_z"])

    cases = {"Oslo": 3, "Porto": 5, "Bergen": 4}
    run = count(run_federation, Fault("", change, kind=Kind.FINGERPRINT, of="counts"), cases, min_nodes=2)
    assert "node Porto sent extent_z of fewer than none or more than all of 5 cases" in run.messages[0]
    merged = json.loads((run.folder / "federated_fingerprint.json").read_text())
    assert np.median(merged["spacings"], 0).tolist() == [3, 1, 1]
    assert {body.num_training for body in run.nodes["Oslo"].requests_of(Kind.PLAN)} == {7}


def test_noise_is_refused_where_it_would_plan_another_network(run_federation: RunFederation) -> None:
    with pytest.raises(
        ConfigError, match=r"^fingerprint.epsilon=8 needs 1000 training cases in all, and there are 8: "
    ):
        count(run_federation, epsilon=8.0)


def test_with_noise_questions_end_with_the_budget(run_federation: RunFederation) -> None:
    run = count(run_federation, cases={"Oslo": 700, "Porto": 800}, epsilon=8.0)
    below = [body.below for body in run.nodes["Oslo"].requests_of(Kind.FINGERPRINT) if body.below is not None]
    assert sum(len(numbers) for questions in below for numbers in questions.values()) <= NOISY_QUESTIONS
    merged = json.loads((run.folder / "federated_fingerprint.json").read_text())
    assert np.median(merged["spacings"], 0) == pytest.approx([3, 1, 1], rel=0.01)
