"""``kill -9`` of every process in every stage: the run goes on by itself, to the same result."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.deployment.conftest import OPTIONS
from tests.deployment.federation import Federation, check_result, reached

pytestmark = pytest.mark.slow
STAGES = ("fingerprint", "plan", "preprocess", "train", "round 2", "evaluate", "external")


@pytest.mark.parametrize(
    ("of", "part"),
    [("Porto", "worker"), ("Porto", "link"), ("server", "superlink")],
    ids=["worker", "link", "superlink"],
)
def test_a_killed_process_is_started_again_and_the_run_goes_on(
    federation: Federation, undisturbed: Path, tmp_path: Path, of: str, part: str
) -> None:
    run = tmp_path / "run"
    federation.start_train(run, *OPTIONS)
    for stage in STAGES:
        federation.wait_for(partial(reached, federation, run, stage), f"stage {stage}")
        federation.kill("Riga" if of == "Porto" and stage == "external" else of, part)
    federation.finish_train()
    check_result(run, undisturbed)
