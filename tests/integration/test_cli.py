"""What the command tells before it trains."""

from __future__ import annotations

import subprocess
import sys

from omegaconf import OmegaConf

from tests.support.train_script import ROOT


def told(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_help_explains_every_group_and_names_every_option() -> None:
    text = told("--help")
    for group in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        assert f"\n  {group.name} " in text, f"{group.name} is not explained"
        for option in group.glob("*.yaml"):  # those with _ are bases of others, and cannot be chosen
            assert (option.stem in text) != option.stem.startswith("_"), option.stem
    assert "\n  hydra/launcher " in text
    for option in (ROOT / "conf" / "hydra" / "launcher").glob("*.yaml"):
        assert option.stem in text


def test_cfg_job_shows_the_composed_configuration() -> None:
    config = OmegaConf.create(told("--cfg", "job", "strategy=ffe", "seed=3"))
    assert (config.strategy.name, config.seed, config.dataset.name) == ("ffe", 3, "phantom")
