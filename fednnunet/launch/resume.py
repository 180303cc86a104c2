"""``continue=FOLDER``: the command that started an interrupted run, or sweep."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from fednnunet.errors import ConfigError
from fednnunet.lock import LOCK_FILE, locked
from fednnunet.run_files import OVERRIDES_FILE, RUN_FILE, SWEEP_FILE

KEY = "continue="


def expand_continue(arguments: list[str], outputs: Path = Path("outputs")) -> list[str]:
    """Replace ``continue=FOLDER`` in command-line arguments by those of the run in ``FOLDER``.

    ``continue=last`` takes the run below ``outputs`` that was started last and did not finish. Other arguments stay
    and win.

    Raises:
        ConfigError: there is no run, with where it was looked for; or a job of the sweep is running.
    """
    given = [argument for argument in arguments if argument.startswith(KEY)]
    if not given:
        return arguments
    if len(given) > 1:
        raise ConfigError("continue: name one folder")
    value = given[0].removeprefix(KEY)
    folder = _last(outputs) if value == "last" else Path(value).expanduser()
    others = [argument for argument in arguments if argument not in given]
    return [*_arguments_of(folder), *others]


def _arguments_of(folder: Path) -> list[str]:
    if (folder / SWEEP_FILE).is_file():
        for lock in folder.glob(f"*/{LOCK_FILE}"):
            with locked(lock.parent):
                pass  # no job of it is running
        overrides = OmegaConf.load(folder / SWEEP_FILE).hydra.overrides
        hydra = [text for text in overrides.hydra if not text.startswith(("hydra.sweep.dir=", "hydra.mode="))]
        return ["--multirun", *overrides.task, *hydra, f"hydra.sweep.dir={folder}"]
    if (folder / OVERRIDES_FILE).is_file():
        return [*OmegaConf.load(folder / OVERRIDES_FILE), f"hydra.run.dir={folder}"]
    raise ConfigError(f"continue={folder}: there is no run or sweep in this folder (it lacks {OVERRIDES_FILE})")


def _last(outputs: Path) -> Path:
    unfinished = [
        path.parent.parent
        for path in outputs.glob(f"**/{OVERRIDES_FILE}")
        if not (path.parent.parent / RUN_FILE).is_file()
    ]
    if not unfinished:
        raise ConfigError(f"continue=last: there is no unfinished run below {outputs}")
    newest = max(unfinished, key=lambda folder: (folder / OVERRIDES_FILE).stat().st_mtime)
    sweeps = [folder for folder in newest.parents if (folder / SWEEP_FILE).is_file()]
    return sweeps[0] if sweeps else newest
