"""The stages of a node's work, in order: describe, plan, preprocess, train, evaluate.

Each needs what the one before has left; one that comes too early is refused. What a stage does is in
:mod:`~fednnunet.node.describe`, :mod:`~fednnunet.node.prepare` and :mod:`~fednnunet.node.evaluate`; training is in
:mod:`~fednnunet.node.training_session`.
"""

from __future__ import annotations

import logging
import math
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fednnunet.errors import DataError, FednnUNetError, ProtocolError
from fednnunet.exchange import messages
from fednnunet.node import evaluate, prepare
from fednnunet.node.describe import NodeDataset
from fednnunet.node.distributed import Ranks
from fednnunet.node.masked_counts import mask_counts
from fednnunet.node.noise import CaseRounds, NodeRounds, RoundNoise
from fednnunet.node.personal_model import PersonalModel, PersonalModels
from fednnunet.node.received_models import ReceivedModels
from fednnunet.node.resource_errors import CacheLostError
from fednnunet.node.rounds import check_steps
from fednnunet.node.secure_rounds import SecureRounds
from fednnunet.node.settings import NodeSettings
from fednnunet.preprocessing import missing_cases
from fednnunet.training.checkpoint import read_final
from fednnunet.training.devices import cap_memory, check_device, resolve_device
from fednnunet.training.network_state import buffer_names, layer_shapes
from fednnunet.training.pseudo_labels import pseudo_labels_of

log = logging.getLogger(__name__)


class NodeStages:
    """A node's data and model, and what can be done with them.

    nnU-Net's path variables are process-global: those of this node are set when it is made.

    Args:
        settings: settings of the node.

    Attributes:
        trainer: trainer of the current fold; None before preprocessing.
        personal: network that is trained beside that one; None without Ditto.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.config = settings.config
        self.device = torch.device("cpu")
        self.trainer: nnUNetTrainer | None = None
        self.personal: PersonalModel | None = None
        self._personal_models: PersonalModels | None = None
        self._dataset: NodeDataset | None = None
        self._labels: dict[str, int] | None = None
        self._channels: list[str] | None = None
        self._plans: dict[str, Any] | None = None
        self._noise_report: messages.NoiseReport | None = None
        self._local_epochs = 1
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            folder = settings.folder / variable
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[variable] = str(folder)
        os.environ["nnUNet_n_proc_DA"] = str(self.config.compute.augmentation_workers)
        os.environ["nnUNet_compile"] = str(self.config.compute.compile)

    def describe(self, request: messages.FingerprintRequest) -> messages.FingerprintReply:
        """Read and check the images; describe them as far as ``request`` asks."""
        self.device = resolve_device(self.config.compute.device)
        check_device(self.config.compute, self.device)
        self.cap_memory()
        if request.content != "counts" or self._dataset is None:  # a search asks many times
            self.read_dataset()
        reply = self.dataset.describe(request)
        if self.secure is not None and reply.counts is not None:
            reply = reply.model_copy(
                update={"counts": mask_counts(self.secure, request, reply.counts, self.settings.folder)}
            )
        if request.secure_run is None or self.settings.external:
            return reply
        if self.secure is None:
            raise ProtocolError("the server asks for a key for secure sums, which are off here (privacy.secure_sums)")
        return reply.model_copy(update={"key": self.secure.signed_key(request.secure_run)})

    def cap_memory(self) -> None:
        """Let the process take no more GPU memory than this node plans for."""
        cap_memory(self.device, self.config.gpu_memory_of(self.settings.name) if self.config.gpu_memory.cap else None)

    def read_dataset(self) -> None:
        """Read and check the images as they are now; labels and channels of the federation stay."""
        self._dataset = NodeDataset(self.settings)
        if self._labels is not None:
            self._dataset.adopt_labels(self._labels)
        if self._channels is not None:
            self._dataset.adopt_channels(self._channels)

    def adopt(self, labels: dict[str, int] | None, channels: list[str] | None) -> None:
        """Have the federation's labels, name to value, and channels; without either, the node's own.

        Raises:
            ProtocolError: the run's configuration unites no labels, or no channels.
        """
        if labels is not None and self.config.task.labels != "union":  # what is not annotated would be background
            raise ProtocolError("the server names labels of all nodes, but the run has task.labels=same")
        if channels is not None and self.config.task.channels != "union":
            raise ProtocolError("the server names channels of all nodes, but the run has task.channels=same")
        if (labels is None and self._labels is not None) or (channels is None and self._channels is not None):
            self._labels = self._channels = None
            self.read_dataset()
        if labels is not None and labels != self._labels:
            self.dataset.adopt_labels(labels)
            self._labels = labels
        if channels is not None and channels != self._channels:
            self.dataset.adopt_channels(channels)
            self._channels = channels

    def plan(self, request: messages.PlanRequest) -> messages.PlanReply:
        """Plan from the federated fingerprint or the node's own, build the network, list its layers.

        Raises:
            ConfigError: the network cannot be planned, or has no layer of classes where the federation needs them.
        """
        self._plans = None
        self.adopt(request.labels, request.channels)
        self._plans = prepare.plan_network(self.dataset, request, self.settings)
        network = self._network(self._plans)
        layers = layer_shapes(network)
        return messages.PlanReply(
            plans=self._plans,
            layers=layers,
            buffers=buffer_names(network),
            num_parameters=sum(int(torch.Size(shape).numel()) for shape in layers.values()),
            heads=[] if request.labels is None else prepare.planned_heads(self._plans, self.dataset, self.settings),
        )

    def preprocess(self, request: messages.PreprocessRequest) -> messages.PreprocessReply:
        """nnU-Net's preprocessing and 5-fold splits; builds the first fold's trainer on them."""
        dataset = self.dataset
        if self._plans is None:
            raise ProtocolError("preprocessing was asked for before a plan")
        if self.secure is not None:
            self.secure.join(request)
        start = time.perf_counter()
        prepare.preprocess_cases(dataset, self._plans, self.settings)
        self._local_epochs = request.local_epochs
        self._personal_models = None
        if request.personal is not None:
            self._personal_models = PersonalModels(
                request.personal, self.settings, dataset, self._plans, self.device, self.ranks
            )
        trainer = self.start_fold(request.fold)
        last = math.ceil(trainer.num_epochs / request.local_epochs)
        shortest = messages.TrainRequest(server_round=last, epochs=request.local_epochs, layers=[])
        check_steps(trainer, shortest, self.config.privacy.least_steps)
        training, validation = trainer.do_split()
        pseudo_labels = pseudo_labels_of(trainer)
        return messages.PreprocessReply(
            seconds=time.perf_counter() - start,
            num_training=len(training),
            num_validation=len(set(validation) - set(training)),
            epochs=trainer.num_epochs,
            iterations=trainer.num_iterations_per_epoch,
            pretrained=self.config.init.weights_of(self.settings.name) is not None,
            noise=self._noise_report,
            labellings=None if pseudo_labels is None else pseudo_labels.turns_in_all_epochs,
        )

    def start_fold(self, fold: messages.Fold) -> nnUNetTrainer:
        """Build the trainer of ``fold``, as if it were the only one."""
        assert self._plans is not None
        self.close_personal()
        if self._personal_models is not None:  # before the other, which draws as if this one were not there
            self.personal = self._personal_models.beside(fold)
        self.trainer = prepare.build_fold_trainer(
            fold, self.dataset, self._plans, self.settings, self.device, self.ranks
        )
        if self.noise is not None:
            self._noise_report = self.noise.begin_fold(self.trainer, self.dataset.case_digests(), self._local_epochs)
        return self.trainer

    def has_lost_cache(self) -> bool:
        """Whether corrected files, or preprocessed images that the trainer works on, have been removed."""
        if self._dataset is not None and self._dataset.has_lost_corrections():
            return True
        if self.trainer is None:
            return False
        folder = Path(self.trainer.preprocessed_dataset_folder)
        return bool(missing_cases(folder, [case.identifier for case in self.dataset.cases()]))

    def cause_of(self, error: Exception) -> Exception:
        """``error``, or what has led to it: files that were removed in the middle of the run."""
        if isinstance(error, FednnUNetError) or self._dataset is None:
            return error
        cause: Exception = error
        try:
            self._dataset.check_present()
            if self.has_lost_cache():
                cause = CacheLostError()
        except DataError as missing:
            cause = missing
        if cause is not error:
            log.info("%s", cause, exc_info=error)
        return cause

    def evaluate(self) -> list[messages.Score]:
        """Score the fold's held-out cases with the trainer's network."""
        return evaluate.evaluate_fold(self._preprocessed(), self.dataset, self.settings)

    def evaluate_personal(self) -> list[messages.Score]:
        """Finish the model that is the node's own, if there is one, and score the fold's held-out cases with it."""
        if self._personal_models is None:
            return []
        model = self.personal or self._personal_models.fine_tuned(self._preprocessed())
        model.finish()
        return evaluate.evaluate_fold(model.trainer, self.dataset, self.settings, personal=True)

    def close_personal(self) -> None:
        """Leave the network that is trained beside the shared one."""
        if self.personal is not None:
            self.personal.close()
            self.personal = None

    def score_received(self, request: messages.ScoreModelsRequest) -> list[messages.Score]:
        """Score kept models on all cases of an external centre, else on the held-out ones; then delete the models.

        Raises:
            ProtocolError: a model was not sent before, or does not fit this node's task.
        """
        if self.settings.external:
            self.adopt(request.labels, request.channels)
        models = request.models
        chosen = [self.received.of(node, folds) for node, folds in models.items()]
        dataset = self.dataset
        if self.settings.external:
            scores = evaluate.score_models(chosen, dataset.cases(), dataset, self.settings, None)
        else:
            trainer = self._preprocessed()
            held_out = evaluate.held_out_cases(trainer, dataset)
            scores = evaluate.score_models(chosen, held_out, dataset, self.settings, trainer.fold)
        self.received.clear()
        return scores

    def final_model(self, fold: messages.Fold) -> tuple[nn.Module, list[int] | None]:
        """The network of a fold's ``checkpoint_final.pth``, and its axes of test-time mirroring.

        Raises:
            ProtocolError: the fold is not finished.
        """
        trainer = self._preprocessed()
        checkpoint = read_final(trainer, fold)
        network = self._network(trainer.plans_manager.plans)
        network.load_state_dict(checkpoint["network_weights"])
        axes = checkpoint["inference_allowed_mirroring_axes"]
        return network, None if axes is None else list(axes)

    @property
    def received(self) -> ReceivedModels:
        """Models of other nodes that are to score this node's cases."""
        return ReceivedModels(
            self.settings.folder / "received",
            self.config.configuration,
            self.dataset.raw.dataset_json,
            self._network,
            self.device,
            checked_later=self.settings.external and "union" in (self.config.task.labels, self.config.task.channels),
        )

    @cached_property
    def secure(self) -> SecureRounds | None:
        """The node's part in secure sums; None where layers travel as they are."""
        privacy, settings = self.config.privacy, self.settings
        if privacy.secure_sums is None or settings.external:
            return None
        training = self.config.trainer, privacy.case, privacy.node
        return SecureRounds(settings.name, settings.folder, privacy.secure_sums, settings.identity, training)

    @cached_property
    def noise(self) -> RoundNoise | None:
        """What hides the node's cases, or the node, in its rounds; None where nothing does."""
        case, node = self.config.privacy.case, self.config.privacy.node
        if case is not None:
            return CaseRounds(self.settings, case)
        return None if node is None else NodeRounds(self.settings, node)

    @cached_property
    def ranks(self) -> Ranks:
        """The node's other processes, where it trains on several devices; started when they are first needed."""
        return Ranks(self.settings, self.device)

    @property
    def dataset(self) -> NodeDataset:
        """The described dataset.

        Raises:
            ProtocolError: the node was not asked to describe it yet.
        """
        if self._dataset is None:
            raise ProtocolError("the node was not asked for its fingerprint before")
        return self._dataset

    def _preprocessed(self) -> nnUNetTrainer:
        if self.trainer is None:
            raise ProtocolError("the node was not asked to preprocess before")
        return self.trainer

    def _network(self, plans: dict[str, Any]) -> nn.Module:
        return prepare.planned_network(plans, self.dataset, self.settings)
