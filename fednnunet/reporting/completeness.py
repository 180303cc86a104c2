"""Check that runs can be compared in one report, and find the folds that are missing."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fednnunet.errors import DataError
from fednnunet.reporting.run_folder import Run


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs whose scores cannot be compared in one table.

    Raises:
        DataError: two runs are of different datasets, scored different labels at a node, or measured distances in
            different units; names both and what differs.
    """
    for key, what in (("dataset", "dataset"), ("distance_unit", "unit of HD95")):
        known = [run for run in runs if key in run.info]
        for run in known[1:]:
            if run.info[key] != known[0].info[key]:
                raise DataError(
                    f"{known[0].folder} has the {what} {known[0].info[key]}, {run.folder} {run.info[key]}; "
                    f"a report compares runs with the same {what}"
                )
    first: dict[str, tuple[Run, list[str]]] = {}
    for run in runs:
        of_labels = pd.concat([run.cases[["node", "label"]], run.means[run.means["label"] != ""][["node", "label"]]])
        for node, labels in of_labels.groupby("node")["label"]:
            found = sorted(set(labels))
            known_run, expected = first.setdefault(str(node), (run, found))
            if found != expected:
                raise DataError(
                    f"{known_run.folder} scored the labels {', '.join(expected)} at {node}, {run.folder} "
                    f"{', '.join(found)}; a report compares runs with the same labels"
                )


def missing_folds(runs: Sequence[Run]) -> dict[str, str]:
    """Strategy to the folds that it lacks and that others have or should have; complete strategies are left out.

    If all folds of a seed are missing, the seed is named instead.
    """
    expected = sorted({(run.seed, fold) for run in runs for fold in (*run.folds, *run.scored_folds)})
    seeds = {seed for seed, _ in expected}
    missing: dict[str, str] = {}
    for strategy in dict.fromkeys(run.strategy for run in runs):
        of_strategy = [run for run in runs if run.strategy == strategy]
        scored = {(run.seed, fold) for run in of_strategy for fold in run.scored_folds}
        parts = []
        for seed in sorted(seeds):
            folds = [fold for of_seed, fold in expected if of_seed == seed]
            lacking = [fold for fold in folds if (seed, fold) not in scored]
            if not lacking:
                continue
            named = _named(lacking)
            if len(seeds) > 1:
                named = f"seed {seed}" if lacking == folds else f"{named} of seed {seed}"
            parts.append(named)
        if parts:  # also where a run gives nodes two models, of two names
            names = {name for run in of_strategy for table in (run.cases, run.means) for name in table["strategy"]}
            missing |= dict.fromkeys([strategy, *sorted(names - {strategy})], "; ".join(parts))
    return missing


def unscored_folds(runs: Sequence[Run]) -> dict[str, str]:
    """Centre to the folds in which it holds no case out; centres that hold one out in each are left out."""
    unscored: dict[str, set[int]] = {}
    for run in runs:
        for centre, folds in run.info.get("unscored_folds", {}).items():
            unscored.setdefault(centre, set()).update(folds)
    return {centre: _named([str(fold) for fold in sorted(folds)]) for centre, folds in unscored.items()}


def without_foreground(cases: pd.DataFrame) -> list[str]:
    """Centres whose reference masks are all empty, in rows of ``cases.csv``."""
    is_empty = cases["empty"].isin(["reference", "both"])
    of_centre = is_empty.groupby(cases["node"], sort=False).all()
    return [str(centre) for centre in of_centre[of_centre].index]


def _named(folds: Sequence[str]) -> str:
    return f"{'folds' if len(folds) > 1 else 'fold'} {', '.join(folds)}"


def repeated_folds(runs: Sequence[Run]) -> list[str]:
    """Notes about runs that scored the same fold with the same strategy and seed."""
    first: dict[tuple[str, int, str], Run] = {}
    notes: dict[tuple[str, str], str] = {}
    for run in runs:
        for fold in run.scored_folds:
            other = first.setdefault((run.strategy, run.seed, fold), run)
            if other is not run:
                names = str(other.folder), str(run.folder)
                notes[names] = f"{names[0]} and {names[1]} are both {run.strategy}: their scores are averaged"
    return list(notes.values())
