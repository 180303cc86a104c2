"""Which nodes train in a round."""

from __future__ import annotations

import pytest

from fednnunet.server.strategy.sampling import NodeSampler

NAMES = {node: f"node{node}" for node in range(1, 11)}


def test_nodes_are_drawn_by_seed_fold_round_and_name() -> None:
    sampler = NodeSampler(0.4, seed=3)
    drawn = [sampler.sample(NAMES, 0, server_round) for server_round in range(1, 101)]
    assert {len(nodes) for nodes in drawn} == {4}
    assert len({tuple(nodes) for nodes in drawn}) > 50, "every round draws anew"
    assert {node for nodes in drawn for node in nodes} == set(NAMES)
    for other in (NodeSampler(0.4, seed=4).sample(NAMES, 0, 1), sampler.sample(NAMES, 1, 1)):
        assert other != drawn[0]
    assert NodeSampler(0.4, seed=3).sample(NAMES, 0, 1) == drawn[0]


def test_the_order_in_which_nodes_join_does_not_matter() -> None:
    drawn = NodeSampler(0.4, seed=3).sample(NAMES, 0, 1)
    ids = {100 - node: name for node, name in reversed(NAMES.items())}
    assert sorted(NAMES[node] for node in drawn) == sorted(
        ids[node] for node in NodeSampler(0.4, seed=3).sample(ids, 0, 1)
    )


def test_two_nodes_train_however_small_the_fraction() -> None:
    assert len(NodeSampler(0.01).sample(NAMES, 0, 1)) == 2
    assert NodeSampler(0.01).sample({7: "A"}, 0, 1) == [7]
    assert NodeSampler().sample(NAMES, 0, 1) == list(NAMES)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5])
def test_other_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction_train={fraction}: must be above 0 and at most 1"):
        NodeSampler(fraction)
