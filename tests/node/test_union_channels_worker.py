"""A real worker that lacks a channel: rounds that repeat bit for bit, and an external one that lacks another."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fednnunet.config.task import TaskConfig
from fednnunet.exchange.channel import WorkerFailure
from fednnunet.exchange.messages import EvaluateReply, Kind, Model, PlanReply, PlanRequest, ScoreModelsRequest
from fednnunet.node.settings import NodeSettings
from tests.conftest import write_boxes
from tests.node import test_worker
from tests.node.test_union_worker import digests
from tests.node.test_worker import Arrays, Server, same, serving
from tests.support.raw_datasets import change_description

pytestmark = pytest.mark.integration
settings = test_worker.settings  # a fixture

CHANNELS = ["DWI", "MRI", "T1"]


def prepared(server: Server) -> PlanReply:
    server.ask(Kind.FINGERPRINT)
    request = PlanRequest(fingerprint=None, channels=CHANNELS)
    planned = PlanReply.model_validate_json(server.ask(Kind.PLAN, request.model_dump_json())[0])
    server.ask(Kind.PREPROCESS)
    return planned


def score(server: Server, channels: list[str] | None) -> EvaluateReply:
    body = ScoreModelsRequest(fold=0, models={"Oslo": [0]}, channels=channels)
    return EvaluateReply.model_validate_json(server.ask(Kind.SCORE_MODELS, body.model_dump_json())[0])


def test_a_node_that_lacks_a_channel_resumes_bit_for_bit(settings: NodeSettings, tmp_path: Path) -> None:
    folder = write_boxes(tmp_path / "raw")
    for path in list((folder / "imagesTr").iterdir()):
        shutil.copy2(path, path.with_name(path.name.replace("_0000", "_0001")))
    change_description(folder, channel_names={"0": "T1", "1": "MRI"})
    outside = write_boxes(tmp_path / "raw", "Dataset102_Outside", cases=2, seed=1)
    before = digests(tmp_path / "raw")

    def node(name: str, drop: float = 0.5) -> NodeSettings:
        config: Any = settings.config.model_copy(update={"task": TaskConfig(channels="union", channel_drop=drop)})
        return replace(settings, config=config, folder=tmp_path / name)

    def rounds(server: Server, start: Arrays, numbers: range) -> Arrays:
        for number in numbers:
            start = server.train(number, layers, start, trained=number - 1)[1]
        return start

    with serving(node("whole")) as server:
        planned = prepared(server)
        layers = list(planned.layers)
        initial = server.train(0, layers)[1]
        second = rounds(server, initial, range(1, 3))
        third = rounds(server, second, range(3, 4))
        server.evaluate(third, server_round=3, trained=3)
        sent, final = server.send_model(layers)
    with serving(node("cut")) as server:
        prepared(server)
        assert same(initial, server.train(0, layers)[1])
        assert same(second, rounds(server, initial, range(1, 3)))
    with serving(node("cut")) as server:  # a worker that has just started: the channels come from its record
        assert same(third, rounds(server, second, range(3, 4)))
    with serving(node("none dropped", drop=0)) as server:
        prepared(server)
        server.train(0, layers)
        assert not same(second, rounds(server, initial, range(1, 3)))
    assert digests(tmp_path / "raw") == before

    model = Model(node="Oslo", fold=0, plans=planned.plans, mirror_axes=sent.mirror_axes)
    away = replace(node("Riga"), name="Riga", datasets={"Riga": outside}, external=True)
    with serving(away) as server:
        server.ask(Kind.FINGERPRINT)
        server.keep_model(model, final)
        told = score(server, CHANNELS)
        assert {(row.centre, row.model) for row in told.cases} == {("Riga", "Oslo")}
        server.keep_model(model.model_copy(update={"unlearnt": ["MRI"]}), final)
        without = score(server, CHANNELS)  # the only channel that this centre has
        assert [row.dsc for row in without.cases] != [row.dsc for row in told.cases]
        server.keep_model(model.model_copy(update={"unlearnt": ["PET"]}), final)
        with pytest.raises(WorkerFailure, match="a model of node Oslo for channel PET, which is not there"):
            score(server, CHANNELS)
        plans = {**planned.plans, "configurations": {**planned.plans["configurations"]}}
        plans["configurations"]["2d"] = {
            **plans["configurations"]["2d"],
            "normalization_schemes": ["CTNormalization", "ZScoreNormalization", "ZScoreNormalization"],
        }
        server.keep_model(model.model_copy(update={"plans": plans}), final)
        with pytest.raises(WorkerFailure, match="channel DWI is not among these images, and is normalised by CTNorm"):
            score(server, CHANNELS)
    assert digests(tmp_path / "raw") == before
