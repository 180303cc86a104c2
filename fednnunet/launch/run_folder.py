"""The folder of a run: whose it is, its log file, and what is written about the run."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fednnunet import __version__
from fednnunet.config.run import RunConfig
from fednnunet.errors import ConfigError
from fednnunet.files import DISK_FULL, NOT_WRITABLE, write_atomically
from fednnunet.node.settings import NOISE_KEY, OPENED_SUMS, SECURE_KEY, SECURE_ROUND, NodeSettings
from fednnunet.processes import LOG_FORMAT
from fednnunet.run_files import CONFIG_FILE, PERSONAL_RESULTS, RUN_ID_FILE
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.strategy.base import Strategy


def check_folder(folder: Path, config: RunConfig) -> None:
    """Whether ``folder`` is free for this configuration, or holds a run of it.

    Raises:
        ConfigError: it holds a run of another configuration, or of one that cannot be read; names the first key that
            differs.
    """
    ours = result_settings(config)
    note = folder / CONFIG_FILE
    if note.is_file():
        try:
            theirs = dict(json.loads(note.read_text()))
        except (ValueError, TypeError):
            raise ConfigError(f"{note} is damaged; choose another hydra.run.dir or remove the folder") from None
        for key in ours:
            if ours[key] != theirs.get(key):
                raise ConfigError(
                    f"{folder} holds a run with {key}={theirs.get(key)}, not {ours[key]}; "
                    "choose another hydra.run.dir or remove the folder"
                )


def result_settings(config: RunConfig) -> dict[str, Any]:
    """The keys that results depend on, flat; not where files are or who follows the run."""
    chosen = config.model_dump(
        mode="json",
        by_alias=True,
        exclude={
            "compute": True,
            "dataset": {"origin"},
            "federation": True,
            "fingerprint": {"find_duplicates"},
            "gpu_memory": {"cap"},
            "logger": True,
            "paths": True,
        },
    )
    return dict(_flatten("", chosen))


def _flatten(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    return [pair for key, inner in value.items() for pair in _flatten(f"{prefix}.{key}".lstrip("."), inner)]


def run_id(folder: Path) -> str:
    """Id by which nodes on other machines know the run of this folder; the same when the run is resumed."""
    path = folder / RUN_ID_FILE
    if not path.is_file():
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def run_metadata(config: RunConfig, command: str, sweep: str | None) -> dict[str, Any]:
    """What is known of a run at its start, for ``run.json``: what is run, on what, with which versions."""
    return {
        "strategy": config.strategy.name,
        "dataset": config.dataset.name,
        "seed": config.seed,
        "fold": config.fold,
        "configuration": config.configuration,
        "nodes": [centre.name for centre in config.training_centres],
        "external": [centre.name for centre in config.external_centres],
        "distance_unit": config.evaluation.distance_unit,
        "privacy": config.privacy.model_dump(mode="json") | {"fingerprint": config.fingerprint.model_dump(mode="json")},
        "sweep": sweep,
        "command": command,
        "versions": {
            "fednnunet": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("nnunetv2", "torch", "lightning", "flwr")},
        },
    }


def final_metadata(
    recorder: RunRecorder,
    strategy: Strategy,
    started: datetime,
    seconds: float,
    peak_memory_gib: float,
) -> dict[str, Any]:
    """What is known of a run at its end, for ``run.json``."""
    return {
        "num_training": recorder.num_training,
        "unscored_folds": {centre: folds for centre, folds in recorder.unscored_folds.items() if folds},
        **recorder.training,
        "shared_fraction": strategy.shared_fraction() if len(recorder.num_training) > 1 else {},
        **({"noise": recorder.noise} if recorder.noise else {}),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "peak_memory_gib": round(peak_memory_gib, 2),
    }


class LogFile(logging.FileHandler):
    """A log that waits for room on a full disk, or one that is read-only, and does not fill the terminal with that."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Logging's hook, called while the error is handled."""
        error = sys.exception()
        if not (isinstance(error, OSError) and error.errno in (*DISK_FULL, *NOT_WRITABLE)):
            super().handleError(record)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Log of this process and its libraries into ``path``; warnings of this package also on the terminal."""
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    handler = LogFile(path)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    before = root.level, flower.handlers, flower.propagate
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    flower.handlers, flower.propagate = [], True  # Flower writes to the terminal by itself
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        root.level, flower.handlers, flower.propagate = before


def remove_resume_files(folder: Path, nodes: Sequence[NodeSettings]) -> None:
    """Remove what only resuming needs, as nnU-Net does with its last checkpoint at the end of training."""
    for path in folder.glob("strategy_fold_*_round_*"):
        path.unlink()
    for node in nodes:
        for name in (NOISE_KEY, SECURE_KEY, SECURE_ROUND, OPENED_SUMS):  # who has the keys can take noise or masks away
            (node.folder / name).unlink(missing_ok=True)
        for results in ("nnUNet_results", PERSONAL_RESULTS):
            for path in node.folder.glob(f"{results}/*/*/fold_*/checkpoint_round_*"):
                path.unlink()
