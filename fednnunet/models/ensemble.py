"""Models that segment together: their softmax outputs are averaged; most often it is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fednnunet.errors import DataError
from fednnunet.models.postprocessing import Postprocessing
from fednnunet.models.trained_model import TrainedModel


@dataclass(frozen=True)
class Member:
    """A model of an ensemble.

    Attributes:
        model: the model.
        previous: of a cascade, the model whose segmentations it takes beside the images; None if it is not there.
    """

    model: TrainedModel
    previous: TrainedModel | None = None

    @property
    def previous_stage(self) -> str | None:
        """Configuration whose segmentations the model takes; None without a cascade."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        name = PlansManager(self.model.plans).get_configuration(self.model.configuration).previous_stage_name
        return None if name is None else str(name)

    @property
    def is_complete(self) -> bool:
        """Whether it can segment: the previous stage of a cascade is there."""
        return self.previous is not None or self.previous_stage is None


@dataclass(frozen=True)
class Ensemble:
    """One model, or several whose softmax outputs (sigmoids of regions) are averaged, as ``nnUNetv2_ensemble`` does.

    Attributes:
        members: the models.
        postprocessing: what follows; that of a model alone, and of several that of their mean.
        decided: file that says that these are best; empty where nothing had to be decided.
    """

    members: tuple[Member, ...]
    postprocessing: Postprocessing | None
    decided: str = ""

    @classmethod
    def of(cls, members: Sequence[Member], postprocessing: Postprocessing | None, named: str) -> Ensemble:
        """Models that fit together.

        Args:
            members: the models.
            postprocessing: what follows.
            named: what the post-processing was read from, for errors.

        Raises:
            DataError: members have other labels, channels or readers of files, so that their outputs cannot be
                averaged; or the post-processing is of labels that they do not segment.
        """
        first = members[0].model
        for other in (member.model for member in members[1:]):
            if unlike := differences(first, other):
                what, ours, theirs = unlike[0]
                raise DataError(
                    f"{other.where} and {first.where} cannot be averaged: their {what} are unlike, {theirs} and "
                    f"{ours}; hand over one of them"
                )
        if postprocessing is not None:
            postprocessing.check_labels(first.dataset_json["labels"], named)
        # What helps a member alone is not applied before the mean.
        own = postprocessing if len(members) == 1 else None
        kept = [replace(member, model=replace(member.model, postprocessing=own)) for member in members]
        return cls(tuple(kept), postprocessing)

    @classmethod
    def of_one(cls, model: TrainedModel, previous: TrainedModel | None = None) -> Ensemble:
        """A model alone, with its own post-processing."""
        return cls((Member(model, previous),), model.postprocessing)

    @property
    def first(self) -> TrainedModel:
        """The model that gives labels, channels and the ending of files."""
        return self.members[0].model

    @property
    def configurations(self) -> str:
        """Configurations of the members, for people."""
        return " + ".join(member.model.configuration for member in self.members)

    @property
    def models(self) -> tuple[TrainedModel, ...]:
        """All models, those of previous stages included."""
        before = (member.previous for member in self.members)
        return (*(member.model for member in self.members), *(model for model in before if model is not None))


def differences(first: TrainedModel, other: TrainedModel) -> list[tuple[str, Any, Any]]:
    """What differs and must be the same in models that segment the same images together, of the first and the other."""
    described = [model.dataset_json for model in (first, other)]
    channels = [list((one.get("channel_names") or one.get("modality") or {}).values()) for one in described]
    labels = [list(one["labels"].items()) for one in described]
    order = [one.get("regions_class_order") for one in described]
    readers = [model.plans.get("image_reader_writer", "SimpleITKIO") for model in (first, other)]
    compared: dict[str, list[Any]] = {
        "channels": channels,
        "labels": labels,
        "regions_class_order": order,
        "readers of images": readers,
    }
    return [(what, ours, theirs) for what, (ours, theirs) in compared.items() if ours != theirs]
