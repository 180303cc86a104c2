"""Choose what a report shows pictures of: the best, the median and the worst case of a centre; of many centres, too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from fednnunet.listing import MOST_NODES
from fednnunet.reporting.figures import Overlay, read_dsc, read_overlay
from fednnunet.reporting.run_folder import Run

T = TypeVar("T")


@dataclass(frozen=True)
class ShownCase:
    """A held-out case that the report shows.

    Attributes:
        rank: ``best``, ``median``, ``worst``, or ``only`` if there is no other picture.
        number: number of the case at its centre.
        dsc: mean DSC over strategies; NaN if undefined for all.
        slices: strategy to its slice.
    """

    rank: str
    number: int
    dsc: float
    slices: dict[str, Overlay]


def choose_cases(runs: Sequence[Run], centre: str) -> list[ShownCase]:
    """Best, median and worst case of a centre by its mean DSC over strategies.

    Candidates are the cases, of all folds, with pictures from all strategies, or else from most of them. Where there
    are several seeds, each strategy shows its first.

    Raises:
        DataError: a picture cannot be read; names its file.
    """
    slices = _slices_by_case(runs, centre)
    most = max(map(len, slices.values()), default=0)
    candidates = {case: found for case, found in slices.items() if len(found) == most}
    dsc = {case: _mean_of_defined([read_dsc(path) for path in found.values()]) for case, found in candidates.items()}
    # An undefined DSC sorts last, but is not the worst while others are defined.
    ranked = sorted((case for case in dsc if not np.isnan(dsc[case])), key=lambda case: (-dsc[case], case))
    ranked = ranked or sorted(dsc)
    return [
        ShownCase(rank, case, dsc[case], {name: read_overlay(path) for name, path in candidates[case].items()})
        for rank, case in _best_median_worst(ranked).items()
    ]


def choose_nodes(nodes: Sequence[str], scores: pd.DataFrame, external: Collection[str]) -> dict[str, str]:
    """Nodes whose cases are shown, and which they are among others.

    Up to :data:`~fednnunet.listing.MOST_NODES` all are shown; of more, the best, the median and the worst of those that
    train, and of those that are external, by the mean DSC of their cases over strategies.

    Args:
        nodes: nodes with pictures, in order.
        scores: one row per case (:func:`~fednnunet.reporting.tables.results_table.case_means`).
        external: nodes that do not train.

    Returns:
        Node to a text such as ``worst training node``, which is empty where all are shown.
    """
    if len(nodes) <= MOST_NODES:
        return dict.fromkeys(nodes, "")
    dsc = scores.groupby(["node", "strategy"])["dsc"].mean().groupby("node").mean().dropna()
    chosen: dict[str, str] = {}
    for kind, of_kind in (("training", set(nodes) - set(external)), ("external", set(nodes) & set(external))):
        known = sorted(of_kind & set(dsc.index), key=lambda node: (-dsc[node], node))
        chosen |= {node: f"{rank} {kind} node" for rank, node in _best_median_worst(known or sorted(of_kind)).items()}
    return chosen


def _best_median_worst(ranked: Sequence[T]) -> dict[str, T]:
    """Three of those in ``ranked``, or all of fewer: ``only`` one, or ``best`` and ``worst``."""
    if len(ranked) > 2:
        return {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    return dict(zip(("best", "worst") if len(ranked) == 2 else ("only",), ranked, strict=False))


def _slices_by_case(runs: Sequence[Run], centre: str) -> dict[int, dict[str, Path]]:
    """Case to strategy to file; runs are in the order of seeds."""
    seeds: dict[str, int] = {}
    slices: dict[int, dict[str, Path]] = {}
    for run in sorted(runs, key=lambda run: not run.finished):
        found: Mapping[int, Path] = run.overlays.get(centre, {})
        if found and seeds.setdefault(run.strategy, run.seed) == run.seed:
            for case, path in found.items():
                slices.setdefault(case, {}).setdefault(run.strategy, path)
    return slices


def _mean_of_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return sum(defined) / len(defined) if defined else np.nan
