"""An nnU-Net model as a network of a MONAI bundle: images as MONAI loads them in, label maps on the same grid out.

This file is copied into bundles, as ``scripts/nnunet_network.py``: it needs nnunetv2, torch and numpy alone.

MONAI has a volume's axes as (X, Y, Z), nnU-Net as (Z, Y, X), and with them spacing, transposition of the plans, patches
and axes of mirroring. Fed as MONAI loads it, a network sees another image wherever the first axis is not like the last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn


class NnUNetNetwork(nn.Module):
    """The networks of all folds, averaged as ``nnUNetv2_predict`` does, with its sliding window and mirroring.

    Its weights are those of ``models/model.pt``; without them it does not segment.

    Args:
        plans: file with nnU-Net's plans.
        dataset_json: file with nnU-Net's ``dataset.json``.
        configuration: nnU-Net's configuration, such as ``3d_fullres``.
        trainer: name of nnU-Net's trainer.
        folds: number of folds.
        mirror_axes: axes of test-time mirroring, of the network's patches; None for none.
        largest_component: label values of which only the largest component stays, step by step.
        tile_step_size: step of the sliding window, as a fraction of the patch.
    """

    def __init__(
        self,
        plans: str,
        dataset_json: str,
        configuration: str,
        trainer: str,
        folds: int,
        mirror_axes: Sequence[int] | None,
        largest_component: Sequence[Sequence[int]] = (),
        tile_step_size: float = 0.5,
    ) -> None:
        super().__init__()
        self.plans = PlansManager(json.loads(Path(plans).read_text(encoding="utf-8")))
        self.dataset_json = json.loads(Path(dataset_json).read_text(encoding="utf-8"))
        self.configuration, self.trainer = configuration, trainer
        self.mirror_axes = None if mirror_axes is None else tuple(mirror_axes)
        self.largest_component = [list(labels) for labels in largest_component]
        self.tile_step_size = tile_step_size
        self.channels = len(self.dataset_json["channel_names"])
        self.folds = nn.ModuleList(self._build() for _ in range(folds))
        self._is_loaded = False
        self._predictors: dict[torch.device, nnUNetPredictor] = {}
        self.register_load_state_dict_post_hook(_note_weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Label maps (B, 1, X, Y, Z), as float, of images (B, C, X, Y, Z).

        Args:
            images: a batch of MONAI's ``MetaTensor``, whose ``affine`` tells the voxels' size; values as in the files.

        Raises:
            RuntimeError: weights were not loaded.
            ValueError: the voxels' size is not known, or there are not as many channels as the network takes.
        """
        if not self._is_loaded:
            raise RuntimeError("NnUNetNetwork has random weights: load models/model.pt first")
        if images.ndim != 5 or images.shape[1] != self.channels:
            raise ValueError(
                f"images must have the axes (batch, {self.channels} channels, X, Y, Z), not {tuple(images.shape)}"
            )
        segmentations = torch.empty_like(images[:, :1], dtype=torch.float32)
        spacings = spacings_of(images)
        predictor = self._predictor(images.device)
        for number, spacing in enumerate(spacings):
            volume = np.asarray(images[number].detach().cpu(), dtype=np.float32).transpose(0, 3, 2, 1)
            found = predictor.predict_single_npy_array(np.ascontiguousarray(volume), {"spacing": spacing[::-1]})
            for labels in self.largest_component:
                found = remove_all_but_largest_component_from_segmentation(found, labels)
            segmentations[number, 0] = torch.from_numpy(found.transpose(2, 1, 0).astype(np.float32)).to(images.device)
        return segmentations

    def _build(self) -> nn.Module:
        chosen = self.plans.get_configuration(self.configuration)
        return recursive_find_trainer_class_by_name(self.trainer).build_network_architecture(
            self.plans,
            chosen,
            determine_num_input_channels(self.plans, chosen, self.dataset_json),
            self.plans.get_label_manager(self.dataset_json).num_segmentation_heads,
            enable_deep_supervision=False,
        )

    def _predictor(self, device: torch.device) -> nnUNetPredictor:
        """nnU-Net's predictor; it loads the folds' weights, one after another, into a network of its own."""
        if device not in self._predictors:
            predictor = nnUNetPredictor(
                tile_step_size=self.tile_step_size,
                use_mirroring=self.mirror_axes is not None,
                perform_everything_on_device=device.type == "cuda",
                device=device,
                allow_tqdm=False,
            )
            predictor.manual_initialization(
                self._build().to(device).eval(),
                self.plans,
                self.plans.get_configuration(self.configuration),
                None,
                self.dataset_json,
                self.trainer,
                self.mirror_axes,
            )
            self._predictors[device] = predictor
        self._predictors[device].list_of_parameters = [fold.state_dict() for fold in self.folds]
        return self._predictors[device]


def spacings_of(images: torch.Tensor) -> list[list[float]]:
    """Size of the voxels (x, y, z) in mm, of each image of a batch of MONAI's ``MetaTensor``.

    Columns of the affine are as long as voxels. NIfTI has the size in ``pixdim``, too, which other readers take; they
    differ in the last bits, where one was rounded.

    Raises:
        ValueError: it is not known.
    """
    affines = getattr(images, "affine", None)
    if affines is None:
        raise ValueError("images must be MONAI's MetaTensor, as LoadImage gives them: spacing is in its affine")
    affines = np.asarray(torch.as_tensor(affines).cpu(), dtype=float).reshape(-1, 4, 4)
    if len(affines) != len(images):
        raise ValueError(f"a batch of {len(images)} images has {len(affines)} affines")
    lengths = np.sqrt((affines[:, :3, :3] ** 2).sum(axis=1))
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError(f"the affine of an image has columns of length {lengths.tolist()}: its spacing is not known")
    pixdim: Any = getattr(images, "meta", {}).get("pixdim")
    if pixdim is not None:
        stored = np.asarray(torch.as_tensor(pixdim).cpu(), dtype=float).reshape(len(images), -1)
        if stored.shape[1] >= 4 and np.allclose(stored[:, 1:4], lengths, rtol=1e-4, atol=0):
            lengths = stored[:, 1:4]
    return lengths.tolist()


def list_cases(folder: str, file_ending: str, channels: int) -> list[dict[str, list[str]]]:
    """Cases of a folder in nnU-Net's naming, ``CASE_0000.nii.gz``: ``image`` to the files of its channels, in order.

    Raises:
        FileNotFoundError: there is none, or a case lacks a channel.
    """
    last = len("_0000") + len(file_ending)
    cases = sorted({path.name[:-last] for path in Path(folder).glob(f"*_[0-9][0-9][0-9][0-9]{file_ending}")})
    if not cases:
        raise FileNotFoundError(f"{folder} holds no image CASE_0000{file_ending}")
    found = []
    for case in cases:
        files = [Path(folder) / f"{case}_{channel:04d}{file_ending}" for channel in range(channels)]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing: each case needs {channels} channels")
        found.append({"image": [str(file) for file in files]})
    return found


def _note_weights(module: nn.Module, incompatible_keys: Any) -> None:
    if not incompatible_keys.missing_keys and not incompatible_keys.unexpected_keys:
        module._is_loaded = True  # type: ignore[assignment]
