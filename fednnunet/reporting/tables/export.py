"""The results table as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from fednnunet.files import write_atomically
from fednnunet.reporting.paper_comparison import PaperComparison
from fednnunet.reporting.run_folder import write_csv
from fednnunet.reporting.tables.label_table import LabelTable
from fednnunet.reporting.tables.overview import has_many_nodes, nodes_as_markdown, overview
from fednnunet.reporting.tables.results_table import MEAN, ResultsTable

LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


def write_tables(
    folder: Path, table: ResultsTable, comparison: PaperComparison | None, labels: LabelTable | None = None
) -> None:
    """Write ``table.md``, ``table.tex`` and ``table.csv``, with the paper's numbers if there are any.

    Of many nodes, the first two hold their spread; ``table.md`` has a row per node below it. Where nodes have annotated
    different structures, it has the scores of each label, too.
    """
    text = as_markdown(overview(table), comparison)
    text += f"\n{nodes_as_markdown(table)}" if has_many_nodes(table) else ""
    write_atomically(folder / "table.md", text + (f"\n{labels.as_markdown()}" if labels else ""))
    write_atomically(folder / "table.tex", as_latex(overview(table), comparison))
    write_csv(as_rows(table, comparison), folder / "table.csv")


def as_markdown(table: ResultsTable, comparison: PaperComparison | None = None) -> str:
    """The table, and below it ours, the paper's and the difference, three rows per strategy."""
    text = table.as_markdown()
    if comparison is None:
        return text
    lines = [
        f"\n{comparison.title}:\n",
        f"| | strategy | | {' | '.join(_titles(table))} |",
        f"| --- | --- | --- |{' ---: |' * len(table.columns)}",
        *(f"| {' | '.join(row)} |" for block in _blocks(comparison) for row in block),
        f"\n{comparison.note}",
    ]
    return text + "\n".join(lines) + "\n"


def as_latex(table: ResultsTable, comparison: PaperComparison | None = None) -> str:
    """The same as ``tabular`` for LaTeX with booktabs; the best value that keeps images at their nodes is bold."""
    blocks = []
    for metric in table.metrics:
        rows = []
        for row, strategy in enumerate(table.strategies):
            cells = [escape_latex(table.cell(metric, strategy, column)) for column in table.columns]
            best = [table.is_best(metric, strategy, column) for column in table.columns]
            marked = [rf"\textbf{{{cell}}}" if bold else cell for cell, bold in zip(cells, best, strict=True)]
            rows.append([escape_latex(metric.title) if row == 0 else "", escape_latex(strategy), *marked])
        blocks.append(rows)
    text = "% needs \\usepackage{booktabs}\n" + _tabular(["", "strategy", *_titles(table)], blocks, text_columns=2)
    if comparison is None:
        return text
    beside = [[[escape_latex(cell) for cell in row] for row in block] for block in _blocks(comparison)]
    head = f"\n% {comparison.title}. {comparison.note}\n"
    return text + head + _tabular(["", "strategy", "", *_titles(table)], beside, text_columns=3)


def as_rows(table: ResultsTable, comparison: PaperComparison | None = None) -> pd.DataFrame:
    """One row per strategy, centre and metric, with all digits and without means over centres.

    Returns:
        Columns ``strategy``, ``node``, ``metric``, ``unit`` and ``value``; with a comparison also ``paper`` and
        ``difference`` (ours − paper).
    """
    rows = []
    for metric in table.metrics:
        ours = table.values[metric.column]
        paper = None
        if comparison is not None:
            ours, paper = comparison.values(metric)
        for strategy in ours.index:
            for node in (column for column in table.columns if column != MEAN):
                row = {
                    "strategy": strategy,
                    "node": node,
                    "metric": metric.column,
                    "unit": table.distance_unit if metric.column == "hd95" else "",
                    "value": ours.loc[strategy, node],
                }
                if paper is not None:
                    row |= {"paper": paper.loc[strategy, node], "difference": row["value"] - paper.loc[strategy, node]}
                rows.append(row)
    return pd.DataFrame(rows)


def escape_latex(text: str) -> str:
    """``text`` with LaTeX's special characters escaped."""
    return "".join(LATEX.get(character, character) for character in text)


def _titles(table: ResultsTable) -> list[str]:
    return [f"{name} (external)" if name in table.external else name for name in table.columns]


def _blocks(comparison: PaperComparison) -> list[list[list[str]]]:
    """One block per metric, named in its first row only; a strategy is named in the first of its three rows."""
    blocks = []
    for metric in comparison.ours.metrics:
        block: list[list[str]] = []
        for place, (strategy, kind, cells) in enumerate(comparison.rows(metric)):
            block.append([metric.title if place == 0 else "", strategy if kind == "ours" else "", kind, *cells])
        blocks.append(block)
    return blocks


def _tabular(titles: Sequence[str], blocks: Iterable[Sequence[Sequence[str]]], text_columns: int) -> str:
    """Rows of LaTeX with rules between blocks; titles are escaped here, cells are LaTeX."""
    columns = "l" * text_columns + "r" * (len(titles) - text_columns)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _line([escape_latex(title) for title in titles])]
    for block in blocks:
        lines += [r"\midrule", *(_line(row) for row in block)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"
