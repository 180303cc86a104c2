"""What a run told the server of single nodes and cases, in plain words for the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fednnunet.listing import MOST_NODES
from fednnunet.reporting.run_folder import Run

IN_CLEAR = (
    "the server saw the layers of every node after each round, with its losses and pseudo-Dice; layers tell something "
    "of the cases that they were trained on (privacy=secure hides them behind averages)"
)
WITH_NOISE = (
    "the server saw the layers of every node after each round, with noise; losses and pseudo-Dice, which have none, "
    "stayed at the nodes"
)
NO_NOISE = (
    "no noise: models and averages tell something of the cases that they were trained on (privacy=case bounds it)"
)
SCORES = {
    "cases": "a row of scores per held-out case left the nodes; cases are numbers in it",
    "mean": "means of scores over five cases or more left the nodes, no score of one case: there are no distributions, "
    "and no tests between strategies",
    "nothing": "no score left the nodes",
}


def statements_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Statements on all runs: the strategies that each is about, and its text."""
    about: dict[str, list[str]] = {}
    for run in runs:
        for statement in _statements(run):
            about.setdefault(statement, []).append(run.strategy)
    return [(", ".join(dict.fromkeys(strategies)), statement) for statement, strategies in about.items()]


def _statements(run: Run) -> Iterator[str]:
    privacy = run.info.get("privacy")
    if privacy is None:  # it did not end
        return
    shares = any(run.info.get("shared_fraction", {}).values())
    sums, noise = privacy["secure_sums"], run.info.get("noise", {})
    if shares and sums is None:
        yield WITH_NOISE if noise else IN_CLEAR
    elif shares:
        yield _secure_sums(run)
    if len(noise) > MOST_NODES:
        least = max(noise, key=lambda node: noise[node]["epsilon"])
        yield f"{len(noise)} nodes added noise; least protects that of node {least}: {noise[least]['meaning']}"
    else:
        for node, of_node in noise.items():
            yield f"node {node}: {of_node['meaning']}"
    if not noise:
        yield NO_NOISE
    yield SCORES[privacy["scores"]]


def _secure_sums(run: Run) -> str:
    sums, means = run.info["privacy"]["secure_sums"], run.round_means
    rounds = run.info.get("rounds", 0) * max(1, len(run.folds))
    void = max(0, rounds - len(means))
    # Of a layer that some nodes have, and whose nodes did not all arrive; a round has more.
    fewest = f"at least {max(sums['min_group'], sums['colluding'] + 2)} nodes"
    what = "layers" if run.info.get("noise") else "layers, losses and pseudo-Dice"
    statement = (
        f"the server saw sums of {what} over {fewest}, and nothing of a single one; up to "
        f"{sums['colluding']} node{'s' * (sums['colluding'] != 1)} may have helped it without changing that"
    )
    return statement + (f"; {void} of {rounds} rounds could not be opened, and were not used" if void else "")
