"""What the server asks of the nodes for the federated fingerprint, and what it refuses; over real messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fednnunet import __version__
from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import FingerprintReply, FingerprintRequest, PlanReply, PlanRequest
from fednnunet.fingerprint.schema import ChannelIntensities, IntensityBins, LocalFingerprint
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.node_client import NodeClient
from fednnunet.server.phases.prepare import plan_networks
from fednnunet.server.phases.register import register_nodes
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import ServerSettings, Session
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg

CASES = {"Oslo": 3, "Porto": 5, "Riga": 0}
"""Riga is external."""
SAMPLES = np.array([10, 11, 11, 13])
Fingerprint = Callable[[str, IntensityBins, int], LocalFingerprint]


def fingerprint(channel: str, bins: IntensityBins, cases: int) -> LocalFingerprint:
    """Of cases that are all alike."""
    intensities = ChannelIntensities(
        count=SAMPLES.size * cases,
        mean=float(SAMPLES.mean()),
        squared_deviations=float(SAMPLES.var() * SAMPLES.size * cases),
        low=10,
        high=13,
        bins=bins,
        histogram=(cases * np.bincount(bins.index(SAMPLES), minlength=bins.number)).tolist(),
    )
    return LocalFingerprint(
        spacings=[[3.0, 1.0, 1.0]] * cases,
        shapes_after_crop=[[8, 64, 64]] * cases,
        relative_sizes=[1.0] * cases,
        intensities={channel: intensities},
    )


class Nodes:
    """Answer for all nodes, and keep what they were asked."""

    def __init__(self, fingerprint_of_porto: Fingerprint = fingerprint) -> None:
        self.fingerprints = dict.fromkeys(CASES, fingerprint) | {"Porto": fingerprint_of_porto}
        self.described: list[FingerprintRequest] = []
        self.planned: dict[str, PlanRequest] = {}
        self.app = ClientApp()
        self.app.query("fingerprint")(self.describe)
        self.app.query("plan")(self.plan)

    def describe(self, message: Message, context: Context) -> Message:
        name = str(context.node_config["name"])
        request = FingerprintRequest.model_validate_json(str(message.content.config_records["config"]["body"]))
        self.described.append(request)
        told = None
        if request.tell == "contribution" and request.bins is not None:
            bins = IntensityBins.model_validate(request.bins["0"])
            told = self.fingerprints[name]("0", bins, CASES[name]).to_dict()
        body = FingerprintReply(
            node=name,
            version=__version__,
            external=not CASES[name],
            num_training=CASES[name],
            configuration="2d",
            channel_names={"0": "CT"},
            labels={"background": 0, "tumour": 1},
            file_ending=".nii.gz",
            intensity_ranges={"0": {"low": 10, "high": 13, "integer": True}} if CASES[name] else None,
            fingerprint=told,
        )
        return Message(RecordDict({"config": ConfigRecord({"body": body.model_dump_json()})}), reply_to=message)

    def plan(self, message: Message, context: Context) -> Message:
        text = str(message.content.config_records["config"]["body"])
        self.planned[str(context.node_config["name"])] = PlanRequest.model_validate_json(text)
        body = PlanReply(plans={}, layers={"weight": [1]}, num_parameters=1).model_dump_json()
        return Message(RecordDict({"config": ConfigRecord({"body": body})}), reply_to=message)


def federate(nodes: Nodes, folder: Path) -> None:
    """The server's first two stages."""
    grid = LocalGrid(nodes.app, {number: {"name": name} for number, name in enumerate(CASES, start=1)}, 2)
    settings = ServerSettings("histogram", [0], timeout=20)
    recorder = RunRecorder(folder, "ffe")
    session = Session(NodeClient(grid, recorder), settings, AsymFedAvg(), recorder)
    register_nodes(session)
    plan_networks(session)
    grid.close()


def test_every_node_plans_for_the_federations_cases(tmp_path: Path) -> None:
    nodes = Nodes()
    federate(nodes, tmp_path)
    assert {request.total_cases for request in nodes.described if request.tell == "contribution"} == {8}
    assert {name: request.num_training for name, request in nodes.planned.items()} == {"Oslo": 8, "Porto": 8}
    merged = json.loads((tmp_path / "federated_fingerprint.json").read_text())
    assert all(request.fingerprint == merged for request in nodes.planned.values())
    assert len(merged["spacings"]) == len(merged["shapes_after_crop"]) == 8
    intensities = merged["foreground_intensity_properties_per_channel"]["0"]
    assert intensities["mean"] == pytest.approx(SAMPLES.mean())
    assert intensities["std"] == pytest.approx(SAMPLES.std())
    assert (intensities["min"], intensities["median"], intensities["max"]) == (10, 11, 13)


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        (lambda channel, bins, cases: fingerprint("1", bins, cases), r"other channels .*: \['1'\] instead of \['0'\]"),
        (lambda channel, bins, cases: fingerprint(channel, bins, 2), "other cases .*: 2 instead of 5"),
        (
            lambda channel, bins, cases: fingerprint(channel, bins.model_copy(update={"low": 9.0}), cases),
            "other bins .*'low': 9.0.* instead of .*'low': 10.0",
        ),
    ],
    ids=["channels", "cases", "bins"],
)
def test_a_fingerprint_that_was_not_asked_for_is_refused(told: Fingerprint, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match=f"^node Porto sent a fingerprint of {problem}"):
        federate(Nodes(told), tmp_path)
