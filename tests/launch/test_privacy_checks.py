"""What cannot be had together with the protection that is asked for is told before anything starts."""

from __future__ import annotations

import logging

import pytest
from hydra import compose, initialize_config_dir

from fednnunet.config.hydra_datasets import CONF
from fednnunet.config.run import RunConfig, read_config
from fednnunet.errors import ConfigError
from fednnunet.launch.privacy_checks import check_privacy

pytestmark = pytest.mark.unit


def centres(number: int, external: int = 0) -> str:
    names = [f"{{name: N{k}, dataset: {k}, external: {str(k >= number).lower()}}}" for k in range(number + external)]
    return f"dataset.centres=[{', '.join(names)}]"


def configured(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose("config", ["dataset=custom", "privacy=secure", "paths.run=run", *overrides]))


@pytest.mark.parametrize("strategy", ["krum", "fedmedian", "fedtrimmedavg", "fedadam", "fedavgm", "fedyogi"])
def test_strategies_that_read_the_layers_of_each_node_are_refused(strategy: str) -> None:
    with pytest.raises(ConfigError, match=f"^strategy={strategy} reads the layers of each node.*use strategy=asym"):
        check_privacy(configured(centres(4), f"strategy={strategy}"))


@pytest.mark.parametrize("strategy", ["asym", "ffe", "fedprox"])
@pytest.mark.parametrize("limit", ["10", "null"])
def test_strategies_that_average_are_taken(strategy: str, limit: str) -> None:
    check_privacy(configured(centres(3), f"strategy={strategy}", f"strategy.aggregation.max_update_norm={limit}"))


@pytest.mark.parametrize("strategy", ["local", "centralized"])
def test_where_nothing_is_exchanged_there_is_nothing_to_add_up(strategy: str, caplog: pytest.LogCaptureFixture) -> None:
    check_privacy(configured(centres(2), f"strategy={strategy}"))
    assert f"strategy={strategy} exchanges no layers" in caplog.text


ACROSS = ("federation=deployment", "federation.server=state")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            [centres(4), "strategy.aggregation.max_update_norm=5"],
            "set privacy.secure_sums.max_update_norm, by",
        ),
        ([centres(4), "exchange.dtype=float16"], "exchange.dtype=float16: secure sums are of 32-bit integers"),
        ([centres(4), "exchange.dtype=int4"], "exchange.dtype=int4: secure sums are of 32-bit integers, and need"),
        ([centres(2)], "privacy.secure_sums: 2 nodes train, and with colluding=1 and min_group=3, .* at least 3 nodes"),
        ([centres(2), "privacy.secure_sums.min_group=2"], "with colluding=1 and min_group=2, .* at least 3 nodes"),
        ([centres(4), "privacy.secure_sums.colluding=3"], "4 nodes train, and with colluding=3 .* at least 5 nodes"),
        ([centres(6), "strategy.aggregation.fraction_train=0.4"], "2 of 6 nodes train in a round"),
        ([centres(5), *ACROSS, "federation.expected_nodes=3"], "expected_nodes=3: .* at least 4 nodes"),
        ([centres(5), *ACROSS, "federation.min_nodes=3"], "min_nodes=3: with .* at least 4 nodes; raise it"),
        ([centres(4), "evaluation.cross_centre=true"], "evaluation.cross_centre=true: with strategy=asym"),
        ([centres(4), "trainer.iterations=10"], "privacy.least_steps=50: a round has 10 training steps"),
        (
            [centres(4), "strategy=ffe", "privacy.scores=nothing", "evaluation.cross_centre=true"],
            "evaluation.cross_centre=true: privacy.scores=nothing keeps",
        ),
    ],
)
def test_what_cannot_be_had_with_secure_sums_is_one_line(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        check_privacy(configured(*overrides))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [centres(4), "strategy=asym", "strategy.heterogeneous_tasks=true"],
        [centres(4, external=1), "strategy=ffe", "evaluation.cross_centre=true"],
        [centres(4), "trainer.iterations=10", "strategy.local_epochs=5"],
        [centres(2), "privacy.secure_sums.min_group=2", "privacy.secure_sums.colluding=0"],
    ],
)
def test_what_can_be_had_is_taken(overrides: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_privacy(configured(*overrides))
    assert ("each can compute the other's" in caplog.text) == ("privacy.secure_sums.min_group=2" in overrides)


@pytest.mark.parametrize("overrides", [["strategy=asym"], ["strategy=ffe", "strategy.aggregation.keep_local=[norm]"]])
def test_external_centres_without_a_model_are_left_out(overrides: list[str], caplog: pytest.LogCaptureFixture) -> None:
    config = configured(centres(4, external=1), *overrides)
    check_privacy(config)
    assert config.external_centres == []
    assert f"external centres (N4) are not scored: with {overrides[0]}, nodes have models of their own" in caplog.text
    assert [c.name for c in configured(centres(4, external=1), "strategy=ffe").external_centres] == ["N4"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["compute.num_devices=2"],
            r"compute\.num_devices=2 does not work with privacy\.case, .* .*num_devices=1$",
        ),
        (["compute.augmentation_workers=4"], r"compute\.augmentation_workers=4 does not work .* set .*_workers=0$"),
        (["compute.precision=16-mixed"], r"compute\.precision=16-mixed does not work .* set .*precision=32-true$"),
        (["strategy=fedprox"], r"strategy\.aggregation\.proximal_mu does not work with privacy\.case"),
        (["privacy.case.noise=1.0"], r"privacy\.case: set one of epsilon and noise"),
        (["privacy.case.epsilon=null"], r"privacy\.case: set one of epsilon and noise"),
        (["privacy.node={noise: 1.0}"], r"privacy: set one of privacy\.case and privacy\.node"),
        (
            ["privacy=none", "privacy.max_epsilon=8"],
            r"privacy\.max_epsilon=8 cannot be kept without noise; .*=case",
        ),
    ],
)
def test_noise_that_cannot_be_had_is_one_line(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        check_privacy(configured(centres(2), "privacy=case", *overrides))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["strategy.aggregation.weighting=num_cases"], r"weighting=num_cases: nodes that noise hides"),
        (["privacy.secure_sums=null", "evaluation.cross_centre=true"], r"cross_centre=true, .*models of nodes"),
    ],
)
def test_what_noise_would_not_hide_of_a_node_is_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_privacy(configured(centres(4), "privacy=node", *overrides))


def test_noise_that_can_be_had_is_taken() -> None:
    check_privacy(configured(centres(4), "privacy=node"))
    check_privacy(configured(centres(2), "privacy=node", "privacy.secure_sums=null"))
    check_privacy(configured(centres(2), "privacy=case", "privacy.max_epsilon=8"))
    check_privacy(configured(centres(2), "privacy=case", "privacy.case.epsilon=null", "privacy.case.noise=1.0"))
