"""Models of other nodes, kept while they score this node's cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fednnunet.errors import ProtocolError
from fednnunet.evaluation.ensemble import FoldModels
from fednnunet.evaluation.predict import Predictor
from fednnunet.exchange.messages import Fold, Model
from fednnunet.files import write_arrays, write_atomically
from fednnunet.planning.plans import check_missing_channels
from fednnunet.planning.received import check_received_plans
from fednnunet.training.network_state import check_state, layer_shapes


class ReceivedModels:
    """A folder of models, each a :class:`~fednnunet.exchange.messages.Model` and its arrays.

    Args:
        folder: folder for the models alone.
        configuration: nnU-Net's configuration, such as ``2d``.
        dataset_json: nnU-Net's ``dataset.json`` of this node's images.
        build: builds the network of given plans.
        device: device to compute on.
        checked_later: whether models are checked when they are used, as this node does not know all labels and channels
            before.
    """

    def __init__(
        self,
        folder: Path,
        configuration: str,
        dataset_json: dict[str, Any],
        build: Callable[[dict[str, Any]], nn.Module],
        device: torch.device,
        checked_later: bool = False,
    ) -> None:
        self.folder = folder
        self.configuration = configuration
        self.dataset_json = dataset_json
        self.build = build
        self.device = device
        self.checked_later = checked_later

    def keep(self, model: Model, arrays: Mapping[str, np.ndarray]) -> None:
        """Store a model that fits this node's task.

        Raises:
            ProtocolError: the plans name anything else than networks, or a layer is missing or does not fit.
        """
        check_received_plans(model.plans, self.configuration)
        if not self.checked_later:
            _check_layers(self.build(model.plans), arrays)
        file = self._file(model.node, model.fold)
        write_arrays(file, arrays)
        write_atomically(file.with_suffix(".json"), model.model_dump_json())

    def of(self, node: str, folds: Sequence[Fold]) -> FoldModels:
        """The kept models of a node, ready to segment.

        Raises:
            ProtocolError: one was not sent before, or does not fit this node's task.
            ConfigError: this node lacks a channel whose zeros the plans would not keep.
        """
        for fold in folds:
            if not self._file(node, fold).with_suffix(".json").is_file():
                raise ProtocolError(f"the server sent no model of node {node} for fold {fold}")
        model = Model.model_validate(json.loads(self._file(node, folds[0]).with_suffix(".json").read_text()))
        axes = None if model.mirror_axes is None else tuple(model.mirror_axes)
        check_missing_channels(model.plans, self.configuration, self.dataset_json)
        network = self.build(model.plans).to(self.device)
        for fold in folds if self.checked_later else ():
            _check_layers(network, _read(self._file(node, fold)))
        names = list(self.dataset_json["channel_names"].values())
        unknown = [name for name in model.unlearnt if name not in names]
        if unknown:
            raise ProtocolError(f"the server sent a model of node {node} for channel {unknown[0]}, which is not there")
        unlearnt = [names.index(name) for name in model.unlearnt]
        predictor = Predictor(network, model.plans, self.configuration, self.dataset_json, axes, self.device, unlearnt)
        return FoldModels(node, predictor, [partial(_read, self._file(node, fold)) for fold in folds])

    def clear(self) -> None:
        """Delete all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, node: str, fold: Fold) -> Path:
        return self.folder / f"fold_{fold}" / f"{node}.npz"


def _check_layers(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Check that the arrays are all layers of the network.

    Raises:
        ProtocolError: one is missing, unknown, of another shape, or not finite.
    """
    missing = sorted(set(layer_shapes(network)) - set(arrays))
    if missing:
        raise ProtocolError(f"the server sent a model without its layer {missing[0]}")
    check_state(network, arrays)


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
