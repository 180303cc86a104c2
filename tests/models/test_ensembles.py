"""Several models that segment together: opened by the decision beside them, handed over as one zip."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.ensembling.ensemble import merge_files
from nnunetv2.model_sharing.entry_points import install_from_zip_entry_point
from nnunetv2.postprocessing.remove_connected_components import load_postprocess_save
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fednnunet.errors import DataError
from fednnunet.models.ensemble import Ensemble, Member
from fednnunet.models.export_zip import Handover, export_zip
from fednnunet.models.model_card import RunFacts
from fednnunet.models.monai_bundle import export_bundle
from fednnunet.models.open_archive import read_card
from fednnunet.models.open_ensemble import open_ensemble
from fednnunet.models.open_model import open_model
from fednnunet.models.postprocessing import Postprocessing
from tests.inference.test_cascade import cascade
from tests.inference.test_prediction import predict, predict_with_nnunet, same_segmentations, write_image
from tests.support.command_line import CommandLine
from tests.support.model_zips import changed_zip, members
from tests.support.trained_models import TrainedFolders

__all__ = ["cascade"]  # fixture

PARTS = ("nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainer__nnUNetPlans__3d_fullres")
TOGETHER = f"ensembles/ensemble___{'___'.join(PARTS)}___0"
ELSEWHERE = "/home/anna/nnUNet_results/Dataset101_Boxes"


@pytest.fixture
def decided(trained_folders: TrainedFolders, tmp_path: Path) -> Path:
    """A dataset's results as ``nnUNetv2_find_best_configuration`` leaves them elsewhere: an ensemble is best."""
    dataset = tmp_path / "results" / "Dataset101_Boxes"
    for name in PARTS:
        shutil.copytree(trained_folders.results / dataset.name / name, dataset / name)
    shutil.rmtree(dataset / PARTS[0] / "fold_1")
    (dataset / TOGETHER).mkdir(parents=True)
    steps = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
        "postprocessing_kwargs": [{"labels_or_regions": [1]}],
    }
    (dataset / TOGETHER / "postprocessing.json").write_text(json.dumps(steps))
    named = [dict(zip(("trainer", "plans", "configuration"), name.split("__"), strict=True)) for name in PARTS]
    information = {
        "folds": [0],
        "considered_models": named,
        "all_results": {PARTS[0]: float("nan")},
        "best_model_or_ensemble": {
            "postprocessing_file": f"{ELSEWHERE}/{TOGETHER}/postprocessing.pkl",
            "selected_model_or_models": [
                {key if key != "plans" else "plans_identifier": value for key, value in one.items()} for one in named
            ],
        },
    }
    (dataset / "inference_information.json").write_text(json.dumps(information))
    return dataset


@pytest.fixture
def export(fednnunet: CommandLine) -> CommandLine:
    return partial(fednnunet, "export")


def segment_as_nnunet(dataset: Path, images: Path, target: Path) -> None:
    """nnUNetv2_predict --save_probabilities for each, nnUNetv2_ensemble, nnUNetv2_apply_postprocessing."""
    target.mkdir()
    plans = PlansManager(json.loads((dataset / PARTS[0] / "plans.json").read_text()))
    description = json.loads((dataset / PARTS[0] / "dataset.json").read_text())
    reader: Any = plans.image_reader_writer_class()
    for name in PARTS:
        predict_with_nnunet(dataset / name, images, target / name, (0,), probabilities=True, mirroring=False)
    information = json.loads((dataset / "inference_information.json").read_text())
    functions = load_pickle(str(dataset / information["best_model_or_ensemble"]["postprocessing_file"]))
    (target / "mean").mkdir()
    for file in sorted((target / PARTS[0]).glob("*.npz")):
        both = [str(target / name / file.name) for name in PARTS]
        mean = target / "mean" / file.stem
        merge_files(both, str(mean), ".nii.gz", reader, plans.get_label_manager(description), True)
        load_postprocess_save(f"{mean}.nii.gz", str(target / f"{file.stem}.nii.gz"), reader, *functions)


def test_voxels_are_those_of_nnunets_own_commands_on_what_it_installs(
    decided: Path, export: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, images = tmp_path / "both.zip", tmp_path / "images"
    write_image(images / "a_0000.nii.gz", 0, (6, 40, 40), (3.0, 1.0, 1.0))
    write_image(images / "b_0000.nii.gz", 2, (20, 24, 5), (1.0, 1.2, 4.0))
    image = sitk.ReadImage(str(images / "a_0000.nii.gz"))
    image[28:34, 28:34, :] += 150  # an island, which post-processing removes
    sitk.WriteImage(image, str(images / "a_0000.nii.gz"))
    assert export(decided, "-o", archive, "--name", "Dataset321_Boxes") == 0
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "installed"))
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_install_pretrained_model_from_zip", str(archive)])
    install_from_zip_entry_point()
    installed = tmp_path / "installed" / "Dataset321_Boxes"
    segment_as_nnunet(installed, images, tmp_path / "nnunet")

    assert predict(archive, images, tmp_path / "zip", mirroring=False, probabilities=True).written == ["a", "b"]
    assert same_segmentations(tmp_path / "zip", tmp_path / "nnunet") > 50
    with pytest.raises(AssertionError):  # post-processing does something here
        same_segmentations(tmp_path / "zip", tmp_path / "nnunet" / "mean")
    for name in ("a", "b"):
        ours, theirs = (
            np.load(tmp_path / at / f"{name}.npz")["probabilities"] for at in ("zip", Path("nnunet", "mean"))
        )
        assert np.array_equal(ours, theirs)
    for source in (installed, decided):
        found, expected = open_ensemble(source), open_ensemble(archive)
        assert found.postprocessing == expected.postprocessing
        assert [model.folds for model in found.models] == [("0",), ("0",)]
        for one, other in zip(found.models, expected.models, strict=True):
            assert all(torch.equal(tensor, other.weights("0")[layer]) for layer, tensor in one.weights("0").items())
    record = json.loads((tmp_path / "zip" / "predict.json").read_text())
    assert record["configuration"] == ["2d", "3d_fullres"]
    assert len(record["weights"]) == 2


def test_the_card_says_that_it_is_an_ensemble_and_stays_when_handed_on(
    decided: Path, export: CommandLine, tmp_path: Path
) -> None:
    assert export(decided, "-o", tmp_path / "a.zip", "--name", "Dataset321_Boxes", "--limits", "Of boxes.") == 0
    card = read_card(tmp_path / "a.zip")
    assert card is not None
    assert (card.averaged, card.postprocessing) == (list(PARTS), [[1]])
    assert [network.configuration for network in card.networks] == ["2d", "3d_fullres"]
    assert {f"Dataset321_Boxes/{name}/fold_0/checkpoint_final.pth" for name in PARTS} < set(card.files)
    inside = members((tmp_path / "a.zip").read_bytes())
    text = inside[f"Dataset321_Boxes/{TOGETHER}/model_card.md"].decode()
    pkl = f"Dataset321_Boxes/{TOGETHER}/postprocessing.pkl"
    assert pkl in inside
    for said in (
        "An ensemble: the softmax outputs of",
        "-c 3d_fullres -f 0 --save_probabilities",
        "nnUNetv2_ensemble -i OUTPUT_1 OUTPUT_2 -o OUTPUT",
        f"-pp_pkl_file {pkl} -plans_json Dataset321_Boxes/{PARTS[0]}/plans.json",
        "before post-processing" if card.run.scores else "No scores are known",
    ):
        assert said in text
    for name, content in inside.items():
        assert b"/home/anna" not in content, name
    assert export(tmp_path / "a.zip", "-o", tmp_path / "b.zip") == 0
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()
    assert export(tmp_path / "a.zip", "-o", tmp_path / "one.zip", "--configuration", "2d") == 0
    one = read_card(tmp_path / "one.zip")
    assert one is not None
    assert (one.averaged, [network.folder for network in one.networks]) == ([], [PARTS[0]])
    with pytest.raises(DataError, match="a bundle has one network, and this is an ensemble of 2"):
        export_bundle(Handover(open_ensemble(tmp_path / "a.zip"), "Dataset001_X", RunFacts()), tmp_path / "m.zip")


def test_both_stages_of_a_cascade_are_one_zip(cascade: Path, export: CommandLine, tmp_path: Path) -> None:
    archive = tmp_path / "cascade.zip"
    assert export(cascade, "-o", archive, "--configuration", "3d_cascade_fullres", "--name", "Dataset001_X") == 0
    found, source = open_ensemble(archive), open_ensemble(cascade, configuration="3d_cascade_fullres")
    assert [model.configuration for model in found.models] == ["3d_cascade_fullres", "3d_lowres"]
    for one, other in zip(found.models, source.models, strict=True):
        assert all(torch.equal(tensor, other.weights("0")[layer]) for layer, tensor in one.weights("0").items())
    inside = members(archive.read_bytes())
    text = inside["Dataset001_X/nnUNetTrainer__nnUNetPlans__3d_cascade_fullres/model_card.md"].decode()
    assert "-c 3d_cascade_fullres -f 0 -prev_stage_predictions STAGE_1" in text
    assert open_ensemble(archive, configuration="3d_lowres").configurations == "3d_lowres"


def test_a_first_stage_of_other_images_is_refused(cascade: Path) -> None:
    stage = cascade / "nnUNetTrainer__nnUNetPlans__3d_lowres"
    for file, key, value, said in (
        ("dataset.json", "channel_names", {"0": "CT"}, "their channels are unlike"),
        ("plans.json", "image_reader_writer", "SimpleITKIOWithReorient", "their readers of images are unlike"),
    ):
        before = (stage / file).read_text()
        (stage / file).write_text(json.dumps({**json.loads(before), key: value}))
        with pytest.raises(DataError, match=f"3d_lowres is not the first stage of .*: {said}.*; give the 3d_lowres"):
            open_ensemble(cascade, configuration="3d_cascade_fullres")
        (stage / file).write_text(before)
    assert len(open_ensemble(cascade, configuration="3d_cascade_fullres").models) == 2


def test_models_of_unlike_sources_and_one_name_are_not_one_folder(trained_folders: TrainedFolders) -> None:
    stage, other, last = (
        dataclasses.replace(open_model(trained_folders.model("2d")), where=where) for where in ("a", "b", "c")
    )
    members = [Member(dataclasses.replace(last, trainer=name), one) for name, one in (("T1", stage), ("T2", other))]
    handover = Handover(Ensemble.of(members, None, ""), "Dataset001_X", RunFacts())
    with pytest.raises(DataError, match="b and a have one name, nnUNetTrainer__nnUNetPlans__2d, and would be one"):
        handover.portable()


def test_an_ensemble_of_many_models_has_a_name_that_file_systems_take(
    trained_folders: TrainedFolders, tmp_path: Path
) -> None:
    model = dataclasses.replace(open_model(trained_folders.model("2d")), folds=("0",))
    many = Ensemble.of([Member(model)] * 12, Postprocessing.of([(1,)]), "")
    export_zip(Handover(many, "Dataset001_X", RunFacts()), tmp_path / "many.zip")
    names = {part for path in members((tmp_path / "many.zip").read_bytes()) for part in path.split("/")}
    assert max(map(len, names)) < 255
    found = open_ensemble(tmp_path / "many.zip")
    assert len(found.members) == 12
    assert found.postprocessing == Postprocessing.of([(1,)])


def test_models_of_one_name_are_told_apart_by_their_plans(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    whole = open_model(trained_folders.model("2d"))
    models = [
        dataclasses.replace(whole, folds=("0",), read_weights=lambda _, of=fold: whole.weights(of)) for fold in "01"
    ]
    both = Ensemble.of([Member(model) for model in models], None, "")
    export_zip(Handover(both, "Dataset001_X", RunFacts()), tmp_path / "both.zip")
    found = open_ensemble(tmp_path / "both.zip")
    assert [model.plans["plans_name"] for model in found.models] == ["nnUNetPlans_1", "nnUNetPlans_2"]
    for fold, model in enumerate(found.models):
        same = {
            name: torch.equal(tensor, whole.weights(str(fold))[name]) for name, tensor in model.weights("0").items()
        }
        assert all(same.values())
    with pytest.raises(DataError, match="several models of configuration 2d"):
        open_ensemble(tmp_path / "both.zip", configuration="2d")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda folder, _: shutil.rmtree(folder / PARTS[1]),
            "selects nnUNetTrainer__nnUNetPlans__3d_fullres, which is",
        ),
        (lambda folder, _: shutil.copytree(folder / PARTS[1], folder / "A__B__C"), "is not about A__B__C, which lies"),
        (
            lambda folder, _: (folder / TOGETHER / "postprocessing.json").unlink(),
            "names post-processing, and .* is not",
        ),
        (lambda _, said: said["best_model_or_ensemble"].pop("selected_model_or_models"), "selected.* is missing"),
        (lambda _, said: said["best_model_or_ensemble"].update(postprocessing_file="../x.pkl"), "is none that nnU-Net"),
        (lambda _, said: said.update(folds=[0, 3]), "has not finished fold 3; finished: 0"),
    ],
)
def test_a_decision_that_is_not_of_what_is_there_is_one_line(
    decided: Path, change: Callable[[Path, dict[str, Any]], object], said: str
) -> None:
    shutil.copytree(decided / PARTS[0], decided / "nnUNetTrainer__nnUNetPlans__3d_lowres")
    file = decided / "inference_information.json"
    information = json.loads(file.read_text())
    information["considered_models"].append(
        {"trainer": "nnUNetTrainer", "plans": "nnUNetPlans", "configuration": "3d_lowres"}
    )
    change(decided, information)
    file.write_text(json.dumps(information))
    with pytest.raises(DataError, match=said) as error:
        open_ensemble(decided)
    assert "\n" not in str(error.value)


def test_one_model_that_is_left_of_an_ensemble_is_not_taken_for_it(decided: Path) -> None:
    shutil.rmtree(decided / PARTS[1])
    for source in (decided, decided.parent):
        with pytest.raises(DataError, match=f"selects {PARTS[1]}, which is not there; say which model"):
            open_ensemble(source)
    alone = (open_ensemble(decided, configuration="2d"), open_ensemble(decided / PARTS[0]))
    assert [(one.configurations, one.postprocessing) for one in alone] == [("2d", None)] * 2


def test_models_that_segment_other_things_are_not_averaged(decided: Path) -> None:
    path = decided / PARTS[1] / "dataset.json"
    described = json.loads(path.read_text())
    for key, value, said in (
        ("labels", {"background": 0, "cyst": 1}, "their labels are unlike"),
        ("channel_names", {"0": "CT"}, "their channels are unlike"),
    ):
        path.write_text(json.dumps({**described, key: value}))
        with pytest.raises(DataError, match=f"cannot be averaged: {said}.*; hand over one of them"):
            open_ensemble(decided)


def test_a_changed_decision_in_a_zip_is_refused(decided: Path, export: CommandLine, tmp_path: Path) -> None:
    archive = tmp_path / "both.zip"
    assert export(decided, "-o", archive, "--name", "Dataset001_X") == 0

    def other(content: bytes) -> bytes:
        return content.replace(b'"ensembling_allowed": true', b'"ensembling_allowed": false')

    for change, said in (
        ({"inference_information.json": other}, "is not the file that model_card.json is about"),
        ({f"{TOGETHER}/postprocessing.json": b"{}"}, "is not the file that model_card.json is about"),
        ({f"{TOGETHER}/postprocessing.json": None}, "lacks .*postprocessing.json, which model_card.json is about"),
        ({"inference_information.json": None}, "lacks .*inference_information.json, which model_card.json is about"),
    ):
        with pytest.raises(DataError, match=said):
            open_ensemble(changed_zip(archive, tmp_path / "changed.zip", change))  # type: ignore[arg-type]
