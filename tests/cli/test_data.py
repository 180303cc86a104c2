"""``fednnunet data summary``: what it takes, prints, writes, and ends with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fednnunet.cli.data import choose_centres
from fednnunet.config.hydra_datasets import configured_dataset
from fednnunet.errors import ConfigError, DataError
from fednnunet.phantoms.breast_small import make_small_phantom
from tests.conftest import write_boxes
from tests.support import image_cases
from tests.support.command_line import CommandLine
from tests.support.raw_datasets import MISREAD, write_description

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data_summary(
    fednnunet: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """Call the command in an empty folder, reading in one process; exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = fednnunet("data", "summary", *arguments, "--workers", "1")
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_folders_are_summed_up_in_tables_and_a_figure(data_summary: Call, tmp_path: Path) -> None:
    oslo = write_boxes(tmp_path, "Dataset201_Oslo")
    porto = write_boxes(tmp_path, "Dataset202_Porto", shape=(5, 60, 80), spacing=(2.0, 0.5, 0.5), seed=2)
    code, out, _ = data_summary(oslo, porto, "--out", "figures")
    assert code == 0
    for text in ("Oslo", "6×40×40", "3×1×1", "Porto", "5×60×80", "2×0.5×0.5", "axial LPS: 6", "6 of 6", "tumour"):
        assert text in out
    assert "No likely training problems found." in out
    assert out.endswith("figure: figures/summary.png\n")
    assert Image.open(tmp_path / "figures" / "summary.png").width > 800
    assert "<svg" in (tmp_path / "figures" / "summary.svg").read_text()


def test_warnings_say_where_how_many_which_and_what_to_do(data_summary: Call, tmp_path: Path) -> None:
    folder = write_boxes(tmp_path, "Dataset201_Oslo", cases=9)
    for case in range(5):
        (folder / "imagesTr" / f"case_{case:03d}_0000.nii.gz").write_bytes(b"no image")
    code, out, _ = data_summary(folder)
    assert code == 2
    (line,) = [line for line in out.splitlines() if "Oslo, cannot be read" in line]
    assert "5 of 9 cases (case_000, case_001, case_002 …)" in line
    assert "→ get the files again" in out


def test_unusual_images_are_looked_at_as_a_run_does(data_summary: Call, tmp_path: Path) -> None:
    folder = write_boxes(tmp_path, "Dataset201_Oslo")
    image_cases.mirrored_label(folder)
    code, out, _ = data_summary(folder)
    assert code == 0
    assert "Oslo, label reoriented: 1 of 6 cases (case_002); labels of 1 case were brought onto" in out
    code, out, _ = data_summary(folder, "--image-headers", "ignore")
    assert code == 0
    assert "Oslo, headers ignored: 1 of 6 cases (case_002)" in out
    image_cases.cut_image(folder)
    code, out, _ = data_summary(folder)
    assert code == 2
    assert f"{folder}/imagesTr/case_002_0000.nii.gz is cut off" in out


@pytest.mark.parametrize(("fields", "problem"), MISREAD.values(), ids=MISREAD)
def test_a_description_that_nnunet_would_misread_is_one_line(
    data_summary: Call, tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    write_description(tmp_path / "Dataset201_Oslo", **fields)
    code, _, errors = data_summary(tmp_path / "Dataset201_Oslo")
    assert code == 2
    (line,) = errors.splitlines()
    assert f"{tmp_path}/Dataset201_Oslo/dataset.json" in line
    assert problem in line


def test_folds_that_cannot_be_read_are_told(data_summary: Call, tmp_path: Path) -> None:
    folder = write_boxes(tmp_path, "Dataset201_Oslo")
    (folder / "splits_final.json").write_text("{")
    code, out, _ = data_summary(folder)
    assert code == 2
    assert f"Oslo, own folds: {folder}/splits_final.json must be a list of folds" in out


def test_a_published_dataset_that_is_not_there_says_how_to_get_it(data_summary: Call, tmp_path: Path) -> None:
    code, _, errors = data_summary("mamamia", "--raw-folder", tmp_path)
    assert code == 2
    assert "`fednnunet convert mamamia SOURCE TARGET` makes it from https://doi.org/10.7303/syn60868042" in errors


def test_json_is_all_that_is_printed(data_summary: Call, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw", "Dataset201_Oslo")
    code, out, _ = data_summary(201, "--raw-folder", "raw", "--json")
    assert code == 0
    content = json.loads(out)
    assert [centre["name"] for centre in content["centres"]] == ["Oslo"]
    assert len(content["centres"][0]["cases"]) == 6
    assert content["issues"] == []


def test_a_configured_dataset_brings_its_centres(data_summary: Call, tmp_path: Path) -> None:
    centres = configured_dataset("phantom").generator["centres"]  # type: ignore[index]
    few = {name: {**centres[name], "cases": 5} for name in ("ISPY1", "KAUNO")}
    make_small_phantom(tmp_path / "data" / "phantom", few, seed=1)
    code, out, _ = data_summary("phantom")
    assert code == 2
    assert "ISPY1" in out
    assert "(external)" in out
    for absent in ("ISPY2", "DUKE", "NACT"):
        assert f"✗ {absent}, left out: dataset Dataset10" in out
    assert "→ `python train.py dataset=phantom` makes it" in out


def test_a_missing_dataset_is_one_line(data_summary: Call) -> None:
    code, out, err = data_summary("phantom")
    assert (code, out) == (2, "")
    assert err.startswith("error: centre ISPY1: there is no raw folder data/phantom; `python train.py dataset=phantom`")
    code, _, err = data_summary("mamamya")
    assert code == 2
    assert "there is no dataset mamamya" in err
    assert "mamamia" in err


def test_two_centres_of_one_name_are_refused(tmp_path: Path) -> None:
    folders = [str(write_boxes(tmp_path / parent, "Dataset201_Oslo")) for parent in ("a", "b")]
    with pytest.raises(ConfigError, match="two centres Oslo"):
        choose_centres(folders, None)


def test_a_folder_without_dataset_json_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset201_Oslo"
    folder.mkdir()
    with pytest.raises(DataError, match=r"centre .*Dataset201_Oslo: .*dataset.json is missing"):
        choose_centres([str(folder)], None)
