"""What a node makes of layers that come as steps, and how it sends its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fednnunet.errors import MissingReferenceError, ProtocolError
from fednnunet.exchange.arrays import SharedArrays
from fednnunet.exchange.messages import EvaluateRequest, ExchangeDtype, Kind, TrainRequest
from fednnunet.exchange.quantisation import decode_step, digest, encode_step
from fednnunet.files import write_arrays
from fednnunet.node.error_replies import refuse
from fednnunet.node.layer_receiver import LayerReceiver
from fednnunet.node.layer_sender import LayerSender

WEIGHT = "0.weight"
LAYERS = ["0.weight", "0.bias", "1.running_mean", "1.num_batches_tracked"]
STEPS: list[ExchangeDtype] = ["int8", "int4"]
State = dict[str, np.ndarray]

FIRST = np.float32([1, 2, 3])
SECOND = np.float32([1.5, 2, 2])


def request(references: dict[str, str] | None = None, dtype: ExchangeDtype = "int8") -> TrainRequest:
    return TrainRequest(server_round=2, layers=[], dtype=dtype, references=references or {})


def step_to_second() -> np.ndarray:
    wire = encode_step(SECOND - FIRST, "int8")
    assert wire is not None
    return wire


# receiving -------------------------------------------------------------------------------------------


def test_a_step_starts_from_what_was_received_last() -> None:
    receiver = LayerReceiver()
    assert np.array_equal(receiver.decode(request(), {"w": FIRST, "n": np.int64(3)})["w"], FIRST)
    arrays = {"w": step_to_second(), "n": np.array(4)}
    second = receiver.decode(request({"w": digest(FIRST)}), arrays)
    np.testing.assert_allclose(second["w"], SECOND, atol=0.01)
    assert second["n"] == 4
    assert receiver.decode(request({"w": digest(FIRST)}), arrays) is second, "the same request is not decoded twice"
    body = EvaluateRequest(dtype="int8", references={"w": digest(second["w"])})
    final = receiver.decode(body, {"w": step_to_second()})["w"]
    np.testing.assert_allclose(final, [2, 2, 1], atol=0.02)


def test_what_was_received_whole_outlives_the_memory_of_its_request() -> None:
    shared = SharedArrays.allocate({"w": (FIRST.shape, FIRST.dtype)})
    np.copyto(shared.views()["w"], FIRST)
    receiver = LayerReceiver()
    first = receiver.decode(request(), shared.views())
    assert not np.shares_memory(first["w"], shared.views()["w"])
    assert np.array_equal(first["w"], FIRST)
    assert receiver.decode(request({"w": digest(FIRST)}), {"w": step_to_second()})["w"].shape == (3,)


@pytest.mark.parametrize("held", [{}, {"w": SECOND}, {"v": FIRST}, {"w": np.float64([1, 2, 3])}], ids=str)
def test_without_its_start_a_step_is_asked_for_as_whole_layers_and_nothing_is_lost(held: State) -> None:
    receiver = LayerReceiver()
    before = receiver.decode(request(), held)
    with pytest.raises(MissingReferenceError, match=r"^1 of 1 layers start from what this node does not have"):
        receiver.decode(request({"w": digest(FIRST)}), {"w": step_to_second()})
    assert receiver.decode(request(), held) is before
    assert np.array_equal(receiver.decode(request(), {"w": FIRST})["w"], FIRST)
    assert receiver.decode(request({"w": digest(FIRST)}), {"w": step_to_second()})["w"].shape == (3,)


def test_the_server_is_told_in_one_line_that_it_may_send_whole_layers() -> None:
    with pytest.raises(MissingReferenceError) as error:
        LayerReceiver().decode(request({"w": digest(FIRST)}), {"w": step_to_second()})
    failure = refuse(error.value, Kind.TRAIN, "Riga", same_machine=False)
    assert failure.error == "reference"
    assert failure.reason.startswith("node Riga: 1 of 1 layers start from")


def test_a_restart_of_the_fold_forgets_what_was_received() -> None:
    receiver = LayerReceiver()
    receiver.decode(request(), {"w": FIRST})
    receiver.reset()
    with pytest.raises(MissingReferenceError):
        receiver.decode(request({"w": digest(FIRST)}), {"w": step_to_second()})


@pytest.mark.parametrize(
    ("body", "arrays", "problem"),
    [
        (request({"w": digest(FIRST)}, "float32"), {"w": FIRST}, "steps where layers travel as float32"),
        (request({"w": digest(FIRST)}), {}, "announced a step of layer w, and sent none"),
        (request({"w": digest(FIRST)}), {"w": SECOND}, "the server sent layer w as float32"),
        (request({"w": digest(FIRST)}), {"w": step_to_second()[:-1]}, "the server sent layer w as a step that cannot"),
    ],
)
def test_a_step_that_is_none_is_refused_and_whole_layers_help(body: TrainRequest, arrays: State, problem: str) -> None:
    receiver = LayerReceiver()
    receiver.decode(request(), {"w": FIRST})
    with pytest.raises(ProtocolError, match=problem):
        receiver.decode(body, arrays)
    assert np.array_equal(receiver.decode(request(), {"w": FIRST})["w"], FIRST)


# sending -----------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))


def state(network: nn.Module) -> State:
    return {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items() if name in LAYERS}


def train(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.01 * torch.randn(parameter.shape)


def copied(sent: SharedArrays) -> State:
    return {name: array.copy() for name, array in sent.views().items()}


@pytest.mark.parametrize("dtype", STEPS)
def test_trained_layers_are_steps_from_the_start_of_the_round_and_others_travel_as_they_are(
    network: nn.Module, dtype: ExchangeDtype
) -> None:
    sender = LayerSender()
    left: State = {}
    for _ in range(3):
        start = state(network)
        train(network)
        stored = sender.finish_round(network, LAYERS, dtype, start)
        sent = copied(sender.rounded(network, LAYERS, dtype))
        now = state(network)
        assert np.array_equal(sent["1.running_mean"], now["1.running_mean"])
        assert sent["1.running_mean"].dtype == np.float32
        assert sent["1.num_batches_tracked"].dtype == np.int64
        for layer in ("0.weight", "0.bias"):
            step = decode_step(sent[layer], start[layer], dtype, "") - start[layer]
            wanted = now[layer] - start[layer] + left.get(layer, 0)
            np.testing.assert_allclose(step + stored[f"left/{layer}"], wanted, atol=1e-6)
            left[layer] = stored[f"left/{layer}"].copy()
        assert np.abs(left[WEIGHT]).max() > 0


@pytest.mark.parametrize("dtype", STEPS)
def test_a_restarted_node_sends_the_same_bytes_and_goes_on_as_it_would_have(
    network: nn.Module, tmp_path: Path, dtype: ExchangeDtype
) -> None:
    """It has the files of the checkpoint, and not what the round began with."""
    before = LayerSender()
    for _ in range(2):
        start = state(network)
        train(network)
        write_arrays(tmp_path / "round.npz", before.finish_round(network, LAYERS, dtype, start))
        sent = copied(before.rounded(network, LAYERS, dtype))
    with np.load(tmp_path / "round.npz") as stored:
        after = LayerSender()
        after.restore_round(network, LAYERS, dtype, dict(stored))
    again = copied(after.rounded(network, LAYERS, dtype))
    assert list(again) == LAYERS
    assert all(again[name].tobytes() == sent[name].tobytes() for name in LAYERS)
    start = state(network)
    train(network)
    for sender in (before, after):
        sender.finish_round(network, LAYERS, dtype, start)
    ours, theirs = (copied(sender.rounded(network, LAYERS, dtype)) for sender in (after, before))
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in LAYERS)


def test_a_layer_that_the_round_did_not_begin_with_is_sent_whole(network: nn.Module) -> None:
    sender = LayerSender()
    sender.finish_round(network, LAYERS, "int8", {})
    assert np.array_equal(copied(sender.rounded(network, LAYERS, "int8"))[WEIGHT], state(network)[WEIGHT])


def test_a_node_whose_training_diverged_says_so_every_time_and_can_join_again(network: nn.Module) -> None:
    sender, start = LayerSender(), state(network)
    with torch.no_grad():
        network[1].bias.fill_(torch.nan)
    layers = [*LAYERS, "1.bias"]
    stored = sender.finish_round(network, layers, "int8", {**start, "1.bias": np.zeros(5, np.float32)})
    restored = LayerSender()
    restored.restore_round(network, layers, "int8", stored)
    for one in (sender, sender, restored):
        with pytest.raises(ProtocolError, match="values that are not finite"):
            one.rounded(network, layers, "int8")
    sender.finish_round(network, LAYERS, "int8", start)
    assert copied(sender.rounded(network, LAYERS, "int8")).keys() == set(LAYERS)


def test_other_layers_than_at_first_are_refused(network: nn.Module) -> None:
    sender = LayerSender()
    sender.finish_round(network, LAYERS, "int8", state(network))
    for layers, dtype in ((LAYERS[:1], "int8"), (LAYERS, "int4")):
        with pytest.raises(ProtocolError, match="sent before with other layers"):
            sender.rounded(network, layers, dtype)  # type: ignore[arg-type]
