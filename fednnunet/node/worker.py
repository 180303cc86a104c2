"""The node worker: one long-lived process a node, which answers the server's messages.

It serves one request at a time, in the main thread. The first request to train starts Lightning's fit; from
then on the federated callback is who waits for the next request, between two epochs, so the trainer is built
once and lives for all rounds. A request that is repeated gets the reply of before; a relay that dies does not
harm the worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from pydantic import BaseModel

from fednnunet.audit.log import AUDIT_LOG, AuditLog
from fednnunet.errors import ConfigError, DataError, FednnUNetError, ProtocolError
from fednnunet.exchange.arrays import SharedArrays
from fednnunet.exchange.channel import Request, WorkerChannel
from fednnunet.exchange.messages import (
    REQUESTS,
    Body,
    EvaluateReply,
    EvaluateRequest,
    ExchangeDtype,
    Failure,
    FingerprintRequest,
    Fold,
    Kind,
    TrainReply,
    TrainRequest,
    parse_body,
)
from fednnunet.node.layer_sender import Outgoing
from fednnunet.node.process_setup import set_up_process
from fednnunet.node.request_history import RequestHistory
from fednnunet.node.resource_errors import explain_out_of_memory, lack_of_disk
from fednnunet.node.settings import NodeSettings
from fednnunet.node.stages import NodeStages
from fednnunet.training.callback import FederatedCallback
from fednnunet.training.checkpoint import (
    checkpoint_of,
    end_loaders,
    finished_rounds,
    load_round,
    restore_random_state,
    save_final,
    save_round,
)
from fednnunet.training.data import NNUNetDataModule
from fednnunet.training.epochs import skip_epochs
from fednnunet.training.module import NNUNetModule
from fednnunet.training.network_state import check_state, load_state, state_spec
from fednnunet.training.trainer import build_lightning_trainer

log = logging.getLogger(__name__)


class NodeWorker:
    """Answers requests of the channel until it is closed.

    Args:
        settings: of the node.
        channel: where requests come from.
        on_other_run: is given a request that belongs to another run than the worker was started for, and does not
            return.
    """

    def __init__(
        self,
        settings: NodeSettings,
        channel: WorkerChannel,
        on_other_run: Callable[[FingerprintRequest], NoReturn] | None = None,
    ) -> None:
        self.settings = settings
        self.channel = channel
        self.on_other_run = on_other_run
        self.asked = RequestHistory(settings.folder / "asked.json")
        self.done: dict[Kind, tuple[Body, BaseModel]] = {}
        self.stages = NodeStages(settings)
        self.outgoing = Outgoing()
        self.waiting: tuple[Request, TrainRequest] | None = None
        self.deferred: Request | None = None
        self.begun = 0.0
        self.loaded = 0.0
        self.reply: TrainReply | None = None
        self.evaluation: EvaluateReply | None = None
        self.random_state: dict[str, Any] | None = None
        self.fitting = self.first_epoch = self.new_round = self.spoilt = False
        self.finished_round = 0
        self.epochs_left = 0

    def serve(self) -> None:
        """Answer requests for ever; the process ends by signal or with its parent."""
        while True:
            request = self.deferred or self.channel.receive()
            self.deferred = None
            if request is not None:
                self.answer(request)

    def answer(self, request: Request) -> None:
        """Do what ``request`` asks; every error becomes a reply."""
        try:
            body = parse_body(REQUESTS[request.kind], request.body, "the server")
            if isinstance(body, FingerprintRequest) and body.run != self.settings.run and self.on_other_run is not None:
                self.on_other_run(body)
            for kind, before in self.asked.before(request.kind):
                log.warning("%s is done again: this worker has just started", kind)
                self._stage(kind, before)
            if isinstance(body, TrainRequest):
                self._train(request, body)
            elif isinstance(body, EvaluateRequest):
                self._evaluate(request, body)
            else:
                _reply(request, self._stage(request.kind, body))
        except Exception as error:  # noqa: BLE001  whatever it is, the server learns of it and the worker lives on
            request.fail(self._failure(request.kind, error))

    def _stage(self, kind: Kind, body: Body) -> BaseModel:
        stages: dict[Kind, Callable[[Any], BaseModel]] = {
            Kind.FINGERPRINT: self.stages.describe,
            Kind.PLAN: self.stages.plan,
            Kind.PREPROCESS: self.stages.preprocess,
        }
        if self._is_done(kind, body):  # the server was started again; networks and rounds stay as they are
            return self.done[kind][1]
        if kind is not Kind.FINGERPRINT:  # other plans, or a new trainer: nothing of before is left
            self.done.pop(Kind.PREPROCESS, None)
            self.stages.trainer = None
            self._reset_rounds()
        reply = stages[kind](body)
        self.done[kind] = body, reply
        self.asked.done(kind, body)
        return reply

    def _is_done(self, kind: Kind, body: Body) -> bool:
        """Whether the same was asked before, and the reply is still true; a fingerprint tells of rounds, too."""
        return kind in (Kind.PLAN, Kind.PREPROCESS) and kind in self.done and self.done[kind][0] == body

    def _failure(self, kind: Kind, error: Exception) -> Failure:
        """Log ``error`` here in full, and put into one line what the server may know."""
        name = self.settings.name
        if isinstance(error, FednnUNetError):
            log.error("%s: %s", kind, error)
            return Failure(reason=f"node {name}: {self._public(error)}", error=_error_kind(error))
        log.exception("%s failed", kind, exc_info=error)
        if lack_of_disk(error):
            return Failure(reason=f"node {name}: its disk is full; make room there", error="unavailable")
        lack = explain_out_of_memory(error, name, self.settings.config)
        if lack is not None:
            return Failure(reason=f"node {name}: {lack}", error="config")
        reason = self._public(f"internal error in {kind}: {type(error).__name__}: {error}")
        return Failure(reason=f"node {name}: {reason}", error="internal")

    def _public(self, problem: FednnUNetError | str) -> str:
        """What may leave the node: texts on data can name cases and files."""
        if self.settings.same_machine or isinstance(problem, ConfigError | ProtocolError):
            return str(problem)
        return "the data or the software of the node; its own log tells the file and the cause"

    # training ------------------------------------------------------------------------------------------

    def _train(self, request: Request, body: TrainRequest) -> None:
        trainer = self._switch_fold(body.fold)
        if body.server_round == 0:
            self.reply = TrainReply(fold=body.fold, server_round=0, num_examples=self._num_examples())
            self._send_reply(request, body)
            return
        if self.spoilt or self._must_rewind(trainer, body):
            trainer = self._restart_fold(trainer)
        self._resume_from(trainer, body)
        if self.reply is not None and body.server_round == self.reply.server_round:
            self._send_reply(request, body)
        elif body.server_round > self.finished_round:
            self._fit(request, body)
        else:
            raise ProtocolError(f"round {body.server_round} was asked for after round {self.finished_round}")

    def _must_rewind(self, trainer: nnUNetTrainer, body: TrainRequest) -> bool:
        """Whether the server has lost rounds that this node has finished, and the node can go on from before them."""
        return body.server_round < self.finished_round and body.trained in finished_rounds(Path(trainer.output_folder))

    def _restart_fold(self, trainer: nnUNetTrainer) -> nnUNetTrainer:
        """The fold as a worker that has just started has it."""
        log.warning("round %d is %s", self.finished_round + 1, "begun again" if self.spoilt else "trained again")
        end_loaders(trainer)
        self._reset_rounds()
        return self.stages.begin_fold(trainer.fold)

    def _reset_rounds(self) -> None:
        self.reply = self.evaluation = self.random_state = None
        self.finished_round, self.spoilt = 0, False
        self.outgoing.begin_fold()

    def _resume_from(self, trainer: nnUNetTrainer, body: TrainRequest | EvaluateRequest) -> None:
        """Where this worker has just started and the node has trained before: load the checkpoint of that round."""
        if self.finished_round or not body.trained:
            return
        last = self._round_to_go_on_from(trainer, body)
        state = load_round(trainer, last)
        self.stages.ranks.load(checkpoint_of(trainer, last), trainer.current_epoch)
        self.finished_round = last
        self.reply = TrainReply.model_validate(state["reply"])
        self.random_state = state["random"]
        if isinstance(body, TrainRequest):
            self.outgoing.restore_round(trainer.network, body.layers, body.dtype, state["residuals"])

    def _round_to_go_on_from(self, trainer: nnUNetTrainer, body: TrainRequest | EvaluateRequest) -> int:
        """The last round that counted; the last before this one, if later ones came too late to count."""
        rounds = finished_rounds(Path(trainer.output_folder))
        if body.trained not in rounds and body.trained < body.server_round:
            return max((done for done in rounds if body.trained < done < body.server_round), default=body.trained)
        return body.trained

    def _switch_fold(self, fold: Fold) -> nnUNetTrainer:
        """The trainer of ``fold``; folds follow each other, each from its own beginning."""
        trainer = self.stages.trainer
        if trainer is None:
            raise ProtocolError("training was asked for before preprocessing")
        if trainer.fold == fold:
            return trainer
        if self.fitting:
            raise ProtocolError(f"fold {fold} was asked for while fold {trainer.fold} is training")
        self._reset_rounds()
        return self.stages.begin_fold(fold)

    def _fit(self, request: Request, body: TrainRequest) -> None:
        """Run Lightning's fit, from this round to the last; returns when the rounds are over."""
        trainer = self.stages.trainer
        assert trainer is not None
        self._check_round(request, body)
        self._start_round(request, body)
        self.stages.ranks.fit(trainer.current_epoch)
        trainer.on_train_start()
        if self.random_state is not None:
            restore_random_state(self.random_state)
        module = NNUNetModule(trainer)
        lightning_trainer = build_lightning_trainer(
            module, self.settings.config.compute, [FederatedCallback(self)], self.settings.folder
        )
        self.fitting = self.first_epoch = True
        try:
            lightning_trainer.fit(module, datamodule=NNUNetDataModule(trainer))
        except Exception as error:
            open_request = self.waiting[0] if self.waiting is not None else None
            self.waiting, self.spoilt = None, True
            if open_request is None or open_request is request:
                raise
            # A later round's request is open, not the one that began the fit.
            open_request.fail(self._failure(Kind.TRAIN, error))
        finally:
            self.fitting = False

    def _start_round(self, request: Request, body: TrainRequest) -> None:
        """This round is next; those before it that the node was not in are over."""
        trainer = self.stages.trainer
        assert trainer is not None
        skip_epochs(trainer, _epochs_before(body))
        self.waiting, self.epochs_left, self.new_round = (request, body), body.epochs, True

    def begin(self, module: NNUNetModule) -> None:
        """:class:`~fednnunet.training.callback.Rounds`: load what the server sent, at the start of a round."""
        assert self.waiting is not None
        request, body = self.waiting
        if self.new_round:
            self.begun = time.perf_counter()
            load_state(module.network, request.arrays)
        self.stages.ranks.begin_epoch(module.network, module.nnunet.current_epoch, self.first_epoch)
        if self.new_round:
            module.set_proximal_term(request.arrays, body.proximal_mu)
            self.loaded = time.perf_counter()
        self.first_epoch = self.new_round = False

    def end(self, module: NNUNetModule) -> bool:
        """:class:`~fednnunet.training.callback.Rounds`: reply after a round's last epoch, wait for the next round."""
        assert self.waiting is not None
        request, body = self.waiting
        self.epochs_left -= 1
        more = module.nnunet.current_epoch < module.nnunet.num_epochs
        if more and self.epochs_left:
            return True
        trained = time.perf_counter()
        logger = module.nnunet.logger
        self.reply = TrainReply(
            fold=body.fold,
            server_round=body.server_round,
            num_examples=self._num_examples(),
            train_loss=_finite(logger.get_value("train_losses", step=-1)),
            val_loss=_finite(logger.get_value("val_losses", step=-1)),
            pseudo_dice=_finite(logger.get_value("mean_fg_dice", step=-1)),
            learning_rate=_finite(logger.get_value("lrs", step=-1)),
            seconds_train=trained - self.loaded,
            seconds_exchange=self.loaded - self.begun,
        )
        residuals = self.outgoing.finish_round(module.nnunet.network, body.layers, body.dtype)
        save_round(module.nnunet, self.reply.model_dump(), residuals)
        self.finished_round = body.server_round
        self._send_reply(request, body)
        self.waiting = None
        if not more:
            self.stages.ranks.end_fit()
            return False
        while True:
            following = self.channel.receive()
            if following is None:
                continue
            asked = self._next_round(following, body.fold)
            if isinstance(asked, TrainRequest) and asked.server_round > self.finished_round:
                self._start_round(following, asked)
                return True
            if asked is not None:  # the rounds are over without this node, or an earlier one comes; after the fit
                self.deferred = following
                self.stages.ranks.end_fit()
                return False

    def _next_round(self, request: Request, fold: Fold) -> Body | None:
        """The body of a request to train a later round, or that ends the fit; any other request is answered here."""
        try:
            body = parse_body(REQUESTS[request.kind], request.body, "the server")
            if request.kind in (Kind.PLAN, Kind.PREPROCESS) and not self._is_done(request.kind, body):
                return body
            if isinstance(body, TrainRequest | EvaluateRequest):
                ahead = body.server_round - self.finished_round if body.fold == fold else -1
                if isinstance(body, EvaluateRequest) and ahead >= 0 and body.of_own_model:
                    return body
                if isinstance(body, TrainRequest) and ahead > 0:
                    self._check_round(request, body)
                    return body
                trainer = self.stages.trainer
                if (
                    isinstance(body, TrainRequest)
                    and body.fold == fold
                    and trainer
                    and self._must_rewind(trainer, body)
                ):
                    return body
        except ProtocolError as error:
            request.fail(self._failure(request.kind, error))
            return None
        self.answer(request)
        return None

    def _check_round(self, request: Request, body: TrainRequest) -> None:
        """Refuse what cannot be loaded or sent before the epoch starts, not after it."""
        trainer = self.stages.trainer
        assert trainer is not None
        if _epochs_before(body) >= trainer.num_epochs:
            raise ProtocolError(f"round {body.server_round} was asked for; there are {trainer.num_epochs} epochs")
        check_state(trainer.network, request.arrays)
        state_spec(trainer.network, body.layers)

    def _send_reply(self, request: Request, body: TrainRequest) -> None:
        """Send the stored reply with the layers asked for; layers that cannot be sent don't end the fit."""
        assert self.reply is not None
        start = time.perf_counter()
        try:
            arrays = self._collect_layers(body.layers, body.dtype if body.server_round else "float32")
        except ProtocolError as error:
            request.fail(self._failure(request.kind, error))
            return
        spent = self.reply.seconds_exchange + time.perf_counter() - start
        _reply(request, self.reply.model_copy(update={"seconds_exchange": spent}), arrays)

    def _collect_layers(self, layers: list[str], dtype: ExchangeDtype) -> SharedArrays | None:
        if not layers:
            return None
        trainer = self.stages.trainer
        assert trainer is not None
        if dtype == "float32":
            return self.outgoing.plain(trainer.network, layers)
        return self.outgoing.rounded(trainer.network, layers, dtype)

    def _num_examples(self) -> int:
        trainer = self.stages.trainer
        assert trainer is not None
        return len(trainer.do_split()[0])

    # evaluation ----------------------------------------------------------------------------------------

    def _evaluate(self, request: Request, body: EvaluateRequest) -> None:
        start = time.perf_counter()
        if not body.of_own_model:
            told, arrays = self._of_other_models(request, body)
            _reply(request, EvaluateReply(**told, seconds=time.perf_counter() - start), arrays)
            return
        trainer = self._switch_fold(body.fold)
        if body.server_round == 0:
            raise ProtocolError("evaluation was asked for before training")
        self._resume_from(trainer, body)
        if body.server_round < self.finished_round:
            raise ProtocolError(
                f"evaluation after round {body.server_round} was asked for; "
                f"the node has {self.finished_round} behind it"
            )
        if self.evaluation is None:
            check_state(trainer.network, request.arrays)
            load_state(trainer.network, request.arrays)
            skip_epochs(trainer, trainer.num_epochs)
            save_final(trainer)
            cases = self.stages.evaluate()
            self.evaluation = EvaluateReply(cases=cases, seconds=time.perf_counter() - start)
        _reply(request, self.evaluation)

    def _of_other_models(self, request: Request, body: EvaluateRequest) -> tuple[dict[str, Any], SharedArrays | None]:
        """Keep another node's model, score with those kept, or send a final one: fields and arrays of the reply."""
        if body.keep is not None:
            self.stages.received.keep(body.keep, request.arrays)
            return {}, None
        if body.score:
            return {"cases": self.stages.score_received(body.score)}, None
        network, axes = self.stages.final_model(body.fold)
        return {"mirror_axes": axes}, self.outgoing.plain(network, body.layers)


def _epochs_before(body: TrainRequest) -> int:
    """Epochs that are over when its round begins."""
    return (body.server_round - 1) * body.epochs


def run_node_worker(settings: NodeSettings, address: str, key: bytes, ready: Callable[[], None] = lambda: None) -> None:
    """Process entry: quiet, own log file, ends with its parent.

    Args:
        settings: of the node.
        address: of the socket to listen at.
        key: shared with the relay.
        ready: called when the worker listens.
    """
    set_up_process(settings.folder / "node.log", settings.threads)
    channel = WorkerChannel(address, key, AuditLog(settings.folder / AUDIT_LOG, settings.name).record)
    worker = NodeWorker(settings, channel)
    ready()
    worker.serve()


def _reply(request: Request, body: BaseModel, arrays: SharedArrays | None = None) -> None:
    if not request.reply(body.model_dump_json(), arrays):
        log.warning("the relay of %s went away before the reply; it can ask again", request.kind)


def _finite(value: float) -> float | None:
    number = float(value)
    return number if number == number and abs(number) != float("inf") else None


def _error_kind(error: FednnUNetError) -> Literal["data", "config", "protocol"]:
    if isinstance(error, DataError):
        return "data"
    return "config" if isinstance(error, ConfigError) else "protocol"
