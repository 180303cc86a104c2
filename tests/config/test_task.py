"""Group ``task``: what can be combined with one network for all labels, and how labels are renamed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from fednnunet.config.run import RunConfig, read_config
from fednnunet.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"


def configured(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose("config", overrides=["paths.run=nowhere", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy=secure"], "leave privacy.secure_sums=null"),
        (["privacy=case"], "leave privacy=none"),
        (["privacy=node"], "leave privacy.secure_sums=null"),
        (["strategy.heterogeneous_tasks=true"], "leave strategy.heterogeneous_tasks=false"),
    ],
)
def test_what_cannot_be_combined_with_the_union_is_refused(overrides: list[str], message: str) -> None:
    assert configured(*overrides).task.labels == "same"  # alone each is possible
    with pytest.raises(ConfigError, match=message):
        configured("task.labels=union", *overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.exclusion=true", "exclusion=true needs task.labels=union"),
        ("task.pseudo_labels=0.1", "pseudo_labels=0.1 needs task.labels=union"),
        ("task.rename_labels={Bern: {tumor: tumour}}", "rename_labels: Bern is not a centre of phantom"),
        ("task.rename_labels={DUKE: {background: nothing}}", "rename_labels.DUKE.background=nothing"),
        ("task.rename_labels={DUKE: {tumor: ignore}}", "rename_labels.DUKE.tumor=ignore"),
    ],
)
def test_what_renames_nothing_or_a_name_of_nnunet_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["strategy=centralized"],
            r"^task\.channels=union needs nodes that keep their cases, and strategy=centralized pools them; take ",
        ),
        (["strategy=asym", "strategy.heterogeneous_tasks=true"], r"leave strategy\.heterogeneous_tasks=false"),
        (["strategy=asym", "privacy=case"], "steps that hide cases or nodes drop no channels; leave privacy=none"),
        (
            ["strategy=asym", "privacy=secure"],
            "would stand by itself in a secure sum, .* leave privacy.secure_sums=null",
        ),
        (["strategy=asym", "privacy=node"], "steps that hide cases or nodes drop no channels; leave privacy=none"),
    ],
)
def test_what_cannot_be_combined_with_unlike_channels_is_refused(overrides: list[str], message: str) -> None:
    assert configured(*overrides).task.channels == "same"  # alone each is possible
    with pytest.raises(ConfigError, match=message):
        configured("task.channels=union", *overrides)


@pytest.mark.parametrize(
    "override",
    [
        "task.rename_labels={DUKE: {tumor: tumour}}",
        "+task.rename_labels={DUKE: {tumor: tumour}}",
        "+task.rename_labels.DUKE.tumor=tumour",
    ],
)
def test_labels_are_renamed_by_a_map_of_centres(override: str) -> None:
    assert configured().task.rename_labels == {}
    config = configured("task.labels=union", override)
    assert config.task.rename_labels == config.shared.task.rename_labels == {"DUKE": {"tumor": "tumour"}}


def test_channels_and_labels_can_be_united_where_nodes_keep_their_cases() -> None:
    for strategy in ("asym", "ffe", "local"):
        task = configured(f"strategy={strategy}", "task.channels=union", "task.labels=union").task
        assert (task.channels, task.channel_drop) == ("union", 0.25)
    assert configured("strategy=asym", "task.channels=union", "task.channel_drop=0").shared.task.channel_drop == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.channel_drop=0.5"], r"channel_drop=0\.5 needs task\.channels=union"),
        (["task.channels=union", "task.channel_drop=1"], r"task\.channel_drop=1: .*less than 1"),
        (["task.channels=union", "task.channel_drop=-0.1"], r"task\.channel_drop=-0\.1"),
        (["task.channels=both"], r"task\.channels=both"),
    ],
)
def test_channels_are_dropped_with_a_probability_where_they_are_united(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured("strategy=asym", *overrides)
