"""How often would a hospital choose to its loss? Drawn scores, whose true differences are known; in minutes.

    python experiments/selection/simulation.py

A hospital trains alone, and has three other candidates. Each is better or worse than alone by a true difference, drawn
for the hospital; in a case by more or less (sd 0.1 of paired differences, as on the phantom); and in each fold by the
luck of its training (sd 0.03). Choices and verdicts are the product's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from oracle import oracle

from fednnunet.evaluation.choice import select
from fednnunet.reporting.gains import LOSES, gain_of, judge
from fednnunet.reporting.selected import SELECTED

CANDIDATES = ("local", "asym", "ffe", "ffe fine-tuned")
MEANS = (0.0, 0.01, 0.02, 0.015)
"""True differences to training alone, on average over hospitals: those of a federation that helps a little."""
FOLDS = 5
HOSPITALS = 500


@dataclass(frozen=True)
class Spread:
    """Standard deviations of differences to training alone: over hospitals, cases, and trainings of a fold."""

    hospitals: float = 0.04
    cases: float = 0.1
    trainings: float = 0.03


def draw_hospital(rng: np.random.Generator, cases: int, spread: Spread) -> pd.DataFrame:
    """Scores of each candidate (columns) in each case, indexed by ``fold`` and ``case``."""
    others = len(CANDIDATES) - 1
    true = np.array(MEANS[1:]) + rng.normal(0, spread.hospitals, others)
    fold = np.arange(cases) % FOLDS
    # Candidates other than alone have half of the variance between cases in common.
    common, own = (
        rng.normal(0, spread.cases / 2**0.5, (cases, 1)),
        rng.normal(0, spread.cases / 2**0.5, (cases, others)),
    )
    luck = rng.normal(0, spread.trainings, (FOLDS, others))[fold]
    alone = rng.uniform(0.5, 0.9, (cases, 1))
    index = pd.MultiIndex.from_arrays([fold.astype(str), np.arange(cases)], names=["fold", "case"])
    return pd.DataFrame(np.hstack([alone, alone + true + common + own + luck]), index=index, columns=list(CANDIDATES))


def simulate(cases: int, hospitals: int, noise: Sequence[float], spread: Spread, seed: int = 0) -> pd.DataFrame:
    """One row per way to get a model: mean difference to alone, and the share of hospitals below alone beyond noise."""
    rng = np.random.default_rng([seed, cases])
    found: dict[str, list[tuple[float, bool]]] = {}
    single = CANDIDATES[int(np.argmax(MEANS))]
    for _ in range(hospitals):
        scores = draw_hospital(rng, cases, spread)
        weights = pd.Series(1.0, index=scores.index)
        chosen = {
            f"selected, {errors:g} SE": select(scores, weights, single, standard_errors=errors) for errors in noise
        }
        some = next(iter(chosen.values()))
        scored = {f"{single} for all": (some, single), **{name: (one, SELECTED) for name, one in chosen.items()}}
        scored["oracle"] = (some, oracle(some))
        for name, (one, candidate) in scored.items():
            values = one.selected if candidate == SELECTED else one.scores[candidate]
            mean = float((values - one.scores["local"]).mean())
            # Only where it is below alone can the interval be, and bootstraps take most of the time.
            lose = mean < 0 and judge(gain_of([one], candidate, "local")) == LOSES
            found.setdefault(name, []).append((mean, lose))
    rows = []
    for name, gained in found.items():
        differences, lose = zip(*gained, strict=True)
        rows.append({"cases": cases, "model": name, "difference": np.mean(differences), "lose": np.mean(lose)})
    return pd.DataFrame(rows)


def as_markdown(rows: pd.DataFrame) -> str:
    """Models by numbers of cases: difference to alone, and the share of hospitals that lose."""
    counts = list(dict.fromkeys(rows["cases"]))
    lines = [f"| | {' | '.join(f'{count} cases' for count in counts)} |", f"| --- |{' ---: |' * len(counts)}"]
    for name, of_name in rows.groupby("model", sort=False):
        cells = [f"{row.difference:+.3f}, {100 * row.lose:.1f} %" for row in of_name.itertuples()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines).replace("-0.", "−0.") + "\n"


def main() -> int:
    """Print the table."""
    rows = [simulate(cases, HOSPITALS, (0.0, 1.0, 2.0), Spread()) for cases in (10, 20, 40, 100)]
    print(as_markdown(pd.concat(rows)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
