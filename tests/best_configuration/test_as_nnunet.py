"""The decision of sums over nodes is nnU-Net's own on all nodes' cases in one place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.evaluation import find_best_configuration as nnunets
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
from nnunetv2.postprocessing.remove_connected_components import apply_postprocessing
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from fednnunet.best_configuration.decision import Decision, decide
from fednnunet.best_configuration.decision_files import inference_information
from fednnunet.best_configuration.node_models import nodes_of
from fednnunet.best_configuration.node_sums import sum_up
from fednnunet.best_configuration.scored_labels import ScoredLabels
from fednnunet.best_configuration.sums import NodeSums, check_together, read_sums, write_sums
from tests.best_configuration.conftest import (
    DATASET,
    LABELS,
    PLANS_NAME,
    REGIONS,
    TRAINER,
    FakeNode,
    WriteRuns,
    identifier,
    random_node,
    write_image,
    write_model,
)

Pooled = Callable[..., tuple[dict[str, Any], Any]]


@pytest.fixture
def decide_pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pooled:
    """nnU-Net's ``find_best_configuration`` on all nodes' cases: what it returns, and its post-processing."""
    root = tmp_path / "pooled"
    folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
    for module in ("evaluation.find_best_configuration", "evaluation.accumulate_cv_results"):
        for name, folder in folders.items():
            monkeypatch.setattr(f"nnunetv2.{module}.{name}", str(root / folder), raising=False)
    monkeypatch.setattr("nnunetv2.utilities.file_path_utilities.nnUNet_results", str(root / "results"))
    # A new process would take seconds of imports.
    monkeypatch.setattr("multiprocessing.get_context", lambda method: SimpleNamespace(Pool=ThreadPool))

    def pool(nodes: Mapping[str, FakeNode], folds: Sequence[int] = (0, 1), ensembles: bool = True) -> Any:
        preprocessed = root / "preprocessed" / DATASET
        configurations = list(next(iter(nodes.values())).segmentations)
        for name, node in nodes.items():
            for configuration in configurations:
                folder = root / "results" / DATASET / identifier(configuration)
                write_model(folder, node, configuration, folds, ensembles, prefix=f"{name}_")
            for case, reference in node.references.items():
                write_image(preprocessed / "gt_segmentations" / f"{name}_{case}.nii.gz", reference)
        plans = (root / "results" / DATASET / identifier(configurations[0]) / "plans.json").read_text()
        (preprocessed / f"{PLANS_NAME}.json").write_text(plans)
        models = [{"plans": PLANS_NAME, "configuration": name, "trainer": TRAINER} for name in configurations]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Mean of empty slice")
            best = nnunets.find_best_configuration(DATASET, models, ensembles, num_processes=1, folds=tuple(folds))
        return best, load_pickle(best["best_model_or_ensemble"]["postprocessing_file"])

    return pool


def told_by(runs: Sequence[Path], ensembles: bool = True, folder: Path | None = None) -> list[NodeSums]:
    """Sums of every node, written and read again where there is a folder."""
    told = [sum_up(models, node, None, ensembles, True) for node, models in nodes_of(runs).items()]
    if folder is not None:
        for sums in told:
            write_sums(folder / f"{sums.node}.json", sums)
        told = [read_sums(folder / f"{sums.node}.json") for sums in told]
    check_together([(sums.node, sums) for sums in told])
    return told


def assert_same(decision: Decision, pooled: tuple[dict[str, Any], Any]) -> None:
    best, (functions, arguments) = pooled
    ours = inference_information(decision, DATASET)
    assert list(ours["all_results"]) == list(best["all_results"])
    scores = [math.nan if score is None else score for score in ours["all_results"].values()]
    np.testing.assert_allclose(scores, list(best["all_results"].values()), rtol=0, atol=1e-14)
    chosen, theirs = ours["best_model_or_ensemble"], best["best_model_or_ensemble"]
    for key in ("result_on_crossval_pre_pp", "result_on_crossval_post_pp"):
        assert chosen[key] == pytest.approx(theirs[key], rel=0, abs=1e-14)
    assert chosen["selected_model_or_models"] == theirs["selected_model_or_models"]
    assert ours["considered_models"] == list(best["considered_models"])
    assert (ours["folds"], ours["ensembling_allowed"]) == (list(best["folds"]), best["ensembling_allowed"])
    labels = [one["labels_or_regions"] for one in arguments]
    as_tuples = [tuple(one) if isinstance(one, list | tuple) else (one,) for one in labels]
    assert [step.labels for step in decision.steps if step.kept] == as_tuples
    # What it does, too.
    segmentation = np.random.default_rng(0).integers(0, 4, (3, 12, 12)).astype(np.uint8)
    expected = apply_postprocessing(segmentation, functions, arguments)
    np.testing.assert_array_equal(decision.postprocessing.apply(segmentation), expected)


TASKS: dict[str, dict[str, Any]] = {
    "labels": {"labels": LABELS},
    "one label": {"labels": {"background": 0, "tumour": 1}},
    "regions": {"labels": REGIONS},
    "ignore": {"labels": {**LABELS, "ignore": 3}},
    "regions and ignore": {"labels": {**REGIONS, "ignore": 4}},
    "ensemble of three": {"labels": LABELS, "configurations": {"2d": 1.0, "3d_fullres": 1.2, "3d_lowres": 1.1}},
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_scores_choice_and_postprocessing_are_nnunets_on_the_pooled_cases(
    task: dict[str, Any], seed: int, write_runs: WriteRuns, decide_pooled: Pooled, tmp_path: Path
) -> None:
    nodes = {
        name: random_node(10 * seed + place, cases=cases, **task)
        for place, (name, cases) in enumerate((("Oslo", 5), ("Porto", 3), ("Riga", 1)))
    }
    runs = write_runs(nodes)
    told = told_by(runs, folder=tmp_path / "sums")
    assert [sums.num_cases for sums in told] == [5, 3, 1]
    assert_same(decide(told), decide_pooled(nodes))


def test_of_equal_scores_the_first_is_chosen_as_in_nnunet(write_runs: WriteRuns, decide_pooled: Pooled) -> None:
    nodes = {"Oslo": random_node(3), "Porto": random_node(4)}
    for node in nodes.values():
        for of_model in (node.probabilities, node.segmentations):
            of_model["3d_fullres"] = of_model["2d"]
    decision = decide(told_by(write_runs(nodes)))
    assert len({candidate.dice for candidate in decision.candidates}) == 1
    assert_same(decision, decide_pooled(nodes))


def test_steps_that_change_nothing_are_not_kept_as_in_nnunet(write_runs: WriteRuns, decide_pooled: Pooled) -> None:
    nodes = {"Oslo": random_node(5), "Porto": random_node(6)}
    for node in nodes.values():
        for case, reference in node.references.items():
            reference[:, :5, :5], reference[:, 5:] = 1, 0
            reference[:, 2:4, 2:4] = 2
            node.segmentations["2d"][case] = reference
            node.segmentations["3d_fullres"][case] = np.zeros_like(reference)
    decision = decide(told_by(write_runs(nodes), ensembles=False))
    assert decision.best.dice == 1
    assert not decision.postprocessing.largest_component
    assert_same(decision, decide_pooled(nodes, ensembles=False))


def test_a_label_that_one_configuration_has_no_dice_of_is_as_in_nnunet(
    write_runs: WriteRuns, decide_pooled: Pooled
) -> None:
    """No reference holds it; 2d segments some of it, and 3d_fullres none, whose score is then NaN."""
    nodes = {"Oslo": random_node(7), "Porto": random_node(8)}
    for node in nodes.values():
        for case, reference in node.references.items():
            reference[reference == 2] = 0
            node.segmentations["3d_fullres"][case][node.segmentations["3d_fullres"][case] == 2] = 0
    decision = decide(told_by(write_runs(nodes), ensembles=False))
    assert math.isnan(decision.candidates[1].dice)
    assert decision.left_out == ()
    assert_same(decision, decide_pooled(nodes, ensembles=False))


def test_a_label_that_is_nowhere_is_left_out_where_nnunet_stops(write_runs: WriteRuns, decide_pooled: Pooled) -> None:
    nodes = {"Oslo": random_node(9), "Porto": random_node(10)}
    for node in nodes.values():
        for label_maps in (node.references, *node.segmentations.values()):
            for label_map in label_maps.values():
                label_map[label_map == 2] = 0
    decision = decide(told_by(write_runs(nodes), ensembles=False))
    assert decision.left_out == ("tumour",)
    assert decision.best.dice == decision.best.of_labels[0]
    with pytest.raises(IndexError):
        decide_pooled(nodes, ensembles=False)


def test_labels_count_where_they_are_annotated(write_runs: WriteRuns) -> None:
    """A centre that has not annotated the tumour tells nothing of it; of pooled cases, centre by centre."""
    nodes = {"Oslo": random_node(11), "Porto": random_node(12)}
    both, porto = (decide(told) for told in (told_by(write_runs(nodes)), told_by(write_runs(nodes))[1:]))
    nodes["Oslo"].description["annotated"] = ["liver"]
    partly = decide(told_by(write_runs(nodes)))
    for candidate, of_both, of_porto in zip(partly.candidates, both.candidates, porto.candidates, strict=True):
        assert candidate.of_labels == (of_both.of_labels[0], of_porto.of_labels[1])
    assert partly.of_labels_after[1] != both.of_labels_after[1]

    pooled = FakeNode(
        {}, {}, {}, {**nodes["Porto"].description, "annotated": {"Oslo": ["liver"], "Porto": list(LABELS)[1:]}}
    )
    for name, node in nodes.items():
        pooled.references |= {f"{name}__{case}": array for case, array in node.references.items()}
        for ours, theirs in ((pooled.probabilities, node.probabilities), (pooled.segmentations, node.segmentations)):
            for configuration, of_cases in theirs.items():
                ours.setdefault(configuration, {}).update({f"{name}__{case}": a for case, a in of_cases.items()})
    models = nodes_of(write_runs({"centralized": pooled}))["centralized"]
    together = decide([sum_up(models, "centralized", None, True, True)])
    assert [candidate.dice for candidate in together.candidates] == pytest.approx([c.dice for c in partly.candidates])
    assert together.postprocessing == partly.postprocessing


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        REGIONS,
        {**REGIONS, "ignore": 4},
        {"background": 0, "b": 2, "a": [1], "ignore": 3},
        {"background": 0, "whole": [1, 2], "first": [1], "second": 2},
    ],
)
def test_labels_are_those_of_nnunets_label_manager(labels: dict[str, Any]) -> None:
    manager = LabelManager(labels, [1] * (len(labels) - 1 - ("ignore" in labels)))
    ours = ScoredLabels.of(labels)
    assert list(ours.values) == (manager.foreground_regions if manager.has_regions else manager.foreground_labels)
    assert list(ours.keys) == [label_or_region_to_key(label) for label in ours.values]
    assert list(ours.foreground) == manager.foreground_labels
    assert ours.ignore == manager.ignore_label
