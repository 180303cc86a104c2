"""Tables and the figure of both attacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from images import CASES, LARGE
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from metrics import Scores, auc, interval, seed_values, true_positive_rate
from observations import KNOWN, OTHERS
from trainings import DRAWN_CASES, NOISE_STEPS, NOISES, noise_name

from fednnunet.evaluation.statistics import Interval
from fednnunet.files import write_atomically
from fednnunet.privacy.accounting import epsilon_of
from fednnunet.reporting.figures.style import INK, clean, legend, new_figure, save_figure

ATTACKS = {"loss": "loss", "calibrated": "loss less a reference's"}
COLOURS = {"loss": "#0072B2", "calibrated": "#D55E00"}


def hospital_scores(cases: pd.DataFrame, attack: str) -> list[list[Scores]]:
    """Of every seed, the scores of each hospital's members and others."""
    scored = cases.assign(score=cases["loss"] - (cases["reference_loss"] if attack == "calibrated" else 0.0))
    return [
        [
            (
                hospital.loc[hospital["member"], "score"].to_numpy(),
                hospital.loc[~hospital["member"], "score"].to_numpy(),
            )
            for _, hospital in of_seed.groupby("hospital")
        ]
        for _, of_seed in scored.groupby("seed")
    ]


def epsilons() -> dict[str, float]:
    """Row of every noise multiplier to epsilon after its training, at a delta of a tenth of one over the cases."""
    number, _ = CASES[LARGE]
    return {
        f"60 cases, {noise_name(noise)}": epsilon_of(noise, DRAWN_CASES / number, NOISE_STEPS, 0.1 / number)
        for noise in NOISES
    }


def membership_table(cases: pd.DataFrame) -> pd.DataFrame:
    """One row per model: AUC and true-positive rate of both attacks with intervals, and DSC on held-out cases."""
    rows = []
    for model in sorted(dict.fromkeys(cases["model"]), key=lambda name: name.startswith("60 cases")):
        of_model = cases[cases["model"] == model]
        row: dict[str, object] = {"model": model}
        for attack in ATTACKS:
            seeds = hospital_scores(of_model, attack)
            for name, statistic in (("auc", auc), ("tpr", true_positive_rate)):
                row[f"{attack}_{name}"] = interval(seeds, statistic)
            row[f"{attack}_seeds"] = seed_values(seeds, auc)
        held_out = of_model[~of_model["member"]]
        row["dsc"] = float(held_out.groupby(["seed", "hospital"])["dsc"].mean().mean())
        row["epsilon"] = epsilons().get(model, np.inf)
        rows.append(row)
    return pd.DataFrame(rows)


def membership_markdown(table: pd.DataFrame) -> str:
    """The table for the README."""
    head = ["model", "AUC, loss", "AUC, calibrated", "TPR at 5 % FPR, loss", "TPR, calibrated", "DSC, held out", "ε"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for row in table.to_dict("records"):
        cells = [
            row["model"],
            *(_show(row[f"{attack}_{name}"]) for name in ("auc", "tpr") for attack in ATTACKS),
            f"{row['dsc']:.2f}",
            f"{row['epsilon']:.0f}" if np.isfinite(row["epsilon"]) else "none",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _show(value: Interval) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def inversion_table(patches: pd.DataFrame) -> pd.DataFrame:
    """One row per scenario: how many patches, correlations, ranks."""
    grouped = patches.groupby("observed", sort=False)
    return pd.DataFrame(
        {
            "patches": grouped.size(),
            "correlation": grouped["correlation"].median(),
            "others": grouped["others"].median(),
            "rank": grouped["rank"].median(),
            "known_rank": grouped["known_rank"].median(),
        }
    ).reset_index()


def inversion_markdown(table: pd.DataFrame) -> str:
    """The table for the README."""
    ranks = [f"rank of {OTHERS}", f"known: rank of {KNOWN}"]
    head = ["what is observed", "patches", "correlation", "of others", *ranks]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for row in table.to_dict("records"):
        numbers = f"{row['correlation']:.2f} | {row['others']:.2f} | {row['rank']:.0f} | {row['known_rank']:.0f}"
        lines.append(f"| {row['observed']} | {row['patches']} | {numbers} |")
    return "\n".join(lines) + "\n"


def draw(membership: pd.DataFrame, patches: pd.DataFrame):
    """AUC of membership inference and DSC by model; ranks of inverted patches by what was observed."""
    scenarios = list(dict.fromkeys(patches["observed"]))
    figure = new_figure((9.6, 1.7 + 0.36 * (len(membership) + len(scenarios))))
    upper, lower = figure.subfigures(2, 1, height_ratios=[len(membership) + 1.5, len(scenarios) + 1.2])
    left, right = upper.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    _draw_membership(left, right, membership)
    _draw_inversion(lower.subplots(), patches, scenarios)
    handles = [Line2D([], [], marker="D", color=COLOURS[key], lw=2, label=name) for key, name in ATTACKS.items()]
    legend(figure, handles)
    return figure


def _draw_membership(left: Axes, right: Axes, table: pd.DataFrame) -> None:
    for axes in (left, right):
        clean(axes)
    left.axvline(0.5, color="#9aa5b1", lw=1, ls="--")
    for place, row in enumerate(table.to_dict("records")):
        for attack, shift in zip(ATTACKS, (-0.15, 0.15), strict=True):
            value, y, colour = row[f"{attack}_auc"], place + shift, COLOURS[attack]
            left.plot([value.low, value.high], [y, y], color=colour, lw=2.2, solid_capstyle="butt")
            left.plot(value.mean, y, "D", ms=5, color=colour)
            seeds = row[f"{attack}_seeds"]
            left.plot(seeds, [y] * len(seeds), "o", ms=4, mfc="none", mec=colour, alpha=0.6)
        right.plot([0, row["dsc"]], [place, place], color=INK, lw=2.2)
        right.plot(row["dsc"], place, "o", ms=5, color=INK)
    left.set_yticks(range(len(table)), table["model"])
    left.set_ylim(len(table) - 0.5, -0.5)
    left.set_xlim(0.4, 1.02)
    right.set_xlim(0, 1)
    left.set_xlabel("membership inference: AUC (0.5: guessing)")
    right.set_xlabel("DSC on held-out cases")


def _draw_inversion(axes: Axes, patches: pd.DataFrame, scenarios: Sequence[str]) -> None:
    clean(axes)
    axes.axvline(OTHERS / 2, color="#9aa5b1", lw=1, ls="--")
    for place, scenario in enumerate(scenarios):
        ranks = patches.loc[patches["observed"] == scenario, "rank"].to_numpy()
        spread = (np.arange(ranks.size) * 0.618 % 1 - 0.5) * 0.5
        axes.plot(ranks, place + spread, "o", ms=4.5, mfc=COLOURS["loss"], mec="white", mew=0.4, alpha=0.85)
        axes.plot([np.median(ranks)] * 2, [place - 0.36, place + 0.36], color=INK, lw=2)
    axes.set_yticks(range(len(scenarios)), scenarios)
    axes.set_ylim(len(scenarios) - 0.5, -0.5)
    axes.set_xlim(-6, OTHERS + 6)
    axes.set_xlabel(f"inversion: patches that look more like what was found than the true one does (of {OTHERS})")


def write_report(out: Path, cases: pd.DataFrame, patches: pd.DataFrame) -> str:
    """Write tables as CSV and Markdown, and the figure as PNG and SVG, into ``out``; returns the Markdown."""
    membership, inversion = membership_table(cases), inversion_table(patches)
    write_atomically(out / "membership.csv", cases.to_csv(index=False))
    write_atomically(out / "inversion.csv", patches.to_csv(index=False))
    text = f"{membership_markdown(membership)}\n{inversion_markdown(inversion)}"
    write_atomically(out / "attacks.md", text)
    save_figure(draw(membership, patches), out, "attacks")
    return text
