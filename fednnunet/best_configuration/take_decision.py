"""A decision at a node: its post-processing beside the models that it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednnunet.best_configuration.decision_files import BEST_FILE
from fednnunet.best_configuration.node_models import UNNAMED, TrainedFolds
from fednnunet.best_configuration.sums import Model
from fednnunet.errors import DataError, first_problem
from fednnunet.listing import join_all
from fednnunet.models.fold_digests import FoldDigests, check_folds
from fednnunet.models.json_file import read_json
from fednnunet.models.model_folder import ModelFolder, find_folders
from fednnunet.models.open_ensemble import Choice, FolderSource
from fednnunet.models.postprocessing import POSTPROCESSING_FILE, Postprocessing
from fednnunet.models.trained_model import TrainedModel


class _Best(BaseModel):
    models: Annotated[list[Model], Field(min_length=1, max_length=2)]
    dice: Annotated[float, Field(ge=0, le=1)]


class TakenDecision(BaseModel):
    """What a node needs of ``best_configuration.json``.

    Attributes:
        format: version of the file's form.
        best: the best model, or the two of the best ensemble.
        postprocessing: what helps it.
        folds: folds whose held-out cases were scored, to segment with.
        num_cases: number of these cases.
        candidates: configurations and ensembles that were compared.
        personal: whether the models are the nodes' own, fine-tuned or Ditto's.
        digests: node to name of each model's folder to fold to SHA-256 of what was compared.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1]
    best: _Best
    postprocessing: Postprocessing
    folds: Annotated[list[int], Field(min_length=1)]
    num_cases: Annotated[int, Field(ge=0)]
    candidates: Annotated[list[Any], Field(min_length=1)]
    personal: bool = False
    digests: dict[str, dict[str, FoldDigests]]

    def digests_of(self, node: str) -> list[dict[str, FoldDigests]]:
        """What was compared of a node, or of each where ``node`` is empty: name of a model's folder to its digests.

        A node that told no sums has none.
        """
        names = [name for name in (node, UNNAMED) if name in self.digests][:1] if node else [*self.digests]
        return [self.digests[name] for name in names]

    def check(self, node: str, model: Path, folds: Sequence[str]) -> None:
        """Check that folds of a model are those that were compared.

        Args:
            node: whose it is; empty where that is not known.
            model: folder of the model; one that was not compared, as may be a first stage, is not checked.
            folds: folds to use.

        Raises:
            DataError: one was not compared, or has changed since.
        """
        if decided := [models[model.name] for models in self.digests_of(node) if model.name in models]:
            unnamed = "" if node else ", or, of a node that told no sums, name it: --node"
            check_folds(model, folds, *decided, again=f"fednnunet find-best{unnamed}")

    @property
    def num_candidates(self) -> int:
        """Number of configurations and ensembles that were compared."""
        return len(self.candidates)


def read_decision(folder: Path) -> TakenDecision:
    """Read the decision in a folder of ``fednnunet find-best``.

    Raises:
        DataError: the file cannot be read, or says something else; names file and field.
    """
    path = folder / BEST_FILE
    try:
        return TakenDecision.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error, 'the decision')}") from None


@dataclass(frozen=True)
class _Decided(FolderSource):
    """Models of a node that a decision is about."""

    decision: TakenDecision
    node: str

    def open(self, folder: ModelFolder, folds: tuple[str, ...]) -> TrainedModel:
        self.decision.check(self.node, folder.path, folds)
        return super().open(folder, folds)


def choices_of(
    decision: TakenDecision, sources: Sequence[Path], where: Path, node: str | None, folds: Sequence[str] | None
) -> dict[str, Choice]:
    """Node to what it segments with by a decision: the best model, or both of the best ensemble, and their stages.

    Args:
        decision: the decision.
        sources: folders of the runs that were compared, or of one node in them.
        where: folder of the decision, for errors.
        node: the node; None for all.
        folds: folds to use; None for those of the decision.

    Raises:
        DataError: a node lacks a model, or has two of its name; names it. Opening a choice says where a model has
            changed since.
    """
    by_node: dict[str, list[ModelFolder]] = {}
    for source in sources:
        for folder in find_folders(source, decision.personal):
            by_node.setdefault(folder.node, []).append(folder)
    if node is not None:
        if [*by_node] == [""]:  # its own folders, which do not name it
            by_node = {node: by_node[""]}
        if node not in by_node:
            raise DataError(f"the runs have no node {node}; nodes there: {', '.join(filter(None, by_node)) or 'none'}")
        by_node = {node: by_node[node]}
    choices = {}
    for name, folders in by_node.items():
        models = []
        for model in decision.best.models:
            found = [folder for folder in folders if folder.path.name == model.identifier]
            if not found:
                raise DataError(f"{_named(name)} has no {model.identifier}, which is best; name its run")
            if len(found) > 1:
                both = join_all([str(folder.path) for folder in found])
                raise DataError(f"{_named(name)} has several {model.identifier}: {both}; name one run of each")
            models += found
        choices[name] = Choice(
            source=_Decided(where, folders, decision, name),
            models=models,
            beside=folders,
            folds=folds or [str(fold) for fold in decision.folds],
            postprocessing=decision.postprocessing,
            named=str(where / BEST_FILE),
        )
    return choices


def _named(node: str) -> str:
    return f"node {node}" if node else "this node"


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
    for folder, node in zip(chosen, by_node, strict=True):
        decision.check("" if node == UNNAMED else node, folder, list(map(str, decision.folds)))
    for folder in chosen:
        decision.postprocessing.write(folder)
    return chosen
