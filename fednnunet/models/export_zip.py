"""Write a model's zip: what ``nnUNetv2_install_pretrained_model_from_zip`` takes, and nothing of its hospital.

nnU-Net's own export copies files as they are, with host name, paths, and names, shapes and scores of cases. Here each
file is made anew from what segmenting needs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from fednnunet import __version__
from fednnunet.errors import ConfigError, DataError
from fednnunet.files import replacing
from fednnunet.models.archive import CARD, CARD_TEXT
from fednnunet.models.card_text import as_markdown
from fednnunet.models.checkpoint_file import portable_checkpoint
from fednnunet.models.ensemble import Ensemble
from fednnunet.models.inference_information import INFERENCE, as_information, ensemble_folder
from fednnunet.models.model_card import ModelCard, NetworkFacts, RunFacts, limits_of
from fednnunet.models.open_archive import planned_network
from fednnunet.models.open_ensemble import open_ensemble
from fednnunet.models.portable import portable_description, portable_plans
from fednnunet.models.postprocessing import NNUNET_POSTPROCESSING_FILE, POSTPROCESSING_FILE, Postprocessing
from fednnunet.models.trained_model import TrainedModel
from fednnunet.training.final_checkpoint import FINAL

DATASET_NAME = re.compile(r"Dataset(\d{3})_([A-Za-z0-9][A-Za-z0-9._+-]{0,119})", re.ASCII)
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every file in the zip: when it was made is nobody's business, and the same model gives the same zip."""


@dataclass(frozen=True)
class Handover:
    """What is handed over.

    Attributes:
        ensemble: opened from a run, from nnU-Net's results or from a zip; most often one model.
        name: nnU-Net's dataset name for it.
        facts: what its run knows.
        licence: as who hands it over says.
        limits: of use, beside those that follow.
    """

    ensemble: Ensemble
    name: str
    facts: RunFacts
    licence: str | None = None
    limits: Sequence[str] = ()

    def portable(self) -> Portable:
        """The models with the part of their plans and ``dataset.json`` that leaves.

        Raises:
            DataError: nnU-Net elsewhere could not segment with them, as plans or trainer are not its own; or models
                have not the same folds.
        """
        members = self.ensemble.members
        named = [folder_of(_portable(member.model, self.name)) for member in members]
        apart = len(set(named)) < len(named)  # models of one name, as of several hospitals
        parts: dict[str, TrainedModel] = {}
        selected = []
        for number, member in enumerate(members, 1):
            for model in (member.model, member.previous):
                if model is None:
                    continue
                portable = _portable(model, self.name, f"_{number}" if apart else "")
                before = parts.setdefault(folder_of(portable), portable)
                if before.where != portable.where:
                    raise DataError(
                        f"{portable.where} and {before.where} have one name, {folder_of(portable)}, and would be one "
                        "folder of the file; hand over one model alone"
                    )
                if model is member.model:
                    selected.append(folder_of(portable))
        first = parts[selected[0]]
        for other in parts.values():
            if other.folds != first.folds:
                raise DataError(
                    f"{first.where} has folds {', '.join(first.folds)}, {other.where} {', '.join(other.folds)}, and "
                    "they segment together; choose the same with --fold"
                )
        return Portable(self.name, parts, tuple(selected), self.ensemble.postprocessing)

    def card(self, files: dict[str, str], portable: Portable) -> ModelCard:
        """The card of the ``portable`` models, whose files have these digests."""
        versions = {"fednnunet": __version__, **{name: version(name) for name in ("nnunetv2", "torch")}}
        several = len(portable.selected) > 1
        steps = steps_of(portable.postprocessing)
        return ModelCard(
            name=self.name,
            licence=self.licence,
            run=self.facts,
            networks=[_network_facts(folder, model) for folder, model in portable.parts.items()],
            averaged=list(portable.selected) if several else [],
            postprocessing=steps if several else [],
            limits=limits_of(self.facts, portable.first.folds, self.limits),
            versions=versions,
            files=files,
        )


@dataclass(frozen=True)
class Portable:
    """What leaves of a handover.

    Attributes:
        name: nnU-Net's dataset name.
        parts: name of nnU-Net's folder to model, previous stages included.
        selected: names of those whose softmax outputs are averaged; most often one.
        postprocessing: what follows.
    """

    name: str
    parts: dict[str, TrainedModel]
    selected: tuple[str, ...]
    postprocessing: Postprocessing | None

    @property
    def first(self) -> TrainedModel:
        """The model that gives labels and channels."""
        return self.parts[self.selected[0]]

    @property
    def place(self) -> str:
        """Folder of what belongs to all, below the dataset's: the card, and the post-processing."""
        return self.selected[0] if len(self.selected) == 1 else ensemble_folder(self.selected, self.first.folds)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Every file but the card: path below the dataset's folder, and content."""
        for folder, model in self.parts.items():
            yield f"{folder}/plans.json", as_json(model.plans)
            yield f"{folder}/dataset.json", as_json(model.dataset_json)
        if self.postprocessing is not None:
            yield f"{self.place}/{POSTPROCESSING_FILE}", as_json(self.postprocessing.to_json())
            yield f"{self.place}/{NNUNET_POSTPROCESSING_FILE}", self.postprocessing.to_pickle()
        information = as_information(
            self.name, list(self.parts), self.selected, self.first.folds, self.place, self.postprocessing is not None
        )
        yield INFERENCE, as_json(information)
        for folder, model in self.parts.items():
            for fold in model.folds:
                yield (
                    f"{folder}/fold_{fold}/{FINAL}",
                    portable_checkpoint(
                        model.weights(fold),
                        model.trainer,
                        model.configuration,
                        fold,
                        model.dataset_json,
                        model.mirror_axes,
                    ),
                )


def export_zip(handover: Handover, target: Path) -> ModelCard:
    """Write the zip of a model or an ensemble, open it as whoever gets it does, and only then give it its name.

    Args:
        handover: what is handed over.
        target: the zip; replaced where it exists, and left as it is where this fails.

    Returns:
        The card that is in it.

    Raises:
        DataError: a model cannot be read, holds what is not finite, or is not one of nnU-Net's own kinds.
    """
    portable = handover.portable()
    digests: dict[str, str] = {}
    with replacing(target) as partial:
        with ZipFile(partial, "w") as archive:
            for name, content in portable.files():
                path = f"{handover.name}/{name}"
                digests[path] = hashlib.sha256(content).hexdigest()
                write_entry(archive, path, content)
            card = handover.card(digests, portable)
            # With the model: what the same dataset's folder already holds of other models stays when it is installed.
            folder = f"{handover.name}/{portable.place}"
            write_entry(archive, f"{folder}/{CARD}", card.as_json().encode())
            write_entry(archive, f"{folder}/{CARD_TEXT}", as_markdown(card).encode())
        _check_opens(partial, portable)
    return card


def _check_opens(path: Path, portable: Portable) -> None:
    """Open what was written; it must be decided there as it was here."""
    found = open_ensemble(path)
    selected = tuple(folder_of(member.model) for member in found.members)
    if selected != portable.selected or steps_of(found.postprocessing) != steps_of(portable.postprocessing):
        raise AssertionError(f"{path} opens as {selected}, not as {portable.selected}")


def _portable(model: TrainedModel, name: str, suffix: str = "") -> TrainedModel:
    """The part of a model that leaves; ``suffix`` is added to the name of its plans."""
    dataset_json = portable_description(model.dataset_json, f"{model.where}: dataset.json")
    channels = len(dataset_json["channel_names"])
    plans = portable_plans(model.plans, model.configuration, channels, f"{model.where}: plans.json", name)
    plans["plans_name"] += suffix
    return replace(model, plans=plans, dataset_json=dataset_json)


def folder_of(model: TrainedModel) -> str:
    """Name of nnU-Net's folder of a model."""
    return f"{model.trainer}__{model.plans['plans_name']}__{model.configuration}"


def steps_of(postprocessing: Postprocessing | None) -> list[list[int]]:
    """Labels of which only the largest component stays, step by step."""
    return [list(step.labels) for step in postprocessing.largest_component] if postprocessing else []


def _network_facts(folder: str, model: TrainedModel) -> NetworkFacts:
    configuration = model.plans["configurations"][model.configuration]
    return NetworkFacts(
        folder=folder,
        configuration=model.configuration,
        trainer=model.trainer,
        plans=model.plans["plans_name"],
        folds=list(model.folds),
        channels=list(model.dataset_json["channel_names"].values()),
        labels=model.dataset_json["labels"],
        spacing=configuration["spacing"],
        patch_size=configuration["patch_size"],
        batch_size=configuration["batch_size"],
        stages=configuration["architecture"]["arch_kwargs"]["n_stages"],
        parameters=sum(parameter.numel() for parameter in planned_network(model).parameters()),
        previous_stage=configuration.get("previous_stage"),
        postprocessing=steps_of(model.postprocessing),
    )


def dataset_name(text: str, number: int) -> str:
    """nnU-Net's name of a dataset: as given, or of the text with characters that it can hold.

    Args:
        text: ``DatasetXXX_Name``, or a name alone.
        number: what XXX is where it is a name alone.

    Raises:
        ConfigError: nothing of it can be in a name.
    """
    if DATASET_NAME.fullmatch(text):
        return text
    name = f"Dataset{number:03d}_" + re.sub(r"[^A-Za-z0-9._+-]+", "", text)
    if not DATASET_NAME.fullmatch(name):
        raise ConfigError(f"--name {text} must be as nnU-Net's Dataset123_Name, or letters and digits")
    return name


def write_entry(archive: ZipFile, path: str, content: bytes) -> None:
    """Add a file to a zip, without the time or anything else of this machine."""
    entry = ZipInfo(path, _EPOCH)
    entry.external_attr = 0o100644 << 16
    # Weights hardly shrink, and are faster to read like this.
    entry.compress_type = ZIP_STORED if path.endswith((".pth", ".pt")) else ZIP_DEFLATED
    archive.writestr(entry, content)


def as_json(content: Any) -> bytes:
    """Content of a JSON file."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
