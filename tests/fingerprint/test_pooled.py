"""The federated fingerprint is nnU-Net's of the pooled images, however they are spread over nodes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from fednnunet.config.groups import ModelConfig
from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.datasets.staging import stage_dataset
from fednnunet.fingerprint import DatasetFingerprint, extract, merge_fingerprints
from fednnunet.fingerprint.bins import BINS, histogram_bins_over
from fednnunet.fingerprint.geometry import CaseSizes, count_below
from fednnunet.fingerprint.order_statistics import GeometrySearch
from fednnunet.fingerprint.quantise import quantise_fingerprint, quantise_range
from fednnunet.planning.plans import make_plans

CASES = 20
KINDS = ("integer MR", "real MR", "integer CT")
SAMPLES = 2e5
"""Foreground voxels sampled here, instead of nnU-Net's 1e8 (both ways)."""
INTENSITIES = "foreground_intensity_properties_per_channel"
ROUNDING = 2e-6
"""nnU-Net averages in float32."""


def write_images(folder: Path, kind: str) -> None:
    """Cases of different size, spacing, field of view and scanner; two channels; one without foreground."""
    rng = np.random.default_rng(7)
    for number in range(CASES):
        shape = tuple(int(size) for size in rng.integers((10, 30, 30), (16, 60, 60)))
        spacing = [float(s) for s in rng.uniform((2.5, 0.8, 0.8), (4.0, 1.4, 1.4))]
        label = np.zeros(shape, dtype=np.uint8)
        if number:
            label[2:8, 5 : 5 + number % 7 + 3, 8:20] = 1
        for channel in range(2):
            image = rng.normal(100 + 30 * channel, 20, shape) * rng.uniform(0.5, 2) + 40 * label
            image[:, : number % 5] = 0  # cropped away by nnU-Net
            image = np.rint(image) if "integer" in kind else image
            write(folder / "imagesTr" / f"case_{number:03d}_{channel:04d}.nii.gz", image.astype(np.float32), spacing)
        write(folder / "labelsTr" / f"case_{number:03d}.nii.gz", label, spacing)
    names = {"0": "CT", "1": "CT"} if "CT" in kind else {"0": "T1", "1": "T2"}
    description = {"channel_names": names, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**description, "numTraining": CASES}))


def write(path: Path, array: np.ndarray, spacing: Sequence[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = sitk.GetImageFromArray(array)
    file.SetSpacing(spacing[::-1])
    sitk.WriteImage(file, str(path))


@pytest.fixture(scope="module")
def few_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "MAX_FOREGROUND_VOXELS", SAMPLES)
        patch.setattr(extract, "CHUNK", 997)
        yield


Pooled = tuple[str, RawDataset, dict[str, Any]]


@pytest.fixture(scope="module", params=KINDS)
def pooled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, few_samples: None) -> Pooled:
    """All images in one dataset, and the fingerprint of it."""
    folder = tmp_path_factory.mktemp("pooled") / "Dataset101_Pooled"
    write_images(folder, request.param)
    dataset = read_dataset(folder, "everyone")
    return request.param, dataset, extract.extract_fingerprint(dataset)


def federate(dataset: RawDataset, nodes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The fingerprint that nodes with these cases make, by what travels only."""
    parts = [replace(dataset, cases=tuple(dataset.cases[case] for case in cases)) for cases in nodes]
    bins = histogram_bins_over([extract.intensity_ranges(part) for part in parts])
    told = [extract.extract_contribution(part, len(dataset.cases), bins).to_json() for part in parts]
    return merge_fingerprints([DatasetFingerprint.from_json(text) for text in told])


def spread(order: Sequence[int], cuts: Sequence[int]) -> list[list[int]]:
    """Cases in ``order``, cut into nodes."""
    bounds = [0, *sorted(set(cuts)), len(order)]
    return [list(order[a:b]) for a, b in itertools.pairwise(bounds) if a < b]


def assert_pooled(kind: str, merged: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("spacings", "shapes_after_crop"):
        assert sorted(merged[name]) == sorted(expected[name])
    assert merged["median_relative_size_after_cropping"] == expected["median_relative_size_after_cropping"]
    assert merged[INTENSITIES].keys() == expected[INTENSITIES].keys()
    for channel, theirs in expected[INTENSITIES].items():
        ours = merged[INTENSITIES][channel]
        assert ours["min"] == theirs["min"]
        assert ours["max"] == theirs["max"]
        assert ours["mean"] == pytest.approx(theirs["mean"], rel=ROUNDING)
        assert ours["std"] == pytest.approx(theirs["std"], rel=ROUNDING)
        bin_width = 0 if "integer" in kind else 1.1 * (theirs["max"] - theirs["min"]) / BINS
        for name in ("median", "percentile_00_5", "percentile_99_5"):
            assert ours[name] == pytest.approx(theirs[name], abs=bin_width, rel=0)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(CASES)),
    cuts=st.lists(st.integers(1, CASES - 1), min_size=1, max_size=CASES, unique=True),
)
def test_any_spread_of_cases_gives_the_pooled_fingerprint(pooled: Pooled, order: list[int], cuts: list[int]) -> None:
    kind, dataset, expected = pooled
    assert_pooled(kind, federate(dataset, spread(order, cuts)), expected)


def test_one_case_a_node_gives_the_pooled_fingerprint(pooled: Pooled) -> None:
    kind, dataset, expected = pooled
    assert_pooled(kind, federate(dataset, [[case] for case in range(CASES)]), expected)


def test_a_channel_that_some_nodes_lack_is_that_of_the_others(pooled: Pooled, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, dataset, expected = pooled
    both = replace(dataset, cases=dataset.cases[:7])
    first = {"channel_names": {"0": dataset.channel_names["0"]}}
    cases = tuple(replace(case, images=case.images[:1]) for case in dataset.cases[7:])
    one = replace(dataset, dataset_json={**dataset.dataset_json, **first}, cases=cases)
    bins = histogram_bins_over([extract.intensity_ranges(part) for part in (both, one)])
    told = [extract.extract_contribution(part, CASES, bins).to_json() for part in (both, one)]
    merged = merge_fingerprints([DatasetFingerprint.from_json(text) for text in told], ["0", "1"])
    monkeypatch.setattr(extract, "MAX_FOREGROUND_VOXELS", 7 * SAMPLES / CASES)  # as many of each case
    of_both = extract.extract_fingerprint(both)[INTENSITIES]["1"]
    assert_pooled(kind, merged, {**expected, INTENSITIES: {"0": expected[INTENSITIES]["0"], "1": of_both}})


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nnU-Net's three folders are in a test."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.mark.parametrize("planner", ["ExperimentPlanner", "nnUNetPlannerResEncM"])
def test_plans_are_those_of_the_pooled_images(pooled: Pooled, planner: str, nnunet_folders: Path) -> None:
    kind, dataset, expected = pooled
    merged = federate(dataset, spread(list(range(CASES)), [1, 4, 9]))
    model = ModelConfig(planner=planner, overrides={"UNet_base_num_features": 4})
    stage_dataset(dataset, nnunet_folders / "nnUNet_raw")
    theirs = make_plans(dataset.name, expected, model, 0.3)
    # A node plans beside its own few cases, for the federation's number of them.
    node = replace(dataset, name="Dataset102_Node", cases=dataset.cases[1:4])
    stage_dataset(node, nnunet_folders / "nnUNet_raw")
    ours = make_plans(node.name, merged, model, 0.3, num_training=CASES)
    assert {"2d", "3d_fullres"} <= set(ours["configurations"])
    scheme = "CTNormalization" if "CT" in kind else "ZScoreNormalization"
    assert ours["configurations"]["2d"]["normalization_schemes"] == [scheme] * 2
    for channel, statistics in theirs.pop(INTENSITIES).items():
        tolerance = 2 * (statistics["max"] - statistics["min"]) / BINS
        assert ours[INTENSITIES][channel] == pytest.approx(statistics, rel=ROUNDING, abs=tolerance)
    del ours[INTENSITIES]
    assert ours.pop("dataset_name") == "Dataset102_Node"
    assert theirs.pop("dataset_name") == "Dataset101_Pooled"
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


@pytest.mark.parametrize("planner", ["ExperimentPlanner", "nnUNetPlannerResEncM"])
def test_counts_plan_what_the_pooled_images_plan(pooled: Pooled, planner: str, nnunet_folders: Path) -> None:
    """``fingerprint.geometry=sums``: everything that is planned, but for spacings to within a step of the grid."""
    _, dataset, expected = pooled
    nodes = [replace(dataset, cases=dataset.cases[:3]), replace(dataset, cases=dataset.cases[3:])]
    sizes = [CaseSizes.of(extract.case_sizes(node)) for node in nodes]
    search = GeometrySearch(CASES)
    while questions := search.questions():
        counts = [count_below(node, questions) for node in sizes]
        search.add(
            {
                quantity: {
                    number: sum(found[quantity][place] for found in counts) for place, number in enumerate(asked)
                }
                for quantity, asked in questions.items()
            }
        )
    made_up = search.statistics().fingerprint() | {INTENSITIES: expected[INTENSITIES]}
    stage_dataset(dataset, nnunet_folders / "nnUNet_raw")
    model = ModelConfig(planner=planner, overrides={"UNet_base_num_features": 4})
    ours, theirs = (make_plans(dataset.name, fingerprint, model, 0.3, CASES) for fingerprint in (made_up, expected))
    for plans in (ours, theirs):
        plans["spacings"] = [plans.pop("original_median_spacing_after_transp")]
        plans["spacings"] += [c.pop("spacing") for c in plans["configurations"].values() if "spacing" in c]
    assert np.hstack(ours.pop("spacings")) == pytest.approx(np.hstack(theirs.pop("spacings")), rel=4e-4)
    assert ours == theirs


def test_weighted_means_are_not_the_pooled_statistics(pooled: Pooled) -> None:
    """What the histogram is for: between centres that differ, the original's rule loses the variance."""
    _, dataset, expected = pooled
    nodes = [replace(dataset, cases=dataset.cases[:10]), replace(dataset, cases=dataset.cases[10:])]
    merged = merge_fingerprints(
        [DatasetFingerprint.from_json(json.dumps(extract.extract_fingerprint(node))) for node in nodes]
    )
    for channel, theirs in expected[INTENSITIES].items():
        assert merged[INTENSITIES][channel]["std"] < (1 - 100 * ROUNDING) * theirs["std"]


def test_samples_are_drawn_as_nnunet_draws_them(pooled: Pooled) -> None:
    _, dataset, _ = pooled
    case = dataset.cases[3]
    reader = extract._reader(dataset)
    images, label = [str(image) for image in case.images], str(case.label)
    _, _, theirs, _, _ = DatasetFingerprintExtractor.analyze_case(images, label, reader, 5000)
    held, counted = (np.random.RandomState(extract.SAMPLING_SEED) for _ in range(2))
    for values, expected in zip(extract._read(case, reader).foreground, theirs, strict=True):
        drawn = np.empty(5000, dtype=values.dtype)
        counts = extract.draw(held, values, drawn)
        assert np.array_equal(drawn, expected)
        assert np.array_equal(extract.draw(counted, values, samples=5000), counts)
        assert np.array_equal(np.sort(np.repeat(values, counts)), np.sort(expected))


def test_quantised_contributions_hide_cases_and_move_plans_little(pooled: Pooled) -> None:
    _, dataset, expected = pooled
    ranges = extract.intensity_ranges(dataset)
    bins = histogram_bins_over([{channel: quantise_range(r) for channel, r in ranges.items()}])
    contribution = quantise_fingerprint(extract.extract_contribution(dataset, CASES, bins))
    assert contribution.spacings == sorted(contribution.spacings)
    assert all(size % 4 == 0 for shape in contribution.shapes_after_crop for size in shape if size >= 32)
    thin = quantise_fingerprint(contribution.model_copy(update={"shapes_after_crop": [[9, 33, 101]] * CASES}))
    assert thin.shapes_after_crop == [[9, 32, 104]] * CASES
    assert all(float(f"{size:.2g}") == size for spacing in contribution.spacings for size in spacing)
    merged = merge_fingerprints([contribution])
    assert np.median(merged["spacings"], 0) == pytest.approx(np.median(expected["spacings"], 0), rel=0.05)
    assert np.median(merged["shapes_after_crop"], 0) == pytest.approx(
        np.median(expected["shapes_after_crop"], 0), abs=4
    )
    for channel, theirs in expected[INTENSITIES].items():
        ours = merged[INTENSITIES][channel]
        assert ours["min"] <= theirs["min"]
        assert ours["max"] >= theirs["max"]
        assert ours["mean"] == pytest.approx(theirs["mean"], rel=1e-5)
