"""Counts of cases that the server sees in sum only: nodes with real keys and masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fednnunet.errors import NodeError, ProtocolError
from fednnunet.exchange.messages import FingerprintReply, FingerprintRequest, Kind
from fednnunet.exchange.quantities import Quantity
from fednnunet.node.masked_counts import mask_counts
from fednnunet.server.strategy.secure_asym_fedavg import SecureAsymFedAvg
from tests.support.scripted_federation import Answer, Fault, FinishedRun, RunFederation, end_worker
from tests.support.secure_nodes import RUN, SecureNode, secure_nodes

NAMES = ("Linz", "Porto", "Riga", "Turku")
SUMS = {"fingerprint": "histogram", "geometry": "sums", "secure_run": RUN, "colluding": 1}


def run(
    run_federation: RunFederation, nodes: list[SecureNode], fault: Fault | None = None, **settings: Any
) -> FinishedRun:
    faults = {} if fault is None else {"Porto": fault}
    return run_federation(nodes, SecureAsymFedAvg(limit=64.0), {**SUMS, **settings}, faults)


def test_plans_are_those_of_counts_in_clear_and_no_nodes_counts_arrive(
    run_federation: RunFederation, tmp_path: Path
) -> None:
    arrived: list[dict[str, list[int]]] = []

    def see(answer: Answer) -> None:
        arrived.append(answer.body["counts"])

    nodes = secure_nodes(NAMES, tmp_path / "keys", cases=7)
    done = run(run_federation, nodes, Fault("", see, kind=Kind.FINGERPRINT, of="counts"))
    merged = json.loads((done.folder / "federated_fingerprint.json").read_text())
    assert np.median(merged["spacings"], 0).tolist() == [3, 1, 1]
    assert np.median(merged["shapes_after_crop"], 0).tolist() == [8, 64, 64]
    told = [count for counts in arrived for numbers in counts.values() for count in numbers]
    assert len(told) > 50
    assert sum(0 <= count <= 7 for count in told) == 0
    assert np.std(told) > 2**29  # as of random integers of 32 bits


def test_the_same_question_has_the_same_mask_and_another_an_unrelated_one(tmp_path: Path) -> None:
    node, *others = secure_nodes(NAMES, tmp_path / "keys")
    keys = [one.secure.signed_key(RUN) for one in (node, *others)]

    def ask(number: int) -> list[int]:
        below = {Quantity.SHAPE_Z: [number]}
        request = FingerprintRequest(content="counts", below=below, secure_run=RUN, keys=keys)
        return mask_counts(node.secure, request, {Quantity.SHAPE_Z: [3]}, node.folder)[Quantity.SHAPE_Z]

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"secure_run": None, "keys": []}, "asks for counts in clear"),
        ({"keys": []}, "asks for counts in clear"),
        ({"keys": ["Linz", "Porto"]}, r"counts of Linz, Porto are not added up: it takes 3 nodes"),
        ({"keys": ["Porto", "Riga", "Turku"]}, "the server did not send one key of every node"),
        ({"keys": ["Linz", "Porto", "Riga"]}, "cases were counted for Linz, Porto, Riga, Turku in this run"),
    ],
)
def test_what_would_tell_one_nodes_counts_is_refused(asked: dict[str, Any], problem: str, tmp_path: Path) -> None:
    nodes = {node.name: node for node in secure_nodes(NAMES, tmp_path / "keys")}
    counts = {Quantity.SHAPE_Z: [3]}

    def request(**fields: Any) -> FingerprintRequest:
        named = {"secure_run": RUN, "keys": NAMES} | fields
        named["keys"] = [nodes[name].secure.signed_key(RUN) for name in named["keys"]]
        return FingerprintRequest(content="counts", below={Quantity.SHAPE_Z: [1]}, **named)

    linz = nodes["Linz"]
    mask_counts(linz.secure, request(), counts, linz.folder)
    with pytest.raises(ProtocolError, match=problem):
        mask_counts(linz.secure, request(**asked), counts, linz.folder)


def test_a_node_that_masks_for_others_is_noticed_in_the_sum(run_federation: RunFederation, tmp_path: Path) -> None:
    def change(answer: Answer) -> None:
        answer.body["counts"]["extent_y"] = [5] * len(answer.body["counts"]["extent_y"])

    with pytest.raises(ProtocolError, match=r"^the nodes' masked counts do not add up \(extent_y of "):
        run(
            run_federation,
            secure_nodes(NAMES, tmp_path / "keys"),
            Fault("", change, kind=Kind.FINGERPRINT, of="counts"),
        )


@pytest.mark.parametrize("min_nodes", [None, 3])
def test_a_node_that_is_gone_while_cases_are_counted_ends_the_run(
    run_federation: RunFederation, tmp_path: Path, min_nodes: int | None
) -> None:
    nodes = secure_nodes(NAMES, tmp_path / "keys")
    fault = Fault("", end_worker, kind=Kind.FINGERPRINT, of="counts")
    with pytest.raises((NodeError, ProtocolError), match="node Porto"):
        run(run_federation, nodes, fault, min_nodes=min_nodes)
    assert nodes[0].requests_of(Kind.PLAN) == []


def test_counts_of_any_32_bits_are_a_message() -> None:
    body = {
        "node": "Riga",
        "external": False,
        "num_training": 1,
        "configuration": "2d",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0},
        "file_ending": ".nii.gz",
        "counts": {"shape_z": [-(2**31), 2**31 - 1]},
    }
    reply = FingerprintReply.model_validate(body)
    assert reply.counts == {Quantity.SHAPE_Z: [-(2**31), 2**31 - 1]}
