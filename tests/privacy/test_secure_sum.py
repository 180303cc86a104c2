"""Sums that hide their addends: right, within the bound, whoever is missing; and what members refuse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fednnunet.errors import ProtocolError
from fednnunet.privacy.identity import pair_secrets
from fednnunet.privacy.ring import FixedPoint, add
from fednnunet.privacy.secure_sum import SumContext, SumMember, SumRules, remove_masks

RULES = SumRules()
SHAPES = ((3, 4), (), (7,))


def members_of(names: list[str]) -> dict[str, SumMember]:
    keys = {name: X25519PrivateKey.generate() for name in names}
    return {
        name: SumMember(
            name,
            key.private_bytes_raw(),
            pair_secrets(key, {other: keys[other].public_key() for other in names if other != name}, "run"),
            RULES,
        )
        for name, key in keys.items()
    }


NAMES = [f"node {number:02d}" for number in range(8)]
MEMBERS = members_of(NAMES)


def context_of(names: list[str], server_round: int = 1, received: str = "d") -> SumContext:
    return SumContext("run", "0", server_round, tuple(names), received)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[str], list[str], list[str], dict[str, int]]:
    """Members, arrivals, those that reply to the second question, cases."""
    members = sorted(draw(st.sets(st.sampled_from(NAMES), min_size=3)))
    fewest = RULES.fewest_arrivals(len(members))
    arrived = sorted(draw(st.sets(st.sampled_from(members), min_size=fewest)))
    replying = sorted(draw(st.sets(st.sampled_from(arrived), min_size=RULES.threshold(len(members)))))
    return members, arrived, replying, {name: draw(st.integers(1, 500)) for name in members}


@given(rounds(), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 60.0]))
def test_the_sum_is_the_weighted_average_whoever_is_missing(
    drawn: tuple[list[str], list[str], list[str], dict[str, int]], seed: int, size: float
) -> None:
    members, arrived, replying, cases = drawn
    context, random = context_of(members), np.random.default_rng(seed)
    point, weights = FixedPoint(len(members), 64.0), {name: n / max(cases.values()) for name, n in cases.items()}
    arrays = {name: [random.uniform(-size, size, shape).astype(np.float32) for shape in SHAPES] for name in members}
    totals, bundles = [np.zeros(shape, np.int32) for shape in SHAPES], {}
    for name in arrived:
        masked = [np.empty(shape, np.int32) for shape in SHAPES]
        for array, out in zip(arrays[name], masked, strict=True):
            point.encode(array, weights[name], out, name)
        bundles[name] = MEMBERS[name].mask(masked, context)
        for total, array in zip(totals, masked, strict=True):
            add(total, array)
    shares = {
        name: MEMBERS[name].unmask(context, arrived, {sender: bundles[sender][name] for sender in arrived})
        for name in replying
    }
    remove_masks(totals, members, arrived, shares, RULES)
    total_weight = sum(weights[name] for name in arrived)
    bound = point.error_bound(len(arrived), total_weight)
    for number, total in enumerate(totals):
        expected = sum(weights[name] * arrays[name][number].astype(np.float64) for name in arrived) / total_weight
        error = np.abs(point.decode(total, total_weight) - expected)
        assert (error <= bound + np.abs(expected) * 2.0**-24 + 1e-15).all()


def test_masks_hide_what_a_member_sends() -> None:
    context = context_of(NAMES[:3])
    one, other = np.zeros(2**16, np.int32), np.zeros(2**16, np.int32)
    bundle = MEMBERS[NAMES[0]].mask([one], context)
    MEMBERS[NAMES[0]].mask([other], context_of(NAMES[:3], server_round=2))
    for masked in (one, one - other):
        bytes_seen = np.bincount(masked.view(np.uint8), minlength=256)
        assert abs(bytes_seen - masked.nbytes / 256).max() < 6 * (masked.nbytes / 256) ** 0.5
    again = np.zeros(2**16, np.int32)
    assert MEMBERS[NAMES[0]].mask([again], context) == bundle
    assert (again == one).all()


def test_layers_that_are_trained_again_have_another_mask() -> None:
    context, one, other = context_of(NAMES[:3]), np.zeros(2**16, np.int32), np.zeros(2**16, np.int32)
    other[0] = 1
    for array in (one, other):
        MEMBERS[NAMES[0]].mask([array], context)
    assert (one == other).mean() < 0.001


def test_masks_of_nodes_that_were_sent_different_models_do_not_cancel() -> None:
    names = NAMES[:3]
    contexts = {name: context_of(names, received="other" if name == names[0] else "d") for name in names}
    totals = [np.zeros(8, np.int32)]
    bundles = {}
    for name in names:
        masked = [np.zeros(8, np.int32)]
        bundles[name] = MEMBERS[name].mask(masked, contexts[name])
        add(totals[0], masked[0])
    with pytest.raises(ProtocolError, match="not for this node, round and class"):
        MEMBERS[names[1]].unmask(contexts[names[1]], names, {name: bundles[name][names[1]] for name in names})


def test_a_sum_of_too_few_is_not_opened() -> None:
    names = NAMES[:5]
    context = context_of(names)
    bundles = {name: MEMBERS[name].mask([np.zeros(1, np.int32)], context) for name in names}
    assert RULES.threshold(5) == RULES.fewest_arrivals(5) == 4
    for arrived in itertools.combinations(names, 3):
        with pytest.raises(ProtocolError, match="is not opened: it takes 4 members"):
            MEMBERS[names[0]].unmask(context, arrived, {name: bundles[name][names[0]] for name in arrived})
    with pytest.raises(ProtocolError, match="this node among them"):
        MEMBERS[names[0]].unmask(context, names[1:], {name: bundles[name][names[0]] for name in names[1:]})
    with pytest.raises(ProtocolError, match="is not opened"):
        MEMBERS[names[0]].unmask(context, [names[0]] * 4, {names[0]: bundles[names[0]][names[0]]})
    with pytest.raises(ProtocolError, match="a class of 2 members is not added up: it takes 3"):
        MEMBERS[names[0]].mask([np.zeros(1, np.int32)], context_of(names[:2]))
    with pytest.raises(ProtocolError, match="node stranger has no key"):
        MEMBERS[names[0]].mask([np.zeros(1, np.int32)], context_of([*names, "stranger"]))


@pytest.mark.parametrize("members", range(3, 12))
@pytest.mark.parametrize("colluding", range(3))
def test_two_sets_of_arrivals_cannot_both_be_opened(members: int, colluding: int) -> None:
    threshold = SumRules(colluding).threshold(members)
    # Honest members reply once; colluding ones reply to everything.
    assert 2 * threshold > (members - colluding) + 2 * colluding


@pytest.mark.parametrize("value", [np.nan, np.inf, -65.0])
def test_a_value_that_cannot_be_written_is_refused(value: float) -> None:
    array = np.array([1.0, value], np.float32)
    with pytest.raises(ProtocolError, match=r"node A, layer x holds .*secure sums take at most 64"):
        FixedPoint(3, 64.0).encode(array, 1.0, np.empty(2, np.int32), "node A, layer x")


def test_the_largest_values_do_not_wrap_around() -> None:
    point, total = FixedPoint(20, 64.0), np.zeros(2, np.int32)
    for _ in range(20):
        out = np.empty(2, np.int32)
        point.encode(np.array([64.0, -64.0], np.float32), 1.0, out, "A")
        add(total, out)
    assert (point.decode(total, 20.0) == [64.0, -64.0]).all()
    with pytest.raises(ProtocolError, match="larger than its addends allow"):
        point.decode(np.array([-(2**31)], np.int32), 20.0)
