"""Messages of a round of training, and of opening its secure sums."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fednnunet.exchange.message_fields import (
    MAX_CLASSES,
    Body,
    ExchangeDtype,
    Fold,
    Hex,
    LayerName,
    NodeName,
    References,
    Sealed,
)


class LayerClass(Body):
    """Layers that the same nodes have: they are summed together (:mod:`fednnunet.privacy.secure_sum`).

    Attributes:
        members: nodes of the round that have them, sorted.
        layers: their names at this node, in the same order at every node; none at a node that is no member.
    """

    members: Annotated[list[NodeName], Field(min_length=1, max_length=1000)]
    layers: list[LayerName]


class TrainRequest(Body):
    """Load the arrays beside this body, train, send the layers listed.

    Attributes:
        fold: fold to train; folds come one after another.
        server_round: number of the round, from 1; 0 requests the initial state without training.
        trained: the last round that this node trained in, 0 for none: a worker that has just started resumes from it;
            ``server_round`` itself requests that round's reply again.
        epochs: epochs of a round; fewer where the trainer has fewer left. Epochs of rounds that the node was not in
            count as finished.
        layers: names of the layers to send back; empty when nothing is exchanged.
        dtype: data type to send them in; buffers, and layers of integers, are sent as they are. With ``int8`` or
            ``int4`` a layer is sent as a step from what is beside this body of it, decoded.
        references: layers beside this body that are steps, and what they start from.
        proximal_mu: weight of FedProx's proximal term, towards the arrays beside this body; 0 for none.
        classes: send the layers masked, for secure sums by class; the first class also sums the round's figures.
        most_cases: a masked layer is weighted by the node's training cases of the fold, as a fraction of these; None
            for equal weights.
    """

    fold: Fold = 0
    server_round: int = Field(ge=0)
    trained: int = Field(default=0, ge=0)
    epochs: int = Field(default=1, ge=1)
    layers: list[LayerName]
    dtype: ExchangeDtype = "float32"
    references: References = Field(default={})
    proximal_mu: float = Field(default=0.0, ge=0)
    classes: Annotated[list[LayerClass], Field(max_length=MAX_CLASSES)] = Field(default=[])
    most_cases: int | None = Field(default=None, ge=1)


class TrainReply(Body):
    """Figures of a round's last epoch, nnU-Net's own.

    Attributes:
        fold: fold of the request.
        server_round: round of the request.
        num_examples: number of training cases of this fold.
        train_loss: mean over the epoch's training iterations.
        val_loss: mean over the epoch's validation iterations.
        pseudo_dice: nnU-Net's online mean foreground Dice; None when no label was seen.
        learning_rate: learning rate of the epoch.
        seconds_train: seconds of training and validation in the round's epochs.
        seconds_exchange: seconds of loading and sending arrays at the node.
        gpu_memory_gib: most GPU memory that the round took, GiB; None on other devices.
        shares: class by class, member to this node's shares for it, which it alone can read.
    """

    fold: Fold = 0
    server_round: int
    num_examples: int = Field(ge=1)
    train_loss: float | None = None
    val_loss: float | None = None
    pseudo_dice: float | None = None
    learning_rate: float | None = None
    seconds_train: float = Field(default=0.0, ge=0)
    seconds_exchange: float = Field(default=0.0, ge=0)
    gpu_memory_gib: float | None = Field(default=None, ge=0)
    shares: Annotated[list[dict[NodeName, Sealed]], Field(max_length=MAX_CLASSES)] = Field(default=[])


class UnmaskRequest(Body):
    """Help to open the sums of a round; answered for one set of arrivals in a round.

    Attributes:
        fold: fold of the round.
        server_round: the round.
        arrived: class by class, members whose layers are in the sum; empty for a class that this node is not in.
        shares: class by class, arrival to its shares for this node.
    """

    fold: Fold
    server_round: int = Field(ge=1)
    arrived: Annotated[list[list[NodeName]], Field(max_length=MAX_CLASSES)]
    shares: Annotated[list[dict[NodeName, Sealed]], Field(max_length=MAX_CLASSES)]


class UnmaskReply(Body):
    """What has to be subtracted from the sums.

    Attributes:
        shares: class by class, arrival to shares of its own seed, and of those with members that are missing, by name.
    """

    shares: Annotated[list[dict[NodeName, dict[NodeName, Hex]]], Field(max_length=MAX_CLASSES)]
