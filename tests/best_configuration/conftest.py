"""Nodes' run folders with segmentations that nobody had to train for, and their pooled copy for nnU-Net's command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from scipy.ndimage import gaussian_filter

SHAPE = (3, 14, 14)
PLANS_NAME, TRAINER, DATASET = "nnUNetPlans", "nnUNetTrainer", "Dataset300_Pooled"
LABELS = {"background": 0, "liver": 1, "tumour": 2}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}

Arrays = dict[str, np.ndarray]


@dataclass
class FakeNode:
    """Cases of a node: reference, and softmax outputs of each configuration, from which segmentations follow."""

    references: Arrays
    probabilities: dict[str, Arrays]
    segmentations: dict[str, Arrays]
    description: dict[str, Any] = field(default_factory=dict)


def describe(labels: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A ``dataset.json``; regions are painted in their order."""
    regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    order = {"regions_class_order": [1, 2, 3][: len(labels) - 1]} if regions else {}
    return {"channel_names": {"0": "MR"}, "labels": dict(labels), "file_ending": ".nii.gz", **order, **more}


def random_reference(rng: np.random.Generator, labels: Mapping[str, Any]) -> np.ndarray:
    """Up to two blobs of every value, some absent; with an ignore label, a slab of it."""
    values = sorted({v for value in labels.values() for v in (value if isinstance(value, list) else [value])} - {0})
    values = [value for value in values if value != labels.get("ignore")]
    reference = np.zeros(SHAPE, dtype=np.uint8)
    for value in values:
        for _ in range(rng.integers(0, 3)):
            y, x = rng.integers(0, SHAPE[1] - 4, 2)
            reference[:, y : y + 4, x : x + 4] = value
    if "ignore" in labels:
        reference[:, :2] = labels["ignore"]
    return reference


def random_probabilities(
    case: Sequence[int], model: Sequence[int], reference: np.ndarray, description: Mapping[str, Any], quality: float
) -> np.ndarray:
    """Softmax (sigmoid of regions) that resembles the reference, with islands; by seeds of case and model."""
    labels = {name: value for name, value in description["labels"].items() if name != "ignore"}
    regions = "regions_class_order" in description
    values = [value for value in labels.values() if not (regions and value == 0)]
    masks = np.stack([np.isin(reference, value) for value in values]).astype(np.float64)
    common, own = (
        np.stack([gaussian_filter(rng.normal(size=SHAPE), 1.2) for _ in values])
        for rng in map(np.random.default_rng, (case, model))
    )
    logits = quality * (masks - 0.5) + 6 * common + 2 * own
    softmax = 1 / (1 + np.exp(-logits)) if regions else np.exp(logits) / np.exp(logits).sum(0)
    return softmax.astype(np.float32)


def segment(probabilities: np.ndarray, description: Mapping[str, Any]) -> np.ndarray:
    if "regions_class_order" not in description:
        return probabilities.argmax(0).astype(np.uint8)
    segmentation = np.zeros(probabilities.shape[1:], dtype=np.uint8)
    for mask, value in zip(probabilities > 0.5, description["regions_class_order"], strict=True):
        segmentation[mask] = value
    return segmentation


def random_node(
    seed: int,
    labels: Mapping[str, Any] = LABELS,
    configurations: Mapping[str, float] | None = None,
    cases: int = 4,
    **more: Any,
) -> FakeNode:
    """A node with configurations of some quality."""
    rng = np.random.default_rng(seed)
    description = describe(labels, **more)
    references = {f"case_{number}": random_reference(rng, labels) for number in range(cases)}
    qualities = configurations or {"2d": 2.0, "3d_fullres": 2.2}
    probabilities = {
        name: {
            case: random_probabilities((seed, number), (seed, number, place), reference, description, quality)
            for number, (case, reference) in enumerate(references.items())
        }
        for place, (name, quality) in enumerate(qualities.items(), start=1)
    }
    segmentations = {
        name: {case: segment(softmax, description) for case, softmax in of_cases.items()}
        for name, of_cases in probabilities.items()
    }
    return FakeNode(references, probabilities, segmentations, description)


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(path))


def write_model(
    folder: Path, node: FakeNode, configuration: str, folds: Sequence[int], softmax: bool, prefix: str = ""
) -> None:
    """Segmentations of a configuration in nnU-Net's folder, cases dealt out to folds."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = {
        "plans_name": PLANS_NAME,
        "dataset_name": DATASET,
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": {name: {"architecture": {}} for name in node.segmentations},
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(node.description))
    for fold in folds:
        (folder / f"fold_{fold}" / "validation").mkdir(parents=True, exist_ok=True)
        (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
    for place, (case, segmentation) in enumerate(node.segmentations[configuration].items()):
        validation = folder / f"fold_{folds[place % len(folds)]}" / "validation"
        write_image(validation / f"{prefix}{case}.nii.gz", segmentation)
        if softmax:
            np.savez(validation / f"{prefix}{case}.npz", probabilities=node.probabilities[configuration][case])
            properties = {"sitk_stuff": {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": np.eye(3).ravel()}}
            save_pickle(properties, str(validation / f"{prefix}{case}.pkl"))


def identifier(configuration: str) -> str:
    return f"{TRAINER}__{PLANS_NAME}__{configuration}"


WriteRuns = Callable[..., list[Path]]


@pytest.fixture
def write_runs(tmp_path: Path) -> WriteRuns:
    """Write a run folder per configuration; returns them in the order of the configurations."""

    def write(nodes: Mapping[str, FakeNode], folds: Sequence[int] = (0, 1), softmax: bool = True) -> list[Path]:
        runs = []
        for configuration in next(iter(nodes.values())).segmentations:
            run = tmp_path / f"run_{configuration}"
            for number, (name, node) in enumerate(nodes.items(), start=201):
                dataset = f"Dataset{number}_{name}"
                home = run / "nodes" / name
                write_model(
                    home / "nnUNet_results" / dataset / identifier(configuration), node, configuration, folds, softmax
                )
                preprocessed = home / "nnUNet_preprocessed" / dataset
                for case, reference in node.references.items():
                    write_image(preprocessed / "gt_segmentations" / f"{case}.nii.gz", reference)
                cases = list(node.references)
                held_out = [cases[place :: len(folds)] for place in range(len(folds))]
                splits = [{"train": sorted({*cases} - {*val}), "val": val} for val in held_out]
                if list(folds) == list(range(len(folds))):
                    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
            runs.append(run)
        return runs

    return write
