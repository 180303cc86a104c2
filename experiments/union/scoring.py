"""The trainings, and what their final checkpoints see in cases that none of them has trained on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch

from fednnunet.best_configuration.case_scores import dice
from fednnunet.datasets.raw import Case, read_dataset
from fednnunet.datasets.splits import splits_of
from fednnunet.evaluation.predict import Predictor
from fednnunet.files import write_arrays
from fednnunet.models.open_model import open_model
from fednnunet.phantoms.organs import ORGANS, TRUTH_LABELS
from fednnunet.phantoms.writer import TRUTH_FOLDER
from fednnunet.run_files import PERSONAL_RESULTS
from fednnunet.training.final_checkpoint import FINAL

sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiment_runs import run_folder

ANNOTATED = {"Oslo": "liver", "Porto": "spleen", "Turin": "kidney"}
"""Organ that a training centre annotates."""
EXTERNAL = "Ghent"


@dataclass(frozen=True)
class Training:
    """One way to train.

    Attributes:
        title: name in tables.
        overrides: keys of the run.
        images: folder of its datasets: ``own`` where each centre annotates its organ, ``all`` where it annotates all,
            ``background`` where what it does not annotate is declared background.
        all_organs: whether a node's model knows all organs, or only its own.
        personal_of: training whose nodes' own models these are; empty if it is a training of its own.
    """

    title: str
    overrides: tuple[str, ...]
    images: str = "own"
    all_organs: bool = True
    personal_of: str = ""


UNLIKE = "strategy.heterogeneous_tasks=true"
UNION = ("strategy=asym", "task.labels=union")
TUNED = (*UNION, "strategy.fine_tune_epochs=3")
MARGINAL = ("task.labels=union", "task.pseudo_labels=0")
TRAININGS = {
    "alone": Training("alone", ("strategy=local", UNLIKE), all_organs=False),
    "local_heads": Training(
        "local heads",
        ("strategy=asym", UNLIKE, "strategy.aggregation.keep_local=[seg_layers]"),
        all_organs=False,
    ),
    "union": Training("union", TUNED),
    "tuned": Training("union, fine-tuned", TUNED, personal_of="union"),
    "marginal": Training("marginal", ("strategy=asym", *MARGINAL)),
    "exclusion": Training("marginal, exclusion", ("strategy=asym", *MARGINAL, "task.exclusion=true")),
    "ffe": Training("marginal, `ffe`", ("strategy=ffe", *MARGINAL)),
    "background": Training(
        "as background", ("strategy=asym", "dataset.generator.unannotated=background"), images="background"
    ),
    "all": Training("all annotate all", ("strategy=asym", "dataset.generator.annotated=all"), images="all"),
}
"""In the order of the tables."""
COLUMNS = ["training", "seed", "node", "centre", "case", "organ", "dsc"]


def images_folder(out: Path, training: str, seed: int) -> Path:
    """Folder of a training's raw datasets."""
    return out / "images" / TRAININGS[training].images / f"seed{seed}"


def predictions_file(out: Path, training: str, seed: int) -> Path:
    """File of label maps, by node, centre and case."""
    return out / "predictions" / training / f"seed{seed}.npz"


def trained_folder(out: Path, training: str, seed: int) -> Path:
    """Folder of the run that trains its models."""
    return run_folder(out, TRAININGS[training].personal_of or training, seed)


def unseen_cases(images: Path, centre: str) -> list[Case]:
    """Cases of a centre that no node trains on: those held out in fold 0, or all of the external centre."""
    (folder,) = images.glob(f"Dataset*_Organs{centre}")
    dataset = read_dataset(folder, centre, external=centre == EXTERNAL)
    if centre == EXTERNAL:
        return list(dataset.cases)
    held_out = splits_of(dataset, centre, [0])[0]["val"]
    return [case for case in dataset.cases if case.name in held_out]


def read_voxels(path: Path) -> np.ndarray:
    """Voxels (Z, Y, X) of a file."""
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def truth_of(case: Case) -> np.ndarray:
    """Label map of all organs, whatever is annotated (:data:`~fednnunet.phantoms.organs.TRUTH_LABELS`)."""
    return read_voxels(case.label.parents[1] / TRUTH_FOLDER / case.label.name)


def save_predictions(out: Path, training: str, seed: int) -> None:
    """Segment what :func:`unseen_cases` has of each node's own centre and of the external one; what is there stays."""
    file = predictions_file(out, training, seed)
    if file.is_file():
        return
    torch.set_num_threads(1)  # as the trainings; of so small a network more are slower
    images, predicted = images_folder(out, training, seed), {}
    results = PERSONAL_RESULTS if TRAININGS[training].personal_of else "nnUNet_results"
    for node in ANNOTATED:
        (checkpoint,) = trained_folder(out, training, seed).glob(f"nodes/{node}/{results}/*/*/fold_0/{FINAL}")
        predictor = load_predictor(checkpoint)
        values = truth_values(predictor.dataset_json["labels"])
        for centre in (node, EXTERNAL):
            for case in unseen_cases(images, centre):
                data, properties = predictor.load_files([str(path) for path in case.images])
                segmentation = predictor.segment(predictor.logits(data), properties)
                predicted[f"{node}/{centre}/{case.name}"] = values[np.asarray(segmentation)]
    write_arrays(file, predicted, compressed=True)


def load_predictor(checkpoint: Path) -> Predictor:
    """nnU-Net's predictor with a node's final network, and plans and ``dataset.json`` of the folder of its model."""
    model = open_model(checkpoint.parents[1])
    network = model.build_network()
    model.load(network, model.folds[0])
    arguments = (model.plans, model.configuration, model.dataset_json, model.mirror_axes)
    return Predictor(network, *arguments, torch.device("cpu"))


def truth_values(labels: dict[str, int]) -> np.ndarray:
    """By value in a model's ``labels``: the value of the label of that name in the truth."""
    values = np.zeros(max(labels.values()) + 1, dtype=np.uint8)
    for name, value in labels.items():
        values[value] = TRUTH_LABELS[name]
    return values


def read_predictions(out: Path, training: str, seed: int) -> Iterator[tuple[str, str, Case, np.ndarray]]:
    """Node, centre, case and label map (Z, Y, X), of every prediction."""
    images = images_folder(out, training, seed)
    cases = {(centre, case.name): case for centre in (*ANNOTATED, EXTERNAL) for case in unseen_cases(images, centre)}
    with np.load(predictions_file(out, training, seed), allow_pickle=False) as predicted:
        for name in predicted.files:
            node, centre, case = name.split("/")
            yield node, centre, cases[centre, case], predicted[name]


def read_scores(out: Path) -> pd.DataFrame:
    """DSC of every organ that a model knows, of every case of every finished training, against the truth.

    An organ that is neither there nor predicted has none, as in nnU-Net.
    """
    rows = []
    for training, settings in TRAININGS.items():
        for file in sorted((out / "predictions" / training).glob("seed*.npz")):
            seed = int(file.stem.removeprefix("seed"))
            for node, centre, case, predicted in read_predictions(out, training, seed):
                truth = truth_of(case)
                for organ in ORGANS if settings.all_organs else (ANNOTATED[node],):
                    dsc = dice(predicted, truth, TRUTH_LABELS[organ], None)
                    rows.append((training, seed, node, centre, case.name, organ, dsc))
    return pd.DataFrame(rows, columns=COLUMNS)
