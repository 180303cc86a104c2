"""What the server asks of the nodes for the federated fingerprint, and what it refuses; over real messages."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import Kind
from fednnunet.fingerprint.bins import IntensityBins
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
        (lambda bins: fingerprint_of("1", bins, 5), r"other channels .*: \['1'\] instead of \['0'\]"),
        (lambda bins: fingerprint_of("0", bins, 2), "other cases .*: 2 instead of 5"),
        (
            lambda bins: fingerprint_of("0", bins.model_copy(update={"low": 9.0}), 5),
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
