"""The node worker: answers the server's messages for one node, in a long-lived process.

It serves one request at a time, in the main thread; while a fold trains, it does so between two rounds. A request
that is repeated gets the same reply again; a relay that dies does not harm the worker. Nodes may share the process
(:mod:`~fednnunet.node.shared_worker`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NoReturn

from pydantic import BaseModel

from fednnunet.errors import FednnUNetError, ProtocolError
from fednnunet.exchange.arrays import SharedArrays
from fednnunet.exchange.channel import Request
from fednnunet.exchange.messages import (
    REQUESTS,
    Body,
    EvaluateReply,
    EvaluateRequest,
    FingerprintRequest,
    KeepModelReply,
    Kind,
    Model,
    ScoreModelsRequest,
    SendModelReply,
    SendModelRequest,
    TrainRequest,
    UnmaskRequest,
    parse_body,
)
from fednnunet.node.error_replies import failure_of
from fednnunet.node.fold_fit import NextStep
from fednnunet.node.request_history import RequestHistory
from fednnunet.node.secure_rounds import SecureRounds
from fednnunet.node.settings import NodeSettings
from fednnunet.node.stages import NodeStages
from fednnunet.node.training_session import TrainingRequest, TrainingSession
from fednnunet.training.checkpoint import end_loaders

log = logging.getLogger(__name__)

NEEDS_CACHE = (TrainRequest, EvaluateRequest, ScoreModelsRequest)
"""Requests that are answered from preprocessed images."""
BASE_BYTES = 4 * 2**20
"""Memory of a node's objects beside its tensors: description, plans, loaders (a generous guess)."""


class NodeWorker:
    """Answers requests for a node.

    Args:
        settings: settings of the node.
        receive: waits for the node's next request; None where the process is needed for another node.
        on_other_run: is given a request that belongs to another run than the worker was started for, and does not
            return.
    """

    def __init__(
        self,
        settings: NodeSettings,
        receive: Callable[[], Request | None],
        on_other_run: Callable[[FingerprintRequest], NoReturn] | None = None,
    ) -> None:
        self.settings = settings
        self.receive = receive
        self.on_other_run = on_other_run
        self.history = RequestHistory(settings.folder / "requests.json")
        self.stages = NodeStages(settings)
        self.training = TrainingSession(settings, self.stages, self._wait_for_round)
        self._done: dict[Kind, tuple[Body, BaseModel]] = {}
        self._deferred_request: Request | None = None

    def serve(self, first: Request | None = None) -> NoReturn:
        """Answer requests for ever, ``first`` before others; the process ends by signal or with its parent."""
        while True:
            request = first or self.receive()
            first = None
            if request is not None:
                self.answer(request)

    def answer(self, request: Request) -> None:
        """Answer a request, and those that follow it while a fit waits."""
        self._deferred_request = request
        while self._deferred_request is not None:
            request, self._deferred_request = self._deferred_request, None
            self._answer(request)

    @property
    def num_bytes(self) -> int:
        """Main memory that the node holds."""
        return BASE_BYTES + self.training.num_bytes

    def close(self) -> None:
        """End what runs beside the process, and free shared memory: the node goes on in another worker."""
        if self.stages.trainer is not None:
            end_loaders(self.stages.trainer)
        self.stages.close_personal()
        self.training.layers.close()

    def _wait_for_round(self) -> NextStep:
        """Answer requests until one starts the next round, or the fit is to end, for good or for another node."""
        while True:
            request = self.receive()
            if request is None:
                return NextStep.SET_ASIDE
            try:
                body = parse_body(REQUESTS[request.kind], request.body, "the server")
                step = self._next_step(request, body)
                if step is NextStep.START:
                    assert isinstance(body, TrainRequest)
                    self.training.start_round(request, body)
                    return step
            except FednnUNetError as error:
                request.fail(failure_of(error, request.kind, self.settings))
                continue
            if step is NextStep.STOP:
                self._deferred_request = request
                return step
            self._answer(request)

    def _next_step(self, request: Request, body: Body) -> NextStep:
        if isinstance(body, TrainingRequest):
            step = self.training.next_step(body, request.arrays)
            # Images that were removed from the cache are made again after the fit.
            return NextStep.STOP if step is NextStep.START and self.stages.has_lost_cache() else step
        if request.kind in (Kind.FINGERPRINT, Kind.UNMASK) or self._is_done(request.kind, body):
            return NextStep.IGNORE
        return NextStep.STOP

    def _answer(self, request: Request) -> None:
        """Do what ``request`` asks; every error becomes a reply."""
        try:
            body = parse_body(REQUESTS[request.kind], request.body, "the server")
            if isinstance(body, FingerprintRequest) and body.run != self.settings.run and self.on_other_run is not None:
                self.on_other_run(body)
            if isinstance(body, NEEDS_CACHE) and not self.training.is_fitting and self.stages.has_lost_cache():
                self._forget_preprocessing()
            for kind, earlier in self.history.missed_before(request.kind):
                log.warning("%s is done again: this worker has just started, or what was made is gone", kind)
                self._run_stage(kind, earlier)
            if isinstance(body, TrainRequest):
                self.training.train(request, body)
            elif isinstance(body, EvaluateRequest):
                request.reply(self.training.evaluate(body, request.arrays).model_dump_json())
            elif isinstance(body, UnmaskRequest):
                request.reply(self._secure_rounds().unmask(body).model_dump_json())
            elif isinstance(body, SendModelRequest | Model | ScoreModelsRequest):
                reply, arrays = self._exchange_models(request, body)
                request.reply(reply.model_dump_json(), arrays)
            else:
                request.reply(self._run_stage(request.kind, body).model_dump_json())
        except Exception as error:  # noqa: BLE001  whatever it is, the server gets to know it and the worker continues
            request.fail(failure_of(self.stages.cause_of(error), request.kind, self.settings))

    def _forget_preprocessing(self) -> None:
        """Let it be done again; training goes on from its checkpoint, as in a worker that has just started."""
        log.warning("preprocessed images were removed from %s; they are made again", self.settings.config.paths.cache)
        self.stages.read_dataset()
        self._done.pop(Kind.PREPROCESS, None)
        self.history.forget(Kind.PREPROCESS)

    def _run_stage(self, kind: Kind, body: Body) -> BaseModel:
        stages: dict[Kind, Callable[[Any], BaseModel]] = {
            Kind.FINGERPRINT: self.stages.describe,
            Kind.PLAN: self.stages.plan,
            Kind.PREPROCESS: self.stages.preprocess,
        }
        if self._is_done(kind, body):  # the server was started again; networks and rounds stay as they are
            return self._done[kind][1]
        if kind is not Kind.FINGERPRINT:  # other plans, or a new trainer: nothing of the earlier ones is left
            self._done.pop(Kind.PREPROCESS, None)
            self.stages.trainer = None
            self.stages.close_personal()
            self.training.reset()
        reply = stages[kind](body)
        self._done[kind] = body, reply
        self.history.record(kind, body)
        return reply

    def _is_done(self, kind: Kind, body: Body) -> bool:
        """Whether the same was asked before and the reply still holds; a fingerprint's reply also lists rounds."""
        return kind in (Kind.PLAN, Kind.PREPROCESS) and kind in self._done and self._done[kind][0] == body

    def _secure_rounds(self) -> SecureRounds:
        if self.stages.secure is None:
            raise ProtocolError("the server asks to open secure sums, which are off here (privacy.secure_sums)")
        return self.stages.secure

    def _exchange_models(
        self, request: Request, body: SendModelRequest | Model | ScoreModelsRequest
    ) -> tuple[Body, SharedArrays | None]:
        """Send a final model, keep another node's, or score with those kept."""
        start = time.perf_counter()
        if isinstance(body, SendModelRequest):
            if body.layers and (self.stages.secure is not None or self.settings.config.privacy.node is not None):
                raise ProtocolError("the server asks for the model of a node, which stays there (group privacy)")
            network, axes = self.stages.final_model(body.fold)
            arrays = self.training.layers.plain(network, body.layers) if body.layers else None
            return SendModelReply(mirror_axes=axes, seconds=time.perf_counter() - start), arrays
        if isinstance(body, Model):
            self.stages.received.keep(body, request.arrays)
            return KeepModelReply(seconds=time.perf_counter() - start), None
        if not self.settings.external:  # a worker that has just started has the trainer of the first fold
            self.training.switch_fold(body.fold)
        cases = self.stages.score_received(body)
        return EvaluateReply(cases=cases, seconds=time.perf_counter() - start), None
