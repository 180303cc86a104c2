"""Runs that cannot be compared in one report are refused; what others lack is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from fednnunet.errors import DataError
from fednnunet.reporting.completeness import check_comparable, missing_folds, repeated_folds
from fednnunet.reporting.results import collect_results
from fednnunet.reporting.run_folder import read_run, read_runs

MakeRun = Callable[..., Path]
FIVE = [0, 1, 2, 3, 4]


def interrupt(run: Path, scored: list[int]) -> Path:
    """The run as it is when it was killed after some folds."""
    (run / "run.json").unlink()
    cases = pd.read_csv(run / "cases.csv")
    cases[cases["fold"].isin(map(str, scored))].to_csv(run / "cases.csv", index=False)
    return run


def test_other_datasets_labels_and_units_are_refused_by_name(make_run: MakeRun, tmp_path: Path) -> None:
    ours = make_run("asym")
    dataset = make_run("ffe", dataset="mamamia")
    labels = make_run("local", labels=("tumour",))
    unit = make_run("fedprox")
    info = json.loads((unit / "run.json").read_text())
    (unit / "run.json").write_text(json.dumps(info | {"distance_unit": "pixels"}))
    for other, difference in (
        (dataset, f"{ours} has the dataset phantom, {dataset} mamamia"),
        (labels, f"{ours} scored the labels oedema, tumour at DUKE, {labels} tumour"),
        (unit, f"{ours} has the unit of HD95 mm, {unit} pixels"),
    ):
        with pytest.raises(DataError) as caught:
            check_comparable(read_runs([ours, other]))
        assert str(caught.value).startswith(difference)


def test_an_interrupted_run_of_another_dataset_is_refused_too(make_run: MakeRun) -> None:
    ours, other = make_run("asym"), make_run("ffe", dataset="mamamia")
    (other / "run.json").unlink()
    with pytest.raises(DataError, match="mamamia"):
        check_comparable(read_runs([ours, other]))


@pytest.mark.parametrize("seed", ["one", None, 1.5, [0]])
def test_a_seed_that_is_no_number_is_refused_by_file(make_run: MakeRun, seed: object) -> None:
    file = make_run("asym") / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seed": seed}))
    with pytest.raises(DataError) as caught:
        read_run(file.parent)
    assert str(caught.value) == f"{file}: seed must be a whole number, not {seed!r}"


def test_other_configurations_and_folders_are_set_ups_of_their_own(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run("asym", folder=tmp_path / "a", overrides=("configuration=2d",)),
        make_run("asym", folder=tmp_path / "b", overrides=("configuration=3d_fullres",)),
        make_run("asym", folder=tmp_path / "c", overrides=("dataset.raw_folder=/data/b",)),
    ]
    check_comparable(read_runs(runs))
    assert missing_folds(read_runs(runs)) == {}
    assert len({run.strategy for run in read_runs(runs)}) == 3


def test_folds_that_others_have_are_named(make_run: MakeRun) -> None:
    runs = read_runs([make_run("local", fold=FIVE), make_run("asym", fold=[0, 1, 3]), make_run("ffe", fold=[2])])
    assert missing_folds(runs) == {"asym": "folds 2, 4", "ffe": "folds 0, 1, 3, 4"}


def test_jobs_of_one_fold_each_add_up_over_seeds(make_run: MakeRun, tmp_path: Path) -> None:
    jobs = [
        make_run(name, seed=seed, fold=fold, folder=tmp_path / f"{name}{seed}{fold}")
        for name, left_out in (("local", ()), ("asym", ((1, 2),)), ("ffe", ((0, 0), (0, 1), (0, 2), (1, 0))))
        for seed in (0, 1)
        for fold in (0, 1, 2)
        if (seed, fold) not in left_out
    ]
    assert missing_folds(read_runs(jobs)) == {"asym": "fold 2 of seed 1", "ffe": "seed 0; fold 0 of seed 1"}


def test_the_folds_that_an_interrupted_run_did_not_reach_are_missing(make_run: MakeRun) -> None:
    run = interrupt(make_run("asym", seed=3, fold=FIVE), scored=[0, 1])
    assert missing_folds(read_runs([run])) == {"asym": "folds 2, 3, 4"}
    (read,) = read_runs([run])
    assert (read.seed, read.folds, read.scored_folds) == (3, ["0", "1", "2", "3", "4"], ["0", "1"])
    assert read.info["external"] == ["KAUNO"], "not taken for a training centre"
    assert not read.finished
    assert read.problem is not None
    assert read.problem.endswith("did not finish: it finished folds 0, 1")


def test_missing_folds_mark_the_table_and_tests_use_common_cases(make_run: MakeRun) -> None:
    runs = [make_run("local", fold=FIVE), interrupt(make_run("ffe", fold=FIVE), scored=[0, 1])]
    results = collect_results(read_runs(runs))
    assert results.table is not None
    assert [results.table.row(name) for name in results.table.strategies] == ["local", "ffe †"]
    (note,) = [note for note in results.table.notes if note.startswith("†")]
    assert "ffe lacks folds 2, 3, 4." in note
    assert "tests use only cases that both strategies scored" in note
    assert results.comparison is not None
    rows = results.comparison.rows.set_index("node")
    assert rows.loc["ISPY1", "n_cases"] == 12, "six of each common fold"


def test_the_table_says_where_a_centre_holds_no_case_out(make_run: MakeRun) -> None:
    run = make_run("asym", fold=FIVE)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "unscored_folds": {"NACT": [3, 4]}}))
    cases = pd.read_csv(run / "cases.csv", dtype=str, keep_default_na=False)
    cases[(cases["node"] != "NACT") | ~cases["fold"].isin(["3", "4"])].to_csv(run / "cases.csv", index=False)
    results = collect_results(read_runs([run]))
    assert results.table is not None
    (note,) = [note for note in results.table.notes if note.startswith("NACT")]
    assert note == "NACT holds no case out in folds 3, 4: it has fewer cases than folds, and is not scored there."
    assert results.table.row("asym") == "asym", "the run lacks nothing"
    assert results.summary[results.summary["node"] == "NACT"]["fold"].tolist() == ["0", "1", "2"]


def test_the_table_says_whose_cases_hold_no_foreground(make_run: MakeRun) -> None:
    run = make_run("asym")
    cases = pd.read_csv(run / "cases.csv", dtype=str, keep_default_na=False)
    cases.loc[cases["node"] == "NACT", "empty"] = "reference"
    cases.loc[cases["node"].eq("DUKE") & cases["case"].eq("0"), "empty"] = "both"
    cases.to_csv(run / "cases.csv", index=False)
    results = collect_results(read_runs([run]))
    assert results.table is not None
    notes = [note for note in results.table.notes if "foreground" in note]
    assert notes == ["No scored case of NACT holds foreground: its DSC is 1 where nothing was segmented, else 0."]


def test_a_fold_alone_is_its_run_and_a_list_of_one_is_the_same(make_run: MakeRun, tmp_path: Path) -> None:
    for fold in (2, [2]):
        run = read_run(make_run("asym", fold=fold, folder=tmp_path / str(fold)))
        assert set(run.rounds["fold"]) == set(run.cases["fold"]) == {"2"}


def test_runs_of_the_same_fold_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("asym", folder=tmp_path / name) for name in ("a", "b")]
    (said,) = repeated_folds(read_runs(runs))
    assert said == f"{runs[0]} and {runs[1]} are both asym: their scores are averaged"
    assert repeated_folds(read_runs([runs[0], make_run("asym", seed=1)])) == []
