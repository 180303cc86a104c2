"""The script that checks a GPU, on a CPU: its figures tell a training that is as it should be from one that is not."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def check() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
        yield importlib.import_module("gpu_check")


@pytest.fixture(scope="module")
def prepared(check: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA", "nnUNet_compile"):
            patch.setenv(variable, "")  # put back after these tests
        check.training_loop.set_up()
        yield check.training_loop.prepare(tmp_path_factory.mktemp("gpu"), check.SMALLEST.centre, check.SMALLEST.model)
    torch.set_num_threads(threads)


def verdicts(check: ModuleType, prepared: Any, name: str, **options: Any) -> dict[str, str]:
    return {one.metric: one.verdict for one in check.CHECKS[name](prepared, check.SMALLEST, **options)}


def test_mixed_precision_is_used_and_kept_in_checkpoints(check: ModuleType, prepared: Any) -> None:
    assert set(verdicts(check, prepared, "precision", precision="16-mixed").values()) == {"ok"}


def test_a_scaler_that_a_checkpoint_loses_is_found(
    check: ModuleType, prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "load_round", lambda trainer, server_round: None)
    found = verdicts(check, prepared, "precision", precision="16-mixed")
    assert found["amp_scaler_entries_lost_by_checkpoint"] == "NOT MET"


def test_both_loops_have_the_same_losses(check: ModuleType, prepared: Any) -> None:
    found = list(check.check_parity(prepared, check.SMALLEST))
    assert {one.value for one in found} == {0.0}


def test_a_loop_that_trains_otherwise_is_found(
    check: ModuleType, prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = check.training_loop.lightning_loop

    def slower(trainer: Any) -> None:
        trainer.optimizer.param_groups[0]["weight_decay"] = 1.0
        loop(trainer)

    monkeypatch.setattr(check.training_loop, "lightning_loop", slower)
    found = verdicts(check, prepared, "parity")
    assert found["parity_2d"] == found["parity_3d_fullres"] == "NOT MET"
    assert found["parity_first_step_2d"] == "ok"


def test_nodes_in_turns_train_as_undisturbed_ones(check: ModuleType, prepared: Any) -> None:
    found = {one.metric: one.value for one in check.check_turns(prepared, check.SMALLEST)}
    assert found["turns_loss_difference_set_aside"] == found["turns_loss_difference_parked"] == 0.0
    first, second = check.take_turns(prepared, check.SMALLEST, parks=True)
    assert first.losses != second.losses, "unlike nodes: one in the place of the other would be noticed"


def test_parking_that_loses_a_tensor_is_found(
    check: ModuleType, prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(check.ParkedTrainer):  # type: ignore[misc,name-defined]
        def restore(self) -> None:
            super().restore()
            for tensor, _ in self._homes:
                tensor.data.zero_()

    monkeypatch.setattr(check, "ParkedTrainer", Forgetful)
    found = verdicts(check, prepared, "turns")
    assert found["turns_loss_difference_parked"] == "NOT MET"
    assert found["turns_loss_difference_set_aside"] == "ok"


def test_compiling_is_switched_on_for_one_training_only(
    check: ModuleType, prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    build = check.build

    def build_and_note(*arguments: Any, **settings: Any) -> Any:
        asked.append(check.os.environ["nnUNet_compile"])
        return build(*arguments, **settings)

    monkeypatch.setattr(check, "build", build_and_note)
    assert verdicts(check, prepared, "compile")["compile_loss_difference"] == "ok"
    assert asked == ["False", "False", "True"]
    assert check.os.environ["nnUNet_compile"] == "False"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory\nsecond line"), "OutOfMemoryError: CUDA out of memory"),
        (EOFError(), "EOFError: no message"),
    ],
    ids=["with a message", "without"],
)
def test_a_check_that_breaks_off_is_named_and_the_others_go_on(
    check: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    line: str,
) -> None:
    def break_off(*_: Any) -> Iterator[Any]:
        yield check.Figure("before", 1.0, "s")
        raise error

    def go_well(*_: Any) -> Iterator[Any]:
        yield check.Figure("after", 2.0, "s", 3.0)

    monkeypatch.setattr(check, "CHECKS", {"one": break_off, "two": go_well})
    monkeypatch.setattr(check.training_loop, "prepare", lambda *_: None)
    figures, broken = check.check_all(["one", "two"], check.SMALLEST)
    assert [one.metric for one in figures] == ["before", "after"]
    assert broken == ["one"]
    assert f"  broke off: {line}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "verdict"), [(0.9, "ok"), (1.0, "ok"), (1.1, "NOT MET"), (math.nan, "NOT MET")])
def test_a_figure_is_as_it_should_be_up_to_its_target(check: ModuleType, value: float, verdict: str) -> None:
    figure = check.Figure("ratio", value, "", 1.0)
    assert figure.verdict == verdict
    assert replace(figure, target=None).verdict == ""


def test_without_a_gpu_one_line_says_so(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert check.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "no CUDA GPU" in line


@pytest.mark.nightly
def test_epochs_and_a_run_in_other_processes(check: ModuleType, prepared: Any) -> None:
    found = {one.metric: one for name in ("epochs", "run") for one in check.CHECKS[name](prepared, check.SMALLEST)}
    assert 0.5 < found["epoch_ratio_3d_fullres"].value < 2.0
    assert found["run_losses_not_finite"].value == 0
