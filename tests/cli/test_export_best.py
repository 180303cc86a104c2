"""``fednnunet export RUN... --best FOLDER``: what ``fednnunet find-best`` decided for, in one zip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from fednnunet.models.fold_digests import digest_folds
from fednnunet.models.model_folder import find_folders
from fednnunet.models.open_archive import read_card
from fednnunet.models.open_ensemble import open_ensemble
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
def runs(trained_folders: TrainedFolders, write_run: MakeRun, tmp_path: Path) -> list[Path]:
    """Runs of two configurations, each with one model that both nodes hold."""
    return [
        trained_folders.make_run(
            write_run(tmp_path / f"run_{configuration}", "ffe", fold=0, nodes=NODES, labels=("tumour",)),
            tuple(NODES),
            configuration,
        )
        for configuration in ("2d", "3d_fullres")
    ]


def decide(folder: Path, configurations: Sequence[str], labels: Sequence[int] = (1,), **more: object) -> Path:
    """A decision, as ``fednnunet find-best`` writes it."""
    folder.mkdir(exist_ok=True)
    models = [
        {"trainer": "nnUNetTrainer", "plans": "nnUNetPlans", "configuration": configuration}
        for configuration in configurations
    ]
    content = {
        "format": 1,
        "nodes": list(NODES),
        "num_cases": 48,
        "folds": [0],
        "personal": False,
        "candidates": [{}, {}, {}],
        "best": {"models": models, "dice": 0.75, "dice_after_postprocessing": 0.8},
        "postprocessing": {"largest_component": [{"labels": list(labels)}]},
        "digests": {},
        **more,
    }
    (folder / "best_configuration.json").write_text(json.dumps(content))
    return folder


def test_the_best_ensemble_of_all_nodes_is_one_zip(
    runs: list[Path], export: CommandLine, trained_folders: TrainedFolders, tmp_path: Path
) -> None:
    best = decide(tmp_path / "best", ["2d", "3d_fullres"])
    assert export(*runs, "--best", best, "-o", tmp_path / "both.zip") == 0
    found = open_ensemble(tmp_path / "both.zip")
    assert found.configurations == "2d + 3d_fullres"
    assert found.postprocessing is not None
    assert [step.labels for step in found.postprocessing.largest_component] == [(1,)]
    for model in found.models:
        path = trained_folders.model(model.configuration) / "fold_0" / "checkpoint_final.pth"
        weights = torch.load(path, weights_only=False)["network_weights"]
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.weights("0").items())
    card = read_card(tmp_path / "both.zip")
    assert card is not None
    (score,) = card.run.scores  # of the ensemble, and not of the first run's configuration
    assert score.dsc is not None
    assert (score.centre, score.dsc.mean, score.dsc.cases) == ("all together", 0.75, 48)
    assert (card.run.trained_for, card.run.cases) == ("federation", 48)
    assert any(limit.startswith("Chosen among 3 configurations and ensembles") for limit in card.limits)


def test_post_processing_of_the_decision_goes_with_the_best_configuration(
    runs: list[Path], export: CommandLine, tmp_path: Path
) -> None:
    best = decide(tmp_path / "best", ["2d"])
    for model in runs[0].glob("nodes/*/nnUNet_results/*/*"):
        (model / "postprocessing.json").write_text('{"largest_component": []}')  # of an earlier decision
    assert export(*runs, "--best", best, "-o", tmp_path / "one.zip") == 0
    found = open_ensemble(tmp_path / "one.zip")
    assert found.postprocessing is not None
    assert [step.labels for step in found.postprocessing.largest_component] == [(1,)]
    card = read_card(tmp_path / "one.zip")
    assert card is not None
    assert (card.networks[0].postprocessing, card.averaged) == ([[1]], [])
    assert {score.centre for score in card.run.scores} == {"centre 1", "centre 2", "external centre 1"}


def test_unlike_nodes_have_an_ensemble_each(
    runs: list[Path], export: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = decide(tmp_path / "best", ["2d", "3d_fullres"])
    (checkpoint,) = runs[1].glob("nodes/Porto/nnUNet_results/*/*/fold_0/checkpoint_final.pth")
    content = torch.load(checkpoint, weights_only=False)
    next(iter(content["network_weights"].values())).view(-1)[0] += 1e-6
    torch.save(content, checkpoint)
    assert export(*runs, "--best", best, "-o", tmp_path / "both.zip") == 2
    assert "nodes have different models (Oslo, Porto); choose one, --node Oslo" in capsys.readouterr().err
    assert export(*runs, "--best", best, "-o", tmp_path / "zips") == 0
    assert sorted(path.name for path in (tmp_path / "zips").iterdir()) == ["Oslo.zip", "Porto.zip"]
    first, second = (open_ensemble(tmp_path / "zips" / f"{node}.zip").models for node in NODES)
    same = [
        all(torch.equal(tensor, other.weights("0")[name]) for name, tensor in one.weights("0").items())
        for one, other in zip(first, second, strict=True)
    ]
    assert same == [True, False]


def test_a_hospital_hands_over_from_its_own_folders(runs: list[Path], export: CommandLine, tmp_path: Path) -> None:
    best = decide(tmp_path / "best", ["2d", "3d_fullres"], personal=True)
    own = []
    for number, run in enumerate(runs):
        shutil.copytree(run / "nodes" / "Oslo" / "nnUNet_results", tmp_path / f"w{number}" / "personal/nnUNet_results")
        own.append(tmp_path / f"w{number}")
    options = ("--best", best, "--run", runs[0], "--node", "Oslo", "-o", tmp_path / "oslo.zip")
    assert export(*own, *options) == 0
    card = read_card(tmp_path / "oslo.zip")
    assert card is not None
    assert (card.run.trained_for, len(card.networks)) == ("node", 2)


def test_a_cascade_goes_with_its_first_stage(
    cascade: Path, export: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = decide(tmp_path / "best", ["3d_cascade_fullres"])
    runs = []
    for stage in ("3d_cascade_fullres", "3d_lowres"):
        runs.append(tmp_path / f"run_{stage}")
        target = runs[-1] / "nodes" / "Oslo" / "nnUNet_results" / cascade.name
        name = f"nnUNetTrainer__nnUNetPlans__{stage}"
        shutil.copytree(cascade / name, target / name)
    assert export(runs[0], "--best", best, "-o", tmp_path / "x.zip") == 2
    assert "3d_cascade_fullres refines what 3d_lowres segments; name its run, too" in capsys.readouterr().err
    assert export(*runs, "--best", best, "-o", tmp_path / "x.zip") == 0
    assert export(*runs, "-o", tmp_path / "y.zip") == 0  # nothing else was compared
    for name in ("x.zip", "y.zip"):
        models = open_ensemble(tmp_path / name).models
        assert [model.configuration for model in models] == ["3d_cascade_fullres", "3d_lowres"]
    capsys.readouterr()
    assert export(runs[0], "-o", tmp_path / "z.zip") == 0
    assert "takes segmentations of 3d_lowres, which is not in the file; hand that over, too" in capsys.readouterr().out
    write_predicted(runs[0], b"1")
    write_predicted(runs[1], b"2")
    assert export(*runs, "-o", tmp_path / "a.zip") == 2
    assert "which was trained on other segmentations than its; give the 3d_lowres that" in capsys.readouterr().err
    write_predicted(runs[1], b"1")
    assert export(*runs, "-o", tmp_path / "a.zip") == 0


def write_predicted(run: Path, content: bytes) -> None:
    """A segmentation by 3d_lowres, as its own run and the cascade's hold it."""
    (dataset,) = run.glob("nodes/Oslo/nnUNet_results/*")
    path = dataset / "nnUNetTrainer__nnUNetPlans__3d_lowres" / "predicted_next_stage" / "3d_cascade_fullres" / "a.b2nd"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_models_that_have_changed_since_the_decision_are_refused(
    runs: list[Path], export: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = {
        node: {
            folder.path.name: digest_folds(folder.path, ["0"])
            for run in runs
            for folder in find_folders(run)
            if folder.node == node
        }
        for node in NODES
    }
    best = decide(tmp_path / "best", ["3d_fullres"], digests=digests)
    assert export(*runs, "--best", best, "-o", tmp_path / "x.zip") == 0
    (summary,) = runs[1].glob("nodes/Porto/nnUNet_results/*/*/fold_0/validation/summary.json")
    summary.write_text('{"metric_per_case": []}')
    before = (tmp_path / "x.zip").read_bytes()
    own = runs[1] / "nodes" / "Porto"
    for arguments in (runs, [*runs, "--node", "Porto"], [own], [own, "--node", "Porto"]):
        assert export(*arguments, "--best", best, "-o", tmp_path / "x.zip") == 2
        error = capsys.readouterr().err
        assert "checkpoint or held-out scores of fold 0 have changed since it was decided on" in error
        assert error.count("\n") == 1
    assert (tmp_path / "x.zip").read_bytes() == before
    assert export(*runs, "--best", best, "--node", "Oslo", "-o", tmp_path / "x.zip") == 0
    assert export(own, "--best", best, "--node", "Riga", "-o", tmp_path / "y.zip") == 0
    assert "note: Riga told no sums for " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--configuration", "2d"], "--best names the models; leave out --configuration"),
        (["--node", "Riga"], "the runs have no node Riga; nodes there: Oslo, Porto"),
        (["--fold", "3"], "has not finished fold 3; finished: 0"),
        (["--format", "monai"], "a bundle has one network, and this is an ensemble of 2"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    runs: list[Path],
    export: CommandLine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    best = decide(tmp_path / "best", ["2d", "3d_fullres"])
    assert export(*runs, "--best", best, "-o", tmp_path / "x.zip", *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.zip").exists()


def test_runs_that_lack_the_best_are_named(
    runs: list[Path], export: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = decide(tmp_path / "best", ["2d", "3d_fullres"])
    for sources, said in (
        (runs[:1], "node Oslo has no nnUNetTrainer__nnUNetPlans__3d_fullres, which is best; name its run"),
        ([*runs, runs[0]], "node Oslo has several nnUNetTrainer__nnUNetPlans__2d:"),
    ):
        assert export(*sources, "--best", best, "-o", tmp_path / "x.zip") == 2
        assert said in capsys.readouterr().err
    assert export(*runs, "-o", tmp_path / "x.zip") == 2
    assert "several runs are handed over by a decision: --best FOLDER" in capsys.readouterr().err
    decide(best, ["2d"], labels=[7])
    assert export(*runs, "--best", best, "-o", tmp_path / "x.zip") == 2
    assert "best_configuration.json is of label value 7, which the model does not segment" in capsys.readouterr().err
