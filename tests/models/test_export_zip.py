"""What is handed over segments as before, says what it is, and holds nothing of the hospital."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.entry_points import install_from_zip_entry_point

from fednnunet.models.model_card import ModelCard
from tests.support.command_line import CommandLine
from tests.support.model_zips import members
from tests.support.run_folders import MakeRun
from tests.support.trained_models import TrainedFolders

NODES = {"Hospital-Anna": 12, "Hospital-Berta": 36}
SECRET = "Jane-Doe"


@pytest.fixture
def export(fednnunet: CommandLine) -> CommandLine:
    return partial(fednnunet, "export")


@pytest.fixture
def run(trained_folders: TrainedFolders, write_run: MakeRun, tmp_path: Path) -> Path:
    """A finished run of two nodes with one model, and with all that nnU-Net and a pooled run write of cases."""
    folder = tmp_path / "run"
    write_run(folder, "ffe", fold=[0, 1], nodes=NODES, external=("Hospital-Carla",), labels=("tumour",))
    trained_folders.make_run(folder, tuple(NODES))
    for path in folder.glob("nodes/*/nnUNet_results/*/*"):
        description = json.loads((path / "dataset.json").read_text())
        description |= {
            "dataset": {SECRET: {"images": ["/data/x"]}},
            "annotated": {SECRET: ["tumour"]},
            "numTraining": 6,
        }
        (path / "dataset.json").write_text(json.dumps(description))
        for checkpoint in path.glob("fold_*/checkpoint_final.pth"):
            content = torch.load(checkpoint, weights_only=False)
            content["init_args"]["dataset_json"] = description
            torch.save(content, checkpoint)
            (checkpoint.parent / "validation" / "summary.json").write_text(f'{{"{SECRET}": "{path}"}}')
    return folder


def segment(model: Path, images: Path, target: Path) -> list[bytes]:
    """What nnU-Net's own predictor writes for the images of a dataset."""
    target.mkdir()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), ("0", "1"))
    predictor.predict_from_files_sequential(str(images), str(target))
    return [path.read_bytes() for path in sorted(target.glob("*.nii.gz"))]


def test_what_nnunet_installs_segments_as_before(
    export: CommandLine, run: Path, trained_folders: TrainedFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(run, "-o", tmp_path / "model.zip", "--name", "Dataset321_Tumour") == 0
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "installed"))
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "model.zip")])
    install_from_zip_entry_point()
    images = trained_folders.raw / "imagesTr"
    before = segment(trained_folders.model("2d"), images, tmp_path / "before")
    installed = tmp_path / "installed" / "Dataset321_Tumour" / "nnUNetTrainer__nnUNetPlans__2d"
    assert segment(installed, images, tmp_path / "after") == before
    assert len(set(before)) == 6


def test_nothing_names_a_case_a_path_a_host_or_a_centre(export: CommandLine, run: Path, tmp_path: Path) -> None:
    assert export(run, "-o", tmp_path / "model.zip") == 0
    content = (tmp_path / "model.zip").read_bytes()
    inside = members(content)
    assert {Path(name).name for name in inside} > {"plans.json", "checkpoint_final.pth", "data.pkl", "model_card.md"}
    words = [SECRET, "case_00", "annotated", "numTraining", "optimizer", "logging", "summary", "debug"]
    words += [str(tmp_path.parent), "/tmp", "/data/x", "/home/", "Boxes", *NODES, "Carla"]
    host = socket.gethostname()
    assert host in next(run.rglob("debug.json")).read_text()
    words += [host] * (len(host) > 5)  # a shorter one may be in weights by chance
    for name, bytes_of in {**inside, "the zip": content}.items():
        for word in words:
            assert word.encode() not in bytes_of, f"{word} in {name}"
            assert word not in name


def test_plans_hold_what_normalization_reads_and_no_more(
    export: CommandLine, trained_folders: TrainedFolders, tmp_path: Path
) -> None:
    folder = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), folder)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["2d"]["normalization_schemes"] = ["CTNormalization"]
    (folder / "plans.json").write_text(json.dumps(plans))
    for source, kept in (
        (folder, {"mean", "std", "percentile_00_5", "percentile_99_5"}),
        (trained_folders.model("2d"), set()),  # ZScoreNormalization measures each image
    ):
        assert export(source, "-o", tmp_path / "model.zip", "--name", "X") == 0
        found = json.loads(_file(tmp_path / "model.zip", "plans.json"))
        assert set(found["foreground_intensity_properties_per_channel"]["0"]) == kept
        assert list(found["configurations"]) == ["2d"]
        assert "original_median_shape_after_transp" not in found


def test_same_model_gives_the_same_file(export: CommandLine, run: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        assert export(run, "-o", tmp_path / name) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert export(tmp_path / "a.zip", "-o", tmp_path / "c.zip") == 0  # a zip can be handed on
    assert (tmp_path / "c.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()


def test_card_tells_scores_by_centre(export: CommandLine, run: Path, tmp_path: Path) -> None:
    options = ("--license", "CC-BY-4.0", "--limits", "Not for children.")
    assert export(run, "-o", tmp_path / "model.zip", *options) == 0
    card = ModelCard.parse(_file(tmp_path / "model.zip", "model_card.json"), "card")
    rows = pd.read_csv(run / "cases.csv")
    own = rows[(rows["node"] == "Hospital-Berta") & (rows["model"] == "Hospital-Berta")]
    score = next(score for score in card.run.scores if score.centre == "centre 2")
    assert score.dsc is not None
    assert score.dsc.mean == pytest.approx(own["dsc"].mean())
    assert score.dsc.cases == len(own) == 12
    resampled = np.random.default_rng(1).choice(own["dsc"], (9999, len(own))).mean(axis=1)
    assert [score.dsc.low, score.dsc.high] == pytest.approx(list(np.quantile(resampled, [0.025, 0.975])), abs=0.01)
    external = rows[(rows["node"] == "Hospital-Carla") & (rows["model"] != "ensemble")]
    of_external = next(score for score in card.run.scores if score.role == "external")
    assert of_external.dsc is not None
    assert of_external.dsc.mean == pytest.approx(external.groupby("case")["dsc"].mean().mean())
    assert (card.run.strategy, card.run.trained_for, card.run.cases, card.run.rounds) == ("ffe", "federation", 48, 12)
    assert card.run.cases_of_centres == {"centre 1": 12, "centre 2": 36}
    text = _file(tmp_path / "model.zip", "model_card.md").decode()
    for expected in ("| licence | CC-BY-4.0 |", "* Not for children.", f"| {score.dsc} |", "| centre 2 | training |"):
        assert expected in text


def test_centres_are_named_only_if_asked(export: CommandLine, run: Path, tmp_path: Path) -> None:
    assert export(run, "-o", tmp_path / "model.zip", "--names") == 0
    card = ModelCard.parse(_file(tmp_path / "model.zip", "model_card.json"), "card")
    assert card.run.names == list(NODES)
    assert {score.centre for score in card.run.scores} == {*NODES, "Hospital-Carla"}


def test_card_of_a_model_without_a_run_says_that_nothing_is_known(
    export: CommandLine, trained_folders: TrainedFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(trained_folders.model("3d_fullres"), "-o", tmp_path / "model.zip") == 0
    assert "states no licence" in capsys.readouterr().out
    card = ModelCard.parse(_file(tmp_path / "model.zip", "model_card.json"), "card")
    assert card.run.scores == []
    assert any("No scores are known" in limit for limit in card.limits)


def test_unlike_models_are_one_file_each(
    export: CommandLine, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = next(run.glob("nodes/Hospital-Berta/nnUNet_results/*/*/fold_1/checkpoint_final.pth"))
    content = torch.load(checkpoint, weights_only=False)
    first = next(iter(content["network_weights"].values()))
    first.view(-1)[0] += 1e-6  # as little as training alone would
    torch.save(content, checkpoint)
    assert export(run, "-o", tmp_path / "model.zip") == 2
    assert "nodes have different models (Hospital-Anna, Hospital-Berta); choose one" in capsys.readouterr().err
    assert not (tmp_path / "model.zip").exists()
    assert export(run, "-o", tmp_path / "models") == 0
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["Hospital-Anna.zip", "Hospital-Berta.zip"]
    assert export(run, "-o", tmp_path / "model.zip", "--node", "Hospital-Berta", "--fold", "1") == 0
    card = ModelCard.parse(_file(tmp_path / "model.zip", "model_card.json"), "card")
    assert card.run.trained_for == "node"
    assert {score.centre for score in card.run.scores} == {"centre 2"}  # of all folds at the external centre


def test_failing_export_leaves_nothing(
    export: CommandLine, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for checkpoint in run.glob("nodes/*/nnUNet_results/*/*/fold_1/checkpoint_final.pth"):
        content = torch.load(checkpoint, weights_only=False)
        next(iter(content["network_weights"].values())).view(-1)[0] = float("nan")
        torch.save(content, checkpoint)
    before = b"an older model"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.zip").write_bytes(before)
    assert export(run, "-o", tmp_path / "out" / "model.zip") == 2
    assert "holds NaN or infinity" in capsys.readouterr().err
    assert export(run, "-o", tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.zip"]
    assert (tmp_path / "out" / "model.zip").read_bytes() == before


def test_target_that_cannot_be_written_is_said_in_one_line(
    export: CommandLine, trained_folders: TrainedFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for target, said in (
        (tmp_path / "file" / "model.zip", "model.zip cannot be written: "),
        (tmp_path / "model.txt", "must end with .zip, or be a folder"),
    ):
        assert export(trained_folders.model("2d"), "-o", target) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_postprocessing_goes_with_the_model_and_nnunet_applies_it(
    export: CommandLine, trained_folders: TrainedFolders, tmp_path: Path
) -> None:
    folder = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), folder)
    (folder / "postprocessing.json").write_text('{"largest_component": [{"labels": [1]}]}')
    assert export(folder, "-o", tmp_path / "model.zip", "--name", "X") == 0
    card = ModelCard.parse(_file(tmp_path / "model.zip", "model_card.json"), "card")
    assert card.networks[0].postprocessing == [[1]]
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        archive.extractall(tmp_path / "installed")
    (installed,) = (tmp_path / "installed").glob("*/*__*__*")
    information = json.loads((installed.parent / "inference_information.json").read_text())
    named = installed.parent / information["best_model_or_ensemble"]["postprocessing_file"]
    functions, arguments = pickle.loads(named.read_bytes())
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    image[0, 0, 0] = image[0, 4:6, 4:6] = 1
    expected = image.copy()
    expected[0, 0, 0] = 0
    assert (functions[0](image, **arguments[0]) == expected).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--node", "Nobody"], "no finished fold of node Nobody"),
        (["--fold", "0", "--fold", "4"], "has not finished fold 4"),
        (["--configuration", "3d_fullres"], "no finished fold of configuration 3d_fullres"),
        (["--name", "Lésion"], "must be of letters, digits"),
        (["--name", "../x"], "must be of letters, digits"),
        (["--run", "/nowhere"], "is no run's folder"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    export: CommandLine, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert export(run, "-o", tmp_path / "model.zip", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "model.zip").exists()


def test_node_across_hospitals_takes_its_card_from_the_servers_folder(
    export: CommandLine, run: Path, trained_folders: TrainedFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work" / "runs" / "id"
    shutil.copytree(run / "nodes" / "Hospital-Anna", work)
    assert export(work, "-o", tmp_path / "model.zip", "--run", run) == 2
    assert "--run needs --node" in capsys.readouterr().err
    assert export(work, "-o", tmp_path / "model.zip", "--run", run, "--node", "Hospital-Anna") == 0
    card = ModelCard.parse(_file(tmp_path / "model.zip", "model_card.json"), "card")
    assert (card.run.trained_for, card.run.strategy) == ("node", "ffe")
    assert {score.centre for score in card.run.scores} == {"centre 1", "external centre 1"}


def test_nodes_own_model_goes_with_its_own_scores(
    export: CommandLine, run: Path, trained_folders: TrainedFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run, "-o", tmp_path / "model.zip", "--personal") == 2
    assert "holds no finished model of a node's own" in capsys.readouterr().err
    rows = pd.read_csv(run / "cases.csv")
    own = rows[rows["node"].isin(NODES)].assign(strategy="ffe fine-tuned", dsc=0.875)
    pd.concat([rows, own]).to_csv(run / "cases.csv", index=False)
    for node in NODES:  # alike by chance, though each is its node's own
        base = run / "nodes" / node
        shutil.copytree(base / "nnUNet_results", base / "personal" / "nnUNet_results")
    for options, strategy, scored in (
        ([], "ffe", False),
        (["--personal", "--node", "Hospital-Anna"], "ffe fine-tuned", True),
    ):
        assert export(run, "-o", tmp_path / "model.zip", *options) == 0
        card = ModelCard.parse(_file(tmp_path / "model.zip", "model_card.json"), "card")
        assert card.run.strategy == strategy
        own_scores = [score.dsc.mean for score in card.run.scores if score.dsc and score.role == "training"]
        assert (own_scores == [0.875]) is scored


def test_format_monai_writes_a_bundle(export: CommandLine, run: Path, tmp_path: Path) -> None:
    assert export(run, "-o", tmp_path / "bundle.zip", "--format", "monai", "--name", "Dataset001_T") == 0
    inside = members((tmp_path / "bundle.zip").read_bytes())
    assert {"Dataset001_T/configs/metadata.json", "Dataset001_T/configs/inference.json"} < set(inside)
    for name, content in inside.items():
        for word in (SECRET, str(tmp_path), *NODES, "Carla"):
            assert word.encode() not in content, f"{word} in {name}"


def _file(zip_file: Path, name: str) -> bytes:
    return next(content for path, content in members(zip_file.read_bytes()).items() if path.endswith(f"/{name}"))
