"""``fednnunet export`` of what ``fednnunet select`` wrote: what was chosen is what is handed over."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fednnunet.models.model_card import ModelCard
from fednnunet.models.open_archive import read_card
from fednnunet.models.open_ensemble import open_ensemble
from fednnunet.models.open_model import open_model
from fednnunet.selection import hand_over
from tests.support.command_line import CommandLine
from tests.support.run_folders import MakeRun
from tests.support.trained_models import TrainedFolders

NODES = {"Oslo": 12, "Porto": 36}


@pytest.fixture
def export(fednnunet: CommandLine) -> CommandLine:
    return partial(fednnunet, "export")


@pytest.fixture
def runs(trained_folders: TrainedFolders, write_run: MakeRun, tmp_path: Path) -> dict[str, Path]:
    """Runs of two strategies whose nodes have models of two folds; those of asym are local's with folds exchanged."""
    found = {}
    for strategy in ("local", "asym"):
        run = write_run(tmp_path / strategy, strategy, fold=[0, 1], nodes=NODES, labels=("tumour",))
        found[strategy] = trained_folders.make_run(run, tuple(NODES))
    for model in found["asym"].glob("nodes/*/nnUNet_results/*/*"):
        (model / "fold_0").rename(model / "x")
        (model / "fold_1").rename(model / "fold_0")
        (model / "x").rename(model / "fold_1")
    return found


def model_of(run: Path, node: str, folds: tuple[str, ...] = ("0", "1"), personal: bool = False) -> dict[str, Any]:
    base = run / "nodes" / node / ("personal" if personal else "")
    folder = base / "nnUNet_results" / "Dataset101_Boxes" / "nnUNetTrainer__nnUNetPlans__2d"
    return {"folder": folder, "folds": list(folds), "personal": personal}


def write_selection(folder: Path, node: str, chosen: str, *models: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An entry of ``selection.json``, as ``fednnunet select`` writes it."""
    return {
        "node": node,
        "seed": 0,
        "chosen": chosen,
        "reason": "",
        "num_cases": 12,
        "averaged": " + " in chosen or "ensemble" in chosen,
        "without_fold": {},
        "dsc": {"selected": 0.61, "local": 0.5, chosen: 0.65},
        "models": [{**model, "folder": os.path.relpath(model["folder"], folder)} for model in models] or None,
        **more,
    }


def select(tmp_path: Path, *entries: tuple[Any, ...], **more: Any) -> Path:
    folder = tmp_path / "selection"
    folder.mkdir(exist_ok=True)
    selections = [write_selection(folder, *entry, **more) for entry in entries]
    content = {"version": 1, "dataset": "phantom", "candidates": ["local", "asym"], "selections": selections}
    (folder / "selection.json").write_text(json.dumps(content))
    return folder


def same(archive: Path, *models: tuple[Path, str]) -> bool:
    """Whether a zip segments by the weights of these models (folder, fold), averaged in this order."""
    found = open_ensemble(archive)
    by_zip = [model.weights(fold) for model in found.models for fold in model.folds]
    expected = [open_model(folder, folds=[fold]).weights(fold) for folder, fold in models]
    return len(by_zip) == len(expected) and all(
        torch.equal(tensor, other[name])
        for ours, other in zip(by_zip, expected, strict=True)
        for name, tensor in ours.items()
    )


def card_of(archive: Path) -> ModelCard:
    card = read_card(archive)
    assert card is not None
    return card


def test_each_hospital_gets_what_it_chose_by_one_command(
    runs: dict[str, Path], export: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(
        runs["asym"] / "nodes" / "Porto" / "nnUNet_results",
        runs["asym"] / "nodes" / "Porto" / "personal" / "nnUNet_results",
    )
    of_oslo, of_porto = model_of(runs["local"], "Oslo"), model_of(runs["asym"], "Porto", personal=True)
    folder = select(tmp_path, ("Oslo", "local", of_oslo), ("Porto", "asym fine-tuned", of_porto), ("Lund", "asym"))
    assert export(folder, "-o", tmp_path / "models") == 0
    assert "note: what Lund chose is not on this disk: choose and export it at the hospital" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["Oslo.zip", "Porto.zip"]
    assert same(tmp_path / "models" / "Oslo.zip", *((of_oslo["folder"], fold) for fold in "01"))
    assert same(tmp_path / "models" / "Porto.zip", *((of_porto["folder"], fold) for fold in "01"))
    card = card_of(tmp_path / "models" / "Oslo.zip")
    assert (card.run.strategy, card.run.trained_for, card.run.cases) == ("local", "node", 12)
    assert {score.centre for score in card.run.scores} == {"centre 1", "external centre 1"}
    assert (
        "Chosen among local, asym by the 12 held-out cases of its centre, on which it is scored, too: its score there "
        "flatters it. Chosen and scored on apart cases: mean DSC 0.610." in card.limits
    )
    assert export(folder, "-o", tmp_path / "one.zip") == 2
    assert "has choices of 2 hospitals; choose one, --node Oslo, or give a folder" in capsys.readouterr().err
    assert export(folder / "selection.json", "-o", tmp_path / "one.zip", "--node", "Oslo", "--fold", "1") == 0
    assert same(tmp_path / "one.zip", (of_oslo["folder"], "1"))


def test_an_average_is_one_zip_of_both_models(runs: dict[str, Path], export: CommandLine, tmp_path: Path) -> None:
    local, asym = model_of(runs["local"], "Oslo"), model_of(runs["asym"], "Oslo")
    folder = select(tmp_path, ("Oslo", "local + asym", local, asym))
    assert export(folder, "-o", tmp_path / "Oslo.zip") == 0
    assert same(tmp_path / "Oslo.zip", *((model["folder"], fold) for model in (local, asym) for fold in "01"))
    card = card_of(tmp_path / "Oslo.zip")
    assert card.averaged == [f"nnUNetTrainer__nnUNetPlans_{number}__2d" for number in (1, 2)]
    (score,) = card.run.scores
    assert score.dsc is not None
    assert (card.run.strategy, score.centre, score.dsc.mean, score.dsc.cases) == ("local + asym", "centre 1", 0.65, 12)
    for name in NODES:
        assert name not in card.as_json()


def test_a_mean_of_few_cases_is_not_told(runs: dict[str, Path], export: CommandLine, tmp_path: Path) -> None:
    models = [model_of(runs["local"], "Oslo"), model_of(runs["asym"], "Oslo")]
    folder = select(tmp_path, ("Oslo", "local + asym", *models), num_cases=4)
    assert export(folder, "-o", tmp_path / "Oslo.zip", "--fold", "0") == 0
    assert card_of(tmp_path / "Oslo.zip").run.scores == []


def test_folds_of_several_runs_are_one_model(
    runs: dict[str, Path], export: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (model_of(runs[name], "Oslo", (fold,)) for name, fold in (("local", "1"), ("asym", "0")))
    folder = select(tmp_path, ("Oslo", "local", first, second))
    assert export(folder, "-o", tmp_path / "Oslo.zip") == 0
    (model,) = open_ensemble(tmp_path / "Oslo.zip").models
    assert model.folds == ("0", "1")
    assert same(tmp_path / "Oslo.zip", (second["folder"], "0"), (first["folder"], "1"))
    scores = card_of(tmp_path / "Oslo.zip").run.scores  # those of one of the runs are not of this model
    assert [(score.centre, score.dsc.cases) for score in scores if score.dsc] == [("centre 1", 12)]
    plans = json.loads((second["folder"] / "plans.json").read_text())
    (second["folder"] / "plans.json").write_text(json.dumps({**plans, "plans_name": "Other"}))
    assert export(folder, "-o", tmp_path / "other.zip") == 2
    assert "are folds of one model, and their plans differ" in capsys.readouterr().err


def test_what_is_not_there_is_said_in_one_line(
    runs: dict[str, Path], export: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local, asym = model_of(runs["local"], "Oslo"), model_of(runs["asym"], "Oslo")
    described = asym["folder"] / "dataset.json"
    content = json.loads(described.read_text())
    described.write_text(json.dumps({**content, "labels": {"background": 0, "cyst": 1}}))
    folder = select(tmp_path, ("Oslo", "local + asym", local, asym), ("Porto", "local"))
    for options, said in (
        (["--node", "Riga"], "has no choice of Riga, only of Oslo, Porto"),
        (["--node", "Porto"], "what Porto chose is not on this disk"),
        (["--configuration", "2d"], "is a selection, which names the models; leave out --configuration"),
        (["--node", "Oslo"], "cannot be averaged: their labels are unlike"),
        (["--node", "Oslo", "--seed", "3"], "has no choice with the seed 3"),
    ):
        assert export(folder, "-o", tmp_path / "x.zip", *options) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    shutil.rmtree(asym["folder"] / "fold_1")
    assert export(folder, "-o", tmp_path / "x.zip", "--node", "Oslo") == 2
    assert "which Oslo chose, has no fold_1; bring it back, or choose again" in capsys.readouterr().err
    written = json.loads((folder / "selection.json").read_text())
    written["selections"].append({**written["selections"][0], "seed": 1})
    (folder / "selection.json").write_text(json.dumps(written))
    assert export(folder, "-o", tmp_path / "x.zip", "--node", "Oslo") == 2
    assert "has choices with the seeds 0 and 1; say which: --seed 0" in capsys.readouterr().err
    written["selections"][-1]["node"] = "../Oslo"
    (folder / "selection.json").write_text(json.dumps(written))
    assert export(folder, "-o", tmp_path / "zips") == 2
    assert "selection.json: selections.2.node: " in capsys.readouterr().err
    (folder / "selection.json").write_text('{"version": 1}')
    assert export(folder, "-o", tmp_path / "x.zip") == 2
    assert "selection.json: candidates: is missing; write it again" in capsys.readouterr().err
    assert not (tmp_path / "x.zip").exists()


def test_a_selection_is_read_as_it_is_written(runs: dict[str, Path], tmp_path: Path) -> None:
    """What the tests above write is what the command writes: the same keys."""
    from fednnunet.selection.choose import choose_models
    from fednnunet.selection.run_folders import read_run_sources
    from fednnunet.selection.written import write_selection as write

    write(tmp_path / "out", choose_models(read_run_sources(list(runs.values())), default="asym"))
    written = json.loads((tmp_path / "out" / "selection.json").read_text())
    by_hand = write_selection(tmp_path, "Oslo", "local", model_of(runs["local"], "Oslo"))
    for entry in written["selections"]:
        assert set(entry) == set(by_hand)
        assert set(entry["models"][0]) == set(by_hand["models"][0])
    read = hand_over.read_choices(tmp_path / "out", None, None, None)
    assert [one.node for one in read.choices] == list(NODES)
    assert [one.candidate for one in read.choices] == [entry["chosen"] for entry in written["selections"]]
