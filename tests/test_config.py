"""Every configuration composes; every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from fednnunet.config import RunConfig, read_config
from fednnunet.errors import ConfigError
from fednnunet.federation.strategy import AsymFedAvg

CONF = Path(__file__).parents[1] / "conf"
CENTRES = "dataset.centres=[{name: Oslo, dataset: 201}, {name: Porto, dataset: /data/Dataset202_Porto}]"


def composed(tmp_path: Path, *overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose("config", overrides=[f"paths.run={tmp_path}", *overrides]))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in ("strategy", "trainer", "model", "gpu_memory", "node", "federation", "logger", "experiment")
        for option in options(group)
    ],
)
def test_every_option_of_every_group_composes(tmp_path: Path, group: str, option: str) -> None:
    config = composed(tmp_path, f"{group}={option}")
    assert config.dataset.name == "phantom"


def test_phantom_brings_the_demo_training_and_the_command_line_wins(tmp_path: Path) -> None:
    demo = composed(tmp_path).trainer.epochs
    assert demo is not None
    assert demo < 100
    assert composed(tmp_path, "trainer=nnunet").trainer.epochs is None, "as the class has it"
    assert composed(tmp_path, "dataset=custom", CENTRES).trainer.epochs is None


def test_memory_targets_are_by_name_of_the_node(tmp_path: Path) -> None:
    config = composed(tmp_path, "+gpu_memory.nodes.DUKE=16", "gpu_memory.default=6")
    assert [config.gpu_memory_of(name) for name in ("ISPY1", "DUKE")] == [6, 16]


def test_the_papers_rules_are_the_defaults_of_its_strategies(tmp_path: Path) -> None:
    for strategy in ("asym", "ffe"):
        aggregation = composed(tmp_path, f"strategy={strategy}").strategy.aggregation
        assert aggregation["_target_"] == f"{AsymFedAvg.__module__}.{AsymFedAvg.__name__}"
        assert {key: aggregation[key] for key in ("weighting", "matching", "share")} == {
            "weighting": "uniform",
            "matching": "name",
            "share": "all",
        }


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("+trainer.epoch=3", "unknown key trainer.epoch"),
        ("trainer.epochs=many", "trainer.epochs=many: .*integer"),
        ("trainer.iterations=0", "trainer.iterations=0"),
        ("trainer.initial_lr=-1", "trainer.initial_lr=-1"),
        ("fold=5", "fold=5: must be 0 to 4"),
        ("fold=-1", "fold=-1"),
        ("seed=-1", "seed=-1"),
        ("gpu_memory.default=0", "gpu_memory.default=0"),
        ("+gpu_memory.nodes.Berlin=8", "gpu_memory.nodes: Berlin is no centre .*Oslo, Porto"),
        ("node.device=tpu", "node.device=tpu"),
        ("dataset.configuration=4d", "dataset.configuration=4d"),
        ("dataset.hd95_unit=inch", "dataset.hd95_unit=inch"),
        ("dataset.centres=[]", "dataset.centres"),
        ("dataset.centres=[{name: A, dataset: 1}, {name: A, dataset: 2}]", "the name A is there twice"),
        ("dataset.centres=[{name: A, dataset: 1, external: true}]", "all are external"),
        ("dataset.centres=[{name: ../A, dataset: 1}]", "dataset.centres.0.name"),
        ("dataset.centres=[{dataset: 1}]", "dataset.centres.0.name"),
        ("strategy.fingerprint=mean", "strategy.fingerprint=mean"),
    ],
)
def test_mistakes_are_named_by_key_and_value(tmp_path: Path, override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        composed(tmp_path, "dataset=custom", CENTRES, override)
    assert "\n" not in str(caught.value)
