"""The script that checks the paper's claims, on scores whose differences are known."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from fednnunet.errors import DataError
from fednnunet.evaluation.statistics import Interval
from fednnunet.run_files import CASE_COLUMNS

SCRIPT = Path(__file__).parents[2] / "experiments/phantom/claims.py"
SIZES = {"Small": 6, "Large": 40}
HELD_OUT = {"Small": 6, "Large": 40, "Outside": 8}
GAINS = {
    "local": {"Small": 0.0, "Large": 0.0, "Outside": 0.0},
    "asym": {"Small": 0.0, "Large": 0.05, "Outside": 0.1},
    "ffe": {"Small": 0.2, "Large": 0.05, "Outside": 0.1},
    "centralized": {"Small": 0.2, "Large": 0.051, "Outside": 0.1},
}


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, strategy: str) -> None:
    """A finished run in which every case of a centre gains the same, but for a little noise."""
    rng = np.random.default_rng(list(strategy.encode()))
    rows = []
    for centre, cases in HELD_OUT.items():
        base = np.random.default_rng(cases).uniform(0.4, 0.6, cases)
        scores = base + GAINS[strategy][centre] + rng.normal(0, 1e-3, cases)
        nodes = list(SIZES) if strategy != "centralized" else ["centralized"]
        models = nodes if centre == "Outside" else [centre] if strategy != "centralized" else nodes
        rows += [
            (strategy, centre, model, case % 5, case, "1", dsc, 1.0, dsc, 0.0, "")
            for model in models
            for case, dsc in enumerate(scores)
        ]
    (folder / ".hydra").mkdir(parents=True)
    pd.DataFrame(rows, columns=list(CASE_COLUMNS)).to_csv(folder / "cases.csv", index=False)
    counts = SIZES if strategy != "centralized" else {"centralized": sum(SIZES.values())}
    info = {"strategy": strategy, "fold": [0, 1, 2, 3, 4], "nodes": list(SIZES), "external": ["Outside"]}
    (folder / "run.json").write_text(json.dumps(info | {"num_training": counts}))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for strategy in GAINS:
        write_run(folder / strategy, strategy)
    return folder


def test_each_claim_is_judged_by_its_interval(claims: ModuleType, sweep: Path) -> None:
    judged = claims.claims(claims.read_experiment(sweep), margin=0.015).set_index("claim")
    assert judged["verdict"].to_dict() == {
        "asym better than local": "borne out",
        "ffe better than local": "borne out",
        "ffe close to centralized": "borne out",
        "Small, the smallest centre, gains most by asym": "not borne out: Large gains most",
        "Small, the smallest centre, gains most by ffe": "borne out",
    }
    better = judged.loc["ffe better than local"]
    assert better["interval"].mean == pytest.approx((0.2 + 0.05) / 2, abs=1e-3)
    assert better["interval"].low < better["interval"].mean < better["interval"].high
    assert better["p"] < 1e-6
    assert judged.loc["Small, the smallest centre, gains most by ffe", "interval"].mean == pytest.approx(0.15, abs=2e-3)


@pytest.mark.parametrize(
    ("low", "high", "above", "close"),
    [
        (0.001, 0.01, "borne out", "borne out"),
        (-0.01, 0.01, "open: the interval holds 0", "borne out"),
        (-0.03, 0.01, "open: the interval holds 0", "open: the interval is not within the margin"),
        (0.02, 0.03, "borne out", "not borne out: better than close"),
        (-0.03, -0.02, "contradicted", "not borne out: worse than close"),
    ],
)
def test_verdicts(claims: ModuleType, low: float, high: float, above: str, close: str) -> None:
    interval = Interval((low + high) / 2, low, high)
    assert (claims.judge_above(interval), claims.judge_close(interval, 0.015)) == (above, close)


def test_margin_is_the_largest_difference_in_the_papers_tables(claims: ModuleType) -> None:
    assert claims.margin_of_the_paper() == pytest.approx(0.675 - 0.660), "NACT in Table 7"


def test_tables_and_figure_are_written(claims: ModuleType, sweep: Path) -> None:
    text = claims.write_claims(sweep)
    assert (sweep / "claims.md").read_text() == text
    assert (sweep / "gains.png").stat().st_size > 10_000
    rows = [line for line in text.splitlines() if line.startswith(("| Small |", "| Large |", "| Outside |"))]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| Small", "6", "6"],
        ["| Large", "40", "40"],
        ["| Outside", "external", "8"],
    ]


def test_a_sweep_that_is_not_finished_says_what_is_missing(claims: ModuleType, tmp_path: Path) -> None:
    for strategy in ("local", "asym"):
        write_run(tmp_path / strategy, strategy)
    with pytest.raises(DataError, match=r"ffe, centralized did not finish"):
        claims.read_experiment(tmp_path)
