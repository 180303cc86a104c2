"""Scores against MONAI, brute force and hand-worked numbers."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from nnunetv2.evaluation.evaluate_predictions import compute_metrics

from fednnunet.evaluation.functional import dice_score, hausdorff_distance_95, surface_dice, volume_error
from fednnunet.evaluation.metrics import (
    DiceScore,
    HausdorffDistance95,
    LabelScore,
    SegmentationMetrics,
    SurfaceDice,
    VolumeError,
)


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    labels: dict[str, Any],
    spacing: tuple[float, ...],
    tolerance: float,
) -> list[LabelScore]:
    return SegmentationMetrics(labels, tolerance)(prediction, reference, spacing)


def one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.uint8))[None, None]


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(6, 9, 11), (1, 12, 12), (17, 13)]),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (0.5, 1.25, 2.0)]),
)
@settings(max_examples=60, deadline=None)
def test_scores_agree_with_monai(seed: int, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = rng.random(shape) < 0.3, rng.random(shape) < 0.3
    prediction.flat[0] = reference.flat[-1] = True
    size = spacing[-len(shape) :]
    theirs = compute_dice(one_hot(prediction), one_hot(reference)).item()
    assert dice_score(prediction, reference) == pytest.approx(theirs, abs=1e-6)
    theirs = compute_hausdorff_distance(
        one_hot(prediction), one_hot(reference), include_background=True, percentile=95, spacing=list(size)
    ).item()
    assert hausdorff_distance_95(prediction, reference, size) == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    tolerance = float(rng.uniform(0.1, 3))
    theirs = compute_surface_dice(
        one_hot(prediction), one_hot(reference), [tolerance], include_background=True, spacing=list(size)
    ).item()
    assert surface_dice(prediction, reference, size, tolerance) == pytest.approx(theirs, abs=1e-6)


def test_distance_is_in_the_unit_of_the_spacing() -> None:
    prediction, reference = np.zeros((3, 10, 10)), np.zeros((3, 10, 10))
    prediction[1, 2, 3] = reference[1, 6, 3] = 1
    assert hausdorff_distance_95(prediction, reference, (5.0, 0.5, 2.0)) == pytest.approx(4 * 0.5)
    assert hausdorff_distance_95(prediction, reference, (1.0, 1.0, 1.0)) == pytest.approx(4)


def test_small_far_part_moves_the_95th_percentile_little() -> None:
    reference = np.zeros((60, 60))
    reference[10:30, 10:30] = 1
    prediction = reference.copy()
    prediction[55, 55] = 1  # one of 77 surface pixels
    assert hausdorff_distance_95(prediction, reference, (1, 1)) == 0


def test_empty_masks_follow_the_documented_rule() -> None:
    empty, full = np.zeros((4, 5, 6)), np.ones((4, 5, 6))
    spacing = (2.0, 1.0, 0.5)
    diagonal = np.sqrt((3 * 2.0) ** 2 + 4**2 + (5 * 0.5) ** 2)
    assert dice_score(empty, empty) == 1
    assert hausdorff_distance_95(empty, empty, spacing) == 0
    for prediction, reference in ((empty, full), (full, empty)):
        assert dice_score(prediction, reference) == 0
        assert hausdorff_distance_95(prediction, reference, spacing) == pytest.approx(diagonal)
        assert surface_dice(prediction, reference, spacing, 100.0) == 0
    assert surface_dice(empty, empty, spacing, 1.0) == 1
    assert volume_error(empty, empty) == 0
    assert volume_error(empty, full) == -1
    assert np.isnan(volume_error(full, empty))
    labels = {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}
    prediction, reference = np.array([[[1, 1, 1, 2, 0]]]), np.array([[[1, 1, 0, 0, 3]]])
    scores = score_case(prediction, reference, labels, spacing, 1.0)
    assert [score.empty for score in scores] == [None, "reference", "prediction", "both"]
    assert scores[0].volume_error == 0.5


@given(seed=st.integers(0, 2**32 - 1), spacing=st.tuples(*[st.floats(0.3, 5)] * 3))
@settings(max_examples=40, deadline=None)
def test_distance_is_that_of_every_pair_of_surface_voxels(seed: int, spacing: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((2, 5, 6, 7)) < rng.uniform(0.05, 0.9)
    masks[:, 0, 0, 0] = True
    surfaces = []
    for mask in masks:
        padded = np.pad(mask, 1)
        neighbours = [np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (-1, 1)]
        surfaces.append(np.argwhere(mask & ~np.logical_and.reduce(neighbours)) * spacing)
    pairs = np.linalg.norm(surfaces[0][:, None] - surfaces[1][None], axis=-1)
    expected = max(np.percentile(pairs.min(axis=1), 95), np.percentile(pairs.min(axis=0), 95))
    assert hausdorff_distance_95(*masks, spacing) == pytest.approx(expected)
    assert hausdorff_distance_95(*masks[::-1], spacing) == pytest.approx(expected)


def test_stray_voxels_in_a_full_size_volume_cost_little_memory() -> None:
    reference = np.zeros((170, 512, 512), dtype=bool)
    reference[60:100, 200:280, 150:230] = True
    prediction = np.roll(reference, 4, axis=1)
    prediction[0, 0, 0] = prediction[-1, -1, -1] = True
    tracemalloc.start()
    hd95 = hausdorff_distance_95(prediction, reference, (1.0, 0.7, 0.7))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert hd95 == pytest.approx(4 * 0.7)
    assert peak < 6 * reference.nbytes


def test_regions_are_unions_and_ignored_voxels_do_not_count() -> None:
    reference = np.array([[[0, 1, 2, 3, 3]]])
    prediction = np.array([[[0, 1, 1, 1, 2]]])
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    scores = {score.label: score.dsc for score in score_case(prediction, reference, labels, (1.0, 1.0, 1.0), 1.0)}
    assert scores == {"whole": 1.0, "core": 0.0}


LABELS: dict[str, dict[str, Any]] = {
    "labels": {"background": 0, "a": 1, "b": 2, "c": 3},
    "labels and ignore": {"background": 0, "a": 1, "b": 2, "ignore": 3},
    "regions": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edge": [1], "middle": 2},
    "regions and ignore": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
}


def random_label_maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference of values 0 to 3, some of which are missing now and then."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), 7, 8)
    prediction, reference = (rng.choice(rng.integers(0, 4, size=3), size=shape) for _ in range(2))
    return prediction.astype(np.uint8), reference.astype(np.uint8)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@given(seed=st.integers(0, 2**32 - 1))
def test_dsc_is_that_of_nnunets_evaluation(labels: dict[str, Any], seed: int) -> None:
    prediction, reference = random_label_maps(seed)
    scored = {name: value for name, value in labels.items() if name not in ("background", "ignore")}
    keys = {name: tuple(value) if isinstance(value, list) else value for name, value in scored.items()}
    files = {"prediction": prediction[None], "reference": reference[None]}
    reader = SimpleNamespace(read_seg=lambda file: (files[file], {}))
    theirs = compute_metrics("reference", "prediction", reader, list(keys.values()), labels.get("ignore"))["metrics"]
    ours = {score.label: score.dsc for score in score_case(prediction, reference, labels, (1.0, 1.0, 1.0), 1.0)}
    # Nothing to find and nothing found: nnU-Net says NaN, we say 1.
    assert ours == pytest.approx({name: np.nan_to_num(theirs[key]["Dice"], nan=1.0) for name, key in keys.items()})


@pytest.mark.parametrize(
    "labels", [LABELS["labels and ignore"], LABELS["regions and ignore"]], ids=["labels", "regions"]
)
@given(seed=st.integers(0, 2**32 - 1))
def test_ignored_voxels_are_background_in_both(labels: dict[str, Any], seed: int) -> None:
    prediction, reference = random_label_maps(seed)
    spacing = (3.0, 1.0, 0.5)
    known = reference != labels["ignore"]
    plain = {name: value for name, value in labels.items() if name != "ignore"}
    ours = score_case(prediction, reference, labels, spacing, 1.0)
    theirs = score_case(prediction * known, reference * known, plain, spacing, 1.0)
    np.testing.assert_equal(ours, theirs)  # NaN where a volume has no reference


def test_two_dimensional_images_ignore_their_missing_axis() -> None:
    prediction, reference = np.zeros((1, 8, 8)), np.zeros((1, 8, 8))
    prediction[0, 1, 1] = reference[0, 1, 4] = 1
    (score,) = score_case(prediction, reference, {"background": 0, "a": 1}, (999.0, 1.0, 2.0), 6.0)
    assert score.hd95 == pytest.approx(6)
    assert score.surface_dsc == 1


@pytest.mark.parametrize(
    ("prediction", "spacing", "problem"),
    [(np.zeros((2, 2)), (1.0, 1.0, 1.0), "shape"), (np.zeros((2, 2, 2)), (1.0,), "spacing has 1")],
)
def test_what_does_not_fit_is_refused(prediction: np.ndarray, spacing: tuple[float, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        hausdorff_distance_95(prediction, np.zeros((2, 2, 2)), spacing)


def test_metrics_average_over_cases() -> None:
    dice, distance = DiceScore(), HausdorffDistance95()
    first, second = torch.zeros(1, 6, 6), torch.zeros(1, 6, 6)
    first[0, 2, 2] = second[0, 2, 5] = 1
    for prediction, reference in ((first, first), (first, second)):
        dice.update(prediction, reference)
        distance.update(prediction, reference, (1.0, 1.0, 1.0))
    assert dice.compute() == pytest.approx(0.5)
    assert distance.compute() == pytest.approx(1.5)


def test_cases_with_one_empty_mask_count_and_are_counted() -> None:
    distance = HausdorffDistance95()
    full, empty = torch.ones(1, 4, 5), torch.zeros(1, 4, 5)
    for prediction, reference in ((full, full), (empty, empty), (empty, full), (full, empty)):
        distance.update(prediction, reference, (1.0, 1.0, 1.0))
    assert distance.num_undefined == 2
    assert distance.compute() == pytest.approx(2 * 5 / 4)  # diagonal of 3 x 4
    distance.reset()
    assert distance.num_undefined == 0


@given(seed=st.integers(0, 2**32 - 1), cases=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_scores_of_a_case_are_exactly_those_of_the_functions(seed: int, cases: int) -> None:
    rng = np.random.default_rng(seed)
    labels = {"background": 0, "a": 1, "whole": [1, 2]}
    spacing, tolerance = (3.0, 0.7, 0.7), 1.0
    metrics = SegmentationMetrics(labels, tolerance)
    all_scores = []
    for _ in range(cases):
        prediction, reference = (rng.choice(rng.integers(0, 3, size=2), size=(3, 6, 7)) for _ in range(2))
        scores = metrics(prediction, reference, spacing)
        for score, values in zip(scores, ([1], [1, 2]), strict=True):
            masks = np.isin(prediction, values), np.isin(reference, values)
            expected = (
                dice_score(*masks),
                hausdorff_distance_95(*masks, spacing),
                surface_dice(*masks, spacing, tolerance),
                volume_error(*masks),
            )
            np.testing.assert_array_equal(score[1:5], expected)  # bit for bit; NaN equals NaN
        all_scores.append(scores)
    for index, (_, means) in enumerate(metrics.compute().items()):
        columns = np.array([scores[index][1:5] for scores in all_scores], dtype=float)
        defined = [column[np.isfinite(column)] for column in columns.T]
        expected_means = [column.mean() if column.size else np.nan for column in defined]
        np.testing.assert_allclose(list(means.values()), expected_means, rtol=1e-12)


def test_metrics_of_equal_values_stay_apart() -> None:
    """The first case is perfect in all of them; torchmetrics' compute groups would keep one state for two metrics."""
    metrics = SegmentationMetrics({"background": 0, "a": 1}, tolerance=1.0)
    perfect = np.zeros((1, 8, 8), dtype=int)
    perfect[0, 2:4, 2:4] = 1
    metrics(perfect, perfect, (1.0, 1.0, 1.0))
    metrics(np.roll(perfect, 1, axis=2), perfect, (1.0, 1.0, 1.0))
    assert metrics.compute()["a"] == {"dsc": 0.75, "hd95": 0.5, "surface_dsc": 1.0, "volume_error": 0.0}


def test_known_surface_distances_are_used() -> None:
    """They are most of the work, and two metrics need them."""
    prediction, reference = torch.tensor([[1, 0, 0]]), torch.tensor([[0, 0, 1]])
    distances = np.array([7.0]), np.array([5.0])
    assert HausdorffDistance95()(prediction, reference, (1.0, 1.0), distances) == 7
    assert SurfaceDice(6.0)(prediction, reference, (1.0, 1.0), distances) == 0.5


def test_cases_without_a_value_do_not_enter_the_mean() -> None:
    metric = VolumeError()
    full, empty = torch.ones(1, 4, 5), torch.zeros(1, 4, 5)
    assert torch.isnan(metric(full, empty))
    assert metric(empty, full) == -1
    assert metric.compute() == -1
