"""``experiments/scaling``: its trainings are runs of the product, its table says what their folders hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fednnunet.config.run import RunConfig
from fednnunet.phantoms.many import HospitalDistribution, draw_hospitals
from fednnunet.run_files import CASE_COLUMNS, ROUND_COLUMNS
from fednnunet.server.strategy.sampling import NodeSampler
from tests.support.experiment_modules import load_module, read_command, without_traces

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/scaling"
load = partial(load_module, FOLDER)


@pytest.fixture(scope="module", autouse=True)
def _no_module_is_left_to_other_tests() -> Iterator[None]:
    yield from without_traces(FOLDER)


def configured(out: Path, nodes: int, training: str) -> RunConfig:
    return read_command(load("run").command(out, nodes, training), out)


@pytest.mark.parametrize(
    ("nodes", "training", "sampled"), [(4, "local", 4), (10, "asym", 10), (30, "asym 0.1", 3), (100, "ffe 0.1", 10)]
)
def test_every_training_is_one_of_the_products_on_the_same_number_of_cases(
    tmp_path: Path, nodes: int, training: str, sampled: int
) -> None:
    config = configured(tmp_path, nodes, training)
    assert config.strategy.name == training.split(" ")[0]
    assert len(config.training_centres) == len(config.dataset.centres) == nodes
    names = {number: centre.name for number, centre in enumerate(config.training_centres)}
    sampler = NodeSampler(config.strategy.aggregation.get("fraction_train", 1.0))
    assert len(sampler.sample(names, 0, 1)) == sampled
    generator = dict(config.dataset.generator or {})
    hospitals = HospitalDistribution.model_validate(generator["hospitals"])
    keys = ("centres", "external_fraction", "seed", "pooled_cases")
    drawn = draw_hospitals(*(generator[key] for key in keys), hospitals)
    assert sum(hospital.cases for hospital in drawn.values()) == 600


def write_run(out: Path, nodes: int, training: str, scores: dict[str, list[float]], dice: Sequence[Any]) -> None:
    folder, strategy = load("analysis").run_folder(out, nodes, training), training.split(" ")[0]
    folder.mkdir(parents=True)
    cases = [
        [strategy, node, node, 0, number, "tumour", dsc, 1.0, 1.0, 0.0, ""]
        for node, values in scores.items()
        for number, dsc in enumerate(values)
    ]
    pd.DataFrame(cases, columns=list(CASE_COLUMNS)).to_csv(folder / "cases.csv", index=False)
    rounds = [
        {"strategy": strategy, "round": number, "node": node, "pseudo_dice": value}
        | {"bytes_up": 2_000_000, "bytes_down": 3_000_000}
        for number, values in enumerate(dice, start=1)
        for node, value in zip(scores, values, strict=False)
    ]
    pd.DataFrame(rounds, columns=list(ROUND_COLUMNS)).to_csv(folder / "rounds.csv", index=False)
    info = {"strategy": strategy, "seed": 0, "fold": 0, "seconds": 90.0, "peak_memory_gib": 1.5}
    (folder / "run.json").write_text(json.dumps(info))


def test_the_table_says_what_the_runs_hold(tmp_path: Path) -> None:
    write_run(tmp_path, 10, "ffe", {"H001": [0.9]}, [[0.4]])
    write_run(tmp_path, 4, "local", {"H001": [0.5, 0.7], "H002": [0.3]}, [[0.2, 0.4], [0.4, 0.55]])
    write_run(tmp_path, 4, "ffe 0.1", {"H001": [0.6, 0.8], "H002": [0.4]}, [[0.3], [0.6]])
    unfinished = load("analysis").run_folder(tmp_path, 4, "asym")
    unfinished.mkdir(parents=True)
    table = load("analysis").results(tmp_path)
    assert list(zip(table["nodes"], table["training"], strict=True)) == [(4, "local"), (4, "ffe 0.1"), (10, "ffe")]
    alone, sampled, larger = table.to_dict("records")
    assert alone["dsc_mean"] == pytest.approx(0.5)  # (0.5 + 0.7 + 0.3) / 3
    assert alone["dsc_of_hospitals"] == pytest.approx(0.45)  # (0.6 + 0.3) / 2
    assert (alone["trainings_of_nodes"], sampled["trainings_of_nodes"]) == (4, 2)
    assert (alone["megabytes"], sampled["megabytes"]) == (20, 10)
    assert (alone["minutes"], alone["memory_gib"]) == (1.5, 1.5)
    assert np.isnan(alone["rounds_to_learn"])  # 0.3, 0.475
    assert sampled["rounds_to_learn"] == 2
    assert sampled["gain_mean"] == pytest.approx(0.1)
    assert sampled["gain_low"] == pytest.approx(0.1)
    assert np.isnan(alone["gain_mean"])
    assert np.isnan(larger["gain_mean"])  # nothing to compare with


def test_what_is_finished_is_drawn_and_the_rest_left_out(tmp_path: Path) -> None:
    assert load("analysis").write_scaling(tmp_path) == f"{tmp_path}: no run is finished yet"
    for nodes in (4, 10):
        write_run(tmp_path, nodes, "local", {"H001": [0.5, 0.7], "H002": [0.3]}, [[0.2, 0.4]])
    write_run(tmp_path, 4, "asym 0.1", {"H001": [0.6, 0.7], "H002": [0.3]}, [[0.6]])
    text = load("analysis").write_scaling(tmp_path)
    assert (tmp_path / "scaling.md").read_text() == text
    assert [line.split("|")[1:3] for line in text.splitlines()[2:]] == [
        [" 4 ", " `local` "],
        [" 4 ", " `asym 0.1` "],
        [" 10 ", " `local` "],
    ]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_table_and_figure_are_published_where_the_readme_has_a_place(tmp_path: Path) -> None:
    write_run(tmp_path, 4, "local", {"H001": [0.5, 0.7]}, [[0.2]])
    analysis, readme = load("analysis"), tmp_path / "README.md"
    readme.write_text((FOLDER / "README.md").read_text())
    for _ in range(2):  # what was published before is replaced
        analysis.publish(tmp_path, readme, tmp_path / "images")
    head, _, rest = (FOLDER / "README.md").read_text().partition(analysis.TABLE_BEGINS)
    tail = rest.partition(analysis.TABLE_ENDS)[2]
    table = analysis.as_markdown(analysis.results(tmp_path))
    assert (
        readme.read_text() == f"{head}{analysis.TABLE_BEGINS}\n{table}\n{analysis.FIGURE}\n{analysis.TABLE_ENDS}{tail}"
    )
    assert (tmp_path / "images/scaling.png").is_file()
    readme.write_text("nothing here")
    with pytest.raises(SystemExit, match="has no place for the table"):
        analysis.publish(tmp_path, readme, tmp_path / "images")


def test_finished_runs_are_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, 4, "local", {"H001": [0.5]}, [[0.2]])
    started: list[str] = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: started.append(command[3]))
    load("run").train(tmp_path, [4], ["local", "ffe"])
    assert started == ["strategy=ffe"]
