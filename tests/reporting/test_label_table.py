"""Scores label by label, against means worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from fednnunet.listing import MOST_NODES
from fednnunet.reporting.finish import compare_runs, finish_run
from fednnunet.reporting.run_folder import read_csv, write_csv
from fednnunet.reporting.scores import collect_scores, split_means
from fednnunet.reporting.tables.label_table import LabelTable, label_table
from fednnunet.run_files import CASE_COLUMNS, CASES_FILE, NUM_CASES_COLUMN
from tests.support.run_folders import MakeRun

pytestmark = pytest.mark.usefixtures("undrawn")

Row = tuple[str, str, int | None, str, float | None, float | None, int | None]


def rows(*given: Row) -> pd.DataFrame:
    filled = [
        (s, node, node, "0", case, label, dsc, hd95, 0.5, 0.1, "", n) for s, node, case, label, dsc, hd95, n in given
    ]
    return pd.DataFrame(filled, columns=[*CASE_COLUMNS, NUM_CASES_COLUMN])


def made(scores: pd.DataFrame, training: list[str], external: list[str]) -> LabelTable | None:
    cases, means = split_means(scores)
    table = collect_scores(cases, means).table(training, external)
    assert table is not None
    return label_table(cases, means, table)


def test_a_label_that_a_node_has_not_is_said_to_be_so_and_counts_nowhere() -> None:
    found = made(
        rows(
            ("asym", "Oslo", 0, "liver", 0.8, 2.0, None),
            ("asym", "Oslo", 1, "liver", 0.6, None, None),
            ("asym", "Porto", 0, "liver", 0.5, 3.0, None),
            ("asym", "Porto", 0, "spleen", 0.9, 1.0, None),
            ("local", "Oslo", 0, "liver", 0.4, 8.0, None),
            ("asym", "Riga", 0, "spleen", 0.3, 6.0, None),
            ("asym", "Vigo", None, "liver", 0.2, 9.0, 7),
            ("asym", "Vigo", None, "", 0.2, 9.0, 7),
            ("local", "Vigo", None, "", None, None, 0),
        ),
        ["Oslo", "Porto", "Vigo"],
        ["Riga"],
    )
    assert found is not None
    assert found.titles[3:] == [
        "Oslo (cases)",
        "Porto (cases)",
        "Vigo (cases)",
        "mean (nodes)",
        "Riga, external (cases)",
    ]
    assert {tuple(row[:3]): row[3:] for row in found.rows} == {
        ("DSC ↑", "liver", "local"): ["0.400 (1)", "–", "kept", "0.400 (1)", "not annotated"],
        ("DSC ↑", "liver", "asym"): ["0.700 (2)", "0.500 (1)", "0.200 (7)", "0.467 (3)", "not annotated"],
        ("DSC ↑", "spleen", "local"): ["not annotated", "–", "kept", "–", "–"],
        ("DSC ↑", "spleen", "asym"): ["not annotated", "0.900 (1)", "not annotated", "0.900 (1)", "0.300 (1)"],
        ("HD95 (mm) ↓", "liver", "local"): ["8.00 (1)", "–", "kept", "8.00 (1)", "not annotated"],
        ("HD95 (mm) ↓", "liver", "asym"): ["2.00 (1)", "3.00 (1)", "9.00 (7)", "4.67 (3)", "not annotated"],
        ("HD95 (mm) ↓", "spleen", "local"): ["not annotated", "–", "kept", "–", "–"],
        ("HD95 (mm) ↓", "spleen", "asym"): ["not annotated", "1.00 (1)", "not annotated", "1.00 (1)", "6.00 (1)"],
    }
    assert found.note.startswith(
        "Nodes have annotated different structures (Oslo liver; Porto liver and spleen; Vigo liver; Riga spleen): each"
    )


def test_there_is_none_where_all_nodes_have_the_same_labels() -> None:
    both = [("asym", node, 0, label, 0.5, 1.0, None) for node in ("Oslo", "Porto") for label in ("liver", "spleen")]
    assert made(rows(*both), ["Oslo", "Porto"], []) is None
    assert made(rows(*both[:3]), ["Oslo", "Porto"], []) is not None


def test_of_many_nodes_it_has_the_mean_and_the_ends() -> None:
    names = [f"H{number:02}" for number in range(MOST_NODES + 1)]
    scores = [("asym", name, 0, "liver", number / 20, 1.0 + number, None) for number, name in enumerate(names[:-1])]
    found = made(rows(*scores, ("asym", names[-1], 0, "spleen", 0.9, 4.0, None)), names, [])
    assert found is not None
    assert found.titles[3:] == ["mean (training nodes)", "worst", "best"]
    assert {tuple(row[:2]): row[3:] for row in found.rows} == {
        ("DSC ↑", "liver"): ["0.275 (12)", "0.000", "0.550"],
        ("DSC ↑", "spleen"): ["0.900 (1)", "0.900", "0.900"],
        ("HD95 (mm) ↓", "liver"): ["6.50 (12)", "12.00", "1.00"],
        ("HD95 (mm) ↓", "spleen"): ["4.00 (1)", "4.00", "4.00"],
    }


def test_report_and_tables_hold_it(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("asym")
    scores = read_csv(folder / CASES_FILE, CASE_COLUMNS)
    lacks = (scores["node"] == "DUKE") & (scores["label"] == "oedema")
    write_csv(scores[~lacks], folder / CASES_FILE)
    assert "DUKE tumour" in finish_run(folder).text
    report = (folder / "report.html").read_text()
    assert "<h3>By label</h3>" in report
    assert report.count("<td>not annotated</td>") == 2  # of DSC and of HD95
    compare_runs(tmp_path / "merged", [folder], Console(quiet=True))
    markdown = (tmp_path / "merged" / "table.md").read_text()
    assert markdown.count("| not annotated |") == 2


def test_report_and_tables_of_the_same_labels_have_none(make_run: MakeRun) -> None:
    folder = make_run("asym")
    assert "annotated" not in finish_run(folder).text
    assert "By label" not in (folder / "report.html").read_text()
