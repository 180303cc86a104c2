"""Real training where centres have acquired different channels, in another order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from tests.conftest import write_case
from tests.integration.conftest import Train, final_weights, result_folder
from tests.integration.test_partial_labels import digests
from tests.support.raw_datasets import centres_override, write_description

CENTRES = {
    "Oslo": ("Dataset601_Oslo", ["T2", "T1"], 5),
    "Porto": ("Dataset602_Porto", ["T1"], 5),
    "Turin": ("Dataset603_Turin", ["T2"], 5),
    "Riga": ("Dataset604_Riga", ["T2"], 2),
}
"""Centre to dataset, channels and cases; Riga is external."""
TRAINING = ("Oslo", "Porto", "Turin")
OVERRIDES = (
    centres_override({name: folder for name, (folder, *_) in CENTRES.items()}, external=["Riga"]),
    "task.channels=union",
    "trainer.iterations=2",
)
CONTRAST = {"T1": 60, "T2": -60}
SHAPE = (5, 32, 32)


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box in every case, bright in T1 and dark in T2."""
    parent = tmp_path_factory.mktemp("unlike") / "raw"
    for seed, (folder, channels, cases) in enumerate(CENTRES.values()):
        rng = np.random.default_rng(seed)
        for case in range(cases):
            drawn, (y, x) = np.zeros(SHAPE), rng.integers(2, 20, 2)
            drawn[1:4, y : y + 9, x : x + 9] = 1
            for channel, name in enumerate(channels):
                image = rng.normal(100, 10, SHAPE) + CONTRAST[name] * drawn
                write_case(parent / folder, f"case_{case:03d}", image, drawn, (3.0, 1.0, 1.0))
                images = parent / folder / "imagesTr"
                (images / f"case_{case:03d}_0000.nii.gz").rename(images / f"case_{case:03d}_{channel}.nii.gz")
            for channel in range(len(channels)):
                (images / f"case_{case:03d}_{channel}.nii.gz").rename(images / f"case_{case:03d}_000{channel}.nii.gz")
        names = {str(number): name for number, name in enumerate(channels)}
        write_description(parent / folder, channel_names=names, labels={"background": 0, "box": 1}, numTraining=cases)
    return parent


def test_one_network_takes_what_no_centre_lacks_alone(train: Train, unlike: Path, tmp_path: Path) -> None:
    before, run = digests(unlike), tmp_path / "run"
    result = train(run, "strategy=asym", *OVERRIDES, raw=unlike)
    assert result.returncode == 0, result.stdout + result.stderr
    assert digests(unlike) == before
    assert (run / "channels.csv").read_text().splitlines() == [
        "channel,number,Oslo,Porto,Turin,Riga",
        "T1,0,yes,yes,,",
        "T2,1,yes,,yes,yes",
    ]
    cases = pd.read_csv(run / "cases.csv")
    assert set(cases["node"]) == set(CENTRES)
    assert cases["dsc"].notna().all()

    for node in CENTRES:
        shown = [np.load(path)["image"] for path in (run / "nodes" / node / "overlays").glob("*.npz")]
        assert shown
        assert all(len(np.unique(image)) > 100 for image in shown), "a channel that the node has, not zeros"

    weights = {node: final_weights(run, node) for node in TRAINING}
    (first,) = (name for name in weights["Oslo"] if name.startswith("encoder.stages.0.0.convs.0.conv.weight"))
    assert weights["Oslo"][first].shape[1] == 2
    for node in TRAINING:
        assert all(torch.equal(weights["Oslo"][name], values) for name, values in weights[node].items())
        description = json.loads((result_folder(run, node).parent / "dataset.json").read_text())
        assert description["channel_names"] == {"0": "T1", "1": "T2"}
        assert description.get("acquired") == {"Oslo": None, "Porto": ["T1"], "Turin": ["T2"]}[node]

    # Another tool, and a file of zeros that this test has made, segment as the node has.
    folder, out, images = result_folder(run, "Porto"), tmp_path / "predicted", tmp_path / "images"
    (scored,) = (folder / "validation").glob("*.nii.gz")
    images.mkdir()
    case = scored.name.removesuffix(".nii.gz")
    source = unlike / CENTRES["Porto"][0] / "imagesTr" / f"{case}_0000.nii.gz"
    (images / source.name).symlink_to(source)
    image = sitk.ReadImage(str(source))
    sitk.WriteImage(image * 0, str(images / f"{case}_0001.nii.gz"))
    folders = {f"nnUNet_{part}": str(run / f"nodes/Porto/nnUNet_{part}") for part in ("raw", "preprocessed", "results")}
    tool = Path(sys.executable).with_name("nnUNetv2_predict")
    arguments = f"-i {images} -o {out} -d {CENTRES['Porto'][0]} -c 2d -f 0 -device cpu -npp 0 -nps 0".split()
    subprocess.run([tool, *arguments], check=True, capture_output=True, env={**os.environ, **folders}, timeout=300)
    ours, theirs = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (scored, out / scored.name))
    assert np.array_equal(ours, theirs)


def test_unlike_channels_are_refused_unless_they_are_united(train: Train, unlike: Path, tmp_path: Path) -> None:
    overrides = [text for text in OVERRIDES if text != "task.channels=union"]
    refused = train(tmp_path / "same", "strategy=asym", *overrides, raw=unlike)
    assert refused.returncode == 2
    assert "disagree on channel_names in dataset.json" in refused.stderr
    refused = train(tmp_path / "pooled", "strategy=centralized", *OVERRIDES, raw=unlike)
    assert refused.returncode == 2
    assert "task.channels=union needs nodes that keep their cases" in refused.stderr
