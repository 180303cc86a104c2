"""Of an unusual input, all commands say the same: summary, conversion, training, and a node before it joins."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fednnunet.cli.main import main
from fednnunet.config.node_file import read_node_file
from fednnunet.deployment.node.data_check import check_dataset
from fednnunet.errors import DataError
from fednnunet.exchange.messages import FingerprintRequest
from fednnunet.node.describe import NodeDataset
from fednnunet.node.settings import NodeSettings
from tests.conftest import MakeDataset
from tests.node import test_worker
from tests.support import image_cases
from tests.support.raw_datasets import MISREAD, change_description

settings = test_worker.settings  # a fixture
Change = Callable[[Path], None]
Commands = dict[str, Callable[[Path], str]]
"""Command to a function that gives it a dataset and returns what it says."""

STOPPED: list[tuple[Change, str]] = [
    (image_cases.cut_image, r"case_002_0000.nii.gz is cut off"),
    (image_cases.cut_label, r"case_002.nii.gz is cut off"),
    (image_cases.image_of_four_dimensions, r"case_002_0000.nii.gz has 4 dimensions"),
    (image_cases.label_of_four_dimensions, r"case_002.nii.gz has 4 dimensions"),
    (image_cases.label_of_fractions, r"case_002.nii.gz holds .*0\.9523.* not an integer"),
    (image_cases.not_finite_label, r"case_002.nii.gz holds NaN or infinity"),
]
TOLD: list[tuple[Change, str]] = [
    (image_cases.label_a_hair_below_one, r"a hair off (an integer|integers)"),
    (image_cases.not_finite, r"NaN or infinit"),
    (image_cases.constant_image, r"the same value in all voxels"),
    (image_cases.ignored_everywhere, r"ignore everywhere"),
    (image_cases.mirrored_label, r"onto (its|their) image's grid"),
    (image_cases.micrometres, r"micrometres|micron"),
]


def name(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.fixture
def commands(
    settings: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("fednnunet.fingerprint.extract.MAX_FOREGROUND_VOXELS", 6e4)  # sampled in no time
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["fednnunet", *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            main()
        printed = capsys.readouterr()
        return printed.out + printed.err

    def summarise(folder: Path) -> str:
        return call("data", "summary", folder, "--workers", 1)

    def convert(folder: Path) -> str:
        table = tmp_path / "cases.csv"
        images = sorted(folder.glob("imagesTr/*"))
        rows = [f"{image},{folder}/labelsTr/{image.name.replace('_0000', '')},Oslo" for image in images]
        table.write_text("\n".join(["image,label,centre", *rows]))
        labels = "tumour=1,ignore=2" if "ignore" in (folder / "dataset.json").read_text() else "tumour=1"
        return call("convert", "generic", table, tmp_path / "converted", "--labels", labels, "--processes", 1)

    def train(folder: Path) -> str:
        """A node's part of ``train.py``; the server prints what it sends."""
        try:
            reply = NodeDataset(settings).describe(FingerprintRequest())
        except DataError as error:
            return str(error)
        return "; ".join(map(str, reply.data_notes))

    def join(folder: Path) -> str:
        """What ``node up`` checks before it joins."""
        file = tmp_path / "node.yaml"
        values: dict[str, Any] = {"name": "Oslo", "data": str(folder), "server": "127.0.0.1:9", "insecure": True}
        file.write_text(yaml.safe_dump({**values, "folder": str(tmp_path / "work")}))
        try:
            return str(check_dataset(read_node_file(file)))
        except DataError as error:
            return str(error)

    return {"data summary": summarise, "convert": convert, "train": train, "node up": join}


@pytest.mark.parametrize(("change", "text"), [*STOPPED, *TOLD], ids=name)
def test_all_commands_say_the_same_of_unusual_images(
    commands: Commands, make_dataset: MakeDataset, change: Change, text: str
) -> None:
    folder = make_dataset()
    change(folder)
    for command, give in commands.items():
        said = give(folder)
        assert re.search(text, said), f"{command}: {said}"


@pytest.mark.parametrize(("fields", "text"), MISREAD.values(), ids=MISREAD)
def test_all_commands_say_the_same_of_descriptions(
    commands: Commands, make_dataset: MakeDataset, fields: dict[str, Any], text: str
) -> None:
    folder = make_dataset()
    change_description(folder, **fields)
    for command in ("data summary", "train", "node up"):
        assert text in commands[command](folder), command
