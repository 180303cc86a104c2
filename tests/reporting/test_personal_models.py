"""A report of a run that gives each node two models shows them as two strategies."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fednnunet.reporting.finish import finish_run
from fednnunet.reporting.results import collect_results
from fednnunet.reporting.run_folder import read_runs
from tests.support.run_folders import NODES, MakeRun

pytestmark = pytest.mark.usefixtures("undrawn")


def with_own_models(folder: Path, strategy: str, better: float) -> Path:
    """Add scores of the nodes' own models to a run: the same, but for a better DSC."""
    cases = pd.read_csv(folder / "cases.csv")
    own = cases[cases.node.isin(NODES)].assign(strategy=strategy)
    own["dsc"] += better
    pd.concat([cases, own]).to_csv(folder / "cases.csv", index=False)
    return folder


def test_both_models_are_rows_and_the_first_is_the_runs(make_run: MakeRun, tmp_path: Path) -> None:
    run = with_own_models(make_run("asym", folder=tmp_path / "run"), "asym fine-tuned", 0.01)
    result = finish_run(run)
    summary = pd.read_csv(run / "summary.csv").set_index(["strategy", "node"])["dsc"]
    assert result.dsc == pytest.approx(summary["asym"][list(NODES)].mean())
    for node in NODES:
        assert summary["asym fine-tuned", node] == pytest.approx(summary["asym", node] + 0.01)
    assert "asym fine-tuned" in result.text


def test_what_a_sweep_varied_is_in_the_names_of_both(make_run: MakeRun, tmp_path: Path) -> None:
    folders = []
    for epochs in (10, 20):
        run = make_run("ffe", folder=tmp_path / str(epochs), overrides=(f"trainer.epochs={epochs}",))
        folders.append(with_own_models(run, "ffe fine-tuned", epochs / 1000))
    results = collect_results(read_runs(folders))
    assert results.table is not None
    assert results.table.strategies == [
        f"ffe{own} trainer.epochs={epochs}" for epochs in (10, 20) for own in ("", " fine-tuned")
    ]
    assert not results.problems


def test_options_of_a_strategy_tell_its_runs_apart_and_no_others(make_run: MakeRun, tmp_path: Path) -> None:
    lambdas = [("ditto", (f"strategy.ditto_lambda={weight}",)) for weight in (0.1, 1)]
    tuned = ("strategy.fine_tune_epochs=3",)
    folders = [
        make_run(name, folder=tmp_path / str(number), overrides=overrides)
        for number, (name, overrides) in enumerate([*lambdas, ("ffe", tuned), ("local", ())])
    ]
    names = [run.strategy for run in read_runs(folders)]
    assert names == ["ditto strategy.ditto_lambda=0.1", "ditto strategy.ditto_lambda=1", "ffe", "local"]


def test_folds_that_are_missing_are_missing_of_both(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("ffe", fold=[0, 1], folder=tmp_path / "whole")
    half = make_run("asym", fold=0, folder=tmp_path / "half")
    results = collect_results(read_runs([run, with_own_models(half, "asym fine-tuned", 0.0)]))
    assert results.table is not None
    assert results.table.incomplete == {"asym", "asym fine-tuned"}
