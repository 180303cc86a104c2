"""Every configuration composes; every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fednnunet.config.run import RunConfig, read_config
from fednnunet.datasets.raw import DATASET_NAME
from fednnunet.errors import ConfigError
from fednnunet.reporting.paper_comparison import paper_tables
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg

LABELS = {"mamamia": ["tumour"], "mnms": ["LV", "MYO", "RV"], "aimix": ["abdomen"]}
CONF = Path(__file__).parents[2] / "conf"
GROUPS = (
    *("strategy", "trainer", "model", "init", "fingerprint", "exchange", "evaluation", "gpu_memory", "compute"),
    *("federation", "logger", "paths", "experiment", "hparams_search", "debug", "local"),
)
TABLES = {"table7_mamamia": "mamamia", "table8_mnms": "mnms", "table9_aimix": "aimix"}
"""Experiments on data that is not generated."""
CENTRES = "dataset.centres=[{name: Oslo, dataset: 201}, {name: Porto, dataset: /data/Dataset202_Porto}]"


def composed(tmp_path: Path, *overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose("config", overrides=[f"paths.run={tmp_path}", *overrides]))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group in GROUPS for option in options(group)],
)
def test_every_option_of_every_group_composes(tmp_path: Path, group: str, option: str) -> None:
    config = composed(tmp_path, f"{group}={option}")
    assert config.dataset.name == (TABLES | {"scaling": "phantom_many"}).get(option, "phantom")


def test_phantom_brings_the_demo_training_and_the_command_line_wins(tmp_path: Path) -> None:
    demo = composed(tmp_path).trainer.epochs
    assert demo is not None
    assert demo < 100
    assert composed(tmp_path, "trainer=nnunet").trainer.epochs is None, "as the class has it"
    assert composed(tmp_path, "dataset=custom", CENTRES).trainer.epochs is None


@pytest.mark.parametrize("name", [*TABLES.values(), "mamamia_public"])
def test_datasets_are_those_of_the_papers_tables(tmp_path: Path, name: str) -> None:
    config = composed(tmp_path, f"dataset={name}")
    dataset = config.dataset
    paper = paper_tables()[dataset.name]
    assert {centre.name: centre.studies for centre in dataset.centres if not centre.external} == paper.training
    external = {} if name == "mamamia_public" else paper.external
    assert {centre.name: centre.studies for centre in dataset.centres if centre.external} == external
    assert (config.configuration, config.evaluation.distance_unit) == (paper.configuration, paper.distance_unit)
    assert dataset.labels == {label: value for value, label in enumerate(["background", *LABELS[dataset.name]])}


def test_the_public_part_of_mamamia_are_the_same_folders(tmp_path: Path) -> None:
    whole, public = (composed(tmp_path, f"dataset={name}").dataset for name in ("mamamia", "mamamia_public"))
    assert public.centres == [centre for centre in whole.centres if not centre.external]


def test_folders_of_datasets_do_not_collide(tmp_path: Path) -> None:
    names = [
        str(centre.dataset)
        for name in (*TABLES.values(), "phantom")
        for centre in composed(tmp_path, f"dataset={name}").dataset.centres
    ]
    numbers = [DATASET_NAME.fullmatch(name)[1] for name in names]  # type: ignore[index]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("experiment", [*TABLES, "four_strategies"])
def test_tables_follow_the_papers_protocol(tmp_path: Path, experiment: str) -> None:
    config = composed(tmp_path, f"experiment={experiment}", "dataset=aimix")
    assert config.folds == [0, 1, 2, 3, 4]
    assert config.evaluation.cross_centre
    assert config.trainer == composed(tmp_path, "dataset=aimix", "trainer=nnunet").trainer, "1000 epochs, as nnU-Net"
    assert {config.gpu_memory_of(centre.name) for centre in config.training_centres} == {8.0}


@pytest.mark.parametrize("experiment", [*TABLES, "phantom"])
def test_tables_sweep_the_four_set_ups_into_one_folder(experiment: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"experiment={experiment}"], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    assert config.hydra.sweeper.params == {"strategy": "local,asym,ffe,centralized"}
    sweep = (config.hydra.sweep.dir, config.hydra.sweep.subdir)
    assert sweep == (f"outputs/{experiment}".replace("phantom", "phantom-experiment"), "asym-seed0")


def test_memory_targets_are_by_name_of_the_node(tmp_path: Path) -> None:
    config = composed(tmp_path, "+gpu_memory.per_node.DUKE=16", "gpu_memory.gb=6")
    assert [config.gpu_memory_of(name) for name in ("ISPY1", "DUKE")] == [6, 16]


def test_the_papers_rules_are_the_defaults_of_its_strategies(tmp_path: Path) -> None:
    for strategy in ("asym", "ffe"):
        aggregation = composed(tmp_path, f"strategy={strategy}").strategy.aggregation
        assert aggregation["_target_"] == f"{AsymFedAvg.__module__}.{AsymFedAvg.__name__}"
        assert {key: aggregation[key] for key in ("weighting", "matching", "average_over")} == {
            "weighting": "uniform",
            "matching": "name",
            "average_over": "all",
        }


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("+trainer.epoch=3", "unknown key trainer.epoch"),
        ("trainer.epochs=many", "trainer.epochs=many: .*integer"),
        ("trainer.iterations=0", "trainer.iterations=0"),
        ("trainer.initial_lr=-1", "trainer.initial_lr=-1"),
        ("fold=100", "^fold=100: must be the number of a fold, from 0, or all"),
        ("fold=-1", "fold=-1"),
        ("seed=-1", "seed=-1"),
        ("gpu_memory.gb=0", "gpu_memory.gb=0"),
        ("+gpu_memory.per_node.Berlin=8", "gpu_memory.per_node: Berlin is not a centre .*Oslo, Porto"),
        ("compute.device=tpu", "compute.device=tpu"),
        ("configuration=4d", "configuration=4d"),
        ("evaluation.distance_unit=inch", "evaluation.distance_unit=inch"),
        ("dataset.centres=[]", r"^dataset: centres: none is named; add yours: .dataset.centres=\[{name: A"),
        ("dataset.centres=[{name: A, dataset: 1}, {name: A, dataset: 2}]", "two centres have the name A"),
        ("dataset.centres=[{name: A, dataset: 1, external: true}]", "all are external"),
        ("dataset.centres=[{name: ../A, dataset: 1}]", "dataset.centres.0.name"),
        ("dataset.centres=[{dataset: 1}]", "dataset.centres.0.name"),
        ("strategy.plan_from=mean", "strategy.plan_from=mean"),
        ("exchange.dtype=int9", "exchange.dtype=int9: must be .*'int8' or 'int4'"),
        ("compute.gpus=[]", "compute: gpus names no GPU; set gpus=auto"),
        ("compute={device: cpu, gpus: [0]}", r"gpus=\[0\] with device=cpu; set device=cuda, or gpus=auto"),
        ("compute.gpus=[1,1]", r"gpus=\[1, 1\]: GPU 1 is there twice"),
        ("federation.workers=-1", "federation.workers=-1"),
        (
            "federation={grid: single_machine, expected_nodes: 2, min_nodes: 3}",
            "min_nodes=3 is more than expected_nodes=2; lower it",
        ),
        (
            "federation.expected_nodes=3",
            "federation.expected_nodes=3: on this machine 2 nodes are started, .*dataset.centres",
        ),
    ],
)
def test_mistakes_are_named_by_key_and_value(tmp_path: Path, override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        composed(tmp_path, "dataset=custom", CENTRES, override)
    assert "\n" not in str(caught.value)


def test_mixed_memory_names_the_phantoms_nodes(tmp_path: Path) -> None:
    config = composed(tmp_path, "gpu_memory=mixed")
    assert len({config.gpu_memory_of(centre.name) for centre in config.training_centres}) > 2
    with pytest.raises(ConfigError, match=r"gpu_memory.per_node: DUKE is not a centre of custom"):
        composed(tmp_path, "dataset=custom", CENTRES, "gpu_memory=mixed")


def test_memory_may_be_left_to_the_planner(tmp_path: Path) -> None:
    assert composed(tmp_path, "gpu_memory=preset").gpu_memory_of("DUKE") is None


@pytest.mark.parametrize(
    ("fold", "folds"), [("3", [3]), ("all", ["all"]), ("[0,1,2,3,4]", [0, 1, 2, 3, 4]), ("[0,all]", [0, "all"])]
)
def test_folds(tmp_path: Path, fold: str, folds: list[int | str]) -> None:
    assert composed(tmp_path, f"fold={fold}").folds == folds


@pytest.mark.parametrize(("fold", "problem"), [("[0,700]", "fold=700: must be"), ("[]", "once"), ("[1,1]", "once")])
def test_folds_that_are_none(tmp_path: Path, fold: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        composed(tmp_path, f"fold={fold}")


def test_the_cascade_needs_the_low_resolution_and_has_no_external_centres(tmp_path: Path) -> None:
    cascade = "configuration=3d_cascade_fullres"
    with pytest.raises(ConfigError, match=r"init.previous_stage"):
        composed(tmp_path, cascade)
    assert composed(tmp_path, cascade, "init.previous_stage=low").external_centres == []
    assert len(composed(tmp_path).external_centres) == 1


def test_weights_and_plans_are_for_all_nodes_or_by_name(tmp_path: Path) -> None:
    config = composed(tmp_path, "init.weights=all.pth", "init.plans={DUKE: duke.json}")
    assert config.init.weights_of("DUKE") == Path("all.pth")
    assert (config.init.plans_of("DUKE"), config.init.plans_of("NACT")) == (Path("duke.json"), None)
    with pytest.raises(ConfigError, match=r"init.weights: DUKES is not a centre of phantom"):
        composed(tmp_path, "init.weights={DUKES: x.pth}")


@pytest.mark.filterwarnings(r"ignore:\s'hydra/launcher/\w+' is validated against ConfigStore schema")
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_launchers_take_their_settings(launcher: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = compose("config", overrides=[f"hydra/launcher={launcher}"], return_hydra_config=True).hydra
    assert OmegaConf.load(CONF / "hydra" / "launcher" / f"{launcher}.yaml").items() <= hydra.launcher.items()
    assert type(instantiate(hydra.launcher)).__module__.startswith("hydra_plugins.")


def test_several_loggers(tmp_path: Path) -> None:
    assert list(composed(tmp_path, "logger=[wandb,tensorboard]").logger) == ["wandb", "tensorboard"]
