"""``run_status.json`` in the server's folder: where the run stands, for ``fednnunet server status``."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fednnunet.exchange.messages import Fold
from fednnunet.files import DISK_FULL, write_atomically

log = logging.getLogger(__name__)

STATUS_FILE = "run_status.json"


class RunStatus:
    """An observer of the server's journal.

    Args:
        state: folder of the server's state.
        run: folder of the run.
        facts: of the run: strategy, dataset.
    """

    def __init__(self, state: Path, run: Path, **facts: str) -> None:
        self._path = state / STATUS_FILE
        self._status: dict[str, Any] = {
            "run": str(run.resolve()),
            **facts,
            "stage": "start",
            "fold": None,
            "round": 0,
            "rounds": 0,
            "nodes": {},
            "waiting_for": [],
            "message": "",
            "finished": False,
        }
        self._write()

    def stage(self, name: str) -> None:
        self._write(stage=name)

    def message(self, text: str) -> None:
        self._write(message=text)

    def waiting(self, nodes: Collection[str]) -> None:
        if sorted(nodes) != self._status["waiting_for"]:
            self._write(waiting_for=sorted(nodes))

    def plans(self, plans: Mapping[str, Any]) -> None: ...

    def fold(self, fold: Fold, rounds: int, finished: int) -> None:
        self._write(fold=fold, rounds=rounds, round=finished)

    def node_done(self, node: str, server_round: int, metrics: Mapping[str, Any]) -> None:
        told = {name: metrics[name] for name in ("train_loss", "pseudo_dice") if name in metrics}
        before = self._status["nodes"].get(node, {"round": 0})
        self._status["nodes"][node] = before | told | {"round": max(before["round"], server_round), "seen": _now()}
        self._write()

    def round_done(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._write(round=server_round)

    def finish(self, error: BaseException | None = None) -> None:
        """The run is over; with ``error`` it failed, or was interrupted, and can go on."""
        if error is None:
            self._write(stage="finished", finished=True, waiting_for=[])
        else:
            self._write(stage="stopped", message=f"{type(error).__name__}: {error}", waiting_for=[])

    def _write(self, **changes: Any) -> None:
        self._status |= {**changes, "updated": _now()}
        try:
            write_atomically(self._path, json.dumps(self._status, indent=1))
        except OSError as error:  # it shows where the run stands, the run does without
            if error.errno not in DISK_FULL:
                raise
            log.warning("%s cannot be written: %s", self._path, error.strerror)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
