"""What protects what nodes send: group ``privacy``."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field, PositiveFloat

from fednnunet.config.groups import Config
from fednnunet.errors import ConfigError

Scores: TypeAlias = Literal["cases", "mean", "nothing"]
"""What leaves a node of its scores, from most to least."""
SCORES: tuple[Scores, ...] = ("cases", "mean", "nothing")


class SecureSumsConfig(Config):
    """Sums that show the server no single node's layers (Bonawitz et al. 2017).

    Attributes:
        colluding: Nodes that may help a curious server without its learning another's layers.
        min_group: Fewest nodes over which layers are averaged; with 2, each can compute the other's.
        limit: Largest weight of a layer, in size, that can be sent.
        max_update_norm: A node refuses its own layers if they changed this many times as much as is usual in its last
            rounds, which the server cannot see; null for no limit.
    """

    colluding: int = Field(default=1, ge=0)
    min_group: int = Field(default=3, ge=2)
    limit: PositiveFloat = 64.0
    max_update_norm: float | None = Field(default=10.0, gt=1)


class PrivacyLimits(Config):
    """The least protection that a node asks for.

    Attributes:
        scores: What leaves of scores. ``cases``: one row per case; ``mean``: means over the node's cases; ``nothing``.
        least_steps: Fewest training steps of a round: layers after fewer tell more of single images; 0 for no limit.
        max_epsilon: Most privacy loss, in epsilon, over all runs on the node's images; null for no limit.
    """

    scores: Scores = "cases"
    least_steps: int = Field(default=0, ge=0)
    max_epsilon: PositiveFloat | None = None


class NodePrivacy(PrivacyLimits):
    """The least protection that a node asks for, whatever the server's configuration says.

    Attributes:
        secure_sums: ``required``: take part only in runs whose server sees sums; ``optional``: in others, too.
        colluding: Nodes that may help a curious server, at least, where sums are required.
        min_group: Nodes over which layers are averaged, at least, where sums are required.
        scores: What leaves of scores. ``cases``: one row per case; ``mean``: means over the node's cases; ``nothing``.
        least_steps: Fewest training steps of a round: layers after fewer tell more of single images; 0 for no limit.
        max_epsilon: Most privacy loss, in epsilon, over all runs on the node's images; null for no limit.
    """

    secure_sums: Literal["required", "optional"] = "optional"
    colluding: int = Field(default=1, ge=0)
    min_group: int = Field(default=3, ge=2)


class PrivacyConfig(PrivacyLimits):
    """What protects what nodes send: group ``privacy``.

    Attributes:
        secure_sums: Sums that show the server no single node's layers; null sends layers as they are.
        scores: What leaves of scores. ``cases``: one row per case; ``mean``: means over the node's cases; ``nothing``.
        least_steps: Fewest training steps of a round: layers after fewer tell more of single images; 0 for no limit.
        max_epsilon: Most privacy loss, in epsilon, over all runs on the node's images; null for no limit.
    """

    secure_sums: SecureSumsConfig | None = None

    def within(self, limits: NodePrivacy) -> PrivacyConfig:
        """The same with the stricter of both; of secure sums, all nodes must have the same rules.

        Raises:
            ConfigError: the run lacks secure sums, or their rules are less strict than ``limits``.
        """
        if limits.secure_sums == "required":
            if self.secure_sums is None:
                raise ConfigError(
                    "the run sends the server each node's layers, and this node's node.yaml says privacy.secure_sums: "
                    "required; start the run with privacy=secure"
                )
            for key in ("colluding", "min_group"):
                asked, least = getattr(self.secure_sums, key), getattr(limits, key)
                if asked < least:
                    raise ConfigError(
                        f"privacy.secure_sums.{key}={asked} is less than this node's node.yaml asks for; start the run "
                        f"with {least}"
                    )
        epsilons = [given for given in (self.max_epsilon, limits.max_epsilon) if given is not None]
        return self.model_copy(
            update={
                "scores": max(self.scores, limits.scores, key=SCORES.index),
                "least_steps": max(self.least_steps, limits.least_steps),
                "max_epsilon": min(epsilons, default=None),
            }
        )
