"""What a node sends, rounded or as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import SharedArrays
from fednnunet.node.layer_sender import LayerSender

WEIGHT = "0.weight"
LAYERS = ["0.weight", "0.bias", "1.running_mean", "1.num_batches_tracked"]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))


def copied(sent: SharedArrays) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in sent.views().items()}


def test_a_round_is_rounded_once_whatever_is_sent_in_between(network: nn.Module) -> None:
    sender = LayerSender()
    assert all((left == 0).all() for left in sender.finish_round(network, LAYERS, "bfloat16", {}).values())
    first = copied(sender.rounded(network, LAYERS, "bfloat16"))
    assert first["1.num_batches_tracked"].dtype == np.int64
    assert first["1.running_mean"].dtype == np.float32, "running statistics are sent as they are"
    plain = copied(sender.plain(network, LAYERS))
    assert np.array_equal(plain[WEIGHT], network[0].weight.detach().numpy())
    again = copied(sender.rounded(network, LAYERS, "bfloat16"))
    assert all(first[name].tobytes() == again[name].tobytes() for name in LAYERS)
    left = sender.finish_round(network, LAYERS, "bfloat16", {})
    assert np.array_equal(left[WEIGHT], plain[WEIGHT] - first[WEIGHT].astype(np.float32))


def test_a_round_of_a_checkpoint_goes_on_as_it_would_have(network: nn.Module) -> None:
    before = LayerSender()
    for _ in range(3):
        stored = {name: left.copy() for name, left in before.finish_round(network, LAYERS, "float16", {}).items()}
        sent = copied(before.rounded(network, LAYERS, "float16"))
    expected = before.finish_round(network, LAYERS, "float16", {})[WEIGHT]
    for asked_again in (False, True):
        after = LayerSender()
        after.restore_round(network, LAYERS, "float16", {name: left.copy() for name, left in stored.items()})
        if asked_again:
            assert np.array_equal(copied(after.rounded(network, LAYERS, "float16"))[WEIGHT], sent[WEIGHT])
        assert np.array_equal(after.finish_round(network, LAYERS, "float16", {})[WEIGHT], expected)


def test_a_node_whose_training_diverged_can_join_again(network: nn.Module) -> None:
    sender = LayerSender()
    sender.finish_round(network, LAYERS, "float16", {})
    sender.rounded(network, LAYERS, "float16")
    good = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight.fill_(torch.nan)
    sender.finish_round(network, LAYERS, "float16", {})
    for _ in range(2):
        with pytest.raises(ProtocolError, match=r"layer 0\.weight with values that are not finite"):
            sender.rounded(network, LAYERS, "float16")
    with torch.no_grad():
        network[0].weight.copy_(good)
    sender.finish_round(network, LAYERS, "float16", {})
    assert np.isfinite(sender.rounded(network, LAYERS, "float16").views()[WEIGHT]).all()


def test_a_fold_begins_with_nothing_left_over(network: nn.Module) -> None:
    sender = LayerSender()
    sender.finish_round(network, LAYERS, "bfloat16", {})
    sender.rounded(network, LAYERS, "bfloat16")
    assert sender.finish_round(network, LAYERS, "bfloat16", {})[WEIGHT].any()
    sender.reset()
    assert not sender.finish_round(network, LAYERS, "bfloat16", {})[WEIGHT].any()


def test_nothing_is_kept_where_nothing_is_rounded(network: nn.Module) -> None:
    assert LayerSender().finish_round(network, LAYERS, "float32", {}) == {}
