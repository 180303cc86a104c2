"""Scores and models of candidates in folders of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fednnunet.config.dataset import POOLED_NODE
from fednnunet.errors import DataError
from fednnunet.models.model_folder import ModelFolder
from fednnunet.reporting.completeness import check_comparable, repeated_folds
from fednnunet.reporting.finish import find_runs
from fednnunet.reporting.run_folder import Run, merge, node_order, read_runs
from fednnunet.reporting.scores import collect_scores, join_means, split_means, with_seed
from fednnunet.reporting.tables.results_table import NOT_PRIVATE
from fednnunet.selection.sources import Sources, is_second, model_folder


def read_run_sources(folders: Sequence[Path]) -> Sources:
    """Candidates of runs, by what ``cases.csv`` says.

    Args:
        folders: folders of runs, or of sweeps. Runs that pool images are left out.

    Raises:
        DataError: a run is not finished, two runs are of the same strategy, seed and fold, or runs differ in dataset,
            labels, images or folds; names them.
    """
    runs = [run for run in read_runs(find_runs(folders)) if run.strategy.split(" ")[0] != NOT_PRIVATE]
    if not runs:
        raise DataError(f"{folders[0]}: pooled images are no candidate of a hospital; name runs of other strategies")
    for run in runs:
        if not run.finished:
            raise DataError(f"{run.folder} did not finish; go on with it: python train.py continue={run.folder}")
    check_comparable(runs)
    if repeated := repeated_folds(runs):
        raise DataError(f"{repeated[0].rpartition(':')[0]}; name one of them")
    _check_agreement(runs)
    training, _ = node_order(runs)
    training = [node for node in training if node != POOLED_NODE]
    cases, means = split_means(merge([join_means(run.cases, run.means) for run in runs]))
    inside = [rows[rows["node"].isin(training)] for rows in (cases, means)]
    scores = with_seed(collect_scores(*inside), runs[0].seed)
    models: dict[tuple[str, int, str], list[ModelFolder]] = {}
    for run in runs:
        candidates = {*map(str, run.cases["strategy"]), *map(str, run.means["strategy"])}
        for candidate in sorted(candidates):
            for node in training:
                folder = run.folder / "nodes" / node
                found = model_folder(folder, is_second(candidate, candidates), run.info.get("configuration"))
                if found is not None:
                    models.setdefault((candidate, run.seed, node), []).append(found)
    return Sources(str(runs[0].info.get("dataset", "")), scores, training, models)


def _check_agreement(runs: Sequence[Run]) -> None:
    """Refuse runs that are not of the same images and folds for each seed, or not of the same seeds.

    Raises:
        DataError: names two runs and what differs, or the run that is missing.
    """
    strategies = list(dict.fromkeys(run.strategy for run in runs))
    for seed in sorted({run.seed for run in runs}):
        of_seed = [run for run in runs if run.seed == seed]
        for strategy in strategies:
            if strategy not in {run.strategy for run in of_seed}:
                raise DataError(
                    f"{strategy} has no run of seed {seed}, of which {of_seed[0].folder} is one; "
                    "name one, or leave that seed out"
                )
        folds = {name: sorted({f for run in of_seed if run.strategy == name for f in run.folds}) for name in strategies}
        first = of_seed[0]
        for run in of_seed[1:]:
            if folds[run.strategy] != folds[first.strategy]:
                raise DataError(
                    f"{first.folder} has folds {', '.join(folds[first.strategy])}, {run.folder} "
                    f"{', '.join(folds[run.strategy])}; choose among runs of the same folds"
                )
            ours, theirs = first.info.get("num_training", {}), run.info.get("num_training", {})
            for node in ours.keys() & theirs.keys():
                if ours[node] != theirs[node]:
                    raise DataError(
                        f"{node} had {ours[node]} training cases in {first.folder}, {theirs[node]} in {run.folder}; "
                        "choose among runs of the same images"
                    )
