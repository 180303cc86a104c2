"""A card says of a model what it was trained on and how well it does, and no score of a single case."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from fednnunet.reporting.model_facts import facts_of_run
from fednnunet.reporting.run_folder import read_run
from tests.support.run_folders import MakeRun

NODES = {"Oslo": 12, "Porto": 36}


@pytest.mark.parametrize(("strategy", "shared", "centres", "cases"), [("local", 0.0, 1, 12), ("asym", 0.8, 2, 48)])
def test_what_others_trained_counts_where_it_was_received(
    write_run: MakeRun, tmp_path: Path, strategy: str, shared: float, centres: int, cases: int
) -> None:
    folder = write_run(tmp_path / "run", strategy, fold=[0, 1], nodes=NODES)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "shared_fraction": dict.fromkeys(NODES, shared)}))
    facts = facts_of_run(read_run(folder), "Oslo", ("0", "1"), with_names=True)
    assert (facts.trained_for, facts.centres, facts.cases) == ("node", centres, cases)
    assert facts.names == list(NODES)[:centres]
    assert facts.cases_of_centres == dict(list(NODES.items())[:centres])


def test_no_score_is_of_fewer_than_five_cases(write_run: MakeRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "ffe", nodes=NODES, labels=("tumour",), held_out=6)
    rows = pd.read_csv(folder / "cases.csv")
    of_oslo = rows[(rows["node"] == "Oslo") & (rows["model"] == "Oslo")]
    rows = rows.drop(of_oslo.index[4:])  # four are left
    of_porto = rows.index[(rows["node"] == "Porto") & (rows["model"] == "Porto")]
    rows.loc[of_porto[1:], "hd95"] = None  # defined in one
    rows.to_csv(folder / "cases.csv", index=False)
    scores = {score.centre: score for score in facts_of_run(read_run(folder), None, ("0",), with_names=True).scores}
    assert "Oslo" not in scores
    assert scores["Porto"].dsc is not None
    assert scores["Porto"].dsc.cases == 6
    assert scores["Porto"].hd95 is None
