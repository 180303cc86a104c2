"""What a node is taught of labels that it has not annotated: values and gradients worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from torch import nn

from fednnunet.errors import ConfigError
from fednnunet.training.distillation import Distillation
from fednnunet.training.marginal_loss import MarginalLoss, cases_of
from tests.training.test_marginal_loss import (
    ONE_VOXEL,
    UNIFORM,
    cross_entropy,
    same_logits,
    some_logits,
    some_target,
    value_and_gradient,
)

TEACHER = (math.log(2), 0.0, 0.0, 0.0)
"""Of background and classes 2 and 3 together: .5, .25 and .25."""


class Fixed(nn.Module):
    """A network with one output for all images."""

    def __init__(self, *outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = nn.ParameterList(outputs)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor] | torch.Tensor:
        return list(self.outputs) if len(self.outputs) > 1 else self.outputs[0]


class Recorded(nn.Module):
    """A network of one output for every image, which keeps the value of each image that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Parameter(same_logits(TEACHER).detach())
        self.seen: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += [int(image.max()) for image in images]
        return self.output.repeat(len(images), 1, 1, 1)


def taught(
    teacher: nn.Module, inner: nn.Module, annotated: list[int], classes: int = 4, ignore: int | None = None
) -> MarginalLoss:
    """A loss at the end of training, whose weight is 1."""
    loss = MarginalLoss(inner, annotated, classes, ignore, distillation=1)
    assert loss.distillation is not None
    loss.distillation.keep_teacher(teacher, epoch=9, epochs=10)
    return loss


def added(teacher: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What teaching adds to value and gradient of the loss of a node with class 1 of 3."""
    loss = taught(Fixed(teacher), cross_entropy(), [1])
    plain = value_and_gradient(loss, logits, target)
    with cases_of(loss, {"data": torch.zeros(1)}):
        value, gradient = value_and_gradient(loss, logits, target)
    return value - plain[0], gradient - plain[1]


def test_loss_and_gradients_are_those_worked_out_by_hand() -> None:
    value, gradient = added(same_logits(TEACHER), same_logits(UNIFORM), ONE_VOXEL)
    # 3 of 4 voxels are background; there p = 1/3 each: CE = 3/4 log 3, Dice of each = 2 * 3/12 / (3 * 7/12) = 2/7.
    assert value.item() == pytest.approx(0.75 * math.log(3) - 2 / 7, abs=1e-5)
    # CE: (p - q) / 4. Dice: with g = -1/2 (2 q S - 2 I) / S^2 = -3/49 for both, -2g/9 -> 2/147 and g/9 -> -1/147.
    expected = (-1 / 24 + 2 / 147, 0, 1 / 48 - 1 / 147, 1 / 48 - 1 / 147)
    for row, column in ((0, 1), (1, 0), (1, 1)):
        assert gradient[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-6)
    assert gradient[0, :, 0, 0].tolist() == pytest.approx([0] * 4, abs=1e-7), "the node knows what is there"


def test_nothing_is_learnt_of_annotated_classes_nor_where_the_teacher_sees_one() -> None:
    teacher = same_logits(TEACHER).detach()
    teacher[0, 1, 1, 1] = 3.0
    _, gradient = added(teacher, some_logits(1, 4, 2, 2), ONE_VOXEL)
    assert gradient[:, 1].abs().max() < 1e-7
    assert gradient[0, :, 1, 1].abs().max() < 1e-7
    assert gradient[0, [0, 2, 3], 0, 1].abs().min() > 1e-3


def test_cross_entropies_add_up_to_that_of_a_map_that_the_teacher_has_completed() -> None:
    logits, target = some_logits(2, 5, 6, 6), some_target(2, 1, 6, 6, labels=2)
    filled = torch.where(target == 0, torch.tensor([0, 2, 3, 4])[some_target(2, 1, 6, 6, labels=4, seed=2).long()], 1)
    teacher = 200 * nn.functional.one_hot(filled[:, 0], 5).movedim(-1, 1).float()
    loss = taught(Fixed(teacher), cross_entropy(), [1], classes=5)
    with cases_of(loss, {"data": torch.zeros(2)}):
        both = loss(logits, target)
    p = torch.softmax(logits[:, [0, 2, 3, 4]], 1) * (target == 0)
    dice = [
        2 * p[:, row][filled[:, 0] == label].sum() / (p[:, row].sum() + (filled == label).sum())
        for row, label in enumerate((2, 3, 4), start=1)
    ]
    expected = RobustCrossEntropyLoss()(logits, filled) - torch.stack(dice).mean()
    assert both.item() == pytest.approx(expected.item(), abs=1e-5)


def test_ignored_voxels_teach_nothing() -> None:
    logits, target = some_logits(1, 4, 2, 2), torch.tensor([[[[1, 0], [4, 4]]]])
    values = []
    for teacher in (TEACHER, (3.0, 0.0, 1.0, 0.0)):
        outputs = same_logits(TEACHER).detach()
        outputs[0, :, 1] = torch.tensor(teacher)[:, None]
        loss = taught(Fixed(outputs), RobustCrossEntropyLoss(ignore_index=4), [1], ignore=4)
        with cases_of(loss, {"data": torch.zeros(1)}):
            values.append(value_and_gradient(loss, logits, target))
    assert values[0][0] == values[1][0]
    assert values[0][1][0, :, 1].abs().max() == 0


def test_every_scale_of_deep_supervision_has_its_own_teacher() -> None:
    scales = [(8, 8), (4, 4)]
    logits = [some_logits(2, 4, *scale, seed=number) for number, scale in enumerate(scales)]
    seen = [some_logits(2, 4, *scale, seed=number + 5).detach() for number, scale in enumerate(scales)]
    targets = [some_target(2, 1, *scale, labels=2, seed=number) for number, scale in enumerate(scales)]
    loss = taught(Fixed(*seen), cross_entropy(), [1])
    expected = 0.0
    for weight, one, teacher, target in zip((0.75, 0.25), logits, seen, targets, strict=True):
        alone = taught(Fixed(teacher), cross_entropy(), [1])
        with cases_of(alone, {"data": torch.zeros(2)}):
            expected += weight * alone(one, target).item()
    wrapped = DeepSupervisionWrapper(loss, (0.75, 0.25))
    with cases_of(wrapped, {"data": torch.zeros(2)}):
        assert wrapped(logits, targets).item() == pytest.approx(expected, abs=1e-6)


def test_its_weight_grows_over_half_of_the_epochs() -> None:
    network, logits, every = Fixed(same_logits(TEACHER)), same_logits(UNIFORM), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    distillation = Distillation([2, 3], weight=2.0)
    values = []
    for epoch in (0, 2, 5, 10, 18):
        distillation.keep_teacher(network, epoch, epochs=20)
        with distillation.of_images(torch.zeros(1)):
            values.append(distillation(logits, every, every).item() if distillation.teaches else 0.0)
    whole = 2 * (math.log(3) - 2 / 7)
    assert values == pytest.approx([0, whole / 5, whole / 2, whole, whole], abs=1e-5)
    assert not distillation.teaches, "outside of a batch, as in validation"


def test_of_so_many_images_one_is_taught_and_the_weight_stays() -> None:
    network, images, rounds = Recorded(), torch.arange(5.0)[:, None, None, None], []
    distillation = Distillation([2, 3], weight=2.0, every=4)
    every = torch.ones(5, 1, 2, 2, dtype=torch.bool)
    for _ in range(2):
        distillation.keep_teacher(network, epoch=9, epochs=10)
        assert distillation.teacher is not None
        weights, seen = [], distillation.teacher.seen
        for _ in range(8):
            with distillation.of_images(images):
                logits = same_logits(UNIFORM).repeat(5, 1, 1, 1)
                weights.append(distillation(logits, every, every).item() if distillation.teaches else 0.0)
        rounds.append(list(seen))
        seen.clear()
    assert rounds[0] == rounds[1], "the same again in a round that is repeated"
    assert len(rounds[0]) == 40 / 4
    assert len(set(rounds[0])) > 1, "not those of one place in the batch"
    assert sum(weights) / 8 == pytest.approx(2 * (math.log(3) - 2 / 7), abs=1e-5)


def test_an_image_that_is_not_taught_has_no_gradient_of_it() -> None:
    distillation = Distillation([2, 3], weight=1.0, every=4)
    distillation.keep_teacher(Recorded(), epoch=9, epochs=10)
    assert distillation.teacher is not None
    logits, every = some_logits(4, 4, 2, 2), torch.ones(4, 1, 2, 2, dtype=torch.bool)
    with distillation.of_images(torch.arange(4.0)[:, None, None, None]):
        distillation(logits, every, every).backward()
    assert logits.grad is not None
    taught = logits.grad.abs().amax((1, 2, 3)) > 0
    assert taught.nonzero().flatten().tolist() == distillation.teacher.seen


def test_outputs_that_are_not_the_networks_are_refused() -> None:
    loss = taught(Fixed(same_logits(TEACHER)), cross_entropy(), [1])
    with cases_of(loss, {"data": torch.zeros(1)}), pytest.raises(ConfigError, match=r"set task\.distillation=0"):
        loss(some_logits(1, 4, 4, 4), some_target(1, 1, 4, 4, labels=2))


def test_the_teacher_is_the_network_as_it_was_received() -> None:
    network = Fixed(same_logits(TEACHER))
    loss = taught(network, cross_entropy(), [1])
    logits = same_logits(UNIFORM)

    def value() -> float:
        with cases_of(loss, {"data": torch.zeros(1)}):
            return loss(logits, ONE_VOXEL).item()  # type: ignore[no-any-return]

    before = value()
    with torch.no_grad():
        network.outputs[0][0, 2] += 1
    assert value() == before
    assert loss.distillation is not None
    loss.distillation.keep_teacher(network, epoch=9, epochs=10)
    assert value() != before
    assert not any(one.requires_grad for one in loss.parameters())
    assert all(one.requires_grad for one in network.parameters())
