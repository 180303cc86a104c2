"""Keep the largest component: nnU-Net's post-processing of segmentations, as JSON and for its own tools."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednnunet.datasets.description import label_values
from fednnunet.errors import DataError, first_problem, one_line
from fednnunet.files import write_atomically, write_bytes

POSTPROCESSING_FILE = "postprocessing.json"
NNUNET_POSTPROCESSING_FILE = "postprocessing.pkl"
"""The same for ``nnUNetv2_apply_postprocessing``, which unpickles it; nothing here ever reads one."""
MOST_BYTES = 2**20
"""A file beyond this is no post-processing. nnU-Net's own is of a few kilobytes."""
_NNUNETS_FUNCTION = "remove_all_but_largest_component_from_segmentation"
_HIGHEST_LABEL = 65535
"""Label maps are of 16 bits at most."""


class LargestComponent(BaseModel):
    """One step: of the voxels with one of these labels, those outside the largest component become background.

    Attributes:
        labels: values of the whole foreground, of a region, or of one label.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: tuple[Annotated[int, Field(strict=True, ge=1, le=_HIGHEST_LABEL)], ...] = Field(
        min_length=1, max_length=1000
    )


class Postprocessing(BaseModel):
    """Steps in their order; none leaves segmentations as they are.

    Attributes:
        largest_component: where only the largest component is kept.

    >>> whole_then_two = Postprocessing.of([(1, 2), (2,)])
    >>> whole_then_two.to_json()
    {'largest_component': [{'labels': [1, 2]}, {'labels': [2]}]}
    >>> whole_then_two.apply(np.array([[[2, 0, 1, 2, 1, 1, 0, 2]]])).tolist()
    [[[0, 0, 1, 2, 1, 1, 0, 0]]]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    largest_component: tuple[LargestComponent, ...] = Field(max_length=1000)

    @classmethod
    def of(cls, steps: Any) -> Self:
        """Post-processing of steps given as sequences of label values."""
        return cls(largest_component=tuple(LargestComponent(labels=tuple(labels)) for labels in steps))

    @classmethod
    def from_json(cls, content: Any, where: str = POSTPROCESSING_FILE) -> Self:
        """The post-processing that parsed JSON says, in our form or in that of nnU-Net's ``postprocessing.json``.

        Args:
            content: parsed JSON.
            where: what it was read from, for errors.

        Raises:
            DataError: a key is unknown, a label is no positive integer, or nnU-Net's function is another one.
        """
        try:
            return cls.model_validate(_in_our_form(content))
        except ValidationError as error:
            raise DataError(f"{where}: {first_problem(error, 'the post-processing')}") from None
        except _UnknownStepError as error:
            raise DataError(f"{where}: {error}") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """The post-processing in a JSON file, ours or nnU-Net's ``postprocessing.json``.

        Raises:
            DataError: the file is missing, too large, not JSON, or says something else; names it.
        """
        try:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise DataError(f"{path} has more than {MOST_BYTES} bytes, so it is no post-processing")
            return cls.from_json(json.loads(content), str(path))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: {one_line(str(error))}") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return self.model_dump(mode="json")

    def to_pickle(self) -> bytes:
        """Content of nnU-Net's ``postprocessing.pkl``: its function and the arguments of each step."""
        from nnunetv2.postprocessing.remove_connected_components import (
            remove_all_but_largest_component_from_segmentation as keep_largest,
        )

        arguments = [{"labels_or_regions": list(step.labels)} for step in self.largest_component]
        return pickle.dumps(([keep_largest] * len(arguments), arguments))

    def write(self, folder: Path) -> None:
        """Write ``postprocessing.json``, and ``postprocessing.pkl`` for nnU-Net's own tools, into ``folder``."""
        write_atomically(folder / POSTPROCESSING_FILE, json.dumps(self.to_json(), indent=2) + "\n")
        write_bytes(folder / NNUNET_POSTPROCESSING_FILE, self.to_pickle())

    def apply(self, segmentation: np.ndarray) -> np.ndarray:
        """The segmentation (Z, Y, X) after all steps: a new array of the same type, the same one without steps.

        Each is nnU-Net's ``remove_all_but_largest_component_from_segmentation``: components touch at faces, edges or
        corners; of several largest ones all stay.
        """
        if self.largest_component:
            from nnunetv2.postprocessing.remove_connected_components import (
                remove_all_but_largest_component_from_segmentation as keep_largest,
            )

            for step in self.largest_component:
                segmentation = keep_largest(segmentation, list(step.labels))
        return segmentation

    def check_labels(self, labels: Mapping[str, Any], where: str = POSTPROCESSING_FILE) -> None:
        """Check that a model can segment what is post-processed.

        Args:
            labels: nnU-Net's ``labels`` of the model.
            where: what the post-processing was read from, for the error.

        Raises:
            DataError: a step has a value that no label has.
        """
        known = label_values({name: value for name, value in labels.items() if name != "ignore"})
        for value in (value for step in self.largest_component for value in step.labels):
            if value not in known:
                raise DataError(
                    f"{where} is of label value {value}, which the model does not segment ({', '.join(labels)}); it "
                    "belongs to another model"
                )


class _UnknownStepError(Exception):
    """nnU-Net's JSON names another function, or other arguments."""


def _in_our_form(content: Any) -> Any:
    """Parsed JSON in our form, where it is nnU-Net's: function names and their arguments beside scores."""
    if not isinstance(content, dict) or "postprocessing_fns" not in content:
        return content
    functions, arguments = content["postprocessing_fns"], content.get("postprocessing_kwargs")
    if not isinstance(functions, list) or not isinstance(arguments, list) or len(functions) != len(arguments):
        raise _UnknownStepError("postprocessing_fns and postprocessing_kwargs must be lists of one length")
    for function in functions:
        if function != _NNUNETS_FUNCTION:
            raise _UnknownStepError(f"{one_line(str(function))} is unknown; it can only be {_NNUNETS_FUNCTION}")
    steps = []
    for of_step in arguments:
        if not isinstance(of_step, dict) or of_step.keys() - {"background_label"} != {"labels_or_regions"}:
            raise _UnknownStepError("each entry of postprocessing_kwargs must have labels_or_regions")
        if of_step.get("background_label", 0) != 0:
            raise _UnknownStepError("background_label must be 0")
        steps.append({"labels": _flat(of_step["labels_or_regions"])})
    return {"largest_component": steps}


def _flat(labels: Any) -> list[Any]:
    """Values of a label, a region, or a list of them."""
    parts = labels if isinstance(labels, list) else [labels]
    return [value for part in parts for value in (part if isinstance(part, list) else [part])]
