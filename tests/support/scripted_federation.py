"""A federation whose nodes follow a script: the main level at which the server's behaviour is tested.

The whole server app, over the local grid, the real relay, real sockets and shared memory. Only what the worker of
a node computes is made up: its layers after a round are those it received, plus a step of known length. A run of
three rounds takes some hundredths of a second.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  makes bfloat16 a dtype of numpy
import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fednnunet.client_app import relay
from fednnunet.exchange.arrays import Layout, SharedArrays
from fednnunet.exchange.channel import Request, WorkerChannel
from fednnunet.exchange.messages import (
    ENSEMBLE,
    REQUESTS,
    CaseScore,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FingerprintReply,
    FingerprintRequest,
    Fold,
    KeepModelReply,
    Kind,
    Model,
    PlanReply,
    PlanRequest,
    PreprocessReply,
    PreprocessRequest,
    ScoreModelsRequest,
    SendModelReply,
    SendModelRequest,
    TrainReply,
    TrainRequest,
)
from fednnunet.exchange.quantisation import decode_step, digest, encode_step, is_quantised
from fednnunet.fingerprint.bins import IntensityBins
from fednnunet.fingerprint.geometry import CaseSizes, count_below
from fednnunet.fingerprint.schema import ChannelIntensities, DatasetFingerprint
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.server_app import build_server_app
from fednnunet.server.session import ServerSettings
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.base import Strategy
from tests.support.recording_observer import RecordingObserver

KEY = b"k" * 32
CASES = 5
ROUNDS = 3
LAYERS = {"encoder": [4, 3], "head": [5]}
STEPS = {"Riga": 0.10, "Porto": 0.12, "Turku": 0.09}
"""Length of a node's step in a round, relative to the norm of the weights it received."""
OTHER_STEP = 0.1
SAMPLES = np.array([10, 11, 11, 13])
"""Foreground intensities of every case."""

State = dict[str, np.ndarray]


def norm(state: Mapping[str, np.ndarray]) -> float:
    """Euclidean norm of all layers together."""
    return float(np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in state.values())))


def same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    """Whether two states have the same layers and values."""
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


SPACING = [3.0, 1.0, 1.0]
SHAPE = [8, 64, 64]
"""Of every case: mm, and voxels."""


def fingerprint_of(
    channels: Mapping[str, IntensityBins], cases: int, shift: Mapping[str, int] | None = None
) -> DatasetFingerprint:
    """Fingerprint of so many cases with the foreground intensities :data:`SAMPLES`, in a channel more by its shift."""
    intensities = {}
    for channel, bins in channels.items():
        samples = SAMPLES + (shift or {}).get(channel, 0)
        intensities[channel] = ChannelIntensities(
            count=samples.size * cases,
            mean=float(samples.mean()),
            squared_deviations=float(samples.var() * samples.size * cases),
            low=samples.min(),
            high=samples.max(),
            bins=bins,
            histogram=(cases * np.bincount(bins.index(samples), minlength=bins.number)).tolist(),
        )
    return DatasetFingerprint(
        spacings=[SPACING] * cases,
        shapes_after_crop=[SHAPE] * cases,
        relative_sizes=[1.0] * cases,
        intensities=intensities,
    )


# faults ------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What a worker is about to send; a fault changes it."""

    body: dict[str, Any]
    arrays: State = field(default_factory=dict)
    received: Mapping[str, np.ndarray] = field(default_factory=dict)
    text: str | None = None
    layout: Callable[[Layout], Layout] = lambda layout: layout

    def send(self, request: Request) -> None:
        """Reply to ``request``."""
        shared = SharedArrays.allocate({name: (array.shape, array.dtype) for name, array in self.arrays.items()})
        for name, view in shared.views().items():
            view[...] = self.arrays[name]
        shared.layout = self.layout(shared.layout)
        text = json.dumps(self.body) if self.text is None else self.text
        request.reply(text, shared if self.arrays else None)


class WorkerGone(Exception):
    """The worker ends without a reply, as after ``kill -9``."""


class WorkerLacksReference(Exception):
    """The worker does not have what steps start from."""


class WorkerFails(Exception):
    """The worker replies with a failure; the exception's text is the reason."""


def end_worker(_: Answer) -> None:
    """Fault: the worker is killed, and does not come back."""
    raise WorkerGone


def fail_with_reason(reason: str) -> Callable[[Answer], None]:
    """Fault: the worker cannot do what it is asked."""

    def fail(_: Answer) -> None:
        raise WorkerFails(reason)

    return fail


@dataclass(frozen=True)
class Fault:
    """What a node does wrong, and how the operator reads of it.

    Attributes:
        problem: Part of the message to the operator.
        worker: Changes what the node's worker sends.
        wire: Changes what the node's relay hands to the grid.
        kind: Kind of the message that it shows in.
        of: Round (``2``, or ``1/2`` for round 2 of fold 1, or ``every``), or requested content of a fingerprint.
    """

    problem: str
    worker: Callable[[Answer], object] | None = None
    wire: Callable[[Message], object] | None = None
    kind: Kind = Kind.TRAIN
    of: str = "2"

    def applies_to(self, kind: Kind, body: Any) -> bool:
        """Whether it shows in the reply to this request."""
        if kind in (Kind.TRAIN, Kind.UNMASK):
            rounds = ("every", str(body.server_round), f"{body.fold}/{body.server_round}")
            return self.kind == kind and self.of in rounds
        if kind == Kind.FINGERPRINT:
            return self.kind == kind and self.of == body.content
        return self.kind == kind


# nodes -------------------------------------------------------------------------------------------------


class ScriptedNode:
    """Answers as a good node would, and keeps what it received and sent.

    Args:
        name: Name of the node.
        layers: Layer to shape of its network.
        cases: Number of training cases; 0 for an external centre.
        epochs: Epochs of a fold.
        plans: Plans of its network.
        heads: Those of its layers whose first axis are classes, where it is told of labels.
        shift: Channel number to what its foreground intensities are more than :data:`SAMPLES`.
        labellings: How often its training cases get pseudo-labels.
        introduction: Other fields of its :class:`FingerprintReply`.

    Attributes:
        fault: What it does wrong.
        requests: Bodies of all requests, in order.
        received: Fold and round to the layers that it received; the round after the last is evaluation.
        sent: Fold and round to its layers after training.
        final: Fold to the model that it scored.
        kept: Node to fold to the model of that node that it was sent to score.
        steps: Fold and round to the names of layers that it received as steps.
        restarted_before: Rounds before which its worker is restarted: it has its checkpoints, and no reference.
    """

    def __init__(
        self,
        name: str,
        layers: Mapping[str, Sequence[int]] = LAYERS,
        cases: int = CASES,
        epochs: int = ROUNDS,
        plans: Mapping[str, Any] | None = None,
        heads: Sequence[str] = (),
        shift: Mapping[str, int] | None = None,
        labellings: float | None = None,
        **introduction: Any,
    ) -> None:
        self.name, self.layers, self.cases, self.epochs = name, layers, cases, epochs
        self.plans = {"dataset_name": name, **(plans or {})}
        self.heads = list(heads)
        self.shift = shift or {"0": 0}
        self.labellings = labellings
        self.introduction = introduction
        self.fault: Fault | None = None
        self.requests: list[Any] = []
        self.received: dict[tuple[Fold, int], State] = {}
        self.sent: dict[tuple[Fold, int], State] = {}
        self.final: dict[Fold, State] = {}
        self.kept: dict[str, dict[Fold, State]] = {}
        self.steps: dict[tuple[Fold, int], list[str]] = {}
        self.restarted_before: set[int] = set()
        self._reference: State = {}
        self._replied: dict[tuple[Fold, int], State] = {}
        self._left: dict[tuple[Fold, int], State] = {}

    @property
    def external(self) -> bool:
        """Whether it only tests."""
        return not self.cases

    @property
    def initial(self) -> State:
        """The values its network starts from where it receives none."""
        rng = np.random.default_rng([*self.name.encode()])
        return {layer: rng.standard_normal(shape).astype(np.float32) for layer, shape in self.layers.items()}

    def requests_of(self, kind: Kind) -> list[Any]:
        """Bodies of one kind that it received, in order."""
        return [body for body in self.requests if isinstance(body, REQUESTS[kind])]

    def serve(self, channel: WorkerChannel) -> None:
        """Answer until the channel is closed."""
        with contextlib.suppress(ConnectionError):  # the test is over
            while (request := channel.receive()) is not None:
                body: Any = REQUESTS[request.kind].model_validate_json(request.body)
                self.requests.append(body)
                try:
                    answer = self.answer(body, request)
                    if self.fault is not None and self.fault.worker and self.fault.applies_to(request.kind, body):
                        self.fault.worker(answer)
                    answer.send(request)
                except WorkerLacksReference:
                    request.fail(Failure(reason=f"node {self.name}: it lacks 2 layers", error="reference"))
                except WorkerFails as reason:
                    request.fail(Failure(reason=f"node {self.name}: {reason}", error="internal"))
                except WorkerGone:
                    channel.close()
                    request.close()
                    return

    def answer(self, body: Any, request: Request) -> Answer:
        """The reply of a good node."""
        received = self._decoded(body, {layer: array.copy() for layer, array in request.arrays.items()})
        match body:
            case FingerprintRequest():
                return self._describe(body)
            case PlanRequest():
                parameters = sum(int(np.prod(shape)) for shape in self.layers.values())
                heads = [] if body.labels is None else self.heads
                reply = PlanReply(plans=self.plans, layers=self.layers, num_parameters=parameters, heads=heads)
                return Answer(reply.model_dump())
            case PreprocessRequest():
                ready = PreprocessReply(
                    seconds=1,
                    num_training=self.cases - 1,
                    num_validation=1,
                    epochs=self.epochs,
                    iterations=1,
                    labellings=self.labellings,
                )
                return Answer(ready.model_dump())
            case TrainRequest():
                return self._train(body, received)
            case EvaluateRequest():
                return self._evaluate(body, received)
            case SendModelRequest():
                return Answer(SendModelReply(mirror_axes=[0], seconds=1).model_dump(), dict(self.final[body.fold]))
            case Model():
                return self._keep(body, received)
            case ScoreModelsRequest():
                return self._score_kept(body)
        raise AssertionError(body)

    def _decoded(self, body: Any, received: State) -> State:
        """What it received, steps added to what they start from."""
        if not isinstance(body, TrainRequest | EvaluateRequest):
            return received
        at = body.server_round + isinstance(body, EvaluateRequest)
        if at in self.restarted_before:
            self.restarted_before.remove(at)
            self._reference = {}
        for layer, start in body.references.items():
            if layer not in self._reference or digest(self._reference[layer]) != start:
                raise WorkerLacksReference
            received[layer] = decode_step(received[layer], self._reference[layer], body.dtype, "the server")
        if is_quantised(body.dtype):
            self.steps[body.fold, at] = list(body.references)
            self._reference = received
        return received

    def _describe(self, body: FingerprintRequest) -> Answer:
        fingerprint, counts = None, None
        if body.content in ("contribution", "intensities") and body.bins is not None and not self.external:
            bins = {channel: IntensityBins.model_validate(one) for channel, one in body.bins.items()}
            fingerprint = fingerprint_of(bins, self.cases, self.shift).to_dict()
            if body.content == "intensities":
                fingerprint = {"intensities": fingerprint["intensities"]}
        if body.below is not None:
            sizes = {"spacings": [SPACING], "shapes_after_crop": [SHAPE], "relative_sizes": [1.0]}
            once = count_below(CaseSizes.of(sizes), body.below)
            counts = {quantity: [self.cases * count for count in found] for quantity, found in once.items()}
        ranges = {channel: {"low": 10 + by, "high": 13 + by, "integer": True} for channel, by in self.shift.items()}
        folds = {fold for fold, _ in self.sent}
        reply = {
            "node": self.name,
            "external": self.external,
            "num_training": self.cases,
            "configuration": "2d",
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "tumour": 1},
            "file_ending": ".nii.gz",
            "intensity_ranges": ranges if body.content == "ranges" and not self.external else None,
            "fingerprint": fingerprint,
            "counts": counts,
            "resume_rounds": {fold: [r for f, r in self.sent if f == fold] for fold in folds},
            **self.introduction,
        }
        return Answer(FingerprintReply.model_validate(reply).model_dump())

    def _train(self, body: TrainRequest, received: State) -> Answer:
        at = (body.fold, body.server_round)
        if body.server_round == 0:
            layers = self.initial
        elif at in self.sent:
            layers = self.sent[at]
        else:
            self.received[at] = received
            before = self.sent.get((body.fold, body.trained), self.initial)
            layers = self.sent[at] = self._step(*at, {**before, **received})
        reply = TrainReply(
            fold=body.fold,
            server_round=body.server_round,
            num_examples=self.cases - 1,
            train_loss=-0.5,
            pseudo_dice=0.5,
        )
        if is_quantised(body.dtype) and body.server_round:
            return Answer(reply.model_dump(), self._as_steps(body, layers, received), received)
        dtype = np.dtype(body.dtype if body.server_round else "float32")
        return Answer(reply.model_dump(), {layer: layers[layer].astype(dtype) for layer in body.layers}, received)

    def _as_steps(self, body: TrainRequest, layers: State, received: State) -> State:
        """The layers as steps from what it received, and what was left over in the round before; encoded once."""
        at = (body.fold, body.server_round)
        if at not in self._replied:
            left = self._left.get((body.fold, body.trained), {})
            self._left[at] = {layer: layers[layer] - received[layer] + left.get(layer, 0) for layer in body.layers}
            wires = {layer: encode_step(step, body.dtype) for layer, step in self._left[at].items()}
            self._replied[at] = {layer: wire for layer, wire in wires.items() if wire is not None}
        return self._replied[at]

    def _step(self, fold: Fold, server_round: int, state: State) -> State:
        """A step of fixed length in a direction of the node's own."""
        rng = np.random.default_rng([*self.name.encode(), *str(fold).encode(), server_round])
        step = {layer: rng.standard_normal(shape) for layer, shape in self.layers.items()}
        length = STEPS.get(self.name, OTHER_STEP) * norm(state) / norm(step)
        return {
            layer: (state[layer].astype(np.float32) + length * step[layer]).astype(np.float32) for layer in self.layers
        }

    def _evaluate(self, body: EvaluateRequest, received: State) -> Answer:
        self.received[body.fold, body.server_round + 1] = received
        self.final[body.fold] = {**self.sent.get((body.fold, body.trained), self.initial), **received}
        if self.introduction.get("held_out", {}).get(self.name, {}).get(body.fold) == 0:
            return Answer(EvaluateReply(cases=[], seconds=1).model_dump())
        return self._scores({None: self._dsc([self.final[body.fold]])})

    def _keep(self, model: Model, received: State) -> Answer:
        self.kept.setdefault(model.node, {})[model.fold] = received
        return Answer(KeepModelReply(seconds=1).model_dump())

    def _score_kept(self, body: ScoreModelsRequest) -> Answer:
        scores: dict[str | None, float] = {
            name: self._dsc([self.kept[name][fold] for fold in folds]) for name, folds in body.models.items()
        }
        if self.external and len(scores) > 1:
            scores[ENSEMBLE] = float(np.mean(list(scores.values())))
        return self._scores(scores)

    def _scores(self, scores: Mapping[str | None, float]) -> Answer:
        cases = [
            CaseScore(centre=self.name, case=0, label="tumour", model=model, dsc=dsc, hd95=1)
            for model, dsc in scores.items()
        ]
        return Answer(EvaluateReply(cases=cases, seconds=1).model_dump())

    def _dsc(self, models: Sequence[State]) -> float:
        """Score of an ensemble: a number that every value of every model changes."""
        return float(np.mean([np.mean([array.mean(dtype=np.float64) for array in m.values()]) for m in models]))


# the federation ----------------------------------------------------------------------------------------


@dataclass
class FinishedRun:
    """A run that is over.

    Attributes:
        nodes: Name to node.
        messages: Messages to the operator.
        folder: Folder of the run.
        training: Rounds of a fold and iterations of a round.
        noise: Node to its noise.
    """

    nodes: dict[str, ScriptedNode]
    messages: list[str]
    folder: Path
    training: Mapping[str, int]
    noise: Mapping[str, Mapping[str, Any]]

    def average_after(self, server_round: int, fold: Fold = 0, node: str = "Riga") -> State:
        """What a node received after this round."""
        return self.nodes[node].received[fold, server_round + 1]

    def mean_of(self, server_round: int, *names: str, fold: Fold = 0) -> State:
        """numpy's mean of what these nodes sent in a round."""
        sent = [self.nodes[name].sent[fold, server_round] for name in names]
        return {
            layer: np.mean([state[layer].astype(np.float64) for state in sent], axis=0).astype(np.float32)
            for layer in sent[0]
        }

    @property
    def rounds(self) -> pd.DataFrame:
        """``rounds.csv``."""
        return pd.read_csv(self.folder / "rounds.csv")

    @property
    def cases(self) -> pd.DataFrame:
        """``cases.csv``."""
        return pd.read_csv(self.folder / "cases.csv", dtype={"fold": str})

    @property
    def rows(self) -> list[tuple[int, str]]:
        """Round and node of every row of ``rounds.csv``."""
        return list(zip(self.rounds["round"], self.rounds["node"], strict=True))


@contextlib.contextmanager
def serving(nodes: Sequence[ScriptedNode], grid_class: type[LocalGrid] = LocalGrid) -> Iterator[LocalGrid]:
    """A grid with these nodes, whose Flower ids are 1, 2, …, in order."""
    with contextlib.ExitStack() as stack:
        # The path of a socket has at most 107 bytes, and that of a test's folder may be longer.
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes")))
        (sockets / "key").write_bytes(KEY)
        addresses = {}
        for number, node in enumerate(nodes, start=1):
            channel = WorkerChannel(sockets / node.name, KEY)
            stack.callback(channel.close)
            threading.Thread(target=node.serve, args=(channel,), daemon=True).start()
            addresses[number] = {"socket": str(sockets / node.name), "key-file": str(sockets / "key")}
        grid = grid_class(_tampering_app(nodes), addresses, len(addresses))
        stack.callback(grid.close)
        yield grid


def run(
    folder: Path,
    nodes: Iterable[ScriptedNode],
    strategy: Strategy | None = None,
    settings: Mapping[str, Any] | None = None,
    faults: Mapping[str, Fault] | None = None,
    grid_class: type[LocalGrid] = LocalGrid,
) -> FinishedRun:
    """Run a federation to its end; in the folder of an interrupted run, resume that one.

    Args:
        folder: Folder of the run.
        nodes: Nodes in the order in which they join.
        strategy: Strategy; by default :class:`AsymFedAvg`.
        settings: Fields of :class:`ServerSettings`.
        faults: Name of a node to what it does wrong.
        grid_class: Class of the grid.
    """
    folder.mkdir(exist_ok=True)
    by_name = {node.name: node for node in nodes}
    for name, node in by_name.items():
        node.fault = (faults or {}).get(name)
    given = ServerSettings(**{"fingerprint": None, "folds": [0], "timeout": 20, **(settings or {})})
    observer = RecordingObserver()
    recorder = RunRecorder(folder, "asym", given.folds, [observer], given.personal)
    with serving(list(by_name.values()), grid_class) as grid:
        grid.run_server(build_server_app(given, strategy or AsymFedAvg(), recorder))
    return FinishedRun(by_name, observer.messages, folder, recorder.training, recorder.noise)


def _tampering_app(nodes: Sequence[ScriptedNode]) -> ClientApp:
    """The relay, and for a node with a fault on the wire something that changes what the relay hands on."""

    def hand_on(message: Message, context: Context) -> Message:
        kind = Kind(message.metadata.message_type)
        reply = relay(message, context)
        fault = nodes[context.node_id - 1].fault
        if fault is not None and fault.wire is not None:
            body = REQUESTS[kind].model_validate_json(str(message.content.config_records["config"]["body"]))
            if fault.applies_to(kind, body):
                fault.wire(reply)
        return reply

    app = ClientApp()
    for kind in Kind:
        category, _, action = kind.value.partition(".")
        getattr(app, category)(*([action] if action else []))(hand_on)
    return app


RunFederation = Callable[..., FinishedRun]


@pytest.fixture
def run_federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFederation:
    """:func:`run` in the test's own folder, which is also the working directory, unless another is given."""
    monkeypatch.chdir(tmp_path)

    def run_in(
        nodes: Iterable[ScriptedNode],
        strategy: Strategy | None = None,
        settings: Mapping[str, Any] | None = None,
        faults: Mapping[str, Fault] | None = None,
        grid_class: type[LocalGrid] = LocalGrid,
        folder: Path = tmp_path,
    ) -> FinishedRun:
        return run(folder, nodes, strategy, settings, faults, grid_class)

    return run_in
