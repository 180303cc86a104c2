"""``experiments/channels``: its trainings are runs of the product, its tables say what the predictions hold."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fednnunet.datasets.raw import Case
from fednnunet.files import write_arrays
from fednnunet.launch.settings import prepare_centres
from fednnunet.phantoms.organs import ORGANS, TRUTH_LABELS
from tests.support.experiment_modules import load_module, read_command, without_traces

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "experiments/channels", ROOT / "experiments/union"]
load = partial(load_module, FOLDERS[0])


@pytest.fixture(scope="module", autouse=True)
def _no_module_is_left_to_other_tests() -> Iterator[None]:
    yield from without_traces(*FOLDERS)


def configured(out: Path, training: str, *few: str) -> Any:
    return read_command(load("run").command(out, training, 3, few), out)


def test_trainings_see_the_same_images_and_differ_in_what_becomes_of_channels(tmp_path: Path) -> None:
    found, images = {}, []
    for training in load("channel_scores").TRAININGS:
        config = configured(tmp_path, training)
        assert [centre.name for centre in config.training_centres] == ["Oslo", "Porto", "Turin"]
        images.append((config.dataset.generator, config.dataset.raw_folder))
        strategy, task = config.strategy, config.task
        found[training] = (strategy.name, strategy.heterogeneous_tasks, task.channels, task.channel_drop)
    assert all(one == images[0] for one in images)
    assert images[0][0]["annotated"] == "all"
    assert found == {
        "alone": ("local", True, "same", 0.25),
        "local_first": ("asym", True, "same", 0.25),
        "union": ("asym", False, "union", 0.25),
        "no_drop": ("asym", False, "union", 0),
    }


class Recorder:
    """Stands for a model of T2 and T1: keeps what it is given, segments nothing."""

    def __init__(self) -> None:
        self.dataset_json = {"channel_names": {"0": "T2", "1": "T1"}}
        self.unlearnt: list[int] = []

    def load_files(self, images: list[str]) -> tuple[list[str], dict[str, Any]]:
        return images, {}

    def logits(self, data: list[str]) -> list[str]:
        return data

    def segment(self, logits: list[str], properties: dict[str, Any]) -> list[str]:
        return logits


@pytest.mark.parametrize(
    ("acquired", "given", "files", "zeros"),
    [
        (("T1", "T2"), ("T1", "T2"), ["1", "0"], []),
        (("T1", "T2"), ("T2",), ["1", "1"], [1]),
        (("T1",), ("T1",), ["0", "0"], [0]),
    ],
)
def test_a_model_sees_channels_in_its_own_order_and_zeros_for_those_not_given(
    acquired: tuple[str, ...], given: tuple[str, ...], files: list[str], zeros: list[int]
) -> None:
    case, recorder = Case("a", tuple(Path(str(n)) for n in range(len(acquired))), Path("label")), Recorder()
    assert load("channel_scores").segment(recorder, case, acquired, given) == files
    assert recorder.unlearnt == zeros


def write_predictions(out: Path, training: str) -> None:
    """As :func:`save_predictions` would of five tiny cases: truth without spleens where T2 is not given."""
    scores = load("channel_scores")
    few = (f"dataset.generator.centres.{name}.cases=5" for name in ("Oslo", "Porto", "Turin", "Ghent"))
    prepare_centres(configured(out, training, *few))
    predicted = {}
    for node in scores.ACQUIRED:
        for centre, given in scores.places(training, node):
            for case in scores.unseen_cases(scores.images_folder(out, 3), centre):
                truth = scores.truth_of(case)
                labels = truth if "T2" in given else np.where(truth == TRUTH_LABELS["spleen"], 0, truth)
                predicted[f"{node}/{centre}/{'+'.join(given)}/{case.name}"] = labels.astype(np.uint8)
    write_arrays(scores.predictions_file(out, training, 3), predicted, compressed=True)


def test_tables_say_what_is_seen_with_which_channels(tmp_path: Path) -> None:
    analysis, out, readme = load("analysis"), tmp_path / "out", tmp_path / "README.md"
    assert analysis.write_results(out) == f"{out}: no training is finished yet"
    write_predictions(out, "alone")
    write_predictions(out, "union")
    scores = load("channel_scores").read_scores(out)
    numbers = scores.groupby(["training", "node", "centre", "channels"])["case"].nunique()
    own = {("Oslo", "Oslo", "T1+T2"): 1, ("Porto", "Porto", "T1"): 1, ("Turin", "Turin", "T2"): 1}
    ghent = {("Oslo", "Ghent", "T1+T2"): 5, ("Porto", "Ghent", "T1"): 5, ("Turin", "Ghent", "T2"): 5}
    assert numbers["alone"].to_dict() == own | ghent
    every = {(node, "Ghent", given): 5 for node in ("Oslo", "Porto", "Turin") for given in ("T1+T2", "T1", "T2")}
    assert numbers["union"].to_dict() == own | every
    readme.write_text((FOLDERS[0] / "README.md").read_text())
    with pytest.raises(SystemExit, match="no training is finished yet"):
        analysis.publish(tmp_path / "nothing", readme)
    for _ in range(2):
        analysis.publish(out, readme)
    assert len(pd.read_csv(tmp_path / "means.csv")) == 2 * 6 * len(ORGANS)
    text = readme.read_text()
    assert "| Porto, T1: spleen | 0.000 | 0.000 |" in text
    assert "| **Porto, T1: mean** | 0.667 | 0.667 |" in text
    assert "| **Ghent, T1+T2: mean** | 1.000 | 1.000 |" in text
    assert "| union | +0.000 | +0.000 | +0.000 | +0.000 | +0.000 | +0.000 | +0.000 |" in text
    readme.write_text("nothing here")
    with pytest.raises(SystemExit, match="has no place for the table"):
        analysis.publish(out, readme)


def test_differences_are_paired_by_seed_and_place() -> None:
    rows = [
        (training, seed, node, centre, channels, "case", organ, dsc)
        for training, values in {"alone": {0: 0.8, 1: 0.6}, "union": {0: 0.9, 1: 0.8, 2: 0.1}}.items()
        for seed, dsc in values.items()
        for node, centre, channels in (("Oslo", "Oslo", "T1+T2"), ("Porto", "Porto", "T1"), ("Porto", "Ghent", "T1"))
        for organ in ORGANS
    ]
    analysis = load("analysis")
    scores = pd.DataFrame(rows, columns=load("channel_scores").COLUMNS)
    found = analysis.differences(analysis.by_organ(scores))["union"]
    assert list(found) == ["Oslo, T1+T2", "Porto, T1", "Ghent, T1", "mean of hospitals"]
    assert [interval.mean for interval in found.values()] == pytest.approx([0.15] * 4)
    # Student's t for 1 degree of freedom is 12.706; standard error of 0.1 and 0.2: 0.05
    assert found["mean of hospitals"].low == pytest.approx(0.15 - 12.706 * 0.05, abs=1e-4)
