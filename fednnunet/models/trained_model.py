"""What a trained model is: everything that segmenting with nnU-Net needs, wherever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fednnunet.datasets.union_channels import ZEROS_WHERE_MISSING
from fednnunet.errors import ConfigError, DataError
from fednnunet.models.postprocessing import Postprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn

DATASET_KEYS = (
    *("channel_names", "labels", "regions_class_order", "file_ending"),
    *("overwrite_image_reader_writer", "modality"),  # the older name of channel_names
    ZEROS_WHERE_MISSING,
)
"""Keys of ``dataset.json`` by which nnU-Net segments; all others stay where they are, as some name cases."""
PLAIN_TRAINER = "nnUNetTrainer"
"""nnU-Net's trainer, whose network is what the plans say."""


@dataclass(frozen=True)
class TrainedModel:
    """A network of one configuration, trained on one or several folds.

    Attributes:
        plans: nnU-Net's plans.
        dataset_json: nnU-Net's ``dataset.json``, with :data:`DATASET_KEYS` alone: no case is named.
        configuration: nnU-Net's configuration, such as ``2d``.
        trainer: name of nnU-Net's trainer class.
        folds: folds that are there, ``"0"`` to ``"4"`` or ``"all"``, sorted.
        mirror_axes: axes of test-time mirroring, nnU-Net's ``inference_allowed_mirroring_axes``; None for none.
        postprocessing: what follows segmentation; None for nothing.
        where: source and, of a run, node: for errors at this machine.
        read_weights: reads those of a fold.
    """

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    trainer: str
    folds: tuple[str, ...]
    mirror_axes: tuple[int, ...] | None
    postprocessing: Postprocessing | None
    where: str
    read_weights: Callable[[str], dict[str, torch.Tensor]] = field(repr=False, compare=False)

    def weights(self, fold: str) -> dict[str, torch.Tensor]:
        """Layer to tensor on the CPU, of one of the :attr:`folds`.

        Raises:
            DataError: the file is damaged, or holds something else than tensors and numbers.
        """
        if fold not in self.folds:
            raise DataError(f"{self.where} holds no fold {fold}, only {', '.join(self.folds)}")
        return self.read_weights(fold)

    def build_network(self) -> nn.Module:
        """The network with random weights and without deep supervision, as nnU-Net builds it for prediction.

        Raises:
            DataError: its trainer is none of nnU-Net's own, so what it builds is not known.
        """
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(self.plans)
        chosen = manager.get_configuration(self.configuration)
        if self.trainer != PLAIN_TRAINER:
            return self._build_with_trainer(manager)
        return get_network_from_plans(
            chosen.network_arch_class_name,
            chosen.network_arch_init_kwargs,
            chosen.network_arch_init_kwargs_req_import,
            determine_num_input_channels(manager, chosen, self.dataset_json),
            manager.get_label_manager(self.dataset_json).num_segmentation_heads,
            allow_init=True,
            deep_supervision=False,
        )

    def load(self, network: nn.Module, fold: str) -> None:
        """Load the weights of a fold into a network of :meth:`build_network`.

        Raises:
            DataError: they do not fit, with the first layer that does not; or as :meth:`weights` does.
        """
        load_weights(network, self.weights(fold), f"{self.where}: fold {fold}")

    def _build_with_trainer(self, manager: Any) -> nn.Module:
        """Some of nnU-Net's trainers build other networks (``nnUNetTrainerBN``): theirs are imported, no others."""
        from fednnunet.planning.class_lookup import nnunet_classes
        from fednnunet.training.trainer import build_network, find_trainer

        if self.trainer not in nnunet_classes("training/nnUNetTrainer"):
            raise DataError(
                f"{self.where} was trained by {self.trainer}, which is none of nnU-Net's trainers: what network it "
                "builds is not known here"
            )
        try:
            return build_network(find_trainer(self.trainer), manager, self.configuration, self.dataset_json)
        except ConfigError as error:
            raise DataError(f"{self.where}: {error}") from None


def load_weights(network: nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Load all layers of a network; neither may have one that the other lacks, or of another shape.

    Raises:
        DataError: names the first layer that does not fit.
    """
    ours = network.state_dict()
    for name in {**ours, **weights}:
        theirs = tuple(weights[name].shape) if name in weights else "missing"
        planned = tuple(ours[name].shape) if name in ours else "not in the network"
        if theirs != planned:
            raise DataError(f"{where}: weights do not fit the plans: {name} is {theirs}, and by the plans {planned}")
    network.load_state_dict(dict(weights))


def described(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``dataset.json`` by which nnU-Net segments; its keys keep their order."""
    return {key: value for key, value in dataset_json.items() if key in DATASET_KEYS}
