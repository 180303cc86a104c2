"""What the server refuses, by whom it says it was sent, and that the federation goes on without it.

The whole server app, over the local grid, the real relay and real channels to three workers that follow a script.
One of them, Porto, misbehaves once: its worker, or what stands between relay and grid in its place.
"""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fednnunet import __version__
from fednnunet.errors import FednnUNetError, ProtocolError
from fednnunet.exchange.arrays import Layout
from fednnunet.exchange.messages import MAX_BODY_BYTES, Kind
from fednnunet.exchange.records import from_array_record, record_of, to_array_record
from fednnunet.fingerprint.bins import IntensityBins
from fednnunet.fingerprint.merge import merge_fingerprints
from fednnunet.fingerprint.schema import DatasetFingerprint
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.flower_adapter import FlowerStrategy
from tests.support.scripted_federation import (
    CASES,
    LAYERS,
    STEPS,
    Answer,
    Fault,
    FinishedRun,
    RunFederation,
    ScriptedNode,
    State,
    fingerprint_of,
    norm,
    same,
)

NODES = ("Riga", "Porto", "Turku")


class TwiceGrid(LocalGrid):
    """Every reply comes twice."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [reply for reply in super().pull_messages(message_ids) for _ in range(2)]


Federate = Callable[..., FinishedRun]


@pytest.fixture
def federate(run_federation: RunFederation) -> Federate:
    """Run a federation to its end in which Porto has a fault."""

    def run(
        fault: Fault | None = None,
        min_nodes: int | None = 2,
        strategy: Strategy | None = None,
        grid_class: type[LocalGrid] = LocalGrid,
        nodes: Sequence[ScriptedNode] = (),
        **settings: Any,
    ) -> FinishedRun:
        faults = {} if fault is None else {"Porto": fault}
        nodes = nodes or [ScriptedNode(name) for name in NODES]
        return run_federation(nodes, strategy, {"min_nodes": min_nodes, **settings}, faults, grid_class)

    return run


# the table ---------------------------------------------------------------------------------------------


def set_value(layer: str, value: float) -> Callable[[Answer], None]:
    """One value of a layer."""

    def change(answer: Answer) -> None:
        answer.arrays[layer].reshape(-1)[-1] = value

    return change


def with_arrays(change: Callable[[State], object]) -> Callable[[Answer], object]:
    return lambda answer: change(answer.arrays)


def multiply_step(factor: float) -> Callable[[Answer], None]:
    """The update of the round, so many times."""

    def change(answer: Answer) -> None:
        for layer, array in answer.arrays.items():
            array[...] = answer.received[layer] + factor * (array - answer.received[layer])

    return change


def with_fields(**fields: object) -> Callable[[Answer], None]:
    return lambda answer: answer.body.update(fields)


def with_text(text: str) -> Callable[[Answer], None]:
    return lambda answer: setattr(answer, "text", text)


def with_layout(**fields: int | list[int]) -> Callable[[Answer], None]:
    """Layout of the head that is not as the memory is."""

    def lie(layout: Layout) -> Layout:
        head = layout.arrays["head"].model_copy(update=fields)
        return layout.model_copy(update={"arrays": {**layout.arrays, "head": head}})

    return lambda answer: setattr(answer, "layout", lie)


def with_head_over_all(answer: Answer) -> None:
    """The head takes all of the memory, others lie in it."""

    def lie(layout: Layout) -> Layout:
        head = layout.arrays["head"].model_copy(update={"shape": [layout.size // 4], "offset": 0})
        return layout.model_copy(update={"arrays": {**layout.arrays, "head": head}})

    answer.layout = lie


def with_body(content: bytes | str | int) -> Callable[[Message], None]:
    def change(reply: Message) -> None:
        reply.content["config"] = ConfigRecord({"body": content, "version": __version__})

    return change


def with_head(array: Callable[[Array], Array], name: str = "head") -> Callable[[Message], None]:
    """Another array in place of the head."""

    def change(reply: Message) -> None:
        arrays = dict(reply.content.array_records["arrays"])
        arrays[name] = array(arrays.pop("head"))
        reply.content["arrays"] = record_of(arrays)

    return change


def with_metrics(**metrics: Any) -> Callable[[Message], None]:
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
    head = bytes(array.data).replace(b"(5,), }" + b" " * 12, b"(1099511627776,), }")
    assert len(head) == len(array.data)
    return Array("float32", (2**40,), "numpy.ndarray", head)


TOO_LONG = " " * (MAX_BODY_BYTES + 2**20)
NOT_FINITE = "sent layer head with values that are not finite"
NO_CASES = "sent a reply without its number of cases"

FAULTS = {
    # what was trained
    "nan": Fault(NOT_FINITE, worker=set_value("head", np.nan)),
    "infinity": Fault(NOT_FINITE, worker=set_value("head", np.inf)),
    "10 times the norm": Fault("sent an update 1.2 times as large as the weights", worker=multiply_step(10)),
    "huge and backwards": Fault("sent an update 1.2e+05 times as large as the weights", worker=multiply_step(-1e6)),
    "beyond squaring": Fault("sent an update inf times as large as the weights", worker=set_value("head", 3e38)),
    # arrays that were not asked for
    "shape": Fault(
        "sent layer head with shape (1, 5) instead of (5,)",
        worker=with_arrays(lambda arrays: arrays.update(head=arrays["head"][None])),
    ),
    "missing layer": Fault("did not send layer head", worker=with_arrays(lambda arrays: arrays.pop("head"))),
    "no layer": Fault("did not send layer encoder", worker=with_arrays(lambda arrays: arrays.clear())),
    "layer too many": Fault(
        "sent layer more, which it was not asked for",
        worker=with_arrays(lambda arrays: arrays.update(more=np.zeros(3, dtype=np.float32))),
    ),
    "float64": Fault(
        "sent layer head as float64 instead of float32",
        worker=with_arrays(lambda arrays: arrays.update(head=arrays["head"].astype(np.float64))),
    ),
    "float16": Fault(
        "sent layer head as float16 instead of float32",
        worker=with_arrays(lambda arrays: arrays.update(head=arrays["head"].astype(np.float16))),
    ),
    "integers": Fault(
        "sent layer head as int64 instead of float32",
        worker=with_arrays(lambda arrays: arrays.update(head=arrays["head"].astype(np.int64))),
    ),
    # bodies
    "stale round": Fault("sent round 1 of fold 0 instead of round 2 of 0", worker=with_fields(server_round=1)),
    "future round": Fault("sent round 9 of fold 0 instead of round 2 of 0", worker=with_fields(server_round=9)),
    "another fold": Fault("sent round 2 of fold 3 instead of round 2 of 0", worker=with_fields(fold=3)),
    "more cases than it has": Fault("sent 10000 training cases of the fold", worker=with_fields(num_examples=10_000)),
    "no case": Fault("malformed TrainReply: num_examples", worker=with_fields(num_examples=0)),
    "nan loss": Fault("malformed TrainReply: train_loss", worker=with_fields(train_loss=float("nan"))),
    "unknown field": Fault("malformed TrainReply: unknown key command", worker=with_fields(command="rm -rf /")),
    "not JSON": Fault("malformed TrainReply: body: Invalid JSON", worker=with_text("\x80\x04\x95 garbage")),
    "deep JSON": Fault("malformed TrainReply: body: Invalid JSON", worker=with_text("[" * 10_000)),
    "65 MiB": Fault(f"sent more than the {MAX_BODY_BYTES} bytes that are taken at once", worker=with_text(TOO_LONG)),
    # memory
    "beyond its memory": Fault("sent array head outside of its memory", worker=with_layout(shape=[10**6])),
    "before an array": Fault("sent array head outside of its memory", worker=with_layout(offset=4)),
    "overlapping": Fault("sent arrays that overlap", worker=with_head_over_all),
    # what comes from a grid was not made by our relay
    "bytes for a body": Fault("sent a reply without a body", wire=with_body(b"\x80\x04K\x01.")),
    "no body": Fault("sent a reply without a body", wire=lambda reply: reply.content.pop("config")),
    "garbled body": Fault("malformed TrainReply: body: Invalid JSON", wire=with_body("\x00\ufffd{")),
    "long body": Fault("sent a body of 68157440 bytes", wire=with_body(TOO_LONG)),
    "garbage array": Fault(
        "sent array head, whose data are not float32 (5,)",
        wire=with_head(lambda array: Array(array.dtype, array.shape, array.stype, b"\xff" * len(array.data))),
    ),
    "pickle in numpy's format": Fault("sent array head, whose data are not float32 (5,)", wire=with_head(pickled)),
    "pickle": Fault(
        "sent array head as pickle of float32",
        wire=with_head(lambda array: Array("float32", (5,), "pickle", pickle.dumps(Payload()))),
    ),
    "objects": Fault(
        "sent array head as numpy.ndarray of object",
        wire=with_head(lambda array: Array("object", (5,), "numpy.ndarray", pickled(array).data)),
    ),
    "2**40 elements": Fault("sent array head of an impossible shape, (1099511627776,)", wire=with_head(huge)),
    "fewer than none": Fault(
        "sent array head of an impossible shape, (-5,)",
        wire=with_head(lambda array: Array("float32", (-5,), "numpy.ndarray", bytes(array.data))),
    ),
    "a path for a name": Fault(
        "sent an array that it calls '../../etc/passwd'", wire=with_head(lambda array: array, "../../etc/passwd")
    ),
    "no weight": Fault("sent None training cases", wire=lambda reply: reply.content.pop("metrics")),
    "another weight": Fault("sent 1000000 training cases of the fold", wire=with_metrics(num_examples=10**6)),
    "colours and lines": Fault("node Porto: its disk  [31m is gone", wire=fail_with("its disk\n\x1b[31m is gone")),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_round_closes_without_it_by_name(federate: Federate, fault: Fault) -> None:
    run = federate(fault)
    (said,) = run.messages
    assert said.startswith("node Porto: ")
    assert fault.problem in said
    assert said.endswith("; the federation goes on without it")
    assert same(run.average_after(1), run.mean_of(1, *NODES))
    assert same(run.average_after(2), run.mean_of(2, "Riga", "Turku"))
    assert same(run.average_after(3), run.mean_of(3, *NODES)), "it is asked again in the next round"
    assert run.rows == [(r, name) for r in (1, 2, 3) for name in sorted(NODES) if (r, name) != (2, "Porto")]
    assert not Path("unpickled").exists()


def test_the_strategy_does_not_wait_for_a_node_whose_reply_is_malformed(federate: Federate) -> None:
    replied: dict[int, list[int]] = {}

    class Noting(AsymFedAvg):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            of_round = list(replies)
            replied[server_round] = [len(reply.content.array_records) for reply in of_round]
            return super().aggregate_train(server_round, of_round)

    federate(FAULTS["garbled body"], strategy=Noting())
    assert [sorted(replied[server_round]) for server_round in (1, 2, 3)] == [[1, 1, 1], [0, 1, 1], [1, 1, 1]]


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
    run = federate(
        Fault("", worker=with_fields(pseudo_dice=None)), strategy=FlowerStrategy(FedAvg(min_available_nodes=1))
    )
    assert run.messages == []
    for layer, expected in run.mean_of(2, *NODES).items():
        np.testing.assert_allclose(run.average_after(2)[layer], expected, rtol=1e-5)


def test_a_second_reply_is_not_read(federate: Federate) -> None:
    run = federate(grid_class=TwiceGrid)
    assert run.messages == []
    assert all(same(run.average_after(r), run.mean_of(r, *NODES)) for r in (1, 2, 3))


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
    "describe": Fault("malformed FingerprintReply: labels", with_fields(labels=7), kind=Kind.FINGERPRINT, of="ranges"),
    "ranges": Fault(
        "sent malformed ranges: low",
        with_fields(intensity_ranges={"0": {"low": -1e300, "high": 1e300, "integer": False}}),
        kind=Kind.FINGERPRINT,
        of="ranges",
    ),
    "ranges of no channel": Fault(
        "sent ranges of a channel that it does not have: 7",
        with_fields(intensity_ranges={"7": {"low": 0, "high": 1, "integer": False}}),
        kind=Kind.FINGERPRINT,
        of="ranges",
    ),
    "contribution": Fault(
        "sent a malformed fingerprint",
        with_fields(fingerprint={"spacings": "none"}),
        kind=Kind.FINGERPRINT,
        of="contribution",
    ),
    "contribution of other cases": Fault(
        "sent a fingerprint of other cases than were requested",
        lambda answer: answer.body["fingerprint"].update(
            {key: answer.body["fingerprint"][key][:1] for key in ("spacings", "shapes_after_crop", "relative_sizes")}
        ),
        kind=Kind.FINGERPRINT,
        of="contribution",
    ),
    "plan": Fault("malformed PlanReply: layers", with_fields(layers={"../x": [1]}), kind=Kind.PLAN),
    "buffers": Fault("buffers: one is there twice, or is not a layer", with_fields(buffers=["x"]), kind=Kind.PLAN),
    "preprocess": Fault("malformed PreprocessReply: epochs", with_fields(epochs=-1), kind=Kind.PREPROCESS),
    "evaluate": Fault(
        "malformed EvaluateReply: cases.0.case.centre",
        with_text('{"seconds": 1, "cases": [{"dsc": "x"}]}'),
        kind=Kind.EVALUATE,
    ),
    "evaluate another's cases": Fault(
        "sent scores of cases of node Turku",
        lambda answer: answer.body["cases"][0].update(centre="Turku"),
        kind=Kind.EVALUATE,
    ),
}


@pytest.mark.parametrize("fault", OTHER_STAGES.values(), ids=OTHER_STAGES)
def test_in_other_stages_the_others_go_on(federate: Federate, fault: Fault) -> None:
    run = federate(fault, fingerprint="histogram")
    assert len([said for said in run.messages if "Porto" in said or "node 2" in said]) == 1
    assert any(fault.problem in said and said.endswith("; the federation goes on without it") for said in run.messages)
    assert set(pd.read_csv(run.folder / "cases.csv")["model"]) == {"Riga", "Turku"}
    without = fault.kind != Kind.EVALUATE
    assert same(run.average_after(3), run.mean_of(3, *(["Riga", "Turku"] if without else NODES)))
    merged = json.loads((run.folder / "federated_fingerprint.json").read_text())
    cases = 2 * CASES if fault.kind == Kind.FINGERPRINT else 3 * CASES
    bins = IntensityBins(low=10, width=1, number=4, integer=True)
    theirs = DatasetFingerprint.model_validate(fingerprint_of({"0": bins}, CASES).to_dict())
    assert merged == merge_fingerprints([theirs] * (cases // CASES)), "of those that are left, exactly"
    *_, last = (body for body in run.nodes["Riga"].requests_of(Kind.FINGERPRINT) if body.content == "contribution")
    assert last.total_cases == cases


@pytest.mark.parametrize("fault", OTHER_STAGES.values(), ids=OTHER_STAGES)
def test_in_other_stages_it_ends_the_run_where_all_are_needed(federate: Federate, fault: Fault) -> None:
    with pytest.raises(FednnUNetError, match=r"node (Porto|2)\b") as caught:
        federate(fault, min_nodes=None, fingerprint="histogram")
    assert fault.problem in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.UNMASK])  # of secure sums alone
def test_a_node_that_was_upgraded_is_refused_by_name_in_every_stage(federate: Federate, kind: Kind) -> None:
    def upgrade(reply: Message) -> None:
        reply.content.config_records["config"]["version"] = "99.0"

    fault = Fault("", wire=upgrade, kind=kind, of="3" if kind is Kind.TRAIN else "nothing")
    known = "2" if kind is Kind.FINGERPRINT else "Porto"  # on one machine, nodes have no keys that say their names
    with pytest.raises(
        FednnUNetError, match=rf"^node {known}\b.* runs fednnunet 99.0, the server {__version__}; install"
    ):
        federate(fault, min_nodes=None, strategy=AsymFedAvg(keep_local=["head"]), cross_centre=True)


def test_a_node_that_was_upgraded_is_left_out_where_it_may_be_missing(federate: Federate) -> None:
    def upgrade(reply: Message) -> None:
        del reply.content.config_records["config"]["version"]

    run = federate(Fault("", wire=upgrade, of="3"))
    (said,) = run.messages
    assert said.startswith("node Porto: runs fednnunet of an unknown version, the server")
    assert same(run.average_after(3), run.mean_of(3, "Riga", "Turku"))


def test_first_values_come_from_a_node_that_sends_good_ones(federate: Federate) -> None:
    run = federate(Fault(NOT_FINITE, worker=set_value("head", np.nan), of="0"))
    assert run.messages == [f"node Porto {NOT_FINITE}; the federation goes on without it"]
    assert same(run.average_after(0), run.nodes["Turku"].received[0, 1])
    assert all(np.isfinite(array).all() for array in run.average_after(0).values())
    assert all(same(run.average_after(r), run.mean_of(r, *NODES)) for r in (1, 2, 3))


def test_a_broken_model_does_not_travel_to_others(federate: Federate) -> None:
    fault = Fault(NOT_FINITE, worker=set_value("head", np.inf), kind=Kind.SEND_MODEL)
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
    fault = Fault("sent an update 1.2 times as large", worker=multiply_step(10), of="1")
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
    nodes = [ScriptedNode(name) for name in NODES]
    with pytest.raises(FednnUNetError, match="sent layer head"):
        federate(FAULTS["nan"], min_nodes=None, nodes=nodes)
    resumed = federate(Fault("", worker=multiply_step(10)), nodes=nodes)
    assert "sent an update 0.12 times as large as the weights, where 0.01 is usual" in resumed.messages[0]
    assert same(resumed.average_after(2), resumed.mean_of(2, "Riga", "Turku"))
    assert (2, "Porto") not in resumed.rows


def test_norms_are_written_down(federate: Federate) -> None:
    run = federate()
    rounds = pd.read_csv(run.folder / "rounds.csv")
    for _, row in rounds.iterrows():
        node, at = run.nodes[row["node"]], (0, row["round"])
        received, sent = node.received[at], node.sent[at]
        expected = norm({layer: sent[layer] - received[layer] for layer in LAYERS}) / norm(received)
        assert row["update_norm"] == pytest.approx(expected, rel=1e-5)
