"""A folder of segmentations never mixes what models, options or images of one name give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fednnunet.errors import ConfigError
from fednnunet.inference.cases import ImageCase
from fednnunet.inference.output import OutputFolder

RECORD = {"weights": ["one"]}
BESIDE = {"dataset.json": {"labels": {"background": 0}}, "plans.json": {}}


def segment(
    path: Path,
    images: Mapping[str, str],
    record: Mapping[str, Any] = RECORD,
    *,
    probabilities: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Open a folder, and "segment" what is not done; returns the names."""
    folder = OutputFolder(path, ".nii.gz", probabilities)
    with folder.opened(record, BESIDE, images, overwrite):
        left = [name for name in images if not folder.is_done(name)]
        for name in left:
            for ending in folder.endings:
                (path / f"{name}{ending}").write_text(str(record["weights"]))
    return left


def test_other_images_of_a_name_are_refused(tmp_path: Path) -> None:
    assert segment(tmp_path, {"a": "1", "b": "2"}) == ["a", "b"]
    assert segment(tmp_path, {"c": "3"}) == ["c"]
    assert segment(tmp_path, {"a": "1", "b": "2", "c": "3"}) == []
    with pytest.raises(ConfigError, match=r"holds b.nii.gz, made of other images of this name, .*or --overwrite$"):
        segment(tmp_path, {"a": "1", "b": "other"})
    assert segment(tmp_path, {"b": "other"}, overwrite=True) == ["b"]
    assert segment(tmp_path, {"a": "1", "b": "other", "c": "3"}) == []


def test_a_case_that_is_segmented_anew_leaves_nothing_of_the_model_before(tmp_path: Path) -> None:
    segment(tmp_path, {"a": "1"}, probabilities=True)
    (tmp_path / "a.dcm").write_text("of one")
    other = {"weights": ["other"]}
    assert segment(tmp_path, {"a": "1"}, other, overwrite=True) == ["a"]
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.nii.gz"]
    assert segment(tmp_path, {"a": "1"}, other, probabilities=True) == ["a"]
    assert {path.read_text() for path in tmp_path.glob("a.*")} == {"['other']"}


def test_what_is_refused_is_left_as_it_is(tmp_path: Path) -> None:
    segment(tmp_path, {"a": "1", "b": "2"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"holds b.nii.gz, made with other weights"):
        segment(tmp_path, {"a": "1"}, {"weights": ["other"]}, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["dataset.json", "plans.json", "summary.json"])
def test_a_folder_of_a_model_or_dataset_is_not_written_into(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=rf"holds a {name} and no predict.json: it is a model's folder"):
        segment(tmp_path, {"a": "1"}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_empty_file_is_no_segmentation(tmp_path: Path) -> None:
    segment(tmp_path, {"a": "1"})
    (tmp_path / "a.nii.gz").write_bytes(b"")
    assert segment(tmp_path, {"a": "1"}) == ["a"]


def test_the_record_holds_no_path(tmp_path: Path) -> None:
    image = tmp_path / "Doe^Jane" / "a_0000.nii.gz"
    image.parent.mkdir()
    image.write_bytes(b"1")
    case = ImageCase("a", (image, None))
    segment(tmp_path / "out", {"a": case.fingerprint()})
    text = (tmp_path / "out" / "predict.json").read_text()
    assert "Doe" not in text
    assert json.loads(text)["images"] == {"a": case.fingerprint()}
    image.write_bytes(b"12")
    assert case.fingerprint() != json.loads(text)["images"]["a"]
