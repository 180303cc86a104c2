"""Open a model's zip, ours or nnU-Net's own: each part is checked before it is used."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from zipfile import ZipInfo

from fednnunet.errors import DataError
from fednnunet.models.archive import CARD, ENSEMBLES, MOST_MODELS, READ, check_entries, open_zip, read_entry
from fednnunet.models.archive import MOST_BYTES as MOST_OF_A_FILE
from fednnunet.models.checkpoint_file import check_weights, mirror_axes_of, read_checkpoint, weights_of
from fednnunet.models.json_file import MOST_BYTES, parse_json
from fednnunet.models.model_card import ModelCard
from fednnunet.models.model_folder import ModelFolder, as_model, choose_folder, choose_folds
from fednnunet.models.portable import portable_description, portable_plans
from fednnunet.models.postprocessing import POSTPROCESSING_FILE, Postprocessing
from fednnunet.models.trained_model import TrainedModel
from fednnunet.training.final_checkpoint import FINAL

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class ArchiveReader:
    """Reads files of one zip, each time from the file: models are larger than memory should be.

    Attributes:
        path: the zip.
        entries: files that may be read.
        digests: SHA-256 that files must have, of the card; empty without one.
    """

    path: Path
    entries: dict[str, ZipInfo]
    digests: dict[str, str]

    def read(self, name: str, most: int = MOST_OF_A_FILE) -> bytes:
        """Content of a file.

        Raises:
            DataError: it is not there, damaged, too large, or not what the card says.
        """
        if name not in self.entries:
            raise DataError(f"{self.path} lacks {name}")
        with open_zip(self.path) as archive:
            content = read_entry(archive, self.entries[name], str(self.path), most)
        if self.digests and self.digests.get(name) != hashlib.sha256(content).hexdigest():
            raise DataError(
                f"{self.path}: {name} is not the file that {CARD} is about (another SHA-256): it was changed or "
                "damaged; get the file anew from who made it"
            )
        return content


@dataclass(frozen=True)
class Archive:
    """A model's zip whose names are checked; each file is checked when it is read.

    Attributes:
        path: the zip.
        folders: its models.
        reader: reads its files.
        cards: path to card; none in nnU-Net's own zips.
    """

    path: Path
    folders: Sequence[ModelFolder]
    reader: ArchiveReader
    cards: Mapping[str, ModelCard]

    @classmethod
    def at(cls, path: Path) -> Archive:
        """The zip at a path.

        Raises:
            DataError: it is no model's zip; or a card in it is none, or about a file that is not there.
        """
        with open_zip(path) as archive:
            reader = ArchiveReader(path, check_entries(archive, str(path)), {})
        folders = _find_models(reader)
        names = [name for name in reader.entries if name.endswith(f"/{CARD}")]
        if max(len(folders), len(names)) > MOST_MODELS:
            raise DataError(f"{path} holds more than {MOST_MODELS} models, or cards")
        cards = {name: ModelCard.parse(reader.read(name, MOST_BYTES), f"{path}: {name}") for name in names}
        for name, card in cards.items():
            folder = PurePosixPath(name).parent
            about = {network.folder for network in card.networks}
            if folder.parent.name != ENSEMBLES and folder.name not in about:
                raise DataError(f"{path}: {name} is about another model")
            _check_complete(reader, card)
        return cls(path, folders, reader, cards)

    def card(self, folder: ModelFolder) -> ModelCard | None:
        """The card of a model: beside it, or one that is also of it; None without one."""
        beside = self.cards.get(f"{folder.path.as_posix()}/{CARD}")
        of_several = (
            card for card in self.cards.values() if folder.path.name in {network.folder for network in card.networks}
        )
        return beside or next(of_several, None)

    def read(self, path: Path) -> bytes | None:
        """Content of a small file that the zip may have; None where it has none.

        Raises:
            DataError: it is damaged, too large, or not what a card says.
        """
        name = path.as_posix()
        if name not in self.reader.entries:
            return None
        digests = {file: digest for card in self.cards.values() for file, digest in card.files.items()}
        return replace(self.reader, digests=digests).read(name, MOST_BYTES)

    def open(self, folder: ModelFolder, folds: tuple[str, ...]) -> TrainedModel:
        """Open a model; all chosen folds are read and checked once here.

        Raises:
            DataError: something in it is not what it should be; in one line.
        """
        reader = self.reader
        if (card := self.card(folder)) is not None:
            reader = replace(reader, digests=card.files)
        return _open_model(reader, folder, folds)


def open_archive(path: Path, configuration: str | None, folds: Sequence[str] | None) -> TrainedModel:
    """Open one model in a zip.

    Args:
        path: the zip.
        configuration: which of nnU-Net's configurations; needed where there are several.
        folds: folds to use; all if None, without ``all`` where there are others.

    Raises:
        DataError: the zip is no model's, or something in it is not what it should be; in one line.
    """
    archive = Archive.at(path)
    chosen = choose_folder(archive.folders, path, None, configuration)
    return archive.open(chosen, choose_folds(chosen.folds, folds, chosen.where))


def _check_complete(reader: ArchiveReader, card: ModelCard) -> None:
    """Refuse a zip that lacks a fold, or post-processing, that its card is about: it would give other voxels."""
    lacking = next((name for name in card.files if re.fullmatch(READ, name) and name not in reader.entries), None)
    if lacking is not None:
        raise DataError(
            f"{reader.path} lacks {lacking}, which {CARD} is about: it was changed; get the file anew from who made it"
        )


def read_card(path: Path, configuration: str | None = None) -> ModelCard | None:
    """The card of a model in a zip, or of all of them; None in one of nnU-Net's own.

    Args:
        path: the zip.
        configuration: that of the model; None for any where one card is of all of them.

    Raises:
        DataError: the zip is no model's, or the card is none.
    """
    archive = Archive.at(path)
    if configuration is None and len(archive.folders) > 1:
        cards = [archive.card(folder) for folder in archive.folders]
        if all(card == cards[0] for card in cards):
            return cards[0]
    return archive.card(choose_folder(archive.folders, path, None, configuration))


def _find_models(reader: ArchiveReader) -> list[ModelFolder]:
    folders = sorted({PurePosixPath(name).parent for name in reader.entries if name.endswith("/plans.json")})
    found = []
    for folder in folders:
        folds = [
            PurePosixPath(name).parent.name
            for name in reader.entries
            if PurePosixPath(name).name == FINAL and PurePosixPath(name).parent.parent == folder
        ]
        model = as_model(Path(folder), "", folds)
        if model is not None:
            found.append(replace(model, source=f"{reader.path}: "))
    if not found:
        raise DataError(
            f"{reader.path} holds no model: a model has plans.json, dataset.json and a fold with {FINAL} (nnU-Net's "
            "own export leaves an empty zip where it fails)"
        )
    return found


def _open_model(reader: ArchiveReader, folder: ModelFolder, folds: tuple[str, ...]) -> TrainedModel:
    base = folder.path.as_posix()
    where = f"{reader.path}: {base}"
    dataset_json = portable_description(
        parse_json(reader.read(f"{base}/dataset.json", MOST_BYTES), f"{where}/dataset.json"), f"{where}/dataset.json"
    )
    plans = portable_plans(
        parse_json(reader.read(f"{base}/plans.json", MOST_BYTES), f"{where}/plans.json"),
        folder.configuration,
        len(dataset_json["channel_names"]),
        f"{where}/plans.json",
    )
    postprocessing = None
    if f"{base}/{POSTPROCESSING_FILE}" in reader.entries:
        content = reader.read(f"{base}/{POSTPROCESSING_FILE}", MOST_BYTES)
        named = f"{where}/{POSTPROCESSING_FILE}"
        postprocessing = Postprocessing.from_json(parse_json(content, named), named)
        postprocessing.check_labels(dataset_json["labels"], named)
    model = TrainedModel(
        plans=plans,
        dataset_json=dataset_json,
        configuration=folder.configuration,
        trainer=folder.trainer,
        folds=folds,
        mirror_axes=None,
        postprocessing=postprocessing,
        where=where,
        read_weights=_no_weights,
    )
    network = planned_network(model)
    checkpoints = _CheckedFolds(reader, model, network, folder)
    axes = {checkpoints.open(fold) for fold in folds}
    if len(axes) > 1:
        raise DataError(f"{where}: folds differ in inference_allowed_mirroring_axes")
    return replace(model, mirror_axes=axes.pop(), read_weights=checkpoints.weights)


def _no_weights(fold: str) -> dict[str, torch.Tensor]:
    raise AssertionError("they are read once the network is known")


class _CheckedFolds:
    """Folds of a model, each checked when it is first read; a file that was changed since is checked again."""

    def __init__(self, reader: ArchiveReader, model: TrainedModel, network: nn.Module, folder: ModelFolder) -> None:
        self._reader, self._model, self._network, self._folder = reader, model, network, folder
        self._checked: set[str] = set()

    def open(self, fold: str) -> tuple[int, ...] | None:
        """Check a fold; returns its axes of mirroring."""
        return self._read(fold)[1]

    def weights(self, fold: str) -> dict[str, torch.Tensor]:
        """Layer to tensor of a fold."""
        return self._read(fold)[0]

    def _read(self, fold: str) -> tuple[dict[str, torch.Tensor], tuple[int, ...] | None]:
        name = f"{self._folder.path.as_posix()}/fold_{fold}/{FINAL}"
        where = f"{self._reader.path}: {name}"
        content = self._reader.read(name)
        checkpoint = read_checkpoint(content, where)
        digest = hashlib.sha256(content).hexdigest()
        weights = weights_of(checkpoint)
        dimensions = len(self._model.plans["configurations"][self._model.configuration]["patch_size"])
        axes = mirror_axes_of(checkpoint, dimensions, where)
        if digest not in self._checked:
            _check_origin(checkpoint, self._model, where)
            check_weights(weights, self._network, where)
            self._checked.add(digest)
        return weights, axes


def planned_network(model: TrainedModel) -> nn.Module:
    """The network of a model without memory for its numbers, to compare shapes with.

    Raises:
        DataError: nnU-Net cannot build it from these plans.
    """
    import torch

    try:
        with torch.device("meta"):
            return model.build_network()
    except (
        RuntimeError,
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        AssertionError,
        ArithmeticError,
    ) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{model.where}: nnU-Net cannot build the network of these plans: {said[:200]}") from None


def _check_origin(checkpoint: dict[str, Any], model: TrainedModel, where: str) -> None:
    """Check that a checkpoint says the same as the folder that it is in; nnU-Net goes by the checkpoint."""
    arguments = checkpoint.get("init_args")
    said = arguments.get("configuration") if isinstance(arguments, dict) else None
    if said != model.configuration:
        raise DataError(f"{where} is of configuration {str(said)[:80]}, in a folder of {model.configuration}")
    if checkpoint.get("trainer_name") != model.trainer:
        trainer = str(checkpoint.get("trainer_name"))[:80]
        raise DataError(f"{where} was trained by {trainer}, in a folder of {model.trainer}")
