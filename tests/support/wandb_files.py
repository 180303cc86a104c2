"""What W&B wrote without an account, read back."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb


@dataclass
class Logged:
    """One W&B run, read back."""

    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    history: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    files: list[Path] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)

    @property
    def media(self) -> set[str]:
        """Names of tables, pages and pictures in the history."""
        return {key.removesuffix("/path") for key in self.history if key.endswith("/path")}


def records(path: Path) -> Iterator[Any]:
    """Records of a ``.wandb`` file: LevelDB's log format, 32 KiB blocks, a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, block, at, parts = path.read_bytes(), 32768, 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_wandb(folder: Path) -> dict[str, Logged]:
    wandb.teardown()  # its process may still be writing after a run's finish
    runs = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        logged, name = Logged(files=list(path.parent.glob("files/media/**/*.*"))), ""
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
                logged.group, logged.job_type = record.run.run_group, record.run.job_type
                logged.tags = list(record.run.tags)
                updates, target = record.run.config.update, logged.config
            elif kind == "config":
                updates, target = record.config.update, logged.config
            elif kind == "summary":
                updates, target = record.summary.update, logged.summary
            elif kind == "history":
                for item in record.history.item:
                    key = item.key or "/".join(item.nested_key)
                    logged.history[key].append(json.loads(item.value_json))
                continue
            elif kind == "metric":
                if record.metric.options.hidden:
                    logged.hidden.add(record.metric.name or record.metric.glob_name)
                continue
            elif kind == "exit":
                logged.exit_code = record.exit.exit_code
                continue
            else:
                continue
            for item in updates:
                target[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        runs[name] = logged
    return runs
