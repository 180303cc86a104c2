"""Steps that hide single cases: against autograd on each case alone, and sums, clips and noise worked out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fednnunet.errors import ConfigError
from fednnunet.training.case_gradients import CaseNoise, CaseSteps, check_hides_cases

SECRET = b"s" * 32
PLAIN = CaseNoise(clip=float("inf"), noise=0.0, rate=1.0, patches=2)
Make = Callable[..., tuple[CaseSteps, Any]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take longer than such small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Images:
    """Cases in memory, as nnU-Net's datasets give them."""

    def __init__(self, cases: str) -> None:
        self.identifiers = list(cases)

    def load_case(self, identifier: str) -> tuple[np.ndarray, np.ndarray, None, dict[str, Any]]:
        rng = np.random.default_rng(ord(identifier))
        seg = np.zeros((1, 4, 24, 24), np.int16)
        seg[:, 1:3, 8:16, 6:18] = 1
        image = (rng.normal(size=seg.shape) + seg).astype(np.float32)
        return image, seg, None, {"class_locations": {1: np.argwhere(seg == 1)}}


def network(**options: Any) -> nn.Module:
    """nnU-Net's, with instance normalization and its in-place activation."""
    torch.manual_seed(0)
    norm = {"norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}} | options
    activation = {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
    return PlainConvUNet(
        1, 3, (4, 8, 8), nn.Conv2d, 3, (1, 2, 2), 1, 2, 1, conv_bias=True, deep_supervision=True, **norm, **activation
    )


def make(noise: CaseNoise, cases: str = "abc") -> tuple[CaseSteps, Any]:
    """Steps, and the trainer that they train, as far as it matters here."""
    labels = SimpleNamespace(all_labels=[1], has_ignore_label=False)
    # As nnU-Net's last two: what is padded is background, and a label map for each output.
    transforms = ComposeTransforms([RemoveLabelTansform(-1, 0), DownsampleSegForDSTransform([[1, 1], [0.5, 0.5]])])
    loader = nnUNetDataLoader(Images(cases), 2, (16, 16), (16, 16), labels, 0.5, transforms=transforms)
    loss = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {})
    trainer: Any = SimpleNamespace(
        network=network(),
        loss=DeepSupervisionWrapper(loss, [1.0, 0.0]),  # as in nnU-Net: the lowest output counts for nothing
        device=torch.device("cpu"),
        dataloader_train=SingleThreadedAugmenter(loader, None),
        current_epoch=0,
    )
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), 0.1, momentum=0.99, nesterov=True)
    return CaseSteps(trainer, noise, SECRET), trainer


def recorded(steps: CaseSteps) -> dict[str, dict[str, Any]]:
    """Batch by case, filled in as ``steps`` draws them."""
    batches: dict[str, dict[str, Any]] = {}
    draw = steps.patches_of

    def patches_of(case: str, seed: bytes) -> dict[str, Any]:
        batches[case] = draw(case, seed)
        return batches[case]

    steps.patches_of = patches_of  # type: ignore[method-assign]
    return batches


def gradients_alone(trainer: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Gradients of one case's loss by ``backward()`` on a network of its own."""
    alone = copy.deepcopy(trainer.network)
    alone.zero_grad(set_to_none=True)
    trainer.loss(alone(batch["data"]), batch["target"]).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in alone.parameters()]


def norm_of(gradients: list[torch.Tensor]) -> float:
    return float(torch.cat([one.flatten() for one in gradients]).norm())


def grads_of(trainer: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in trainer.network.parameters()])


def test_the_gradient_of_a_case_is_that_of_the_case_alone() -> None:
    steps, trainer = make(PLAIN, cases="a")
    batches, before = recorded(steps), copy.deepcopy(trainer.network)
    steps(0)
    assert batches["a"]["data"].shape == (2, 1, 16, 16)
    expected = gradients_alone(SimpleNamespace(network=before, loss=trainer.loss), batches["a"])
    assert norm_of(expected) > 0
    for parameter, gradient in zip(trainer.network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-7)


def test_without_clip_noise_and_sampling_a_step_is_a_plain_one() -> None:
    steps, trainer = make(PLAIN)
    batches, plain = recorded(steps), copy.deepcopy(trainer.network)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.99, nesterov=True)
    for number in range(2):
        loss = steps(number)["loss"]
        optimizer.zero_grad()
        each = [trainer.loss(plain(batch["data"]), batch["target"]) for batch in batches.values()]
        assert len(each) == 3
        torch.stack(each).mean().backward()
        optimizer.step()
        assert loss == pytest.approx(float(torch.stack(each).mean().detach()), rel=1e-5)
    for ours, theirs in zip(trainer.network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_each_case_is_clipped_by_itself() -> None:
    steps, trainer = make(PLAIN)
    batches, before = recorded(steps), copy.deepcopy(trainer.network)
    steps(0)
    alone = [gradients_alone(SimpleNamespace(network=before, loss=trainer.loss), batches[case]) for case in "abc"]
    norms = [norm_of(gradients) for gradients in alone]
    clip = sorted(norms)[1]  # one case is below, one above
    steps, trainer = make(CaseNoise(clip=clip, noise=0.0, rate=1.0, patches=2))
    steps(0)
    scaled = [[min(1, clip / norm) * g for g in gradients] for gradients, norm in zip(alone, norms, strict=True)]
    expected = torch.cat([torch.stack(one).sum(0).flatten() / 3 for one in zip(*scaled, strict=True)])
    torch.testing.assert_close(grads_of(trainer), expected, rtol=1e-5, atol=1e-7)


def test_noise_is_of_the_clip_and_the_same_for_the_same_step_alone() -> None:
    noisy = CaseNoise(clip=0.5, noise=4.0, rate=1.0, patches=2)
    (clean, clean_trainer), (steps, trainer), (again, again_trainer) = (
        make(CaseNoise(clip=0.5, noise=0.0, rate=1.0, patches=2)),
        make(noisy),
        make(noisy),
    )
    for one in (clean, steps, again):
        one(0)
    noise = 3 * (grads_of(trainer) - grads_of(clean_trainer))
    assert noise.std() == pytest.approx(4.0 * 0.5, rel=0.05)
    assert abs(noise.mean()) < 4 * 2.0 / noise.numel() ** 0.5
    assert torch.equal(grads_of(trainer), grads_of(again_trainer))
    # The same step from other weights, as a server could ask for that wants to subtract one answer from the other:
    _, other_trainer = other = make(noisy)
    with torch.no_grad():
        next(other_trainer.network.parameters())[0] += 1e-3
    other[0](0)
    difference = 3 * (grads_of(trainer) - grads_of(other_trainer))
    assert difference.std() == pytest.approx(2**0.5 * 4.0 * 0.5, rel=0.05)


def test_a_case_is_drawn_by_its_probability_and_independently_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, trainer = make(CaseNoise(clip=1.0, noise=0.0, rate=0.3, patches=1), cases="abcdefgh")
    drawn: list[str] = []
    monkeypatch.setattr(steps, "_add_case", lambda case, seed, sums: drawn.append(case) or 1.0)
    sizes = []
    for number in range(300):
        before = len(drawn)
        steps(number)
        sizes.append(len(drawn) - before)
    counts = np.array([drawn.count(case) for case in "abcdefgh"])
    assert abs(counts - 90).max() < 4 * (300 * 0.3 * 0.7) ** 0.5
    assert np.var(sizes) == pytest.approx(8 * 0.3 * 0.7, rel=0.3)  # binomial; a fixed number of cases would have none
    trainer.current_epoch = 1
    first = drawn[:10]
    drawn.clear()
    for number in range(10):
        steps(number)
    assert drawn[:10] != first


def test_patches_of_a_case_do_not_depend_on_the_others() -> None:
    (two, _), (three, _) = make(PLAIN, cases="bc"), make(PLAIN, cases="abc")
    few, all_cases = recorded(two), recorded(three)
    two(0)
    three(0)
    for case in "bc":
        assert torch.equal(few[case]["data"], all_cases[case]["data"])
    assert not torch.equal(few["b"]["data"], few["c"]["data"])


def test_a_gradient_that_is_not_finite_adds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    steps, trainer = make(PLAIN, cases="a")
    batches = recorded(steps)
    draw = steps.patches_of
    steps.patches_of = lambda case, seed: (
        draw(case, seed)
        and {  # type: ignore[method-assign]
            **batches[case],
            "data": batches[case]["data"] * torch.inf,
        }
    )
    steps(0)
    assert not grads_of(trainer).any()
    assert "left out" in caplog.text


class OwnStep(nnUNetTrainer):
    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {}


def test_what_cannot_hide_cases_is_refused() -> None:
    plain: Any = nnUNetTrainer.__new__(nnUNetTrainer)
    plain.network = network()
    check_hides_cases(plain)
    plain.network = network(norm_op=nn.BatchNorm2d)
    with pytest.raises(ConfigError, match=r"has running statistics .*batch normalization"):
        check_hides_cases(plain)
    with pytest.raises(ConfigError, match=r"trainer\.class=OwnStep has its own train_step"):
        check_hides_cases(OwnStep.__new__(OwnStep))
    _, trainer = make(PLAIN)
    trainer.dataloader_train = iter(())
    with pytest.raises(ConfigError, match="loads its data in its own way"):
        CaseSteps(trainer, PLAIN, SECRET)
