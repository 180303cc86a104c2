"""``experiments/union``: its trainings are runs of the product, its tables say what the predictions hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from fednnunet.config.run import RunConfig
from fednnunet.config.task import PSEUDO_LABELS
from fednnunet.files import write_arrays
from fednnunet.phantoms.organs import ORGANS, TRUTH_LABELS, make_organ_phantom
from tests.support.experiment_modules import load_module, read_command, without_traces

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/union"
load = partial(load_module, FOLDER)


@pytest.fixture(scope="module", autouse=True)
def _no_module_is_left_to_other_tests() -> Iterator[None]:
    yield from without_traces(FOLDER)


def configured(out: Path, training: str) -> RunConfig:
    return read_command(load("run").command(out, training, 3), out)


def test_trainings_differ_in_what_is_annotated_and_in_what_becomes_of_it(tmp_path: Path) -> None:
    found = {}
    for training in load("scoring").TRAININGS:
        config = configured(tmp_path, training)
        generator = dict(config.dataset.generator or {})
        assert [centre.name for centre in config.training_centres] == ["Oslo", "Porto", "Turin"]
        assert (config.seed, generator["seed"]) == (3, 3)
        annotated = "all" if generator["annotated"] == "all" else "own"
        taught = config.task.pseudo_labels * (config.task.labels == "union")
        used = (config.strategy.name, config.task.labels, config.task.exclusion, config.strategy.heterogeneous_tasks)
        found[training] = (annotated, generator["unannotated"], *used, taught)
        assert config.strategy.aggregation.get("keep_local", []) == ["seg_layers"] * (training == "local_heads")
    assert found == {
        "alone": ("own", "unknown", "local", "same", False, True, 0),
        "local_heads": ("own", "unknown", "asym", "same", False, True, 0),
        "union": ("own", "unknown", "asym", "union", False, False, PSEUDO_LABELS),
        "tuned": ("own", "unknown", "asym", "union", False, False, PSEUDO_LABELS),
        "marginal": ("own", "unknown", "asym", "union", False, False, 0),
        "exclusion": ("own", "unknown", "asym", "union", True, False, 0),
        "ffe": ("own", "unknown", "ffe", "union", False, False, 0),
        "background": ("own", "background", "asym", "same", False, False, 0),
        "all": ("all", "unknown", "asym", "same", False, False, 0),
    }


def test_fine_tuned_networks_are_those_of_the_run_that_trains_what_they_start_from(tmp_path: Path) -> None:
    run, tuned = load("run"), read_command(load("run").command(tmp_path, "tuned", 3), tmp_path)
    assert tuned.strategy.fine_tune_epochs == 3
    assert run.command(tmp_path, "tuned", 3) == run.command(tmp_path, "union", 3)


def test_trainings_of_other_annotations_never_share_a_folder_of_images() -> None:
    scoring, out = load("scoring"), Path("out")
    by_folder: dict[Path, set[tuple[str, ...]]] = {}
    for name, training in scoring.TRAININGS.items():
        keys = tuple(key for key in training.overrides if key.startswith("dataset."))
        by_folder.setdefault(scoring.images_folder(out, name, 0), set()).add(keys)
    assert [len(keys) for keys in by_folder.values()] == [1, 1, 1]


Predict = Callable[[np.ndarray], np.ndarray]


def perfect(truth: np.ndarray) -> np.ndarray:
    return truth


def no_spleen(truth: np.ndarray) -> np.ndarray:
    return np.where(truth == TRUTH_LABELS["spleen"], 0, truth)


def own_organs(truth: np.ndarray) -> np.ndarray:
    """Half of the liver's voxels, which makes a DSC of 2/3, and everything else."""
    liver = np.flatnonzero(truth == TRUTH_LABELS["liver"])
    half = truth.copy()
    half.flat[liver[::2]] = 0
    return half


def write_predictions(out: Path, training: str, seed: int, predict: Predict) -> None:
    """As :func:`save_predictions` would: images are made, networks are not."""
    scoring = load("scoring")
    images = scoring.images_folder(out, training, seed)
    generator = OmegaConf.load(ROOT / "conf/dataset/phantom_organs.yaml").dataset.generator
    centres = {str(name): {**centre, "cases": 5} for name, centre in generator.centres.items()}
    centres = {name: OmegaConf.to_container(OmegaConf.create(centre)) for name, centre in centres.items()}
    make_organ_phantom(images, centres, OmegaConf.to_container(generator.annotated), "unknown", seed)
    predicted = {
        f"{node}/{centre}/{case.name}": predict(scoring.truth_of(case)).astype(np.uint8)
        for node in scoring.ANNOTATED
        for centre in (node, scoring.EXTERNAL)
        for case in scoring.unseen_cases(images, centre)
    }
    write_arrays(scoring.predictions_file(out, training, seed), predicted, compressed=True)


def test_only_cases_that_no_network_has_trained_on_are_scored(tmp_path: Path) -> None:
    write_predictions(tmp_path, "union", 0, perfect)
    scores = load("scoring").read_scores(tmp_path)
    assert scores.groupby(["node", "centre"])["case"].nunique().to_dict() == {
        (node, centre): number for node in ("Oslo", "Porto", "Turin") for centre, number in ((node, 1), ("Ghent", 5))
    }
    assert (scores["dsc"] == 1).all()


def test_a_network_that_knows_one_organ_is_scored_on_that_one(tmp_path: Path) -> None:
    write_predictions(tmp_path, "alone", 0, own_organs)
    scores = load("scoring").read_scores(tmp_path)
    assert dict(scores.groupby("node")["organ"].unique().map(list)) == {
        "Oslo": ["liver"],
        "Porto": ["spleen"],
        "Turin": ["kidney"],
    }
    assert scores.loc[scores["node"] == "Oslo", "dsc"].to_list() == pytest.approx([2 / 3] * 6, abs=0.002)


def test_predictions_are_scored_against_organs_that_their_hospital_never_annotated(tmp_path: Path) -> None:
    write_predictions(tmp_path, "union", 0, no_spleen)
    scores = load("scoring").read_scores(tmp_path)
    assert scores.groupby("organ")["dsc"].unique().map(list).to_dict() == {
        "liver": [1.0],
        "spleen": [0.0],
        "kidney": [1.0],
    }


def test_label_values_of_a_model_are_those_of_its_names() -> None:
    values = load("scoring").truth_values({"background": 0, "spleen": 1, "liver": 2, "kidney": 3})
    assert list(values) == [0, 2, 1, 3]
    assert list(load("scoring").truth_values({"background": 0, "kidney": 1})) == [0, 3]


def scored(training: str, own: list[float], other: list[float]) -> list[tuple[object, ...]]:
    """Scores of three hospitals, a value of own and of other organs for each seed."""
    annotated = load("scoring").ANNOTATED
    return [
        (training, seed, node, node, "case", organ, dsc if organ == annotated[node] else others)
        for seed, (dsc, others) in enumerate(zip(own, other, strict=True))
        for node in annotated
        for organ in ORGANS
    ]


def test_ratios_and_differences_are_paired_by_seed() -> None:
    analysis, nan = load("analysis"), float("nan")
    rows = [
        *scored("alone", [0.8, 0.9], [nan, nan]),
        *scored("union", [0.7, 0.81], [0.4, 0.6]),
        *scored("marginal", [0.6, 0.81], [0.3, 0.4]),
        *scored("all", [0.9, 0.9], [0.8, 0.8]),
    ]
    means = analysis.over_cases(pd.DataFrame(rows, columns=load("scoring").COLUMNS))
    ratio, difference = analysis.ratios(means)["union"], analysis.differences(means)["union"]
    assert ratio["Oslo"].mean == ratio["mean"].mean == pytest.approx((0.5 + 0.75) / 2)
    assert difference["Oslo"].mean == pytest.approx(-0.095)
    # Student's t for 1 degree of freedom is 12.706; standard error of -0.10 and -0.09: 0.005
    assert difference["Oslo"].high == pytest.approx(-0.095 + 12.706 * 0.005, abs=1e-5)
    assert analysis.is_below(difference["Oslo"]) == "**yes**"
    assert analysis.is_below(analysis.differences(means)["all"]["Oslo"]) == "no"
    gains = analysis.gains(means, "union")
    assert [gains[part]["Porto"].mean for part in ("own organ", "organs never annotated")] == pytest.approx(
        [0.05, 0.15]
    )
    single = means[means["seed"] == 0]
    assert analysis.is_below(analysis.differences(single)["union"]["Oslo"]) == "not known"


def test_tables_and_picture_are_written_of_what_is_finished(tmp_path: Path) -> None:
    analysis, out, readme = load("analysis"), tmp_path / "out", tmp_path / "README.md"
    assert analysis.write_results(out) == f"{out}: no training is finished yet"
    write_predictions(out, "alone", 0, own_organs)
    write_predictions(out, "union", 0, no_spleen)
    readme.write_text((FOLDER / "README.md").read_text())
    with pytest.raises(SystemExit, match="no training is finished yet"):
        analysis.publish(tmp_path / "nothing", readme, tmp_path / "images")
    for _ in range(2):
        analysis.publish(out, readme, tmp_path / "images")
    assert len(pd.read_csv(tmp_path / "means.csv")) == 3 * 2 * (1 + 3)
    text = readme.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| Oslo, **liver**"))
    assert [float(cell) for cell in line.split("|")[2:4]] == pytest.approx([2 / 3, 1], abs=0.002)
    assert "| Oslo, spleen | – | 0.000 |" in text
    assert "| Ghent, kidney | 1.000 | 1.000 |" in text
    assert (tmp_path / "images/partial_labels.png").read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(out / "scores.csv")) == 3 * 6 * (1 + 3)
    readme.write_text("nothing here")
    with pytest.raises(SystemExit, match="has no place for the table"):
        analysis.publish(out, readme, tmp_path / "images")


def test_finished_trainings_are_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, started = load("run"), []
    finished = load("scoring").run_folder(tmp_path, "alone", 0)
    finished.mkdir(parents=True)
    (finished / "run.json").write_text("{}")
    monkeypatch.setattr("subprocess.run", lambda command, **_: started.append(command))
    monkeypatch.setattr(run, "save_predictions", lambda *_: None)
    for training in ("alone", "all"):
        run.train(tmp_path, training, 0, ["trainer.epochs=1"])
    (command,) = started
    assert command[-1] == "trainer.epochs=1"
    assert "dataset.generator.annotated=all" in command
