"""From a list of images to a trained federation, with the commands as they are printed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest

from fednnunet.cli.main import main
from tests.integration.conftest import command
from tests.support.train_script import ROOT, run_local


def test_the_command_that_a_conversion_prints_trains_on_its_datasets(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["image;label;centre"]
    for centre, folder in (("Oslo", "Dataset201_Oslo"), ("Málaga", "Dataset203_Lund"), ("Riga", "Dataset204_Riga")):
        for label in sorted((raw / folder / "labelsTr").iterdir()):
            image = raw / folder / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz")
            lines.append(f"{image};{label};{centre}")
    (tmp_path / "cases.csv").write_text("\n".join(lines), encoding="utf-8")
    arguments = ["generic", tmp_path / "cases.csv", tmp_path / "raw", "--labels", "tumour=1", "--external", "Riga"]
    monkeypatch.setattr(sys, "argv", ["fednnunet", "convert", *map(str, arguments)])
    with pytest.raises(SystemExit, match="0"):
        main()
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Train: ")]
    python, script, *train = shlex.split(printed.removeprefix("Train: "))
    assert (python, script) == ("python", "train.py")
    small = [
        override
        for override in command(raw, tmp_path / "run")[2:]
        if not override.startswith(("dataset", "paths.cache"))  # of the test's own federation
    ]
    finished = run_local([sys.executable, str(ROOT / script), *train, *small, f"paths.cache={tmp_path / 'cache'}"])
    assert finished.returncode == 0, finished.stderr
    scored = pd.read_csv(tmp_path / "run" / "cases.csv")
    assert set(scored["node"]) == {"Oslo", "Malaga", "Riga"}
