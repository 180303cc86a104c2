"""``experiments/selection``: its trainings are runs of the product, its tables say what was scored."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from fednnunet.selection.choose import Chosen, choose_models
from fednnunet.selection.sources import Sources, scores_of
from tests.support.experiment_modules import load_module, read_command, without_traces

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/selection"
load = partial(load_module, FOLDER)


@pytest.fixture(scope="module", autouse=True)
def _no_module_is_left_to_other_tests() -> Iterator[None]:
    yield from without_traces(FOLDER)


@pytest.mark.parametrize(("training", "personal"), [("local", False), ("ffe", True), ("asym", True), ("ditto", True)])
def test_every_training_is_one_of_the_products_on_the_same_images(
    tmp_path: Path, training: str, personal: bool
) -> None:
    config = read_command(load("run").command(tmp_path, training, 3), tmp_path)
    assert config.strategy.name == training
    assert (config.strategy.personal is not None) is personal
    assert config.folds == [0, 1, 2, 3, 4]
    assert config.seed == 3
    assert [centre.name for centre in config.dataset.centres] == ["ISPY1", "ISPY2", "DUKE", "NACT"]
    assert config.dataset.raw_folder == str(tmp_path / "images" / "seed3")


def chosen() -> Chosen:
    """Oslo gains 0.2 by ffe in every case; Porto loses 0.1 in four folds of five, and gains 0.02 in the last."""
    rows = []
    for case in range(10):
        fold = case % 5
        for node, gain in (("Oslo", 0.2), ("Porto", 0.02 if fold == 4 else -0.1)):
            for strategy, dsc in (("local", 0.5), ("ffe", 0.5 + gain)):
                rows.append(
                    {"strategy": strategy, "node": node, "seed": 0, "fold": str(fold), "case": case, "dsc": dsc}
                )
    return choose_models(Sources("X", scores_of(pd.DataFrame(rows).assign(seed=0)), ["Oslo", "Porto"], {}))


def test_the_tables_hold_what_hospitals_end_with() -> None:
    analysis = load("analysis")
    rows = analysis.outcomes(chosen(), 0)
    porto = rows[rows["node"] == "Porto"].set_index("what")["dsc"]
    # ffe: four folds of -0.1, one of 0.02.
    expected = {"local": 0.5, "ffe": 0.424, "best single": 0.424, "selected": 0.5, "oracle": 0.5}
    assert porto.to_dict() == pytest.approx(expected)
    table = analysis.hospital_table(rows)
    assert "| Oslo | 10 | 0.500 | 0.700 | 0.700 | 0.700 | 0.000 |" in table
    assert "| Porto | 10 | 0.500 | 0.424 | 0.500 | 0.500 | 0.000 |" in table
    losers = analysis.loser_table(rows)
    assert "| ffe | 0.562 | 1 of 2 | -0.076 (Porto, seed 0) |" in losers
    assert "| selected | 0.600 | 0 of 2 | +0.000 (Porto, seed 0) |" in losers
    assert "| 1 | 0.600 | 0 of 2 | 1 of 2 |" in analysis.noise_table(rows)


def test_seeds_that_were_published_stay_in_tables_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, readme = load("analysis"), tmp_path / "README.md"
    readme.write_text("<!-- tables: begin --> <!-- tables: end -->")
    for seed in (3, 4):
        monkeypatch.setattr(analysis, "read_outcomes", lambda _, seed=seed: analysis.outcomes(chosen(), seed))
        analysis.publish(tmp_path, readme, tmp_path / "images")
    text = readme.read_text()
    assert "Seeds: 2. Best single candidate: ffe (seed 3), ffe (seed 4)." in text
    assert "| ffe | 0.562 | 2 of 4 | −0.076 (Porto, seed 3) |" in text
    assert set(pd.read_csv(tmp_path / "outcomes.csv")["seed"]) == {3, 4}
    assert (tmp_path / "images/selection.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(analysis, "read_outcomes", lambda _: pd.DataFrame())
    with pytest.raises(SystemExit, match="no seed has finished"):
        analysis.publish(tmp_path, readme, tmp_path / "images")


def test_only_seeds_that_have_finished_as_much_as_any_are_compared(tmp_path: Path) -> None:
    for place in ("local/seed0", "ffe/seed0", "local/seed1", "ffe/seed1", "asym/seed1", "asym/seed2"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "run.json").touch()
    found = load("analysis").finished_runs(tmp_path)
    assert {seed: [folder.parent.name for folder in folders] for seed, folders in found.items()} == {
        1: ["asym", "ffe", "local"]
    }


def test_without_noise_a_drawn_hospital_chooses_what_an_oracle_would_and_none_loses() -> None:
    simulation = load("simulation")
    spread = simulation.Spread(hospitals=0.04, cases=0.0, trainings=0.0)
    rows = simulation.simulate(10, 12, (1.0,), spread).set_index("model")
    assert rows.loc["selected, 1 SE", "difference"] == pytest.approx(rows.loc["oracle", "difference"])
    assert rows.loc["selected, 1 SE", "lose"] == 0
    assert 0 < rows.loc["ffe for all", "lose"] < 1
    assert rows.loc["ffe for all", "difference"] < rows.loc["oracle", "difference"]
