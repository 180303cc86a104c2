"""Lightning's view of an nnU-Net trainer.

nnU-Net's ``nnUNetTrainer`` (or any subclass) decides what is trained: network, loss, optimizer, learning
rate, augmentation, online metrics, checkpoints. Lightning runs the loop. The trainer's own hooks are called
at the matching Lightning hooks, in nnU-Net's order, so a trainer variant works here unchanged and the losses
are those of ``nnUNetTrainer.run_training``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.errors import ConfigError
from fednnunet.training.marginal_loss import cases_of
from fednnunet.training.network_state import named_tensors
from fednnunet.training.partial_channels import partial_channels_of
from fednnunet.training.pseudo_labels import pseudo_labels_of

GRADIENT_CLIP_NORM = 12.0
"""Norm at which ``nnUNetTrainer.train_step`` clips gradients."""


def check_takes_terms(nnunet: nnUNetTrainer, key: str) -> None:
    """Check that a term can be added to the loss of ``nnunet``.

    Args:
        nnunet: the trainer.
        key: key of the configuration that asks for the term.

    Raises:
        ConfigError: it has its own training step, which no term can be added to.
    """
    if type(nnunet).train_step is not nnUNetTrainer.train_step:
        raise ConfigError(
            f"{key}: trainer.class={type(nnunet).__name__} has its own train_step, which no term can be added to; set "
            "it to 0, or choose another trainer"
        )


class NNUNetModule(L.LightningModule):
    """A LightningModule around an initialised ``nnUNetTrainer``.

    A trainer class that overrides ``train_step`` keeps it: the step then runs as written, under Lightning's
    manual optimization. Otherwise Lightning optimizes, and owns precision and gradient scaling.

    Args:
        nnunet: a trainer after ``initialize()``.
        step: takes the place of the trainer's ``train_step``, as one that hides single cases.
    """

    def __init__(self, nnunet: nnUNetTrainer, step: Callable[[Any], dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.nnunet = nnunet
        self.network = nnunet.network
        self.automatic_optimization = step is None and type(nnunet).train_step is nnUNetTrainer.train_step
        self._own_step = step or nnunet.train_step
        self._channels = partial_channels_of(nnunet)
        self._proximal_anchors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._proximal_weight = 0.0
        self._train_outputs: list[dict[str, Any]] = []
        self._validation_outputs: list[dict[str, Any]] = []

    def forward(self, images: torch.Tensor) -> Any:
        """Logits of ``images`` (B, C, [Z,] Y, X); a list, finest first, under deep supervision."""
        return self.network(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The trainer's optimizer; the trainer's own epoch hook steps its schedule."""
        return self.nnunet.optimizer

    def set_proximal_term(self, anchors: Mapping[str, torch.Tensor], weight: float) -> None:
        """Add ``weight * (layer - anchor)`` to the gradient of layers in every step from now on.

        That of weight/2 times the squared distance: FedProx's proximal term (Li et al. 2020) where the anchors are what
        the network starts from, Ditto's tie (Li et al. 2021, eq. 1) where they are another network's layers.

        Args:
            anchors: layers to what they are pulled towards; copied. Others, and those not of the network, are free.
            weight: mu or lambda of the papers; 0 for no term.

        Raises:
            ConfigError: the trainer has its own training step, to which no term can be added.
        """
        if weight and not self.automatic_optimization:
            raise ConfigError(f"{type(self.nnunet).__name__} has its own train_step, which no term can be added to")
        tensors = dict(named_tensors(self.network)) if weight else {}
        self._proximal_anchors = [
            (tensors[name], torch.empty_like(tensors[name]).copy_(anchor))
            for name, anchor in anchors.items()
            if name in tensors
        ]
        self._proximal_weight = weight

    def update_pseudo_labels(self) -> None:
        """Let the network as it is now, which the node has received, label what the node has not annotated.

        Nothing happens where all is annotated, or ``task.pseudo_labels`` is 0.
        """
        pseudo_labels = pseudo_labels_of(self.nnunet)
        if pseudo_labels is not None:
            pseudo_labels.update()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the proximal term's gradient, after unscaling and before clipping; the logged loss is without it."""
        for tensor, anchor in self._proximal_anchors:
            if tensor.grad is not None:
                tensor.grad.add_(tensor.detach() - anchor, alpha=self._proximal_weight)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip as ``nnUNetTrainer.train_step`` does."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_CLIP_NORM)

    def on_train_epoch_start(self) -> None:
        self._train_outputs.clear()
        self._validation_outputs.clear()
        self.nnunet.on_epoch_start()
        self.nnunet.on_train_epoch_start()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor | None:
        if self._channels is not None:
            batch = self._channels.training(batch, self.nnunet.current_epoch, batch_idx)
        if not self.automatic_optimization:
            self._train_outputs.append(self._own_step(batch))
            return None
        # Before the forward pass, as nnU-Net does: the last step's gradients need not be held through it.
        self.nnunet.optimizer.zero_grad(set_to_none=True)
        with cases_of(self.nnunet.loss, batch):
            loss = self.nnunet.loss(self.network(batch["data"]), batch["target"])
        self._train_outputs.append({"loss": loss.detach()})
        return loss

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: gradients are set to zero at the start of each step."""

    def on_validation_epoch_start(self) -> None:
        losses = [
            {**output, "loss": output["loss"].float().cpu().numpy()} if torch.is_tensor(output["loss"]) else output
            for output in self._train_outputs
        ]
        self.nnunet.on_train_epoch_end(losses)
        self.nnunet.on_validation_epoch_start()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self._channels is not None:
            batch = self._channels.validation(batch)
        self._validation_outputs.append(self.nnunet.validation_step(batch))

    def on_validation_epoch_end(self) -> None:
        self.nnunet.on_validation_epoch_end(self._validation_outputs)
        # nnU-Net's on_epoch_end comes last in its epoch too; Lightning calls callbacks' on_train_epoch_end
        # before the module's, and the federated callback needs the finished epoch.
        self.nnunet.on_epoch_end()
