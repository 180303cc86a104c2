"""A trained model that is ready to segment: files to voxels, to logits, to a segmentation in the images' own grid."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import nn

from fednnunet.datasets.case_grids import bring_onto
from fednnunet.datasets.checked_file import header_notes, read_to_end
from fednnunet.datasets.union_channels import ZEROS_WHERE_MISSING
from fednnunet.errors import DataError, one_line
from fednnunet.evaluation.predict import Predictor
from fednnunet.exchange.data_notes import NoteKind
from fednnunet.inference.cases import ImageCase, ModelInput, endings_of
from fednnunet.inference.dicom_cases import read_series
from fednnunet.models.trained_model import TrainedModel, load_weights

Tile = Callable[[int], None]
"""Is told after each tile how many tiles a network has."""


@dataclass
class RawImages:
    """A case as its files say.

    Attributes:
        case: the case.
        voxels: (C, Z, Y, X), float32; zeros where it lacks a channel.
        properties: of nnU-Net's reader.
        missing: numbers of the channels that it lacks.
        notes: what people should know of the files, with numbers of voxels.
    """

    case: ImageCase
    voxels: np.ndarray
    properties: dict[str, Any]
    missing: list[int] = field(default_factory=list)
    notes: dict[NoteKind, int] = field(default_factory=dict)


@dataclass
class Preprocessed:
    """A case as the network takes it.

    Attributes:
        voxels: (C, Z, Y, X), float32.
        properties: what bringing the segmentation back into the images' grid needs.
    """

    voxels: np.ndarray
    properties: dict[str, Any]


class Segmenter:
    """A model's networks with what is needed before and after them.

    Args:
        model: the model; its weights are read now, each fold once.
        device: where its networks compute.
        mirroring: whether outputs are averaged over mirrored inputs, where the model was trained for it.

    Attributes:
        digests: SHA-256 of each fold's weights.

    Raises:
        DataError: weights cannot be read, or do not fit the plans.
    """

    def __init__(self, model: TrainedModel, device: torch.device, mirroring: bool = True) -> None:
        self.model = model
        network = model.build_network()
        self._folds = []
        self.digests = []
        for fold in model.folds:
            weights = model.weights(fold)
            load_weights(network, weights, f"{model.where}: fold {fold}")
            self.digests.append(_digest_of(weights))
            self._folds.append({name: tensor.to(device) for name, tensor in weights.items()})
        axes = model.mirror_axes if mirroring else None
        self.predictor = Predictor(network, model.plans, model.configuration, model.dataset_json, axes, device)
        self._preprocessor = self.predictor.configuration.preprocessor_class(verbose=False)
        self.reader = self.predictor.plans.image_reader_writer_class()
        described = model.dataset_json
        names = described.get("channel_names") or described.get("modality") or {}
        self.channels = tuple(str(name) for name in names.values())

    @property
    def takes(self) -> ModelInput:
        """What files the model takes."""
        trained = str(self.model.dataset_json["file_ending"])
        may_lack = frozenset(self.model.dataset_json.get(ZEROS_WHERE_MISSING, ()))
        return ModelInput(self.channels, endings_of(self.reader.supported_file_endings, trained), may_lack)

    def read(self, case: ImageCase) -> RawImages:
        """Read the files of a case to their end.

        Raises:
            DataError: one cannot be read, or holds NaN or infinity; they have another number of channels than the
                model takes, or do not lie on one grid. Names the file.
        """
        if case.problem is not None:
            raise DataError(case.problem)
        if case.series:
            with _quiet():
                voxels, properties = read_series([one for one in case.series if one is not None], self.reader)
            return self._with_zeros(RawImages(case, voxels, properties, case.missing))
        with _quiet():
            files = [read_to_end(path, self.reader.read_images, [str(path)]) for path in case.images if path]
        notes = dict.fromkeys(header_notes(files[0].nifti), 0)
        for file in files[1:]:
            comparison = bring_onto(file, files[0], NoteKind.CHANNEL_REORIENTED, "check")
            if comparison.problem is not None:
                raise DataError(comparison.problem.text)
            notes.update(dict.fromkeys(comparison.notes, 0))
        if not_finite := sum(file.not_finite for file in files):
            notes[NoteKind.NOT_FINITE] = not_finite
        voxels = np.concatenate([file.voxels for file in files], dtype=np.float32)
        if len(voxels) + len(case.missing) != len(self.channels):
            raise DataError(
                f"{files[0].path} has {len(voxels)} channels, and the model takes {len(self.channels)} "
                f"({', '.join(self.channels)})"
            )
        return self._with_zeros(RawImages(case, voxels, dict(files[0].properties), case.missing, notes))

    def _with_zeros(self, raw: RawImages) -> RawImages:
        if raw.missing:
            whole = np.zeros((len(self.channels), *raw.voxels.shape[1:]), dtype=np.float32)
            whole[[number for number in range(len(self.channels)) if number not in raw.missing]] = raw.voxels
            raw.voxels = whole
        return raw

    def preprocess(self, raw: RawImages, previous: np.ndarray | None = None) -> Preprocessed:
        """Normalise and resample as nnU-Net does.

        Args:
            raw: images of a case.
            previous: segmentation (Z, Y, X) of the previous stage in their grid, if the network takes one.

        Raises:
            DataError: there are no voxels that are not zero, or the result is not finite.
        """
        plans, configuration = self.predictor.plans, self.predictor.configuration
        before = None if previous is None else previous[None].astype(np.float32)
        try:
            voxels, stage, properties = self._preprocessor.run_case_npy(
                raw.voxels, before, dict(raw.properties), plans, configuration, self.model.dataset_json
            )
        except Exception as error:
            cause = one_line(str(error).strip().split("\n")[-1] or type(error).__name__)
            raise DataError(
                f"{_first_file(raw.case)} cannot be preprocessed as the model's plans say: {cause}"
            ) from error
        voxels = np.ascontiguousarray(voxels, dtype=np.float32)
        voxels[raw.missing] = 0
        if not np.isfinite(voxels).all():
            raise DataError(f"{_first_file(raw.case)} is NaN or infinite after normalisation; its values are too large")
        if previous is not None:
            labels = self.predictor.labels.foreground_labels
            voxels = np.vstack((voxels, convert_labelmap_to_one_hot(stage[0], labels, voxels.dtype)))
        return Preprocessed(voxels, properties)

    def logits(self, images: Preprocessed, on_tile: Tile = lambda tiles: None) -> torch.Tensor:
        """Mean logits (classes, Z, Y, X) of all folds.

        Raises:
            NotFiniteError: one is NaN or infinite.
        """
        return self.predictor.logits(images.voxels, self._networks(), on_tile)

    def _networks(self) -> Iterator[nn.Module]:
        """The network with the weights of each fold in turn, which are not copied."""
        network = self.predictor.network
        for weights in self._folds:
            network.load_state_dict(weights, assign=True)
            yield network

    def segmentation(self, logits: torch.Tensor, images: Preprocessed) -> np.ndarray:
        """Label values (Z, Y, X) in the images' own grid."""
        return self.predictor.segment(logits, images.properties)

    def with_probabilities(self, logits: torch.Tensor, images: Preprocessed) -> tuple[np.ndarray, np.ndarray]:
        """The same with softmax (sigmoid of regions) (classes, Z, Y, X)."""
        return self.predictor.segment_with_probabilities(logits, images.properties)

    def label_map(self, probabilities: np.ndarray) -> np.ndarray:
        """Label values (Z, Y, X) of softmax outputs (sigmoids of regions), such as a mean."""
        labels = self.predictor.labels.convert_probabilities_to_segmentation(probabilities)
        return np.asarray(labels).astype(np.uint16 if labels.max(initial=0) > 255 else np.uint8)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what nnU-Net's readers print of files: errors are raised."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _first_file(case: ImageCase) -> Path | str:
    if case.first_series is not None:
        return case.first_series.where
    return next((path for path in case.images if path is not None), case.name)


def _digest_of(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a network's layers, names and values."""
    total = hashlib.sha256()
    for name, tensor in weights.items():
        total.update(name.encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
