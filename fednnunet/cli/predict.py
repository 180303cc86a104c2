"""``fednnunet predict``: segment images with a trained model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fednnunet.listing import join_first

if TYPE_CHECKING:
    from fednnunet.inference.run import Outcome


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            help="A file of `fednnunet export`, a run's folder, or a results folder of nnU-Net.", show_default=False
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="A folder of images named CASE_0000.nii.gz, CASE_0001.nii.gz, … (a number for each channel), or the "
            "images of one case, or a folder of DICOM files (each series is a case; of several channels: --channels).",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the segmentations.", show_default=False)],
    node: Annotated[str | None, typer.Option(help="Of a run: whose model.")] = None,
    personal: Annotated[
        bool, typer.Option("--personal", help="Of a run: the model that is the node's own, fine-tuned or Ditto's.")
    ] = False,
    configuration: Annotated[str | None, typer.Option(help="nnU-Net's configuration, where there are several.")] = None,
    fold: Annotated[
        list[str] | None, typer.Option(help="A fold; can be repeated. All that are finished if not given.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where networks compute.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of a network on the CPU; 0: one per core.", min=0)] = 0,
    mirroring: Annotated[
        bool, typer.Option(help="Average over mirrored images, as nnU-Net does; without is faster, and less accurate.")
    ] = True,
    postprocessing: Annotated[
        bool, typer.Option(help="Apply the model's post-processing, if it has one (largest components).")
    ] = True,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Keep softmax outputs, too, for nnUNetv2_ensemble.")
    ] = False,
    dicom_seg: Annotated[
        bool,
        typer.Option("--dicom-seg", help="Of DICOM series: write DICOM SEG, too (pip install fednnunet\\[dicom])."),
    ] = False,
    channels: Annotated[
        str | None,
        typer.Option(
            help="Of DICOM: what the series of each channel are called, by SeriesDescription or folder: "
            "'T2=t2_tse*|*t2w*,ADC=*ADC*'.",
            show_default="as the channels",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Segment anew what is there; by default, cases that are done stay.")
    ] = False,
) -> None:
    """Segment images with a trained model: the voxels of nnUNetv2_predict.

    Segmentations appear whole. The same command goes on where an interrupted one stopped. A case that fails is named,
    the others go on; exit code 2 then.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait leave the core to reading and writing
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(variable, os.devnull)  # nnU-Net says so where one is not set; none is used

    import torch

    from fednnunet.inference.prediction import Prediction, Settings
    from fednnunet.processes import cores
    from fednnunet.training.devices import resolve_device

    torch.set_num_threads(threads or cores())
    settings = Settings(
        node=node,
        personal=personal,
        configuration=configuration,
        folds=tuple(fold) if fold else None,
        mirroring=mirroring,
        postprocessing=postprocessing,
        probabilities=save_probabilities,
        overwrite=overwrite,
        dicom_seg=dicom_seg,
        channels=channels,
    )
    prediction = Prediction.of(model, images, output, settings, resolve_device(device))
    if prediction.decided:
        print(prediction.decided)
    outcome = _with_progress(prediction)
    print(_summary(prediction, outcome))
    if outcome.failed:
        raise typer.Exit(2)


def _with_progress(prediction: Any) -> Outcome:
    """Segment; a bar where there is a terminal, else a line for each case."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from fednnunet.inference.run import Progress

    left = len(prediction.left)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)

    class Shown(Progress):
        """Fractions of cases in the bar, failures above it."""

        def __init__(self) -> None:
            self.done = 0
            self.task = bar.add_task("", total=left)

        def on_tile(self, case: str, part: float) -> None:
            bar.update(self.task, description=case, advance=part)

        def on_case(self, case: str) -> None:
            self.done += 1
            if not console.is_terminal:
                print(f"{case}  {self.done}/{left}", flush=True)

        def on_failure(self, case: str, reason: str) -> None:
            self.done += 1
            bar.update(self.task, completed=self.done)
            console.print(f"error: {reason}", markup=False)

    with bar:
        return prediction.run(Shown())


def _summary(prediction: Any, outcome: Outcome) -> str:
    """What is there now, and what to know of the images."""
    from fednnunet.exchange.data_notes import count_notes

    number, there = len(prediction.cases), len(prediction.cases) - len(outcome.written) - len(outcome.failed)
    lines = [f"note: {note}" for note in count_notes(outcome.notes)]
    parts = [f"{len(outcome.written)} of {number} case{'s' * (number > 1)} segmented"]
    parts += [f"{there} were there"] * bool(there)
    parts += [f"{len(outcome.failed)} failed: {join_first(list(outcome.failed), 5)}"] * bool(outcome.failed)
    return "\n".join([*lines, f"{', '.join(parts)}: {prediction.output.path}"])
