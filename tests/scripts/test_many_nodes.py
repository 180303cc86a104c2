"""The script that measures many nodes on one machine, on records whose figures are known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/many_nodes.py"
LOG = """\
2030-05-01 12:00:00,000 INFO fednnunet.server.run_recorder: ffe: preprocess
2030-05-01 12:00:10,000 INFO fednnunet.server.run_recorder: ffe: train
2030-05-01 12:00:11,000 INFO fednnunet.server.run_recorder: node H001 replied
2030-05-01 12:00:15,000 INFO fednnunet.server.run_recorder: fold 0, round 1: {'node': 'H001'}
2030-05-01 12:00:15,001 INFO fednnunet.server.run_recorder: fold 0, round 1: {'node': 'H002'}
2030-05-01 12:00:18,500 INFO fednnunet.server.run_recorder: fold 0, round 2: {'node': 'H001'}
"""
TRAINED = {1: (1.0, 2.0, 0.5), 2: (0.25, 2.0, 0.25)}
"""Round to seconds of H001, H002, H003, of which the first and the last share a worker."""


@pytest.fixture(scope="module")
def many_nodes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("many_nodes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["many_nodes"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_seconds_outside_training_are_those_that_no_worker_trains_in(many_nodes: ModuleType, tmp_path: Path) -> None:
    rows = [f"{number},H00{n},{s}" for number, found in TRAINED.items() for n, s in enumerate(found, start=1)]
    (tmp_path / "rounds.csv").write_text("\n".join(["round,node,seconds_train", *rows, ""]))
    (tmp_path / "train.log").write_text(LOG)
    rounds = many_nodes.rounds_of(tmp_path, workers=2)
    assert [one.wall for one in rounds] == [5.0, 3.5]
    assert [one.outside for one in rounds] == [5.0 - 2.0, 3.5 - 2.0]
    assert [one.training for one in many_nodes.rounds_of(tmp_path, workers=1)] == [3.5, 2.5]
