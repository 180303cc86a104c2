"""Gradient inversion: does what a node sends give back the patch that it was computed from?

The attack is that of Geiping et al. 2020 (Inverting gradients, NeurIPS): an image is sought whose gradient points where
the observed one does (cosine), with little total variation. Three things make it work on nnU-Net's networks, and cheap:

* The gradient jumps wherever a LeakyReLU changes sides, so its cosine is no function to descend. The attacker's copy of
  the network has smooth activations, which sharpen during the search.
* Cosines are those of convolution kernels, each counted the same: biases tell of labels rather than of images.
* The image is sought among combinations of principal components of another hospital's patches.

The attacker knows the network, its weights, the loss and, which is more than a server knows, the label maps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

Gradient = list[torch.Tensor]
"""One tensor per trained parameter, zeros where the loss does not depend on it."""
STEP, TV_WEIGHT, COMPONENTS = 0.2, 1e-2, 150
"""Step of the search, weight of the total variation, number of principal components."""
SHARPNESS = (3.0, 30.0)
"""Of the smooth activations, at the beginning and at the end of the search."""


@dataclass(frozen=True)
class Batch:
    """Patches as nnU-Net's loader gives them.

    Attributes:
        images: (B, C, Y, X), normalised.
        targets: label maps (B, 1, Y, X), finest first, then those of deep supervision.
    """

    images: torch.Tensor
    targets: list[torch.Tensor]

    def patch(self, number: int) -> Batch:
        """One of its patches."""
        return self.part(slice(number, number + 1))

    def part(self, part: slice) -> Batch:
        """Some of its patches."""
        return Batch(self.images[part], [target[part] for target in self.targets])


Loss = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]


def gradient(
    network: nn.Module, loss: Loss, images: torch.Tensor, targets: Sequence[torch.Tensor], **grad: bool
) -> Gradient:
    """Gradient of the training loss; ``create_graph=True`` lets it be differentiated again."""
    parameters = list(network.parameters())
    found = torch.autograd.grad(loss(network(images), targets), parameters, allow_unused=True, **grad)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def mean_gradient(gradients: Sequence[Gradient]) -> Gradient:
    """What an average over nodes shows of their gradients."""
    return [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]


def noisy(found: Gradient, clip: float, noise: float, generator: torch.Generator) -> Gradient:
    """The gradient clipped to the norm ``clip``, with Gaussian noise of ``noise * clip`` on every value."""
    norm = torch.sqrt(sum((part**2).sum() for part in found))
    factor = min(1.0, clip / float(norm))
    return [part * factor + noise * clip * torch.randn(part.shape, generator=generator) for part in found]


def round_update(trainer: nnUNetTrainer, batches: Sequence[Batch]) -> Gradient:
    """What the weights lose in a round of ``trainer.train_step``, one a batch: what a node's layers show of it.

    The trainer's network and optimizer are left as they were.
    """
    before = copy.deepcopy(trainer.network.state_dict())
    optimizer = copy.deepcopy(trainer.optimizer.state_dict())
    start = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    for batch in batches:
        trainer.train_step({"data": batch.images, "target": batch.targets})
    update = [old - new.detach() for old, new in zip(start, trainer.network.parameters(), strict=True)]
    trainer.network.load_state_dict(before)
    trainer.optimizer.load_state_dict(optimizer)
    trainer.optimizer.zero_grad(set_to_none=True)
    return update


class SmoothLeakyReLU(nn.Module):
    """LeakyReLU without its kink: the softplus of this ``sharpness`` in the place of the positive part."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope, self.sharpness = slope, SHARPNESS[0]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The activation of every value."""
        smooth = nn.functional.softplus(values, beta=self.sharpness)
        return self.slope * values + (1 - self.slope) * smooth


def smoothed(network: nn.Module) -> tuple[nn.Module, list[SmoothLeakyReLU]]:
    """A copy of the network with smooth activations, and these."""
    copied, smooth = copy.deepcopy(network), []
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LeakyReLU):
                smooth.append(SmoothLeakyReLU(child.negative_slope))
                setattr(module, name, smooth[-1])
    return copied, smooth


class Prior:
    """What the attacker knows of images: mean and principal components of another hospital's patches.

    Args:
        patches: (N, C, Y, X).
    """

    def __init__(self, patches: torch.Tensor) -> None:
        self.mean = patches.mean(0)
        _, deviations, components = torch.linalg.svd((patches - self.mean).flatten(1), full_matrices=False)
        number = min(COMPONENTS, len(patches) - 1)
        self.components = (deviations[:number, None] * components[:number] / len(patches) ** 0.5).contiguous()

    def images(self, weights: torch.Tensor) -> torch.Tensor:
        """Images (B, C, Y, X) with these weights (B, components), of mean 0 and deviation 1 among the patches."""
        return self.mean + (weights @ self.components).unflatten(1, self.mean.shape)


def invert(
    network: nn.Module, loss: Loss, targets: Sequence[torch.Tensor], observed: Gradient, prior: Prior, steps: int
) -> torch.Tensor:
    """Images (B, C, Y, X), as many as label maps, whose gradient points where the observed one does."""
    copied, smooth = smoothed(network)
    weights = torch.zeros(len(targets[0]), len(prior.components), requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        for activation in smooth:
            activation.sharpness = SHARPNESS[0] * (SHARPNESS[1] / SHARPNESS[0]) ** (step / steps)
        images = prior.images(weights)
        found = gradient(copied, loss, images, targets, create_graph=True)
        unlikely = TV_WEIGHT * total_variation(images) + 1e-3 * (weights**2).mean()
        (weights.grad,) = torch.autograd.grad(unlikely - similarity(found, observed), [weights])
        optimizer.step()
        schedule.step()
    return prior.images(weights).detach()


def similarity(one: Gradient, other: Gradient) -> torch.Tensor:
    """Mean over matrices and convolution kernels of the cosine of the angle between two gradients."""
    pairs = [(a.flatten(), b.flatten()) for a, b in zip(one, other, strict=True) if a.ndim > 1 and b.any()]
    return torch.stack([nn.functional.cosine_similarity(a, b, dim=0) for a, b in pairs]).mean()


def rank_of_gradient(network: nn.Module, loss: Loss, observed: Gradient, truth: Batch, rivals: Batch) -> int:
    """How many of ``rivals`` have a gradient that is more like the observed one than that of the true patch has.

    This attacker has the patch and others, all with their label maps, and asks which was there.

    Returns:
        0 where the true one is recognised.
    """

    def likeness(patch: Batch) -> float:
        return float(similarity(gradient(network, loss, patch.images, patch.targets), observed))

    own = likeness(truth)
    return sum(likeness(rivals.patch(number)) > own for number in range(len(rivals.images)))


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbours along the last two axes."""
    return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()


def correlation(image: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson's correlation of one image with each of several, (N, …)."""
    flat, many = image.ravel() - image.mean(), others.reshape(len(others), -1)
    many = many - many.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat) * np.linalg.norm(many, axis=1)
    return many @ flat / np.maximum(norms, 1e-12)


def rank_of_truth(found: np.ndarray, truth: np.ndarray, others: np.ndarray) -> tuple[float, float, int]:
    """How well a patch was found.

    Returns:
        Its correlation with the true patch, the mean with ``others``, and how many of the others are closer to it than
        the true patch: 0 where the attacker picks the true one.
    """
    to_truth = float(correlation(found, truth[None])[0])
    to_others = correlation(found, others)
    return to_truth, float(to_others.mean()), int((to_others > to_truth).sum())
