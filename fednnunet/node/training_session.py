"""Training at a node: the rounds of one fold, in one Lightning fit, and how it resumes after an interruption.

The first request to train starts Lightning's fit. From then on the federated callback waits between two epochs for
the next round, so the trainer is built once per fold. :meth:`TrainingSession.next_step` says of each request that
comes in the meantime whether it starts the next round, ends the fit, or has nothing to do with it. A fit is set aside
where another node needs the process; the next round goes on with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import SharedArrays
from fednnunet.exchange.channel import Request
from fednnunet.exchange.messages import (
    EvaluateReply,
    EvaluateRequest,
    Fold,
    Kind,
    Model,
    ScoreModelsRequest,
    SendModelRequest,
    TrainReply,
    TrainRequest,
)
from fednnunet.node.error_replies import failure_of
from fednnunet.node.fold_fit import FoldFit, NextStep, tensor_bytes
from fednnunet.node.layer_receiver import LayerReceiver
from fednnunet.node.layer_sender import LayerSender
from fednnunet.node.rounds import (
    OpenRound,
    check_round,
    check_steps,
    epochs_before,
    must_rewind,
    num_examples,
    round_reply,
    round_to_resume_from,
    save_with_round,
)
from fednnunet.node.settings import NodeSettings
from fednnunet.node.stages import NodeStages
from fednnunet.privacy.figures import FIGURE_NAMES
from fednnunet.training.checkpoint import (
    checkpoint_of,
    end_loaders,
    load_round,
    restore_random_state,
    save_final,
    save_round,
)
from fednnunet.training.devices import reset_peak_memory
from fednnunet.training.epochs import skip_epochs
from fednnunet.training.module import NNUNetModule
from fednnunet.training.network_state import as_tensors, check_state, load_state, trained_arrays
from fednnunet.training.pseudo_labels import pseudo_labels_of, remove_pseudo_labels

log = logging.getLogger(__name__)

TrainingRequest: TypeAlias = TrainRequest | EvaluateRequest | SendModelRequest | Model | ScoreModelsRequest
"""Requests of and after training."""


class TrainingSession:
    """Trains a node's folds one after another, round by round, as the server asks.

    Implements :class:`~fednnunet.training.callback.Rounds`.

    Args:
        settings: settings of the node.
        stages: stages of the node; its trainer is trained.
        wait_for_round: called between two rounds; answers requests until one calls :meth:`start_round` (START), ends
            the fit (STOP), or another node needs the process (SET_ASIDE).

    Attributes:
        layers: what is sent of the network.
    """

    def __init__(self, settings: NodeSettings, stages: NodeStages, wait_for_round: Callable[[], NextStep]) -> None:
        self.settings = settings
        self.stages = stages
        self.wait_for_round = wait_for_round
        self.layers = LayerSender()
        self._is_fitting = self._is_first_epoch = self._is_set_aside = False
        self.reset()

    def reset(self) -> None:
        """Forget all rounds: another fold or other plans, or the same fold from a checkpoint."""
        self._open: OpenRound | None = None
        self._finished_round = 0
        self._failed = False
        self._reply: TrainReply | None = None
        self._asked_for: list[str] = []
        self._evaluation: EvaluateReply | None = None
        self._random_state: dict[str, Any] | None = None
        self._waiting: FoldFit | None = None
        self.layers.reset()
        self._received = LayerReceiver()

    # requests ------------------------------------------------------------------------------------------

    def train(self, request: Request, body: TrainRequest) -> None:
        """Reply with the node's initial state (round 0), with a round again, or train from this round on.

        Raises:
            ProtocolError: no such round can be trained now.
        """
        trainer = self.switch_fold(body.fold)
        if self._failed or must_rewind(trainer, body, self._finished_round):
            trainer = self._restart_fold(trainer, body.trained)
        if body.server_round == 0:
            is_protected = self.stages.secure is not None or self.stages.noise is not None
            if is_protected and self._finished_round:
                raise ProtocolError("the initial layers were asked for after a round; trained ones are protected here")
            self._reply = TrainReply(fold=body.fold, server_round=0, num_examples=num_examples(trainer))
            self._send_reply(request, body)
            return
        self._resume_from(trainer, body)
        if self._reply is not None and body.server_round == self._reply.server_round:
            self._send_reply(request, body)
        elif body.server_round > self._finished_round:
            self._fit(trainer, request, body)
        else:
            raise ProtocolError(f"round {body.server_round} was asked for after round {self._finished_round}")

    def evaluate(self, body: EvaluateRequest, arrays: Mapping[str, np.ndarray]) -> EvaluateReply:
        """Finish the fold with the last aggregate: write the final checkpoint, score the held-out cases.

        Raises:
            ProtocolError: the fold is not at this round.
        """
        start = time.perf_counter()
        trainer = self.switch_fold(body.fold)
        if body.server_round == 0:
            raise ProtocolError("evaluation was asked for before training")
        if self._failed:  # in the middle of a round, whose steps are in the network and in no account
            trainer = self._restart_fold(trainer, body.trained)
        self._resume_from(trainer, body)
        if body.server_round < self._finished_round:
            done = f"the node has finished round {self._finished_round}"
            raise ProtocolError(f"evaluation after round {body.server_round} was asked for; {done}")
        if self._evaluation is None:
            arrays = self._received.decode(body, arrays)
            check_state(trainer.network, arrays)
            self._waiting = None
            load_state(trainer.network, arrays)
            skip_epochs(trainer, trainer.num_epochs)
            save_final(trainer)
            remove_pseudo_labels(trainer)
            cases, personal = self.stages.evaluate(), self.stages.evaluate_personal()
            self._evaluation = EvaluateReply(cases=cases, personal=personal, seconds=time.perf_counter() - start)
        return self._evaluation

    def next_step(self, body: TrainingRequest, arrays: Mapping[str, np.ndarray]) -> NextStep:
        """What a request means for the fit, which has finished a round and waits.

        Raises:
            ProtocolError: a later round that cannot be trained or replied to.
        """
        trainer = self._trainer
        if isinstance(body, EvaluateRequest):
            is_end = body.fold == trainer.fold and body.server_round >= self._finished_round
            return NextStep.STOP if is_end else NextStep.IGNORE
        if not isinstance(body, TrainRequest) or body.fold != trainer.fold:
            return NextStep.IGNORE  # final models are exchanged while the fit waits
        if body.server_round > self._finished_round:
            self._check_round(trainer, body, arrays)
            return NextStep.START
        return NextStep.STOP if must_rewind(trainer, body, self._finished_round) else NextStep.IGNORE

    @property
    def is_fitting(self) -> bool:
        """Whether a fit is running, which may wait between two rounds."""
        return self._is_fitting

    @property
    def num_bytes(self) -> int:
        """Main memory of what is trained and sent."""
        trainers = [self.stages.trainer, self.stages.personal and self.stages.personal.trainer]
        return sum(map(tensor_bytes, trainers)) + self.layers.num_bytes + self._received.num_bytes

    # folds and resume ----------------------------------------------------------------------------------

    @property
    def _trainer(self) -> nnUNetTrainer:
        if self.stages.trainer is None:
            raise ProtocolError("training was asked for before preprocessing")
        return self.stages.trainer

    def switch_fold(self, fold: Fold) -> nnUNetTrainer:
        """The trainer of ``fold``; folds follow each other, each from its own beginning."""
        trainer = self._trainer
        if trainer.fold == fold:
            return trainer
        if self._is_fitting or self._waiting is not None:
            raise ProtocolError(f"fold {fold} was asked for while fold {trainer.fold} is training")
        self.reset()
        if self.stages.secure is not None:
            self.stages.secure.start_fold()
        return self.stages.start_fold(fold)

    def _restart_fold(self, trainer: nnUNetTrainer, trained: int) -> nnUNetTrainer:
        """The trainer of the same fold as a worker that has just started has it."""
        why = "the last attempt failed" if self._failed else "the server goes back to it"
        log.warning("training goes on after round %d: %s", trained, why)
        end_loaders(trainer)
        self.reset()
        return self.stages.start_fold(trainer.fold)

    def _resume_from(self, trainer: nnUNetTrainer, body: TrainRequest | EvaluateRequest) -> None:
        """Where this worker has just started and the node has trained before: load the checkpoint of that round."""
        if self._finished_round or not body.trained:
            return
        last = round_to_resume_from(trainer, body)
        state = load_round(trainer, last)
        self.stages.ranks.load(checkpoint_of(trainer, last), trainer.current_epoch)
        self._finished_round = last
        self._reply, self._asked_for = TrainReply.model_validate(state["reply"]), state["layers"]
        self._random_state = state["random"]
        if self.stages.personal is not None:
            self.stages.personal.load(last)
        if isinstance(body, TrainRequest):
            self.layers.restore_round(trainer.network, body.layers, body.dtype, state["residuals"])

    # the fit -------------------------------------------------------------------------------------------

    def _fit(self, trainer: nnUNetTrainer, request: Request, body: TrainRequest) -> None:
        """Run Lightning's fit from this round on; returns when the rounds are over, or another node is to compute."""
        self._check_round(trainer, body, request.arrays)
        self.start_round(request, body)
        fit, self._waiting = self._waiting or self._build_fit(trainer), None
        self._is_fitting, self._is_set_aside = True, False
        try:
            fit.run()
        except Exception as error:
            open_round, self._open, self._failed = self._open, None, True
            if open_round is None or open_round.request is request:
                raise
            # A later round's request is open, not the one that started the fit.
            open_round.request.fail(failure_of(self.stages.cause_of(error), Kind.TRAIN, self.settings))
        finally:
            self._is_fitting = False
        if self._is_set_aside:
            fit.free_gradients()
            self._waiting = fit

    def _build_fit(self, trainer: nnUNetTrainer) -> FoldFit:
        """A fit from the next epoch on, with the random states that belong to it."""
        self.stages.ranks.fit(trainer.current_epoch, is_taught=self._open is not None and bool(self._open.arrays))
        trainer.on_train_start()
        if self._random_state is not None:
            restore_random_state(self._random_state)
        hidden = self.stages.noise.steps(trainer) if self.stages.noise is not None else None
        self._is_first_epoch = True
        return FoldFit(trainer, self, self.settings.config.compute, self.settings.folder, hidden)

    def _check_round(self, trainer: nnUNetTrainer, body: TrainRequest, arrays: Mapping[str, np.ndarray]) -> None:
        arrays = self._received.decode(body, arrays)
        check_round(trainer, body, arrays)
        check_steps(trainer, body, self.settings.config.privacy.least_steps)
        if self.stages.noise is not None:
            self.stages.noise.check_round(trainer, body, arrays)

    def start_round(self, request: Request, body: TrainRequest) -> None:
        """Train this round next; epochs of rounds that the node missed are skipped."""
        arrays = self._received.decode(body, request.arrays)
        if self.stages.secure is not None:
            self.stages.secure.start_round(body, arrays, self._finished_round)
        skip_epochs(self._trainer, epochs_before(body))
        self._open = OpenRound(request, body, body.epochs, arrays)

    def start_epoch(self, module: NNUNetModule) -> None:
        """Load what the server sent, where the epoch is the first of its round."""
        current = self._open
        assert current is not None
        is_new = current.loaded is None
        if is_new:
            current.started = time.perf_counter()
            reset_peak_memory(module.nnunet.device)
            load_state(module.network, current.arrays)
            current.loaded = time.perf_counter()
        is_taught = is_new and bool(current.arrays)
        if is_taught:  # before the node's other processes go on, which read what this one has labelled
            module.update_pseudo_labels()
        self.stages.ranks.start_epoch(module.network, module.nnunet.current_epoch, self._is_first_epoch, is_taught)
        if is_new:
            if self.stages.noise is not None:
                self.stages.noise.start_round(module.network, current.body)
            module.set_proximal_term(as_tensors(current.arrays), current.body.proximal_mu)
        save_with_round(module.nnunet, current)
        self._is_first_epoch = False

    def end_epoch(self, module: NNUNetModule) -> bool:
        """Reply after the last epoch of a round, and wait for the next round; False where none follows."""
        current, trainer = self._open, module.nnunet
        assert current is not None
        current.epochs_left -= 1
        if self.stages.personal is not None:
            epoch, taught_with = trainer.current_epoch - 1, pseudo_labels_of(trainer)
            self.stages.personal.train_epoch(epoch, current.arrays, taught_with)
        is_last = trainer.current_epoch >= trainer.num_epochs
        if current.epochs_left and not is_last:
            return True
        self._finish_round(trainer, current)
        if not is_last:
            step = self.wait_for_round()
            self._is_set_aside = step is NextStep.SET_ASIDE
            if step is not NextStep.STOP:
                return step is NextStep.START
        self.stages.ranks.end_fit()
        return False

    def _finish_round(self, trainer: nnUNetTrainer, current: OpenRound) -> None:
        """Save the round, then reply."""
        body = current.body
        assert current.loaded is not None
        self._reply = round_reply(trainer, body, time.perf_counter() - current.loaded, current.loaded - current.started)
        if self.stages.noise is not None:
            self._reply = self._reply.model_copy(update=dict.fromkeys(FIGURE_NAMES))  # no noise is on them
            self.stages.noise.finish_round(trainer, body)
        if self.stages.secure is not None:
            trained = trained_arrays(trainer.network, body.layers)
            self.stages.secure.end_round(body, current.arrays, trained)
        residuals = self.layers.finish_round(trainer.network, body.layers, body.dtype, current.arrays)
        beside = None if self.stages.personal is None else self.stages.personal.save(body.server_round)
        save_round(trainer, self._reply.model_dump(), residuals, body.layers, beside)
        self._asked_for = body.layers
        self._finished_round = body.server_round
        self._send_reply(current.request, body)
        self._open = None

    def _send_reply(self, request: Request, body: TrainRequest) -> None:
        """Send the stored reply with the layers asked for; layers that cannot be sent don't end the fit."""
        assert self._reply is not None
        start = time.perf_counter()
        try:
            reply, arrays = self._collect_layers(body, self._reply)
        except ProtocolError as error:
            request.fail(failure_of(error, Kind.TRAIN, self.settings))
            return
        seconds = self._reply.seconds_exchange + time.perf_counter() - start
        request.reply(reply.model_copy(update={"seconds_exchange": seconds}).model_dump_json(), arrays)

    def _collect_layers(self, body: TrainRequest, reply: TrainReply) -> tuple[TrainReply, SharedArrays | None]:
        """The reply as it leaves, and the layers asked for."""
        network, secure, noise = self._trainer.network, self.stages.secure, self.stages.noise
        if noise is not None and body.server_round:
            noise.check_layers(body.layers, self._asked_for)
        if secure is not None and body.server_round:
            return self.layers.masked(network, body, reply, secure)
        if not body.layers:
            return reply, None
        if body.server_round == 0 or body.dtype == "float32":
            return reply, self.layers.plain(network, body.layers)
        return reply, self.layers.rounded(network, body.layers, body.dtype)
