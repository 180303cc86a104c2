"""What the server refuses, by whom it says it was sent, and that the federation goes on without it.

The whole server app, over the embedded grid, the real relay and real channels to three workers that follow a script.
One of them, Porto, misbehaves once: its worker, or what stands between relay and grid in its place.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import pickle
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fednnunet import __version__
from fednnunet.client_app import relay
from fednnunet.errors import FednnUNetError, ProtocolError
from fednnunet.exchange.arrays import Layout, SharedArrays
from fednnunet.exchange.channel import Request, WorkerChannel
from fednnunet.exchange.messages import (
    MAX_BODY_BYTES,
    REQUESTS,
    CaseScore,
    EvaluateReply,
    EvaluateRequest,
    FingerprintReply,
    FingerprintRequest,
    Kind,
    PlanReply,
    PreprocessReply,
    TrainReply,
    TrainRequest,
)
from fednnunet.exchange.records import from_array_record, to_array_record
from fednnunet.fingerprint.merge import merge_fingerprints
from fednnunet.fingerprint.schema import IntensityBins, LocalFingerprint
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.server_app import build_server_app
from fednnunet.server.session import ServerSettings
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.flower_adapter import FlowerStrategy
from tests.server.phases.test_prepare import fingerprint

KEY = b"k" * 32
NODES = {1: "Riga", 2: "Porto", 3: "Turku"}
PORTO = 2
"""By name the first."""
CASES = 5
ROUNDS = 3
LAYERS = {"encoder": [4, 3], "head": [5]}
STEPS = {"Riga": 0.10, "Porto": 0.12, "Turku": 0.09}
"""Norm of a round's update, relative to that of the weights."""
State = dict[str, np.ndarray]
INITIAL: State = {
    layer: np.random.default_rng(0).standard_normal(shape).astype(np.float32) for layer, shape in LAYERS.items()
}


# nodes -------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What a worker is about to send; a fault changes it."""

    body: dict[str, Any]
    arrays: State = field(default_factory=dict)
    received: Mapping[str, np.ndarray] = field(default_factory=dict)
    text: str | None = None
    layout: Callable[[Layout], Layout] = lambda layout: layout

    def send(self, request: Request) -> None:
        shared = SharedArrays.allocate({name: (array.shape, array.dtype) for name, array in self.arrays.items()})
        for name, view in shared.views().items():
            view[...] = self.arrays[name]
        shared.layout = self.layout(shared.layout)
        text = json.dumps(self.body) if self.text is None else self.text
        request.reply(text, shared if self.arrays else None)
        shared.close()


@dataclass(frozen=True)
class Fault:
    """What Porto does wrong, and what is said of it.

    Attributes:
        problem: part of what the operator reads.
        worker: changes what its worker sends.
        wire: changes what its relay hands to the grid.
        kind: of the message.
        of: round, or what a fingerprint is to tell; empty for any.
    """

    problem: str
    worker: Callable[[Answer], object] | None = None
    wire: Callable[[Message], object] | None = None
    kind: Kind = Kind.TRAIN
    of: str = "2"

    def concerns(self, kind: Kind, body: Any) -> bool:
        if kind == Kind.TRAIN:
            return self.kind == kind and self.of == str(body.server_round)
        if kind == Kind.FINGERPRINT:
            return self.kind == kind and self.of == body.tell
        if kind == Kind.EVALUATE:
            return self.kind == kind and self.of == ("own" if body.of_own_model else "layers" if body.layers else "")
        return self.kind == kind


def honest(name: str, server_round: int, received: Mapping[str, np.ndarray]) -> State:
    """What a node's layers are after a round: a step of fixed length in a direction of its own."""
    rng = np.random.default_rng([*name.encode(), server_round])
    step = {layer: rng.standard_normal(shape) for layer, shape in LAYERS.items()}
    length = STEPS[name] * norm(received) / norm(step)
    return {layer: (received[layer] + length * step[layer]).astype(np.float32) for layer in LAYERS}


def norm(state: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in state.values())))


class Node:
    """Answers as a good node would, and keeps what it was sent and what it has sent."""

    def __init__(self, name: str, fault: Fault | None) -> None:
        self.name, self.fault = name, fault
        self.layers = INITIAL
        self.received: dict[int, State] = {}
        self.sent: dict[int, State] = {}
        self.told: list[FingerprintRequest] = []

    def serve(self, channel: WorkerChannel) -> None:
        with contextlib.suppress(ConnectionError):  # the test is over
            while (request := channel.receive()) is not None:
                body: Any = REQUESTS[request.kind].model_validate_json(request.body)
                answer = getattr(self, request.kind.value.split(".")[-1])(body, request)
                if self.fault is not None and self.fault.worker is not None and self.fault.concerns(request.kind, body):
                    self.fault.worker(answer)
                answer.send(request)

    def fingerprint(self, body: FingerprintRequest, request: Request) -> Answer:
        self.told.append(body)
        told = None
        if body.tell == "contribution" and body.bins is not None:
            told = fingerprint("0", IntensityBins.model_validate(body.bins["0"]), CASES).to_dict()
        reply = FingerprintReply(
            node=self.name,
            version=__version__,
            external=False,
            num_training=CASES,
            configuration="2d",
            channel_names={"0": "CT"},
            labels={"background": 0, "tumour": 1},
            file_ending=".nii.gz",
            intensity_ranges={"0": {"low": 10, "high": 13, "integer": True}} if body.tell == "ranges" else None,
            fingerprint=told,
            resume_rounds={0: list(self.sent)} if self.sent else {},
        )
        return Answer(reply.model_dump())

    def plan(self, body: Any, request: Request) -> Answer:
        return Answer(PlanReply(plans={"made by": self.name}, layers=LAYERS, num_parameters=17).model_dump())

    def preprocess(self, body: Any, request: Request) -> Answer:
        reply = PreprocessReply(seconds=1, num_training=4, num_validation=1, epochs=ROUNDS, iterations=1)
        return Answer(reply.model_dump())

    def train(self, body: TrainRequest, request: Request) -> Answer:
        received = {layer: array.copy() for layer, array in request.arrays.items()}
        if body.server_round == 0:
            self.layers = INITIAL
        elif body.server_round in self.sent:
            self.layers = self.sent[body.server_round]
        else:
            self.received[body.server_round] = received
            self.layers = honest(self.name, body.server_round, {**self.layers, **received})
            self.sent[body.server_round] = self.layers
        reply = TrainReply(server_round=body.server_round, num_examples=4, train_loss=-0.5, pseudo_dice=0.5)
        return Answer(reply.model_dump(), {layer: self.layers[layer].copy() for layer in body.layers}, received)

    def evaluate(self, body: EvaluateRequest, request: Request) -> Answer:
        if body.layers:
            return Answer(EvaluateReply(seconds=1).model_dump(), dict(self.sent[ROUNDS]))
        if body.of_own_model:
            self.received[ROUNDS + 1] = {layer: array.copy() for layer, array in request.arrays.items()}
        models = list(body.score) or ([None] if body.of_own_model else [])
        scores = [CaseScore(centre=self.name, case=0, label="tumour", model=m, dsc=0.5, hd95=1) for m in models]
        return Answer(EvaluateReply(cases=scores, seconds=1).model_dump())


def tampering_app(fault: Fault | None) -> ClientApp:
    """The relay, and in Porto's place something that changes what it hands on."""

    def hand_on(message: Message, context: Context) -> Message:
        kind = Kind(message.metadata.message_type)
        reply = relay(message, context)
        if fault is not None and fault.wire is not None and context.node_id == PORTO:
            body = REQUESTS[kind].model_validate_json(str(message.content.config_records["config"]["body"]))
            if fault.concerns(kind, body):
                fault.wire(reply)
        return reply

    app = ClientApp()
    for kind in Kind:
        category, _, action = kind.value.partition(".")
        getattr(app, category)(*([action] if action else []))(hand_on)
    return app


# the federation ----------------------------------------------------------------------------------------


class Said(RunRecorder):
    """The real journal, and what it told the operator."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "asym")
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        super().message(text)
        self.messages.append(text)


class TwiceGrid(LocalGrid):
    """Every reply comes twice."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [reply for reply in super().pull_messages(message_ids) for _ in range(2)]


@dataclass
class Federated:
    """A run that is over."""

    nodes: dict[str, Node]
    messages: list[str]
    folder: Path

    def average_after(self, server_round: int) -> State:
        """What Riga was sent then."""
        return self.nodes["Riga"].received[server_round + 1]

    def mean_of(self, server_round: int, *names: str) -> State:
        """numpy's, of what these nodes have sent."""
        sent = [self.nodes[name].sent[server_round] for name in names]
        return {
            layer: np.mean([state[layer].astype(np.float64) for state in sent], axis=0).astype(np.float32)
            for layer in LAYERS
        }

    @property
    def rows(self) -> list[tuple[int, str]]:
        rounds = pd.read_csv(self.folder / "rounds.csv")
        return list(zip(rounds["round"], rounds["node"], strict=True))


Federate = Callable[..., Federated]


@pytest.fixture
def federate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federate]:
    """Run a federation to its end."""
    monkeypatch.chdir(tmp_path)
    Path("key").write_bytes(KEY)
    addresses = itertools.count()
    with contextlib.ExitStack() as stack:

        def run(
            fault: Fault | None = None,
            min_nodes: int | None = 2,
            strategy: AsymFedAvg | None = None,
            grid_class: type[LocalGrid] = LocalGrid,
            nodes: dict[str, Node] | None = None,
            **settings: Any,
        ) -> Federated:
            nodes = nodes or {name: Node(name, None) for name in NODES.values()}
            nodes["Porto"].fault = fault
            configs = {}
            for number, name in NODES.items():
                address = f"socket{next(addresses)}"
                channel = WorkerChannel(address, KEY)
                stack.callback(channel.close)
                threading.Thread(target=nodes[name].serve, args=(channel,), daemon=True).start()
                configs[number] = {"socket": address, "key-file": "key"}
            grid = grid_class(tampering_app(fault), configs, len(configs))
            stack.callback(grid.close)
            told = ServerSettings(
                **{"fingerprint": None, "folds": [0], "timeout": 20, "min_nodes": min_nodes, **settings}
            )
            journal = Said(tmp_path)
            grid.run_server(build_server_app(told, strategy or AsymFedAvg(), journal))
            return Federated(nodes, journal.messages, tmp_path)

        yield run


def same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


# the table ---------------------------------------------------------------------------------------------


def put(layer: str, value: float) -> Callable[[Answer], None]:
    """One value of a layer."""

    def change(answer: Answer) -> None:
        answer.arrays[layer].reshape(-1)[-1] = value

    return change


def change_arrays(change: Callable[[State], object]) -> Callable[[Answer], object]:
    return lambda answer: change(answer.arrays)


def step_times(factor: float) -> Callable[[Answer], None]:
    """The update of the round, so many times."""

    def change(answer: Answer) -> None:
        for layer, array in answer.arrays.items():
            array[...] = answer.received[layer] + factor * (array - answer.received[layer])

    return change


def tell(**fields: object) -> Callable[[Answer], None]:
    return lambda answer: answer.body.update(fields)


def say(text: str) -> Callable[[Answer], None]:
    return lambda answer: setattr(answer, "text", text)


def lay_out(**fields: int | list[int]) -> Callable[[Answer], None]:
    """Layout of the head that is not as the memory is."""

    def lie(layout: Layout) -> Layout:
        head = layout.arrays["head"].model_copy(update=fields)
        return layout.model_copy(update={"arrays": {**layout.arrays, "head": head}})

    return lambda answer: setattr(answer, "layout", lie)


def body_of(content: bytes | str | int) -> Callable[[Message], None]:
    def change(reply: Message) -> None:
        reply.content["config"] = ConfigRecord({"body": content})

    return change


def head_of(array: Callable[[Array], Array], name: str = "head") -> Callable[[Message], None]:
    """Another array in place of the head."""

    def change(reply: Message) -> None:
        arrays = dict(reply.content.array_records["arrays"])
        arrays[name] = array(arrays.pop("head"))
        reply.content["arrays"] = ArrayRecord(arrays)

    return change


def metrics_of(**metrics: Any) -> Callable[[Message], None]:
    def change(reply: Message) -> None:
        held = {key.replace("_", "-"): value for key, value in metrics.items()}
        reply.content["metrics"] = MetricRecord({**reply.content.metric_records["metrics"], **held})

    return change


def fail_with(reason: str) -> Callable[[Message], None]:
    def change(reply: Message) -> None:
        reply.__dict__["_error"], reply.__dict__["_content"] = Error(0, reason), None

    return change


class Payload:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("unpickled").write_text, ("!",)


def pickled(array: Array) -> Array:
    """numpy's file of objects, which it reads by unpickling them."""
    file = io.BytesIO()
    np.save(file, np.array([Payload()] * 5, dtype=object), allow_pickle=True)
    return Array("float32", (5,), "numpy.ndarray", file.getvalue())


def huge(array: Array) -> Array:
    """Announces four tebibytes."""
    head = array.data.replace(b"(5,), }" + b" " * 12, b"(1099511627776,), }")
    assert len(head) == len(array.data)
    return Array("float32", (2**40,), "numpy.ndarray", head)


TOO_LONG = " " * (MAX_BODY_BYTES + 2**20)
NOT_FINITE = "sent layer head with values that are not finite"
NO_CASES = "sent a reply without its number of cases"

FAULTS = {
    # what was trained
    "nan": Fault(NOT_FINITE, worker=put("head", np.nan)),
    "infinity": Fault(NOT_FINITE, worker=put("head", np.inf)),
    "10 times the norm": Fault("sent an update 1.2 times as large as the weights", worker=step_times(10)),
    "huge and backwards": Fault("sent an update 1.2e+05 times as large as the weights", worker=step_times(-1e6)),
    "beyond squaring": Fault("sent an update inf times as large as the weights", worker=put("head", 3e38)),
    # arrays that were not asked for
    "shape": Fault(
        "sent layer head with shape (1, 5) instead of (5,)",
        worker=change_arrays(lambda arrays: arrays.update(head=arrays["head"][None])),
    ),
    "missing layer": Fault("did not send layer head", worker=change_arrays(lambda arrays: arrays.pop("head"))),
    "no layer": Fault("did not send layer encoder", worker=change_arrays(lambda arrays: arrays.clear())),
    "layer too many": Fault(
        "sent layer more, which it was not asked for",
        worker=change_arrays(lambda arrays: arrays.update(more=np.zeros(3, dtype=np.float32))),
    ),
    "float64": Fault(
        "sent layer head as float64 instead of float32",
        worker=change_arrays(lambda arrays: arrays.update(head=arrays["head"].astype(np.float64))),
    ),
    "float16": Fault(
        "sent layer head as float16 instead of float32",
        worker=change_arrays(lambda arrays: arrays.update(head=arrays["head"].astype(np.float16))),
    ),
    "integers": Fault(
        "sent layer head as int64 instead of float32",
        worker=change_arrays(lambda arrays: arrays.update(head=arrays["head"].astype(np.int64))),
    ),
    # bodies
    "stale round": Fault("sent round 1 of fold 0 instead of round 2 of 0", worker=tell(server_round=1)),
    "future round": Fault("sent round 9 of fold 0 instead of round 2 of 0", worker=tell(server_round=9)),
    "another fold": Fault("sent round 2 of fold 3 instead of round 2 of 0", worker=tell(fold=3)),
    "more cases than it has": Fault("sent 10000 training cases of the fold", worker=tell(num_examples=10_000)),
    "no case": Fault("malformed TrainReply: num_examples", worker=tell(num_examples=0)),
    "nan loss": Fault("malformed TrainReply: train_loss", worker=tell(train_loss=float("nan"))),
    "unknown field": Fault("malformed TrainReply: command", worker=tell(command="rm -rf /")),
    "not JSON": Fault("malformed TrainReply: body: Invalid JSON", worker=say("\x80\x04\x95 garbage")),
    "deep JSON": Fault("malformed TrainReply: body: Invalid JSON", worker=say("[" * 10_000)),
    "65 MiB": Fault(f"sent more than the {MAX_BODY_BYTES} bytes that are taken at once", worker=say(TOO_LONG)),
    # memory
    "beyond its memory": Fault("sent array head outside of its memory", worker=lay_out(shape=[10**6])),
    "before an array": Fault("sent array head outside of its memory", worker=lay_out(offset=4)),
    "overlapping": Fault("sent arrays that overlap", worker=lay_out(shape=[32], offset=0)),
    # what comes from a grid was not made by our relay
    "another's bytes for a body": Fault("sent a reply without a body", wire=body_of(b"\x80\x04K\x01.")),
    "no body": Fault("sent a reply without a body", wire=lambda reply: reply.content.pop("config")),
    "garbled body": Fault("malformed TrainReply: body: Invalid JSON", wire=body_of("\x00\ufffd{")),
    "long body": Fault("sent a body of 68157440 bytes", wire=body_of(TOO_LONG)),
    "garbage array": Fault(
        "sent array head, whose data are not float32 (5,)",
        wire=head_of(lambda array: Array(array.dtype, array.shape, array.stype, b"\xff" * len(array.data))),
    ),
    "pickle in numpy's format": Fault("sent array head, whose data are not float32 (5,)", wire=head_of(pickled)),
    "pickle": Fault(
        "sent array head as pickle of float32",
        wire=head_of(lambda array: Array("float32", (5,), "pickle", pickle.dumps(Payload()))),
    ),
    "objects": Fault(
        "sent array head as numpy.ndarray of object",
        wire=head_of(lambda array: Array("object", (5,), "numpy.ndarray", pickled(array).data)),
    ),
    "2**40 elements": Fault("sent array head of an impossible shape, (1099511627776,)", wire=head_of(huge)),
    "fewer than none": Fault(
        "sent array head of an impossible shape, (-5,)",
        wire=head_of(lambda array: Array("float32", (-5,), "numpy.ndarray", array.data)),
    ),
    "a path for a name": Fault(
        "sent an array that it calls '../../etc/passwd'", wire=head_of(lambda array: array, "../../etc/passwd")
    ),
    "no weight": Fault("sent None training cases", wire=lambda reply: reply.content.pop("metrics")),
    "another weight": Fault("sent 1000000 training cases of the fold", wire=metrics_of(num_examples=10**6)),
    "colours and lines": Fault("node Porto: its disk  [31m is gone", wire=fail_with("its disk\n\x1b[31m is gone")),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_round_closes_without_it_by_name(federate: Federate, fault: Fault) -> None:
    run = federate(fault)
    (said,) = run.messages
    assert said.startswith("node Porto: ")
    assert fault.problem in said
    assert said.endswith("; the federation goes on without it")
    assert same(run.average_after(1), run.mean_of(1, *NODES.values()))
    assert same(run.average_after(2), run.mean_of(2, "Riga", "Turku"))
    assert same(run.average_after(3), run.mean_of(3, *NODES.values())), "it is asked again in the next round"
    assert run.rows == [(r, name) for r in (1, 2, 3) for name in sorted(NODES.values()) if (r, name) != (2, "Porto")]
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    "case", ["nan", "10 times the norm", "stale round", "not JSON", "overlapping", "pickle", "no body"]
)
def test_where_no_node_may_be_missing_it_ends_the_run_by_name(federate: Federate, case: str) -> None:
    with pytest.raises(FednnUNetError) as caught:
        federate(FAULTS[case], min_nodes=None)
    assert str(caught.value).startswith("node Porto: ")
    assert FAULTS[case].problem in str(caught.value)
    assert not Path("unpickled").exists()


def test_pickles_of_the_table_would_have_been_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.load(io.BytesIO(pickled(Array("float32", (), "", b"")).data), allow_pickle=True)
    assert Path("unpickled").exists()


OF_VALUES = ("nan", "10 times the norm", "huge and backwards", "integers", "missing layer")


@pytest.mark.parametrize("case", OF_VALUES)
def test_strategies_of_flower_are_given_what_is_good(federate: Federate, case: str) -> None:
    run = federate(FAULTS[case], strategy=FlowerStrategy(FedAvg(min_available_nodes=1)))
    assert FAULTS[case].problem in run.messages[0]
    for layer, expected in run.mean_of(2, "Riga", "Turku").items():
        np.testing.assert_allclose(run.average_after(2)[layer], expected, rtol=1e-5)
    assert (2, "Porto") not in run.rows


def test_a_metric_that_one_node_lacks_does_not_stop_flowers_strategies(federate: Federate) -> None:
    run = federate(Fault("", worker=tell(pseudo_dice=None)), strategy=FlowerStrategy(FedAvg(min_available_nodes=1)))
    assert run.messages == []
    for layer, expected in run.mean_of(2, *NODES.values()).items():
        np.testing.assert_allclose(run.average_after(2)[layer], expected, rtol=1e-5)


def test_a_second_reply_is_not_read(federate: Federate) -> None:
    run = federate(grid_class=TwiceGrid)
    assert run.messages == []
    assert all(same(run.average_after(r), run.mean_of(r, *NODES.values())) for r in (1, 2, 3))


def test_announced_elements_are_not_allocated() -> None:
    record = to_array_record({"head": np.zeros(5, dtype=np.float32)})
    record = ArrayRecord({"head": huge(record["head"])})
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="impossible shape"):
        from_array_record(record, "node Porto")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


# other stages ------------------------------------------------------------------------------------------

OTHER_STAGES = {
    "describe": Fault("malformed FingerprintReply: labels", tell(labels=7), kind=Kind.FINGERPRINT, of="ranges"),
    "ranges": Fault(
        "sent malformed ranges: low",
        tell(intensity_ranges={"0": {"low": -1e300, "high": 1e300, "integer": False}}),
        kind=Kind.FINGERPRINT,
        of="ranges",
    ),
    "ranges of no channel": Fault(
        "sent ranges of a channel that it does not have: 7",
        tell(intensity_ranges={"7": {"low": 0, "high": 1, "integer": False}}),
        kind=Kind.FINGERPRINT,
        of="ranges",
    ),
    "contribution": Fault(
        "sent a malformed fingerprint", tell(fingerprint={"spacings": "none"}), kind=Kind.FINGERPRINT, of="contribution"
    ),
    "contribution of other cases": Fault(
        "sent a fingerprint of other cases than were asked for",
        lambda answer: answer.body["fingerprint"].update(
            {key: answer.body["fingerprint"][key][:1] for key in ("spacings", "shapes_after_crop", "relative_sizes")}
        ),
        kind=Kind.FINGERPRINT,
        of="contribution",
    ),
    "plan": Fault("malformed PlanReply: layers", tell(layers={"../x": [1]}), kind=Kind.PLAN),
    "preprocess": Fault("malformed PreprocessReply: epochs", tell(epochs=-1), kind=Kind.PREPROCESS),
    "evaluate": Fault(
        "malformed EvaluateReply: cases.0.centre",
        say('{"seconds": 1, "cases": [{"dsc": "x"}]}'),
        kind=Kind.EVALUATE,
        of="own",
    ),
    "evaluate another's cases": Fault(
        "sent scores of cases of node Turku",
        lambda answer: answer.body["cases"][0].update(centre="Turku"),
        kind=Kind.EVALUATE,
        of="own",
    ),
}


@pytest.mark.parametrize("fault", OTHER_STAGES.values(), ids=OTHER_STAGES)
def test_in_other_stages_the_others_go_on(federate: Federate, fault: Fault) -> None:
    run = federate(fault, fingerprint="histogram")
    assert len([said for said in run.messages if "Porto" in said or "node 2" in said]) == 1
    assert any(fault.problem in said and said.endswith("; the federation goes on without it") for said in run.messages)
    assert set(pd.read_csv(run.folder / "cases.csv")["model"]) == {"Riga", "Turku"}
    without = fault.kind != Kind.EVALUATE
    assert same(run.average_after(3), run.mean_of(3, *(["Riga", "Turku"] if without else NODES.values())))
    merged = json.loads((run.folder / "federated_fingerprint.json").read_text())
    cases = 2 * CASES if fault.kind == Kind.FINGERPRINT else 3 * CASES
    bins = IntensityBins(low=10, width=1, number=4, integer=True)
    theirs = LocalFingerprint.model_validate(fingerprint("0", bins, CASES).to_dict())
    assert merged == merge_fingerprints([theirs] * (cases // CASES)), "of those that are left, exactly"
    *_, last = (told for told in run.nodes["Riga"].told if told.tell == "contribution")
    assert last.total_cases == cases


@pytest.mark.parametrize("fault", OTHER_STAGES.values(), ids=OTHER_STAGES)
def test_in_other_stages_it_ends_the_run_where_all_are_needed(federate: Federate, fault: Fault) -> None:
    with pytest.raises(FednnUNetError, match=r"node (Porto|2)\b") as caught:
        federate(fault, min_nodes=None, fingerprint="histogram")
    assert fault.problem in str(caught.value)


def test_first_values_come_from_a_node_that_sends_good_ones(federate: Federate) -> None:
    run = federate(Fault(NOT_FINITE, worker=put("head", np.nan), of="0"))
    assert run.messages == [f"node Porto {NOT_FINITE}; the federation goes on without it"]
    assert same(run.average_after(0), run.nodes["Turku"].received[1])
    assert all(np.isfinite(array).all() for array in run.average_after(0).values())
    assert all(same(run.average_after(r), run.mean_of(r, *NODES.values())) for r in (1, 2, 3))


def test_a_broken_model_does_not_travel_to_others(federate: Federate) -> None:
    fault = Fault(NOT_FINITE, worker=put("head", np.inf), kind=Kind.EVALUATE, of="layers")
    run = federate(fault, strategy=AsymFedAvg(keep_local=["head"]), cross_centre=True)
    (said,) = run.messages
    assert NOT_FINITE in said
    cases = pd.read_csv(run.folder / "cases.csv")
    elsewhere = cases[cases["node"] != cases["model"]]
    assert sorted(zip(elsewhere["node"], elsewhere["model"], strict=True)) == [
        ("Porto", "Riga"),
        ("Porto", "Turku"),
        ("Riga", "Turku"),
        ("Turku", "Riga"),
    ]


# norms over rounds -------------------------------------------------------------------------------------


def test_the_first_round_is_compared_with_its_own_median(federate: Federate) -> None:
    fault = Fault("sent an update 1.2 times as large", worker=step_times(10), of="1")
    run = federate(fault)
    assert fault.problem in run.messages[0]
    assert same(run.average_after(1), run.mean_of(1, "Riga", "Turku"))


def test_without_a_limit_it_is_averaged(federate: Federate) -> None:
    run = federate(FAULTS["10 times the norm"], strategy=AsymFedAvg(max_update_norm=None))
    assert run.messages == []
    assert not same(run.average_after(2), run.mean_of(2, "Riga", "Turku"))


def test_a_run_that_goes_on_knows_what_was_usual(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STEPS:  # ten times these is less than what is compared where nothing is known
        monkeypatch.setitem(STEPS, name, STEPS[name] / 10)
    nodes = {name: Node(name, None) for name in NODES.values()}
    with pytest.raises(FednnUNetError, match="sent layer head"):
        federate(FAULTS["nan"], min_nodes=None, nodes=nodes)
    resumed = federate(Fault("", worker=step_times(10)), nodes=nodes)
    assert "sent an update 0.12 times as large as the weights, where 0.01 is usual" in resumed.messages[0]
    assert same(resumed.average_after(2), resumed.mean_of(2, "Riga", "Turku"))
    assert (2, "Porto") not in resumed.rows


def test_norms_are_written_down(federate: Federate) -> None:
    run = federate()
    rounds = pd.read_csv(run.folder / "rounds.csv")
    for _, row in rounds.iterrows():
        received, sent = (run.nodes[row["node"]].received[row["round"]], run.nodes[row["node"]].sent[row["round"]])
        expected = norm({layer: sent[layer] - received[layer] for layer in LAYERS}) / norm(received)
        assert row["update_norm"] == pytest.approx(expected, rel=1e-5)
