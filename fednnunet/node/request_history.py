"""Requests that a worker had before training, on disk: a restarted worker answers them again, from its caches."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from fednnunet.exchange.messages import REQUESTS, Body, Kind, parse_body
from fednnunet.files import write_atomically

log = logging.getLogger(__name__)

STAGES = (Kind.FINGERPRINT, Kind.PLAN, Kind.PREPROCESS)
"""Stages before training, in order."""


class RequestHistory:
    """Requests of the stages before training.

    Args:
        path: file that keeps them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: set[Kind] = set()
        self._recorded: dict[str, str] = {}
        if path.is_file():
            try:
                self._recorded = {str(kind): str(body) for kind, body in json.loads(path.read_text("utf-8")).items()}
            except (ValueError, AttributeError):
                log.warning("%s is damaged; the server asks for all stages again when the run is continued", path)

    def missed_before(self, kind: Kind) -> Iterator[tuple[Kind, Body]]:
        """Stages before ``kind`` that an earlier worker has done and this one has not."""
        for stage in STAGES[: STAGES.index(kind) if kind in STAGES else len(STAGES)]:
            if stage not in self._done and stage in self._recorded:
                yield stage, parse_body(REQUESTS[stage], self._recorded[stage], self._path.name)

    def forget(self, kind: Kind) -> None:
        """Count a stage as one that this worker has not done: what it made is gone."""
        self._done.discard(kind)

    def record(self, kind: Kind, body: Body) -> None:
        """Note that this worker has done what ``body`` asked."""
        self._done.add(kind)
        text = body.model_dump_json()
        if self._recorded.get(kind) != text:
            self._recorded[kind] = text
            write_atomically(self._path, json.dumps(self._recorded))
