"""Post-processing: nnU-Net's voxels, its files, and what is refused."""

from __future__ import annotations

import json
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.postprocessing.remove_connected_components import (
    apply_postprocessing,
    entry_point_apply_postprocessing,
    remove_all_but_largest_component_from_segmentation,
)

from fednnunet.errors import DataError
from fednnunet.models.postprocessing import MOST_BYTES, Postprocessing


def random_segmentation(seed: int, shape: tuple[int, ...] = (4, 12, 12)) -> np.ndarray:
    return np.random.default_rng(seed).choice(4, size=shape, p=[0.7, 0.1, 0.1, 0.1]).astype(np.uint8)


@pytest.mark.parametrize("shape", [(4, 12, 12), (1, 20, 20)], ids=["3d", "2d"])
@pytest.mark.parametrize("seed", range(3))
def test_voxels_are_those_of_nnunets_function_step_by_step(seed: int, shape: tuple[int, ...]) -> None:
    segmentation = random_segmentation(seed, shape)
    before = segmentation.copy()
    expected = remove_all_but_largest_component_from_segmentation(segmentation, [1, 2, 3])
    expected = remove_all_but_largest_component_from_segmentation(expected, [(2, 3)])
    expected = remove_all_but_largest_component_from_segmentation(expected, 1)
    processed = Postprocessing.of([(1, 2, 3), (2, 3), (1,)]).apply(segmentation)
    np.testing.assert_array_equal(processed, expected)
    assert processed.dtype == segmentation.dtype
    assert (processed != segmentation).any()
    np.testing.assert_array_equal(segmentation, before)


def test_components_that_touch_at_a_corner_are_one_and_equal_ones_stay() -> None:
    segmentation = np.array([[[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]])
    expected = np.array([[[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]])
    np.testing.assert_array_equal(Postprocessing.of([(1,)]).apply(segmentation), expected)
    nothing = np.zeros((1, 4, 4), dtype=np.uint8)
    np.testing.assert_array_equal(Postprocessing.of([(1,)]).apply(nothing), nothing)


def test_nnunets_command_does_the_same_with_the_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    postprocessing = Postprocessing.of([(1, 2, 3), (2,)])
    postprocessing.write(tmp_path)
    given = tmp_path / "given"
    given.mkdir()
    segmentation = random_segmentation(5)
    sitk.WriteImage(sitk.GetImageFromArray(segmentation), str(given / "case.nii.gz"))
    (given / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO", "plans_name": "nnUNetPlans"}))
    (given / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}))
    command = f"-i {given} -o {tmp_path / 'done'} -pp_pkl_file {tmp_path / 'postprocessing.pkl'} -np 1"
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_apply_postprocessing", *command.split()])
    # A new process would take seconds of imports.
    monkeypatch.setattr("multiprocessing.get_context", lambda method: SimpleNamespace(Pool=ThreadPool))
    entry_point_apply_postprocessing()
    done = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "done" / "case.nii.gz")))
    np.testing.assert_array_equal(done, postprocessing.apply(segmentation))
    assert (done != segmentation).any()


def test_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    for postprocessing in (Postprocessing.of([(1, 2), (2,)]), Postprocessing.of([])):
        postprocessing.write(tmp_path)
        assert Postprocessing.read(tmp_path / "postprocessing.json") == postprocessing
        functions, arguments = load_pickle(str(tmp_path / "postprocessing.pkl"))
        segmentation = random_segmentation(7)
        expected = apply_postprocessing(segmentation, functions, arguments)
        np.testing.assert_array_equal(postprocessing.apply(segmentation), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["postprocessing.json", "postprocessing.pkl"]


def nnunets_json(*labels: Any, function: str = "remove_all_but_largest_component_from_segmentation") -> dict[str, Any]:
    """What ``determine_postprocessing`` writes, for these ``labels_or_regions``."""
    scores = {"foreground_mean": {"Dice": float("nan")}, "mean": {}}
    return {
        "input_folder": scores,
        "postprocessed": scores,
        "postprocessing_fns": [function] * len(labels),
        "postprocessing_kwargs": [{"labels_or_regions": of_step} for of_step in labels],
    }


def test_nnunets_own_json_is_read_instead_of_its_pickle(tmp_path: Path) -> None:
    path = tmp_path / "postprocessing.json"
    path.write_text(json.dumps(nnunets_json([1, 2, 3], [2, 3], 1)))
    assert Postprocessing.read(path) == Postprocessing.of([(1, 2, 3), (2, 3), (1,)])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "largest_component: is missing"),
        ([], "the post-processing: "),
        ({"largest_component": [{"labels": [1]}], "fill_holes": []}, "unknown key fill_holes"),
        ({"largest_component": [{"labels": []}]}, "largest_component.0.labels"),
        ({"largest_component": [{"labels": [0]}]}, "largest_component.0.labels.0"),
        ({"largest_component": [{"labels": [True]}]}, "largest_component.0.labels.0"),
        ({"largest_component": [{"labels": [1.0]}]}, "largest_component.0.labels.0"),
        ({"largest_component": [{"labels": [10**9]}]}, "largest_component.0.labels.0"),
        (nnunets_json(1, function="os.system"), "os.system is unknown"),
        (nnunets_json({"a": 1}), "largest_component.0.labels.0"),
        ({**nnunets_json(1), "postprocessing_kwargs": []}, "lists of one length"),
        ({**nnunets_json(1), "postprocessing_kwargs": [{}]}, "must have labels_or_regions"),
        (
            {**nnunets_json(1), "postprocessing_kwargs": [{"labels_or_regions": 1, "background_label": 2}]},
            "background_label must be 0",
        ),
    ],
)
def test_json_that_is_no_postprocessing_is_one_line(tmp_path: Path, content: Any, problem: str) -> None:
    path = tmp_path / "postprocessing.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as raised:
        Postprocessing.read(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x80\x04\x95", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * (MOST_BYTES + 1), "has more than"),
        (None, "cannot be read: No such file or directory"),
    ],
    ids=["pickle", "nested", "large", "missing"],
)
def test_files_that_are_no_json_are_one_line(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "postprocessing.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as raised:
        Postprocessing.read(path)
    assert str(path) in str(raised.value)


def test_labels_that_the_model_does_not_segment_are_named() -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    Postprocessing.of([(1, 2), (2,)]).check_labels(labels)
    with pytest.raises(DataError, match="label value 3, which the model does not segment"):
        Postprocessing.of([(3,)]).check_labels(labels)
