"""Every strategy of the configuration, built from its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.serverapp import strategy as flower
from hydra import compose, initialize_config_dir

from fednnunet.config.run import RunConfig, read_config
from fednnunet.errors import ConfigError
from fednnunet.launch.settings import build_strategy
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.flower_adapter import FlowerStrategy
from fednnunet.server.strategy.no_exchange import NoExchange

CONF = Path(__file__).parents[3] / "conf"
STRATEGIES: dict[str, type] = {
    **{"local": NoExchange, "centralized": NoExchange},
    **{"asym": AsymFedAvg, "ffe": AsymFedAvg, "fedprox": AsymFedAvg, "ditto": AsymFedAvg, "ditto_asym": AsymFedAvg},
    **{"fedadam": flower.FedAdam, "fedavgm": flower.FedAvgM, "fedmedian": flower.FedMedian},
    **{"fedtrimmedavg": flower.FedTrimmedAvg, "fedyogi": flower.FedYogi, "krum": flower.Krum},
}


def configured(tmp_path: Path, *overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose("config", overrides=[f"paths.run={tmp_path}", *overrides]))


def test_these_are_all_strategies() -> None:
    assert STRATEGIES.keys() == {path.stem for path in (CONF / "strategy").glob("[!_]*.yaml")}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_file_makes_its_strategy(tmp_path: Path, name: str) -> None:
    strategy = build_strategy(configured(tmp_path, f"strategy={name}"))
    inner = strategy.strategy if isinstance(strategy, FlowerStrategy) else strategy
    assert type(inner) is STRATEGIES[name]


def test_options_reach_the_strategy(tmp_path: Path) -> None:
    options = [f"strategy.aggregation.{option}" for option in ("keep_local=[head]", "fraction_train=0.5")]
    for name in ("asym", "fedadam"):
        strategy = build_strategy(configured(tmp_path, f"strategy={name}", "seed=7", *options))
        layers = {node: {"encoder": (2,), "head": (1,)} for node in range(6)}
        names = {node: f"node{node}" for node in layers}
        strategy.prepare(layers, names)
        assert strategy.groups.names == ["encoder"]
        drawn = strategy.sample(0, 1)
        assert len(drawn) == 3
        same = AsymFedAvg(fraction_train=0.5, seed=7)
        same.prepare(layers, names)
        assert drawn == same.sample(0, 1)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("strategy.aggregation.weighting=trust", "weighting=trust: must be uniform or num_cases"),
        ("strategy.aggregation.fraction_train=2", "fraction_train=2: must be above 0 and at most 1"),
        ("strategy.aggregation.max_update_norm=1", "max_update_norm=1: must be more than 1, or null for no limit"),
        ("strategy.aggregation.keep_local=norm", "keep_local=norm: must be a list, such as [norm]"),
        ("strategy.aggregation._target_=no_such_package.Strategy", "no_such_package"),
        ("+strategy.aggregation.weights=equal", "unexpected keyword argument 'weights'"),
    ],
)
def test_options_that_it_does_not_take_are_errors_that_name_them(tmp_path: Path, override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=r"^strategy\.aggregation: ") as caught:
        build_strategy(configured(tmp_path, override))
    assert problem in str(caught.value)


def test_a_class_that_is_no_strategy_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, "strategy=local", "strategy.aggregation._target_=collections.OrderedDict")
    with pytest.raises(ConfigError, match=f"OrderedDict is not a {Strategy.__module__}.Strategy"):
        build_strategy(config)
