"""Tables: what one network of hospitals with unlike channels gains, and what it costs each of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from channel_scores import ACQUIRED, EXTERNAL, SUBSETS, TRAININGS, read_scores

from fednnunet.evaluation.statistics import Interval, mean_interval
from fednnunet.files import write_atomically
from fednnunet.phantoms.organs import ORGANS

sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiment_runs import as_text, is_below, publish_seeds, table_of

README = Path(__file__).parent / "README.md"
ALONE = "alone"
OWN = [(centre, "+".join(channels)) for centre, channels in ACQUIRED.items()]
"""Hospitals, and the channels that their own cases have."""
PLACES = [*OWN, *((EXTERNAL, "+".join(channels)) for channels in SUBSETS)]
"""Where models are scored, with the channels that they are given."""
KEYS = ["training", "centre", "channels", "seed"]


def by_organ(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean ``dsc`` by training, place, seed and ``organ``: of each model over the cases, then over models.

    Args:
        scores: of cases, as :func:`read_scores` gives them.
    """
    of_models = scores.groupby([*KEYS, "organ", "node"])["dsc"].mean()
    return of_models.groupby([*KEYS, "organ"]).mean().reset_index()


def over_organs(means: pd.DataFrame) -> pd.Series:
    """Mean DSC over organs, by training, place and seed; of what :func:`by_organ` gives."""
    return means.groupby(KEYS)["dsc"].mean()


def differences(means: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """Training to place (and ``mean`` over the hospitals) to :func:`over_organs`, less that alone, same seed.

    What is alone at the external centre is the hospital with these channels.
    """
    dsc = over_organs(means).unstack("training").reindex(columns=list(TRAININGS))
    found = {}
    for training in TRAININGS:
        difference = (dsc[training] - dsc[ALONE]).dropna()
        if training != ALONE and not difference.empty:
            own = difference[difference.index.droplevel("seed").isin(OWN)]
            found[training] = {
                title(*place): mean_interval(difference.loc[place].to_list())
                for place in PLACES
                if place in difference.index.droplevel("seed")
            } | {"mean of hospitals": mean_interval(own.groupby("seed").mean().to_list())}
    return found


def title(centre: str, channels: str) -> str:
    """A place in tables."""
    return f"{centre}, {channels}"


def as_markdown(means: pd.DataFrame) -> str:
    """All tables, of what :func:`by_organ` gives."""
    trained = [training for training in TRAININGS if training in set(means["training"])]
    seeds = {name: of["seed"].nunique() for name, of in means.groupby("training")}
    counts = ", ".join(f"{TRAININGS[name].title} {seeds[name]}" for name in trained)
    of_organs, of_places = means.set_index([*KEYS, "organ"])["dsc"].sort_index(), over_organs(means)
    rows = []
    for place in PLACES:
        for organ in ORGANS:
            cells = [_cell(of_organs.xs(organ, level="organ"), training, place) for training in trained]
            rows.append([f"{title(*place)}: {organ}", *cells])
        rows.append([f"**{title(*place)}: mean**", *[_cell(of_places, training, place) for training in trained]])
    parts = [
        f"Seeds: {counts}.\n",
        "DSC; cases of, and channels given:\n",
        table_of(["", *[TRAININGS[training].title for training in trained]], rows),
    ]
    if found := differences(means):
        columns = [*(title(*place) for place in OWN), "mean of hospitals", *(title(*p) for p in PLACES[len(OWN) :])]
        lines = []
        for training, by_place in found.items():
            known = {column: by_place[column] for column in columns if column in by_place}
            signed = {column: as_text(interval, "+") for column, interval in known.items()}
            below = {column: is_below(interval) for column, interval in known.items()}
            lines.append([TRAININGS[training].title, *[signed.get(column, "–") for column in columns]])
            lines.append(["… below alone?", *[below.get(column, "–") for column in columns]])
        parts += [
            "Mean DSC over organs, less that of the hospital alone with these channels (same seed):\n",
            table_of(["", *columns], lines),
        ]
    return "\n".join(parts)


def _cell(values: pd.Series, training: str, place: tuple[str, str]) -> str:
    """Mean and interval over seeds of what is indexed by :data:`KEYS`."""
    if (training, *place) not in values.index.droplevel("seed"):
        return "–"
    return as_text(mean_interval(values.loc[(training, *place)].to_list()))


def write_results(out: Path) -> str:
    """Write ``scores.csv`` and ``channels.md`` into ``out``; returns the tables."""
    scores = read_scores(out)
    if scores.empty:
        return f"{out}: no training is finished yet"
    text = as_markdown(by_organ(scores))
    write_atomically(out / "scores.csv", scores.to_csv(index=False))
    write_atomically(out / "channels.md", text)
    return text


def publish(out: Path, readme: Path = README) -> None:
    """Put the tables into the README and their numbers beside it, with seeds that were published before.

    Raises:
        SystemExit: no training is finished, or the README has no place for them.
    """
    scores = read_scores(out)
    if scores.empty:
        raise SystemExit(f"{out}: no training is finished yet")
    publish_seeds(by_organ(scores), readme, "means.csv", as_markdown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Put tables of what is finished into the README.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("outputs/channels"), help="folder of the experiment")
    publish(parser.parse_args().out.resolve())
