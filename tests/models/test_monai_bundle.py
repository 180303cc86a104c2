"""MONAI runs the bundle to the voxels of nnU-Net, whatever axis is coarse."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import run as run_bundle
from monai.data import MetaTensor
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from fednnunet.errors import DataError
from fednnunet.models import nnunet_network
from fednnunet.models.ensemble import Ensemble
from fednnunet.models.export_zip import Handover
from fednnunet.models.model_card import RunFacts
from fednnunet.models.monai_bundle import export_bundle
from fednnunet.models.nnunet_network import NnUNetNetwork, list_cases, spacings_of
from fednnunet.models.open_model import open_model
from tests.support.trained_models import TrainedFolders


@pytest.fixture(scope="module", params=["3d_fullres", "2d"])
def configuration(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(trained_folders: TrainedFolders, configuration: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    export_bundle(
        Handover(Ensemble.of_one(open_model(trained_folders.model(configuration))), "Dataset007_X", RunFacts()),
        root / "x.zip",
    )
    with zipfile.ZipFile(root / "x.zip") as archive:
        archive.extractall(root)
    return root / "Dataset007_X"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright box in noise, not the same along any two axes; each axis in turn is coarse, and one image is oblique."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(5)
    volume = rng.normal(100, 10, (9, 14, 18)).astype(np.float32)  # z, y, x
    volume[2:7, 3:11, 4:10] += 40
    for axis, name in enumerate("xyz"):
        image = sitk.GetImageFromArray(volume)
        image.SetSpacing([4.0 if axis == other else 1.0 for other in range(3)])
        image.SetOrigin((10.0, -20.0, 30.0))
        sitk.WriteImage(image, str(folder / f"coarse_{name}_0000.nii.gz"))
    image.SetDirection(sitk.VersorRigid3DTransform((0.1, 0.2, 0.3, 0.9)).GetMatrix())
    image.SetSpacing((1.1, 0.9, 3.3))
    sitk.WriteImage(image, str(folder / "oblique_0000.nii.gz"))
    return folder


def test_monais_runner_gives_the_voxels_of_nnunet(
    bundle: Path, images: Path, trained_folders: TrainedFolders, configuration: str, tmp_path: Path
) -> None:
    run_bundle(
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        bundle_root=str(bundle),
        dataset_dir=str(images),
        output_dir=str(tmp_path / "monai"),
        device=torch.device("cpu"),
    )
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    folds = open_model(trained_folders.model(configuration)).folds
    predictor.initialize_from_trained_model_folder(str(trained_folders.model(configuration)), folds)
    (tmp_path / "nnunet").mkdir()
    predictor.predict_from_files_sequential(str(images), str(tmp_path / "nnunet"))
    found = 0
    for expected_file in sorted((tmp_path / "nnunet").glob("*.nii.gz")):
        expected = sitk.ReadImage(str(expected_file))
        written = sitk.ReadImage(str(tmp_path / "monai" / expected_file.name.replace(".nii.gz", "_0000_seg.nii.gz")))
        assert (sitk.GetArrayFromImage(written) == sitk.GetArrayFromImage(expected)).all()
        for property_of in (sitk.Image.GetSpacing, sitk.Image.GetOrigin, sitk.Image.GetDirection):
            assert np.allclose(property_of(written), property_of(expected), atol=1e-4)
        found += int(sitk.GetArrayFromImage(expected).sum() > 100)
    assert found == 4


def test_bundle_is_complete_and_needs_nothing_of_this_package(bundle: Path) -> None:
    with zipfile.ZipFile(bundle.parent / "x.zip") as archive:
        there = [name.removeprefix(f"{bundle.name}/") for name in archive.namelist()]
    assert sorted(there) == [
        *("configs/inference.json", "configs/metadata.json", "docs/README.md", "docs/model_card.json"),
        *("models/dataset.json", "models/model.pt", "models/plans.json"),
        *("scripts/__init__.py", "scripts/nnunet_network.py"),
    ]
    assert not re.search(
        r"^\s*(from|import) (fednnunet|monai)", (bundle / "scripts" / "nnunet_network.py").read_text(), re.M
    )
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["channel_def"] == {"0": "MRI"}
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "tumour"}
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())


def test_network_without_its_weights_or_without_spacing_does_not_segment(bundle: Path) -> None:
    config = json.loads((bundle / "configs" / "inference.json").read_text())["network_def"]
    models = bundle / "models"
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    arguments |= {"plans": str(models / "plans.json"), "dataset_json": str(models / "dataset.json")}
    network = NnUNetNetwork(**arguments)
    image = MetaTensor(torch.zeros(1, 1, 8, 8, 8), affine=torch.eye(4)[None])
    with pytest.raises(RuntimeError, match="random weights"):
        network(image)
    weights = torch.load(models / "model.pt", weights_only=True)
    network.load_state_dict(dict(list(weights.items())[1:]), strict=False)
    with pytest.raises(RuntimeError, match="random weights"):
        network(image)
    network.load_state_dict(weights)
    with pytest.raises(ValueError, match="must be MONAI's MetaTensor"):
        network(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(ValueError, match="1 channels"):
        network(MetaTensor(torch.zeros(1, 2, 8, 8, 8), affine=torch.eye(4)[None]))


def test_spacing_is_the_length_of_the_affines_columns() -> None:
    turned = torch.tensor([[0.0, 2.0, 0.0, 5.0], [3.0, 0.0, 0.0, 5.0], [0.0, 0.0, -4.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
    images = MetaTensor(torch.zeros(2, 1, 2, 2, 2), affine=torch.stack([turned, torch.eye(4)]))
    assert spacings_of(images) == [[3.0, 2.0, 4.0], [1.0, 1.0, 1.0]]
    with pytest.raises(ValueError, match="not known"):
        spacings_of(MetaTensor(torch.zeros(1, 1, 2, 2, 2), affine=torch.zeros(1, 4, 4)))


def test_cases_are_listed_with_all_channels(tmp_path: Path) -> None:
    for name in ("b_0000", "b_0001", "a_1_0000", "a_1_0001", "b"):
        (tmp_path / f"{name}.nii.gz").touch()
    found = [[Path(file).name for file in case["image"]] for case in list_cases(str(tmp_path), ".nii.gz", 2)]
    assert found == [["a_1_0000.nii.gz", "a_1_0001.nii.gz"], ["b_0000.nii.gz", "b_0001.nii.gz"]]
    with pytest.raises(FileNotFoundError, match="needs 3 channels"):
        list_cases(str(tmp_path), ".nii.gz", 3)
    with pytest.raises(FileNotFoundError, match="holds no image"):
        list_cases(str(tmp_path), ".mha", 1)


def test_models_of_readers_that_turn_images_are_refused(trained_folders: TrainedFolders, tmp_path: Path) -> None:
    model = open_model(trained_folders.model("3d_fullres"))
    model.plans["image_reader_writer"] = "NibabelIOWithReorient"
    model.dataset_json["overwrite_image_reader_writer"] = "SimpleITKIO"  # which nnU-Net reads when it plans, only
    with pytest.raises(DataError, match="read by NibabelIOWithReorient"):
        export_bundle(Handover(Ensemble.of_one(model), "Dataset007_X", RunFacts()), tmp_path / "x.zip")
    assert not list(tmp_path.iterdir())
    assert nnunet_network.__doc__
