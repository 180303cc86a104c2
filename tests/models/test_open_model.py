"""Trained models are found where runs and nnU-Net leave them, or one line says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from fednnunet.errors import DataError
from fednnunet.models.open_model import open_model
from tests.support.trained_models import TrainedFolders


def test_network_is_the_one_that_nnunet_predicts_with(trained_folders: TrainedFolders) -> None:
    model = open_model(trained_folders.model("2d"))
    assert (model.configuration, model.trainer, model.folds) == ("2d", "nnUNetTrainer", ("0", "1"))
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(trained_folders.model("2d")), ("0", "1"))
    assert model.mirror_axes == predictor.allowed_mirroring_axes
    network = model.build_network().eval()
    image = torch.randn(1, 1, 40, 40)
    for fold, weights in zip(model.folds, predictor.list_of_parameters, strict=True):
        model.load(network, fold)
        predictor.network.load_state_dict(weights)
        with torch.no_grad():
            assert torch.equal(network(image), predictor.network.eval()(image))


def test_a_checkpoint_is_read_when_its_weights_are(
    trained_folders: TrainedFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening looks into the first one for the axes of mirroring, and leaves its numbers on the disk."""
    loaded, load = [], torch.load

    def note(file: object, **options: object) -> object:
        loaded.append((Path(str(file)).parent.name, options.get("mmap")))
        return load(file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "load", note)
    model = open_model(trained_folders.model("2d"))
    assert loaded == [("fold_0", True)]
    model.weights("0")
    assert loaded[1:] == [("fold_0", False)]


@pytest.mark.parametrize("depth", ["model", "dataset", "results", "node", "run"])
def test_models_are_found_from_every_folder_above_them(
    trained_folders: TrainedFolders, tmp_path: Path, depth: str
) -> None:
    run = trained_folders.make_run(tmp_path / "run", ("Oslo",))
    node = run / "nodes" / "Oslo"
    dataset = node / "nnUNet_results" / "Dataset101_Boxes"
    model = next(dataset.iterdir())
    source = {"model": model, "dataset": dataset, "results": dataset.parent, "node": node, "run": run}[depth]
    assert open_model(source).folds == ("0", "1")


def test_node_configuration_and_folds_are_chosen(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    run = trained_folders.make_run(tmp_path / "run")
    model = open_model(run, node="Porto", folds=["1"])
    assert model.folds == ("1",)
    assert "Porto" in model.where
    assert open_model(trained_folders.results, configuration="3d_fullres").configuration == "3d_fullres"


def test_fold_all_is_taken_where_it_is_alone(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    folder = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), folder)
    (folder / "fold_1").rename(folder / "fold_all")
    assert open_model(folder).folds == ("0",)  # as nnUNetv2_predict does
    shutil.rmtree(folder / "fold_0")
    assert open_model(folder).folds == ("all",)


def test_nothing_of_dataset_json_names_a_case(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    folder = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), folder)
    description = '{"labels": {"background": 0, "tumour": 1}, "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz", '
    (folder / "dataset.json").write_text(description + '"dataset": {"Anna": {}}, "annotated": {"Anna": []}, "x": 1}')
    assert list(open_model(folder).dataset_json) == ["labels", "channel_names", "file_ending"]


def test_what_cannot_be_opened_is_said_in_one_line(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    run = trained_folders.make_run(tmp_path / "run")
    unfinished = trained_folders.make_run(tmp_path / "unfinished")
    for checkpoint in unfinished.rglob("checkpoint_final.pth"):
        checkpoint.unlink()
    damaged = trained_folders.make_run(tmp_path / "damaged", ("Oslo",))
    broken = next(damaged.rglob("checkpoint_final.pth"))
    broken.write_bytes(broken.read_bytes()[:1000])
    for source, options, said in (
        (tmp_path / "none", {}, "there is no file or folder"),
        (tmp_path, {}, "holds no checkpoint_final.pth"),
        (run, {}, r"several nodes, Oslo, Porto; say which: --node Oslo"),
        (run, {"node": "Lund"}, "no finished fold of node Lund; nodes there: Oslo, Porto"),
        (
            run,
            {"node": "Oslo", "configuration": "3d_fullres"},
            "no finished fold of configuration 3d_fullres; there: 2d",
        ),
        (run, {"node": "Oslo", "folds": ["0", "3"]}, "has not finished fold 3; finished: 0, 1"),
        (trained_folders.results, {}, "configurations 2d, 3d_fullres; say which: --configuration 2d"),
        (trained_folders.model("2d"), {"node": "Oslo"}, "nodes there: none"),
        (unfinished, {}, "has finished no fold yet"),
        (damaged, {}, "cannot be read as a checkpoint"),
    ):
        with pytest.raises(DataError, match=said) as error:
            open_model(source, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("plans.json", {"configurations": {}}, "2d not found in plans"),
        ("plans.json", {"configurations": None}, "nnU-Net cannot segment by its plans.json"),
        ("dataset.json", {"labels": {}}, "Background label not declared"),
        ("dataset.json", {"labels": "tumour"}, "nnU-Net cannot segment by its plans.json and dataset.json"),
        ("dataset.json", {"channel_names": None}, "nnU-Net cannot segment by its plans.json and dataset.json"),
        ("dataset.json", {"file_ending": 5}, "file_ending must be text such as .nii.gz"),
    ],
)
def test_files_that_nnunet_cannot_take_are_one_line(
    trained_folders: TrainedFolders, tmp_path: Path, name: str, change: dict[str, object], said: str
) -> None:
    folder = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), folder)
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **change}))
    with pytest.raises(DataError, match=said) as error:
        open_model(folder)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_refused(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    folder = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), folder)
    for name in ("plans.json",):
        path = folder / name
        path.write_text(path.read_text().replace('"2d"', '"other"').replace('"3d_fullres"', '"2d"'))
    model = open_model(folder)
    with pytest.raises(DataError, match=r"weights do not fit the plans: encoder.* is .*, and by the plans"):
        model.load(model.build_network(), "0")


def test_only_nnunets_own_trainers_build_networks(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    for trainer in ("nnUNetTrainerNoDeepSupervision", "os.system"):
        folder = tmp_path / trained_folders.model("2d").name.replace("nnUNetTrainer", trainer)
        shutil.copytree(trained_folders.model("2d"), folder)
    model = open_model(tmp_path / "nnUNetTrainerNoDeepSupervision__nnUNetPlans__2d")
    model.load(model.build_network(), "0")
    with pytest.raises(DataError, match=r"trained by os.system, which is none of nnU-Net's"):
        open_model(tmp_path / "os.system__nnUNetPlans__2d").build_network()


def test_postprocessing_beside_the_folds_comes_along(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    folder = tmp_path / trained_folders.model("2d").name
    shutil.copytree(trained_folders.model("2d"), folder)
    assert open_model(folder).postprocessing is None
    (folder / "postprocessing.json").write_text('{"largest_component": [{"labels": [1]}]}')
    found = open_model(folder).postprocessing
    assert found is not None
    assert [step.labels for step in found.largest_component] == [(1,)]
    (folder / "postprocessing.json").write_text('{"largest_component": [{"labels": [2]}]}')
    with pytest.raises(DataError, match="label value 2"):
        open_model(folder)
