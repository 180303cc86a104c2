"""``kill -9`` of every process in every stage: the run goes on by itself, to the same result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.deployment.federation import Federation, losses, running, train_locally, write_centres

pytestmark = pytest.mark.slow
OPTIONS = ("strategy=ffe", "trainer.epochs=4")
STAGES = ("fingerprint", "plan", "preprocess", "train", "round 2", "evaluate", "external")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("data") / "raw"
    write_centres(raw)
    return raw


@pytest.fixture(scope="module")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the same training on the embedded grid."""
    run = tmp_path_factory.mktemp("local") / "run"
    train_locally(raw, run, *OPTIONS)
    return run


@pytest.fixture(scope="module")
def federation(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with running(Federation(tmp_path_factory.mktemp("federation"), raw)) as federation:
        yield federation


def reached(federation: Federation, run: Path, stage: str) -> bool:
    status = federation.status()
    if status.get("run") != str(run):
        return False
    if stage.startswith("round"):
        return status["round"] >= int(stage.split()[1])
    return status["stage"] == stage


def check_result(run: Path, undisturbed: Path) -> None:
    pd.testing.assert_frame_equal(losses(run), losses(undisturbed))
    assert (run / "cases.csv").read_text() == (undisturbed / "cases.csv").read_text()


def test_undisturbed_the_result_is_that_of_the_embedded_grid(
    federation: Federation, undisturbed: Path, tmp_path: Path
) -> None:
    federation.start_train(tmp_path / "run", *OPTIONS)
    federation.finish_train()
    check_result(tmp_path / "run", undisturbed)


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
        federation.wait_for(lambda stage=stage: reached(federation, run, stage), f"stage {stage}")
        federation.kill("Riga" if of == "Porto" and stage == "external" else of, part)
    federation.finish_train()
    check_result(run, undisturbed)
    assert federation.output(of).count(f"the {part if part != 'superlink' else 'SuperLink'} ended") >= len(STAGES) - 1
