"""What a run segments: group ``task``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fednnunet.config.groups import Config
from fednnunet.exchange.messages import TaskName

BACKGROUND, IGNORE = "background", "ignore"
RESERVED = (BACKGROUND, IGNORE)
"""Labels whose names nnU-Net gives a meaning."""

CHANNEL_DROP = 0.25
"""Default of ``channel_drop``."""

PSEUDO_LABELS = 0.05
"""Default of ``pseudo_labels``."""


class TaskConfig(Config):
    """What is segmented, and in which images, where hospitals differ in either: group ``task``.

    Attributes:
        labels: ``same``: all nodes have the same labels. ``union``: one network for every label that any node has
            annotated; what a node has not annotated is unknown there, not background.
        rename_labels: Other names of labels, by centre: its own name to the common one. No file is changed.
        exclusion: With ``union``: also punish probability of what a node has not annotated inside of what it has (Shi
            et al. 2021).
        pseudo_labels: With ``union``: share of a training's computation in which the network that a node has received
            labels the node's own training cases, in turn, with what the node has not annotated (pseudo-labels). The
            more, the newer they are. 0: the marginal loss alone. There are none where nothing is received
            (``strategy=local``, ``centralized``).
        channels: ``same``: all nodes have the same channels, in the same order. ``union``: one network for every
            channel that any training node has, by name; one that a node lacks is zeros there.
        channel_drop: With ``channels=union``: probability in [0, 1) with which each of a node's own channels is zeros
            in a sample of training, never all of them, so that the network learns to do without; 0 drops none.
    """

    labels: Literal["same", "union"] = "same"
    rename_labels: dict[str, dict[TaskName, TaskName]] = Field(default_factory=dict)
    exclusion: bool = False
    pseudo_labels: float = Field(default=PSEUDO_LABELS, ge=0, le=1)
    channels: Literal["same", "union"] = "same"
    channel_drop: float = Field(default=CHANNEL_DROP, ge=0, lt=1)

    @field_validator("rename_labels", mode="before")
    @classmethod
    def _null_is_none(cls, value: Any) -> Any:
        """Hydra takes a map in the place of ``null`` on the command line, but new keys of a map only after ``+``."""
        return {} if value is None else value

    @model_validator(mode="after")
    def _names_may_change(self) -> TaskConfig:
        for centre, names in self.rename_labels.items():
            for old, new in names.items():
                if old in RESERVED or new in RESERVED:
                    raise ValueError(f"rename_labels.{centre}.{old}={new}: {' and '.join(RESERVED)} keep their names")
        if self.exclusion and self.labels != "union":
            raise ValueError("exclusion=true needs task.labels=union")
        if self.pseudo_labels != PSEUDO_LABELS and self.labels != "union":
            raise ValueError(f"pseudo_labels={self.pseudo_labels:g} needs task.labels=union")
        if self.channel_drop != CHANNEL_DROP and self.channels != "union":
            raise ValueError(f"channel_drop={self.channel_drop:g} needs task.channels=union")
        return self


def unite_labels(labels: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Every label of several nodes or centres, with a value that follows from the names alone.

    ``background`` is 0, the others count from 1 by name, ``ignore`` is last. Where all have the same labels with the
    same values, these stay.

    Args:
        labels: node or centre to its labels, name to value.

    >>> unite_labels({"A": {"background": 0, "spleen": 1}, "B": {"background": 0, "liver": 1, "ignore": 2}})
    {'background': 0, 'liver': 1, 'spleen': 2, 'ignore': 3}
    """
    first, *others = labels.values()
    if all(dict(one) == dict(first) for one in others):
        return dict(first)
    names = set().union(*labels.values())
    ordered = [BACKGROUND, *sorted(names - {*RESERVED}), *([IGNORE] if IGNORE in names else [])]
    return {name: value for value, name in enumerate(ordered)}
