"""What a process has only once is each node's own."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fednnunet.node.process_state import ProcessState


@pytest.fixture
def restored(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Leave the process as it was."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    out, errors = os.dup(1), os.dup(2)
    yield
    sys.stdout.flush()
    os.dup2(out, 1)
    os.dup2(errors, 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)


def draw() -> list[float]:
    """One number of each global generator."""
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


@pytest.mark.usefixtures("restored")
def test_each_node_goes_on_from_where_it_was(tmp_path: Path) -> None:
    nodes = {name: ProcessState(tmp_path / name / "node.log", threads) for name, threads in (("A", 1), ("B", 2))}
    expected: dict[str, list[list[float]]] = {}
    for seed, name in enumerate(nodes):
        seed_all(seed)
        expected[name] = [draw(), draw()]

    for seed, (name, state) in enumerate(nodes.items()):
        state.restore()
        seed_all(seed)
        os.environ["nnUNet_results"] = name
        os.environ[f"only_{name}"] = "1"
        assert draw() == expected[name][0]
        os.write(1, name.encode())
        state.keep()
    for name, threads in (("A", 1), ("B", 2)):
        nodes[name].restore()
        assert draw() == expected[name][1]
        assert os.environ["nnUNet_results"] == name
        assert {key for key in os.environ if key.startswith("only_")} == {f"only_{name}"}
        assert torch.get_num_threads() == threads
        os.write(2, b" again")
        nodes[name].keep()
    assert [(tmp_path / name / "node.log").read_text() for name in nodes] == ["A again", "B again"]


def seed_all(seed: int) -> None:
    """Seed all global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
