"""``fednnunet select`` on folders of runs: what is chosen and written, and what is refused in one line."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd
import pytest

from fednnunet.run_files import SELECTION_COLUMNS
from tests.reporting.test_told_means import withhold
from tests.support.command_line import CommandLine
from tests.support.run_folders import NODES

MakeRun = Callable[..., Path]
FIVE = [0, 1, 2, 3, 4]


@pytest.fixture
def select(fednnunet: CommandLine, tmp_path: Path) -> CommandLine:
    """Choose among runs, into ``out``."""
    return lambda *arguments: fednnunet("select", *arguments, "--out", tmp_path / "out")


def set_dsc(run: Path, node: str, value: float) -> None:
    rows = pd.read_csv(run / "cases.csv")
    rows.loc[rows["node"] == node, "dsc"] = value
    rows.to_csv(run / "cases.csv", index=False)


def make_models(run: Path, node: str, folds: int) -> Path:
    """Folders as nnU-Net names them, with empty checkpoints; the last fold has none."""
    folder = run / "nodes" / node / "nnUNet_results" / "Dataset101_X" / "nnUNetTrainer__nnUNetPlans__2d"
    for fold in range(folds + 1):
        (folder / f"fold_{fold}").mkdir(parents=True)
    for fold in range(folds):
        (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
    return folder


@pytest.fixture
def runs(make_run: MakeRun) -> list[Path]:
    """DUKE has 0.9 alone, and 0.5 otherwise; others gain by asym."""
    made = [make_run(strategy, fold=FIVE) for strategy in ("local", "asym", "ffe", "centralized")]
    for run, value in zip(made, (0.9, 0.5, 0.5, 1.0), strict=True):
        set_dsc(run, "DUKE", value)
    return made


def test_each_hospital_gets_the_model_that_its_cases_speak_for(
    runs: list[Path], select: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_models(runs[0], "DUKE", 4)
    assert select(*runs) == 0
    printed = capsys.readouterr().out
    assert "selected: of 4 hospitals 3 gain (ISPY1, ISPY2, NACT), 0 lose and 1 show no difference (DUKE)." in printed
    rows = pd.read_csv(tmp_path / "out" / "selection.csv", dtype={"fold": str})
    assert list(rows.columns) == list(SELECTION_COLUMNS)
    assert list(rows["fold"]) == ["0", "1", "2", "3", "4", "all"] * 4
    duke = rows[rows["node"] == "DUKE"]
    assert set(duke["chosen"]) == {"local"}
    assert list(duke["chosen_on"]) == [24] * 5 + [30]
    assert list(duke["n_cases"]) == [6] * 5 + [30]
    assert duke["dsc"].to_list() == pytest.approx([0.9] * 6)
    written = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert written["candidates"] == ["local", "asym", "ffe"], "pooled images are none"
    by_node = {entry["node"]: entry for entry in written["selections"]}
    assert by_node["DUKE"]["chosen"] == "local"
    (model,) = by_node["DUKE"]["models"]
    assert (tmp_path / "out" / model["folder"]).resolve() == folder.resolve()
    assert model["folds"] == ["0", "1", "2", "3"]
    assert model["personal"] is False
    assert by_node["DUKE"]["averaged"] is False
    out = os.path.relpath(tmp_path / "out")
    command = f"fednnunet export {shlex.quote(out)} -o {shlex.quote(out + '/models')}"
    assert command in printed
    assert command in (tmp_path / "out" / "selection.md").read_text()
    assert by_node["NACT"]["models"] is None, "its models are not on this disk"
    asym = pd.read_csv(runs[1] / "cases.csv").query("node == 'NACT'").groupby("case")["dsc"].mean().mean()
    assert by_node["NACT"]["dsc"]["asym"] == pytest.approx(asym)
    assert "| DUKE | 30 | 0.900 | 0.500 | 0.900 |" in (tmp_path / "out" / "selection.md").read_text()
    assert (tmp_path / "out" / "figures" / "selection.png").is_file()


def test_one_fold_takes_the_default_that_is_asked_for(
    make_run: MakeRun, select: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(strategy) for strategy in ("local", "asym", "ffe")]
    assert select(*runs, "--default", "ffe") == 0
    printed = capsys.readouterr().out
    assert "cannot choose: one fold leaves no other cases to choose by" in printed
    assert "The federation's default is taken: ffe." in printed
    assert set(pd.read_csv(tmp_path / "out" / "selection.csv")["chosen"]) == {"ffe"}


def test_more_noise_is_allowed_for_on_request(runs: list[Path], select: CommandLine, tmp_path: Path) -> None:
    assert select(*runs, "--standard-errors", "1000") == 0
    rows = pd.read_csv(tmp_path / "out" / "selection.csv")
    assert set(rows["chosen"]) == {"local"}


def test_many_hospitals_are_counted_and_those_that_lose_are_named(
    make_run: MakeRun, select: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = {f"H{number:02}": 30 for number in range(20)}
    runs = [make_run(strategy, fold=FIVE, nodes=nodes, external=[]) for strategy in ("local", "asym")]
    for run, value in zip(runs, (0.9, 0.1), strict=True):
        set_dsc(run, "H07", value)
    assert select(*runs) == 0
    printed = capsys.readouterr().out
    assert "asym: of 20 hospitals 19 gain, 1 lose (H07)." in printed.replace(" and", ",")
    assert "H03" not in printed
    assert (tmp_path / "out" / "selection.md").read_text().count("| H") == 20


def drop_case(run: Path) -> None:
    rows = pd.read_csv(run / "cases.csv")
    rows[~((rows["node"] == "NACT") & (rows["fold"] == "2") & (rows["case"] == 13))].to_csv(
        run / "cases.csv", index=False
    )


def move_case(run: Path) -> None:
    rows = pd.read_csv(run / "cases.csv")
    rows.loc[(rows["node"] == "NACT") & (rows["case"] == 13), "fold"] = "4"
    rows.to_csv(run / "cases.csv", index=False)


def unfinish(run: Path) -> None:
    (run / "run.json").unlink()


def change(key: str, value: object) -> Callable[[Path], None]:
    def to(run: Path) -> None:
        info = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(info | {key: value}))

    return to


@pytest.mark.parametrize(
    ("alter", "problem"),
    [
        (
            drop_case,
            "NACT, seed 0: local and asym did not score the same cases in fold 2; choose among runs of the same",
        ),
        (move_case, "NACT, seed 0: local and asym did not score the same cases in fold 2, 4;"),
        (unfinish, "did not finish; go on with it: python train.py continue="),
        (change("fold", [0, 1, 2]), "choose among runs of the same folds"),
        (change("seed", 1), "asym has no run of seed 0, of which"),
        (change("dataset", "other"), "has the dataset phantom"),
        (change("num_training", {"NACT": 7}), "NACT had 5 training cases in"),
    ],
)
def test_runs_that_disagree_are_refused_in_one_line(
    runs: list[Path],
    select: CommandLine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    alter: Callable[[Path], None],
    problem: str,
) -> None:
    alter(runs[1])
    assert select(*runs[:2]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(
    runs: list[Path], fednnunet: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert fednnunet("select", *runs[:2], "--out", tmp_path / "file") == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'} cannot be written: it is a file; name a folder\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["local"], "to choose among: local; name runs of at least two strategies"),
        (["centralized"], "pooled images are no candidate of a hospital"),
        (["local", "asym", "--default=krum"], "default krum: no such candidate; choose one of: local, asym"),
        (["local", "asym", "--standard-errors=nan"], "standard errors: nan is no number from 0"),
        (["local", "nowhere"], "there is no folder"),
        (["local", "asym", "asym=local"], "is a run's folder, which has a name already"),
    ],
)
def test_what_cannot_be_chosen_among_is_refused_in_one_line(
    runs: list[Path], select: CommandLine, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    folders = {run.name.split(",")[0].removeprefix("strategy="): run for run in runs}
    named = [f"x={folders['local']}" if name == "asym=local" else folders.get(name, name) for name in arguments]
    assert select(*named) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_hospitals_that_tell_means_are_chosen_for_and_those_that_keep_scores_choose_themselves(
    runs: list[Path], select: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in runs[:2]:
        withhold(run, means=["DUKE"], kept=["NACT"])
    assert select(*runs[:2]) == 0
    printed = capsys.readouterr().out
    assert "DUKE: chosen by means of folds, as the hospital tells no scores of cases." in printed
    assert "NACT told no scores: only they can choose, by fednnunet select on their own disks;" in printed
    rows = pd.read_csv(tmp_path / "out" / "selection.csv").set_index(["node", "fold"])
    assert rows.loc[("DUKE", "all"), ["chosen", "chosen_on", "n_cases"]].to_list() == ["local", 5, 30]
    assert rows.loc[("DUKE", "0"), ["chosen", "chosen_on", "n_cases"]].to_list() == ["local", 4, 6]
    assert rows.loc[("DUKE", "all"), "dsc"] == pytest.approx(0.9)
    assert "NACT" not in rows.index.get_level_values("node")


def keep_scores_of_own_models(run: Path, nodes: Collection[str]) -> None:
    """Let hospitals have fine-tuned the averages, better by 0.1; ``nodes`` keep the scores, as where there is noise."""
    rows = pd.read_csv(run / "cases.csv")
    own = rows[(rows["node"] == rows["model"]) & rows["node"].isin(NODES)]
    own = own.assign(strategy=own["strategy"] + " fine-tuned", dsc=own["dsc"] + 0.1)
    kept = own[own["node"].isin(nodes)].drop_duplicates(["node", "fold"])
    kept = kept[["strategy", "node", "model", "fold"]].assign(n_cases=0)
    pd.concat([rows, own[~own["node"].isin(nodes)], kept]).to_csv(run / "cases.csv", index=False)


def test_a_model_whose_scores_a_hospital_keeps_is_no_candidate_of_its(
    runs: list[Path], select: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_scores_of_own_models(runs[1], ["DUKE"])
    assert select(*runs[:2]) == 0
    printed = capsys.readouterr().out
    assert "DUKE told no scores of asym fine-tuned: only on their own disks can it be chosen." in printed
    assert "asym fine-tuned: of 4 hospitals 3 gain (ISPY1, ISPY2, NACT), 0 lose and 1 cannot be compared (DUKE)." in (
        printed
    )
    written = json.loads((tmp_path / "out" / "selection.json").read_text())
    chosen = {entry["node"]: entry["chosen"] for entry in written["selections"]}
    assert chosen == {"DUKE": "local"} | dict.fromkeys(["ISPY1", "ISPY2", "NACT"], "asym fine-tuned")
    assert {entry["node"]: entry["dsc"]["asym fine-tuned"] for entry in written["selections"]}["DUKE"] is None
    assert "best single: asym |" in (tmp_path / "out" / "selection.md").read_text(), "scored at every hospital"


def test_a_model_whose_scores_all_hospitals_keep_is_no_candidate(
    runs: list[Path], select: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_scores_of_own_models(runs[1], NODES)
    assert select(*runs[:2]) == 0
    assert "told no scores of asym fine-tuned" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "selection.json").read_text())["candidates"] == ["local", "asym"]
