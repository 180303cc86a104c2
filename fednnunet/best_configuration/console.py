"""The decision on the terminal."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table

from fednnunet.best_configuration.decision import Candidate, Decision
from fednnunet.listing import join_all, join_nodes

MOST_LABELS = 8
"""Labels of which the table has a column each; of more, it has the mean only."""


def show_decision(decision: Decision, console: Console) -> None:
    """Print the scores of all candidates, the best one, and the steps of post-processing."""
    nodes, folds = join_nodes(decision.nodes), ", ".join(map(str, decision.folds))
    counted = f"{decision.num_cases} held-out case{'s' * (decision.num_cases != 1)} of {nodes}"
    console.print(f"mean Dice over {counted}; folds {folds}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("configuration")
    table.add_column("mean over labels" if len(decision.labels.names) > 1 else "Dice", justify="right")
    by_label = 1 < len(decision.labels.names) <= MOST_LABELS
    for name in decision.labels.names if by_label else ():
        table.add_column(name, justify="right")
    for candidate in decision.candidates:
        means = (candidate.dice, *(candidate.of_labels if by_label else ()))
        style = "bold" if candidate == decision.best else None
        table.add_row(shown_name(candidate), *map(_digits, means), style=style)
    console.print(table)
    console.print(f"best: {shown_name(decision.best)}, {_digits(decision.best.dice)}", soft_wrap=True)
    if decision.left_out:
        console.print(
            f"left out, as no held-out case and no prediction holds it: {join_all(decision.left_out)}", soft_wrap=True
        )
    if not decision.steps:
        return
    steps = Table(box=box.SIMPLE_HEAD)
    steps.add_column("keep the largest component only of")
    steps.add_column("before", justify="right")
    steps.add_column("after", justify="right")
    steps.add_column()
    for step in decision.steps:
        steps.add_row(step.name, _digits(step.before), _digits(step.after), "kept" if step.kept else "does not help")
    console.print(steps)
    console.print(f"after post-processing: {_digits(decision.after)}")


def shown_name(candidate: Candidate) -> str:
    """A candidate's configurations; trainer and plans where they are not nnU-Net's own."""
    return " + ".join(
        model.configuration
        if (model.trainer, model.plans) == ("nnUNetTrainer", "nnUNetPlans")
        else f"{model.configuration} ({model.trainer}, {model.plans})"
        for model in candidate.models
    )


def _digits(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"
