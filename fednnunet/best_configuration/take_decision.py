"""A decision at a node: its post-processing beside the models that it is of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednnunet.best_configuration.decision_files import BEST_FILE
from fednnunet.best_configuration.node_models import TrainedFolds
from fednnunet.best_configuration.sums import MOST_BYTES, Model
from fednnunet.errors import DataError, first_problem, one_line
from fednnunet.models.postprocessing import POSTPROCESSING_FILE, Postprocessing


class _Best(BaseModel):
    models: Annotated[list[Model], Field(min_length=1, max_length=2)]


class TakenDecision(BaseModel):
    """What a node needs of ``best_configuration.json``.

    Attributes:
        format: version of the file's form.
        best: the best model, or the two of the best ensemble.
        postprocessing: what helps it.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1]
    best: _Best
    postprocessing: Postprocessing


def read_decision(folder: Path) -> TakenDecision:
    """Read the decision in a folder of ``fednnunet find-best``.

    Raises:
        DataError: the file cannot be read, or says something else; names file and field.
    """
    path = folder / BEST_FILE
    try:
        with path.open("rb") as file:
            return TakenDecision.model_validate(json.loads(file.read(MOST_BYTES)))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error, 'the decision')}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {one_line(str(error))}") from None


def take(decision: TakenDecision, by_node: Mapping[str, Sequence[TrainedFolds]]) -> list[Path]:
    """Write the post-processing beside each node's best model, where exporting and predicting find it.

    That of an ensemble belongs to the mean of both, and is written beside neither.

    Args:
        decision: the decision.
        by_node: node to its models.

    Returns:
        Folders of the models.

    Raises:
        DataError: a node lacks the best model, or its model does not segment what is post-processed; or a model of the
            best ensemble has post-processing of an earlier decision beside it, which would come before the mean.
    """
    if len(decision.best.models) > 1:
        of_ensemble = [one.folder for models in by_node.values() for one in models if one.model in decision.best.models]
        for folder in of_ensemble:
            earlier = folder / POSTPROCESSING_FILE
            if earlier.exists() and Postprocessing.read(earlier).largest_component:
                raise DataError(
                    f"{earlier} is of an earlier decision, and would be applied before the mean of the ensemble that "
                    "is best now; remove it"
                )
        return []
    (best,) = decision.best.models
    chosen = []
    for node, models in by_node.items():
        found = next((one for one in models if one.model == best), None)
        if found is None:
            raise DataError(f"node {node} has no {best.identifier}, which is best; name its run")
        decision.postprocessing.check_labels(found.dataset_json["labels"], BEST_FILE)
        chosen.append(found.folder)
    for folder in chosen:
        decision.postprocessing.write(folder)
    return chosen
