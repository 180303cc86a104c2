"""``experiments/experiment_runs.py``: how the scripts of experiments end, and where they publish."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pandas as pd
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


def test_published_seeds_stay_unless_they_are_found_again(runs: ModuleType, tmp_path: Path) -> None:
    found = pd.DataFrame([("a", 1, 0.5), ("b", 1, 0.6)], columns=["training", "seed", "dsc"])
    published = tmp_path / "means.csv"
    assert runs.with_published(found, published) is found
    earlier = [("a", 0, 0.1), ("a", 1, 0.2), ("c", 1, 0.3), ("a", 2, 0.4)]
    pd.DataFrame(earlier, columns=found.columns).to_csv(published, index=False)
    rows = runs.with_published(found, published)
    assert list(rows.itertuples(index=False, name=None)) == [
        ("a", 0, 0.1),
        *(("a", 1, 0.5), ("b", 1, 0.6)),
        ("a", 2, 0.4),
    ]
