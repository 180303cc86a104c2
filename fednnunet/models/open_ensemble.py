"""Open what segments best of a source: one model, or the ensemble and the stages that a decision beside them names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fednnunet.errors import DataError
from fednnunet.models.ensemble import Ensemble, Member, differences
from fednnunet.models.first_stage import trained_on
from fednnunet.models.inference_information import INFERENCE, InferenceInformation
from fednnunet.models.json_file import MOST_BYTES, parse_json
from fednnunet.models.model_folder import ModelFolder, choose_folder, choose_folds, find_folders
from fednnunet.models.open_archive import Archive
from fednnunet.models.open_model import open_folder
from fednnunet.models.postprocessing import Postprocessing
from fednnunet.models.trained_model import TrainedModel


class Source(Protocol):
    """Where models lie: folders on this disk, or a zip."""

    @property
    def path(self) -> Path:
        """The folder or file, for errors."""

    @property
    def folders(self) -> Sequence[ModelFolder]:
        """All finished models."""

    def read(self, path: Path) -> bytes | None:
        """Content of a small file; None where there is none."""

    def open(self, folder: ModelFolder, folds: tuple[str, ...]) -> TrainedModel:
        """These folds of a model."""


@dataclass(frozen=True)
class FolderSource:
    """Models in folders: of a run, a node, several runs of a node, or nnU-Net's results."""

    path: Path
    folders: Sequence[ModelFolder]

    def read(self, path: Path) -> bytes | None:
        """Content of a small file; None where there is none.

        Raises:
            DataError: it cannot be read.
        """
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file:
                return file.read(MOST_BYTES + 1)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None

    def open(self, folder: ModelFolder, folds: tuple[str, ...]) -> TrainedModel:
        """These folds of a model."""
        return open_folder(folder, folds)


def open_ensemble(
    source: Path,
    *,
    node: str | None = None,
    configuration: str | None = None,
    folds: Sequence[str] | None = None,
    personal: bool = False,
) -> Ensemble:
    """Open what a source is to segment with: as :func:`~fednnunet.models.open_model.open_model`, or an ensemble.

    Where a dataset's folder, or a zip, has models of several configurations and none is asked for,
    ``inference_information.json`` beside them decides: written by ``fednnunet export`` or by
    ``nnUNetv2_find_best_configuration``. The previous stage of a cascade is opened with it, where it is there.

    Args:
        source: as for :func:`~fednnunet.models.open_model.open_model`.
        node: which node's; needed where there are several.
        configuration: which of nnU-Net's configurations alone; None for what is decided, or the only one.
        folds: folds to use; None for those of the decision, or all that are finished.
        personal: of a run or a node, the model that is the node's own.

    Raises:
        DataError: as of :func:`~fednnunet.models.open_model.open_model`; or a decision is not about what is there.
    """
    if not source.is_file():
        return choose(FolderSource(source, find_folders(source, personal)), node, configuration, folds).open()
    for option, value in (("--node", node), ("--personal", personal)):
        if value:
            raise DataError(f"{source} holds one model, which {option} cannot choose; leave it out")
    return choose(Archive.at(source), None, configuration, folds).open()


@dataclass(frozen=True)
class Choice:
    """Which models of a source segment together.

    Attributes:
        source: what they are in.
        models: those whose softmax outputs are averaged; most often one.
        beside: models among which previous stages of cascades are looked for.
        folds: folds to use; None for all that are finished.
        postprocessing: what follows; None for what lies beside a model alone.
        named: what the post-processing was read from.
        decided: file that decides; empty where nothing had to be decided.
        stages: model to its previous stage, where that is known.
    """

    source: Source
    models: Sequence[ModelFolder]
    beside: Sequence[ModelFolder]
    folds: Sequence[str] | None = None
    postprocessing: Postprocessing | None = None
    named: str = ""
    decided: str = ""
    stages: Mapping[ModelFolder, ModelFolder] = field(default_factory=dict)

    def open(self) -> Ensemble:
        """Open them, each with its previous stage where it is there.

        Raises:
            DataError: a model cannot be opened, or models do not fit together.
        """
        members = [self._member(folder) for folder in self.models]
        if len(members) == 1 and self.postprocessing is None:
            found = Ensemble.of_one(members[0].model, members[0].previous)
        else:
            found = Ensemble.of(members, self.postprocessing, self.named)
        return replace(found, decided=self.decided)

    def _member(self, folder: ModelFolder) -> Member:
        member = Member(self.source.open(folder, choose_folds(folder.folds, self.folds, folder.where)))
        if (stage := member.previous_stage) is None:
            return member
        before = self.stages.get(folder) or _previous(folder, self.beside, stage, self.source.path)
        if before is None:
            return member
        if not folder.source and trained_on(folder, before) is False:  # a zip holds no segmentations
            raise DataError(
                f"{before.where} is not the first stage of {folder.where}, which was trained on other segmentations "
                f"than its; give the {stage} that it was trained on"
            )
        previous = self.source.open(before, choose_folds(before.folds, self.folds, before.where))
        if unlike := differences(member.model, previous):
            what, ours, theirs = unlike[0]
            raise DataError(
                f"{previous.where} is not the first stage of {member.model.where}: their {what} are unlike, {theirs} "
                f"and {ours}; give the {stage} that it was trained on"
            )
        return replace(member, previous=replace(previous, postprocessing=None))  # not applied between stages


def choose(source: Source, node: str | None, configuration: str | None, folds: Sequence[str] | None) -> Choice:
    """What a decision beside the models names, or the one model that there is.

    Raises:
        DataError: as :func:`open_ensemble` says.
    """
    folders = [folder for folder in source.folders if node is None or folder.node == node]
    datasets = {folder.path.parent for folder in folders}
    is_one = configuration is not None or len(datasets) != 1 or folders[0].path == source.path.resolve()
    dataset = next(iter(datasets), source.path)
    content = None if is_one else source.read(dataset / INFERENCE)
    if content is None:
        return Choice(source, [choose_folder(source.folders, source.path, node, configuration)], folders, folds)
    where = f"{folders[0].source}{dataset / INFERENCE}"
    information = InferenceInformation.parse(content, where, dataset.name)
    chosen = information.choose(folders, where)
    if len(folders) == 1:  # nothing had to be decided; its post-processing is the one beside it
        return Choice(source, chosen, folders, folds)
    folds = information.folds if folds is None else folds
    if information.postprocessing is None:
        return Choice(source, chosen, folders, folds, decided=where)
    file = dataset / information.postprocessing
    named = f"{folders[0].source}{file}"
    if (content := source.read(file)) is None:
        raise DataError(f"{where} names post-processing, and {named} is not there; bring it back")
    postprocessing = Postprocessing.from_json(parse_json(content, named, allow_nan=True), named)
    return Choice(source, chosen, folders, folds, postprocessing, named, where)


def _previous(chosen: ModelFolder, folders: Sequence[ModelFolder], stage: str, path: Path) -> ModelFolder | None:
    """The model of the previous stage: of the same node and, where there are several, of the same plans and trainer."""
    found = [one for one in folders if one.configuration == stage and one.node == chosen.node]
    rules: tuple[Callable[[ModelFolder], bool], ...] = (
        lambda one: one.path.parent == chosen.path.parent,
        lambda one: one.plans == chosen.plans,
        lambda one: one.trainer == chosen.trainer,
    )
    for rule in rules:
        found = [one for one in found if rule(one)] or found
    return choose_folder(found, path, None, None) if found else None
