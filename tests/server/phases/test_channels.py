"""One network for all channels of the nodes: what the server asks, says, writes and refuses; over real messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from fednnunet.errors import DataError, FednnUNetError
from fednnunet.exchange.messages import Kind
from fednnunet.server.strategy.no_exchange import NoExchange
from tests.support.scripted_federation import (
    SAMPLES,
    Fault,
    FinishedRun,
    RunFederation,
    ScriptedNode,
    end_worker,
    fail_with_reason,
)

UNION = {"channels": "union"}
SHARED = {**UNION, "fingerprint": "histogram"}
INTENSITIES = "foreground_intensity_properties_per_channel"
CHANNELS = {"Oslo": ("T2", "T1"), "Porto": ("T1",), "Riga": ("T2", "FLAIR"), "Turku": ("ADC",)}
"""Another order, one of two, a channel that nobody else has, a node with all of others."""
NAMES = ["ADC", "FLAIR", "T1", "T2"]


def nodes(
    channels: Mapping[str, Sequence[str]], external: Sequence[str] = (), **introduction: Any
) -> list[ScriptedNode]:
    """Nodes of these channels, that exchange one first layer."""
    return [
        ScriptedNode(
            name,
            {"encoder.weight": [3, 4, 1, 1]},
            cases=0 if name in external else 5,
            channel_names={str(number): channel for number, channel in enumerate(own)},
            **introduction,
        )
        for name, own in channels.items()
    ]


def told(run: FinishedRun, kind: Kind) -> dict[str, Any]:
    return {name: body.channels for name, node in run.nodes.items() for body in node.requests_of(kind)}


def test_every_training_node_plans_for_all_channels(run_federation: RunFederation) -> None:
    run = run_federation(nodes(CHANNELS), settings=UNION)
    assert told(run, Kind.PLAN) == dict.fromkeys(CHANNELS, NAMES)
    assert (run.folder / "channels.csv").read_text().splitlines() == [
        "channel,number,Oslo,Porto,Riga,Turku",
        "ADC,0,,,,yes",
        "FLAIR,1,,,yes,",
        "T1,2,yes,yes,,",
        "T2,3,yes,,yes,",
    ]
    assert run.messages == [
        "node Oslo lacks ADC, FLAIR: zeros in all of its cases",
        "node Porto lacks ADC, FLAIR, T2: zeros in all of its cases",
        "node Riga lacks ADC, T1: zeros in all of its cases",
        "node Turku lacks FLAIR, T1, T2: zeros in all of its cases",
    ]


def test_an_order_is_told_where_all_have_the_same_channels_in_unlike_ones(run_federation: RunFederation) -> None:
    run = run_federation(nodes({"Oslo": ("T2", "T1"), "Porto": ("T1", "T2")}), settings=UNION)
    assert told(run, Kind.PLAN) == {"Oslo": ["T1", "T2"], "Porto": ["T1", "T2"]}
    assert run.messages == []


def test_nothing_is_told_where_all_have_the_same_channels_in_one_order(run_federation: RunFederation) -> None:
    same = ("T2", "T1")
    run = run_federation(nodes({"Oslo": same, "Porto": same, "Riga": same}, external=["Riga"]), settings=UNION)
    assert told(run, Kind.PLAN) == {"Oslo": None, "Porto": None}
    assert told(run, Kind.SCORE_MODELS) == {"Riga": None}
    assert run.messages == []


def test_a_channel_of_the_shared_fingerprint_is_that_of_the_nodes_that_have_it(run_federation: RunFederation) -> None:
    oslo = nodes({"Oslo": ("T2", "T1")}, shift={"0": 0, "1": 20})
    run = run_federation([*oslo, *nodes({"Porto": ("T1",)}, shift={"0": 30})], settings=SHARED)
    planned = {name: node.requests_of(Kind.PLAN)[0] for name, node in run.nodes.items()}
    assert told(run, Kind.PLAN) == {"Oslo": ["T1", "T2"], "Porto": ["T1", "T2"]}
    assert planned["Oslo"].fingerprint == planned["Porto"].fingerprint
    intensities = planned["Oslo"].fingerprint[INTENSITIES]
    expected = {"0": np.concatenate([SAMPLES + 20, SAMPLES + 30]), "1": SAMPLES}
    for channel, samples in expected.items():
        found = intensities[channel]
        assert (found["mean"], found["std"]) == pytest.approx((samples.mean(), samples.std()))
        assert (found["min"], found["median"], found["max"]) == (samples.min(), np.median(samples), samples.max())
    bins = {name: node.requests_of(Kind.FINGERPRINT)[-1].bins for name, node in run.nodes.items()}
    assert bins["Oslo"]["1"] == bins["Porto"]["0"] != bins["Oslo"]["0"]
    assert len(planned["Oslo"].fingerprint["spacings"]) == 10


def test_a_channel_that_its_only_node_has_taken_along_has_no_intensities(run_federation: RunFederation) -> None:
    faults = {"Porto": Fault("", worker=end_worker, kind=Kind.FINGERPRINT, of="contribution")}
    centres = nodes({"Oslo": ("T1",), "Porto": ("ADC",), "Riga": ("T1",)})
    run = run_federation(centres, settings={**SHARED, "min_nodes": 2}, faults=faults)
    (request,) = run.nodes["Oslo"].requests_of(Kind.PLAN)
    assert request.channels == ["ADC", "T1"]
    assert request.fingerprint[INTENSITIES]["0"] == {}
    assert request.fingerprint[INTENSITIES]["1"]["mean"] == pytest.approx(SAMPLES.mean())


def test_intensities_are_asked_of_channels_that_nnunet_needs_them_of(run_federation: RunFederation) -> None:
    oslo = nodes({"Oslo": ("T1", "CT")}, shift={"1": 5})
    run = run_federation([*oslo, *nodes({"Porto": ("CT",)})], settings={**SHARED, "needed_intensities": True})
    bins = {name: set(node.requests_of(Kind.FINGERPRINT)[-1].bins) for name, node in run.nodes.items()}
    assert bins == {"Oslo": {"1"}, "Porto": {"0"}}
    (request,) = run.nodes["Porto"].requests_of(Kind.PLAN)
    assert request.fingerprint[INTENSITIES]["1"] == {}
    assert request.fingerprint[INTENSITIES]["0"]["mean"] == pytest.approx(SAMPLES.mean() + 2.5)


def test_an_external_node_scores_with_the_networks_channels(run_federation: RunFederation) -> None:
    centres = nodes({"Oslo": ("T1", "T2"), "Porto": ("T1", "T2"), "Vigo": ("T2",)}, external=["Vigo"])
    run = run_federation(centres, NoExchange(), UNION)
    (request,) = run.nodes["Vigo"].requests_of(Kind.SCORE_MODELS)
    assert request.channels == ["T1", "T2"]
    assert set(request.models) == {"Oslo", "Porto"}
    assert told(run, Kind.PLAN) == {"Oslo": None, "Porto": None}, "training nodes have all of them anyway"
    assert run.messages == ["node Vigo lacks T1: zeros in all of its cases"]
    assert "Vigo" in set(run.cases["node"])


def test_models_are_scored_at_other_nodes(run_federation: RunFederation) -> None:
    run = run_federation(nodes(CHANNELS), NoExchange(), {**UNION, "cross_centre": True})
    assert set(map(tuple, run.cases[["node", "model"]].to_numpy())) == {(a, b) for a in CHANNELS for b in CHANNELS}
    assert told(run, Kind.SCORE_MODELS) == dict.fromkeys(CHANNELS), "each has had them since it planned"


def test_names_that_may_mean_one_channel_are_said(run_federation: RunFederation) -> None:
    run = run_federation(nodes({"Oslo": ("Flair", "T1"), "Porto": ("FLAIR", "T2")}), settings=UNION)
    assert run.messages[0] == (
        "channels FLAIR (Porto) and Flair (Oslo) may be of one kind: give them one name in dataset.json"
    )
    assert not any("T1 (" in message for message in run.messages)


def test_a_channel_whose_last_node_has_left_is_named(run_federation: RunFederation) -> None:
    faults = {"Turku": Fault("", worker=end_worker, kind=Kind.PREPROCESS)}
    run = run_federation(nodes(CHANNELS), settings={**UNION, "min_nodes": 2}, faults=faults)
    assert run.messages[-1] == "no training node of this run has ADC: the network learns nothing from it"


def test_a_run_goes_on_with_the_channels_that_it_began_with(run_federation: RunFederation) -> None:
    """Also without the only node of one of them: the others' networks have its input."""
    centres = nodes(CHANNELS)
    with pytest.raises(FednnUNetError, match="node Porto: the power is gone"):
        run_federation(centres, None, UNION, {"Porto": Fault("", worker=fail_with_reason("the power is gone"))})
    *left, _ = centres
    for node in left:
        node.requests.clear()
    run = run_federation(left, None, UNION)
    assert told(run, Kind.PLAN) == {"Oslo": NAMES, "Porto": NAMES, "Riga": NAMES}
    with pytest.raises(DataError, match=r"^node Vigo: channel_names in dataset.json: DWI is not among the channels"):
        run_federation([*centres, *nodes({"Vigo": ["DWI"]})], None, UNION)
    (run.folder / "channels.csv").unlink()
    with pytest.raises(DataError, match=r"channels.csv: the channels that the run began with cannot be read"):
        run_federation(left, None, UNION)


@pytest.mark.parametrize(
    ("channels", "problem"),
    [
        (("T1", "T1"), r"node Porto: channel_names in dataset.json: T1 is there twice; .* give each channel its own$"),
        (("T1\n",), r"node Porto: channel_names in dataset.json: 'T1\\n' must be 1 to 128 printable characters$"),
        (("x" * 200,), r"node Porto: channel_names in dataset.json: 'x{128}' must be 1 to 128 printable characters$"),
        ([str(n) for n in range(65)], r"node Porto: channel_names in dataset.json: there are 65; 1 to 64 are possible"),
        (
            [str(n) for n in range(64)],
            r"the nodes Oslo, Porto have 66 channels in dataset.json altogether; at most 64 are possible: ",
        ),
    ],
)
def test_channels_that_cannot_be_united_are_named_before_a_node_plans(
    run_federation: RunFederation, channels: Sequence[str], problem: str
) -> None:
    centres = nodes({"Oslo": CHANNELS["Oslo"], "Porto": channels})
    with pytest.raises(DataError, match=f"^{problem}"):
        run_federation(centres, settings=UNION)
    assert not centres[0].requests_of(Kind.PLAN)


def test_an_external_node_with_a_channel_of_its_own_is_refused(run_federation: RunFederation) -> None:
    centres = nodes({"Oslo": ("T1",), "Porto": ("T2",), "Turku": ("T1", "DWI")}, external=["Turku"])
    problem = "^external node Turku: channel_names in dataset.json: no training node has DWI, so no model can use it; "
    with pytest.raises(DataError, match=problem):
        run_federation(centres, settings=UNION)


def test_labels_are_not_united(run_federation: RunFederation) -> None:
    oslo, porto = nodes({"Oslo": ("T1",), "Porto": ("T2",)})
    porto.introduction["labels"] = {"background": 0, "liver": 1}
    with pytest.raises(DataError, match=r"disagree on labels .*\(task.channels=union does not merge labels: see "):
        run_federation([oslo, porto], settings=UNION)


def test_both_can_be_united(run_federation: RunFederation) -> None:
    oslo, porto = nodes({"Oslo": ("T1",), "Porto": ("T2",)})
    for node, label in ((oslo, "liver"), (porto, "spleen")):
        node.introduction["labels"] = {"background": 0, label: 1}
        node.layers, node.heads = {**node.layers, "head": [3, 3, 1, 1]}, ["head"]
    run = run_federation([oslo, porto], settings={**UNION, "labels": "union"})
    (request,) = run.nodes["Oslo"].requests_of(Kind.PLAN)
    assert (request.channels, list(request.labels)) == (["T1", "T2"], ["background", "liver", "spleen"])


def test_without_union_unlike_channels_are_refused_as_before(run_federation: RunFederation) -> None:
    with pytest.raises(DataError, match=r"nodes Oslo and Porto disagree on channel_names in dataset.json"):
        run_federation(nodes({"Oslo": ("T1", "T2"), "Porto": ("T2", "T1")}))
