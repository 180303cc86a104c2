"""``fednnunet export``: hand a trained model over."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fednnunet.errors import ConfigError
from fednnunet.run_files import CONFIG_FILE

if TYPE_CHECKING:
    from fednnunet.models.export_zip import Handover
    from fednnunet.models.model_card import ModelCard

Format = Literal["nnunet", "monai"]
DEFAULT_NUMBER = 1
"""XXX of nnU-Net's DatasetXXX where the model's dataset has none."""


def export(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder, a node's, a results folder of nnU-Net, or a model's zip."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.zip",
            help="The zip to write. Where nodes have different models: a folder, for NODE.zip of each.",
        ),
    ],
    format: Annotated[
        Format,
        typer.Option(help="nnunet: for nnUNetv2_install_pretrained_model_from_zip; monai: a bundle of MONAI, zipped."),
    ] = "nnunet",
    node: Annotated[
        str | None,
        typer.Option(help="Whose model; not needed where all nodes hold the same one.", show_default=False),
    ] = None,
    personal: Annotated[
        bool,
        typer.Option("--personal", help="The nodes' own models, fine-tuned or Ditto's, instead of the federation's."),
    ] = False,
    configuration: Annotated[
        str | None, typer.Option(help="nnU-Net's configuration, where there are several.", show_default=False)
    ] = None,
    fold: Annotated[
        list[str] | None, typer.Option(help="A fold; can be repeated. All that are finished if not given.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model: Dataset123_Name, as nnU-Net will call it, or a name alone.",
            show_default="that of the run's dataset",
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Licence of the weights, such as CC-BY-4.0, for the card.", show_default=False),
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option("--limits", help="A sentence on limits of use for the card; can be repeated.", show_default=False),
    ] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Name the centres on the card; without, they have numbers.")
    ] = False,
    run_folder: Annotated[
        Path | None,
        typer.Option(
            "--run",
            help="The run's folder at the server, for the card, where RUN is a node's across hospitals.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Export a trained model to hand it over: the network, what it needs to segment, and a card that says what it is.

    No case name, path or host name leaves with it, and of scores only means over cases.
    """
    each_apart = _is_folder(out)
    if source.is_file():
        for option, value in (("--node", node), ("--personal", personal), ("--run", run_folder)):
            if value:
                raise ConfigError(f"{source} is a zip, which holds one model and its card; leave out {option}")
        handovers = [_of_zip(source, configuration, fold, names)]
    else:
        handovers = _of_folder(source, node, configuration, fold, each_apart, run_folder, names, personal)
    prepared = [(file, _with_given(handover, name, licence, limits or [])) for file, handover in handovers]
    try:
        _write(prepared, _writer(format), out, each_apart)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from None


def _is_folder(out: Path) -> bool:
    """Whether what is asked for is a folder, and not a zip."""
    if out.suffix == ".zip" and not out.is_dir():
        return False
    if out.is_dir() or not out.suffix:
        return True
    raise ConfigError(f"-o {out} must end with .zip, or be a folder for a zip of each node")


def _write(
    prepared: Sequence[tuple[str, Handover]],
    write: Callable[[Handover, Path], ModelCard],
    out: Path,
    each_apart: bool,
) -> None:
    """Write all or none."""
    if not each_apart:
        _show(write(prepared[0][1], out), out)
        return
    out.mkdir(parents=True, exist_ok=True)
    # Names only at the end, from a folder beside.
    with tempfile.TemporaryDirectory(dir=out, prefix=".export_") as partial:
        cards = [(file, write(handover, Path(partial) / file)) for file, handover in prepared]
        for file, _ in cards:
            os.replace(Path(partial) / file, out / file)
    for file, card in cards:
        _show(card, out / file)


def _writer(format: Format) -> Callable[[Handover, Path], ModelCard]:
    if format == "monai":
        from fednnunet.models.monai_bundle import export_bundle

        return export_bundle
    from fednnunet.models.export_zip import export_zip

    return export_zip


def _of_zip(source: Path, configuration: str | None, folds: Sequence[str] | None, names: bool) -> tuple[str, Handover]:
    """The model of a zip, with what its card says of its run and of limits."""
    from fednnunet.models.export_zip import Handover, folder_of
    from fednnunet.models.model_card import RunFacts, limits_given
    from fednnunet.models.open_archive import read_card
    from fednnunet.models.open_ensemble import open_ensemble

    ensemble = open_ensemble(source, configuration=configuration, folds=folds)
    card = read_card(source, configuration)
    name = str(ensemble.first.plans["dataset_name"])
    if card is None:
        return f"{name}.zip", Handover(ensemble, name, RunFacts())
    facts = card.run if names else card.run.without_names()
    parts = sorted((folder_of(model), list(model.folds)) for model in ensemble.models)
    if parts != sorted((network.folder, network.folds) for network in card.networks):
        facts = facts.model_copy(update={"scores": []})  # they are of all of its folds and networks
    return f"{name}.zip", Handover(ensemble, name, facts, card.licence, limits_given(card.limits))


def _of_folder(
    source: Path,
    node: str | None,
    configuration: str | None,
    folds: Sequence[str] | None,
    each_apart: bool,
    run_folder: Path | None,
    names: bool,
    personal: bool,
) -> list[tuple[str, Handover]]:
    """Name of a zip, and the model for it."""
    from fednnunet.models.choose_models import choose_models
    from fednnunet.models.export_zip import Handover
    from fednnunet.models.model_card import RunFacts
    from fednnunet.reporting.model_facts import facts_of_run
    from fednnunet.reporting.run_folder import read_run

    if run_folder is not None:
        if not (run_folder / CONFIG_FILE).is_file():
            raise ConfigError(f"--run {run_folder} is no run's folder: it has no {CONFIG_FILE}")
        if node is None:
            raise ConfigError("--run needs --node: as which of the run's nodes this one trained")
        if node not in (known := [str(one) for one in read_run(run_folder).info.get("nodes", [])]):
            raise ConfigError(f"--node {node} is no node of the run {run_folder}, which has {', '.join(known)}")
    chosen = choose_models(source, None if run_folder else node, configuration, folds, each_apart, personal)
    handovers = []
    for one in chosen:
        of_run, owner = (run_folder, node) if run_folder else (one.run, one.node)
        dataset, shown = one.dataset, one.ensemble.first.folds
        if of_run is not None and (of_run / CONFIG_FILE).is_file():
            run = read_run(of_run)
            facts = facts_of_run(run, owner, shown, names, personal)
            # The dataset's own name may be that of a hospital.
            dataset = _numbered(str(run.info.get("dataset", "Federation")), dataset)
        else:
            facts = RunFacts()
        handovers.append((f"{owner or dataset}.zip", Handover(one.ensemble, dataset, facts)))
    return handovers


def _with_given(handover: Handover, name: str | None, licence: str | None, limits: Sequence[str]) -> Handover:
    """What the command line says, in place of what is known; limits of use are added to those that a zip's card has."""
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


def _show(card: ModelCard, target: Path) -> None:
    folds = ", ".join(card.networks[0].folds)
    print(
        f"{target}: {card.name}, {card.networks[0].configuration}, folds {folds}, {target.stat().st_size / 1e6:.1f} MB"
    )
    if card.licence is None:
        print("note: the card states no licence; --license says under which the weights may be used")
