"""Dice of one case's labels, before and after each step of post-processing; as nnU-Net computes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation as keep_largest,
)
from scipy.ndimage import find_objects

from fednnunet.best_configuration.scored_labels import Label, ScoredLabels, State

Box = tuple[slice, ...]


def dice_by_state(
    segmentation: np.ndarray,
    reference: np.ndarray,
    labels: ScoredLabels,
    states: Mapping[State, Sequence[int]],
) -> dict[State, dict[int, float]]:
    """Dice of the labels that each state changes; NaN where neither prediction nor reference has the label.

    Each is that of nnU-Net's ``compute_metrics`` on the segmentation after ``load_postprocess_save``. Only the box
    that holds what is looked at is computed on, which changes neither components nor Dice.

    Args:
        segmentation: predicted label map of integers (Z, Y, X).
        reference: reference label map of the same shape.
        labels: labels to score.
        states: as :func:`~fednnunet.best_configuration.scored_labels.states_of` gives them.

    Returns:
        State to number of the label to Dice.
    """
    known = _boxes(reference)
    found: dict[State, dict[int, float]] = {}
    for whole in sorted({state.whole for state in states}):
        before = _keep_largest(segmentation, labels.foreground) if whole else segmentation
        predicted = _boxes(before)
        for state, changed in states.items():
            if state.whole != whole:
                continue
            found[state] = {}
            for together in _together(state, changed):
                values = {value for number in together for value in labels.held(number)}
                box = _union([boxes[value] for boxes in (known, predicted) for value in values if value in boxes])
                if box is None:
                    found[state] |= dict.fromkeys(together, math.nan)
                    continue
                after, truth = before[box], reference[box]
                for step in state.steps:
                    after = keep_largest(after, list(labels.held(step)))
                found[state] |= {n: dice(after, truth, labels.values[n], labels.ignore) for n in together}
    return found


def dice(segmentation: np.ndarray, reference: np.ndarray, label: Label, ignore: int | None) -> float:
    """Dice of a label or region outside of ignored voxels; NaN where both masks are empty there.

    As in nnU-Net's ``compute_metrics``: 2 TP / (2 TP + FP + FN).
    """
    masks = (region_or_label_to_mask(label_map, label) for label_map in (reference, segmentation))
    ignored = None if ignore is None else reference == ignore
    true_positive, false_positive, false_negative, _ = map(int, compute_tp_fp_fn_tn(*masks, ignored))
    if true_positive + false_positive + false_negative == 0:
        return math.nan
    return 2 * true_positive / (2 * true_positive + false_positive + false_negative)


def _together(state: State, changed: Sequence[int]) -> list[Sequence[int]]:
    """Labels to look at in one box: a step's group, or without steps each label by itself."""
    return [changed] if state.steps else [(number,) for number in changed]


def _keep_largest(segmentation: np.ndarray, values: Sequence[int]) -> np.ndarray:
    box = _union([box for value, box in _boxes(segmentation).items() if value in values])
    if box is None:
        return segmentation
    kept = segmentation.copy()
    kept[box] = keep_largest(segmentation[box], list(values))
    return kept


def _boxes(label_map: np.ndarray) -> dict[int, Box]:
    """Value of each label in a label map to the box that holds it."""
    return {number: box for number, box in enumerate(find_objects(label_map), start=1) if box is not None}


def _union(boxes: Sequence[Box]) -> Box | None:
    """The box that holds all of these; None of none."""
    if not boxes:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
