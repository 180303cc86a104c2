"""``fednnunet export`` of what ``fednnunet select`` wrote: what was chosen is what is handed over."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fednnunet.models.first_stage import find_first_stage
from fednnunet.models.fold_digests import digest_folds
from fednnunet.models.model_card import ModelCard
from fednnunet.models.open_archive import read_card
from fednnunet.models.open_ensemble import open_ensemble
from fednnunet.models.open_model import open_model
from fednnunet.selection import hand_over
from fednnunet.selection.sources import model_folder
from fednnunet.training.final_checkpoint import FINAL
from tests.inference.test_cascade import cascade
from tests.support.command_line import CommandLine
from tests.support.run_folders import MakeRun
from tests.support.trained_models import TrainedFolders

__all__ = ["cascade"]  # fixture

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
    digests = digest_folds(folder, folds)
    return {"folder": folder, "folds": list(folds), "personal": personal, "digests": digests, "first_stage": []}


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
    folder = select(tmp_path, ("Oslo", "local", first, second), without_fold=dict.fromkeys("012", "local"))
    assert export(folder, "-o", tmp_path / "Oslo.zip") == 0
    assert "note: Oslo chose local by fold 2, too, of which there was no model" in capsys.readouterr().out
    (model,) = open_ensemble(tmp_path / "Oslo.zip").models
    assert model.folds == ("0", "1")
    assert same(tmp_path / "Oslo.zip", (second["folder"], "0"), (first["folder"], "1"))
    scores = card_of(tmp_path / "Oslo.zip").run.scores  # those of one of the runs are not of this model
    assert [(score.centre, score.dsc.cases) for score in scores if score.dsc] == [("centre 1", 12)]
    plans = json.loads((second["folder"] / "plans.json").read_text())
    (second["folder"] / "plans.json").write_text(json.dumps({**plans, "plans_name": "Other"}))
    assert export(folder, "-o", tmp_path / "other.zip") == 2
    assert "are folds of one model, and their plans differ" in capsys.readouterr().err


def test_a_model_that_has_changed_since_it_was_chosen_is_refused(
    runs: dict[str, Path], export: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local, asym = model_of(runs["local"], "Oslo"), model_of(runs["asym"], "Oslo")
    folder = select(tmp_path, ("Oslo", "local + asym", local, asym))
    summary = local["folder"] / "fold_1" / "validation" / "summary.json"
    checkpoint = asym["folder"] / "fold_1" / "checkpoint_final.pth"
    for changed, content in ((summary, b"{ }"), (checkpoint, (asym["folder"] / "fold_0" / FINAL).read_bytes())):
        before = changed.read_bytes()
        changed.write_bytes(content)
        assert export(folder, "-o", tmp_path / "x.zip") == 2
        error = capsys.readouterr().err
        assert f"{changed.parents[1 + (changed == summary)]}: checkpoint or held-out scores of fold 1 have" in error
        assert error.count("\n") == 1
        assert export(folder, "-o", tmp_path / "y.zip", "--fold", "0") == 0
        changed.write_bytes(before)
    assert not (tmp_path / "x.zip").exists()
    shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    assert export(tmp_path.with_name("moved") / "selection", "-o", tmp_path / "x.zip") == 0


def test_a_cascade_goes_with_the_first_stage_that_it_was_trained_on(
    cascade: Path, export: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {}
    for name, run in (("3d_cascade_fullres", "ffe"), ("3d_lowres", "lowres"), ("3d_lowres", "other")):
        target = tmp_path / run / "nodes" / "Oslo" / "nnUNet_results" / cascade.name
        model = f"nnUNetTrainer__nnUNetPlans__{name}"
        shutil.copytree(cascade / model, target / model)
        predicted = target / "nnUNetTrainer__nnUNetPlans__3d_lowres" / "predicted_next_stage" / "3d_cascade_fullres"
        predicted.mkdir(parents=True)
        (predicted / "a.b2nd").write_text("theirs" if run == "other" else "ours")
        found = model_folder(tmp_path / run / "nodes" / "Oslo", configuration=name)
        assert found is not None
        stages[run] = [found]
    (chosen,) = stages["ffe"]
    (before,) = find_first_stage(chosen, stages.values())
    assert before == stages["lowres"][0]
    assert find_first_stage(chosen, [stages["ffe"], stages["other"]]) == []
    assert find_first_stage(chosen, [[replace(before, folds=("1",))]]) == [], "of another fold"
    for folder in stages["lowres"][0].path.glob("predicted_next_stage/*"):
        shutil.rmtree(folder)
    assert find_first_stage(chosen, [stages["lowres"]]) == stages["lowres"], "nothing speaks against it"
    written = [
        {"folder": one.path, "folds": list(one.folds), "personal": False, "digests": digest_folds(one.path, one.folds)}
        for one in (chosen, before)
    ]
    written[1]["folder"] = os.path.relpath(before.path, tmp_path / "selection")
    folder = select(tmp_path, ("Oslo", "ffe", {**written[0], "first_stage": [written[1]]}))
    assert export(folder, "-o", tmp_path / "x.zip") == 0
    assert [one.configuration for one in open_ensemble(tmp_path / "x.zip").models] == [
        "3d_cascade_fullres",
        "3d_lowres",
    ]
    assert "note: 3d_cascade_fullres" not in capsys.readouterr().out
    (before.path / "fold_0" / "validation" / "summary.json").write_text("[]")
    assert export(folder, "-o", tmp_path / "y.zip") == 2
    assert "checkpoint or held-out scores of fold 0 have changed" in capsys.readouterr().err
    folder = select(tmp_path, ("Oslo", "ffe", {**written[0], "first_stage": []}))
    assert export(folder, "-o", tmp_path / "y.zip") == 2
    error = capsys.readouterr().err
    assert "refines what 3d_lowres segments; name the run of it that Oslo's was trained on, too: fednnunet" in error
    assert not (tmp_path / "y.zip").exists()


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
