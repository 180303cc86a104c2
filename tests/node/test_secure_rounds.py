"""What a node lets out of secure sums, and refuses a server that lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fednnunet.config.groups import TrainerConfig
from fednnunet.config.privacy import NodeNoiseConfig, SecureSumsConfig
from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.messages import (
    LayerClass,
    PreprocessRequest,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
)
from fednnunet.node.secure_rounds import SecureRounds
from tests.support.secure_nodes import RUN, Authority

pytestmark = pytest.mark.unit

NAMES = ["Linz", "Porto", "Riga", "Turku"]
LAYERS = {"encoder": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "head": np.ones(5, np.float32)}

TRAINER = TrainerConfig.model_validate({"class": "nnUNetTrainer"})

Rounds = Callable[[str], SecureRounds]


@pytest.fixture
def start(tmp_path: Path) -> Rounds:
    """Start the worker of a node; again, it has what is on its disk."""
    authority = Authority(tmp_path / "keys")

    def start(name: str) -> SecureRounds:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return SecureRounds(name, folder, SecureSumsConfig(), authority.identity(name))

    return start


@pytest.fixture
def nodes(start: Rounds) -> dict[str, SecureRounds]:
    """Four nodes that know each other's keys."""
    nodes = {name: start(name) for name in NAMES}
    join(nodes, list(nodes.values()))
    return nodes


def join(nodes: dict[str, SecureRounds], joining: Sequence[SecureRounds]) -> None:
    keys = [node.signed_key(RUN) for node in nodes.values()]
    for node in joining:
        node.join(PreprocessRequest(secure_run=RUN, keys=keys))


def request(server_round: int = 1, classes: Sequence[LayerClass] | None = None) -> TrainRequest:
    both = [LayerClass(members=NAMES, layers=list(LAYERS))]
    return TrainRequest(server_round=server_round, layers=list(LAYERS), classes=both if classes is None else classes)


def train(
    node: SecureRounds, body: TrainRequest, step: float = 0.1, after: int | None = None
) -> tuple[TrainReply, dict[str, np.ndarray]]:
    node.start_round(body, LAYERS, body.server_round - 1 if after is None else after)
    return send(node, body, step)


def send(node: SecureRounds, body: TrainRequest, step: float = 0.1) -> tuple[TrainReply, dict[str, np.ndarray]]:
    layers = {name: array + np.float32(step) for name, array in LAYERS.items()}
    wire = node.spec({name: (array.shape, array.dtype) for name, array in layers.items()}, body)
    out = {name: np.empty(shape, dtype) for name, (shape, dtype) in wire.items()}
    reply = TrainReply(server_round=body.server_round, num_examples=4, train_loss=-0.5, pseudo_dice=0.75)
    return node.mask(body, layers, reply, out), out


def unmask_request(
    replies: dict[str, TrainReply], reader: str, arrived: Sequence[str], server_round: int = 1
) -> UnmaskRequest:
    shares = {name: replies[name].shares[0][reader] for name in arrived}
    return UnmaskRequest(fold=0, server_round=server_round, arrived=[list(arrived)], shares=[shares])


def test_asked_again_it_sends_the_same(nodes: dict[str, SecureRounds], start: Rounds) -> None:
    """Also after its worker was restarted, from what is on its disk."""
    reply, out = train(nodes["Riga"], request())
    again, out_again = send(nodes["Riga"], request())
    restarted = start("Riga")
    join(nodes, [restarted])
    later, out_later = send(restarted, request())
    assert reply == again == later
    assert all(np.array_equal(out[name], o[name]) for o in (out_again, out_later) for name in out)
    assert (reply.train_loss, reply.pseudo_dice) == (None, None)


def test_layers_trained_again_have_other_masks(nodes: dict[str, SecureRounds]) -> None:
    """The difference of two replies would be the difference of the layers."""
    node = nodes["Riga"]
    _, out = train(node, request())
    _, other = train(node, request(), step=0.1001)
    assert np.abs(out["encoder"].astype(float) - other["encoder"]).min() > 1000


def test_a_sum_is_opened_for_one_set_of_arrivals(nodes: dict[str, SecureRounds], start: Rounds) -> None:
    """Neither a restart, nor rounds since then, nor training it again lets it be opened for another set."""
    replies = {name: train(node, request())[0] for name, node in nodes.items()}
    first = nodes["Riga"].unmask(unmask_request(replies, "Riga", NAMES))
    assert isinstance(first, UnmaskReply)
    assert nodes["Riga"].unmask(unmask_request(replies, "Riga", NAMES)) == first
    fewer = unmask_request(replies, "Riga", ["Linz", "Riga", "Turku"])
    with pytest.raises(ProtocolError, match="node Riga has opened round 1 for other nodes before"):
        nodes["Riga"].unmask(fewer)
    restarted = start("Riga")
    join(nodes, [restarted])
    train(restarted, request(2))
    with pytest.raises(ProtocolError, match="has sent no layers of round 1 to be opened"):
        restarted.unmask(fewer)
    train(restarted, request(1))
    with pytest.raises(ProtocolError, match="node Riga has opened round 1 for other nodes before"):
        restarted.unmask(fewer)


@pytest.mark.parametrize(
    ("arrived", "problem"),
    [
        (["Linz", "Riga"], "is not opened: it takes 3 members of the class"),
        (["Linz", "Porto", "Turku"], "this node among them"),
        (["Linz", "Riga", "Riga", "Riga"], "is not opened"),
    ],
)
def test_too_few_arrivals_are_not_opened(nodes: dict[str, SecureRounds], arrived: list[str], problem: str) -> None:
    replies = {name: train(node, request())[0] for name, node in nodes.items()}
    with pytest.raises(ProtocolError, match=problem):
        nodes["Riga"].unmask(unmask_request(replies, "Riga", arrived))


@pytest.mark.parametrize("change", [{"most_cases": 9000}, {"proximal_mu": 1e6}, {"epochs": 2}])
def test_a_node_that_was_asked_for_more_than_others_is_in_no_sum_with_them(
    nodes: dict[str, SecureRounds], change: dict[str, float]
) -> None:
    """Where all others hardly train, or hardly count, the sum would be the layers of one."""
    same = request()
    replies = {name: train(nodes[name], same.model_copy(update=change if name != "Riga" else {}))[0] for name in NAMES}
    with pytest.raises(ProtocolError, match="the shares of node Linz are not for this node, round and class"):
        nodes["Riga"].unmask(unmask_request(replies, "Riga", NAMES))


@pytest.mark.parametrize(
    "told",
    [
        {"training": [TRAINER.model_copy(update={"iterations": 9})]},
        {"training": [TRAINER, None, NodeNoiseConfig(noise=1e-9, clip=1e-9)]},
        {"config": SecureSumsConfig(limit=1e30)},
    ],
)
def test_a_node_that_was_told_otherwise_before_is_in_no_sum_with_others(tmp_path: Path, told: dict[str, Any]) -> None:
    """Layers that hardly train, are clipped to nothing, or are written as zeros would leave one node's alone."""
    authority, same = Authority(tmp_path / "keys"), {"config": SecureSumsConfig(), "training": [TRAINER]}
    nodes = {}
    for name in NAMES:
        (tmp_path / name).mkdir()
        settings: dict[str, Any] = same if name == "Riga" else same | told
        nodes[name] = SecureRounds(name, tmp_path / name, identity=authority.identity(name), **settings)
    join(nodes, list(nodes.values()))
    replies = {name: train(node, request())[0] for name, node in nodes.items()}
    with pytest.raises(ProtocolError, match="the shares of node Linz are not for this node"):
        nodes["Riga"].unmask(unmask_request(replies, "Riga", NAMES))


def test_a_round_is_sent_again_only_as_it_was_asked_for(nodes: dict[str, SecureRounds], start: Rounds) -> None:
    """With other weights or layers under the same masks, the difference of two replies would be the node's layers."""
    body = request()
    reply, _ = train(nodes["Riga"], body)
    others = [
        body.model_copy(update={"most_cases": 8}),
        body.model_copy(update={"classes": [class_of(NAMES, *reversed(LAYERS))]}),
    ]
    restarted = start("Riga")
    join(nodes, [restarted])
    for node in (nodes["Riga"], restarted):
        for other in others:
            with pytest.raises(ProtocolError, match="does not know what the masks of round 1 depend on"):
                send(node, other)
        assert send(node, body)[0] == reply


def test_a_sum_is_opened_with_the_same_shares_only(nodes: dict[str, SecureRounds]) -> None:
    """Both masks of a round that was trained twice would give the difference of its layers."""
    replies = {name: train(node, request())[0] for name, node in nodes.items()}
    nodes["Riga"].unmask(unmask_request(replies, "Riga", NAMES))
    replies["Linz"] = train(nodes["Linz"], request(), step=0.2)[0]
    with pytest.raises(ProtocolError, match="node Riga has opened round 1 with other shares before"):
        nodes["Riga"].unmask(unmask_request(replies, "Riga", NAMES))


@pytest.mark.parametrize("settings", [{}, {"most_cases": 8}])
def test_a_round_is_opened_for_the_same_classes_only(nodes: dict[str, SecureRounds], settings: dict[str, int]) -> None:
    """A class of three of the four, or those three of the four with other masks, would tell the fourth's layers."""
    replies = {name: train(node, request())[0] for name, node in nodes.items()}
    nodes["Riga"].unmask(unmask_request(replies, "Riga", NAMES))
    three = ["Linz", "Porto", "Riga"]
    other = request(classes=[class_of(NAMES if settings else three, *LAYERS)]).model_copy(update=settings)
    replies = {name: train(nodes[name], other)[0] for name in three}
    with pytest.raises(ProtocolError, match="node Riga has opened round 1 for other nodes before"):
        nodes["Riga"].unmask(unmask_request(replies, "Riga", three))


def test_a_round_is_opened_under_one_number(nodes: dict[str, SecureRounds], start: Rounds) -> None:
    """Trained from the same state, the next round has nearly the same layers: it would be opened for other nodes."""
    replies = {name: train(node, request())[0] for name, node in nodes.items()}
    nodes["Riga"].unmask(unmask_request(replies, "Riga", NAMES))
    nodes["Riga"] = start("Riga")
    join(nodes, [nodes["Riga"]])
    replies = {name: train(node, request(2), after=0)[0] for name, node in nodes.items()}
    with pytest.raises(ProtocolError, match="node Riga has opened another round after round 0 before"):
        nodes["Riga"].unmask(unmask_request(replies, "Riga", NAMES[:3], 2))
    replies = {name: train(node, request(3), after=2)[0] for name, node in nodes.items()}
    nodes["Riga"].unmask(unmask_request(replies, "Riga", NAMES[:3], 3))


def test_keys_of_a_run_stay_once_layers_were_sent(nodes: dict[str, SecureRounds]) -> None:
    """With new keys, the server could have the same layers opened for other nodes."""
    train(nodes["Riga"], request())
    with pytest.raises(ProtocolError, match="node Riga has sent layers with keys of another run"):
        nodes["Riga"].signed_key("f" * 32)


def test_unlike_layers_of_one_class_spoil_the_masks_of_all(nodes: dict[str, SecureRounds]) -> None:
    """A network whose other layers are dead does not train: the sum would be one node's layers."""
    body = request(classes=[class_of(NAMES, "encoder"), class_of(NAMES[:3], "head")])
    replies = {}
    for name in NAMES[:3]:
        dead = {**LAYERS, "head": np.zeros_like(LAYERS["head"])}
        nodes[name].start_round(body, LAYERS if name == "Riga" else dead, 0)
        replies[name] = send(nodes[name], body)[0]
    shares = [{name: of.shares[number]["Riga"] for name, of in replies.items()} for number in (0, 1)]
    ask = UnmaskRequest(fold=0, server_round=1, arrived=[NAMES[:3], []], shares=[shares[0], {}])
    with pytest.raises(ProtocolError, match="the shares of node Linz are not for this node, round and class"):
        nodes["Riga"].unmask(ask)


def test_layers_of_no_class_are_not_taken(nodes: dict[str, SecureRounds]) -> None:
    with pytest.raises(ProtocolError, match="the server sends layer tail, which is in no class"):
        nodes["Riga"].start_round(request(), {**LAYERS, "tail": np.zeros(3, np.float32)}, 0)


def class_of(members: Sequence[str], *layers: str) -> LayerClass:
    return LayerClass(members=list(members), layers=list(layers))


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        ([], "asks for layers in clear, which are summed securely here"),
        ([class_of(NAMES, "encoder")], "sends layer head, which is in no class"),
        ([class_of(NAMES, "encoder", "head"), class_of(NAMES, "head")], "a layer in two classes"),
        ([class_of(NAMES, "encoder"), class_of(NAMES, "head")], "two classes of the same nodes"),
        ([class_of(NAMES, "encoder", "head", "tail")], "a layer in two classes, or in none of the round"),
        ([class_of(["Riga"], "encoder", "head")], "a class of 1 members is not added up: it takes 3"),
        ([class_of(["Linz", "Riga"], "encoder", "head")], "a class of 2 members is not added up"),
        ([class_of([*NAMES, "Ulm"], "encoder", "head")], "node Ulm has no key in this run"),
        ([class_of(["Turku", "Riga", "Linz"], "encoder", "head")], "a class of Turku, Riga, Linz is none of node Riga"),
        (
            [class_of(NAMES), class_of(["Linz", "Porto", "Turku"], "encoder", "head")],
            "a class that node Riga is not in",
        ),
    ],
)
def test_layers_leave_in_sums_only(nodes: dict[str, SecureRounds], classes: list[LayerClass], problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        train(nodes["Riga"], request(classes=classes))


@pytest.mark.parametrize(
    ("value", "problem"),
    [(65.0, r"holds a value that is too large; secure sums take at most 64"), (np.nan, "holds NaN or infinity")],
)
def test_values_that_do_not_fit_are_refused(nodes: dict[str, SecureRounds], value: float, problem: str) -> None:
    body, node = request(), nodes["Riga"]
    node.start_round(body, LAYERS, body.server_round - 1)
    layers = {name: array.copy() for name, array in LAYERS.items()}
    layers["head"][2] = value + 0.1
    wire = node.spec({name: (array.shape, array.dtype) for name, array in layers.items()}, body)
    out = {name: np.empty(shape, dtype) for name, (shape, dtype) in wire.items()}
    with pytest.raises(ProtocolError, match=f"layer head of node Riga {problem}"):
        node.mask(body, layers, TrainReply(server_round=1, num_examples=4), out)


def test_keys_of_another_run_are_refused(nodes: dict[str, SecureRounds]) -> None:
    other = "f" * 32
    keys = [node.signed_key(other if name == "Porto" else RUN) for name, node in nodes.items()]
    with pytest.raises(ProtocolError, match="the key of node Porto was not signed by this node for this run"):
        nodes["Riga"].join(PreprocessRequest(secure_run=RUN, keys=keys))


@pytest.mark.parametrize("names", [["Linz", "Porto", "Turku"], ["Riga", "Linz", "Porto", "Riga"]])
def test_a_list_of_keys_without_its_own_or_with_one_twice_is_refused(
    nodes: dict[str, SecureRounds], names: list[str]
) -> None:
    keys = [nodes[name].signed_key(RUN) for name in names]
    with pytest.raises(ProtocolError, match="one key of every node, this one's among them"):
        nodes["Riga"].join(PreprocessRequest(secure_run=RUN, keys=keys))


def test_without_a_certificate_there_are_no_sums(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="node Riga: secure sums need a certificate"):
        SecureRounds("Riga", tmp_path, SecureSumsConfig(), None)


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (7.0, r"much more than is usual for it, .* \(privacy\.secure_sums\.max_update_norm\)"),
        (np.nan, "node Riga .* not finite"),
    ],
)
def test_an_update_that_is_too_large_is_not_sent(nodes: dict[str, SecureRounds], step: float, problem: str) -> None:
    """The server would not see whose it was."""
    node = nodes["Riga"]

    def train_step(server_round: int, step: float) -> None:
        body = request(server_round)
        node.start_round(body, LAYERS, body.server_round - 1)
        node.end_round(body, LAYERS, {name: array + np.float32(step) for name, array in LAYERS.items()})
        send(node, body, step)

    train_step(1, 0.1)
    train_step(2, 0.12)
    with pytest.raises(ProtocolError, match=problem):
        train_step(3, step)
    train_step(4, 0.1)
