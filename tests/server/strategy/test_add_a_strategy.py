"""docs/how-to/add-a-strategy.md: its code, run as it is on the page."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdagrad as FlowersFedAdagrad
from hydra import compose, initialize_config_dir

from fednnunet.config.run import read_config
from fednnunet.errors import FednnUNetError
from fednnunet.launch.settings import build_strategy
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.flower_adapter import FlowerStrategy
from tests.support.scripted_federation import ROUNDS, Fault, ScriptedNode, State, run, same

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "how-to" / "add-a-strategy.md").read_text()
FILE = re.compile(r"`(my_[\w/]+\.\w+)`:\n\n```\w+\n(.*?)```", re.DOTALL)
CASES = {"Riga": 5, "Porto": 3, "Turku": 9}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files, on the path."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        for name, text in FILE.findall(PAGE):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        importlib.invalidate_caches()
        yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_strategies"]:
        del sys.modules[name]


def build(page: Path, *overrides: str) -> Strategy:
    """The strategy, from the page's configuration."""
    search = f"hydra.searchpath=[file://{page / 'my_conf'}]"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [search, f"paths.run={page / 'run'}", "strategy=fedadagrad", *overrides])
    return build_strategy(read_config(config))


def nodes() -> list[ScriptedNode]:
    return [ScriptedNode(name, cases=cases) for name, cases in CASES.items()]


def last_arrays(folder: Path, strategy: Strategy, scripted: list[ScriptedNode] | None = None, **options: Any) -> State:
    """What the nodes end with."""
    folder.mkdir(exist_ok=True)
    return run(folder, scripted or nodes(), strategy, **options).average_after(ROUNDS)


def test_the_pages_own_test_passes(page: Path) -> None:
    importlib.import_module("my_strategies.test_fedadagrad").test_steps_are_those_of_adagrad()


def test_it_is_short() -> None:
    files = dict(FILE.findall(PAGE))
    assert len(files["my_strategies/fedadagrad.py"].splitlines()) < 60
    assert list(files) == [
        *("my_strategies/fedadagrad.py", "my_conf/strategy/fedadagrad.yaml", "my_strategies/test_fedadagrad.py")
    ]


def test_a_federation_with_it_ends_where_flowers_own_does(page: Path) -> None:
    ours = last_arrays(page / "ours", build(page))
    flowers = last_arrays(page / "flowers", FlowerStrategy(FlowersFedAdagrad(eta=0.1, tau=0.001)))
    first = nodes()[1].initial  # of the first node by name
    for layer, array in ours.items():
        np.testing.assert_allclose(array, flowers[layer], rtol=1e-5)
        assert np.abs(array - first[layer]).max() > 0.05, "it has moved"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_interrupted_run_continues_with_its_squares(page: Path, dtype: str) -> None:
    settings = {"dtype": dtype}
    whole = last_arrays(page / "whole", build(page), settings=settings)
    fault = Fault("", worker=lambda answer: answer.arrays["head"].fill(np.nan), of=str(ROUNDS))
    scripted = nodes()
    with pytest.raises(FednnUNetError, match="node Porto: sent layer head with values that are not finite"):
        last_arrays(page / "interrupted", build(page), scripted, settings=settings, faults={"Porto": fault})
    assert same(whole, last_arrays(page / "interrupted", build(page), scripted, settings=settings))


def test_options_of_every_strategy_are_taken(page: Path) -> None:
    strategy = build(page, "+strategy.aggregation.keep_local=[head]", "strategy.aggregation.eta=0.03")
    assert "head" not in last_arrays(page / "run", strategy)
    assert vars(strategy)["eta"] == 0.03
