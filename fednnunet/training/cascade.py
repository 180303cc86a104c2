"""nnU-Net's cascade: ``3d_cascade_fullres`` refines what ``3d_lowres`` segmented.

A ``3d_lowres`` run leaves its segmentations of each fold's held-out cases, on the grid of the next stage, in nnU-Net's
folder ``predicted_next_stage``. The run of the next stage finds them by the node's name, below the folder that
``init.previous_stage`` names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from fednnunet.errors import ConfigError
from fednnunet.run_files import PREDICTED


def save_for_next_stages(
    trainer: nnUNetTrainer, identifier: str, logits: torch.Tensor, properties: Mapping[str, Any]
) -> None:
    """Write the segmentation of a held-out case on the grid of every stage that takes it as input.

    As in ``nnUNetTrainer.perform_actual_validation``, but for the shape of the next stage's image, which is computed
    instead of read from its preprocessed file.

    Args:
        trainer: trainer of this stage.
        identifier: identifier of the case.
        logits: (C, Z, Y, X) on this stage's grid.
        properties: nnU-Net's, of the preprocessed case.
    """
    plans = trainer.plans_manager
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    for stage in trainer.configuration_manager.next_stage_names or []:
        target = plans.get_configuration(stage).spacing
        shape = compute_new_shape(properties["shape_after_cropping_and_before_resampling"], spacing, target)
        folder = Path(trainer.output_folder_base) / PREDICTED / stage
        folder.mkdir(parents=True, exist_ok=True)
        resample_and_save(
            logits,
            [int(size) for size in shape],
            str(folder / identifier),
            plans,
            trainer.configuration_manager,
            dict(properties),
            trainer.dataset_json,
            torch.get_num_threads(),
            trainer.dataset_class,
        )


def preprocessed_cases(trainer: nnUNetTrainer, identifiers: Sequence[str]) -> nnUNetBaseDataset:
    """These cases as preprocessed for the trainer, with what the previous stage of a cascade segmented."""
    folders = trainer.preprocessed_dataset_folder, trainer.folder_with_segs_from_previous_stage
    return trainer.dataset_class(folders[0], list(identifiers), folders[1])


def preprocessed_input(
    trainer: nnUNetTrainer, dataset: nnUNetBaseDataset, identifier: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """What the network sees of a preprocessed case: image (C, Z, Y, X), and nnU-Net's properties.

    A cascade gets the previous stage's segmentation, a channel for each label behind those of the image, as in
    ``nnUNetTrainer.perform_actual_validation``.
    """
    image, _, previous, properties = dataset.load_case(identifier)
    data = image[:]
    if previous is not None:
        labels = trainer.label_manager.foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(previous[:], labels, output_dtype=data.dtype)))
    return data, properties


def copy_previous_stage(
    trainer: nnUNetTrainer, node: str, source: Path, identifiers: Sequence[str], united: bool = False
) -> None:
    """Copy the previous stage's segmentations of all cases to where nnU-Net reads them.

    Args:
        trainer: trainer of the cascade.
        node: its name.
        source: folder of finished runs of the previous stage, at any depth.
        identifiers: identifiers of all cases of the node.
        united: as in :func:`check_labels`.

    Raises:
        ConfigError: a case is missing, is there twice, or was segmented under other plans, or with other label values.
    """
    target = Path(trainer.folder_with_segs_from_previous_stage)
    stage = trainer.configuration_manager.previous_stage_name
    found = _find(source.expanduser(), node, stage, trainer.configuration_name)
    missing = sorted(set(identifiers) - set(found))
    if missing:
        raise ConfigError(
            f"init.previous_stage={source}: {stage} segmentations of {len(missing)} of {len(identifiers)} cases "
            "are missing; they are of each fold's held-out cases, so train all: "
            f"configuration={stage} 'fold=[0,1,2,3,4]'"
        )
    for model in sorted({found[identifier].parents[2] for identifier in identifiers}):
        check_labels(model, trainer.dataset_json["labels"], source, stage, united)
    target.mkdir(parents=True, exist_ok=True)
    for identifier in identifiers:
        partial = target / f"{os.getpid()}.partial"
        shutil.copyfile(found[identifier], partial)
        os.replace(partial, target / found[identifier].name)
    _check_shapes(trainer, source, identifiers)


def _find(source: Path, node: str, stage: str, next_stage: str) -> dict[str, Path]:
    """Case identifier to segmentation."""
    found: dict[str, Path] = {}
    pattern = f"nodes/{node}/nnUNet_results/*/*__{stage}/{PREDICTED}/{next_stage}/*"
    for path in sorted({*source.glob(pattern), *source.glob(f"**/{pattern}")}):
        other = found.setdefault(path.name.split(".")[0], path)
        if other != path:
            raise ConfigError(
                f"init.previous_stage={source} holds two segmentations of a case, by different runs of {stage}: "
                "name the folder of one"
            )
    return found


def check_labels(model: Path, labels: Mapping[str, Any], source: Path, stage: str, united: bool = False) -> None:
    """Check that a model of the previous stage wrote label values that mean the same here.

    Names alone may have changed, unless values follow from them (``task.labels=union``): there, another name in the
    place of one is another label.

    Args:
        model: its folder, with nnU-Net's ``dataset.json``.
        labels: nnU-Net's ``labels`` of this stage.
        source: as in :func:`copy_previous_stage`.
        stage: name of the previous stage.
        united: the labels are those of all nodes.

    Raises:
        ConfigError: a label has another value there, there are other values, or ``dataset.json`` cannot be read.
    """
    path = model / "dataset.json"
    try:
        theirs = dict(json.loads(path.read_text())["labels"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"init.previous_stage={source}: {path} is missing or damaged; it says what was segmented"
        ) from None
    unlike = [name for name in labels if name in theirs and theirs[name] != labels[name]]
    if unlike:
        what = f"{unlike[0]} had the value {theirs[unlike[0]]} and has {labels[unlike[0]]} now"
    elif (united and set(theirs) != set(labels)) or sorted(map(str, theirs.values())) != sorted(
        map(str, labels.values())
    ):
        what = f"it had the labels {', '.join(theirs)}, and this run has {', '.join(labels)}"
    else:
        return
    raise ConfigError(
        f"init.previous_stage={source}: {stage} segmented other labels: {what}; repeat it with the labels, names and "
        "nodes of this run (task.labels, task.rename_labels)"
    )


def _check_shapes(trainer: nnUNetTrainer, source: Path, identifiers: Sequence[str]) -> None:
    dataset = infer_dataset_class(trainer.preprocessed_dataset_folder)(
        trainer.preprocessed_dataset_folder, list(identifiers), trainer.folder_with_segs_from_previous_stage
    )
    for identifier in identifiers:
        data, _, previous, _ = dataset.load_case(identifier)
        if tuple(data.shape[1:]) != tuple(previous.shape):
            raise ConfigError(
                f"init.previous_stage={source}: the segmentations have another shape than the images of "
                f"{trainer.configuration_name}: that run had other plans; repeat it with the same dataset and model"
            )
