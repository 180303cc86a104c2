"""Errors of other libraries, raised by these libraries, in this project's words."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from joblib.externals.loky.process_executor import TerminatedWorkerError
from submitit.core.utils import FailedJobError

from fednnunet.launch.library_errors import NO_PLUGIN, format_hydra_error, launcher_error

CONF = Path(__file__).parents[2] / "conf"


def compose_error(*overrides: str) -> Exception:
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("config", overrides=list(overrides))
    return caught.value


def test_an_unknown_key_is_named_without_the_advice_to_append_it() -> None:
    problem = format_hydra_error(compose_error("trainer.epoch=3"))
    assert problem == "unknown key trainer.epoch; --cfg job shows all keys, --help all groups"


def test_an_unknown_option_is_one_line_without_hydras_search_path() -> None:
    problem = format_hydra_error(compose_error("trainer=long"))
    assert problem == "there is no trainer/long; options of trainer: nnunet, short, short_adam"


def test_options_that_are_bases_of_others_are_not_offered() -> None:
    problem = format_hydra_error(compose_error("dataset=mine"))
    assert problem.startswith("there is no dataset/mine; options of dataset: aimix, custom, ")


@pytest.mark.parametrize("text", ["Error loading 'hydra_plugins.x'", "Could not find 'hydra/sweeper/optuna'"])
def test_a_plugin_that_is_not_installed_is_named(text: str) -> None:
    assert format_hydra_error(HydraException(text)) == NO_PLUGIN


def test_a_launcher_that_is_not_installed_is_named() -> None:
    with pytest.raises(RuntimeError) as caught:
        Plugins.instance()._instantiate({"_target_": "hydra_plugins.none.Launcher"})  # type: ignore[arg-type]
    assert launcher_error(caught.value) == NO_PLUGIN


def test_a_search_without_a_score_is_explained() -> None:
    study = optuna.create_study()
    with pytest.raises(ValueError, match=r"^No trials are completed yet\.$") as caught:
        study.best_trial  # noqa: B018
    assert launcher_error(caught.value) == "no trial could be scored; each says why above"


@pytest.mark.parametrize("error", [TerminatedWorkerError("A worker stopped.\nmore"), FailedJobError("Job 1 failed.")])
def test_a_job_whose_process_ended_is_told_apart_from_a_bug(error: Exception) -> None:
    assert launcher_error(error).startswith("the process of a job ended, and the sweep with it: ")
    assert not launcher_error(error).endswith(".")
    assert launcher_error(ValueError("a bug")) == ""
