"""What protects what nodes send: group ``privacy``."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field, PositiveFloat, model_validator

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


class NoiseConfig(Config):
    """Noise that hides what is protected (differential privacy).

    Attributes:
        epsilon: Privacy loss after all folds and rounds of the run, from which the noise is computed; or null, and
            ``noise`` is given.
        noise: Noise multiplier: standard deviation of the noise on a sum, in units of ``clip``; or null.
        clip: Largest norm of what one of them adds to a sum.
        accept_useless: Train even where the noise is more than 20 times as large as what it hides.
    """

    epsilon: PositiveFloat | None = Field(default=None, allow_inf_nan=False)
    noise: PositiveFloat | None = Field(default=None, allow_inf_nan=False)
    clip: PositiveFloat = Field(default=1.0, allow_inf_nan=False)
    accept_useless: bool = False

    @model_validator(mode="after")
    def _noise_is_given_once(self) -> NoiseConfig:
        if (self.epsilon is None) == (self.noise is None):
            raise ValueError("set one of epsilon and noise, and the other to null")
        return self


class CaseNoiseConfig(NoiseConfig):
    """Noise in every training step, which hides whether a case was there: from the server, other nodes and readers of
    the model (DP-SGD, Abadi et al. 2016).

    Attributes:
        epsilon: Privacy loss of a case after all folds and rounds of the run, from which the noise is computed; or
            null, and ``noise`` is given.
        clip: Largest norm of a case's gradient.
        delta: Probability that epsilon does not hold, at most a tenth of one over the number of cases; null for that.
        cases: Cases that are expected in a step: each is drawn with this number over that of training cases.
        patches: Patches of a drawn case.
    """

    delta: float | None = Field(default=None, gt=0, lt=1)
    cases: int = Field(default=12, ge=1)
    patches: int = Field(default=3, ge=1)


class NodeNoiseConfig(NoiseConfig):
    """Noise on what a node sends, which hides whether the node was there.

    With secure sums, the noise of the nodes adds up to that of one; without, each adds all of it.

    Attributes:
        epsilon: Privacy loss of a node after all folds and rounds of the run, from which the noise is computed; or
            null, and ``noise`` is given.
        clip: Largest norm of a node's update in a round.
        delta: Probability that epsilon does not hold.
    """

    delta: float = Field(default=1e-5, gt=0, le=1e-5)


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
    """

    secure_sums: Literal["required", "optional"] = "optional"
    colluding: int = Field(default=1, ge=0)
    min_group: int = Field(default=3, ge=2)


class PrivacyConfig(PrivacyLimits):
    """What protects what nodes send: group ``privacy``.

    Attributes:
        secure_sums: Sums that show the server no single node's layers; null sends layers as they are.
        case: Noise that hides single cases; null for none.
        node: Noise that hides whole nodes; null for none.
    """

    secure_sums: SecureSumsConfig | None = None
    case: CaseNoiseConfig | None = None
    node: NodeNoiseConfig | None = None

    @model_validator(mode="after")
    def _one_thing_is_hidden(self) -> PrivacyConfig:
        if self.case is not None and self.node is not None:
            raise ValueError("set one of privacy.case and privacy.node, and the other to null")
        return self

    def check_limit(self) -> None:
        """Check that a limit of epsilon can be kept at all.

        Raises:
            ConfigError: there is one, and no noise.
        """
        if self.max_epsilon is not None and self.case is None and self.node is None:
            raise ConfigError(
                f"privacy.max_epsilon={self.max_epsilon:g} cannot be kept without noise; start the run with "
                "privacy=case or privacy=node"
            )

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
