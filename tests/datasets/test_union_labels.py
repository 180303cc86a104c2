"""Labels of centres that have annotated different structures: names, common values, files that stay."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.datasets.image_checks import check_images, choose_reader
from fednnunet.datasets.label_names import union_of, with_common_names
from fednnunet.datasets.pooled import pool_datasets
from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.datasets.staging import raw_digest
from fednnunet.datasets.union_labels import with_union_labels
from fednnunet.errors import DataError, ProtocolError
from tests.conftest import MakeDataset
from tests.support import image_cases
from tests.support.raw_datasets import change_description, rewrite, write_description

UNION = {"background": 0, "liver": 1, "spleen": 2, "tumour": 3, "ignore": 4}


def centre(folder: Path, **labels: Any) -> RawDataset:
    """Boxes of a dataset with these labels; the second case holds its two highest values, too."""
    change_description(folder, labels={"background": 0, **labels})
    highest = max(value for value in labels.values() if isinstance(value, int)) if labels else 1
    if highest > 1:

        def paint(voxels: np.ndarray) -> np.ndarray:
            voxels[0, 0, :highest] = np.arange(1, highest + 1)
            return voxels

        rewrite(folder / "labelsTr" / "case_001.nii.gz", paint)
    return read_dataset(folder, "Oslo")


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


# names -------------------------------------------------------------------------------------------------


def test_other_names_change_neither_values_nor_their_order(make_dataset: MakeDataset) -> None:
    dataset = centre(make_dataset(), Leber=1, Milz=2)
    renamed = with_common_names(dataset, {"Milz": "spleen"}, "Oslo")
    assert list(renamed.labels.items()) == [("background", 0), ("Leber", 1), ("spleen", 2)]
    assert renamed.cases == dataset.cases
    assert with_common_names(dataset, {"Leber": "Milz", "Milz": "Leber"}, "Oslo").labels["Milz"] == 1
    assert with_common_names(dataset, {}, "Oslo") is dataset


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            {"lver": "liver"},
            r"rename_labels\.Oslo\.lver: labels in .*dataset\.json are background, liver, Milz; rename",
        ),
        ({"Milz": "liver"}, r"rename_labels\.Oslo\.Milz=liver: another label in .*dataset\.json is called liver"),
        ({"Milz": "x", "liver": "x"}, r"rename_labels\.Oslo\.Milz=x: another label .* is called x"),
    ],
)
def test_a_name_that_is_not_there_or_taken_is_refused(
    make_dataset: MakeDataset, names: dict[str, str], text: str
) -> None:
    dataset = centre(make_dataset(), liver=1, Milz=2)
    with pytest.raises(DataError, match=text) as refused:
        with_common_names(dataset, names, "Oslo")
    assert "dataset.json" not in str(refused.value.public) or "/" not in str(refused.value.public)


def test_what_a_hospital_calls_annotated_is_none_of_ours(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    change_description(folder, annotated=["x"])
    assert "annotated" not in with_common_names(read_dataset(folder, "Oslo"), {}, "Oslo").dataset_json


# values ------------------------------------------------------------------------------------------------


def test_the_union_is_ordered_by_name_unless_all_agree() -> None:
    ours, theirs = {"background": 0, "tumour": 1, "liver": 2}, {"background": 0, "liver": 1, "ignore": 2}
    assert list(union_of({"A": ours, "B": theirs}).items()) == [
        ("background", 0),
        ("liver", 1),
        ("tumour", 2),
        ("ignore", 3),
    ]
    assert union_of({"A": ours, "B": dict(reversed(ours.items()))}) == ours


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"whole": [1, 2], "core": 2}, "label whole in dataset.json is a region of the values 1, 2"),
        ({"lesion": 1, "tumour": 1}, "labels lesion and tumour in dataset.json both have value 1"),
        ({"ignore": 1}, "labels in dataset.json are none but background, ignore, so it annotates nothing"),
    ],
)
def test_labels_without_a_value_of_their_own_have_no_union(labels: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=f"^centre Oslo: .*{text}"):
        union_of({"Lund": {"background": 0, "liver": 1}, "Oslo": {"background": 0, **labels}})


def test_values_follow_names_and_the_hospitals_files_stay(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = centre(make_dataset(), tumour=1, spleen=2, ignore=3)
    before = digests(dataset.folder)
    common = with_union_labels(dataset, UNION, "Oslo", tmp_path / "cache")
    assert digests(dataset.folder) == before
    assert list(common.labels) == list(UNION)
    assert common.dataset_json["annotated"] == ["spleen", "tumour"]
    for own, ours in zip(dataset.cases, common.cases, strict=True):
        expected = np.array([0, 3, 2, 4])[voxels(own.label)]
        assert np.array_equal(voxels(ours.label), expected)
        assert ours.images == own.images
    assert sorted(np.unique(voxels(common.cases[1].label))) == [0, 2, 3, 4]
    assert raw_digest(common) != raw_digest(dataset)


@pytest.mark.parametrize(
    ("ending", "shape"),
    [
        *((ending, (4, 6, 5)) for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".tiff")),
        *((ending, (6, 5)) for ending in (".png", ".tif", ".bmp", ".nii.gz")),
    ],
)
def test_formats_keep_their_voxels_and_spacing(tmp_path: Path, ending: str, shape: tuple[int, ...]) -> None:
    folder = tmp_path / "Dataset101_A"
    write_description(folder, labels={"background": 0, "tumour": 1, "spleen": 2}, file_ending=ending)
    drawn = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    for part, name, array in (("imagesTr", "a_0000", 9 * drawn), ("labelsTr", "a", drawn)):
        (folder / part).mkdir()
        image_cases.write(array, folder / part / f"{name}{ending}")
    if ending == ".tiff":  # its reader takes spacings from there
        (folder / "imagesTr" / "a.json").write_text('{"spacing": [3, 1, 1]}')
        (folder / "labelsTr" / "a.json").write_text('{"spacing": [3, 1, 1]}')
    own = check_images(read_dataset(folder, "Oslo"), "Oslo").dataset
    common = check_images(with_union_labels(own, UNION, "Oslo", tmp_path / "cache"), "Oslo").dataset
    reader = choose_reader(own, own.cases[0], "Oslo")()
    (before, was), (after, now) = (reader.read_seg(str(one.cases[0].label)) for one in (own, common))
    assert np.array_equal(after, np.array([0, 3, 2])[before.astype(int)])
    assert was["spacing"] == now["spacing"]


def test_other_names_of_the_same_files_are_another_dataset(tmp_path: Path) -> None:
    """Neither size nor time of the written files tells, where they are not compressed."""
    folder = tmp_path / "Dataset101_A"
    write_description(folder, labels={"background": 0, "a": 1, "b": 2}, file_ending=".nii")
    for part, name in (("imagesTr", "x_0000"), ("labelsTr", "x")):
        (folder / part).mkdir()
        image_cases.write(np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3, folder / part / f"{name}.nii")
    dataset = read_dataset(folder, "Oslo")
    found = [
        with_union_labels(with_common_names(dataset, names, "Oslo"), UNION, "Oslo", tmp_path / "cache")
        for names in ({"a": "spleen", "b": "tumour"}, {"a": "tumour", "b": "spleen"})
    ]
    assert found[0].dataset_json == found[1].dataset_json
    assert not np.array_equal(*(voxels(one.cases[0].label) for one in found))
    assert raw_digest(found[0]) != raw_digest(found[1])
    pooled = [
        pool_datasets({"Oslo": one, "Lund": one}, tmp_path / str(n), "Dataset999_Pooled") for n, one in enumerate(found)
    ]
    assert raw_digest(pooled[0]) != raw_digest(pooled[1])


def test_only_label_maps_that_change_are_written_and_only_once(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = centre(make_dataset(), liver=1, tumour=2)
    common = with_union_labels(dataset, UNION, "Oslo", tmp_path / "cache")
    written = [case.name for case, own in zip(common.cases, dataset.cases, strict=True) if case.label != own.label]
    assert written == ["case_001"]
    inode = common.cases[1].label.stat().st_ino
    assert with_union_labels(dataset, UNION, "Oslo", tmp_path / "cache") == common
    assert common.cases[1].label.stat().st_ino == inode
    digest = raw_digest(common)
    shutil.rmtree(common.cases[1].label.parent)
    assert raw_digest(with_union_labels(dataset, UNION, "Oslo", tmp_path / "cache")) == digest
    other = dict(UNION, tumour=2, spleen=3)
    assert with_union_labels(dataset, other, "Oslo", tmp_path / "cache").cases == dataset.cases


def test_nothing_changes_where_the_labels_are_the_unions(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = centre(make_dataset(), spleen=2, liver=1, tumour=3, ignore=4)
    assert with_union_labels(dataset, UNION, "Oslo", tmp_path / "cache") is dataset
    assert not (tmp_path / "cache").exists()


def test_the_label_ignore_is_no_annotation(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = centre(make_dataset(), liver=1, spleen=2, tumour=3)
    common = with_union_labels(dataset, UNION, "Oslo", tmp_path / "cache")
    assert common.labels["ignore"] == 4
    assert "annotated" not in common.dataset_json


def test_what_no_model_segments_is_background_at_an_external_centre_alone(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    dataset = centre(make_dataset(), kidney=1, liver=2)
    with pytest.raises(ProtocolError, match="the server's labels lack kidney, which centre Oslo has"):
        with_union_labels(dataset, UNION, "Oslo", tmp_path / "cache")
    common = with_union_labels(dataset, UNION, "Oslo", tmp_path / "cache", external=True)
    assert common.dataset_json["annotated"] == ["liver"]
    assert np.array_equal(voxels(common.cases[1].label), np.array([0, 0, 1])[voxels(dataset.cases[1].label)])


def test_pooled_cases_say_what_their_centres_have_annotated(make_dataset: MakeDataset, tmp_path: Path) -> None:
    own = {
        "A": centre(make_dataset(name="Dataset101_A", cases=2), liver=1),
        "B": centre(make_dataset(name="Dataset102_B", cases=2, seed=1), spleen=1, liver=2),
    }
    with pytest.raises(DataError, match=r"disagree on labels .*task\.labels=union"):
        pool_datasets(own, tmp_path / "pool", "Dataset999_Pooled")
    union = union_of({name: dataset.labels for name, dataset in own.items()})
    common = {name: with_union_labels(dataset, union, name, tmp_path / "cache") for name, dataset in own.items()}
    pooled = pool_datasets(common, tmp_path / "pool", "Dataset999_Pooled")
    staged = json.loads((tmp_path / "pool" / "Dataset999_Pooled" / "dataset.json").read_text())
    assert staged["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    assert staged["annotated"] == {"A": ["liver"], "B": ["liver", "spleen"]}, "no case is named: it goes into models"
    staged_cases = read_dataset(tmp_path / "pool" / "Dataset999_Pooled", "pool").cases
    assert tuple(replace(case, made="") for case in pooled.cases) == staged_cases
    (b,) = [case.label for case in pooled.cases if case.name == "B__case_001"]
    assert np.array_equal(voxels(b), np.array([0, 2, 1])[voxels(own["B"].cases[1].label)])
