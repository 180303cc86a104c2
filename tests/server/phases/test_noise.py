"""What is said of noise before training, and when the run stops there; over real messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import Kind
from tests.support.scripted_federation import Answer, Fault, FinishedRun, RunFederation, ScriptedNode

REPORT = {
    "hides": "case",
    "noise": 2.0,
    "releases": 200,
    "epsilon": 6.5,
    "total_epsilon": 6.5,
    "delta": 1e-4,
    "parameters": 10_000,
    "units": 98.0,
}
"""A tenth of 980 cases in a step; noise over signal is 2 * 100 / 98."""


def federate(run_federation: RunFederation, report: Mapping[str, Any], **settings: Any) -> FinishedRun:
    def add(answer: Answer) -> None:
        answer.body["noise"] = {**REPORT, **report}

    nodes = [ScriptedNode("Oslo"), ScriptedNode("Porto")]
    return run_federation(nodes, None, settings, {"Porto": Fault("", add, kind=Kind.PREPROCESS)})


@pytest.mark.parametrize(
    ("report", "parts"),
    [
        ({}, ("noise multiplier 2, 200 noisy sums of 98 cases, epsilon 6.50 at delta 0.0001 (a promise with limits)",)),
        ({}, ("Noise over signal is 2 with 10,000 trained values: expect to lose some accuracy",)),
        ({"total_epsilon": 9.0}, ("epsilon 6.50, 9.00 with earlier runs on the same data at delta",)),
        ({"tighter_epsilon": 6.0}, ("epsilon 6.50 (6.00 by PLD) at delta",)),
        ({"epsilon": 0.5, "total_epsilon": 0.5}, ("(strong)",)),
        ({"epsilon": 40.0, "total_epsilon": 40.0}, ("(weak)",)),
        ({"parameters": 1000}, ("expect nearly the accuracy without it",)),
        ({"parameters": 640_000}, ("Noise over signal is 16", "expect to lose much accuracy")),
        # without secure sums, two nodes add all of the noise each: 2 * sqrt(32) / sqrt(2)
        ({"hides": "node", "units": None, "parameters": 32}, ("hides each node", "sums of 2 nodes", "signal is 8 ")),
    ],
)
def test_noise_is_told_in_figures_and_in_words(
    run_federation: RunFederation, report: dict[str, Any], parts: tuple[str, ...]
) -> None:
    (message,) = federate(run_federation, report).messages
    assert message.startswith("node Porto: noise hides each ")
    for part in parts:
        assert part in message


def test_noise_is_kept_for_the_report(run_federation: RunFederation) -> None:
    run = federate(run_federation, {})
    assert list(run.noise) == ["Porto"]
    kept = run.noise["Porto"]
    assert (kept["epsilon"], kept["noise_to_signal"]) == (6.5, pytest.approx(2 * 100 / 98))
    assert run.messages == [f"node Porto: {kept['meaning']}"]


def test_noise_that_leaves_nothing_to_learn_is_refused_unless_accepted(run_federation: RunFederation) -> None:
    useless = {"parameters": 33_500_000}
    problem = (
        r"node Porto: the noise would be 118 times as large as what it hides \(33,500,000 trained values, 98 cases in "
        r"a sum\), .* privacy\.case\.accept_useless=true"
    )
    with pytest.raises(ConfigError, match=problem):
        federate(run_federation, useless)


def test_useless_noise_can_be_accepted(run_federation: RunFederation) -> None:
    (message,) = federate(run_federation, {"parameters": 33_500_000}, accept_useless_noise=True).messages
    assert "expect nothing to be learned" in message
