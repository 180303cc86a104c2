"""What ``fednnunet export`` is asked for, as models to hand over with what is known of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednnunet.errors import ConfigError, DataError
from fednnunet.run_files import CONFIG_FILE, SELECTION_MODELS_FILE

if TYPE_CHECKING:
    from fednnunet.models.choose_models import ChosenModel
    from fednnunet.models.export_zip import Handover
    from fednnunet.models.model_card import RunFacts
    from fednnunet.reporting.run_folder import Run
    from fednnunet.selection.hand_over import HospitalChoice

DEFAULT_NUMBER = 1
"""XXX of nnU-Net's DatasetXXX where the model's dataset has none."""


@dataclass(frozen=True)
class Asked:
    """What to hand over of a source.

    Attributes:
        node: whose model.
        personal: whether the nodes' own models, and not the federation's.
        configuration: nnU-Net's.
        folds: folds to take; None for all, or those of a decision.
        each_apart: whether a zip of each node is wanted.
        run_folder: the run's folder at the server, for the card.
        names: whether centres are named.
        best: folder of a decision of ``fednnunet find-best``.
        seed: of a selection.
    """

    node: str | None
    personal: bool
    configuration: str | None
    folds: Sequence[str] | None
    each_apart: bool
    run_folder: Path | None
    names: bool
    best: Path | None
    seed: int | None

    def refuse(self, where: str, **options: str) -> None:
        """Refuse options that choose nothing in ``where``: field to option."""
        for name, option in options.items():
            if getattr(self, name):
                raise ConfigError(f"{where}; leave out {option}")


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        handovers: name of a zip, and the model for it.
        notes: what people should know.
    """

    handovers: list[tuple[str, Handover]]
    notes: list[str] = field(default_factory=list)


def handovers_of(sources: Sequence[Path], asked: Asked) -> Found:
    """The models of sources to hand over.

    Args:
        sources: one; or with a decision all that it compared; or a cascade's run and that of its first stage.
        asked: what of them.

    Raises:
        ConfigError: options that do not go together, or with this source.
        DataError: there is no such model; or nodes have different ones and not each is wanted.
    """
    source = sources[0]
    if asked.best is not None:
        asked.refuse("--best names the models", configuration="--configuration", personal="--personal")
        return _of_decision(sources, asked.best, asked)
    if len(sources) > 1:
        return Found(_of_cascade(sources, asked))
    if source.name == SELECTION_MODELS_FILE or (source / SELECTION_MODELS_FILE).is_file():
        where = f"{source} is a selection, which names the models"
        asked.refuse(where, configuration="--configuration", personal="--personal", run_folder="--run")
        return _of_selection(source, asked)
    if asked.seed is not None:
        raise ConfigError(f"{source} is no selection; leave out --seed")
    if source.is_file():
        where = f"{source} is a zip, which holds one model and its card"
        asked.refuse(where, node="--node", personal="--personal", run_folder="--run")
        return Found([_of_zip(source, asked)])
    return Found(_of_folder(source, asked))


def _of_zip(source: Path, asked: Asked) -> tuple[str, Handover]:
    """The model of a zip, with what its card says of its run and of limits."""
    from fednnunet.models.export_zip import Handover, folder_of
    from fednnunet.models.model_card import RunFacts, limits_given
    from fednnunet.models.open_archive import read_card
    from fednnunet.models.open_ensemble import open_ensemble

    ensemble = open_ensemble(source, configuration=asked.configuration, folds=asked.folds)
    card = read_card(source, asked.configuration)
    name = str(ensemble.first.plans["dataset_name"])
    if card is None:
        return f"{name}.zip", Handover(ensemble, name, RunFacts())
    facts = card.run if asked.names else card.run.without_names()
    parts = sorted((folder_of(model), list(model.folds)) for model in ensemble.models)
    if parts != sorted((network.folder, network.folds) for network in card.networks):
        facts = facts.model_copy(update={"scores": []})  # they are of all of its folds and networks
    return f"{name}.zip", Handover(ensemble, name, facts, card.licence, limits_given(card.limits))


def _of_folder(source: Path, asked: Asked, stages: Sequence[Path] = ()) -> list[tuple[str, Handover]]:
    from fednnunet.models.choose_models import choose_models

    _check_run(asked)
    node = None if asked.run_folder else asked.node
    chosen = choose_models(source, node, asked.configuration, asked.folds, asked.each_apart, asked.personal, stages)
    return [_with_facts(one, asked, asked.personal) for one in chosen]


def _of_cascade(sources: Sequence[Path], asked: Asked) -> list[tuple[str, Handover]]:
    """A cascade's run, and those of its first stage."""
    if any(not source.is_dir() for source in sources):
        raise ConfigError("of several sources each must be the folder of a run, or a node's")
    found = _of_folder(sources[0], asked, sources[1:])
    if any(member.previous_stage is None for _, one in found for member in one.ensemble.members):
        raise ConfigError(
            "several runs are handed over by a decision: --best FOLDER, that of fednnunet find-best; or they are a "
            "cascade's, and that of its first stage"
        )
    return found


def _check_run(asked: Asked) -> None:
    from fednnunet.reporting.run_folder import read_run

    if (folder := asked.run_folder) is None:
        return
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"--run {folder} is no run's folder: it has no {CONFIG_FILE}")
    if asked.node is None:
        raise ConfigError("--run needs --node: as which of the run's nodes this one trained")
    if asked.node not in (known := [str(one) for one in read_run(folder).info.get("nodes", [])]):
        raise ConfigError(f"--node {asked.node} is no node of the run {folder}, which has {', '.join(known)}")


def _with_facts(
    chosen: ChosenModel, asked: Asked, personal: bool, changes: dict[str, Any] | None = None, limits: Sequence[str] = ()
) -> tuple[str, Handover]:
    """Name of a zip, and a model with what its run knows; ``changes`` are known better than by the run."""
    from fednnunet.models.export_zip import Handover
    from fednnunet.models.model_card import RunFacts
    from fednnunet.reporting.model_facts import facts_of_run

    run, owner = _run_of(chosen, asked)
    dataset = chosen.dataset
    facts: RunFacts = RunFacts()
    if run is not None:
        facts = facts_of_run(run, owner, chosen.ensemble.first.folds, asked.names, personal)
        # The dataset's own name may be that of a hospital.
        dataset = _numbered(str(run.info.get("dataset", "Federation")), dataset)
    facts = facts.model_copy(update=changes or {})
    return f"{owner or dataset}.zip", Handover(chosen.ensemble, dataset, facts, limits=list(limits))


def _run_of(chosen: ChosenModel, asked: Asked) -> tuple[Run | None, str | None]:
    """The run that knows of a model, and whose the model is."""
    from fednnunet.reporting.run_folder import read_run

    folder, owner = (asked.run_folder, asked.node) if asked.run_folder else (chosen.run, chosen.node)
    if folder is None or not (folder / CONFIG_FILE).is_file():
        return None, owner
    return read_run(folder), owner


def _of_decision(sources: Sequence[Path], best: Path, asked: Asked) -> Found:
    """What ``fednnunet find-best`` decided for, of each node that has it."""
    from fednnunet.best_configuration.take_decision import choices_of, read_decision
    from fednnunet.exchange.messages import MIN_CASES
    from fednnunet.models.choose_models import chosen_model, one_or_each
    from fednnunet.models.model_card import CentreScore, Estimate

    _check_run(asked)
    decision = read_decision(best)
    choices = choices_of(decision, sources, best, asked.node, asked.folds)
    if len(choices) == 1:
        chosen = [chosen_model(*choices.values())]
    else:
        chosen = one_or_each(list(choices.values()), asked.each_apart, ", ".join(map(str, sources)))
    for one in chosen:
        _check_complete(one, "name its run, too")
    changes: dict[str, Any] = {}
    if len(decision.best.models) > 1:
        told = decision.num_cases >= MIN_CASES
        dsc = Estimate(mean=decision.best.dice, cases=decision.num_cases)
        score = CentreScore(centre="all together", role="training", label="", dsc=dsc, hd95=None)
        changes["scores"] = [score] if told else []
    limit = (
        f"Chosen among {decision.num_candidates} configurations and ensembles, with its post-processing, by the "
        "held-out cases that it is scored on, too: its scores flatter it."
    )
    notes = [
        f"{node} told no sums for {best}, so that nothing says whether its models are those that were decided on"
        for node in choices
        if not decision.digests_of(node)
    ]
    return Found([_with_facts(one, asked, decision.personal, changes, [limit]) for one in chosen], notes)


def _check_complete(chosen: ChosenModel, advice: str) -> None:
    """Refuse a cascade without its first stage."""
    for member in chosen.ensemble.members:
        if not member.is_complete:
            raise DataError(
                f"{member.model.where}: {member.model.configuration} refines what {member.previous_stage} segments; "
                f"{advice}"
            )


def _of_selection(source: Path, asked: Asked) -> Found:
    """What hospitals selected: each one's choice, in a zip of its name."""
    from fednnunet.models.choose_models import chosen_model
    from fednnunet.selection.hand_over import read_choices

    read = read_choices(source, asked.node, asked.seed, asked.folds)
    if not asked.each_apart and len(read.choices) > 1:
        nodes = [one.node for one in read.choices]
        raise ConfigError(
            f"{source} has choices of {len(nodes)} hospitals; choose one, --node {nodes[0]}, or give a folder instead "
            "of FILE.zip, for a zip of each"
        )
    handovers = []
    for one in read.choices:
        chosen = dataclasses.replace(chosen_model(one.choice), node=one.node)
        _check_complete(chosen, f"name the run of it that {one.node}'s was trained on, too: fednnunet select")
        changes = _changes_of(one, chosen, asked)
        _, handover = _with_facts(chosen, asked, one.is_personal, changes, [one.limit])
        handovers.append((f"{one.node}.zip", handover))
    return Found(handovers, read.notes)


def _changes_of(one: HospitalChoice, chosen: ChosenModel, asked: Asked) -> dict[str, Any]:
    """What a selection knows better than the run: all of a model of several, the strategy where no run is here."""
    from fednnunet.exchange.messages import MIN_CASES
    from fednnunet.models.model_card import CentreScore, Estimate
    from fednnunet.reporting.model_facts import Names

    run, _ = _run_of(chosen, asked)
    if run is not None and one.of_one_run:
        return {}
    centre = Names(run, asked.names).of(one.node) if run is not None else one.node if asked.names else "centre 1"
    scores = []
    if one.dsc is not None and one.num_cases >= MIN_CASES:
        dsc = Estimate(mean=one.dsc, cases=one.num_cases)
        scores = [CentreScore(centre=centre, role="training", label="", dsc=dsc, hd95=None)]
    return {"strategy": one.candidate, "trained_for": "node", "scores": scores}


def with_given(handover: Handover, name: str | None, licence: str | None, limits: Sequence[str]) -> Handover:
    """What the command line says, in place of what is known; limits of use are added to those that there are."""
    changes: dict[str, Any] = {"limits": list(dict.fromkeys([*handover.limits, *limits]))}
    if licence is not None:
        changes["licence"] = licence
    if name is not None:
        if re.fullmatch(r"[A-Za-z0-9._+-]+", name) is None:
            raise ConfigError(f"--name {name} must be of letters, digits and . _ + -: it will be a folder's name")
        changes["name"] = _numbered(name, handover.name)
    return dataclasses.replace(handover, **changes)


def _numbered(name: str, dataset: str) -> str:
    """nnU-Net's name of a dataset, with the number of ``dataset`` where it has none."""
    from fednnunet.models.export_zip import dataset_name

    number = re.match(r"Dataset(\d{3})_", dataset)
    return dataset_name(name, int(number[1]) if number else DEFAULT_NUMBER)
