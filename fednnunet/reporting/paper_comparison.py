"""The paper's results tables (``paper_tables.json``), and our results compared with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd

from fednnunet.reporting.run_folder import Run
from fednnunet.reporting.tables.results_table import MEAN, Metric, ResultsTable, order_strategies


@dataclass(frozen=True)
class PaperTable:
    """A results table of Skorupko, Avgoustidis et al., Scientific Reports 2025, and the settings behind it.

    Attributes:
        number: number of the table.
        doi: DOI of the paper.
        configuration: nnU-Net configuration.
        distance_unit: ``mm`` or ``pixels``.
        training: training centre to number of studies.
        external: external centre to number of studies.
        values: ``dsc`` and ``hd95``; rows are strategies, columns training, then external centres.
        folds: folds of the cross-validation.
        rounds: number of rounds, one per epoch.
        iterations: iterations per round.
    """

    number: int
    doi: str
    configuration: str
    distance_unit: str
    training: dict[str, int]
    external: dict[str, int]
    values: dict[str, pd.DataFrame]
    folds: list[int]
    rounds: int
    iterations: int


@cache
def paper_tables() -> dict[str, PaperTable]:
    """Name of the dataset (``dataset.name``) to the paper's table for it."""
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
    """Our results, the paper's and their difference, for our centres.

    Attributes:
        ours: our table.
        paper: the paper's table.
        differences: how our runs differ from the paper's, as far as their folders show.
    """

    ours: ResultsTable
    paper: PaperTable
    differences: list[str]

    @property
    def title(self) -> str:
        """Title of the comparison."""
        return f"Compared with Table {self.paper.number} of the paper"

    @property
    def note(self) -> str:
        """Source of the numbers, and whether they can be compared."""
        source = f"Paper: doi:{self.paper.doi}; its mean is computed from its numbers for the centres shown."
        return f"{source} Not directly comparable: {'; '.join(self.differences)}." if self.differences else source

    @property
    def strategies(self) -> list[str]:
        """Strategies of ours and of the paper."""
        return order_strategies([*self.ours.strategies, *self.paper.values["dsc"].index])

    def values(self, metric: Metric) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Our values and the paper's; rows :attr:`strategies`, columns of our table.

        NaN where there is none; a centre that trained in one and was external in the other does not count as the same.
        """
        ours = self.ours.values[metric.column].reindex(index=self.strategies)
        same = [centre for centre in self.ours.training if centre in self.paper.training]
        same += [centre for centre in self.ours.external if centre in self.paper.external]
        paper = self.paper.values[metric.column][same].reindex(index=self.strategies, columns=ours.columns)
        return ours, paper.assign(**{MEAN: paper[self.ours.training].mean(axis=1, skipna=False)})

    def rows(self, metric: Metric) -> list[tuple[str, str, list[str]]]:
        """Strategy, what the row holds (``ours``, ``paper`` or ``ours − paper``), and its cells as text."""
        ours, paper = self.values(metric)
        difference = ours - paper
        return [
            row
            for strategy in self.strategies
            for row in (
                (strategy, "ours", [metric.show(value) for value in ours.loc[strategy]]),
                (strategy, "paper", [metric.show(value) for value in paper.loc[strategy]]),
                (strategy, "ours − paper", [_signed(value, metric) for value in difference.loc[strategy]]),
            )
        ]


def compare_with_paper(table: ResultsTable, runs: Sequence[Run]) -> PaperComparison | None:
    """The table of ``runs`` compared with the paper's of the same dataset; None if the paper has none."""
    dataset = next((str(run.info["dataset"]) for run in runs if "dataset" in run.info), "")
    paper = paper_tables().get(dataset)
    return None if paper is None else PaperComparison(table, paper, _list_differences(paper, table, runs))


def _list_differences(paper: PaperTable, table: ResultsTable, runs: Sequence[Run]) -> list[str]:
    """How the runs differ from the paper's experiment, missing external centres aside."""
    finished = [run for run in runs if run.finished]
    differences = []
    configurations = {str(run.info["configuration"]) for run in finished} - {paper.configuration}
    if configurations:
        differences.append(f"configuration {', '.join(sorted(configurations))}, not {paper.configuration}")
    if table.distance_unit != paper.distance_unit:
        differences.append(f"HD95 in {table.distance_unit}, not {paper.distance_unit}")
    absent = [centre for centre in paper.training if centre not in table.training]
    if absent:
        differences.append(f"trained without {', '.join(absent)}")
    added = [centre for centre in table.training if centre not in paper.training]
    if added:
        differences.append(f"also trained with {', '.join(added)}")
    cases = {node: number for run in finished for node, number in run.info.get("num_training", {}).items()}
    fewer = [
        f"{node} has {cases[node]} cases, not {studies}"
        for node, studies in paper.training.items()
        if cases.get(node, studies) < studies
    ]
    differences += fewer
    lengths = {(run.info["rounds"], run.info["iterations"]) for run in finished} - {(paper.rounds, paper.iterations)}
    differences += [
        f"{rounds} rounds × {iterations} iterations, not {paper.rounds} × {paper.iterations}"
        for rounds, iterations in sorted(lengths)
    ]
    folds = {
        strategy: {fold for run in finished if run.strategy == strategy for fold in run.folds}
        for strategy in table.strategies
    }
    incomplete = [strategy for strategy in table.strategies if not set(map(str, paper.folds)) <= folds[strategy]]
    if incomplete:
        differences.append(f"not all {len(paper.folds)} folds of {', '.join(incomplete)}")
    return differences


def _signed(value: float, metric: Metric) -> str:
    """The value with its sign; without one if it rounds to zero."""
    if np.isnan(value):
        return metric.show(value)
    rounded = round(value, metric.decimals)
    return f"{rounded:+.{metric.decimals}f}".replace("-", "−") if rounded else metric.show(0.0)
