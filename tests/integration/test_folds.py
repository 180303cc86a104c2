"""Several folds in one run, and what nnU-Net's own tools make of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import pandas as pd
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from fednnunet.best_configuration.decision import decide
from fednnunet.best_configuration.decision_files import inference_information
from fednnunet.best_configuration.node_models import nodes_of
from fednnunet.best_configuration.node_sums import sum_up
from fednnunet.evaluation.functional import dice_score
from fednnunet.selection.averaged import HeldOut, averaged_scores
from fednnunet.selection.node_disk import read_scores
from fednnunet.selection.sources import model_folder
from tests.integration.conftest import Train, result_folder

pytestmark = pytest.mark.xdist_group("finished")

FOLDS = "fold=[0,1]"
OSLO_ALONE = ("strategy=local", "dataset.centres=[{name: Oslo, dataset: 201}]")
CURVES = ["round", "node", "train_loss", "val_loss", "pseudo_dice"]


@pytest.fixture(scope="module")
def folds(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two folds."""
    folder = tmp_path_factory.mktemp("folds") / "run"
    result = train(folder, "strategy=asym", FOLDS, "trainer.save_probabilities=true")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def cases_of(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "cases.csv", dtype={"fold": str})


def test_each_fold_is_trained_as_if_it_were_alone(folds: Path, finished: Callable[[str], Path]) -> None:
    """In another run of the same seed: that gives the same numbers."""
    rounds, alone = pd.read_csv(folds / "rounds.csv"), pd.read_csv(finished("asym") / "rounds.csv")
    assert list(rounds.columns) == [*alone.columns, "fold"]
    first = rounds[rounds.fold == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(first[CURVES], alone[CURVES])
    cases, once = cases_of(folds), cases_of(finished("asym"))
    of_first = cases[cases.fold == "0"].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_first, once[once.node != "Riga"].reset_index(drop=True))
    # The five folds hold out every case once; these two hold out different ones.
    held_out = cases[cases.node == "Porto"].groupby("fold")["case"].apply(set)
    assert not held_out["0"] & held_out["1"]
    assert set(pd.read_csv(folds / "summary.csv", dtype={"fold": str}).fold) == {"0", "1", "ensemble"}


def test_summary_is_the_one_that_nnunet_writes(folds: Path, tmp_path: Path) -> None:
    validation = result_folder(folds, "Porto", fold=1) / "validation"
    references = folds / "nodes" / "Porto" / "nnUNet_preprocessed" / "Dataset202_Porto" / "gt_segmentations"
    compute_metrics_on_folder(
        str(references.resolve()), str(validation), str(tmp_path / "x.json"), SimpleITKIO(), ".nii.gz", [1], None, 1
    )
    ours = json.loads((validation / "summary.json").read_text())
    theirs = json.loads((tmp_path / "x.json").read_text())
    assert ours == theirs


def test_a_nodes_disk_says_of_its_cases_what_the_server_was_told(folds: Path) -> None:
    found = model_folder(folds / "nodes" / "Porto")
    assert found is not None
    assert list(found.folds) == ["0", "1"]
    on_disk = read_scores(found).sort_values(["fold", "case"])
    told = cases_of(folds).query("node == 'Porto'").groupby(["fold", "case"])["dsc"].mean()
    assert on_disk["fold"].to_list() == told.index.get_level_values("fold").to_list()
    assert on_disk["dsc"].to_list() == pytest.approx(told.to_list(), abs=1e-12)


def test_a_model_averaged_with_itself_is_itself_from_saved_outputs_or_segmented_again(
    folds: Path, tmp_path: Path
) -> None:
    node = folds / "nodes" / "Porto"
    models = model_folder(node)
    assert models is not None
    own = read_scores(models)
    pd.testing.assert_frame_equal(averaged_scores([models, models], HeldOut(models, [models])), own, rtol=0, atol=1e-12)
    copy = tmp_path / models.path.name
    shutil.copytree(models.path, copy, ignore=shutil.ignore_patterns("*.npz"))
    again = averaged_scores([replace(models, path=copy)], HeldOut(models, [models]))
    pd.testing.assert_frame_equal(again, own, rtol=0, atol=1e-12)


IN_ONE_PROCESS = """
import importlib, json, multiprocessing, sys
calls = [(*function.split(":"), arguments) for function, arguments in json.loads(sys.argv[1])]
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload([module for module, _, _ in calls])
multiprocessing.get_context = lambda method=None: forkserver
for module, name, arguments in calls:
    sys.argv = [name, *arguments]
    getattr(importlib.import_module(module), name)()
"""


def use_tools(run: Path, *commands: str) -> None:
    """nnU-Net's commands (``predict -i …``) on the results of Oslo, one after another in one process.

    Importing nnU-Net takes longer than what they do, and each of their pools would import it again.
    """
    functions = {point.name: point.value for point in entry_points(group="console_scripts")}
    calls = [(functions[f"nnUNetv2_{name}"], arguments) for name, *arguments in map(str.split, commands)]
    node = run / "nodes" / "Oslo"
    folders = {name: str(node / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    result = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(calls)],
        capture_output=True,
        text=True,
        env={**os.environ, **folders},
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]


def test_nnunets_tools_work_on_what_a_run_wrote(folds: Path, train: Train, raw: Path, tmp_path: Path) -> None:
    volumes = tmp_path / "3d"
    options = (*OSLO_ALONE, FOLDS, "configuration=3d_fullres", "trainer.save_probabilities=true")
    assert train(volumes, *options, "model.overrides.UNet_max_features_3d=8").returncode == 0
    (models,) = nodes_of([run / "nodes" / "Oslo" for run in (folds, volumes)]).values()
    ours = inference_information(decide([sum_up(models, "Oslo", None, True, True)]), "Dataset201_Oslo")
    other = result_folder(volumes, "Oslo").parent
    (result_folder(folds, "Oslo").parent.parent / other.name).symlink_to(other)

    images = tmp_path / "images"
    images.mkdir()
    for name in ("case_000_0000.nii.gz", "case_001_0000.nii.gz"):
        (images / name).symlink_to(raw / "Dataset204_Riga" / "imagesTr" / name)
    predicted = [tmp_path / f"predicted_{fold}" for fold in (0, 1)]
    predict = f"predict -i {images} -d 201 -c 2d -device cpu -npp 0 -nps 0 --save_probabilities"
    use_tools(
        folds,
        "find_best_configuration 201 -c 2d 3d_fullres -f 0 1 -np 1",
        *(f"{predict} -o {folder} -f {fold}" for fold, folder in enumerate(predicted)),
        f"ensemble -i {predicted[0]} {predicted[1]} -o {tmp_path / 'ensemble'} -np 1",
        f"export_model_to_zip -d 201 -o {tmp_path / 'model.zip'} -c 2d -f 0 1",
    )

    results = folds / "nodes" / "Oslo" / "nnUNet_results" / "Dataset201_Oslo"
    best = json.loads((results / "inference_information.json").read_text())
    ensembles = [name for name in best["all_results"] if name.startswith("ensemble___")]
    assert len(best["all_results"]) == 3
    assert len(ensembles) == 1
    assert best["all_results"] == pytest.approx(ours["all_results"], rel=0, abs=1e-12)
    chosen, theirs = (found["best_model_or_ensemble"] for found in (ours, best))
    assert chosen["selected_model_or_models"] == theirs["selected_model_or_models"]
    assert chosen["result_on_crossval_post_pp"] == pytest.approx(theirs["result_on_crossval_post_pp"], rel=0, abs=1e-12)

    cases = cases_of(folds).set_index(["node", "fold", "model", "case"])
    for number in (0, 1):
        together = sitk.ReadImage(str(tmp_path / "ensemble" / f"case_{number:03d}.nii.gz"))
        reference = sitk.ReadImage(str(raw / "Dataset204_Riga" / "labelsTr" / f"case_{number:03d}.nii.gz"))
        dsc = dice_score(sitk.GetArrayFromImage(together) == 1, sitk.GetArrayFromImage(reference) == 1)
        assert cases.loc[("Riga", "ensemble", "Oslo", number), "dsc"] == pytest.approx(dsc)

    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        names = archive.namelist()
    for fold in (0, 1):
        assert f"Dataset201_Oslo/nnUNetTrainer__nnUNetPlans__2d/fold_{fold}/checkpoint_final.pth" in names


def test_fold_all_trains_on_every_case_and_scores_external_centres(train: Train, raw: Path, tmp_path: Path) -> None:
    centres = "dataset.centres=[{name: Oslo, dataset: 201}, {name: Riga, dataset: 204, external: true}]"
    result = train(tmp_path / "run", "strategy=local", centres, "fold=all")
    assert result.returncode == 0, result.stderr
    cases = pd.read_csv(tmp_path / "run" / "cases.csv")
    assert set(cases.node) == {"Riga"}
    assert set(cases.fold) == {"all"}
    assert (result_folder(tmp_path / "run", "Oslo", fold="all") / "checkpoint_final.pth").is_file()
    assert not (result_folder(tmp_path / "run", "Oslo", fold="all") / "validation").exists()

    alone = train(tmp_path / "alone", *OSLO_ALONE, "fold=all")
    assert alone.returncode == 0, alone.stderr
    assert "it trained on every case (fold=all)" in alone.stdout
