"""The paper's tables, and our results compared with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fednnunet.reporting.paper_comparison import PaperComparison, compare_with_paper, paper_tables
from fednnunet.reporting.report import write_report
from fednnunet.reporting.results import Results, collect_results
from fednnunet.reporting.run_folder import read_runs
from fednnunet.reporting.tables.export import as_latex, as_markdown, as_rows, escape_latex
from fednnunet.reporting.tables.results_table import ResultsTable, results_table

pytestmark = pytest.mark.usefixtures("undrawn")

MakeRun = Callable[..., Path]
Values = Mapping[tuple[str, str], tuple[float, float]]
FOLDS = [0, 1, 2, 3, 4]
PROTOCOL = {"dataset": "mamamia", "configuration": "2d", "rounds": 1000, "iterations": 250, "fold": FOLDS}
STUDIES = {"ISPY1": 171, "ISPY2": 980, "DUKE": 291, "NACT": 64}


def paper_run(make_run: MakeRun, strategy: str, **changes: Any) -> Path:
    """A run that says it followed the paper, but for ``changes``."""
    folder = make_run(strategy)
    info = json.loads((folder / "run.json").read_text())
    info |= {**PROTOCOL, "num_training": STUDIES, **changes}
    (folder / "run.json").write_text(json.dumps(info))
    rounds = pd.read_csv(folder / "rounds.csv")
    rounds.assign(fold=0).to_csv(folder / "rounds.csv", index=False)  # as a run of several folds has it
    return folder


def compared(folders: list[Path]) -> PaperComparison:
    comparison = compare_results(gathered(folders))
    assert comparison is not None
    return comparison


def gathered(folders: list[Path]) -> Results:
    return collect_results(read_runs(folders))


def compare_results(results: Results) -> PaperComparison | None:
    assert results.table is not None
    return compare_with_paper(results.table, results.runs)


def table_of(values: Values, training: list[str], external: list[str]) -> ResultsTable:
    rows = [(strategy, node, 0, dsc, hd95) for (strategy, node), (dsc, hd95) in values.items()]
    scores = pd.DataFrame(rows, columns=["strategy", "node", "case", "dsc", "hd95"])
    return results_table(scores, training, external)


def beside(values: Values, training: list[str], external: list[str]) -> PaperComparison:
    return PaperComparison(table_of(values, training, external), paper_tables()["mamamia"], [])


@pytest.mark.parametrize(
    ("dataset", "strategy", "centre", "dsc", "hd95"),
    [
        ("mamamia", "local", "ISPY1", 0.612, 17.60),
        ("mamamia", "asym", "GUMED", 0.557, 51.43),
        ("mamamia", "ffe", "NACT", 0.660, 17.49),
        ("mamamia", "centralized", "DUKE", 0.657, 58.99),
        ("mamamia", "centralized", "HCB", 0.569, 57.98),
        ("mnms", "local", "Hamburg", 0.902, 6.56),
        ("mnms", "ffe", "Vall d'Hebron", 0.911, 4.05),
        ("mnms", "centralized", "ACDC", 0.898, 3.89),
        ("aimix", "local", "Egypt", 0.931, 24.21),
        ("aimix", "asym", "Sierra Leone", 0.851, 43.44),
        ("aimix", "ffe", "Spain", 0.938, 47.58),
        ("aimix", "centralized", "Sierra Leone", 0.804, 54.34),
    ],
)
def test_cells_of_the_papers_tables(dataset: str, strategy: str, centre: str, dsc: float, hd95: float) -> None:
    values = paper_tables()[dataset].values
    assert values["dsc"].loc[strategy, centre] == dsc
    assert values["hd95"].loc[strategy, centre] == hd95


def test_every_cell_of_the_paper_is_a_score() -> None:
    for table in paper_tables().values():
        assert list(table.values["dsc"].index) == ["local", "asym", "ffe", "centralized"]
        assert list(table.values["dsc"].columns) == [*table.training, *table.external]
        assert table.values["dsc"].stack().between(0.5, 1).all()
        assert table.values["hd95"].stack().between(3, 60).all()


def test_ours_the_papers_and_the_difference_stand_below_each_other() -> None:
    values = {("local", "ISPY1"): (0.5, 20.0), ("local", "NACT"): (0.6, 20.0), ("local", "KAUNO"): (0.636, 31.0)}
    comparison = beside(values, ["ISPY1", "NACT"], ["KAUNO"])
    dsc, hd95 = comparison.ours.metrics
    assert comparison.rows(dsc)[:3] == [
        ("local", "ours", ["0.500", "0.600", "0.550", "0.636"]),
        ("local", "paper", ["0.612", "0.551", "0.582", "0.636"]),  # the mean is (0.612 + 0.551) / 2 = 0.5815
        ("local", "ours − paper", ["−0.112", "+0.049", "−0.031", "0.000"]),
    ]
    assert comparison.rows(hd95)[2] == ("local", "ours − paper", ["+2.40", "−3.24", "−0.42", "−0.72"])


def test_what_just_one_side_has_is_a_dash() -> None:
    comparison = beside({("asym", "ISPY1"): (0.5, 20.0), ("fedprox", "Oslo"): (0.6, 9.0)}, ["ISPY1", "Oslo"], [])
    rows = {(strategy, kind): cells for strategy, kind, cells in comparison.rows(comparison.ours.metrics[0])}
    assert [strategy for strategy, kind in rows if kind == "ours"] == ["local", "asym", "ffe", "centralized", "fedprox"]
    assert rows["ffe", "ours"] == ["–", "–", "–"]
    assert rows["ffe", "paper"] == ["0.644", "–", "–"]
    assert rows["fedprox", "paper"] == ["–", "–", "–"]
    assert rows["asym", "ours − paper"] == ["−0.134", "–", "–"]


def test_a_training_centre_is_not_compared_with_an_external_one() -> None:
    comparison = beside({("asym", "ISPY1"): (0.5, 20.0), ("asym", "NACT"): (0.6, 9.0)}, ["ISPY1"], ["NACT"])
    rows = {(strategy, kind): cells for strategy, kind, cells in comparison.rows(comparison.ours.metrics[0])}
    assert rows["asym", "paper"] == ["0.634", "0.634", "–"]


def test_a_sweep_that_followed_the_paper_has_no_differences(make_run: MakeRun) -> None:
    comparison = compared([paper_run(make_run, name) for name in ("local", "ffe")])
    assert comparison.differences == []
    assert "Not comparable" not in comparison.note


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"nodes": ["ISPY1", "ISPY2", "DUKE"], "external": ["KAUNO", "NACT"]}, "trained without NACT"),
        ({"fold": 0}, "not all 5 folds of asym"),
        ({"rounds": 36, "iterations": 12}, "36 rounds × 12 iterations, not 1000 × 250"),
        ({"configuration": "3d_fullres"}, "configuration 3d_fullres, not 2d"),
        ({"distance_unit": "pixels"}, "HD95 in pixels, not mm"),
        ({"num_training": {**STUDIES, "DUKE": 12}}, "DUKE has 12 cases, not 291"),
        ({"nodes": [*STUDIES, "Oslo"]}, "also trained with Oslo"),
    ],
)
def test_differences_from_the_paper_are_listed(make_run: MakeRun, changes: dict[str, Any], remark: str) -> None:
    comparison = compared([paper_run(make_run, "asym", **changes)])
    assert comparison.differences == [remark]
    assert f"Not directly comparable: {remark}." in comparison.note


def test_folds_may_be_spread_over_runs(make_run: MakeRun, tmp_path: Path) -> None:
    folders = []
    for fold in FOLDS:
        folder = paper_run(make_run, "asym", fold=fold)
        folders.append(folder.rename(tmp_path / f"fold{fold}"))
    assert compared(folders).differences == []
    assert compared(folders[1:]).differences == ["not all 5 folds of asym"]


def test_no_table_of_the_paper_for_other_data(make_run: MakeRun) -> None:
    assert compare_results(gathered([make_run("asym")])) is None


def test_the_report_shows_the_papers_numbers_where_there_are_some(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report(tmp_path, gathered([paper_run(make_run, "asym")])).read_text()
    assert "Compared with Table 7 of the paper" in page
    assert "<td>0.739</td>" in page
    other = write_report(tmp_path, gathered([make_run("local")])).read_text()
    assert "of the paper</h2>" not in other


VALUES = {("local", "ISPY1"): (0.4, 9.0), ("asym", "ISPY1"): (0.5, 5.0), ("asym", "KAUNO"): (0.25, 30.125)}


def test_csv_has_one_row_per_value() -> None:
    rows = as_rows(table_of(VALUES, ["ISPY1"], ["KAUNO"]))
    assert list(rows.columns) == ["strategy", "node", "metric", "unit", "value"]
    assert len(rows) == 2 * 2 * 2
    assert rows.iloc[-1].to_dict() == {
        **{"strategy": "asym", "node": "KAUNO", "metric": "hd95", "unit": "mm"},
        "value": 30.125,
    }


def test_csv_with_the_paper_has_its_value_and_the_difference() -> None:
    rows = as_rows(table_of(VALUES, ["ISPY1"], ["KAUNO"]), beside(VALUES, ["ISPY1"], ["KAUNO"]))
    assert len(rows) == 4 * 2 * 2
    chosen = rows.set_index(["strategy", "node", "metric"])[["value", "paper", "difference"]]
    assert chosen.loc[("asym", "KAUNO", "hd95")].tolist() == pytest.approx([30.125, 32.43, -2.305])
    assert chosen.loc[("ffe", "ISPY1", "dsc")].isna().tolist() == [True, False, True]


def test_markdown_rows_are_as_wide_as_their_head() -> None:
    text = as_markdown(table_of(VALUES, ["ISPY1"], ["KAUNO"]), beside(VALUES, ["ISPY1"], ["KAUNO"]))
    plain, table = (
        [line.count("|") for line in block.splitlines() if "|" in line] for block in text.split("Compared with Table 7")
    )
    assert plain == [6] * (2 + 2 * 2)
    assert table == [7] * (2 + 3 * 4 * 2)
    assert "|  |  | ours − paper | −0.134 | −0.134 | −0.387 |" in text


def test_latex_is_a_booktabs_table_with_the_best_in_bold() -> None:
    assert as_latex(table_of(VALUES, ["ISPY1"], ["KAUNO"])).splitlines()[1:] == [
        r"\begin{tabular}{llrrr}",
        r"\toprule",
        r" & strategy & ISPY1 & mean & KAUNO (external) \\",
        r"\midrule",
        r"DSC $\uparrow$ & local & 0.400 & 0.400 & -- \\",
        r" & asym & \textbf{0.500} & \textbf{0.500} & 0.250 \\",
        r"\midrule",
        r"HD95 (mm) $\downarrow$ & local & 9.00 & 9.00 & -- \\",
        r" & asym & \textbf{5.00} & \textbf{5.00} & 30.12 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_latex_escapes_names() -> None:
    values = {("asym init.plans={A_1: 5%}", "R&D_#1"): (0.5, 5.0)}
    text = as_latex(table_of(values, ["R&D_#1"], []))
    assert r"R\&D\_\#1" in text
    assert r"asym init.plans=\{A\_1: 5\%\}" in text
    assert escape_latex(r"a\b~^<|>") == (
        r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}\textless{}\textbar{}\textgreater{}"
    )


def test_latex_with_the_paper_is_whole() -> None:
    text = as_latex(table_of(VALUES, ["ISPY1"], ["KAUNO"]), beside(VALUES, ["ISPY1"], ["KAUNO"]))
    assert text.isascii()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert text.count("{") == text.count("}")
    rows = [line for line in text.split(r"\begin{tabular}")[2].splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 3 * 4 * 2
    assert {line.count("&") for line in rows} == {5}
    assert r" &  & ours $-$ paper & $-$0.134 & $-$0.134 & $-$0.387 \\" in rows
