"""``fednnunet train`` is ``python train.py``: the same help, configuration and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from fednnunet.cli.train import options_of_groups
from fednnunet.config.hydra_datasets import CONF, set_by_dataset

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "python train.py": [sys.executable, "train.py"],
    "fednnunet train": [sys.executable, "-m", "fednnunet.cli.main", "train"],
}


def call(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAMS[program], *arguments], capture_output=True, text=True, cwd=ROOT)


def test_both_commands_print_the_same() -> None:
    for arguments in (("--help",), ("--cfg", "job", "strategy=ffe", "seed=3")):
        script, entry = (call(program, *arguments) for program in PROGRAMS)
        assert script.returncode == entry.returncode == 0, entry.stderr
        assert entry.stdout == script.stdout
        assert entry.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_wrong_key_is_one_line_and_exit_code_2(program: str) -> None:
    result = call(program, "trainer.epoch=3")
    assert result.returncode == 2
    assert result.stderr == "error: unknown key trainer.epoch; --cfg job shows all keys, --help all groups\n"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "experiment=null",
            "a group cannot be set to null; leave it out, or choose one of its options (--help lists them).",
        ),
        (
            "strategy=_flower",
            "strategy.name is not set; options whose names begin with _ are bases of others, not to be chosen",
        ),
        (
            "dataset=_base",
            "dataset.name is not set; options whose names begin with _ are bases of others, not to be chosen",
        ),
    ],
)
def test_an_option_that_cannot_be_chosen_is_one_line_and_exit_code_2(override: str, problem: str) -> None:
    result = call("python train.py", override)
    assert result.returncode == 2
    assert result.stderr == f"error: {problem}\n"


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = call("python train.py", f"hydra.run.dir={tmp_path}/file/run")
    assert result.returncode == 2
    problem = "cannot be written: Not a directory; choose another hydra.run.dir (of a sweep: hydra.sweep.dir)"
    assert result.stderr == f"error: {tmp_path}/file/run {problem}\n"


def test_one_run_of_a_sweep_cannot_be_shown() -> None:
    result = call("python train.py", "-m", "strategy=asym,ffe", "--cfg", "job")
    assert result.returncode == 2
    assert result.stderr == "error: --cfg and --info show one run; leave out -m, and name one value per key.\n"


def hydra_of(*overrides: str) -> tuple[DictConfig, DictConfig]:
    """A composed configuration, and Hydra's own as it is in a job."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    hydra = config.hydra
    with open_dict(config):
        OmegaConf.set_readonly(config, False)
        del config.hydra
    return config, hydra


def test_help_lists_the_groups_options_without_those_that_only_others_build_on() -> None:
    listed = dict(line.split(": ") for line in options_of_groups().splitlines())
    assert listed["dataset"].startswith("aimix, custom, mamamia")
    assert "ffe" in listed["strategy"].split(", ")
    assert not [option for options in listed.values() for option in options.split(", ") if option.startswith("_")]


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        ((), "trainer=short, model=small, configuration=2d, evaluation.distance_unit=mm (set by dataset=phantom)"),
        (
            ("trainer=nnunet", "configuration=3d_fullres"),
            "model=small, evaluation.distance_unit=mm (set by dataset=phantom)",
        ),
        (("dataset=mamamia_public",), "configuration=2d, evaluation.distance_unit=mm (set by dataset=mamamia_public)"),
        (("dataset=custom",), ""),
    ],
)
def test_what_a_dataset_sets_is_printed_at_the_start(overrides: tuple[str, ...], values: str) -> None:
    config, hydra = hydra_of(*overrides)
    assert set_by_dataset(config, hydra) == values
