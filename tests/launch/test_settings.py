"""What is said of centres' datasets before a run starts: how to get those that are not there, and what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from fednnunet.cli.convert import CONVERTERS
from fednnunet.config.hydra_datasets import CONF, configured_dataset, dataset_names
from fednnunet.config.run import RunConfig, read_config
from fednnunet.errors import ConfigError, DataError
from fednnunet.launch.early_checks import check_names_and_files
from fednnunet.launch.run_folder import result_settings
from fednnunet.launch.settings import node_settings, prepare_centres, worker_plans
from fednnunet.node.settings import NodeSettings
from tests.support.raw_datasets import MISREAD, write_description

PAGES = Path(__file__).parents[2] / "docs" / "how-to" / "datasets"
PUBLISHED = sorted({converter.dataset for converter in CONVERTERS if converter.dataset})


@pytest.mark.parametrize("name", [*PUBLISHED, "mamamia_public"])
def test_a_published_dataset_that_is_not_there_says_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    (tmp_path / "raw").mkdir()
    for given, problem in (
        ((), "cannot be looked up"),
        ((f"dataset.raw_folder={tmp_path}/nowhere",), "there is no raw folder"),
        ((f"dataset.raw_folder={tmp_path}/raw",), "is not in .* which holds no datasets"),
    ):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = read_config(compose("config", [f"dataset={name}", f"paths.run={tmp_path}", *given]))
        with pytest.raises(DataError, match=f"^centre [^:]*: .*{problem}") as missing:
            prepare_centres(config)
        assert config.dataset.origin
        assert str(missing.value).endswith(f"; {config.dataset.origin}")
        assert "\n" not in str(missing.value)
    assert not any("origin" in key for key in result_settings(config)), "a run goes on whatever it says"


@pytest.mark.parametrize(("fields", "problem"), MISREAD.values(), ids=MISREAD)
def test_a_description_that_nnunet_would_misread_stops_a_run_before_it_starts(
    tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    folder = tmp_path / "Dataset201_Oslo"
    write_description(folder, **fields)
    centres = f"dataset.centres=[{{name: Oslo, dataset: {folder}}}]"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = read_config(compose("config", ["dataset=custom", centres, f"paths.run={tmp_path}"]))
    with pytest.raises(DataError) as stopped:
        prepare_centres(config)
    assert str(stopped.value).startswith(f"centre Oslo: {folder}/dataset.json: ")
    assert problem in str(stopped.value)


@pytest.mark.parametrize(
    ("workers", "shared"),
    [(1, [[1, 2, 3, 4, 5]]), (2, [[1, 3, 5], [2, 4]]), (9, [[1], [2], [3], [4], [5]])],
)
def test_nodes_are_shared_out_among_workers(tmp_path: Path, workers: int, shared: list[list[int]]) -> None:
    config, nodes = federation_of_five(tmp_path, f"federation.workers={workers}", "federation.cache_gib=0.25")
    plans = worker_plans(config, nodes)
    assert [list(plan.nodes) for plan in plans] == shared
    assert [plan.nodes[node].name for plan in plans for node in plan.nodes] == [
        f"C{node}" for worker in shared for node in worker
    ]
    assert {plan.cache_bytes for plan in plans} == {2**28}


def test_nodes_of_several_devices_have_a_worker_each(tmp_path: Path) -> None:
    several = ("compute.num_devices=2", "compute.device=cpu")
    assert len(worker_plans(*federation_of_five(tmp_path, *several))) == 5
    with pytest.raises(ConfigError, match=r"^federation\.workers=2: nodes that train on compute\.num_devices=2 cannot"):
        worker_plans(*federation_of_five(tmp_path, *several, "federation.workers=2"))


@pytest.mark.parametrize("wrong", ["workers=-1", "workers=half", "cache_gib=-1"])
def test_workers_that_cannot_be_are_one_line(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match=rf"^federation\.{wrong.partition('=')[0]}.*$") as refused:
        federation_of_five(tmp_path, f"federation.{wrong}")
    assert "\n" not in str(refused.value)


def federation_of_five(tmp_path: Path, *given: str) -> tuple[RunConfig, list[NodeSettings]]:
    """A configuration, and the settings of its nodes."""
    centres = ", ".join(f"{{name: C{number}, dataset: {number}}}" for number in range(1, 6))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["dataset=custom", f"dataset.centres=[{centres}]", f"paths.run={tmp_path}", *given]
        config = read_config(compose("config", overrides))
    return config, node_settings(config, {f"C{number}": tmp_path for number in range(1, 6)})


@pytest.mark.parametrize("name", [*PUBLISHED, "mamamia_public"])
def test_what_it_names_exists(name: str) -> None:
    origin = configured_dataset(name).origin or ""
    commands = re.findall(r"`fednnunet convert (\w+)", origin)
    assert commands
    assert set(commands) <= {converter.name for converter in CONVERTERS}
    links, pages = re.findall(r"https://[^ ,;]+", origin), "".join(path.read_text() for path in PAGES.glob("*.md"))
    assert links
    assert all(link in pages for link in links)
    datasets = re.findall(r"dataset=(\w+)", origin)
    assert any(dataset.startswith("phantom_") for dataset in datasets)
    assert set(datasets) <= set(dataset_names())


def test_part_of_weights_needs_weights(tmp_path: Path) -> None:
    centres = "dataset.centres=[{name: Oslo, dataset: 1}, {name: Lund, dataset: 2}]"
    weights = tmp_path / "weights.pth"
    weights.touch()
    for given in ("null", f"{{Oslo: {weights}}}"):
        part = ("trainer.train_layers=[norm,seg_layers]", f"init.weights={given}")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = read_config(compose("config", ["dataset=custom", centres, f"paths.run={tmp_path}", *part]))
        with pytest.raises(ConfigError, match=r"trainer\.train_layers .*; name weights for (Oslo|Lund): init\.weights"):
            check_names_and_files(config)
