"""A run ends with a table and a report, a sweep with one of each over all its runs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from fednnunet.reporting.comparison import COMPARISON_COLUMNS
from fednnunet.reporting.finish import compare_runs, finish_run
from fednnunet.reporting.run_folder import read_runs
from fednnunet.reporting.tables.results_table import SUMMARY_COLUMNS
from fednnunet.run_files import CASE_COLUMNS, REPORT_FILE, ROUND_COLUMNS

MakeRun = Callable[..., Path]


def compare(folder: Path, runs: list[Path]) -> str:
    """What a comparison prints; its report, of which these tests look at nothing, is not drawn."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fednnunet.reporting.finish.write_report", lambda folder, results: folder / REPORT_FILE)
        compare_runs(folder, runs, Console(file=out, width=60))
    return out.getvalue()


def test_a_run_gets_its_summary_table_and_report(make_run: MakeRun) -> None:
    folder = make_run("asym")
    printed, dsc = finish_run(folder)
    summary = pd.read_csv(folder / "summary.csv")
    assert list(summary.columns) == SUMMARY_COLUMNS
    assert list(summary["n_cases"]) == [6] * 5
    assert dsc == pytest.approx(summary["dsc"][:4].mean()), "the external centre is not in the mean"
    assert f"{dsc:.3f}" in printed
    assert (folder / "report.html").is_file()
    assert "report.html" in printed


def test_finishing_twice_gives_the_same_files(make_run: MakeRun) -> None:
    folder = make_run("asym")
    finish_run(folder)
    first = (folder / "summary.csv").read_bytes(), len((folder / "report.html").read_bytes())
    finish_run(folder)
    assert ((folder / "summary.csv").read_bytes(), len((folder / "report.html").read_bytes())) == first


def test_merged_tables_hold_the_rows_of_all_runs(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("local"), make_run("asym")]
    printed = compare(tmp_path / "sweep", runs)
    cases = pd.read_csv(tmp_path / "sweep" / "cases.csv")
    pd.testing.assert_frame_equal(cases, pd.concat([pd.read_csv(run / "cases.csv") for run in runs], ignore_index=True))
    assert list(cases.columns) == list(CASE_COLUMNS)
    assert list(pd.read_csv(tmp_path / "sweep" / "rounds.csv").columns) == list(ROUND_COLUMNS)
    assert list(pd.read_csv(tmp_path / "sweep" / "summary.csv").columns) == SUMMARY_COLUMNS
    rows = [line for line in printed.splitlines() if "│" in line]
    assert [row.split("│")[1].strip() for row in rows] == ["local", "asym"] * 2
    assert all(len(row) < 110 for row in rows)
    assert "asym over local: ISPY1 " in printed
    comparisons = pd.read_csv(tmp_path / "sweep" / "comparisons.csv")
    assert list(comparisons.columns) == COMPARISON_COLUMNS
    assert list(comparisons["node"]) == ["ISPY1", "ISPY2", "DUKE", "NACT", "all centres", "KAUNO"]


def test_no_comparison_is_left_of_an_earlier_report(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "comparisons.csv").write_text("of an earlier report\n")
    compare(tmp_path / "sweep", [make_run("ffe")])
    assert not (tmp_path / "sweep" / "comparisons.csv").exists()


def test_the_table_is_written_to_take_elsewhere(make_run: MakeRun, tmp_path: Path) -> None:
    printed = compare(tmp_path / "sweep", [make_run("local"), make_run("asym")])
    rows = pd.read_csv(tmp_path / "sweep" / "table.csv")
    assert len(rows) == 2 * 5 * 2  # strategies, centres, metrics
    shown = f"{rows.loc[(rows['strategy'] == 'asym') & (rows['node'] == 'NACT'), 'value'].iloc[0]:.3f}"
    for text in (printed, *((tmp_path / "sweep" / f"table.{kind}").read_text() for kind in ("md", "tex"))):
        assert shown in text


def test_seeds_keep_apart_in_files_and_are_averaged_in_the_table(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name, seed=seed) for name in ("local", "asym") for seed in (0, 1)]
    printed = compare(tmp_path / "sweep", runs)
    summary = pd.read_csv(tmp_path / "sweep" / "summary.csv")
    assert list(summary.columns) == [*SUMMARY_COLUMNS, "seed"]
    assert len(summary) == 2 * 2 * 5
    mean = summary[(summary["strategy"] == "asym") & (summary["node"] == "NACT")]["dsc"].mean()
    assert f"{mean:.3f}" in printed


def test_a_sweep_over_something_else_names_it_in_the_set_up(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run("asym", folder=tmp_path / memory, overrides=(f"gpu_memory={memory}", "paths.data=d"))
        for memory in ("uniform_8gb", "mixed")
    ]
    assert [run.strategy for run in read_runs(runs)] == ["asym gpu_memory=uniform_8gb", "asym gpu_memory=mixed"]
    compare(tmp_path, runs)
    assert set(pd.read_csv(tmp_path / "cases.csv")["strategy"]) == {
        *("asym gpu_memory=uniform_8gb", "asym gpu_memory=mixed")
    }


def test_jobs_that_did_not_finish_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("local"), make_run("asym")]
    (runs[1] / "cases.csv").unlink()
    printed = compare(tmp_path / "sweep", runs)
    assert "strategy=asym,seed=0 did not finish: it trained 12 rounds and has no scores." in printed
