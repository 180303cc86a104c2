"""Layers that travel as steps of 8 or 4 bits: what nodes are sent, what the server makes of their replies."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fednnunet.errors import FednnUNetError
from fednnunet.exchange.messages import Kind, TrainRequest
from fednnunet.exchange.quantisation import HEADER
from fednnunet.server.node_client import PendingReplies
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from tests.support.scripted_federation import (
    LAYERS,
    Answer,
    Fault,
    FinishedRun,
    RunFederation,
    ScriptedNode,
    WorkerLacksReference,
    fail_with_reason,
    norm,
    same,
)

NAMES = ("Riga", "Porto", "Turku")
PRECISION = {"int8": 0.02, "int4": 0.3}
"""Largest distance from the mean of what nodes have, relative to their steps."""


def nodes(epochs: int = 3, names: Sequence[str] = NAMES) -> list[ScriptedNode]:
    return [ScriptedNode(name, epochs=epochs) for name in names]


def steps_of(run: FinishedRun, node: str, fold: int = 0) -> dict[int, list[str]]:
    """Round to the layers that a node received as steps; the round after the last is evaluation."""
    return {server_round: layers for (f, server_round), layers in run.nodes[node].steps.items() if f == fold}


@pytest.mark.parametrize("dtype", PRECISION)
def test_after_the_first_round_layers_travel_as_steps_in_both_directions(
    run_federation: RunFederation, dtype: str
) -> None:
    run = run_federation(nodes(), settings={"dtype": dtype})
    for name in NAMES:
        assert steps_of(run, name) == {1: [], 2: list(LAYERS), 3: list(LAYERS), 4: list(LAYERS)}
    for server_round in (1, 2, 3):
        mean, got = run.mean_of(server_round, *NAMES), run.average_after(server_round)
        step = norm({layer: mean[layer] - run.nodes["Riga"].received[0, server_round][layer] for layer in mean})
        assert 0 < norm({layer: mean[layer] - got[layer] for layer in mean}) < PRECISION[dtype] * 2 * step
    for name in NAMES:
        assert same(run.nodes[name].final[0], run.average_after(3)), "all end with what the server has"
    assert run.nodes["Riga"].requests_of(Kind.EVALUATE)[0].dtype == dtype


@pytest.mark.parametrize("dtype", PRECISION)
def test_what_is_left_over_does_not_add_up_over_rounds(run_federation: RunFederation, dtype: str) -> None:
    """A node that steps by the same amount in every round: after ten, the average is as far away as after one."""

    class Steady(ScriptedNode):
        def _step(self, fold: object, server_round: int, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            rng = np.random.default_rng(7)
            return {
                layer: array + (rng.standard_normal(array.shape) / 100).astype(np.float32)
                for layer, array in state.items()
            }

    run = run_federation([Steady("Riga", epochs=10)], settings={"dtype": dtype})
    exact = run.nodes["Riga"].received[0, 1]
    distances = []
    for server_round in range(1, 11):
        rng = np.random.default_rng(7)
        step = {layer: rng.standard_normal(array.shape) / 100 for layer, array in exact.items()}
        wanted = {layer: exact[layer] + server_round * step[layer] for layer in exact}
        distances.append(norm({layer: wanted[layer] - run.average_after(server_round)[layer] for layer in exact}))
    bound = 4 * np.sqrt(17) * 0.03 / (127 if dtype == "int8" else 7)
    assert max(distances) < bound


def test_a_restarted_node_gets_the_layers_whole_once_and_nothing_else_changes(run_federation: RunFederation) -> None:
    whole = run_federation(nodes(5), settings={"dtype": "int4"})
    folder = whole.folder / "restarted"
    members = nodes(5)
    members[1].restarted_before = {3, 6}
    run = run_federation(members, settings={"dtype": "int4"}, folder=folder)
    assert all(same(run.nodes[name].final[0], whole.nodes[name].final[0]) for name in NAMES)
    assert steps_of(run, "Porto") == {1: [], 2: list(LAYERS), 3: [], 4: list(LAYERS), 5: list(LAYERS), 6: []}
    asked = [body.server_round for body in run.nodes["Porto"].requests_of(Kind.TRAIN) if body.server_round]
    assert asked == [1, 2, 3, 3, 4, 5]
    assert len(run.nodes["Porto"].requests_of(Kind.EVALUATE)) == 2
    down = run.rounds.set_index(["round", "node"])["bytes_down"]
    undisturbed = whole.rounds.set_index(["round", "node"])["bytes_down"]
    size = 4 * sum(int(np.prod(shape)) for shape in LAYERS.values())
    assert down[3, "Porto"] > undisturbed[3, "Porto"] + size, "what was sent in vain is counted, too"
    assert down.drop((3, "Porto")).equals(undisturbed.drop((3, "Porto")))
    assert run.rows == whole.rows
    assert not any("Porto" in message for message in run.messages)


def test_a_node_that_takes_no_steps_and_no_whole_layers_fails_by_name(run_federation: RunFederation) -> None:
    def refuse(_: Answer) -> None:
        raise WorkerLacksReference

    members = nodes()
    with pytest.raises(FednnUNetError, match=r"^node Porto: it lacks 2 layers$"):
        run_federation(members, settings={"dtype": "int8"}, faults={"Porto": Fault("", worker=refuse)})
    asked = [body for body in members[1].requests_of(Kind.TRAIN) if body.server_round == 2]
    assert [bool(body.references) for body in asked] == [True, False], "with whole layers once, and then no more"


def test_nodes_that_were_not_in_the_last_round_get_the_layers_whole(run_federation: RunFederation) -> None:
    run = run_federation(nodes(8), AsymFedAvg(fraction_train=0.6, seed=1), {"dtype": "int8"})
    drawn = {name: {r for r, node in run.rows if node == name} for name in NAMES}
    assert any(len(rounds) < 8 for rounds in drawn.values())
    for name, rounds in drawn.items():
        expected = {r: list(LAYERS) if r - 1 in rounds else [] for r in sorted(rounds | {9})}
        assert steps_of(run, name) == expected
    finals = [run.nodes[name].final[0] for name in NAMES]
    assert same(finals[0], finals[1])
    assert same(finals[0], finals[2])


@pytest.mark.parametrize("dtype", PRECISION)
def test_a_node_whose_reply_comes_too_late_goes_on_in_steps_from_what_it_was_sent(
    run_federation: RunFederation, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Porto answers round 2 only when Riga is asked for round 3; the deadline is when all others have answered."""
    holds, is_third_round = threading.Event(), threading.Event()

    class First(ScriptedNode):
        def answer(self, body: Any, request: Any) -> Answer:
            if isinstance(body, TrainRequest) and body.server_round == 3:
                is_third_round.set()
            return super().answer(body, request)

    def hold(_: Answer) -> None:
        holds.set()
        assert is_third_round.wait(20)

    def others_have_answered(pending: PendingReplies) -> bool:
        return holds.is_set() and not is_third_round.is_set() and list(pending.message_ids.values()) == [2]

    monkeypatch.setattr(PendingReplies, "is_overdue", property(others_have_answered))
    members = [First("Riga", epochs=4), *nodes(4, NAMES[1:])]
    late = Fault("", worker=hold, of="2")
    run = run_federation(members, settings={"dtype": dtype, "min_nodes": 2}, faults={"Porto": late})
    assert {r: {name for row, name in run.rows if row == r} for r in range(1, 5)} == {
        1: set(NAMES),
        2: {"Riga", "Turku"},
        3: set(NAMES),
        4: set(NAMES),
    }
    assert steps_of(run, "Porto") == {1: []} | {r: list(LAYERS) for r in range(2, 6)}
    mean, got, start = run.mean_of(2, "Riga", "Turku"), run.average_after(2), run.nodes["Riga"].received[0, 2]
    step = norm({layer: mean[layer] - start[layer] for layer in mean})
    assert norm({layer: mean[layer] - got[layer] for layer in mean}) < PRECISION[dtype] * 2 * step
    for name in NAMES:
        assert same(run.nodes[name].final[0], run.average_after(4))


def test_a_round_without_replies_of_a_layers_nodes_sends_it_whole(run_federation: RunFederation) -> None:
    """Only Turku has the layer extra; its reply of round 2 is lost, and no step leads on from what it was sent."""
    members = [
        ScriptedNode("Riga", epochs=4),
        ScriptedNode("Porto", epochs=4),
        ScriptedNode("Turku", {**LAYERS, "extra": [6]}, epochs=4),
        ScriptedNode("Oslo", {**LAYERS, "extra": [6]}, epochs=4),
    ]
    lost = Fault("", worker=fail_with_reason("lost"), of="2")
    run = run_federation(
        members,
        AsymFedAvg(average_over="groups"),
        {"dtype": "int8", "min_nodes": 2},
        {"Turku": lost, "Oslo": lost},
    )
    assert {name for r, name in run.rows if r == 2} == {"Riga", "Porto"}
    assert steps_of(run, "Turku")[3] == list(LAYERS)
    assert steps_of(run, "Turku")[4] == [*LAYERS, "extra"]
    assert np.array_equal(run.nodes["Turku"].received[0, 3]["extra"], run.nodes["Turku"].received[0, 2]["extra"]), (
        "it keeps its average"
    )


def test_a_restarted_server_sends_layers_whole_and_ends_with_the_same(
    run_federation: RunFederation, tmp_path: Path
) -> None:
    whole = run_federation(nodes(5), settings={"dtype": "int8"}, folder=tmp_path / "whole")
    members, folder = nodes(5), tmp_path / "restarted"
    with pytest.raises(FednnUNetError, match="the power is gone"):
        run_federation(
            members,
            settings={"dtype": "int8"},
            faults={"Porto": Fault("", worker=fail_with_reason("the power is gone"), of="4")},
            folder=folder,
        )
    run = run_federation(members, settings={"dtype": "int8"}, folder=folder)
    assert all(same(run.nodes[name].final[0], whole.nodes[name].final[0]) for name in NAMES)
    assert steps_of(run, "Riga")[4] == []
    assert steps_of(run, "Riga")[5] == list(LAYERS)


def bits_of(number: int) -> Callable[[Answer], None]:
    def change(answer: Answer) -> None:
        answer.arrays = {
            name: np.concatenate([np.uint8([1, number]), wire[HEADER.size :]]) for name, wire in answer.arrays.items()
        }

    return change


def endless_scale(answer: Answer) -> None:
    wire = answer.arrays["head"].copy()
    wire[2:6] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    answer.arrays = {**answer.arrays, "head": wire}


def whole_layers(answer: Answer) -> None:
    answer.arrays = {name: np.ones(shape, np.float32) for name, shape in LAYERS.items()}


def cut(answer: Answer) -> None:
    answer.arrays = {name: wire[:-3] for name, wire in answer.arrays.items()}


LIES = {
    "other bits": (bits_of(4), "sent layer encoder as a step of 4 bits in format 1 instead of 8 bits in format 1"),
    "a scale that is no number": (endless_scale, "sent layer head as a step with a scale that is not finite"),
    "whole layers": (whole_layers, r"sent layer encoder as float32 \(4, 3\) instead of the bytes of an int8 step"),
    "a cut frame": (cut, "sent layer encoder as a step that cannot be decompressed"),
}


@pytest.mark.parametrize(("lie", "problem"), LIES.values(), ids=LIES)
def test_a_reply_that_is_no_step_costs_its_node_the_round_and_no_other(
    run_federation: RunFederation, lie: Callable[[Answer], None], problem: str
) -> None:
    run = run_federation(nodes(), settings={"dtype": "int8", "min_nodes": 2}, faults={"Porto": Fault("", worker=lie)})
    assert (2, "Porto") not in run.rows
    assert len(run.rows) == 8
    assert [message for message in run.messages if re.search(f"node Porto.*{problem}", message)]
    assert steps_of(run, "Porto")[3] == list(LAYERS), "it was sent round 2, and goes on from there"
