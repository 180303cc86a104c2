"""What the federation's network knows of labels that a node has not annotated, taught to the node's own.

Conditional distillation after Wang et al. 2023 (ConDistFL, https://arxiv.org/abs/2308.04070). The network that a node
receives at the start of a round is the teacher. Where the node has annotated nothing, its marginal loss
(:mod:`~fednnunet.training.marginal_loss`) says of a voxel only that it is background *or* something unannotated; the
teacher says which.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from fednnunet.errors import ConfigError
from fednnunet.training.network_state import unwrap

RAMP = 0.5
"""Fraction of the epochs over which the weight grows: the first teachers know nothing."""
SMOOTH = 1e-5
"""Added to numerator and denominator of Dice, as nnU-Net does."""


class Distillation(nn.Module):
    """Distance of student and teacher in what they say of a voxel that is in no annotated structure.

    With logits ``z`` of the student and ``t`` of the teacher, unannotated classes ``U`` and ``R = {0} + U``::

        p_c = exp(z_c) / sum_{r in R} exp(z_r)        q_c = exp(t_c) / sum_{r in R} exp(t_r)        c in R

        CE   = -1/V sum_{v in M} sum_{c in R} q_cv log p_cv
        Dice = -1/|U| sum_{u in U} (2 sum_{v in M} p_uv q_uv + s) / (sum_{v in M} (p_uv + q_uv) + s)

    ``M`` are the voxels of the batch in which the node has annotated nothing, and in which the teacher sees none of the
    node's structures either; ``V`` counts all voxels that are not ignored, ``s`` is 1e-5. As ``P(c) = P(R) P(c | R)``,
    the marginal cross entropy and this one add up to that of a label map in which the teacher has filled in what the
    node has not annotated. Annotated classes have no gradient. The paper has the Dice term alone, on probabilities of
    another temperature, at full resolution; here each output of deep supervision has its own.

    The weight grows linearly from 0, over :data:`RAMP` of the epochs, to ``weight``. The teacher's pass is what
    teaching costs: it is made of one image of ``every``, counted over the batches of a round. Which of a batch is drawn
    at random, as nnU-Net centres the last ones on foreground; it follows from epoch and batch alone, so that a run that
    resumes goes on as it would have. The distance of ``m`` images of a batch of ``B`` has the weight ``every * m / B``,
    whose mean over batches is 1.

    Args:
        unannotated: the classes ``U``.
        weight: of CE and Dice together, beside the marginal loss.
        every: number of images of which one is taught.
    """

    def __init__(self, unannotated: Sequence[int], weight: float, every: int = 1) -> None:
        super().__init__()
        self.rest = [0, *unannotated]
        self.weight = weight
        self.every = every
        self._images = 0
        self._random = np.random.default_rng(0)
        self._rows: slice | list[int] = slice(None)
        self._part = 1.0
        self.teacher: nn.Module | None = None
        self._weight_now = 0.0
        self._logits: dict[tuple[int, ...], torch.Tensor] = {}

    def keep_teacher(self, network: nn.Module, epoch: int, epochs: int) -> None:
        """Learn from ``network`` as it is now, from here on; so many epochs of all are done."""
        self._weight_now = self.weight * min(1.0, epoch / epochs / RAMP)
        self.draw_anew(epoch)
        if not self._weight_now:
            return
        if self.teacher is None:
            self.teacher = copy.deepcopy(unwrap(network)).requires_grad_(False).eval()
        else:
            self.teacher.load_state_dict(unwrap(network).state_dict())

    def learn_from(self, other: Distillation) -> None:
        """Have the teacher of another network, and its weight, for as long as that keeps it."""
        self.teacher, self._weight_now = other.teacher, other._weight_now

    def draw_anew(self, epoch: int) -> None:
        """Draw images by the epoch's number alone from here on, whatever was drawn before."""
        self._images, self._random = 0, np.random.default_rng(epoch)

    @contextlib.contextmanager
    def of_images(self, images: torch.Tensor) -> Iterator[None]:
        """Within this, the loss is called with outputs for ``images`` (B, C, [Z,] Y, X)."""
        self._see(images)
        try:
            yield
        finally:
            self._logits = {}

    @contextlib.contextmanager
    def of_calls(self, network: nn.Module) -> Iterator[None]:
        """Within this, the loss is called with outputs of ``network``, for whatever images it is called with."""
        hook = network.register_forward_pre_hook(lambda _, given: self._see(given[0]))
        try:
            yield
        finally:
            hook.remove()
            self._logits = {}

    @torch.no_grad()
    def _see(self, images: torch.Tensor) -> None:
        self._logits = {}
        if self.teacher is None or not self._weight_now:
            return
        batch, before = len(images), self._images
        self._images += batch
        number = self._images // self.every - before // self.every
        if not number:
            return
        drawn = sorted(self._random.choice(batch, number, replace=False).tolist())
        self._rows = drawn if number < batch else slice(None)
        self._part = self.every * number / batch
        taught = images[self._rows]
        device = next(self.teacher.parameters()).device
        outputs = self.teacher(taught.to(device, non_blocking=True))
        scales = outputs if isinstance(outputs, list | tuple) else [outputs]
        self._logits = {(batch, *one.shape[1:]): one for one in scales}

    @property
    def teaches(self) -> bool:
        """Whether there is a teacher's output for what the loss is called with: not in validation."""
        return bool(self._logits)

    def forward(self, logits: torch.Tensor, background: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """The weighted distance.

        Args:
            logits: of the union's classes, (B, classes, [Z,] Y, X).
            background: voxels in which the node has annotated nothing, boolean (B, 1, [Z,] Y, X).
            known: voxels that are not ignored, of the same shape.

        Raises:
            ConfigError: the loss is called with something else than the network's outputs.
        """
        teacher = self._logits.get(tuple(logits.shape))
        if teacher is None:
            raise ConfigError(
                "task.distillation needs a trainer.class that calls its loss with what its network returns; set "
                "task.distillation=0"
            )
        rows = self._rows
        return self._weight_now * self._part * self.distance(logits[rows], teacher, background[rows], known[rows])

    def distance(
        self, logits: torch.Tensor, teacher: torch.Tensor, background: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        """CE + Dice; shapes as of :meth:`forward`, ``teacher``'s that of ``logits``."""
        of_rest = self._of_rest(teacher)
        inside = background & (of_rest.amax(1, keepdim=True) == teacher.amax(1, keepdim=True))
        q = torch.softmax(of_rest.float(), 1).mul_(inside)
        log_p = torch.log_softmax(self._of_rest(logits).float(), 1)
        cross_entropy = -(q * log_p).sum() / known.sum().clamp(min=1)
        p, over = log_p.exp(), [0, *range(2, log_p.ndim)]
        both, all_p = ((p * factor).sum(over) for factor in (q, inside))  # one array of this size at a time
        dice = (2 * both + SMOOTH) / (all_p + q.sum(over) + SMOOTH)
        return cross_entropy - dice[1:].mean()

    def _of_rest(self, logits: torch.Tensor) -> torch.Tensor:
        """Those of the background and unannotated classes."""
        classes = logits.unbind(1)
        return torch.stack([classes[one] for one in self.rest], 1)
