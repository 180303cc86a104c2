"""The marginal loss: values and gradients worked out by hand, and nnU-Net's own losses of summed probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from torch import nn

from fednnunet.training.partial_labels import MarginalLoss, PooledMarginalLoss

UNIFORM = (0.0, 0.0, 0.0, 0.0)
UNEQUAL = (0.0, math.log(2), math.log(3), math.log(4))
"""Logits of the probabilities .1, .2, .3 and .4."""
ONE_VOXEL = torch.tensor([[[[1, 0], [0, 0]]]])
"""2 x 2 voxels, of which one is foreground."""


def both(smooth: float = 1e-5, do_bg: bool = False, ignore: int | None = None, batch_dice: bool = False) -> nn.Module:
    """nnU-Net's default loss."""
    dice = {"batch_dice": batch_dice, "smooth": smooth, "do_bg": do_bg, "ddp": False}
    return DC_and_CE_loss(dice, {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)


def cross_entropy() -> nn.Module:
    return RobustCrossEntropyLoss()


def dice(smooth: float = 0.0) -> nn.Module:
    return MemoryEfficientSoftDiceLoss(lambda z: torch.softmax(z, 1), do_bg=False, smooth=smooth, ddp=False)


def top_k() -> nn.Module:
    dice_options = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_topk_loss(dice_options, {"k": 50, "label_smoothing": 0.0})


def same_logits(values: tuple[float, ...]) -> torch.Tensor:
    """The same logits at each of 2 x 2 voxels."""
    return torch.tensor(values).reshape(1, -1, 1, 1).repeat(1, 1, 2, 2).requires_grad_()


def some_logits(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def some_target(*shape: int, labels: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, labels, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int16)


def value_and_gradient(
    loss: nn.Module, logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, target.clone())
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


# one set of labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "values", "expected", "foreground", "background"),
    [
        (cross_entropy, UNIFORM, 0.5623351, (1 / 16, -3 / 16, 1 / 16, 1 / 16), (-1 / 48, 1 / 16, -1 / 48, -1 / 48)),
        (dice, UNIFORM, -0.25, (7 / 128, -21 / 128, 7 / 128, 7 / 128), (-1 / 128, 3 / 128, -1 / 128, -1 / 128)),
        (
            both,
            UNIFORM,
            0.3123314,
            (0.1171871, -0.3515613, 0.1171871, 0.1171871),
            (-0.0286459, 0.0859377, -0.0286459, -0.0286459),
        ),
        (cross_entropy, UNEQUAL, 0.5697171, (0.025, -0.2, 0.075, 0.1), (-0.00625, 0.05, -0.01875, -0.025)),
        (
            dice,
            UNEQUAL,
            -0.2222222,
            (0.0197531, -0.1580247, 0.0592593, 0.0790123),
            (-0.0024691, 0.0197531, -0.0074074, -0.0098765),
        ),
        (
            both,
            UNEQUAL,
            0.3474906,
            (0.0447529, -0.3580234, 0.1342588, 0.1790117),
            (-0.0087192, 0.0697534, -0.0261575, -0.0348767),
        ),
    ],
)
def test_loss_and_gradients_are_those_worked_out_by_hand(
    make: Callable[[], nn.Module],
    values: tuple[float, ...],
    expected: float,
    foreground: tuple[float, ...],
    background: tuple[float, ...],
) -> None:
    value, gradient = value_and_gradient(MarginalLoss(make(), [1], 4), same_logits(values), ONE_VOXEL)
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert gradient[0, :, 0, 0].tolist() == pytest.approx(foreground, abs=1e-6)
    for row, column in ((0, 1), (1, 0), (1, 1)):
        assert gradient[0, :, row, column].tolist() == pytest.approx(background, abs=1e-6)


def test_what_is_not_annotated_rises_in_the_background_where_nnunet_itself_pushes_it_down() -> None:
    _, plain = value_and_gradient(both(), same_logits(UNIFORM), ONE_VOXEL)
    _, marginal = value_and_gradient(MarginalLoss(both(), [1], 4), same_logits(UNIFORM), ONE_VOXEL)
    assert (plain[0, 2:, 1, 1] > 0).all()
    assert (marginal[0, 2:, 1, 1] < 0).all()


@pytest.mark.parametrize("annotated", [[1], [3], [1, 3], [2, 3]])
@pytest.mark.parametrize("shape", [(6, 6), (4, 5, 6)], ids=["2d", "3d"])
@pytest.mark.parametrize("make", [both, top_k])
def test_loss_is_that_of_summed_probabilities(
    make: Callable[[], nn.Module], annotated: list[int], shape: tuple[int, ...]
) -> None:
    logits, target = some_logits(2, 4, *shape), some_target(2, 1, *shape)
    probabilities = torch.softmax(logits.double(), 1)
    merged = torch.stack([1 - probabilities[:, annotated].sum(1), *(probabilities[:, one] for one in annotated)], 1)
    own = torch.zeros_like(target)
    for place, label in enumerate(annotated, start=1):
        own[target == label] = place
    expected, expected_gradient = value_and_gradient(make(), merged.log(), own)
    assert torch.isfinite(expected_gradient).all()
    value, gradient = value_and_gradient(MarginalLoss(make(), annotated, 4), logits, target)
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    assert gradient.sum(1).abs().max() < 1e-6, "the softmax does not change where all logits rise alike"


def test_background_and_what_is_not_annotated_are_alike() -> None:
    loss, target = MarginalLoss(both(), [1], 4), some_target(2, 1, 6, 6, labels=2)
    logits = some_logits(2, 4, 6, 6)
    swapped = logits.detach()[:, [2, 1, 0, 3]]
    assert loss(swapped, target).item() == pytest.approx(loss(logits, target).item(), abs=1e-6)
    _, gradient = value_and_gradient(loss, logits, target)
    probabilities = torch.softmax(logits.detach(), 1)
    is_background = target[:, 0] == 0
    ratio, expected = gradient[:, 0] / gradient[:, 2], probabilities[:, 0] / probabilities[:, 2]
    torch.testing.assert_close(ratio[is_background], expected[is_background], rtol=1e-3, atol=1e-5)


def test_labels_that_are_not_annotated_and_negative_values_are_background() -> None:
    loss, logits, target = MarginalLoss(both(), [3], 4), some_logits(2, 4, 6, 6), some_target(2, 1, 6, 6)
    with_others = torch.where(target == 3, target, 0)
    with_negative = torch.where(target == 0, -1, target)
    assert loss(logits, target) == loss(logits, with_others) == loss(logits, with_negative)
    assert -1 in with_negative, "the target is not changed"


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [None, 4])
@pytest.mark.parametrize("shape", [(6, 6), (4, 5, 6)], ids=["2d", "3d"])
def test_with_all_labels_annotated_the_loss_is_that_of_nnunet_bit_for_bit(
    shape: tuple[int, ...], ignore: int | None, batch_dice: bool
) -> None:
    inner = both(ignore=ignore, batch_dice=batch_dice)
    logits = some_logits(2, 4, *shape)
    target = some_target(2, 1, *shape, labels=4 if ignore is None else 5)
    value, gradient = value_and_gradient(MarginalLoss(inner, [3, 1, 2], 4, ignore, exclusion=True), logits, target)
    expected, expected_gradient = value_and_gradient(inner, logits, target)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)


def test_ignored_voxels_have_no_gradient() -> None:
    loss = MarginalLoss(both(ignore=4), [1, 3], 4, 4, exclusion=True)
    logits, target = some_logits(2, 4, 6, 6), some_target(2, 1, 6, 6, labels=5)
    value, gradient = value_and_gradient(loss, logits, target)
    is_ignored = (target == 4).expand(-1, 4, -1, -1)
    assert (gradient[is_ignored] == 0).all()
    assert (gradient[~is_ignored] != 0).all()
    other = logits.detach() + torch.where(is_ignored, 3.0, 0.0) * some_logits(2, 4, 6, 6, seed=5).detach()
    assert loss(other, target).item() == pytest.approx(value.item(), abs=1e-6)
    nothing, gradient = value_and_gradient(loss, logits, torch.full_like(target, 4))
    assert nothing.item() == -1.0
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("values", "expected"),
    [((0.0, 3.0, -1.0), 2.75262), ((11.0, 12.0, 11.0), 0.85830), ((-60.0, 60.0, -60.0), 119.307)],
)
def test_half_precision_logits_are_merged_in_single_precision(
    values: tuple[float, ...], expected: float, dtype: torch.dtype
) -> None:
    logits = torch.tensor(values, dtype=dtype).reshape(1, 3, 1, 1).requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = MarginalLoss(RobustCrossEntropyLoss(), [1], 3)(logits, torch.zeros(1, 1, 1, 1))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert torch.isfinite(gradient).all()


def test_every_scale_of_deep_supervision_is_merged() -> None:
    scales = [(8, 8), (4, 4), (2, 2)]
    logits = [some_logits(2, 4, *scale, seed=number) for number, scale in enumerate(scales)]
    targets = [some_target(2, 1, *scale, seed=number) for number, scale in enumerate(scales)]
    loss = MarginalLoss(both(), [2], 4)
    expected = (2 * loss(logits[0], targets[0]) + loss(logits[1], targets[1])) / 3
    wrapped = DeepSupervisionWrapper(loss, (2 / 3, 1 / 3, 0.0))
    assert wrapped(logits, targets).item() == pytest.approx(expected.item(), abs=1e-6)


# exclusion ------------------------------------------------------------------------------------------------


def test_exclusion_is_that_worked_out_by_hand() -> None:
    plain = value_and_gradient(MarginalLoss(cross_entropy(), [1], 4), same_logits(UNIFORM), ONE_VOXEL)
    punished = value_and_gradient(
        MarginalLoss(cross_entropy(), [1], 4, exclusion=True), same_logits(UNIFORM), ONE_VOXEL
    )
    assert (punished[0] - plain[0]).item() == pytest.approx(math.log(1.25) / 4, abs=1e-7)
    gradient = punished[1] - plain[1]
    assert gradient[0, :, 0, 0].tolist() == pytest.approx((-0.0125, -0.0125, 0.0125, 0.0125), abs=1e-7)
    assert gradient[0, :, 1].abs().max() == 0, "nothing is known of them in the background"


def test_exclusion_is_a_mean_over_voxels_that_are_not_ignored() -> None:
    target = torch.tensor([[[[1, 0], [4, 4]]]])
    terms = [
        MarginalLoss(both(ignore=4), [1], 4, 4, exclusion=exclusion)(same_logits(UNIFORM), target)
        for exclusion in (True, False)
    ]
    assert (terms[0] - terms[1]).item() == pytest.approx(math.log(1.25) / 2, abs=1e-6)


# cases that are annotated unlike --------------------------------------------------------------------------

SETS = {"a": [1], "b": [2, 3], "c": [1], "d": [1, 2, 3]}


def test_loss_of_pooled_cases_is_the_mean_over_those_annotated_alike() -> None:
    logits, target = some_logits(4, 4, 6, 6), some_target(4, 1, 6, 6)
    pooled = PooledMarginalLoss(both(), SETS, 4)
    with pooled.batch_of(["a", "b", "c", "d"]):
        value, gradient = value_and_gradient(pooled, logits, target)
    alone = {case: MarginalLoss(both(), annotated, 4) for case, annotated in SETS.items()}
    # Without batch_dice every case counts by itself, so this is the mean over cases.
    each = [value_and_gradient(alone[case], logits[[row]], target[[row]]) for row, case in enumerate(SETS)]
    assert value.item() == pytest.approx(np.mean([one.item() for one, _ in each]), abs=1e-6)
    torch.testing.assert_close(gradient, torch.cat([one for _, one in each]) / 4)


def test_a_batch_of_cases_that_are_annotated_alike_is_not_parted() -> None:
    logits, target = some_logits(2, 4, 6, 6), some_target(2, 1, 6, 6)
    inner = both(batch_dice=True)
    pooled = PooledMarginalLoss(inner, SETS, 4)
    with pooled.batch_of(["a", "c"]):
        assert torch.equal(pooled(logits, target), MarginalLoss(inner, [1], 4)(logits, target))
    with pooled.batch_of(["d", "d"]):
        assert torch.equal(pooled(logits, target), inner(logits, target))


@pytest.mark.parametrize("cases", [None, ["a"], ["a", "b", "c"]])
def test_a_batch_of_unknown_cases_has_no_loss(cases: list[str] | None) -> None:
    pooled = PooledMarginalLoss(both(), SETS, 4)
    with pooled.batch_of(["a", "b"]):
        pass
    with pytest.raises(RuntimeError, match="which cases"), pooled.batch_of(cases or []):
        pooled(some_logits(2, 4, 6, 6), some_target(2, 1, 6, 6))


# pseudo-labels ------------------------------------------------------------------------------------------------

SEEN = torch.tensor([[[9.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [1.0, 2.0]], [[0.0] * 2] * 2])
"""Logits (4 classes, 2 x 2): background twice, then class 2, then class 1 before class 2."""


def taught(loss: MarginalLoss, logits: torch.Tensor, drawn: torch.Tensor, pseudo: torch.Tensor) -> Any:
    """What pseudo-labels add to value and gradient, where nothing is drawn."""
    completed = torch.where(drawn == 0, pseudo, drawn)
    plain = value_and_gradient(loss, logits, drawn)
    assert value_and_gradient(loss, logits, completed)[0] == plain[0], "of weight 0, they are as background"
    loss.pseudo_weight = 2.0
    unknown = torch.where(drawn == 0, loss.unknown, drawn)
    nothing = value_and_gradient(loss, logits, unknown)
    assert nothing[0].item() == pytest.approx(plain[0].item() - 2, abs=1e-6), (
        "Dice of what is nowhere, as nnU-Net has it"
    )
    assert torch.allclose(nothing[1], plain[1], atol=1e-6), "nothing is taught"
    value, gradient = value_and_gradient(loss, logits, completed)
    return (value - plain[0]) / 2, (gradient - plain[1]) / 2


def test_a_pseudo_label_says_which_unannotated_class_a_network_sees_but_not_where_it_sees_an_annotated_one() -> None:
    found = MarginalLoss(cross_entropy(), [1], 4).pseudo_labels(SEEN)
    assert found.tolist() == [[0, 0], [6, 4]]
    assert found.dtype == torch.uint8
    assert MarginalLoss(cross_entropy(), [1], 4, ignore_label=4).pseudo_labels(SEEN).tolist() == [[0, 0], [7, 5]]
    assert MarginalLoss(cross_entropy(), [1], 200).pseudo_labels(torch.zeros(200, 1)).dtype == torch.int16


def test_pseudo_labels_add_the_loss_worked_out_by_hand() -> None:
    loss = MarginalLoss(cross_entropy(), [1], 4)
    value, gradient = taught(loss, same_logits(UNIFORM), ONE_VOXEL, loss.pseudo_labels(SEEN))
    # Of three classes each has p = 1/3 in two voxels, one of background and one of class 2. CE = 2/4 log 3, whose
    # gradients are (p - [c = label]) / 4. Dice = (2 * 1/3 / (2/3 + 1) + 0) / 2 = 1/5 over both classes. Its gradient in
    # p of class 2 is (2 y * 5/3 - 2/3) / (5/3)^2 / 2 = 12/25 where that is given, y = 1, and -3/25 in the other voxel;
    # in its logit 2/9 of that, in the others -1/9. That of class 3, which is nowhere, is 0.
    assert value.item() == pytest.approx(math.log(3) / 2 - 1 / 5, abs=1e-5)
    there, elsewhere = 12 / 25 / 9, -3 / 25 / 9
    expected = [-1 / 6 + elsewhere, 0, 1 / 12 - 2 * elsewhere, 1 / 12 + elsewhere]
    assert gradient[0, :, 0, 1].tolist() == pytest.approx(expected, abs=1e-5)
    expected = [1 / 12 + there, 0, -1 / 6 - 2 * there, 1 / 12 + there]
    assert gradient[0, :, 1, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert gradient[0, :, 0, 0].abs().max() < 1e-7, "somebody has drawn what is there"
    assert gradient[0, :, 1, 1].abs().max() < 1e-7, "the network sees what the node would have drawn"


def test_cross_entropies_add_up_to_that_of_the_completed_map() -> None:
    logits, drawn = some_logits(2, 5, 6, 6), some_target(2, 1, 6, 6, labels=2)
    loss = MarginalLoss(cross_entropy(), [1], 5)
    loss.pseudo_weight = 1.0
    filled = torch.tensor([0, 2, 3, 4])[some_target(2, 1, 6, 6, labels=4, seed=2).long()]
    seen = nn.functional.one_hot(filled[:, 0], 5).movedim(-1, 1).float()
    pseudo = torch.stack([loss.pseudo_labels(one)[None] for one in seen])
    p = torch.softmax(logits[:, [0, 2, 3, 4]], 1) * (drawn == 0)
    filled = torch.where(drawn == 0, filled, 1)
    dice = [
        2 * p[:, row][filled[:, 0] == label].sum() / (p[:, row].sum() + (filled == label).sum())
        for row, label in enumerate((2, 3, 4), start=1)
    ]
    expected = RobustCrossEntropyLoss()(logits, filled) - torch.stack(dice).mean()
    assert loss(logits, torch.where(drawn == 0, pseudo, drawn)).item() == pytest.approx(expected.item(), abs=1e-5)


def test_ignored_voxels_teach_nothing_and_weigh_nothing() -> None:
    logits, drawn = some_logits(1, 4, 2, 2), torch.tensor([[[[1, 0], [4, 4]]]])
    loss = MarginalLoss(RobustCrossEntropyLoss(ignore_index=4), [1], 4, ignore_label=4)
    value, gradient = taught(loss, logits, drawn, loss.pseudo_labels(SEEN))
    p = torch.softmax(logits[0, [0, 2, 3], 0, 1], 0)  # of the one voxel that is taught; there is no class for Dice
    assert value.item() == pytest.approx(-math.log(p[0].item()) / 2, abs=1e-3)
    assert gradient[0, :, 1].abs().max() == 0
