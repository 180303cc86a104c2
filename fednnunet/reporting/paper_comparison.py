"""The paper's tables of results (``paper_tables.json``), and ours beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd

from fednnunet.reporting.run_folder import Run
from fednnunet.reporting.tables.results_table import MEAN, Metric, ResultsTable, order_setups


@dataclass(frozen=True)
class PaperTable:
    """A table of results in Skorupko, Avgoustidis et al., Scientific Reports 2025, and how it came about.

    Attributes:
        number: of the table.
        doi: of the paper.
        configuration: nnU-Net configuration.
        hd95_unit: ``mm`` or ``pixels``.
        training: training centre to number of studies.
        external: external centre to number of studies.
        values: ``dsc`` and ``hd95``; rows are set-ups, columns training, then external centres.
        folds: of the cross-validation.
        rounds: aggregations, one per epoch.
        iterations: of a round.
    """

    number: int
    doi: str
    configuration: str
    hd95_unit: str
    training: dict[str, int]
    external: dict[str, int]
    values: dict[str, pd.DataFrame]
    folds: list[int]
    rounds: int
    iterations: int


@cache
def paper_tables() -> dict[str, PaperTable]:
    """Name of the dataset (``dataset.name``) to the paper's table of it."""
    content = json.loads(resources.files("fednnunet.reporting").joinpath("paper_tables.json").read_text("utf-8"))
    protocol = {key: content[key] for key in ("doi", "folds", "rounds", "iterations")}
    tables = {}
    for dataset, table in content["tables"].items():
        centres = [*table["training"], *table["external"]]
        values = {
            metric: pd.DataFrame.from_dict(table.pop(metric), orient="index", columns=centres)
            for metric in ("dsc", "hd95")
        }
        tables[dataset] = PaperTable(**table, **protocol, values=values)
    return tables


@dataclass(frozen=True)
class PaperComparison:
    """Our results, the paper's and their difference, for the centres that we have.

    Attributes:
        ours: our table.
        paper: the paper's.
        remarks: in what our runs differ from the paper's, as far as their folders tell.
    """

    ours: ResultsTable
    paper: PaperTable
    remarks: list[str]

    @property
    def title(self) -> str:
        """Which table of which paper."""
        return f"Beside Table {self.paper.number} of the paper"

    @property
    def note(self) -> str:
        """Where the numbers are from, and whether they can be compared."""
        source = f"Paper: doi:{self.paper.doi}; its mean is worked out from its numbers of the centres shown."
        return f"{source} Not comparable as it stands: {'; '.join(self.remarks)}." if self.remarks else source

    @property
    def setups(self) -> list[str]:
        """Ours and the paper's."""
        return order_setups([*self.ours.setups, *self.paper.values["dsc"].index])

    def values(self, metric: Metric) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Ours and the paper's, rows :attr:`setups`, columns those of our table.

        NaN where there is none; a centre that trained in one and was external in the other is not the same.
        """
        ours = self.ours.values[metric.column].reindex(index=self.setups)
        same = [centre for centre in self.ours.training if centre in self.paper.training]
        same += [centre for centre in self.ours.external if centre in self.paper.external]
        paper = self.paper.values[metric.column][same].reindex(index=self.setups, columns=ours.columns)
        return ours, paper.assign(**{MEAN: paper[self.ours.training].mean(axis=1, skipna=False)})

    def rows(self, metric: Metric) -> list[tuple[str, str, list[str]]]:
        """Set-up, what the row holds (``ours``, ``paper`` or ``ours − paper``), and its cells as text."""
        ours, paper = self.values(metric)
        difference = ours - paper
        return [
            row
            for setup in self.setups
            for row in (
                (setup, "ours", [metric.show(value) for value in ours.loc[setup]]),
                (setup, "paper", [metric.show(value) for value in paper.loc[setup]]),
                (setup, "ours − paper", [_signed(value, metric) for value in difference.loc[setup]]),
            )
        ]


def compare_with_paper(table: ResultsTable, runs: Sequence[Run]) -> PaperComparison | None:
    """The table of ``runs``, which are of one dataset, beside the paper's; None where it has none of the dataset."""
    dataset = next((str(run.info["dataset"]) for run in runs if "dataset" in run.info), "")
    paper = paper_tables().get(dataset)
    return None if paper is None else PaperComparison(table, paper, _remarks(paper, table, runs))


def _remarks(paper: PaperTable, table: ResultsTable, runs: Sequence[Run]) -> list[str]:
    """What makes the runs another experiment than the paper's; says nothing of external centres that are not there."""
    finished = [run for run in runs if run.finished]
    remarks = []
    configurations = {str(run.info["configuration"]) for run in finished} - {paper.configuration}
    if configurations:
        remarks.append(f"configuration {', '.join(sorted(configurations))}, not {paper.configuration}")
    if table.hd95_unit != paper.hd95_unit:
        remarks.append(f"HD95 in {table.hd95_unit}, not {paper.hd95_unit}")
    absent = [centre for centre in paper.training if centre not in table.training]
    if absent:
        remarks.append(f"trained without {', '.join(absent)}")
    added = [centre for centre in table.training if centre not in paper.training]
    if added:
        remarks.append(f"trained with {', '.join(added)}, too")
    cases = {node: number for run in finished for node, number in run.info.get("num_training", {}).items()}
    fewer = [
        f"{node} has {cases[node]} cases, not {studies}"
        for node, studies in paper.training.items()
        if cases.get(node, studies) < studies
    ]
    remarks += fewer
    lengths = {(run.info["rounds"], run.info["iterations"]) for run in finished} - {(paper.rounds, paper.iterations)}
    remarks += [
        f"{rounds} rounds × {iterations} iterations, not {paper.rounds} × {paper.iterations}"
        for rounds, iterations in sorted(lengths)
    ]
    folds = {setup: {fold for run in finished if run.setup == setup for fold in run.folds} for setup in table.setups}
    incomplete = [setup for setup in table.setups if not set(map(str, paper.folds)) <= folds[setup]]
    if incomplete:
        remarks.append(f"not all {len(paper.folds)} folds of {', '.join(incomplete)}")
    return remarks


def _signed(value: float, metric: Metric) -> str:
    """With its sign, but for what rounds to zero."""
    if np.isnan(value):
        return metric.show(value)
    rounded = round(value, metric.decimals)
    return f"{rounded:+.{metric.decimals}f}".replace("-", "−") if rounded else metric.show(0.0)
