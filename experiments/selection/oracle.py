"""What no honest choice can know: the best candidate on the cases that it is scored on."""

from __future__ import annotations

from fednnunet.evaluation.choice import Selection, best_candidate


def oracle(selection: Selection) -> str:
    """The candidate with the best mean over a hospital's cases."""
    scores, weights = selection.scores, selection.weights
    return str(scores.columns[best_candidate(scores.to_numpy(float), weights.to_numpy(float))])
