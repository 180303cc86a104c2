"""Segment cases with nnU-Net's sliding-window predictor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from fednnunet.errors import ConfigError
from fednnunet.evaluation.sliding_window import SlidingWindow

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class NotFiniteError(ConfigError):
    """Logits with NaN or infinity, which an argmax would take for background.

    Args:
        model: node that trained the model; None for this node's own.
    """

    def __init__(self, model: str | None = None) -> None:
        super().__init__("the model's output is not finite")
        self.model = model


class Predictor:
    """One network with its plans, ready to segment as ``nnUNetv2_predict`` does, in this process.

    Args:
        network: network without deep supervision.
        plans: nnU-Net's plans.
        configuration: nnU-Net's configuration, such as ``2d``.
        dataset_json: nnU-Net's ``dataset.json``.
        mirror_axes: axes of test-time mirroring, nnU-Net's ``inference_allowed_mirroring_axes``.
        device: device to compute on.
        unlearnt: numbers of channels that are zeros to the network once they are preprocessed.
    """

    def __init__(
        self,
        network: nn.Module,
        plans: dict[str, Any],
        configuration: str,
        dataset_json: dict[str, Any],
        mirror_axes: tuple[int, ...] | None,
        device: torch.device,
        unlearnt: Sequence[int] = (),
    ) -> None:
        self.unlearnt = list(unlearnt)
        self.plans = PlansManager(plans)
        self.configuration = self.plans.get_configuration(configuration)
        self.labels = self.plans.get_label_manager(dataset_json)
        self.dataset_json = dataset_json
        self.network = network.to(device).eval()
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # as nnU-Net's predictor does
        heads = self.labels.num_segmentation_heads
        self._window = SlidingWindow(self.configuration.patch_size, heads, mirror_axes, device)

    @classmethod
    def of_trainer(cls, trainer: nnUNetTrainer) -> Predictor:
        """A predictor with the trainer's network, in which deep supervision is switched off."""
        trainer.set_deep_supervision_enabled(False)
        return cls(
            trainer.network.module if trainer.is_ddp else trainer.network,  # only this process predicts
            trainer.plans_manager.plans,
            trainer.configuration_name,
            trainer.dataset_json,
            trainer.inference_allowed_mirroring_axes,
            trainer.device,
        )

    def logits(
        self,
        data: np.ndarray,
        networks: Iterable[nn.Module] | None = None,
        on_tile: Callable[[int], None] = lambda tiles: None,
    ) -> torch.Tensor:
        """Logits (classes, Z, Y, X) of preprocessed ``data`` (C, Z, Y, X), by sliding window and mirroring.

        Args:
            data: preprocessed image.
            networks: those of several folds, whose logits are averaged; :attr:`network` if None.
            on_tile: called after each tile with the number of tiles of a network.

        Raises:
            NotFiniteError: one is NaN or infinite.
        """
        logits = self._window.logits([self.network] if networks is None else networks, torch.from_numpy(data), on_tile)
        if not torch.isfinite(logits).all():
            raise NotFiniteError
        return logits

    def segment(self, logits: torch.Tensor, properties: dict[str, Any]) -> np.ndarray:
        """Segmentation (Z, Y, X) in the original image's grid."""
        return self._export(logits, properties, False)

    def segment_with_probabilities(
        self, logits: torch.Tensor, properties: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Segmentation (Z, Y, X) and softmax (sigmoid of regions) (classes, Z, Y, X), in the original grid."""
        return self._export(logits, properties, True)

    def _export(self, logits: torch.Tensor, properties: dict[str, Any], probabilities: bool) -> Any:
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self.plans,
            self.configuration,
            self.labels,
            properties,
            return_probabilities=probabilities,
            num_threads_torch=torch.get_num_threads(),
        )

    def load_files(self, images: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """The raw ``images``, one file per channel, preprocessed (C, Z, Y, X), and properties that exporting needs."""
        preprocessor = self.configuration.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case(images, None, self.plans, self.configuration, self.dataset_json)
        data = np.asarray(data, dtype=np.float32)
        data[self.unlearnt] = 0
        return data, properties
