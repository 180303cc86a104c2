"""``fednnunet export``: hand a trained model over."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fednnunet.errors import ConfigError

if TYPE_CHECKING:
    from fednnunet.models.export_zip import Handover
    from fednnunet.models.model_card import ModelCard

Format = Literal["nnunet", "monai"]


def export(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="A run's folder, a node's, a results folder of nnU-Net, or a model's zip. Or the folder that "
            "`fednnunet select` wrote: each hospital's choice. With --best: the runs that were compared. Or a "
            "cascade's run, and that of its first stage.",
        ),
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
    best: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of `fednnunet find-best`: its best configuration or ensemble, with its post-processing.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of a selection: the choice of which seed, where there are several.", show_default=False),
    ] = None,
    configuration: Annotated[
        str | None,
        typer.Option(help="nnU-Net's configuration, where there are several and none is decided.", show_default=False),
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
    from fednnunet.cli.handovers import Asked, handovers_of, with_given

    each_apart = _is_folder(out)
    asked = Asked(
        node=node,
        personal=personal,
        configuration=configuration,
        folds=fold,
        each_apart=each_apart,
        run_folder=run_folder,
        names=names,
        best=best,
        seed=seed,
    )
    found = handovers_of(sources, asked)
    for note in found.notes:
        print(f"note: {note}")
    prepared = [(file, with_given(handover, name, licence, limits or [])) for file, handover in found.handovers]
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


def _show(card: ModelCard, target: Path) -> None:
    first = card.networks[0]
    averaged = [network.configuration for network in card.networks if network.folder in card.averaged]
    what = f"ensemble of {', '.join(averaged)}" if averaged else first.configuration
    size = target.stat().st_size / 1e6
    print(f"{target}: {card.name}, {what}, folds {', '.join(first.folds)}, {size:.1f} MB")
    for network in card.networks:
        if network.previous_stage and not any(other.is_stage_before(network) for other in card.networks):
            print(
                f"note: {network.configuration} takes segmentations of {network.previous_stage}, which is not in the "
                "file; hand that over, too"
            )
    if card.licence is None:
        print("note: the card states no licence; --license says under which the weights may be used")
