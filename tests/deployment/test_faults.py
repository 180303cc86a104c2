"""A whole machine dies, the server's or a hospital's: the run goes on where it was, to the same result."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.deployment.conftest import OPTIONS
from tests.support.deployed_federation import Federation, check_result, reached

pytestmark = pytest.mark.xdist_group("deployed")
KILLED = {"plan": "train", "preprocess": "server", "train": "train", "round 2": "server", "evaluate": "train"}
"""What dies of the server's machine: ``train.py``, or ``fednnunet server up`` with all it started."""
BEFORE_IN_AND_AFTER_TRAINING = {"plan": "train", "round 2": "server", "evaluate": "train"}


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(BEFORE_IN_AND_AFTER_TRAINING, id="before, in and after training"),
        pytest.param(KILLED, id="more stages", marks=pytest.mark.nightly),
    ],
)
def test_a_run_continues_after_the_server_machine_has_died(
    federation: Federation, undisturbed: Path, tmp_path: Path, killed: dict[str, str]
) -> None:
    run = tmp_path / "run"
    federation.start_train(run, *OPTIONS)
    for stage, machine in killed.items():
        federation.wait_for(partial(reached, federation, run, stage), f"stage {stage}")
        federation.kill_all_of(machine)
        federation.start_train(run, *OPTIONS) if machine == "train" else federation.start_server()
    federation.finish_train()
    check_result(run, undisturbed)


def test_a_run_waits_for_an_absent_hospital_by_name(federation: Federation, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    federation.start_train(run, *OPTIONS)
    federation.wait_for(partial(reached, federation, run, "round 2"), "round 2")
    federation.kill_all_of("Porto")
    federation.wait_for(lambda: federation.status()["waiting_for"] == ["Porto"], "a word of whom it waits for")
    assert "node Porto" in federation.status()["message"]
    federation.start_node("Porto")
    federation.finish_train()
    assert federation.status()["waiting_for"] == []
    check_result(run, undisturbed)
