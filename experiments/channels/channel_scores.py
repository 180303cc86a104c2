"""The trainings, and what their final checkpoints see in cases that none of them has trained on, by channels."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fednnunet.best_configuration.case_scores import dice
from fednnunet.datasets.raw import Case
from fednnunet.evaluation.predict import Predictor
from fednnunet.files import write_arrays
from fednnunet.phantoms.organs import CHANNELS, ORGANS, TRUTH_LABELS
from fednnunet.training.final_checkpoint import FINAL

sys.path.append(str(Path(__file__).resolve().parents[1] / "union"))
from scoring import EXTERNAL, load_predictor, run_folder, truth_of, truth_values, unseen_cases

ACQUIRED = {"Oslo": ("T1", "T2"), "Porto": ("T1",), "Turin": ("T2",)}
"""Channels of a training centre; the external one has both."""
SUBSETS = (CHANNELS, *((channel,) for channel in CHANNELS))
"""Channels with which the external centre's cases are segmented."""


@dataclass(frozen=True)
class Training:
    """One way to train.

    Attributes:
        title: name in tables.
        overrides: keys of the run.
        all_channels: whether a node's model takes all channels, or only its own.
    """

    title: str
    overrides: tuple[str, ...]
    all_channels: bool = True


UNION = ("strategy=asym", "task.channels=union")
TRAININGS = {
    "alone": Training("alone", ("strategy=local", "strategy.heterogeneous_tasks=true"), all_channels=False),
    "local_first": Training(
        "local first layers", ("strategy=asym", "strategy.heterogeneous_tasks=true"), all_channels=False
    ),
    "union": Training("union", UNION),
    "no_drop": Training("union, no drop", (*UNION, "task.channel_drop=0")),
}
"""In the order of the tables."""
COLUMNS = ["training", "seed", "node", "centre", "channels", "case", "organ", "dsc"]


def images_folder(out: Path, seed: int) -> Path:
    """Folder of the raw datasets."""
    return out / "images" / f"seed{seed}"


def predictions_file(out: Path, training: str, seed: int) -> Path:
    """File of label maps, by node, centre, channels and case."""
    return out / "predictions" / training / f"seed{seed}.npz"


def places(training: str, node: str) -> list[tuple[str, tuple[str, ...]]]:
    """Centres, and the channels given, with which a node's model is scored: its own centre's, and the external one."""
    subsets = SUBSETS if TRAININGS[training].all_channels else (ACQUIRED[node],)
    return [(node, ACQUIRED[node]), *((EXTERNAL, subset) for subset in subsets)]


def segment(predictor: Predictor, case: Case, acquired: Sequence[str], given: Sequence[str]) -> np.ndarray:
    """Label map of a case, in the model's values; channels that are not ``given`` are zeros after normalisation.

    Args:
        predictor: of the model.
        case: its images, one for each of ``acquired``.
        acquired: names of the case's channels.
        given: those that the model sees.
    """
    files = dict(zip(acquired, (str(path) for path in case.images), strict=True))
    channels = list(predictor.dataset_json["channel_names"].values())
    # the file of a channel that is not given is not read: another stands for it until it is set to zero
    images = [files[channel if channel in given else given[0]] for channel in channels]
    predictor.unlearnt = [number for number, channel in enumerate(channels) if channel not in given]
    data, properties = predictor.load_files(images)
    return predictor.segment(predictor.logits(data), properties)


def save_predictions(out: Path, training: str, seed: int) -> None:
    """Segment what :func:`unseen_cases` has in each of a node's :func:`places`; what is there stays."""
    file = predictions_file(out, training, seed)
    if file.is_file():
        return
    torch.set_num_threads(1)  # as the trainings; of so small a network more are slower
    predicted = {}
    for node in ACQUIRED:
        pattern = f"nodes/{node}/nnUNet_results/*/*/fold_0/{FINAL}"
        (checkpoint,) = run_folder(out, training, seed).glob(pattern)
        predictor = load_predictor(checkpoint)
        values = truth_values(predictor.dataset_json["labels"])
        for centre, given in places(training, node):
            for case in unseen_cases(images_folder(out, seed), centre):
                segmentation = segment(predictor, case, ACQUIRED.get(centre, CHANNELS), given)
                predicted[f"{node}/{centre}/{'+'.join(given)}/{case.name}"] = values[np.asarray(segmentation)]
    write_arrays(file, predicted, compressed=True)


def read_scores(out: Path) -> pd.DataFrame:
    """DSC of every organ of every prediction of every finished training, against the truth."""
    return pd.DataFrame(_scored(out), columns=COLUMNS)


def _scored(out: Path) -> Iterator[tuple[object, ...]]:
    for training in TRAININGS:
        for file in sorted((out / "predictions" / training).glob("seed*.npz")):
            seed = int(file.stem.removeprefix("seed"))
            truths = {
                case.name: truth_of(case)
                for centre in (*ACQUIRED, EXTERNAL)
                for case in unseen_cases(images_folder(out, seed), centre)
            }
            with np.load(file, allow_pickle=False) as predicted:
                for key in predicted.files:
                    node, centre, channels, case = key.split("/")
                    for organ in ORGANS:
                        dsc = dice(predicted[key], truths[case], TRUTH_LABELS[organ], None)
                        yield training, seed, node, centre, channels, case, organ, dsc
