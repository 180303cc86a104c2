"""Tables and the picture: does one network learn every hospital's organ, and what does a hospital pay for it?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scoring import ANNOTATED, EXTERNAL, TRAININGS, read_predictions, read_scores, read_voxels, truth_of

from fednnunet.evaluation.statistics import Interval, mean_interval
from fednnunet.files import write_atomically
from fednnunet.phantoms.organs import ORGANS, TRUTH_LABELS
from fednnunet.reporting.figures.style import save_picture

sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiment_runs import as_text, is_below, publish_seeds, table_of

README = Path(__file__).parent / "README.md"
IMAGES = README.parents[2] / "docs" / "images"
PICTURE = "partial_labels"
UPPER, ALONE, SHOWN, UNTAUGHT = "all", "alone", "union", "marginal"
TAUGHT = ("union", "tuned")
TITLES = (
    "image that no training saw",
    "what this hospital draws",
    "what the shared network\nof all three segments",
    "all that is there\n(for comparison alone)",
)
"""Of the picture's columns."""
COLOURS = {"liver": "#0072B2", "spleen": "#D55E00", "kidney": "#009E73"}
"""Of Okabe and Ito's palette."""


def over_cases(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean ``dsc`` over a centre's cases, by training, seed, node, centre and organ: what all tables are made of."""
    return scores.groupby(["training", "seed", "node", "centre", "organ"])["dsc"].mean().reset_index()


def of_places(means: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds and its interval, by training, place and organ.

    At a hospital its own model is scored; at the external centre the mean is over the models of the hospitals that know
    the organ.
    """
    by_seed = means.groupby(["training", "centre", "organ", "seed"])["dsc"].mean()
    rows = [
        {"training": training, "centre": centre, "organ": organ, "seeds": len(values), **vars(mean_interval(values))}
        for (training, centre, organ), values in by_seed.groupby(["training", "centre", "organ"])
    ]
    return pd.DataFrame(rows)


def unannotated(means: pd.DataFrame, training: str) -> pd.Series:
    """By node and seed: mean DSC of the organs that the node's hospital never annotated, on its held-out cases."""
    means = means[(means["training"] == training) & (means["node"] == means["centre"])]
    return means[means["organ"] != means["node"].map(ANNOTATED)].groupby(["node", "seed"])["dsc"].mean()


def own(means: pd.DataFrame, training: str) -> pd.Series:
    """By node and seed: mean DSC of the organ that the node's hospital annotates, on its held-out cases."""
    means = means[(means["training"] == training) & (means["node"] == means["centre"])]
    return means[means["organ"] == means["node"].map(ANNOTATED)].groupby(["node", "seed"])["dsc"].mean()


def ratios(means: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """Training to hospital (and ``mean``) to :func:`unannotated`, divided by that of full annotation, same seed."""
    found = {}
    for training in TRAININGS:
        ratio = (unannotated(means, training) / unannotated(means, UPPER)).dropna()
        if training != UPPER and not ratio.empty:
            found[training] = _by_node(ratio)
    return found


def differences(means: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """Training to hospital (and ``mean``) to :func:`own`, less that of the hospital alone, same seed."""
    found = {}
    for training in TRAININGS:
        difference = (own(means, training) - own(means, ALONE)).dropna()
        if training != ALONE and not difference.empty:
            found[training] = _by_node(difference)
    return found


def external(means: pd.DataFrame, training: str) -> pd.Series:
    """By node and seed: mean DSC over all organs of the node's model, on the cases of the external centre."""
    means = means[(means["training"] == training) & (means["centre"] == EXTERNAL)]
    return means.groupby(["node", "seed"])["dsc"].mean()


def gains(means: pd.DataFrame, taught: str) -> dict[str, dict[str, Interval]]:
    """What teaching adds in a training, by what is scored and hospital (and ``mean``): the DSC less that without it."""
    found = {}
    parts = {"own organ": own, "organs never annotated": unannotated, f"all organs in {EXTERNAL}": external}
    for title, part in parts.items():
        gain = (part(means, taught) - part(means, UNTAUGHT)).dropna()
        if not gain.empty:
            found[title] = _by_node(gain)
    return found


def _by_node(values: pd.Series) -> dict[str, Interval]:
    intervals = {str(node): mean_interval(of_node.to_list()) for node, of_node in values.groupby("node")}
    return intervals | {"mean": mean_interval(values.groupby("seed").mean().to_list())}


def as_markdown(means: pd.DataFrame) -> str:
    """All tables, of what :func:`over_cases` gives."""
    trained = [training for training in TRAININGS if training in set(means["training"])]
    titles = [TRAININGS[training].title for training in trained]
    seeds = means.groupby("training")["seed"].nunique()
    counts = ", ".join(f"{TRAININGS[training].title} {seeds[training]}" for training in trained)
    cells = {
        (row["training"], row["centre"], row["organ"]): as_text(Interval(row["mean"], row["low"], row["high"]))
        for row in of_places(means).to_dict("records")
    }
    nodes = [*ANNOTATED, "mean"]
    rows, head = [], ["", *nodes]
    for centre in (*ANNOTATED, EXTERNAL):
        for organ in ORGANS:
            name = f"**{organ}**" if ANNOTATED.get(centre) == organ else organ
            rows.append([f"{centre}, {name}", *[cells.get((t, centre, organ), "–") for t in trained]])
    parts = [
        f"Seeds: {counts}.\n",
        "DSC; bold: the organ that the hospital annotates:\n",
        table_of(["cases of, organ", *titles], rows),
    ]
    for title, found, sign in (
        (
            "Organs that a hospital never annotated, divided by the DSC where all annotate all (same seed):",
            ratios(means),
            "",
        ),
        ("The hospital's own organ, less the DSC of the hospital alone (same seed):", differences(means), "+"),
    ):
        lines = []
        for training, by_node in found.items():
            lines.append([TRAININGS[training].title, *[as_text(by_node[node], sign) for node in nodes]])
            if sign:
                lines.append(["… below alone?", *[is_below(by_node[node]) for node in nodes]])
        if lines:
            parts += [f"{title}\n", table_of(head, lines)]
    for taught in TAUGHT:
        if found := gains(means, taught):
            title = f"{TRAININGS[taught].title}, less {TRAININGS[UNTAUGHT].title} (same seed):"
            lines = [[part, *[as_text(by_node[node], "+") for node in nodes]] for part, by_node in found.items()]
            parts += [f"{title}\n", table_of(head, lines)]
    return "\n".join(parts)


def picture(out: Path, scores: pd.DataFrame, seed: int, training: str = SHOWN) -> Figure:
    """A held-out case of every hospital: image, own annotation, prediction of the hospital's model, truth.

    Of each hospital, the case of median mean DSC; of that case, the slice with most organs, then most foreground.
    """
    figure = Figure(figsize=(8, 6.2), layout="constrained")
    axes = figure.subplots(len(ANNOTATED), 4)
    of_run = scores[(scores["training"] == training) & (scores["seed"] == seed)]
    dsc = of_run.groupby(["node", "centre", "case"])["dsc"].mean()
    predictions = {
        (node, centre, case.name): (case, labels)
        for node, centre, case, labels in read_predictions(out, training, seed)
    }
    for line, node in zip(axes, ANNOTATED, strict=True):
        ordered = dsc[node, node].sort_values(kind="stable")
        case, predicted = predictions[node, node, str(ordered.index[len(ordered) // 2])]
        truth, image = truth_of(case), read_voxels(case.images[0])
        z = max(range(len(truth)), key=lambda k: (len(np.unique(truth[k])), np.count_nonzero(truth[k])))
        own_value = TRUTH_LABELS[ANNOTATED[node]]
        for axis, labels in zip(line, (None, np.where(truth == own_value, truth, 0), predicted, truth), strict=True):
            _show(axis, image[z], None if labels is None else labels[z])
        line[0].set_ylabel(f"{node}: draws the {ANNOTATED[node]}")
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=10)
    handles = [axes[0, 0].plot([], [], "s", color=COLOURS[organ], label=organ)[0] for organ in ORGANS]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(ORGANS), frameon=False)
    return figure


def _show(axis: Axes, image: np.ndarray, labels: np.ndarray | None) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=np.percentile(image, 99.5))
    for organ in ORGANS if labels is not None else ():
        mask = (labels == TRUTH_LABELS[organ]).astype(float)
        if mask.any():
            axis.contourf(mask, levels=[0.5, 1.5], colors=[COLOURS[organ]], alpha=0.45)
            axis.contour(mask, levels=[0.5], colors=[COLOURS[organ]], linewidths=1.2)
    axis.set(xticks=[], yticks=[])


def write_results(out: Path) -> str:
    """Write ``scores.csv``, ``union.md`` and the picture into ``out``; returns the tables."""
    scores = read_scores(out)
    return f"{out}: no training is finished yet" if scores.empty else _write(out, scores)


def _write(out: Path, scores: pd.DataFrame) -> str:
    text = as_markdown(over_cases(scores))
    write_atomically(out / "scores.csv", scores.to_csv(index=False))
    write_atomically(out / "union.md", text)
    _save_picture(out, scores, out)
    return text


def _save_picture(out: Path, scores: pd.DataFrame, images: Path) -> None:
    """Write the picture into a folder, where the training that it shows is finished."""
    seeds = scores.loc[scores["training"] == SHOWN, "seed"]
    if not seeds.empty:
        save_picture(picture(out, scores, int(seeds.min())), images, PICTURE)


def publish(out: Path, readme: Path = README, images: Path = IMAGES) -> None:
    """Put the tables into the README, their numbers beside it and the picture into the documentation.

    Seeds that were published before stay.

    Raises:
        SystemExit: no training is finished, or the README has no place for them.
    """
    scores = read_scores(out)
    if scores.empty:
        raise SystemExit(f"{out}: no training is finished yet")
    _write(out, scores)
    publish_seeds(over_cases(scores), readme, "means.csv", as_markdown)
    _save_picture(out, scores, images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Put tables and picture of what is finished into README and docs.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("outputs/union"), help="folder of the experiment")
    publish(parser.parse_args().out.resolve())
