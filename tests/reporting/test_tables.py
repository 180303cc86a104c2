"""Means and the results table, against numbers computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fednnunet.errors import DataError
from fednnunet.evaluation.statistics import Interval
from fednnunet.reporting.run_folder import read_csv, write_csv
from fednnunet.reporting.tables.overview import nodes_as_markdown, overview
from fednnunet.reporting.tables.results_table import External, order_strategies, own_scores, results_table, summarise
from fednnunet.run_files import CASE_COLUMNS


def case_rows(*rows: tuple[str, str, int, str, float, float]) -> pd.DataFrame:
    filled = [(s, n, n, 0, c, label, dsc, hd95, 0.5, -0.1, "") for s, n, c, label, dsc, hd95 in rows]
    return pd.DataFrame(filled, columns=list(CASE_COLUMNS))


def scored(values: dict[tuple[str, str], tuple[float, float]], fold: str = "0", case: int = 0) -> pd.DataFrame:
    """Scores of a case at each node."""
    return pd.DataFrame(
        [(s, n, fold, case, dsc, hd95) for (s, n), (dsc, hd95) in values.items()],
        columns=["strategy", "node", "fold", "case", "dsc", "hd95"],
    )


def test_a_case_counts_once_however_many_labels_it_has() -> None:
    cases = case_rows(("asym", "A", 0, "x", 0.2, 4.0), ("asym", "A", 0, "y", 0.4, 8.0), ("asym", "A", 1, "x", 0.9, 1.0))
    (row,) = summarise(cases).to_dict("records")
    assert (row["strategy"], row["node"], row["fold"], row["n_cases"]) == ("asym", "A", 0, 2)
    assert row["dsc"] == pytest.approx((0.3 + 0.9) / 2)
    assert row["hd95"] == pytest.approx((6.0 + 1.0) / 2)


def test_what_is_not_defined_is_left_out_of_the_mean() -> None:
    cases = case_rows(
        ("asym", "A", 0, "x", 0.2, math.nan),
        ("asym", "A", 0, "y", 0.4, 8.0),
        ("asym", "A", 1, "x", 0.5, math.nan),
        ("asym", "B", 0, "x", 0.5, math.nan),
    )
    summary = summarise(cases).set_index("node")
    assert summary.loc["A", "hd95"] == 8.0
    assert summary.loc["A", "dsc"] == pytest.approx((0.3 + 0.5) / 2)
    assert math.isnan(summary.loc["B", "hd95"])


def test_summary_of_no_cases_is_an_empty_table() -> None:
    assert list(summarise(pd.DataFrame(columns=list(CASE_COLUMNS))).columns) == [
        *("strategy", "node", "fold", "n_cases", "dsc", "hd95", "surface_dsc", "volume_error", "n_empty")
    ]


def test_training_centres_count_with_their_own_model_and_external_ones_with_all() -> None:
    rows = [
        *(("asym", "A", "A", 0.6, ""), ("asym", "A", "B", 0.1, ""), ("asym", "B", "B", 0.7, "reference")),
        *(("asym", "X", "A", 0.2, "prediction"), ("asym", "X", "B", 0.4, "both")),
        *(("centralized", "A", "centralized", 0.8, ""), ("centralized", "X", "centralized", 0.5, "")),
    ]
    filled = [(s, n, model, 0, 0, "x", dsc, 1.0, 0.5, 0.2, empty) for s, n, model, dsc, empty in rows]
    summary = summarise(pd.DataFrame(filled, columns=list(CASE_COLUMNS))).set_index(["strategy", "node"])
    assert summary["dsc"].to_dict() == pytest.approx(
        {
            ("asym", "A"): 0.6,
            ("asym", "B"): 0.7,
            ("asym", "X"): 0.3,
            ("centralized", "A"): 0.8,
            ("centralized", "X"): 0.5,
        }
    )
    assert summary["n_empty"].to_dict() == {**dict.fromkeys(summary.index, 0), ("asym", "B"): 1, ("asym", "X"): 1}


def external_rows() -> pd.DataFrame:
    """A is better at home, B at the external centre X; the ensemble is best there."""
    rows = [
        *(("A", "A", 0.8), ("B", "B", 0.7), ("A", "B", 0.1), ("B", "A", 0.2)),
        *(("X", "A", 0.3), ("X", "B", 0.5), ("X", "ensemble", 0.6)),
    ]
    filled = [
        ("asym", n, m, "0", case, "x", dsc + 0.02 * case, 1.0, 0.5, 0, "") for n, m, dsc in rows for case in (0, 1)
    ]
    pooled = [
        ("centralized", n, "centralized", "0", 0, "x", dsc, 1.0, 0.5, 0, "")
        for n, dsc in (("A", 0.9), ("B", 0.8), ("X", 0.7))
    ]
    return pd.DataFrame(filled + pooled, columns=list(CASE_COLUMNS))


@pytest.mark.parametrize(("external", "dsc"), [("mean", 0.41), ("best", 0.31), ("ensemble", 0.61)])
def test_external_centres_count_with_the_models_that_were_chosen(external: External, dsc: float) -> None:
    summary = summarise(external_rows(), external).set_index(["strategy", "node"])["dsc"].to_dict()
    assert summary == pytest.approx(
        {
            **{("asym", "A"): 0.81, ("asym", "B"): 0.71, ("asym", "X"): dsc},
            **{("centralized", "A"): 0.9, ("centralized", "B"): 0.8, ("centralized", "X"): 0.7},
        }
    )


def test_the_best_node_is_chosen_for_each_seed_by_its_own_cases() -> None:
    first, second = external_rows(), external_rows()
    second.loc[second["node"] == second["model"], "dsc"] *= [0.1, 0.1, 1, 1]  # B is better at home
    cases = pd.concat([first.assign(seed=0), second.assign(seed=1)], ignore_index=True)
    at_x = own_scores(cases, "best").query("node == 'X' and strategy == 'asym'")
    assert at_x.groupby("seed")["model"].unique().map(list).to_dict() == {0: ["A"], 1: ["B"]}


def test_no_node_is_best_where_none_scored_at_home() -> None:
    cases = external_rows().query("node == 'X' and strategy == 'asym'")
    assert own_scores(cases, "best").empty


def test_too_much_and_too_little_volume_do_not_cancel_out() -> None:
    cases = case_rows(("asym", "A", 0, "x", 0.2, 4.0), ("asym", "A", 1, "x", 0.9, 1.0))
    cases["volume_error"] = [0.3, -0.1]
    assert summarise(cases)["volume_error"].tolist() == pytest.approx([0.2])


def test_csv_keeps_every_digit_and_a_node_called_na(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = case_rows(*(("asym", "NA", i, "1", float(rng.random()), float(rng.random())) for i in range(50)))
    cases.loc[3, "hd95"] = math.nan
    write_csv(cases, tmp_path / "cases.csv")
    pd.testing.assert_frame_equal(
        read_csv(tmp_path / "cases.csv", CASE_COLUMNS),
        cases.assign(fold=cases["fold"].astype(str)),
        check_dtype=False,
        check_exact=True,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]


def test_a_table_without_a_column_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("strategy,node\nasym,A\n")
    with pytest.raises(DataError, match=r"cases\.csv lacks the column model"):
        read_csv(tmp_path / "cases.csv", CASE_COLUMNS)


def test_rows_follow_the_paper_and_columns_the_configuration() -> None:
    assert order_strategies(["mine", "centralized", "ffe", "local", "asym x=1", "asym"]) == [
        *("local", "asym x=1", "asym", "ffe", "centralized", "mine")
    ]
    table = results_table(
        scored({("ffe", "B"): (0.5, 1.0), ("ffe", "A"): (0.6, 2.0), ("ffe", "X"): (0.1, 9.0)}),
        ["A", "B"],
        ["X"],
    )
    assert table.columns == ["A", "B", "mean", "X"]


def test_mean_is_over_training_nodes_only_and_not_of_some() -> None:
    values = {("ffe", "A"): (0.6, 2.0), ("ffe", "B"): (0.5, math.nan), ("ffe", "X"): (0.1, 9.0)}
    table = results_table(scored(values), ["A", "B"], ["X"])
    dsc, hd95 = table.metrics
    assert table.cell(dsc, "ffe", "mean") == "0.550"
    assert table.cell(hd95, "ffe", "mean") == "–"


def test_a_case_counts_once_over_folds_and_seeds() -> None:
    twice = [scored({("ffe", "A"): (0.4, 2.0)}), scored({("ffe", "A"): (0.6, 4.0)})]
    of_another_fold = [scored({("ffe", "A"): (0.8, 5.0)}, "1", case) for case in (1, 2)]
    table = results_table(pd.concat([*twice, *of_another_fold]), ["A"])
    assert [table.cell(metric, "ffe", "A") for metric in table.metrics] == ["0.700", "4.33"]


def test_best_leaves_out_the_pooled_baseline_and_shares_ties() -> None:
    values = {
        ("local", "A"): (0.40, 9.0),
        ("asym", "A"): (0.5001, 5.0),
        ("ffe", "A"): (0.5002, 6.0),
        ("centralized", "A"): (0.9, 1.0),
    }
    table = results_table(scored(values), ["A"])
    dsc, hd95 = table.metrics
    assert [table.is_best(dsc, name, "A") for name in table.strategies] == [False, True, True, False]
    assert [table.is_best(hd95, name, "A") for name in table.strategies] == [False, True, False, False]


def test_one_set_up_alone_is_not_called_best() -> None:
    table = results_table(scored({("asym", "A"): (0.5, 5.0)}), ["A"])
    assert not table.is_best(table.metrics[0], "asym", "A")


def test_marks_and_notes_stand_in_text_and_markdown() -> None:
    values = {("local", "A"): (0.4, 9.0), ("asym", "A"): (0.5, 5.0)}
    table = replace(
        results_table(scored(values), ["A"]),
        significant={("asym", "A")},
        incomplete={"local"},
        intervals={("dsc", "asym", "A"): Interval(0.5, 0.41, 0.62)},
        notes=["* p < 0.05"],
    )
    assert [table.star(metric, "asym", "A") for metric in table.metrics] == ["*", ""], "HD95 is not tested"
    assert [table.interval(metric, "asym", "A") for metric in table.metrics] == ["0.410–0.620", ""]
    lines = table.as_markdown().splitlines()
    assert lines[2:4] == ["| DSC ↑ | local † | 0.400 | 0.400 |", r"|  | asym | **0.500**\* | **0.500** |"]
    assert lines[-1] == r"\* p < 0.05"
    text = table.as_text()
    assert "│ 0.500* │" in text
    assert text.endswith("\n* p < 0.05\n")


def test_text_and_markdown_show_unit_and_external_nodes() -> None:
    values = {("local", "A"): (0.4, 9.0), ("asym", "A"): (0.5, 5.0), ("local", "X"): (0.1, 30.0)}
    table = results_table(scored(values), ["A"], ["X"], "pixels")
    lines = table.as_markdown().splitlines()
    assert lines[0] == "| | strategy | A | mean | X (external) |"
    assert lines[2] == "| DSC ↑ | local | 0.400 | 0.400 | 0.100 |"
    assert lines[3] == "|  | asym | **0.500** | **0.500** | – |"
    text = table.as_text()
    assert "HD95 (pixels) ↓" in text
    assert "external" in text
    assert "\x1b" not in text


def test_of_many_nodes_the_spread_is_shown_and_a_row_of_each() -> None:
    nodes, external = [f"H{place:02}" for place in range(21)], ["X0", "X1"]
    values = {("asym", node): (place / 20, float(place)) for place, node in enumerate(nodes)}
    values |= {("asym", node): (0.2 + place / 10, 8.0) for place, node in enumerate(external)}
    table = results_table(scored(values), nodes, external)
    lines = overview(table).as_markdown().splitlines()
    assert lines[0] == (
        "| | strategy | worst | worst tenth | median | best tenth | best | mean | worst of 2 (external) "
        "| mean of 2 (external) |"
    )
    assert lines[2] == "| DSC ↑ | asym | 0.000 | 0.100 | 0.500 | 0.900 | 1.000 | 0.500 | 0.200 | 0.250 |"
    assert lines[3] == "| HD95 (mm) ↓ | asym | 20.00 | 18.00 | 10.00 | 2.00 | 0.00 | 10.00 | 8.00 | 8.00 |"
    assert lines[-1] == "asym: worst to best DSC from H00 to H20, HD95 from H20 to H00."
    rows = nodes_as_markdown(table).splitlines()
    assert rows[0] == "| node | asym DSC ↑ | asym HD95 (mm) ↓ |"
    assert rows[5] == "| H03 | 0.150 | 3.00 |"
    assert rows[-1] == "| X1 (external) | 0.300 | 8.00 |"
    few = results_table(scored({("asym", "A"): (0.5, 5.0)}), ["A"])
    assert overview(few) is few
