"""Every kind of dataset that nnU-Net reads: two centres train on it, an external one tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage.io import imsave

from fednnunet.datasets.splits import crossval_splits
from fednnunet.evaluation.functional import hausdorff_distance_95
from fednnunet.exchange.messages import ENSEMBLE
from tests.integration.conftest import Train

TRAINING = {"Oslo": 5, "Porto": 6}
"""Centre to number of cases."""
EXTERNAL = {"Riga": 2}


@dataclass(frozen=True)
class Kind:
    """A kind of dataset, and what nnU-Net makes of it.

    Attributes:
        ending: of its files.
        channels: nnU-Net's ``channel_names``, in order.
        labels: nnU-Net's ``labels``.
        normalization: nnU-Net's scheme for every channel.
        shapes: of the images of Oslo, Porto and Riga; (Y, X) of natural images.
        spacing: (Z, Y, X) in mm; files of natural images hold none.
        regions_class_order: nnU-Net's, of labels that are regions.
        strategy: how the centres work together.
        configuration: nnU-Net's.
    """

    ending: str
    channels: tuple[str, ...]
    labels: dict[str, Any]
    normalization: str
    shapes: tuple[tuple[int, ...], ...] = ((6, 40, 40), (6, 72, 72), (6, 48, 48))
    spacing: tuple[float, ...] = (3.0, 1.0, 0.8)
    regions_class_order: tuple[int, ...] = ()
    strategy: str = "asym"
    configuration: str = "2d"

    @property
    def natural(self) -> bool:
        """Whether files are 2D images without a spacing, all channels in one."""
        return len(self.shapes[0]) == 2

    @property
    def reader(self) -> BaseReaderWriter:
        """Of nnU-Net."""
        return NaturalImage2DIO() if self.natural else SimpleITKIO()

    @property
    def scored(self) -> dict[str, tuple[int, ...]]:
        """Values of every label or region that has a score, by name."""
        foreground = {name: value for name, value in self.labels.items() if name not in ("background", "ignore")}
        return {name: tuple(value) if isinstance(value, list) else (value,) for name, value in foreground.items()}

    @property
    def foreground(self) -> list[int]:
        """Values of the label maps that are neither background nor ignored."""
        return sorted({value for values in self.scored.values() for value in values})

    @property
    def unit(self) -> str:
        """Of distances."""
        return "pixels" if self.natural else "mm"


PHOTOGRAPHS = ((48, 48), (96, 96), (56, 40))
KINDS = {
    "classes": Kind(".nii.gz", ("T1", "T2"), {"background": 0, "a": 1, "b": 2, "c": 3}, "ZScoreNormalization"),
    "regions": Kind(
        ".nrrd",
        ("T1",),
        {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]},
        "ZScoreNormalization",
        regions_class_order=(1, 2, 3),
        strategy="ffe",
    ),
    "CT": Kind(".mha", ("CT",), {"background": 0, "organ": 1, "tumour": 2, "ignore": 3}, "CTNormalization"),
    "RGB": Kind(".png", ("rgb_to_0_1",) * 3, {"background": 0, "lesion": 1}, "RGBTo01Normalization", PHOTOGRAPHS),
    "volumes": Kind(
        ".nii.gz",
        ("T1",),
        {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
        "ZScoreNormalization",
        shapes=((12, 24, 24), (12, 48, 48), (14, 28, 24)),
        spacing=(1.5, 1.0, 1.0),
        regions_class_order=(1, 2),
        configuration="3d_fullres",
    ),
    "grey": Kind(".png", ("grey",), {"background": 0, "cell": 1}, "ZScoreNormalization", PHOTOGRAPHS),
    "tif": Kind(".tif", ("grey",), {"background": 0, "cell": 1, "core": 2}, "ZScoreNormalization", PHOTOGRAPHS),
}


def draw_label(kind: Kind, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Boxes inside each other, one per value; of the last columns nobody knows where there is an ignore label."""
    label = np.zeros(shape, dtype=np.uint8)
    plane = shape[-2:]
    start = [int(rng.integers(0, size // 3)) for size in plane]
    for margin, value in enumerate(kind.foreground):
        rows, columns = (
            slice(low + 2 * margin, low + size // 2 - 2 * margin) for low, size in zip(start, plane, strict=True)
        )
        label[..., rows, columns] = value
    if "ignore" in kind.labels:
        label[..., -(plane[1] // 3) :] = kind.labels["ignore"]
    return label


def write_volume(array: np.ndarray, path: Path, spacing: tuple[float, ...]) -> None:
    file = sitk.GetImageFromArray(array)
    file.SetSpacing(spacing[::-1])
    sitk.WriteImage(file, str(path))


def write_dataset(kind: Kind, folder: Path, cases: int, shape: tuple[int, ...], seed: int) -> None:
    """Boxes in noise, brighter the higher their value."""
    rng = np.random.default_rng(seed)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in range(cases):
        label = draw_label(kind, shape, rng)
        channels = [rng.normal(50, 10, shape) + 30 * label for _ in kind.channels]
        image, target = folder / "imagesTr" / f"case_{case:03d}", folder / "labelsTr" / f"case_{case:03d}{kind.ending}"
        if kind.natural:
            colours = np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)
            imsave(f"{image}_0000{kind.ending}", colours.squeeze(), check_contrast=False)
            imsave(target, label, check_contrast=False)
        else:
            for number, channel in enumerate(channels):
                write_volume(channel.astype(np.int16), Path(f"{image}_{number:04d}{kind.ending}"), kind.spacing)
            write_volume(label, target, kind.spacing)
    description = {
        "channel_names": {str(number): name for number, name in enumerate(kind.channels)},
        "labels": kind.labels,
        "numTraining": cases,
        "file_ending": kind.ending,
    }
    if kind.regions_class_order:
        description["regions_class_order"] = kind.regions_class_order
    (folder / "dataset.json").write_text(json.dumps(description))


def train_kind(kind: Kind, train: Train, folder: Path) -> Path:
    """Folder of the finished run; raw files lie in ``folder/raw``."""
    entries = []
    for number, (centre, cases) in enumerate((TRAINING | EXTERNAL).items()):
        name = f"Dataset{301 + number}_{centre}"
        write_dataset(kind, folder / "raw" / name, cases, kind.shapes[number], seed=number)
        entries.append(f"{{name: {centre}, dataset: {name}, external: {centre in EXTERNAL}}}")
    result = train(
        folder / "run",
        f"strategy={kind.strategy}",
        f"dataset.centres=[{', '.join(entries)}]",
        f"configuration={kind.configuration}",
        f"evaluation.distance_unit={kind.unit}",
        "model.overrides.UNet_max_features_3d=8",
        raw=folder / "raw",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run"


def held_out(centre: str) -> list[int]:
    """Numbers of the cases that fold 0 does not train on; all of an external centre."""
    if centre in EXTERNAL:
        return list(range(EXTERNAL[centre]))
    names = [f"case_{number:03d}" for number in range(TRAINING[centre])]
    return [names.index(name) for name in crossval_splits(names)[0]["val"]]


def check_plans(kind: Kind, run: Path) -> None:
    """Normalisation, channels and outputs are those that nnU-Net gives to such data."""
    plans = json.loads((run / "plans.json").read_text())
    configurations = {centre: plans[centre]["configurations"][kind.configuration] for centre in TRAINING}
    for centre, configuration in configurations.items():
        assert configuration["normalization_schemes"] == [kind.normalization] * len(kind.channels)
        assert len(plans[centre]["foreground_intensity_properties_per_channel"]) == len(kind.channels)
        assert plans[centre]["image_reader_writer"] == type(kind.reader).__name__
        (checkpoint,) = (run / "nodes" / centre).rglob("checkpoint_final.pth")
        weights = torch.load(checkpoint, weights_only=False)["network_weights"]
        first, last = weights["encoder.stages.0.0.convs.0.conv.weight"], weights["decoder.seg_layers.0.weight"]
        assert first.shape[1] == len(kind.channels)
        assert first.ndim == (5 if kind.configuration == "3d_fullres" else 4)
        assert len(last) == len(kind.scored) + (not kind.regions_class_order), "background is no region"
    patches = [configuration["patch_size"] for configuration in configurations.values()]
    assert (patches[0] == patches[1]) == (kind.strategy == "ffe")


def check_tables(kind: Kind, run: Path) -> pd.DataFrame:
    """Losses are numbers, and every label of every held-out case has its row; returns ``cases.csv``."""
    rounds = pd.read_csv(run / "rounds.csv")
    assert len(rounds) == 2 * len(TRAINING)
    assert np.isfinite(rounds[["train_loss", "val_loss"]]).all(axis=None)
    cases = pd.read_csv(run / "cases.csv")
    rows = sorted(zip(cases.node, cases.model, cases["case"], cases.label, strict=True))
    models = {centre: [centre] if centre in TRAINING else [*TRAINING, ENSEMBLE] for centre in TRAINING | EXTERNAL}
    expected = [
        (centre, model, case, label)
        for centre in models
        for model in models[centre]
        for case in held_out(centre)
        for label in kind.scored
    ]
    assert rows == sorted(expected)
    assert cases.dsc.dropna().between(0, 1).all()
    assert (cases.hd95.dropna() >= 0).all()
    return cases


def check_segmentation(kind: Kind, prediction: Path, reference: Path, scores: pd.DataFrame) -> None:
    """``prediction`` is a segmentation of the image of ``reference``, and has the scores that the table says."""
    ours, properties = kind.reader.read_seg(str(prediction))
    theirs, expected = kind.reader.read_seg(str(reference))
    assert ours.shape == theirs.shape
    assert properties["spacing"] == pytest.approx(expected["spacing"])
    assert set(np.unique(ours)) <= {0, *kind.foreground}
    ignore = kind.labels.get("ignore")
    metrics = compute_metrics(str(reference), str(prediction), kind.reader, list(kind.scored.values()), ignore)
    spacing = (1.0, 1.0) if kind.natural else kind.spacing
    ours, theirs = (np.where(theirs == ignore, 0, array).squeeze() for array in (ours, theirs))
    for label, values in kind.scored.items():
        row = scores.set_index("label").loc[label]
        assert row.dsc == pytest.approx(np.nan_to_num(metrics["metrics"][values]["Dice"], nan=1.0))
        hd95 = hausdorff_distance_95(np.isin(ours, values), np.isin(theirs, values), spacing)
        assert row.hd95 == pytest.approx(hd95)


MORE_READERS = ("CT", "grey", "tif")
"""New in these are the reader and the normalisation, which tests/datasets and tests/conversion test, too."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly if name in MORE_READERS else ()) for name in KINDS]
)
def test_kind_of_data_is_trained_and_scored(name: str, train: Train, tmp_path: Path) -> None:
    kind = KINDS[name]
    run = train_kind(kind, train, tmp_path)
    check_plans(kind, run)
    cases = check_tables(kind, run)
    for centre in TRAINING:
        (folder,) = (run / "nodes" / centre).rglob("validation")
        segmentations = {f"case_{number:03d}{kind.ending}": number for number in held_out(centre)}
        assert {path.name for path in folder.iterdir()} == {*segmentations, "summary.json"}
        (labels,) = (tmp_path / "raw").glob(f"*_{centre}/labelsTr")
        for file, number in segmentations.items():
            scores = cases[(cases.node == centre) & (cases["case"] == number)]
            check_segmentation(kind, folder / file, labels / file, scores)
