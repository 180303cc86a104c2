"""What is written and printed of choices: tables, the models to hand over, a figure."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fednnunet.evaluation.choice import Selection
from fednnunet.files import write_atomically
from fednnunet.listing import MOST_NODES
from fednnunet.models.first_stage import find_first_stage
from fednnunet.models.fold_digests import digest_folds
from fednnunet.models.model_folder import ModelFolder
from fednnunet.reporting.figures import save_figure
from fednnunet.reporting.gains import LOSES, draw_gains, gain_of, judge, show_choices
from fednnunet.reporting.run_folder import write_csv
from fednnunet.reporting.selected import SELECTED, is_average
from fednnunet.reporting.tables.results_table import UNDEFINED
from fednnunet.run_files import SELECTION_COLUMNS, SELECTION_FILE, SELECTION_MODELS_FILE, SELECTION_TABLE_FILE
from fednnunet.selection.choose import Chosen

VERSION = 1
"""Of the content of ``selection.json``."""
FIGURE = "selection"


def write_selection(folder: Path, chosen: Chosen) -> None:
    """Write ``selection.csv``, ``.json`` and ``.md``, and where somebody trained alone the figure ``selection``.

    Raises:
        DataError: a chosen model cannot be read; nothing is written then.
    """
    content = json.dumps(selection_json(chosen, folder), indent=1) + "\n"
    (folder / SELECTION_MODELS_FILE).unlink(missing_ok=True)  # of an earlier choice, which the other files are not of
    write_csv(selection_rows(chosen), folder / SELECTION_FILE)
    write_atomically(folder / SELECTION_TABLE_FILE, as_markdown(chosen, folder))
    write_atomically(folder / SELECTION_MODELS_FILE, content)
    if chosen.gains is not None and chosen.gains.differences:
        title = f"points of DSC over {chosen.gains.alone}, 95 % interval"
        figure = draw_gains(chosen.gains, title, len(chosen.gains.nodes) > MOST_NODES)
        save_figure(figure, folder / "figures", FIGURE)


def selection_rows(chosen: Chosen) -> pd.DataFrame:
    """Rows of ``selection.csv``: a hospital's choice for each held-out fold, and the final one."""
    rows = []
    alone = chosen.selections.alone
    for node, seeds in chosen.selections.of_node.items():
        for seed, one in seeds.items():
            of_fold = one.scores.index.get_level_values("fold")
            for choice in (*one.choices.values(), one.final):
                inside = of_fold == choice.fold if choice is not one.final else np.ones(len(of_fold), bool)
                rows.append(
                    {
                        "node": node,
                        "seed": seed,
                        "fold": choice.fold,
                        "chosen": choice.candidate,
                        "chosen_on": choice.num,
                        "reason": choice.reason,
                        "n_cases": int(one.weights[inside].sum()),
                        "dsc": one.mean(one.selected.where(inside)),
                        "dsc_alone": np.nan if alone is None else one.mean(one.of(alone).where(inside)),
                    }
                )
    return pd.DataFrame(rows, columns=list(SELECTION_COLUMNS))


def selection_json(chosen: Chosen, folder: Path) -> dict[str, Any]:
    """Content of ``selection.json``, with paths relative to ``folder``."""
    return {
        "version": VERSION,
        "dataset": chosen.sources.dataset,
        "candidates": chosen.selections.candidates,
        "default": chosen.selections.default,
        "standard_errors": chosen.standard_errors,
        "selections": [
            {
                "node": node,
                "seed": seed,
                "chosen": one.final.candidate,
                "reason": one.final.reason,
                "num_cases": int(one.weights.sum()),
                "averaged": is_average(one.final.candidate),
                "without_fold": {fold: choice.candidate for fold, choice in one.choices.items()},
                "dsc": {SELECTED: _number(one.mean(one.selected))}
                | {name: _number(one.mean(one.of(name))) for name in chosen.selections.candidates},
                "models": _models(chosen, one, node, seed, folder),
            }
            for node, seeds in chosen.selections.of_node.items()
            for seed, one in seeds.items()
        ],
    }


def _models(chosen: Chosen, one: Selection, node: str, seed: int, folder: Path) -> list[dict[str, Any]] | None:
    """Folders of the chosen models, whose softmax outputs are averaged if they are several; None if not here."""
    found = chosen.sources.models.get((one.final.candidate, seed, node))
    if not found:
        return None
    of_node = {key: models for key, models in chosen.sources.models.items() if key[1:] == (seed, node)}
    single = [models for (name, *_), models in of_node.items() if not is_average(name)]
    return [
        {
            **_model(models, folder),
            "first_stage": [_model(stage, folder) for stage in find_first_stage(models, single)],
        }
        for models in found
    ]


def _model(models: ModelFolder, folder: Path) -> dict[str, Any]:
    return {
        "folder": os.path.relpath(models.path, folder),
        "folds": list(models.folds),
        "personal": models.is_personal,
        "digests": digest_folds(models.path, models.folds),
    }


def export_commands(chosen: Chosen, folder: Path) -> list[str]:
    """The command that hands over what hospitals chose, as far as it is on this disk; one for each seed.

    Args:
        chosen: the choices.
        folder: where ``selection.json`` is.
    """
    here = {
        seed
        for node, seeds in chosen.selections.of_node.items()
        for seed, one in seeds.items()
        if chosen.sources.models.get((one.final.candidate, seed, node))
    }
    several = len({seed for seeds in chosen.selections.of_node.values() for seed in seeds}) > 1
    source = os.path.relpath(folder)
    return [
        f"fednnunet export {shlex.quote(source)}{f' --seed {seed}' * several} -o "
        + shlex.quote(os.path.join(source, f"models{f'_{seed}' * several}"))
        for seed in sorted(here)
    ]


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _shown(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else UNDEFINED


def as_markdown(chosen: Chosen, folder: Path) -> str:
    """Table of hospitals: alone, the best single strategy, selected, and the final choice; then the notes."""
    titles, rows = table_rows(chosen)
    lines = [f"| {' | '.join(titles)} |", f"| --- |{' ---: |' * (len(titles) - 2)} --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [text for note in chosen.selections.notes for text in ("", note)]
    if commands := export_commands(chosen, folder):
        lines += ["", "To hand over:", "", *(f"    {command}" for command in commands)]
    return "\n".join(lines) + "\n"


def table_rows(chosen: Chosen, only: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table, one for each hospital and seed.

    Args:
        chosen: the choices.
        only: hospitals to show; None for all.
    """
    alone, single = chosen.selections.alone, chosen.selections.best_single
    several = any(len(seeds) > 1 for seeds in chosen.selections.of_node.values())
    titles = ["hospital", *(["seed"] if several else []), "cases", *([alone] if alone else [])]
    titles += [
        *([f"best single: {single}"] if single else []),
        SELECTED,
        *(["difference"] if alone else []),
        "to hand over",
    ]
    rows = []
    for node, seeds in chosen.selections.of_node.items():
        if only is not None and node not in only:
            continue
        for seed, one in seeds.items():
            row = [node, *([str(seed)] if several else []), str(int(one.weights.sum()))]
            row += [_shown(one.mean(one.of(name))) for name in (alone, single) if name]
            row.append(_shown(one.mean(one.selected)))
            if alone:
                row.append(show_difference(one, alone))
            rows.append([*row, show_choices(one)])
    return titles, rows


def show_difference(selection: Selection, alone: str) -> str:
    """Difference of what was selected to training alone, in points of DSC, with its interval and a word."""
    found = gain_of([selection], SELECTED, alone)
    if np.isnan(found.mean):
        return "–"
    shown = f"{100 * found.mean:+.1f}"
    if not np.isnan(found.low):
        shown += f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}] {judge(found)}"
    return shown.replace("-", "−")


def losing(chosen: Chosen) -> list[str]:
    """Hospitals whose selected model is worse than training alone."""
    if chosen.gains is None:
        return []
    return [node for node in chosen.gains.nodes if chosen.gains.verdict(node, SELECTED) == LOSES]
