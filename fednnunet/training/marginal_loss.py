"""nnU-Net's losses where only some of the labels are annotated: the marginal loss of Shi et al. 2021.

The paper: Medical Image Analysis 70, 101979, https://arxiv.org/abs/2007.03868.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn
from torch.nn.functional import nll_loss

SMOOTH = 1e-5
"""Added to numerator and denominator of Dice, as nnU-Net does."""


class MarginalLoss(nn.Module):
    """A loss of nnU-Net, of logits whose unannotated classes are merged with the background.

    The merged class has the logit ``log sum exp z_u`` over the background and the unannotated classes ``u``, so that
    the softmax of the merged logits is the sum of their probabilities. It is computed in float32: under autocast its
    sums would lose up to 2 % on a CPU. Dice is averaged over the annotated classes only. With all classes annotated
    the loss is called as it is.

    ``exclusion`` adds the exclusion cross entropy of the same paper: with ``e`` 1 in annotated foreground and 0
    elsewhere, ``eCE = mean_v mean_u e_v log(p_uv + 1)``, over voxels ``v`` that are not ignored and unannotated classes
    ``u``. The paper's exclusion Dice is left out: its denominator raises ``p_u`` in the background, where nothing is
    known of ``u``. It adds little to a softmax, in which the merged cross entropy already lowers ``p_u`` there.

    Pseudo-labels ``y``, of the background or an unannotated class, add CE and Dice among these classes ``R``. In the
    voxels ``M`` that have one, and with ``V`` voxels that are not ignored::

        p_c = exp(z_c) / sum_{r in R} exp(z_r)        CE = -1/V sum_{v in M} log p_{y_v, v}
        Dice = -mean_u (2 sum_{v in M, y_v = u} p_uv + s) / (sum_{v in M} p_uv + |{v in M: y_v = u}| + s),   s = 1e-5

    As ``P(c) = P(R) P(c | R)``, both cross entropies add up to that of a map that pseudo-labels have completed.

    Args:
        loss: nnU-Net's, of logits and label values; it knows the union's ignore label, and has no weights of classes.
        annotated: annotated classes, of 1 to ``num_classes - 1``.
        num_classes: classes of the network, with background.
        ignore_label: value of ignored voxels, if any.
        exclusion: whether to add the exclusion term.

    Attributes:
        pseudo_weight: weight of pseudo-labels in the target, 0 at first. Where it is more, what is 0 in a target is
            known to be background, by a pseudo-label or as it lies outside of an image.
        unknown: value of a target in a voxel where nothing is annotated, and no network has said anything.
    """

    def __init__(
        self,
        loss: nn.Module,
        annotated: Iterable[int],
        num_classes: int,
        ignore_label: int | None = None,
        exclusion: bool = False,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.annotated = sorted(annotated)
        self.unannotated = [one for one in range(1, num_classes) if one not in self.annotated]
        self.ignore_label = ignore_label
        self.exclusion = exclusion
        self.pseudo_weight = 0.0
        self._rest = [0, *self.unannotated]
        self.unknown = max(num_classes, (ignore_label or 0) + 1)
        # Merged classes are no more than those of the union, so its ignore value is none of theirs.
        self._table = torch.zeros(self.unknown + num_classes, dtype=torch.int64)
        self._table[self.annotated] = torch.arange(1, len(self.annotated) + 1)
        if ignore_label is not None:
            self._table[ignore_label] = ignore_label
        self._place = torch.full_like(self._table, -1)
        self._place[[0, *(self.unknown + one for one in self.unannotated)]] = torch.arange(len(self._rest))

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss.

        Args:
            logits: of the union's classes, (B, classes, [Z,] Y, X).
            target: values of the union's labels, or :meth:`pseudo_labels`, (B, 1, [Z,] Y, X); what is not annotated,
                and what is negative, counts as the merged class.
        """
        if not self.unannotated:
            return self.loss(logits, target)
        if self._table.device != target.device:
            self._table, self._place = self._table.to(target.device), self._place.to(target.device)
        values = target.clamp(min=0).long()
        merged_target = self._table[values]
        classes = logits.float().unbind(1)
        rest = torch.stack([classes[one] for one in self._rest], 1)
        log_rest = torch.log_softmax(rest, 1) if self.pseudo_weight else None
        merged = torch.logsumexp(rest, 1) if log_rest is None else rest[:, 0] - log_rest[:, 0]
        loss = self.loss(torch.stack([merged, *(classes[one] for one in self.annotated)], 1), merged_target)
        if self.exclusion:
            loss = loss + self._exclusion(logits, merged_target)
        if log_rest is not None:
            place, known = self._place[values], self._known(merged_target).sum().clamp(min=1)
            cross_entropy = nll_loss(log_rest, place[:, 0], ignore_index=-1, reduction="sum") / known
            loss = loss + self.pseudo_weight * (cross_entropy - _dice(log_rest, place))
        return loss

    def pseudo_labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Target values that say which of background and unannotated classes a network sees.

        Args:
            logits: of the union's classes, (classes, [Z,] Y, X).

        Returns:
            Integers ([Z,] Y, X): 0 for background, others for unannotated classes, and :attr:`unknown` where it sees an
            annotated class.
        """
        best, place = logits[self._rest].max(0)
        values = torch.tensor([0, *(self.unknown + one for one in self.unannotated)])
        dtype = torch.uint8 if values.max() < 256 else torch.int16  # nnU-Net's of label maps
        return torch.where(logits[self.annotated].amax(0) >= best, self.unknown, values[place]).to(dtype)

    @contextlib.contextmanager
    def without_pseudo_labels(self) -> Iterator[None]:
        """Within this, what is 0 in a target is not known to be background."""
        weight, self.pseudo_weight = self.pseudo_weight, 0.0
        try:
            yield
        finally:
            self.pseudo_weight = weight

    def _known(self, merged_target: torch.Tensor) -> torch.Tensor:
        """Voxels that are not ignored."""
        if self.ignore_label is None:
            return torch.ones_like(merged_target, dtype=torch.bool)
        return merged_target != self.ignore_label

    def _exclusion(self, logits: torch.Tensor, merged_target: torch.Tensor) -> torch.Tensor:
        """The exclusion cross entropy."""
        inside, known = merged_target > 0, self._known(merged_target)
        classes = torch.softmax(logits.float(), 1).unbind(1)
        punished = torch.log1p(torch.stack([classes[one] for one in self.unannotated], 1)).mean(1, keepdim=True)
        return torch.where(inside & known, punished, 0).sum() / known.sum().clamp(min=1)


def _dice(log_p: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Mean soft Dice of all classes but the first, over the batch, where a class is given.

    Args:
        log_p: logarithms of probabilities, (B, classes, [Z,] Y, X).
        place: number of the class, (B, 1, [Z,] Y, X); negative where none is given.
    """
    over = (0, *range(2, log_p.ndim))
    p = log_p[:, 1:].exp() * (place >= 0)
    given = torch.cat([place == one for one in range(1, log_p.shape[1])], 1)
    dice = (2 * (p * given).sum(over) + SMOOTH) / (p.sum(over) + given.sum(over) + SMOOTH)
    return dice.mean()


class PooledMarginalLoss(nn.Module):
    """:class:`MarginalLoss` of batches whose cases are annotated unlike: the cases of each set of labels by themselves.

    The loss is the mean over these parts of a batch, each with the weight of its number of cases. Where Dice is
    computed over the batch (``batch_dice``), that of a class is so computed over the cases with one set and averaged
    over the sets, not over all cases that have the class; the largest voxels of a top-k loss are those of each part,
    and ignored voxels weigh in their part only. Cross entropy without ignore label is that of all cases together, and
    so is Dice of single cases, but for its mean over classes, which each part takes over its own.

    Args:
        loss: as of :class:`MarginalLoss`.
        annotated: annotated classes by case.
        num_classes: classes of the network, with background.
        ignore_label: value of ignored voxels, if any.
        exclusion: whether to add the exclusion term.
    """

    def __init__(
        self,
        loss: nn.Module,
        annotated: Mapping[str, Iterable[int]],
        num_classes: int,
        ignore_label: int | None = None,
        exclusion: bool = False,
    ) -> None:
        super().__init__()
        sets = {case: tuple(sorted(classes)) for case, classes in annotated.items()}
        unlike = sorted(set(sets.values()))
        losses = [MarginalLoss(loss, one, num_classes, ignore_label, exclusion) for one in unlike]
        self.losses = nn.ModuleList(losses)
        self.unannotated = [one.unannotated for one in losses]
        self._number = {case: unlike.index(one) for case, one in sets.items()}
        self._parts: dict[int, list[int]] | None = None

    def parts_of(self, cases: Sequence[str]) -> dict[int, list[int]]:
        """Rows of a batch of these cases, by the number of their loss in ``losses``."""
        parts: dict[int, list[int]] = {}
        for row, case in enumerate(cases):
            parts.setdefault(self._number[str(case)], []).append(row)
        return parts

    @contextlib.contextmanager
    def batch_of(self, cases: Sequence[str]) -> Iterator[None]:
        """Within this, the loss is called with a batch of these cases."""
        self._parts = self.parts_of(cases)
        try:
            yield
        finally:
            self._parts = None

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss; shapes as of :class:`MarginalLoss`.

        Raises:
            RuntimeError: it is called outside of :meth:`batch_of`, or with a batch of another size.
        """
        parts, size = self._parts, len(logits)
        if parts is None or sum(map(len, parts.values())) != size:
            raise RuntimeError("the loss of pooled, partially labelled cases has to be told which cases a batch holds")
        if len(parts) == 1:
            return self.losses[next(iter(parts))](logits, target)
        losses = [len(rows) / size * self.losses[one](logits[rows], target[rows]) for one, rows in parts.items()]
        return torch.stack(losses).sum()


def cases_of(loss: nn.Module, batch: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Within this, ``loss`` trains on ``batch``: what nnU-Net's loader gives, with names of its cases."""
    inner = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
    return inner.batch_of(batch["keys"]) if isinstance(inner, PooledMarginalLoss) else contextlib.nullcontext()
