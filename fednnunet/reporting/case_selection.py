"""Choose the held-out cases that a report shows: the best, the median and the worst of every centre."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fednnunet.reporting.figures import Overlay, read_dsc, read_overlay
from fednnunet.reporting.run_folder import Run


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
    if len(ranked) > 2:
        chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    else:
        chosen = dict(zip(("best", "worst") if len(ranked) == 2 else ("only",), ranked, strict=False))
    return [
        ShownCase(rank, case, dsc[case], {name: read_overlay(path) for name, path in candidates[case].items()})
        for rank, case in chosen.items()
    ]


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
