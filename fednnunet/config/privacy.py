"""What protects what nodes send: group ``privacy``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from fednnunet.config.groups import Config


class SecureSumsConfig(Config):
    """Sums that show the server no single node's layers (Bonawitz et al. 2017).

    Attributes:
        colluding: Nodes that may help a curious server without its learning another's layers.
        min_group: Fewest nodes over which layers are averaged; with 2, each can compute the other's.
        limit: Largest weight of a layer, in size, that can be sent.
    """

    colluding: int = Field(default=1, ge=0)
    min_group: int = Field(default=3, ge=2)
    limit: PositiveFloat = 64.0


class PrivacyLimits(Config):
    """The least protection that a node asks for.

    Attributes:
        scores: What leaves of scores. ``cases``: one row per case; ``mean``: means over the node's cases; ``nothing``.
        least_steps: Fewest training steps of a round: layers after fewer tell more of single images; 0 for no limit.
        max_epsilon: Most privacy loss, in epsilon, over all runs on the node's images; null for no limit.
    """

    scores: Literal["cases", "mean", "nothing"] = "cases"
    least_steps: int = Field(default=0, ge=0)
    max_epsilon: PositiveFloat | None = None


class PrivacyConfig(PrivacyLimits):
    """What protects what nodes send: group ``privacy``.

    Attributes:
        secure_sums: Sums that show the server no single node's layers; null sends layers as they are.
        scores: What leaves of scores. ``cases``: one row per case; ``mean``: means over the node's cases; ``nothing``.
        least_steps: Fewest training steps of a round: layers after fewer tell more of single images; 0 for no limit.
        max_epsilon: Most privacy loss, in epsilon, over all runs on the node's images; null for no limit.
    """

    secure_sums: SecureSumsConfig | None = None


class NodePrivacy(PrivacyLimits):
    """The least protection that a node asks for, whatever the server's configuration says.

    Attributes:
        secure_sums: ``required``: take part only in runs whose server sees sums; ``optional``: in others, too.
        scores: What leaves of scores. ``cases``: one row per case; ``mean``: means over the node's cases; ``nothing``.
        least_steps: Fewest training steps of a round: layers after fewer tell more of single images; 0 for no limit.
        max_epsilon: Most privacy loss, in epsilon, over all runs on the node's images; null for no limit.
    """

    secure_sums: Literal["required", "optional"] = "optional"
