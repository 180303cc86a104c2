"""``experiments/experiment_runs.py``: how the scripts of experiments end, and where they publish."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments/experiment_runs.py"


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("experiment_runs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("error", "status"), [(None, 0), (KeyboardInterrupt(), 130), (subprocess.CalledProcessError(2, ["train.py"]), 2)]
)
def test_exit_status_is_that_of_the_training(runs: ModuleType, error: BaseException | None, status: int) -> None:
    def train() -> None:
        if error is not None:
            raise error

    assert runs.exit_status(train) == status


@pytest.mark.parametrize(
    ("text", "missing"), [("nothing", "<begin>"), ("<begin> x", "<end>"), ("<end> <begin>", "<end>")]
)
def test_a_readme_without_a_place_is_left_as_it_is(runs: ModuleType, tmp_path: Path, text: str, missing: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(SystemExit, match=f"it lacks {missing}"):
        runs.publish_between(readme, "<begin>", "<end>", "table")
    assert readme.read_text() == text
