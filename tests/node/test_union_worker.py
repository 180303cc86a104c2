"""A real worker that has annotated some of the federation's structures, and an external one that has others."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.config.task import TaskConfig
from fednnunet.exchange.channel import WorkerFailure
from fednnunet.exchange.messages import (
    EvaluateReply,
    Kind,
    Model,
    PlanReply,
    PlanRequest,
    ScoreModelsRequest,
)
from fednnunet.node.settings import NodeSettings
from tests.conftest import write_boxes
from tests.node import test_worker
from tests.node.test_worker import Server, same, serving
from tests.support.raw_datasets import change_description

pytestmark = pytest.mark.integration
settings = test_worker.settings  # a fixture

UNION = {"background": 0, "liver": 1, "spleen": 2, "tumour": 3}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def prepared(server: Server) -> PlanReply:
    server.ask(Kind.FINGERPRINT)
    request = PlanRequest(fingerprint=None, labels=UNION)
    planned = PlanReply.model_validate_json(server.ask(Kind.PLAN, request.model_dump_json())[0])
    server.ask(Kind.PREPROCESS)
    return planned


def score(server: Server, labels: dict[str, int] | None) -> EvaluateReply:
    body = ScoreModelsRequest(fold=0, models={"Oslo": [0]}, labels=labels)
    return EvaluateReply.model_validate_json(server.ask(Kind.SCORE_MODELS, body.model_dump_json())[0])


def test_a_node_trains_all_labels_and_is_scored_by_its_own(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    outside = write_boxes(tmp_path / "raw", "Dataset102_Outside", cases=2, seed=1)
    change_description(outside, labels={"background": 0, "kidney": 2, "tumour": 1})
    before = digests(tmp_path / "raw")
    union: Any = settings.config.model_copy(update={"task": TaskConfig(labels="union")})
    oslo = replace(settings, config=union)
    with serving(oslo) as server:
        planned = prepared(server)
        layers = list(planned.layers)
        _, state = server.train(0, layers)
        _, first = server.train(1, layers, state)
        _, second = server.train(2, layers, first)
    with serving(oslo) as server:  # a worker that has just started: the labels come from its record
        assert same(second, server.train(2, layers, first, trained=1)[1])
        _, third = server.train(3, layers, second)
        told = server.evaluate(third, server_round=3, trained=3)
        assert {(row.centre, row.label) for row in told.cases} == {("Oslo", "tumour")}
        sent, final = server.send_model(layers)
    assert "query.plan is done again" in (tmp_path / "Oslo" / "node.log").read_text()
    assert digests(tmp_path / "raw") == before

    (results,) = (tmp_path / "Oslo" / "nnUNet_results").glob("*/*")
    trained = json.loads((results / "dataset.json").read_text())
    assert (trained["labels"], trained["annotated"]) == (UNION, ["tumour"])
    summary = json.loads((results / "fold_0" / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"3"}
    references = [
        np.unique(sitk.GetArrayFromImage(sitk.ReadImage(case["reference_file"]))).tolist()
        for case in summary["metric_per_case"]
    ]
    assert references == [[0, 3]] * len(references)
    ours = {row.case: row.dsc for row in told.cases}
    theirs = [case["metrics"]["3"]["Dice"] for case in summary["metric_per_case"]]
    assert list(ours.values()) == pytest.approx(theirs)

    model = Model(node="Oslo", fold=0, plans=planned.plans, mirror_axes=sent.mirror_axes)
    away = replace(oslo, name="Riga", folder=tmp_path / "Riga", datasets={"Riga": outside}, external=True)
    head, *_ = planned.heads
    with serving(away) as server:
        server.ask(Kind.FINGERPRINT)
        server.keep_model(model, {**final, head: final[head][:2]})
        with pytest.raises(WorkerFailure, match=f"layer {head} was received with shape"):
            score(server, UNION)
        server.keep_model(model, final)
    shutil.rmtree(tmp_path / "cache")
    with serving(away) as server:
        told = score(server, UNION)
    assert {(row.centre, row.label, row.model) for row in told.cases} == {("Riga", "tumour", "Oslo")}
    assert "no model segments kidney: it is background, and not scored" in (tmp_path / "Riga" / "node.log").read_text()
    assert digests(tmp_path / "raw") == before
