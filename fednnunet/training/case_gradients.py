"""Training steps that hide single cases: DP-SGD (Abadi et al. 2016, algorithm 1) with cases as units.

Each case is drawn for a step with the same probability, independently of the others (Poisson sampling); patches of a
drawn case are passed through the network together, and its gradient is clipped. Noise is added to the sum. What a case
adds does not depend on which others are drawn: its patches and their augmentation follow from a seed of its own, and
the network may not have running statistics.

All that is drawn follows from a secret of the node, and from the weights that a step begins with. A step that is
repeated is the same; one from other weights has other cases, and noise that cannot be cancelled against the first.
"""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.errors import ConfigError
from fednnunet.privacy.masks import derive_seed
from fednnunet.privacy.noise import add_noise, uniform
from fednnunet.privacy.secure_sum import digest_of
from fednnunet.training.network_state import no_running_statistics, trained_parameters

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseNoise:
    """How a step hides single cases.

    Attributes:
        clip: largest norm of a case's gradient.
        noise: noise multiplier: standard deviation of the noise on the sum, in units of ``clip``.
        rate: probability with which a case is in a step.
        patches: patches of a drawn case.
    """

    clip: float
    noise: float
    rate: float
    patches: int


def check_hides_cases(trainer: nnUNetTrainer) -> None:
    """Check that single cases can be hidden in the steps of ``trainer``.

    Raises:
        ConfigError: it has a training step of its own, or running statistics (batch normalization).
    """
    name = type(trainer).__name__
    if type(trainer).train_step is not nnUNetTrainer.train_step:
        raise ConfigError(f"privacy.case: trainer.class={name} has its own train_step; choose one that has not")
    no_running_statistics(trainer.network, "privacy.case")


class CaseSteps:
    """The training steps of a fold.

    Args:
        trainer: after ``on_train_start()``; its training loader is changed to draw the patches of one case.
        noise: how steps hide cases.
        secret: 32 bytes that only this node knows, for the fold.

    Raises:
        ConfigError: the trainer has a loader of its own.
    """

    def __init__(self, trainer: nnUNetTrainer, noise: CaseNoise, secret: bytes) -> None:
        loader = trainer.dataloader_train
        if not isinstance(loader, SingleThreadedAugmenter) or type(loader.data_loader) is not nnUNetDataLoader:
            raise ConfigError(f"privacy.case: trainer.class={type(trainer).__name__} loads its data in its own way")
        self.noise = noise
        self.cases: list[str] = sorted(loader.data_loader.indices)
        self._trainer, self._secret = trainer, secret
        self._loader = loader.data_loader
        self._loader.batch_size = noise.patches
        # nnU-Net's other rule takes the last patches of a batch, which would be none of a single one.
        self._loader.get_do_oversample = self._loader._probabilistic_oversampling
        self._parameters = list(trained_parameters(trainer.network).values())
        self._last_loss = math.nan

    def __call__(self, step: int) -> dict[str, Any]:
        """Train one step.

        Args:
            step: its number within the epoch, from 0.

        Returns:
            ``loss``, as of ``nnUNetTrainer.train_step``: the mean over the drawn cases. It is not hidden by noise.
        """
        trainer = self._trainer
        seed = derive_seed(self._secret, trainer.current_epoch, step, digest_of(_arrays(self._parameters)))
        chances = uniform(len(self.cases), derive_seed(seed, "draw"))
        drawn = [case for case, chance in zip(self.cases, chances, strict=True) if chance < self.noise.rate]
        sums = [torch.zeros_like(one, memory_format=torch.contiguous_format) for one in self._parameters]
        losses = [self._add_case(case, derive_seed(seed, "case", case), sums) for case in drawn]
        if self.noise.noise:
            noise_seed = derive_seed(seed, "noise", digest_of(_arrays(sums)))
            for number, total in enumerate(sums):
                values = total.cpu().numpy()
                add_noise(values, self.noise.noise * self.noise.clip, derive_seed(noise_seed, number))
                total.copy_(torch.from_numpy(values))
        for parameter, total in zip(self._parameters, sums, strict=True):
            parameter.grad = total.div_(self.noise.rate * len(self.cases))
        trainer.optimizer.step()
        if losses:
            self._last_loss = float(np.mean(losses))
        return {"loss": self._last_loss}

    def _add_case(self, case: str, seed: bytes, sums: list[torch.Tensor]) -> float:
        """Add the clipped gradient of a case's mean loss over its patches to ``sums``; returns that loss."""
        batch = self.patches_of(case, seed)
        device = self._trainer.device
        target = batch["target"]
        target = [one.to(device) for one in target] if isinstance(target, list) else target.to(device)
        loss = self._trainer.loss(self._trainer.network(batch["data"].to(device)), target)
        value = float(loss.detach())
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)  # a head of weight 0 is not used
        norm = float(torch.nn.utils.get_total_norm([one for one in gradients if one is not None]))
        if not math.isfinite(norm):
            log.warning("the gradient of a case is not finite; the case is left out of this step")
            return value
        scale = min(1.0, self.noise.clip / norm) if norm else 1.0
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient, alpha=scale)
        return value

    def patches_of(self, case: str, seed: bytes) -> dict[str, Any]:
        """nnU-Net's augmented patches of one case, as a batch."""
        random.seed(seed)
        np.random.seed(np.frombuffer(seed, "<u4"))
        torch.manual_seed(int.from_bytes(seed[:8], "little"))
        self._loader.get_indices = lambda: [case] * self.noise.patches
        batch: dict[str, Any] = self._loader.generate_train_batch()
        return batch


def _arrays(tensors: list[Any]) -> list[np.ndarray]:
    return [tensor.detach().cpu().numpy() for tensor in tensors]
