"""What a run knows of a model that is handed over: for its card."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fednnunet.config.dataset import POOLED_NODE
from fednnunet.evaluation.statistics import bootstrap
from fednnunet.exchange.messages import ENSEMBLE, MIN_CASES
from fednnunet.models.model_card import CentreScore, Estimate, RunFacts
from fednnunet.reporting.privacy import statements_of
from fednnunet.reporting.run_folder import Run
from fednnunet.reporting.tables.results_table import own_scores
from fednnunet.run_files import FINE_TUNED, SHARED


def facts_of_run(
    run: Run, node: str | None, folds: Sequence[str], with_names: bool = False, personal: bool = False
) -> RunFacts:
    """Facts of one node's model, or of the one that all nodes share.

    Args:
        run: the run.
        node: whose model it is; None for that of all nodes.
        folds: that are handed over.
        with_names: whether centres are named; else they have numbers, in the order of the run's configuration.
        personal: whether it is the node's own, fine-tuned or Ditto's, where there is the federation's beside it.
    """
    names = Names(run, with_names)
    strategy = strategy_of(run, personal)
    pooled = node == POOLED_NODE
    alone = node is not None and not pooled
    counts = {centre: int(cases) for centre, cases in run.info.get("num_training", {}).items()}
    training = names.training
    if alone and "shared_fraction" in run.info and not run.info["shared_fraction"].get(node):
        training = [name for name in training if name == node]  # it has received nothing of the others
        counts = {name: cases for name, cases in counts.items() if name == node}
    of_centres = {centre: counts[centre] for centre in training if centre in counts}
    return RunFacts(
        strategy=strategy,
        trained_for="pooled cases" if pooled else "node" if alone else "federation",
        centres=len(training) or None,
        names=[names.of(centre) for centre in training] if with_names else None,
        cases=counts.get(POOLED_NODE) or sum(counts.values()) or None,
        cases_of_centres={names.of(centre): cases for centre, cases in of_centres.items()},
        rounds=run.info.get("rounds"),
        iterations=run.info.get("iterations"),
        distance_unit=str(run.info.get("distance_unit", "mm")),
        scores=_scores(run, strategy, node if alone else None, folds, names),
        privacy=[names.replace_in(text) for _, text in statements_of([run])],
    )


def strategy_of(run: Run, personal: bool) -> str:
    """What ``cases.csv`` calls the strategy of a model, where nodes end with two."""
    of_rows = {*run.cases["strategy"], *run.means["strategy"]}
    other = f"{run.strategy} {FINE_TUNED if personal else SHARED}"
    return other if other in of_rows else run.strategy


class Names:
    """Names of a run's centres, or numbers in place of them."""

    def __init__(self, run: Run, with_names: bool) -> None:
        self.external = [str(name) for name in run.info.get("external", [])]
        self.training = [str(name) for name in run.info.get("nodes", []) if name != POOLED_NODE]
        numbered = {name: f"centre {number}" for number, name in enumerate(self.training, 1)}
        numbered |= {name: f"external centre {number}" for number, name in enumerate(self.external, 1)}
        self._shown = {name: name if with_names else text for name, text in numbered.items()}

    def of(self, centre: str) -> str:
        """What a centre is called on the card."""
        return self._shown.get(centre, "a centre")

    def replace_in(self, text: str) -> str:
        """A statement of the run's report on single nodes, with them called so."""
        for name, shown in self._shown.items():
            text = re.sub(rf"\bnode {re.escape(name)}(?!\w)", shown, text)
        return text

    def is_external(self, centre: str) -> bool:
        """Whether it took no part in training."""
        return centre in self.external


def _scores(run: Run, strategy: str, node: str | None, folds: Sequence[str], names: Names) -> list[CentreScore]:
    """Of held-out cases, in the order of the centres: label by label, then the mean over labels of each case."""
    is_whole = set(folds) >= set(run.folds)
    counted = {*folds, *([ENSEMBLE] if is_whole else [])}
    scores = []
    cases, means = (
        rows[rows["fold"].astype(str).isin(counted) & (rows["strategy"] == strategy)] for rows in (run.cases, run.means)
    )
    for centre in (*names.training, *names.external):
        of_centre, told = (_of_model(rows[rows["node"] == centre], node) for rows in (cases, means))
        for label in (*dict.fromkeys(of_centre["label"]), ""):
            rows = of_centre if label == "" else of_centre[of_centre["label"] == label]
            if label == "" and of_centre["label"].nunique() == 1:
                continue  # the mean over one label
            if score := _score(rows, names, centre, label):
                scores.append(score)
        for label, rows in told[told["n_cases"] > 0].groupby("label", sort=False):
            scores.append(_told_score(rows, names, centre, str(label)))
    return scores


def _of_model(rows: pd.DataFrame, node: str | None) -> pd.DataFrame:
    """Rows of a node's model; of the model of all nodes: each centre's own, and at external centres any node's."""
    if node is not None:
        return rows[rows["model"] == node]
    return own_scores(rows) if len(rows) else rows


def _score(rows: pd.DataFrame, names: Names, centre: str, label: str) -> CentreScore | None:
    """Of five cases or more: a mean over one is that case's score, and the interval of two is both of theirs."""
    if rows.empty:
        return None
    of_case = rows.groupby(["fold", "case"], sort=False)[["dsc", "hd95"]].mean()
    dsc, hd95 = _estimate(of_case["dsc"]), _estimate(of_case["hd95"])
    if dsc is None and hd95 is None:
        return None
    role = "external" if names.is_external(centre) else "training"
    return CentreScore(centre=names.of(centre), role=role, label=label, dsc=dsc, hd95=hd95)  # type: ignore[arg-type]


def _estimate(values: pd.Series) -> Estimate | None:
    known = values.dropna().to_numpy(float)
    if len(known) < MIN_CASES:
        return None
    interval = bootstrap([known])
    low, high = ((None if np.isnan(bound) else float(bound)) for bound in (interval.low, interval.high))
    return Estimate(mean=float(interval.mean), low=low, high=high, cases=len(known))


def _told_score(rows: pd.DataFrame, names: Names, centre: str, label: str) -> CentreScore:
    """Means that a node has told in place of its cases' scores: no interval is known."""

    def estimate(metric: str) -> Estimate | None:
        known = rows[rows[metric].notna()]
        counts = known["n_cases"].astype(int)
        if not counts.sum():
            return None
        return Estimate(mean=float(np.average(known[metric], weights=counts)), cases=int(counts.sum()))

    role = "external" if names.is_external(centre) else "training"
    return CentreScore(centre=names.of(centre), role=role, label=label, dsc=estimate("dsc"), hd95=estimate("hd95"))  # type: ignore[arg-type]
