"""Ensembles of folds and of nodes, against nnU-Net's own averaging of saved softmax outputs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.ensembling.ensemble import average_probabilities
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fednnunet.config.groups import ModelConfig
from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.evaluation.ensemble import FoldModels, segment_with_each
from fednnunet.evaluation.predict import Predictor
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.planning.plans import make_plans
from fednnunet.training.network_state import layer_shapes, state_arrays
from fednnunet.training.trainer import build_network
from tests.conftest import write_boxes

SMALL = ModelConfig(planner="ExperimentPlanner", overrides={"UNet_base_num_features": 4, "UNet_max_features_2d": 8})


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[FoldModels]:
    """Of two centres whose plans differ in spacing; two folds each."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setattr("fednnunet.fingerprint.extract.MAX_FOREGROUND_VOXELS", 6e4)  # sampled in no time
    raw = tmp_path / "nnUNet_raw"
    oslo = write_boxes(raw, "Dataset101_Oslo")
    porto = write_boxes(raw, "Dataset102_Porto", shape=(6, 60, 60), spacing=(3.0, 0.7, 0.7), seed=1)
    return [models_of(node, read_dataset(folder, node), 2) for node, folder in (("Oslo", oslo), ("Porto", porto))]


def models_of(node: str, dataset: RawDataset, folds: int) -> FoldModels:
    plans = make_plans(dataset.name, extract_fingerprint(dataset), SMALL, 8.0)

    def network(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return build_network(nnUNetTrainer, PlansManager(plans), "2d", dataset.dataset_json)

    def weights(seed: int) -> dict[str, np.ndarray]:
        model = network(seed)
        return {name: array.copy() for name, array in state_arrays(model, layer_shapes(model)).items()}

    predictor = Predictor(network(0), plans, "2d", dataset.dataset_json, (0, 1), torch.device("cpu"))
    seeds = [len(node) * 10 + fold for fold in range(folds)]
    return FoldModels(node, predictor, [partial(weights, seed) for seed in seeds])


def test_a_channel_that_a_model_has_not_learnt_is_zeros(models: list[FoldModels], tmp_path: Path) -> None:
    images = [str(tmp_path / "nnUNet_raw" / "Dataset101_Oslo" / "imagesTr" / "case_000_0000.nii.gz")]
    predictor = models[0].predictor
    assert predictor.load_files(images)[0].any()
    predictor.unlearnt = [0]
    assert not predictor.load_files(images)[0].any()


def test_folds_and_nodes_are_averaged_as_nnunet_does(models: list[FoldModels], tmp_path: Path) -> None:
    images = [str(tmp_path / "nnUNet_raw" / "Dataset101_Oslo" / "imagesTr" / "case_000_0000.nii.gz")]
    files: list[str] = []
    for model in models:
        data, properties = model.predictor.load_files(images)
        for fold, load in enumerate(model.weights):
            with torch.no_grad():
                for name, tensor in model.predictor.network.named_parameters():
                    tensor.copy_(torch.from_numpy(load()[name]))
            softmax = model.predictor.segment_with_probabilities(model.predictor.logits(data), properties)[1]
            files.append(str(tmp_path / f"{model.node}_{fold}.npz"))
            np.savez(files[-1], probabilities=softmax)

    segmentations = dict(segment_with_each(models, images, together=True))
    assert list(segmentations) == ["Oslo", "Porto", "ensemble"]
    expected: dict[str, Any] = {"Oslo": files[:2], "Porto": files[2:], "ensemble": files}
    labels = models[0].predictor.labels
    for name, averaged in expected.items():
        nnunet = labels.convert_probabilities_to_segmentation(average_probabilities(averaged))
        assert 0 < nnunet.mean() < 1, "both classes are there"
        assert np.array_equal(segmentations[name], nnunet), name
    assert not np.array_equal(segmentations["Oslo"], segmentations["Porto"])
    assert list(dict(segment_with_each(models, images, together=False))) == ["Oslo", "Porto"]
