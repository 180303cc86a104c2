"""Cases become nnU-Net raw datasets: what is written, what is refused, what an interrupted conversion leaves."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.conversion import writer as module
from fednnunet.conversion.manifest import read_manifest
from fednnunet.conversion.options import Options
from fednnunet.conversion.plan import plan_conversion
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.conversion.targets import TargetCentre
from fednnunet.conversion.writer import ConversionResult, convert
from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.splits import splits_of
from fednnunet.errors import ConfigError, DataError

LABELS = {"background": 0, "tumour": 1, "node": 2}
CENTRES = [TargetCentre("Oslo", "Dataset601_Oslo", studies=5), TargetCentre("Riga", "Dataset602_Riga", external=True)]
SPACING = (0.5, 0.5, 3.0)
COPY = Options()


class Silent:
    def __init__(self, at: Callable[[SourceCase], None] = lambda case: None) -> None:
        self.at = at
        self.seen: list[str] = []

    def start(self, cases: int, remaining: int) -> None:
        self.remaining = remaining

    def advance(self, case: SourceCase) -> None:
        self.seen.append(case.name)
        self.at(case)


def write(path: Path, array: np.ndarray, spacing: Sequence[float] = SPACING, origin: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing((*spacing, 1.0)[: image.GetDimension()])
    image.SetOrigin([origin] * image.GetDimension())
    sitk.WriteImage(image, str(path))
    return path


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def make_case(folder: Path, name: str, centre: str = "Oslo", seed: int = 0, **changes: Any) -> SourceCase:
    rng = np.random.default_rng([seed, len(name), *name.encode()])
    image = rng.integers(0, 900, (3, 8, 8)).astype(np.int16)
    label = np.zeros((3, 8, 8), dtype=np.uint8)
    label[1, 2:5, 2:5] = 1
    fields: dict[str, Any] = {
        "name": name,
        "centre": centre,
        "channels": (SourceImage(write(folder / f"{name}.nii.gz", image)),),
        "label": SourceImage(write(folder / f"{name}_seg.nii.gz", label)),
        "label_values": {1: "tumour"},
    }
    return SourceCase(**{**fields, **changes})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def cases(source: Path) -> list[SourceCase]:
    return [make_case(source, f"case{number}") for number in range(5)] + [make_case(source, "far", "Riga")]


def run(
    cases: Sequence[SourceCase], target: Path, options: Options = COPY, progress: Silent | None = None, **scan: Any
) -> list[ConversionResult]:
    plan = plan_conversion(ScanResult(tuple(cases), ("MRI",), **scan), CENTRES, LABELS)
    return convert(plan, target.parent / "source", target, "convert test", {}, options, progress or Silent())


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_cases_have_nnunets_layout_and_the_source_is_unchanged(
    cases: list[SourceCase], source: Path, tmp_path: Path
) -> None:
    before = content(source)
    done = run(cases, tmp_path / "raw")
    assert content(source) == before
    dataset = read_dataset(tmp_path / "raw" / "Dataset601_Oslo", "Oslo")
    check_images(dataset, "Oslo")
    assert [case.name for case in dataset.cases] == [f"case{number}" for number in range(5)]
    assert dataset.cases[0].images[0].read_bytes() == (source / "case0.nii.gz").read_bytes()
    assert dataset.dataset_json["labels"] == LABELS
    assert dataset.channel_names == {"0": "MRI"}
    external = read_dataset(tmp_path / "raw" / "Dataset602_Riga", "Riga", external=True)
    assert external.cases[0].images[0].parent.name == "imagesTs"
    assert [entry.converted for entry in done] == [5, 1]


def test_the_manifest_tells_sources_and_files_by_their_checksums(
    cases: list[SourceCase], source: Path, tmp_path: Path
) -> None:
    run(cases, tmp_path / "raw")
    folder = tmp_path / "raw" / "Dataset601_Oslo"
    record = read_manifest(folder).cases["case3"]
    assert {name: record.files[name] for name in record.files} == {
        name: content(folder)[name] for name in ("imagesTr/case3_0000.nii.gz", "labelsTr/case3.nii.gz")
    }
    image = record.sources["case3.nii.gz"]
    assert str(tmp_path) not in (folder / "manifest.json").read_text()
    assert image.sha256 == content(source)["case3.nii.gz"]
    assert read_manifest(folder).finished


@pytest.mark.parametrize("files", ["symlink", "hardlink"])
def test_files_that_need_no_change_can_be_linked(
    cases: list[SourceCase], source: Path, tmp_path: Path, files: Any
) -> None:
    cases[0] = make_case(source, "case0", label_values={1: "node"})
    run(cases, tmp_path / "raw", Options(files=files))
    folder = tmp_path / "raw" / "Dataset601_Oslo"
    image, label = folder / "imagesTr" / "case0_0000.nii.gz", folder / "labelsTr" / "case0.nii.gz"
    assert image.samefile(source / "case0.nii.gz")
    assert image.is_symlink() == (files == "symlink")
    assert not label.samefile(source / "case0_seg.nii.gz")
    assert set(np.unique(read(label))) == {0, 2}
    check_images(read_dataset(folder, "Oslo"), "Oslo")


def test_a_frame_of_a_cine_becomes_an_image(cases: list[SourceCase], source: Path, tmp_path: Path) -> None:
    cine = np.random.default_rng(0).integers(0, 900, (4, 3, 8, 8)).astype(np.int16)
    masks = np.zeros((4, 3, 8, 8), dtype=np.uint8)
    masks[2, 1, 3:5, 3:5] = 3
    paths = write(source / "cine.nii.gz", cine), write(source / "cine_gt.nii.gz", masks)
    cases[1] = make_case(
        source,
        "case1",
        channels=(SourceImage(paths[0], frame=2),),
        label=SourceImage(paths[1], frame=2),
        label_values={3: "node"},
    )
    run(cases, tmp_path / "raw")
    folder = tmp_path / "raw" / "Dataset601_Oslo"
    assert np.array_equal(read(folder / "imagesTr" / "case1_0000.nii.gz"), cine[2])
    assert np.array_equal(read(folder / "labelsTr" / "case1.nii.gz"), np.where(masks[2] == 3, 2, 0))
    assert sitk.ReadImage(str(folder / "imagesTr" / "case1_0000.nii.gz")).GetSpacing() == SPACING


def test_a_baseline_is_subtracted(cases: list[SourceCase], source: Path, tmp_path: Path) -> None:
    before = write(source / "pre.nii.gz", np.full((3, 8, 8), 1000, dtype=np.int16))
    after = cases[0].channels[0].path
    cases[0] = make_case(source, "case0", channels=(SourceImage(after, baseline=before),))
    run(cases, tmp_path / "raw")
    written = read(tmp_path / "raw" / "Dataset601_Oslo" / "imagesTr" / "case0_0000.nii.gz")
    assert np.array_equal(written, read(after).astype(np.float32) - 1000)
    assert written.min() < 0


def test_colour_images_become_grey_in_png(source: Path, tmp_path: Path) -> None:
    def drawing(number: int) -> SourceCase:
        colours = np.random.default_rng(number).integers(0, 255, (8, 9, 3)).astype(np.uint8)
        mask = np.zeros((8, 9), dtype=np.uint8)
        mask[2:4] = 255
        source.mkdir(exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(source / f"{number}.png"))
        sitk.WriteImage(sitk.GetImageFromArray(mask), str(source / f"{number}_mask.png"))
        return SourceCase(
            f"us{number}",
            "Oslo",
            (SourceImage(source / f"{number}.png"),),
            SourceImage(source / f"{number}_mask.png"),
            {255: "tumour"},
        )

    run([drawing(number) for number in range(5)], tmp_path / "raw", file_ending=".png")
    dataset = read_dataset(tmp_path / "raw" / "Dataset601_Oslo", "Oslo")
    check_images(dataset, "Oslo")
    colours = read(source / "0.png").astype(float)
    assert np.abs(read(dataset.cases[0].images[0]) - colours @ (0.299, 0.587, 0.114)).max() <= 0.5
    assert set(np.unique(read(dataset.cases[0].label))) == {0, 1}


def test_cases_of_one_patient_stay_in_one_part_of_a_fold(source: Path, tmp_path: Path) -> None:
    heart = [
        make_case(source, f"P{number}_{phase}", patient=f"P{number}") for number in range(6) for phase in ("ED", "ES")
    ]
    run(heart, tmp_path / "raw")
    folds = splits_of(read_dataset(tmp_path / "raw" / "Dataset601_Oslo", "Oslo"), "Oslo", range(5))
    for fold in folds:
        patients = {part: {case.split("_")[0] for case in fold[part]} for part in ("train", "val")}
        assert not patients["train"] & patients["val"]
        assert len(fold["train"]) + len(fold["val"]) == 12
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(case.name for case in heart)


def test_each_of_few_patients_is_held_out_once(source: Path, tmp_path: Path) -> None:
    heart = [
        make_case(source, f"P{number}_{phase}", patient=f"P{number}") for number in range(3) for phase in ("ED", "ES")
    ]
    run(heart, tmp_path / "raw")
    folds = splits_of(read_dataset(tmp_path / "raw" / "Dataset601_Oslo", "Oslo"), "Oslo", [0, 1, 2])
    assert sorted(fold["val"] for fold in folds) == [[f"P{number}_ED", f"P{number}_ES"] for number in range(3)]
    assert all(len(fold["train"]) == 4 for fold in folds)


def broken(source: Path, kind: str) -> SourceCase:
    mask = np.zeros((3, 8, 8), dtype=np.uint8)
    image = np.ones((3, 8, 8), dtype=np.float32)
    if kind == "no image":
        return make_case(source, "bad", channels=(SourceImage(source / "nowhere.nii.gz"),))
    if kind in ("cut off", "unreadable"):
        path = source / "bad.nii.gz"
        made = make_case(source, "bad")
        path.write_bytes(path.read_bytes()[:60] if kind == "cut off" else b"not an image")
        return made
    if kind == "4D image":
        return make_case(source, "bad", channels=(SourceImage(write(source / "long.nii.gz", np.stack([image] * 2))),))
    if kind == "4D label":
        return make_case(source, "bad", label=SourceImage(write(source / "long.nii.gz", np.stack([mask] * 2))))
    if kind == "complex":
        path = write(source / "fourier.nii.gz", image.astype(np.complex64))
        return make_case(source, "bad", channels=(SourceImage(path),))
    if kind == "size":
        return make_case(source, "bad", label=SourceImage(write(source / "small.nii.gz", mask[:2])))
    if kind == "spacing":
        return make_case(source, "bad", label=SourceImage(write(source / "wide.nii.gz", mask, (0.6, 0.5, 3.0))))
    if kind == "origin":
        return make_case(source, "bad", label=SourceImage(write(source / "moved.nii.gz", mask, origin=5.0)))
    if kind == "value":
        return make_case(source, "bad", label=SourceImage(write(source / "seven.nii.gz", mask + 7)))
    if kind == "half":
        return make_case(source, "bad", label=SourceImage(write(source / "half.nii.gz", mask + np.float32(0.5))))
    if kind == "NaN":
        return make_case(source, "bad", channels=(SourceImage(write(source / "nan.mha", image * np.nan)),))
    if kind == "frame":
        cine = write(source / "cine.nii.gz", np.stack([image, image]))
        return make_case(source, "bad", channels=(SourceImage(cine, frame=4),))
    if kind == "no cine":
        return make_case(source, "bad", channels=(SourceImage(write(source / "still.nii.gz", image), frame=1),))
    if kind == "unlabelled frame":
        masks = np.stack([mask, mask + np.uint8(1)])
        return make_case(source, "bad", label=SourceImage(write(source / "cine_gt.nii.gz", masks), frame=0))
    if kind == "name":
        return make_case(source, "bad case")
    if kind == "centre":
        return make_case(source, "bad", centre="Bergen")
    return make_case(source, "bad", label_values={1: "cyst"})


PROBLEMS = {
    "no image": "nowhere.nii.gz is missing",
    "cut off": "bad.nii.gz is cut off",
    "unreadable": "bad.nii.gz cannot be read",
    "4D image": "long.nii.gz has 4 dimensions, 8 x 8 x 3 x 2 (X, Y, Z and more); a case has one 3D file per channel",
    "4D label": "long.nii.gz has 4 dimensions, 8 x 8 x 3 x 2",
    "complex": "fourier.nii.gz holds complex numbers",
    "size": "small.nii.gz has 8 x 8 x 2 voxels, bad.nii.gz 8 x 8 x 3",
    "spacing": "wide.nii.gz and bad.nii.gz differ in spacing: (0.6, 0.5, 3) and (0.5, 0.5, 3)",
    "origin": "moved.nii.gz and bad.nii.gz differ in origin",
    "value": "seven.nii.gz holds the value 7; this dataset's label maps hold 0, 1",
    "half": "half.nii.gz holds the value 0.5, which is not an integer",
    "NaN": "nan.mha holds NaN or infinity",
    "frame": "cine.nii.gz has 2 frames; there is no frame 4 (from 0)",
    "no cine": "still.nii.gz has no frames",
    "unlabelled frame": "cine_gt.nii.gz has no label; the frames that have: 1",
    "name": "a case's name may hold letters, digits, _ and - only",
    "centre": "its centre 'Bergen' is none of Oslo, Riga",
    "label": "label cyst is none of the dataset's: background, tumour, node",
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_case_with_a_problem_is_named_and_stops_or_is_listed(
    cases: list[SourceCase], source: Path, tmp_path: Path, kind: str
) -> None:
    cases.append(broken(source, kind))
    with pytest.raises(DataError) as stopped:
        run(cases, tmp_path / "raw")
    assert PROBLEMS[kind] in str(stopped.value)
    assert "bad" in str(stopped.value)
    assert not (tmp_path / "raw" / "Dataset601_Oslo" / "dataset.json").exists()
    run(cases, tmp_path / "raw", Options(on_error="skip"))
    folder = tmp_path / "raw" / "Dataset601_Oslo"
    assert len(read_dataset(folder, "Oslo").cases) == 5
    (skipped,) = read_manifest(folder).skipped
    assert PROBLEMS[kind] in skipped.reason
    assert not [path for path in folder.rglob("*") if "bad" in path.name]


def test_a_label_can_take_its_images_header(cases: list[SourceCase], source: Path, tmp_path: Path) -> None:
    mask = np.ones((3, 8, 8), dtype=np.uint8)
    cases.append(make_case(source, "moved", label=SourceImage(write(source / "moved_seg.nii.gz", mask, origin=5.0))))
    run(cases, tmp_path / "raw", Options(headers="image"))
    folder = tmp_path / "raw" / "Dataset601_Oslo"
    label = sitk.ReadImage(str(folder / "labelsTr" / "moved.nii.gz"))
    assert label.GetOrigin() == (0.0, 0.0, 0.0)
    assert (folder / "labelsTr" / "case0.nii.gz").read_bytes() == (source / "case0_seg.nii.gz").read_bytes()


def test_axes_not_quite_at_right_angles_are_put_right(cases: list[SourceCase], source: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, (8, 8, 3)).astype(np.int16)
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[0, 1] = 0.01
    affine[:3, 3] = 7, 8, 9
    for name, array in (("tilted", values), ("tilted_seg", np.ones((8, 8, 3), dtype=np.uint8))):
        image = nibabel.Nifti1Image(array, affine)
        image.set_qform(None, code=0)
        nibabel.save(image, source / f"{name}.nii.gz")
    with pytest.raises(RuntimeError, match="orthonormal"):  # nnU-Net's reader would meet the same
        sitk.ReadImage(str(source / "tilted.nii.gz"))
    cases[0] = SourceCase(
        "case0",
        "Oslo",
        (SourceImage(source / "tilted.nii.gz"),),
        SourceImage(source / "tilted_seg.nii.gz"),
        {1: "tumour"},
    )
    run(cases, tmp_path / "raw")
    written = sitk.ReadImage(str(tmp_path / "raw" / "Dataset601_Oslo" / "imagesTr" / "case0_0000.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(written), values.transpose())
    assert written.GetSpacing() == pytest.approx((1, 1, 5), abs=1e-3)
    assert written.GetOrigin() == pytest.approx((-7, -8, 9), abs=1e-6)  # ITK's x and y run the other way
    assert written.GetDirection() == pytest.approx((-1, 0, 0, 0, -1, 0, 0, 0, 1), abs=0.01)


def test_two_cases_of_one_name_are_both_refused(cases: list[SourceCase], source: Path, tmp_path: Path) -> None:
    plan = plan_conversion(ScanResult((*cases, cases[0]), ("MRI",)), CENTRES, LABELS)
    assert [issue.line for issue in plan.all_problems] == ["Oslo: case0: 2 cases of Oslo have this name"] * 2


def test_what_a_reader_reports_is_in_the_manifest(cases: list[SourceCase], tmp_path: Path) -> None:
    run(
        cases,
        tmp_path / "raw",
        Options(on_error="skip"),
        problems=(ConversionIssue("p9", "its mask is missing", "Oslo"), ConversionIssue("stray", "no centre is known")),
        left_out=(ConversionIssue("p7", "not annotated", "Oslo"),),
    )
    manifest = read_manifest(tmp_path / "raw" / "Dataset601_Oslo")
    assert [(entry.name, entry.reason) for entry in manifest.skipped] == [
        ("p9", "its mask is missing"),
        ("stray", "no centre is known"),
    ]
    assert [entry.name for entry in manifest.left_out] == ["p7"]


def test_an_empty_label_map_is_noted(cases: list[SourceCase], source: Path, tmp_path: Path) -> None:
    empty = write(source / "empty.nii.gz", np.zeros((3, 8, 8), dtype=np.uint8))
    cases[2] = make_case(source, "case2", label=SourceImage(empty))
    run(cases, tmp_path / "raw")
    assert read_manifest(tmp_path / "raw" / "Dataset601_Oslo").cases["case2"].notes == ["the label map is empty"]


def test_an_interrupted_conversion_continues_where_it_stopped(cases: list[SourceCase], tmp_path: Path) -> None:
    def interrupt(case: SourceCase) -> None:
        if case.name == "case2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cases, tmp_path / "raw", progress=Silent(interrupt))
    folder = tmp_path / "raw" / "Dataset601_Oslo"
    assert not (folder / "dataset.json").exists()
    first = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    assert len(first) == 6
    progress = Silent()
    run(cases, tmp_path / "raw", progress=progress)
    assert progress.seen == ["case3", "case4", "far"]
    assert {path: path.stat().st_mtime_ns for path in first} == first
    run(cases, tmp_path / "whole")
    assert content(folder / "imagesTr") == content(tmp_path / "whole" / "Dataset601_Oslo" / "imagesTr")


def test_damaged_files_and_changed_sources_are_converted_again(
    cases: list[SourceCase], source: Path, tmp_path: Path
) -> None:
    run(cases, tmp_path / "raw")
    folder = tmp_path / "raw" / "Dataset601_Oslo"
    with (folder / "imagesTr" / "case1_0000.nii.gz").open("r+b") as file:
        file.write(b"rot")
    write(source / "case3_seg.nii.gz", np.ones((3, 8, 8), dtype=np.uint8))
    (folder / "labelsTr" / "case4.nii.gz").unlink()
    progress = Silent()
    run(cases, tmp_path / "raw", progress=progress)
    assert progress.seen == ["case1", "case3", "case4"]
    assert read(folder / "labelsTr" / "case3.nii.gz").all()


def test_folders_of_others_are_left_alone(cases: list[SourceCase], tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "Dataset601_Oslo"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"Dataset601_Oslo is there and has no manifest.json"):
        run(cases, tmp_path / "raw")
    assert [path.name for path in (tmp_path / "raw").rglob("*")] == ["Dataset601_Oslo", "mine.txt"]


def test_other_settings_need_another_folder(cases: list[SourceCase], tmp_path: Path) -> None:
    run(cases, tmp_path / "raw")
    with pytest.raises(DataError, match="was converted with another files; choose another folder"):
        run(cases, tmp_path / "raw", Options(files="symlink"))
    with pytest.raises(DataError, match="holds case0, which the source no longer has"):
        run(cases[1:], tmp_path / "raw")


def test_several_processes_write_the_same(cases: list[SourceCase], source: Path, tmp_path: Path) -> None:
    cases.append(make_case(source, "bad", label=SourceImage(source / "case0.nii.gz")))
    one = run(cases, tmp_path / "one", Options(on_error="skip"))
    two = run(cases, tmp_path / "two", Options(on_error="skip", processes=2))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert [entry.manifest for entry in one] == [entry.manifest for entry in two]


def test_too_small_a_disk_is_seen_before_anything_is_written(
    cases: list[SourceCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: real._replace(free=100))
    with pytest.raises(ConfigError, match=r"GiB are needed .* make room, or link files"):
        run(cases, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    run(cases, tmp_path / "raw", Options(files="hardlink"))


def test_nothing_found_is_an_error() -> None:
    with pytest.raises(DataError, match="no case was found; the first problem: a: its mask is missing"):
        plan_conversion(
            ScanResult((), ("MRI",), problems=(ConversionIssue("a", "its mask is missing"),)), CENTRES, LABELS
        )


def test_a_killed_conversion_continues_from_its_manifest(cases: list[SourceCase], tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        run(cases, tmp_path / "raw", progress=Silent(lambda case: os._exit(9) if case.name == "case2" else None))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    run(cases, tmp_path / "raw")
    folder = tmp_path / "raw" / "Dataset601_Oslo"
    assert len(read_dataset(folder, "Oslo").cases) == 5
    assert json.loads((folder / "manifest.json").read_text())["finished"]
