"""Reports of runs whose nodes tell means of their scores, or keep them: the same means, and honest about the rest."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from fednnunet.evaluation.told_scores import mean_scores
from fednnunet.exchange.messages import CaseScore
from fednnunet.reporting.finish import compare_runs, finish_run
from fednnunet.reporting.results import collect_results
from fednnunet.reporting.run_folder import read_runs
from fednnunet.reporting.scores import collect_scores
from fednnunet.run_files import CASE_COLUMNS
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.tracking.base import scores_of
from tests.support.run_folders import EXTERNAL, NODES, MakeRun

pytestmark = pytest.mark.usefixtures("undrawn")

pytestmark = pytest.mark.unit
ALL = [*NODES, EXTERNAL]


def withhold(folder: Path, means: Collection[str] = (), kept: Collection[str] = ()) -> Path:
    """Let nodes of a run have told means, or nothing: ``cases.csv`` is written again, as the server would have."""
    (run,) = read_runs([folder])
    rows = run.cases.astype(object).where(run.cases.notna(), None)
    (folder / "cases.csv").unlink()
    recorder = RunRecorder(folder, run.strategy)
    for fold, of_fold in rows.groupby("fold", sort=False):
        scores = [
            CaseScore.model_validate(
                {
                    name: (row[name] or None if name == "empty" else row[name])
                    for name in CaseScore.model_fields
                    if name != "centre"
                }
                | {"centre": row["node"]}
            )
            for row in of_fold.to_dict("records")
            if row["node"] not in kept
        ]
        told = [score for score in scores if score.centre not in means]
        recorder.write_cases(
            str(fold),
            [*told, *mean_scores(score for score in scores if score.centre in means)],
            {node: node for node in kept},
        )
    return folder


def test_the_table_and_summary_of_means_are_those_of_the_cases(make_run: MakeRun, tmp_path: Path) -> None:
    open_run = make_run("asym", fold=[0, 1], folder=tmp_path / "open")
    discreet = withhold(make_run("asym", fold=[0, 1], folder=tmp_path / "discreet"), means=ALL)
    ours, theirs = finish_run(discreet), finish_run(open_run)
    assert ours.dsc == pytest.approx(theirs.dsc)
    summaries = [pd.read_csv(folder / "summary.csv") for folder in (discreet, open_run)]
    ours_by_fold, theirs_by_fold = (summary.set_index(["node", "fold"]).sort_index() for summary in summaries)
    columns = ["n_cases", "dsc", "hd95", "surface_dsc", "volume_error"]
    pd.testing.assert_frame_equal(ours_by_fold[columns], theirs_by_fold[columns], check_dtype=False)
    assert ours_by_fold["n_empty"].isna().all(), "it says something of single cases"
    (run,) = read_runs([discreet])
    assert scores_of(run)["hd95"] == pytest.approx(scores_of(read_runs([open_run])[0])["hd95"])
    for external in ("best", "ensemble"):
        tables = [
            collect_results(read_runs([folder]), external_scores=external).table for folder in (discreet, open_run)
        ]
        shown = [table.values["dsc"][EXTERNAL].item() for table in tables if table is not None]
        assert shown[0] == pytest.approx(shown[1])
    page = (discreet / "report.html").read_text()
    assert 'alt="DSC and HD95 of held-out cases' not in page
    assert "means that the node has computed over its cases" in page
    assert "so there is no interval, no test and no distribution" in ours.text


def test_nodes_that_tell_cases_means_and_nothing_are_side_by_side(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [withhold(make_run(strategy), means=["DUKE"], kept=["NACT"]) for strategy in ("local", "asym")]
    results = collect_results(read_runs(runs))
    table, comparison = results.table, results.comparison
    assert table is not None
    assert comparison is not None
    dsc = table.metrics[0]
    assert table.cell(dsc, "asym", "NACT") == "kept"
    assert table.cell(dsc, "asym", "mean") == "–"
    assert float(table.cell(dsc, "asym", "DUKE")) == round(table.values["dsc"].loc["asym", "DUKE"], 3)
    assert table.interval(dsc, "asym", "ISPY1")
    assert not table.interval(dsc, "asym", "DUKE")
    tested = comparison.rows.set_index("node")["n_cases"]
    assert tested[["ISPY1", "DUKE", "NACT"]].tolist() == [6, 0, 0]
    assert comparison.significant.isdisjoint({("asym", "mean"), ("asym", "DUKE")})
    notes = "\n".join(table.notes)
    assert "DUKE: means that the node has computed" in notes
    assert "kept: scores that stay at the node" in notes
    assert "(NACT, fold 0)" in notes
    out = io.StringIO()
    compare_runs(tmp_path / "report", runs, Console(file=out))
    assert "kept" in (tmp_path / "report" / "table.md").read_text()
    again = pd.read_csv(tmp_path / "report" / "cases.csv")
    assert set(again[again["n_cases"] == 0]["node"]) == {"NACT"}
    assert again["case"].isna().sum() == len(again[again["n_cases"].notna()])


def test_a_run_whose_nodes_tell_nothing_has_a_table_that_says_so(make_run: MakeRun) -> None:
    run = withhold(make_run("asym"), kept=ALL)
    result = finish_run(run)
    assert result.dsc is None
    assert result.text.count("kept") == 2 * len(ALL) + 1, "both metrics at each node, and the note"
    assert "DSC and HD95 of held-out cases" not in (run / "report.html").read_text()
    (read,) = read_runs([run])
    assert read.finished
    assert read.problem is None


def test_models_of_other_nodes_are_in_the_matrix_by_their_means(make_run: MakeRun) -> None:
    run = make_run("asym")
    rows = pd.read_csv(run / "cases.csv")
    elsewhere = rows[rows["node"] == "DUKE"].assign(model="NACT")
    pd.concat([rows, elsewhere]).to_csv(run / "cases.csv", index=False)
    withhold(run, means=["DUKE"])
    finish_run(run)
    assert "DSC of every node&#39;s model at every centre" in (run / "report.html").read_text()


def test_a_run_without_scores_has_an_empty_summary() -> None:
    nothing = pd.DataFrame(columns=list(CASE_COLUMNS))
    assert collect_scores(nothing, nothing.assign(n_cases=0)).summary.empty
