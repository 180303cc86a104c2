"""The decision, from sums worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from fednnunet.best_configuration.decision import decide
from fednnunet.best_configuration.scored_labels import MOST_OVERLAPPING, ScoredLabels, states_of
from fednnunet.best_configuration.sums import CandidateSums, LabelSum, Model, NodeSums, StateSums
from fednnunet.errors import DataError

ONE = {"background": 0, "tumour": 1}
TWO = {"background": 0, "liver": 1, "tumour": 2}


def tell(node: str, labels: Mapping[str, int], dice: Mapping[str, Mapping[str, Sequence[float]]]) -> NodeSums:
    """Sums of a node, of the Dice of its cases by configuration and key of the label; without post-processing."""
    models = [Model(trainer="nnUNetTrainer", plans="nnUNetPlans", configuration=name) for name in dice]
    candidates = [
        CandidateSums(
            models=[number],
            states=[
                StateSums(
                    whole=False,
                    labels=[],
                    sums={key: LabelSum(dice=math.fsum(cases), cases=len(cases)) for key, cases in by_label.items()},
                )
            ],
        )
        for number, by_label in enumerate(dice.values())
    ]
    return NodeSums(
        node=node,
        num_cases=10,
        folds=[0],
        labels=dict(labels),
        models=models,
        digests=[{"0": 64 * "0"}] * len(models),
        ensembles=False,
        postprocessing=False,
        candidates=candidates,
    )


def test_each_case_weighs_the_same_and_labels_are_averaged_last() -> None:
    oslo = tell("Oslo", TWO, {"2d": {"1": [0.2, 0.4, 0.6], "2": []}, "3d_fullres": {"1": [0.5] * 3, "2": [0.0]}})
    porto = tell("Porto", TWO, {"2d": {"1": [0.8], "2": [1.0, 0.5]}, "3d_fullres": {"1": [0.9], "2": [0.9, 0.9]}})
    decision = decide([oslo, porto])
    means = [candidate.of_labels for candidate in decision.candidates]
    assert means == [pytest.approx((2.0 / 4, 1.5 / 2)), pytest.approx((2.4 / 4, 1.8 / 3))]
    assert [candidate.dice for candidate in decision.candidates] == pytest.approx([0.625, 0.6])
    assert [model.configuration for model in decision.best.models] == ["2d"]
    assert (decision.after, decision.steps) == (decision.best.dice, ())


@pytest.mark.parametrize("seed", range(5))
def test_decision_does_not_depend_on_how_cases_are_spread_over_nodes(seed: int) -> None:
    """Two configurations with the same Dice in other cases are equally good: sums may differ in the last digit."""
    rng = np.random.default_rng(seed)
    values = rng.random(50)
    dice = {"2d": rng.permutation(values), "3d_fullres": rng.permutation(values)}
    for _ in range(5):
        cuts = sorted(rng.integers(0, 50, 4))
        nodes = [
            tell(f"node {number}", ONE, {name: {"1": list(part)} for name, part in zip(dice, parts, strict=True)})
            for number, parts in enumerate(zip(*(np.split(of_model, cuts) for of_model in dice.values()), strict=True))
        ]
        decision = decide(nodes)
        assert [model.configuration for model in decision.best.models] == ["2d"]
        assert decision.best.dice == pytest.approx(values.mean(), rel=0, abs=1e-15)


def test_without_any_dice_there_is_no_decision() -> None:
    with pytest.raises(DataError, match="no held-out case of Oslo and Porto holds a label"):
        decide([tell(node, ONE, {"2d": {"1": []}}) for node in ("Oslo", "Porto")])
    with pytest.raises(DataError, match="each configuration lacks a Dice of another label"):
        decide([tell("Oslo", TWO, {"2d": {"1": [0.5], "2": []}, "3d_fullres": {"1": [], "2": [0.5]}})])


def test_segmentations_that_are_scored_grow_with_overlap_only() -> None:
    organs = ScoredLabels.of({"background": 0, **{f"organ {value}": value for value in range(1, 101)}})
    assert len(states_of(organs)) == 2 * (1 + 100)
    nested = ScoredLabels.of({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3})
    assert len(states_of(nested)) == 2 * (1 + 2**3 - 1)
    assert len(states_of(nested, postprocessing=False)) == 1
    many = ScoredLabels.of({"background": 0, **{str(n): list(range(1, n + 1)) for n in range(2, MOST_OVERLAPPING + 3)}})
    with pytest.raises(DataError, match=r"7 regions overlap .*--no-postprocessing"):
        states_of(many)
    assert len(states_of(many, postprocessing=False)) == 1
