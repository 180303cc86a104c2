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
from fednnunet.server.run_observer import RunObserver

log = logging.getLogger(__name__)

STATUS_FILE = "run_status.json"


class RunStatus(RunObserver):
    """Keeps the status file of a run up to date.

    A message is in it until what it tells is over: the run waits no more, enters another stage, or has finished the
    round after the one in which the message came.

    Args:
        state: folder of the server's state.
        run: folder of the run.
        metadata: strategy and dataset of the run.
    """

    def __init__(self, state: Path, run: Path, **metadata: str) -> None:
        self._path = state / STATUS_FILE
        self._rounds_of_message = 0
        self._status: dict[str, Any] = {
            "run": str(run.resolve()),
            **metadata,
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

    def on_stage(self, stage: str) -> None:
        self._write(stage=stage, message="")

    def on_message(self, text: str) -> None:
        self._rounds_of_message = 0
        self._write(message=text)

    def on_waiting(self, nodes: Collection[str]) -> None:
        if sorted(nodes) != self._status["waiting_for"]:
            over = {} if nodes else {"message": ""}
            self._write(waiting_for=sorted(nodes), **over)

    def on_fold_start(self, fold: Fold, rounds: int, finished: int) -> None:
        self._write(fold=fold, rounds=rounds, round=finished)

    def on_node_reply(self, node: str, server_round: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        shown = {name: value for name, value in (metrics or {}).items() if name in ("train_loss", "pseudo_dice")}
        before = self._status["nodes"].get(node, {"round": 0})
        seen = {"round": max(before["round"], server_round), "seen": _timestamp()}
        self._status["nodes"][node] = before | shown | seen
        self._write()

    def on_round_end(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rounds_of_message += 1
        over = {"message": ""} if self._rounds_of_message > 1 else {}
        self._write(round=server_round, **over)

    def on_run_end(self, error: BaseException | None = None) -> None:
        """The run is finished; with ``error`` it stopped, and can be resumed."""
        if error is None:
            self._write(stage="finished", finished=True, waiting_for=[], message="")
        else:
            message = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
            self._write(stage="stopped", message=message, waiting_for=[])

    def _write(self, **changes: Any) -> None:
        self._status |= {**changes, "updated": _timestamp()}
        try:
            write_atomically(self._path, json.dumps(self._status, indent=1))
        except OSError as error:  # the run does without it
            if error.errno not in DISK_FULL:
                raise
            log.warning("%s cannot be written: %s", self._path, error.strerror)


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
