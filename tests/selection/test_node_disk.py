"""A hospital chooses by what is on its own disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from fednnunet.errors import ConfigError, DataError
from fednnunet.exchange.messages import Kind, PersonalTraining, PreprocessRequest
from fednnunet.node.request_history import RequestHistory
from fednnunet.selection.arguments import read_sources
from fednnunet.selection.choose import choose_models
from fednnunet.selection.node_disk import read_summary
from fednnunet.selection.written import export_commands, write_selection

MODEL = Path("nnUNet_results") / "Dataset101_X" / "nnUNetTrainer__nnUNetPlans__2d"


def entry(case: str, dice: Sequence[float | None]) -> dict[str, object]:
    """A case as nnU-Net's ``summary.json`` has it; None where both masks are empty."""
    metrics = {
        str(label): {"Dice": float("nan"), "n_pred": 0, "n_ref": 0}
        if value is None
        else {"Dice": value, "n_pred": 0 if value == 0 else 5, "n_ref": 7}
        for label, value in enumerate(dice, start=1)
    }
    return {"metrics": metrics, "prediction_file": f"/x/{case}.nii.gz", "reference_file": f"/y/{case}.nii.gz"}


def write_folds(folder: Path, folds: Mapping[int, Mapping[str, Sequence[float | None]]]) -> Path:
    for fold, cases in folds.items():
        summary = folder / f"fold_{fold}" / "validation" / "summary.json"
        summary.parent.mkdir(parents=True)
        (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
        per_case = [entry(case, dice) for case, dice in cases.items()]
        summary.write_text(json.dumps({"metric_per_case": per_case, "mean": {}, "foreground_mean": {}}))
    return folder


def level(value: float) -> dict[int, dict[str, list[float]]]:
    """Three folds of three cases that all have one DSC."""
    return {fold: {f"patient_{fold}{case}": [value] for case in range(3)} for fold in range(3)}


def keep_request(folder: Path, personal: PersonalTraining) -> None:
    history = RequestHistory(folder / "requests.json")
    history.record(Kind.PREPROCESS, PreprocessRequest(personal=personal))


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Two runs as a hospital keeps them, by id; asym has a model fine-tuned by the hospital beside it."""
    for run, value in (("aa", 0.5), ("bb", 0.6)):
        write_folds(tmp_path / "runs" / run / MODEL, level(value))
    write_folds(tmp_path / "runs" / "bb" / "personal" / MODEL, level(0.7))
    keep_request(tmp_path / "runs" / "bb", PersonalTraining(fine_tune_epochs=5))
    return {"local": f"local={tmp_path / 'runs' / 'aa'}", "asym": f"asym={tmp_path / 'runs' / 'bb'}"}


def test_the_final_choice_is_the_folder_of_the_best_model(folders: dict[str, str], tmp_path: Path) -> None:
    chosen = choose_models(read_sources(list(folders.values())))
    assert chosen.selections.candidates == ["local", "asym", "asym fine-tuned"]
    write_selection(tmp_path / "out", chosen)
    written = json.loads((tmp_path / "out" / "selection.json").read_text())
    (found,) = written["selections"]
    assert (found["node"], found["chosen"]) == ("this hospital", "asym fine-tuned")
    assert found["dsc"] == pytest.approx({"selected": 0.7, "local": 0.5, "asym": 0.6, "asym fine-tuned": 0.7})
    (model,) = found["models"]
    assert (tmp_path / "out" / model["folder"]).resolve() == (tmp_path / "runs" / "bb" / "personal" / MODEL).resolve()
    assert model["folds"] == ["0", "1", "2"]
    assert model["personal"] is True
    out = os.path.relpath(tmp_path / "out")
    assert export_commands(chosen, tmp_path / "out") == [f"fednnunet export {out} -o {out}/models"]


def test_no_case_is_named_in_what_is_written(folders: dict[str, str], tmp_path: Path) -> None:
    write_selection(tmp_path / "out", choose_models(read_sources(list(folders.values()))))
    texts = [path.read_text() for path in (tmp_path / "out").glob("selection.*")]
    assert len(texts) == 3
    assert not any("patient" in text for text in texts)


def test_ditto_has_its_own_model_and_the_shared_one(tmp_path: Path) -> None:
    write_folds(tmp_path / "aa" / MODEL, level(0.5))
    write_folds(tmp_path / "bb" / MODEL, level(0.6))
    write_folds(tmp_path / "bb" / "personal" / MODEL, level(0.5))
    keep_request(tmp_path / "bb", PersonalTraining(tie=0.1))
    chosen = choose_models(read_sources([f"local={tmp_path / 'aa'}", f"ditto={tmp_path / 'bb'}"]))
    assert chosen.selections.candidates == ["local", "ditto shared", "ditto"]
    (selection,) = next(iter(chosen.selections.of_node.values())).values()
    assert selection.final.candidate == "ditto shared"


def test_a_model_of_all_cases_is_not_scored_by_those_that_it_was_trained_on(tmp_path: Path) -> None:
    write_folds(tmp_path / "aa" / MODEL, level(0.5))
    (tmp_path / "bb").mkdir()
    for run in ("aa", "bb"):
        write_folds(tmp_path / run / MODEL, {"all": {f"patient_{fold}0": [0.9] for fold in range(3)}})
    found = read_sources([f"local={tmp_path / 'aa'}"]).scores.cases
    assert set(found["fold"]) == {"0", "1", "2"}
    assert set(found["dsc"]) == {0.5}
    with pytest.raises(DataError, match=r"holds no fold_\*/validation/summary.json"):
        read_sources([f"local={tmp_path / 'bb'}"])


def test_empty_masks_count_as_in_the_report(tmp_path: Path) -> None:
    # Two labels: both masks empty, which is 1 here; one empty, 0; none, 0.5.
    write_folds(tmp_path, {0: {"a": [None, 0.5], "b": [0.0, 0.5], "c": [None, None]}})
    found = read_summary(tmp_path / "fold_0" / "validation" / "summary.json")
    assert found == {"a.nii.gz": 0.75, "b.nii.gz": 0.25, "c.nii.gz": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"metric_per_case": 3}',
        '{"metric_per_case": [{"metrics": {}}]}',
        '{"metric_per_case": [{"metrics": {"1": {"Dice": 7, "n_pred": 1, "n_ref": 1}}, "reference_file": "a"}]}',
    ],
)
def test_a_damaged_summary_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"summary\.json is no summary of nnU-Net that can be read"):
        read_summary(path)


def test_other_splits_are_refused_without_naming_a_case(tmp_path: Path) -> None:
    write_folds(tmp_path / "aa" / MODEL, level(0.5))
    other = level(0.6)
    other[1]["patient_99"] = other[1].pop("patient_10")
    write_folds(tmp_path / "bb" / MODEL, other)
    sources = read_sources([f"local={tmp_path / 'aa'}", f"ffe={tmp_path / 'bb'}"])
    with pytest.raises(DataError, match=r"local and ffe did not score the same cases in fold 1; choose") as refused:
        choose_models(sources)
    assert "patient" not in str(refused.value)


def test_a_nodes_folder_needs_a_name_and_a_scored_fold(folders: dict[str, str], tmp_path: Path) -> None:
    folder = folders["local"].removeprefix("local=")
    with pytest.raises(ConfigError, match="does not say by which strategy it was trained: NAME="):
        read_sources([folder])
    with pytest.raises(ConfigError, match="no name of a candidate"):
        read_sources([f"a,b={folder}"])
    with pytest.raises(DataError, match="local is named twice"):
        read_sources([folders["local"], folders["local"]])
    (tmp_path / "cc" / MODEL / "fold_0").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no fold_\*/validation/summary.json"):
        read_sources([f"local={tmp_path / 'cc'}"])
    (tmp_path / "dd" / "nnUNet_results").mkdir(parents=True)
    with pytest.raises(DataError, match="must hold one folder nnUNet_results/DATASET/trainer__plans__configuration"):
        read_sources([f"local={tmp_path / 'dd'}"])
    (tmp_path / "runs" / "bb" / "requests.json").unlink()
    with pytest.raises(DataError, match=r"requests\.json does not say how .*personal/nnUNet_results came to be"):
        read_sources([folders["asym"]])
