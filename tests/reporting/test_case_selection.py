"""Best, median and worst are chosen among the cases with pictures from all strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fednnunet.reporting.case_selection import choose_cases, choose_nodes
from fednnunet.reporting.run_folder import read_runs
from tests.support.run_folders import many_nodes

MakeRun = Callable[..., Path]


@pytest.fixture
def pictured(make_run: MakeRun) -> Callable[..., Path]:
    """A run whose node NACT pictured cases of the given DSC."""

    def make(strategy: str, dsc: Mapping[int, float], **options: object) -> Path:
        run = make_run(strategy, **options)
        folder = run / "nodes" / "NACT" / "overlays"
        folder.mkdir(parents=True)
        blank = {name: np.zeros((8, 8), np.uint8) for name in ("image", "reference", "prediction")}
        for case, value in dsc.items():
            np.savez(folder / f"NACT__{case}.npz", **blank, spacing=np.ones(2), dsc=value)
        return run

    return make


def chosen(runs: list[Path]) -> dict[str, int]:
    return {case.rank: case.number for case in choose_cases(read_runs(runs), "NACT")}


def test_cases_are_ranked_by_their_mean_over_set_ups(pictured: Callable[..., Path]) -> None:
    runs = [
        pictured("local", {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.6, 4: 0.2, 9: 1.0}),
        pictured("asym", {0: 0.9, 1: 0.9, 2: 0.5, 3: 0.5, 4: 0.1}),
    ]
    assert chosen(runs) == {"best": 1, "median": 0, "worst": 4}  # only one strategy has a picture of 9
    best = choose_cases(read_runs(runs), "NACT")[0]
    assert list(best.slices) == ["local", "asym"]
    assert best.dsc == pytest.approx(0.9)


def test_cases_of_all_folds_are_candidates(pictured: Callable[..., Path], tmp_path: Path) -> None:
    runs = [
        pictured("asym", cases, fold=fold, folder=tmp_path / str(fold))
        for fold, cases in enumerate(({0: 0.4}, {1: 0.8, 2: 0.1}))
    ]
    assert chosen(runs) == {"best": 1, "median": 0, "worst": 2}


def test_of_several_seeds_the_first_is_shown(pictured: Callable[..., Path]) -> None:
    runs = [pictured("asym", {0: 0.4}, seed=0), pictured("asym", {1: 0.9}, seed=1)]
    assert chosen(runs) == {"only": 0}


def test_fewer_than_three_cases_are_all_shown(pictured: Callable[..., Path]) -> None:
    assert chosen([pictured("asym", {0: 0.4, 5: 0.6})]) == {"best": 5, "worst": 0}
    assert chosen([pictured("ffe", {0: np.nan})]) == {"only": 0}


def test_without_a_common_case_those_of_most_strategies_are_shown(pictured: Callable[..., Path]) -> None:
    runs = [pictured("local", {0: 0.1, 1: 0.9}), pictured("asym", {1: 0.5}), pictured("ffe", {2: 0.7})]
    assert chosen(runs) == {"only": 1}


def test_of_many_nodes_the_best_median_and_worst_of_each_kind_are_shown() -> None:
    nodes, external = many_nodes()
    names = [*nodes, *external]
    few = names[:12]
    rows = [
        {"strategy": name, "node": node, "dsc": (place + shift) / 200}
        for name, shift in (("local", 0), ("asym", 5))
        for place, node in enumerate(names)
    ]
    scores = pd.DataFrame(rows)
    assert choose_nodes(few, scores, external) == dict.fromkeys(few, "")
    assert choose_nodes(names, scores, external) == {
        "H089": "best training node",
        "H044": "median training node",
        "H000": "worst training node",
        "X09": "best external node",
        "X04": "median external node",
        "X00": "worst external node",
    }
