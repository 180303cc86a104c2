"""``fednnunet convert``: one command per dataset, built from the signature of its reader."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from fednnunet.conversion.options import Files, Headers, OnError, Options
from fednnunet.conversion.readers.acdc import read_acdc
from fednnunet.conversion.readers.acouslic import read_acouslic
from fednnunet.conversion.readers.aimix import read_aimix
from fednnunet.conversion.readers.bids.reader import read_bids
from fednnunet.conversion.readers.dicom.reader import read_dicom
from fednnunet.conversion.readers.eucanimage import read_eucanimage
from fednnunet.conversion.readers.generic import read_generic
from fednnunet.conversion.readers.mamamia import read_mamamia
from fednnunet.conversion.readers.mnms import read_mnms
from fednnunet.conversion.readers.msd import read_msd
from fednnunet.conversion.scan_result import ScanResult
from fednnunet.listing import split_list

convert = typer.Typer(
    no_args_is_help=True,
    help="Convert a published dataset to nnU-Net's raw format, one dataset per centre.",
)


@dataclass(frozen=True)
class Converter:
    """A dataset that can be converted.

    Attributes:
        name: name of the command.
        read: reader, which takes the source's folder or file; every keyword is an option of the command, with the text
            in its ``Annotated`` as help.
        dataset: configuration in ``conf/dataset`` that names centres and labels; None where the source names them.
        external: whether its centres are the external ones of that configuration.
    """

    name: str
    read: Callable[..., ScanResult]
    dataset: str | None = None
    external: bool = False


def run_conversion(
    converter: Converter,
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The dataset as it was downloaded; it is only read.")],
    target: Annotated[
        Path,
        typer.Argument(metavar="DST", envvar="nnUNet_raw", help="Folder of nnU-Net raw datasets, made if not there."),
    ],
    *,
    reader_options: Mapping[str, Any],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written, and every problem; write nothing.")
    ] = False,
    on_error: Annotated[
        OnError, typer.Option("--on-error", help="Stop at a case with a problem, or skip it and list it.")
    ] = "stop",
    files: Annotated[
        Files, typer.Option("--files", help="How files that need no change get to DST; others are written anew.")
    ] = "copy",
    headers: Annotated[
        Headers,
        typer.Option(
            "--headers",
            help="strict: image and label must lie on one grid; image: a label of the same size gets the image's.",
        ),
    ] = "strict",
    processes: Annotated[
        int,
        typer.Option(
            "--processes", help="Number of cases converted at the same time; 0 for as many as there are cores.", min=0
        ),
    ] = 0,
    name: Annotated[str, typer.Option("--name", help="Datasets are called DatasetXXX_NAME_Centre.")] = "Custom",
    first_id: Annotated[
        int, typer.Option("--first-id", help="XXX of the first centre; the others follow.", min=1, max=999)
    ] = 601,
    external: Annotated[
        str, typer.Option("--external", help="Centres for testing only, names separated by commas.")
    ] = "",
) -> None:
    """Read a source, show what was found, convert it, and show the result."""
    from rich.console import Console

    from fednnunet.conversion.console import ConsoleProgress, show_plan, show_result
    from fednnunet.conversion.plan import plan_conversion
    from fednnunet.conversion.targets import configured_targets, numbered_targets
    from fednnunet.conversion.writer import convert
    from fednnunet.processes import cores

    console = Console(highlight=False)
    with console.status(f"looking through {source}"):  # minutes, where frames or duplicates are searched for
        scan = converter.read(source, **reader_options)
    if converter.dataset is None:
        centres, labels = numbered_targets(scan, name, first_id, split_list(external)), scan.labels
    else:
        centres, labels = configured_targets(converter.dataset, converter.external)
    plan = plan_conversion(scan, centres, labels)
    show_plan(plan, console)
    if dry_run:
        return
    options, known = Options(files, on_error, headers, processes or cores()), set(plan.all_problems)
    try:
        with ConsoleProgress(console) as progress:
            results = convert(
                plan, source, target, f"convert {converter.name}", _as_settings(reader_options), options, progress
            )
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues where it stopped")
        raise
    new_problems = [issue for issue in plan.all_problems if issue not in known]
    show_result(results, new_problems, target, converter.dataset, console)


NAMING_OPTIONS = ("name", "first_id", "external")
"""Options of datasets that no configuration names."""


def command_of(converter: Converter) -> Callable[..., None]:
    """The command that converts, with the options of its reader and of :func:`run_conversion`."""
    shared = inspect.signature(run_conversion, eval_str=True).parameters
    own = {key: p for key, p in inspect.signature(converter.read, eval_str=True).parameters.items() if key != "source"}
    kept = {
        key: parameter
        for key, parameter in shared.items()
        if key not in ("converter", "reader_options") and (converter.dataset is None or key not in NAMING_OPTIONS)
    }

    def command(**given: Any) -> None:
        run_conversion(
            converter,
            reader_options={key: given.pop(key) for key in own},
            **given,
        )

    keyword = inspect.Parameter.KEYWORD_ONLY
    options = {key: parameter.replace(annotation=_as_option(parameter.annotation)) for key, parameter in own.items()}
    parameters = {key: p.replace(kind=keyword) for key, p in (kept | options).items()}
    command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {key: parameter.annotation for key, parameter in parameters.items()}
    command.__doc__ = (inspect.getdoc(converter.read) or "").partition("\n")[0]
    return command


def _as_option(annotation: Any) -> Any:
    """``Annotated[type, text]`` with the text as an option's help."""
    kind, text = get_args(annotation)
    return Annotated[kind, typer.Option(help=text)]


def _as_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them."""
    return {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in options.items()}


CONVERTERS = (
    Converter("mamamia", read_mamamia, "mamamia"),
    Converter("eucanimage", read_eucanimage, "mamamia", external=True),
    Converter("mnms", read_mnms, "mnms"),
    Converter("acdc", read_acdc, "mnms", external=True),
    Converter("aimix", read_aimix, "aimix"),
    Converter("acouslic", read_acouslic, "aimix", external=True),
    Converter("generic", read_generic),
    Converter("bids", read_bids),
    Converter("msd", read_msd),
    Converter("dicom", read_dicom),
)
for _converter in CONVERTERS:
    convert.command(_converter.name)(command_of(_converter))
