"""Write a model's zip: what ``nnUNetv2_install_pretrained_model_from_zip`` takes, and nothing of its hospital.

nnU-Net's own export copies files as they are, with host name, paths, and names, shapes and scores of cases. Here each
file is made anew from what segmenting needs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from fednnunet import __version__
from fednnunet.errors import ConfigError
from fednnunet.files import replacing
from fednnunet.models.archive import CARD, CARD_TEXT, INFERENCE
from fednnunet.models.checkpoint_file import portable_checkpoint
from fednnunet.models.model_card import ModelCard, NetworkFacts, RunFacts, limits_of
from fednnunet.models.open_archive import open_archive, planned_network
from fednnunet.models.portable import portable_description, portable_plans
from fednnunet.models.postprocessing import NNUNET_POSTPROCESSING_FILE, POSTPROCESSING_FILE
from fednnunet.models.trained_model import TrainedModel
from fednnunet.training.final_checkpoint import FINAL

DATASET_NAME = re.compile(r"Dataset(\d{3})_([A-Za-z0-9][A-Za-z0-9._+-]{0,119})", re.ASCII)
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every file in the zip: when it was made is nobody's business, and the same model gives the same zip."""


@dataclass(frozen=True)
class Handover:
    """What is handed over.

    Attributes:
        model: opened from a run, from nnU-Net's results or from a zip.
        name: nnU-Net's dataset name for it.
        facts: what its run knows.
        licence: as who hands it over says.
        limits: of use, beside those that follow.
    """

    model: TrainedModel
    name: str
    facts: RunFacts
    licence: str | None = None
    limits: Sequence[str] = ()

    def portable(self) -> TrainedModel:
        """The model with the part of its plans and ``dataset.json`` that leaves.

        Raises:
            DataError: nnU-Net elsewhere could not segment with it, as plans or trainer are not its own.
        """
        model = self.model
        dataset_json = portable_description(model.dataset_json, f"{model.where}: dataset.json")
        channels = len(dataset_json["channel_names"])
        plans = portable_plans(model.plans, model.configuration, channels, f"{model.where}: plans.json", self.name)
        return TrainedModel(
            plans,
            dataset_json,
            model.configuration,
            model.trainer,
            model.folds,
            model.mirror_axes,
            model.postprocessing,
            model.where,
            model.read_weights,
        )

    @property
    def folder(self) -> str:
        """Name of nnU-Net's folder of the model."""
        return f"{self.model.trainer}__{self.model.plans['plans_name']}__{self.model.configuration}"

    def card(self, files: dict[str, str], model: TrainedModel) -> ModelCard:
        """The card of the portable ``model``, whose files have these digests."""
        configuration = model.plans["configurations"][model.configuration]
        postprocessing = model.postprocessing
        network = NetworkFacts(
            folder=self.folder,
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
            postprocessing=[list(step.labels) for step in postprocessing.largest_component] if postprocessing else [],
        )
        versions = {"fednnunet": __version__, **{name: version(name) for name in ("nnunetv2", "torch")}}
        return ModelCard(
            name=self.name,
            licence=self.licence,
            run=self.facts,
            networks=[network],
            limits=limits_of(self.facts, model.folds, self.limits),
            versions=versions,
            files=files,
        )


def export_zip(handover: Handover, target: Path) -> ModelCard:
    """Write the zip of a model, open it as whoever gets it does, and only then give it its name.

    Args:
        handover: what is handed over.
        target: the zip; replaced where it exists, and left as it is where this fails.

    Returns:
        The card that is in it.

    Raises:
        DataError: the model cannot be read, holds what is not finite, or is not one of nnU-Net's own kinds.
    """
    model = handover.portable()
    digests: dict[str, str] = {}
    with replacing(target) as partial:
        with ZipFile(partial, "w") as archive:
            for name, content in model_files(handover.folder, model):
                path = f"{handover.name}/{name}"
                digests[path] = hashlib.sha256(content).hexdigest()
                write_entry(archive, path, content)
            card = handover.card(digests, model)
            # With the model: what the same dataset's folder already holds of other models stays when it is installed.
            folder = f"{handover.name}/{handover.folder}"
            write_entry(archive, f"{folder}/{CARD}", card.as_json().encode())
            write_entry(archive, f"{folder}/{CARD_TEXT}", card.as_markdown().encode())
        open_archive(partial, model.configuration, model.folds)
    return card


def model_files(folder: str, model: TrainedModel) -> Iterator[tuple[str, bytes]]:
    """Every file of a model but its card: path below the dataset's folder, and content."""
    yield f"{folder}/plans.json", as_json(model.plans)
    yield f"{folder}/dataset.json", as_json(model.dataset_json)
    if model.postprocessing is not None:
        yield f"{folder}/{POSTPROCESSING_FILE}", as_json(model.postprocessing.to_json())
        yield f"{folder}/{NNUNET_POSTPROCESSING_FILE}", model.postprocessing.to_pickle()
    yield INFERENCE, as_json(_inference_information(folder, model))
    for fold in model.folds:
        weights = model.weights(fold)
        yield (
            f"{folder}/fold_{fold}/{FINAL}",
            portable_checkpoint(
                weights, model.trainer, model.configuration, fold, model.dataset_json, model.mirror_axes
            ),
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


def _inference_information(folder: str, model: TrainedModel) -> dict[str, Any]:
    """As nnU-Net's ``find_best_configuration`` writes it, for this one model; paths are relative to the file."""
    trainer, plans, configuration = folder.split("__")
    postprocessing = f"{folder}/{NNUNET_POSTPROCESSING_FILE}" if model.postprocessing is not None else None
    return {
        "folds": [fold if fold == "all" else int(fold) for fold in model.folds],
        "dataset_name_or_id": model.plans["dataset_name"],
        "considered_models": [{"plans": plans, "configuration": configuration, "trainer": trainer}],
        "ensembling_allowed": False,
        "all_results": {},
        "best_model_or_ensemble": {
            "postprocessing_file": postprocessing,
            "some_plans_file": f"{folder}/plans.json",
            "selected_model_or_models": [
                {"configuration": configuration, "trainer": trainer, "plans_identifier": plans}
            ],
        },
    }


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
