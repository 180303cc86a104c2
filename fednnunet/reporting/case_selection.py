"""Which held-out cases a report pictures: of every centre the best, the median and the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fednnunet.reporting.figures import Overlay, read_dsc, read_overlay
from fednnunet.reporting.run_folder import Run


@dataclass(frozen=True)
class PicturedCase:
    """A held-out case.

    Attributes:
        rank: ``best``, ``median``, ``worst``, or ``only`` where no other was pictured.
        number: of the case at its centre.
        dsc: mean over set-ups; NaN where no set-up's is defined.
        slices: set-up to its slice.
    """

    rank: str
    number: int
    dsc: float
    slices: dict[str, Overlay]


def choose_cases(runs: Sequence[Run], centre: str) -> list[PicturedCase]:
    """Best, median and worst case of a centre, by the mean over set-ups of the DSC, among those all set-ups pictured.

    Where no case was pictured by all, those that most pictured. Cases of all folds are candidates; of several seeds
    each set-up shows its first.

    Raises:
        DataError: a picture cannot be read; names it.
    """
    slices = _slices_by_case(runs, centre)
    most = max(map(len, slices.values()), default=0)
    candidates = {case: found for case, found in slices.items() if len(found) == most}
    dsc = {case: _mean([read_dsc(path) for path in found.values()]) for case, found in candidates.items()}
    # An undefined DSC sorts last, but is not the worst while others are defined.
    ranked = sorted((case for case in dsc if not np.isnan(dsc[case])), key=lambda case: (-dsc[case], case))
    ranked = ranked or sorted(dsc)
    if len(ranked) > 2:
        chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    else:
        chosen = dict(zip(("best", "worst") if len(ranked) == 2 else ("only",), ranked, strict=False))
    return [
        PicturedCase(rank, case, dsc[case], {name: read_overlay(path) for name, path in candidates[case].items()})
        for rank, case in chosen.items()
    ]


def _slices_by_case(runs: Sequence[Run], centre: str) -> dict[int, dict[str, Path]]:
    """Case to set-up to file; runs are in the order of seeds."""
    seeds: dict[str, int] = {}
    slices: dict[int, dict[str, Path]] = {}
    for run in sorted(runs, key=lambda run: not run.finished):
        found: Mapping[int, Path] = run.overlays.get(centre, {})
        if found and seeds.setdefault(run.setup, run.seed) == run.seed:
            for case, path in found.items():
                slices.setdefault(case, {}).setdefault(run.setup, path)
    return slices


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return sum(defined) / len(defined) if defined else np.nan
