"""Models of the nodes' own that cannot be had are told before anything starts."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from fednnunet.config.hydra_datasets import CONF
from fednnunet.config.run import RunConfig, read_config
from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import PersonalTraining
from fednnunet.launch.personal_checks import check_personal
from fednnunet.launch.settings import build_strategy, server_settings

CENTRES = "dataset.centres=[{name: Oslo, dataset: 1}, {name: Porto, dataset: 2}, {name: Lund, dataset: 3}]"


def configured(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose("config", ["dataset=custom", CENTRES, "paths.run=run", *overrides]))


def check(*overrides: str) -> None:
    config = configured(*overrides)
    check_personal(config, build_strategy(config))


@pytest.mark.parametrize(
    ("overrides", "personal"),
    [
        (["strategy=asym"], None),
        (["strategy=ffe", "strategy.fine_tune_epochs=5"], PersonalTraining(fine_tune_epochs=5)),
        (
            ["strategy=fedadam", "strategy.fine_tune_epochs=5", "strategy.fine_tune_learning_rate=0.01"],
            PersonalTraining(fine_tune_epochs=5, learning_rate=0.01),
        ),
        (["strategy=ditto"], PersonalTraining(tie=0.1)),
        (["strategy=ditto_asym", "strategy.ditto_lambda=0"], PersonalTraining(tie=0)),
        (["strategy=fedprox", "strategy.ditto_lambda=1"], PersonalTraining(tie=1)),
        (["strategy=ditto", "privacy=secure"], PersonalTraining(tie=0.1)),
        (["strategy=ditto", "privacy=case"], PersonalTraining(tie=0.1)),
    ],
)
def test_nodes_are_told_how_to_come_to_a_model_of_their_own(
    overrides: list[str], personal: PersonalTraining | None
) -> None:
    check(*overrides)
    assert configured(*overrides).strategy.personal == personal


@pytest.mark.parametrize("name", ["local", "centralized"])
def test_one_sweep_can_be_of_strategies_with_nothing_to_fine_tune(name: str, caplog: pytest.LogCaptureFixture) -> None:
    tuned = [f"strategy={name}", "strategy.fine_tune_epochs=5", "strategy.fine_tune_learning_rate=0.01"]
    check(*tuned)
    (warning,) = caplog.messages
    assert warning == (
        f"strategy.fine_tune_epochs=5 is without effect: strategy={name} averages nothing that could be fine-tuned"
    )
    assert server_settings(configured(*tuned)) == server_settings(configured(f"strategy={name}"))


def test_dittos_network_that_nothing_teaches_its_missing_labels_is_named(caplog: pytest.LogCaptureFixture) -> None:
    check("strategy=ditto", "task.labels=union")
    check("strategy=ditto", "strategy.ditto_lambda=0")
    assert not caplog.messages
    check("strategy=ditto", "strategy.ditto_lambda=0", "task.labels=union")
    (warning,) = caplog.messages
    assert "learn nothing of labels that their node has not annotated" in warning


def test_ditto_shares_what_its_base_shares() -> None:
    for name, base in (("ditto", "ffe"), ("ditto_asym", "asym")):
        ours, theirs = (configured(f"strategy={one}").strategy for one in (name, base))
        assert ours.model_copy(update={"name": base, "ditto_lambda": None}) == theirs
    assert server_settings(configured("strategy=ditto")).personal == PersonalTraining(tie=0.1)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["strategy=local", "+strategy.ditto_lambda=1"],
            "^strategy.ditto_lambda: strategy=local averages nothing, .*leave strategy.ditto_lambda=null, or",
        ),
        (
            ["strategy=centralized", "+strategy.ditto_lambda=1"],
            "strategy=centralized averages nothing.*ditto_lambda=null",
        ),
        (["strategy=ditto", "compute.num_devices=2"], "compute.num_devices=2; set compute.num_devices=1, or leave"),
        (
            ["strategy=asym", "strategy.fine_tune_epochs=2", "compute.num_devices=2"],
            "leave strategy.fine_tune_epochs=0$",
        ),
        (
            ["strategy=asym", "strategy.fine_tune_epochs=-1"],
            "^strategy.fine_tune_epochs=-1: .*greater than or equal to 0",
        ),
        (["strategy=asym", "strategy.fine_tune_learning_rate=0.1"], "is of fine_tune_epochs, which are 0"),
        (
            ["strategy=asym", "strategy.fine_tune_epochs=2", "strategy.fine_tune_learning_rate=inf"],
            "fine_tune_learning_rate=inf: .*finite",
        ),
        (["strategy=ditto", "strategy.ditto_lambda=-0.1"], "^strategy.ditto_lambda=-0.1: .*greater than or equal to 0"),
        (
            ["strategy=ditto", "strategy.fine_tune_epochs=2"],
            "both give a node a model of its own; set ditto_lambda=null",
        ),
    ],
)
def test_what_cannot_be_had_is_one_line(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        check(*overrides)
    assert "\n" not in str(refused.value)
