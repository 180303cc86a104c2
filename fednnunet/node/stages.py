"""The stages of a node's work, in order: describe, plan, preprocess, train, evaluate."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from pydantic import BaseModel, ValidationError
from torch import nn

from fednnunet import __version__
from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.pooled import pool_datasets, pooled_name
from fednnunet.datasets.quality.measure import image_digests
from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.datasets.splits import pooled_splits, splits_of
from fednnunet.datasets.staging import raw_digest, stage_dataset
from fednnunet.errors import ConfigError, ProtocolError, first_problem
from fednnunet.evaluation.ensemble import segment_with_each
from fednnunet.evaluation.held_out import held_out_segmenter
from fednnunet.evaluation.score import HeldOutCase, score_cases
from fednnunet.evaluation.summary import write_summary
from fednnunet.exchange import messages
from fednnunet.exchange.digests import DIGESTS_FILE, salted
from fednnunet.files import write_atomically
from fednnunet.fingerprint.extract import extract_contribution, extract_fingerprint, intensity_ranges
from fednnunet.fingerprint.schema import IntensityBins, IntensityRange, LocalFingerprint
from fednnunet.node.distributed import Ranks
from fednnunet.node.received_models import ReceivedModels
from fednnunet.node.settings import NodeSettings
from fednnunet.planning.plans import import_plans, make_plans
from fednnunet.preprocessing import REFERENCES, cache_key, preprocess
from fednnunet.training.cascade import copy_previous_stage
from fednnunet.training.checkpoint import read_final, whole_rounds
from fednnunet.training.network_state import layer_shapes
from fednnunet.training.pretrained import find_checkpoint, load_pretrained
from fednnunet.training.trainer import (
    build_network,
    build_nnunet_trainer,
    cap_memory,
    check_device,
    find_trainer,
    resolve_device,
)

log = logging.getLogger(__name__)

POOLED_DATASET = "Dataset999_Pooled"


class NodeStages:
    """A node's data and model, and what can be done with them.

    nnU-Net's path variables are process-global: one instance per process.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.config = settings.config
        self.device = torch.device("cpu")
        self.centres: dict[str, RawDataset] = {}
        self.dataset: RawDataset | None = None
        self.plans: dict[str, Any] | None = None
        self.trainer: nnUNetTrainer | None = None
        self._ranks: Ranks | None = None
        self._received: ReceivedModels | None = None
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            folder = settings.folder / variable
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[variable] = str(folder)
        os.environ["nnUNet_n_proc_DA"] = str(self.config.compute.augmentation_workers)
        os.environ["nnUNet_compile"] = str(self.config.compute.compile)

    # describe ------------------------------------------------------------------------------------------

    def describe(self, request: messages.FingerprintRequest) -> messages.FingerprintReply:
        """Check the images, extract nnU-Net's fingerprint (or take it from the cache)."""
        name, external = self.settings.name, self.settings.external
        self.device = resolve_device(self.config.compute.device)
        check_device(self.config.compute, self.device)
        cap_memory(self.device, self.config.gpu_memory_of(name) if self.config.gpu_memory.cap else None)
        self.centres = {
            centre: read_dataset(folder, centre, external=external) for centre, folder in self.settings.datasets.items()
        }
        raw = Path(os.environ["nnUNet_raw"])
        if self._pooled:
            self.dataset = pool_datasets(self.centres, raw, POOLED_DATASET)
        else:
            self.dataset = next(iter(self.centres.values()))
            stage_dataset(self.dataset, raw)
        if external:
            check_images(self.dataset, name)
        ranges, fingerprint = (None, None) if external else self._tell(request)
        return messages.FingerprintReply(
            node=name,
            version=__version__,
            external=external,
            num_training=0 if external else len(self.dataset.cases),
            configuration=self.config.configuration,
            channel_names=self.dataset.channel_names,
            labels=self.dataset.labels,
            regions_class_order=self.dataset.dataset_json.get("regions_class_order"),
            file_ending=self.dataset.file_ending,
            fingerprint=fingerprint,
            intensity_ranges=ranges,
            resume_rounds={} if external else self._resume_rounds(),
            image_digests=self._image_digests(request.salt),
        )

    def _image_digests(self, salt: str | None) -> list[str] | None:
        """Digests of the images, if this node tells them; which case each is of stays here, in a file."""
        if salt is None:
            return None
        if not self.config.fingerprint.find_duplicates:
            log.warning(
                "the server asks for digests of the images; fingerprint.find_duplicates is false here, so none are sent"
            )
            return None
        assert self.dataset is not None
        dataset, workers = self.dataset, self.config.compute.preprocessing_workers
        digests = self._cached("image_digests", lambda: image_digests(dataset, self.settings.name, workers))
        cases: dict[str, list[str]] = {}
        for case, digest in digests.items():
            cases.setdefault(salted(digest, salt), []).append(case)
        write_atomically(self.settings.folder / DIGESTS_FILE, json.dumps(dict(sorted(cases.items())), indent=1))
        for copies in cases.values():
            if len(copies) > 1:
                log.warning("the same image: %s", ", ".join(copies))
        return sorted(cases)

    def _tell(self, request: messages.FingerprintRequest) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Intensity ranges and fingerprint, where they were asked for; ``fingerprint.precision`` rounds what leaves."""
        assert self.dataset is not None
        dataset, workers = self.dataset, self.config.compute.preprocessing_workers
        quantised = self.config.fingerprint.precision == "quantised"
        if request.tell == "ranges":
            ranges = self._cached("intensity_ranges", lambda: _dump(intensity_ranges(dataset, workers)))
            if quantised:
                ranges = _dump({channel: IntensityRange(**r).quantised() for channel, r in ranges.items()})
            return ranges, None
        if request.tell == "contribution":
            total, bins = self._asked_contribution(request)
            key = hashlib.sha256(json.dumps([total, request.bins], sort_keys=True).encode()).hexdigest()[:12]
            made = self._cached(
                f"contribution_{key}", lambda: extract_contribution(dataset, total, bins, workers).to_dict()
            )
            return None, LocalFingerprint.parse(made, "the cache").quantised().to_dict() if quantised else made
        if quantised and request.tell == "statistics":
            raise ConfigError("fingerprint.precision=quantised here, but the server asks for exact statistics")
        fingerprint = self._fingerprint()  # also where nothing is told: planning will want it
        return None, fingerprint if request.tell == "statistics" else None

    def _asked_contribution(self, request: messages.FingerprintRequest) -> tuple[int, dict[str, IntensityBins]]:
        assert self.dataset is not None
        if request.total_cases is None or request.total_cases < len(self.dataset.cases):
            raise ProtocolError(f"the server says that there are {request.total_cases} training cases in all")
        try:
            bins = {channel: IntensityBins.model_validate(b) for channel, b in (request.bins or {}).items()}
        except ValidationError as error:
            raise ProtocolError(f"the server sent malformed bins: {first_problem(error, 'bins')}") from None
        missing = sorted(set(self.dataset.channel_names) - set(bins))
        if missing:
            raise ProtocolError(f"the server sent no bins for channel {missing[0]}")
        return request.total_cases, bins

    def _fingerprint(self) -> dict[str, Any]:
        """nnU-Net's fingerprint of the node."""
        assert self.dataset is not None
        dataset, workers = self.dataset, self.config.compute.preprocessing_workers
        return self._cached("dataset_fingerprint", lambda: extract_fingerprint(dataset, workers))

    def _cached(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` returns of the images as they are; made once, after every image was checked."""
        assert self.dataset is not None
        folder = self._cache_folder(raw_digest(self.dataset))
        cached = folder / f"{name}.json"
        if cached.is_file():
            return json.loads(cached.read_text())
        checked = folder / "checked"
        if not checked.is_file():
            for centre, dataset in self.centres.items():
                check_images(dataset, centre)
            write_atomically(checked, "")
        made = make()
        write_atomically(cached, json.dumps(made))
        return made

    def _cache_folder(self, digest: str) -> Path:
        assert self.dataset is not None
        return self.config.paths.cache.resolve() / f"{self.dataset.name}_{digest}"

    def _resume_rounds(self) -> dict[messages.Fold, list[int]]:
        results = Path(os.environ["nnUNet_results"])
        rounds: dict[messages.Fold, list[int]] = {}
        for fold in self.config.folds:
            folders = results.glob(f"*/*__{self.config.configuration}/fold_{fold}")
            rounds[fold] = sorted(finished for folder in folders for finished in whole_rounds(folder))
        return rounds

    # plan ----------------------------------------------------------------------------------------------

    def plan(self, request: messages.PlanRequest) -> messages.PlanReply:
        """Plan from the federated fingerprint or the node's own, build the network, list its layers."""
        dataset = self._described()
        if request.fingerprint is None:
            fingerprint = self._fingerprint()
        else:
            fingerprint = LocalFingerprint.parse(request.fingerprint, "the server").to_dict()
        name, model = self.settings.name, self.config.model
        given = self.config.init.plans_of(name)
        if given is not None:
            channels = len(dataset.channel_names)
            self.plans = import_plans(dataset.name, fingerprint, given.expanduser(), name, channels, model)
        else:
            memory = self.config.gpu_memory_of(name)
            self.plans = make_plans(dataset.name, fingerprint, model, memory, request.num_training)
        configuration = self.config.configuration
        if configuration not in self.plans["configurations"]:
            raise ConfigError(
                f"configuration={configuration}: nnU-Net plans only "
                f"{', '.join(self.plans['configurations'])} for these images"
            )
        layers = layer_shapes(self._network(self.plans))
        return messages.PlanReply(
            plans=self.plans,
            layers=layers,
            num_parameters=sum(int(torch.Size(shape).numel()) for shape in layers.values()),
        )

    # preprocess ----------------------------------------------------------------------------------------

    def preprocess(self, request: messages.PreprocessRequest) -> messages.PreprocessReply:
        """nnU-Net's preprocessing and 5-fold splits; builds the first fold's trainer on them."""
        dataset = self._described()
        if self.plans is None:
            raise ProtocolError("preprocessing was asked for before a plan")
        start = time.perf_counter()
        digest = raw_digest(dataset)
        configuration = self.config.configuration
        planned = self.settings.folder / "nnUNet_preprocessed" / dataset.name
        per_centre = {centre: splits_of(data, centre) for centre, data in self.centres.items()}
        folds = pooled_splits(per_centre) if self._pooled else next(iter(per_centre.values()))
        write_atomically(planned / "splits_final.json", json.dumps(folds, indent=1))
        cache = preprocess(
            dataset,
            planned,
            self.plans,
            configuration,
            self._cache_folder(digest) / cache_key(digest, self.plans, configuration, folds),
            self.config.compute.preprocessing_workers,
        )
        _link(planned / REFERENCES, cache / dataset.name / REFERENCES)
        os.environ["nnUNet_preprocessed"] = str(cache)
        trainer = self.begin_fold(request.fold)
        training, validation = trainer.do_split()
        return messages.PreprocessReply(
            seconds=time.perf_counter() - start,
            num_training=len(training),
            num_validation=0 if request.fold == "all" else len(validation),
            epochs=trainer.num_epochs,
            iterations=trainer.num_iterations_per_epoch,
            pretrained=self.config.init.weights_of(self.settings.name) is not None,
        )

    def begin_fold(self, fold: messages.Fold) -> nnUNetTrainer:
        """Build the trainer of ``fold``, as if it were the only one: from the node's seed, or pretrained."""
        assert self.plans is not None
        dataset, settings, name = self._described(), self.config.trainer, self.settings.name
        configuration, precision = self.config.configuration, self.config.compute.precision
        dataset_json = {key: value for key, value in dataset.dataset_json.items() if key != "dataset"}
        self.ranks.build(self.plans, configuration, fold, dataset_json, self.settings.seed)
        L.seed_everything(self.settings.seed, verbose=False)
        trainer = build_nnunet_trainer(self.plans, configuration, fold, dataset_json, settings, self.device, precision)
        source = self.config.init.weights_of(name)
        if source is not None:
            load_pretrained(trainer, find_checkpoint(source, name, fold))
        previous_stage = self.config.init.previous_stage
        if previous_stage is not None and trainer.is_cascaded:
            copy_previous_stage(trainer, name, previous_stage, self._identifiers())
        self.trainer = trainer
        return trainer

    # evaluate ------------------------------------------------------------------------------------------

    def evaluate(self) -> list[messages.CaseScore]:
        """Score the fold's held-out cases (of every pooled centre) with the trainer's network; none of fold all."""
        trainer = self._trained()
        if trainer.fold == "all":
            return []
        held_out = self._held_out_cases()
        identifiers = [case.identifier for case in held_out]
        folder = Path(trainer.output_folder) / "validation"
        segment = held_out_segmenter(trainer, identifiers, folder if self.config.trainer.save_probabilities else None)
        scores = self._score(held_out, lambda case: [(None, segment(case))], (folder, self._described().file_ending))
        summary = write_summary(trainer, folder, identifiers)
        trainer.print_to_log_file("Mean Validation Dice:", summary["foreground_mean"]["Dice"])
        return scores

    def score_received(self, models: Mapping[str, Sequence[messages.Fold]]) -> list[messages.CaseScore]:
        """Score kept models on all cases of an external centre, else on the held-out ones; then forget the models.

        Args:
            models: node to the folds whose softmax outputs are averaged.
        """
        chosen = [self.received.of(node, folds) for node, folds in models.items()]
        cases = self._numbered_cases() if self.settings.external else self._held_out_cases()
        together = self.settings.external

        def segment(held_out: HeldOutCase) -> Iterator[tuple[str, np.ndarray]]:
            return segment_with_each(chosen, [str(path) for path in held_out.case.images], together)

        scores = self._score(cases, segment, None)
        self.received.clear()
        return scores

    def final_model(self, fold: messages.Fold) -> tuple[nn.Module, list[int] | None]:
        """The network of a fold's ``checkpoint_final.pth``, and its axes of test-time mirroring.

        Raises:
            ProtocolError: the fold is not finished.
        """
        trainer = self._trained()
        checkpoint = read_final(trainer, fold)
        network = self._network(trainer.plans_manager.plans)
        network.load_state_dict(checkpoint["network_weights"])
        axes = checkpoint["inference_allowed_mirroring_axes"]
        return network, None if axes is None else list(axes)

    @property
    def received(self) -> ReceivedModels:
        """Models of other nodes that are to score this node's cases."""
        if self._received is None:
            dataset_json, configuration = self._described().dataset_json, self.config.configuration
            folder = self.settings.folder / "received"
            self._received = ReceivedModels(folder, configuration, dataset_json, self._network, self.device)
        return self._received

    def _network(self, plans: dict[str, Any]) -> nn.Module:
        trainer_class, configuration = find_trainer(self.config.trainer.class_), self.config.configuration
        return build_network(trainer_class, PlansManager(plans), configuration, self._described().dataset_json)

    def _score(
        self,
        cases: list[HeldOutCase],
        segment: Callable[[HeldOutCase], Iterable[tuple[str | None, np.ndarray]]],
        predictions: tuple[Path, str] | None,
    ) -> list[messages.CaseScore]:
        dataset = self._described()
        first = str(dataset.cases[0].images[0])
        # A training node's pictures show its own model.
        pictured = self.settings.same_machine and (predictions is not None or self.settings.external)
        return score_cases(
            cases,
            segment,
            determine_reader_writer_from_dataset_json(dataset.dataset_json, first)(),
            dataset.labels,
            self.config.evaluation.distance_unit,
            self.config.evaluation.surface_tolerance,
            predictions,
            self.settings.folder / "overlays" if pictured else None,
        )

    def _held_out_cases(self) -> list[HeldOutCase]:
        wanted = set(self._trained().do_split()[1])
        return [case for case in self._numbered_cases() if case.identifier in wanted]

    def _numbered_cases(self) -> list[HeldOutCase]:
        return [
            HeldOutCase(centre, number, pooled_name(centre, case.name) if self._pooled else case.name, case)
            for centre, dataset in self.centres.items()
            for number, case in enumerate(dataset.cases)
        ]

    def _identifiers(self) -> list[str]:
        return [case.identifier for case in self._numbered_cases()]

    @property
    def ranks(self) -> Ranks:
        """The node's other processes, where it trains on several devices; started when they are first needed."""
        if self._ranks is None:
            self._ranks = Ranks(self.settings, self.device)
        return self._ranks

    @property
    def _pooled(self) -> bool:
        return len(self.centres) > 1

    def _described(self) -> RawDataset:
        if self.dataset is None:
            raise ProtocolError("the node was not asked for its fingerprint before")
        return self.dataset

    def _trained(self) -> nnUNetTrainer:
        if self.trainer is None:
            raise ProtocolError("the node was not asked to preprocess before")
        return self.trainer


def _dump(models: Mapping[str, BaseModel]) -> dict[str, Any]:
    return {name: model.model_dump() for name, model in models.items()}


def _link(link: Path, target: Path) -> None:
    """Let ``link``, where nnU-Net's tools look, stand for ``target`` in the cache."""
    link.unlink(missing_ok=True)
    link.symlink_to(target)
