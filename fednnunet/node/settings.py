"""What a node worker is told when it starts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fednnunet.config.shared import NodeRunConfig


@dataclass(frozen=True)
class NodeSettings:
    """Settings of one node worker.

    Attributes:
        name: of the node.
        folder: the node's own work folder: log, nnU-Net's raw, planning and results folders.
        datasets: centre name to raw folder; one entry, or all centres for the pooled baseline.
        external: no training cases.
        config: the run's configuration.
        threads: threads of torch.
        same_machine: server and node are one machine: errors may name files, pictures may be kept for the
            report.
        run: id of the run, where the server tells it; None for a worker that is started for its run.
    """

    name: str
    folder: Path
    datasets: dict[str, Path]
    external: bool
    config: NodeRunConfig
    threads: int
    same_machine: bool
    run: str | None = None

    @property
    def seed(self) -> int:
        """Seed of this node: the run's seed and the node's name."""
        digest = hashlib.sha256(f"{self.config.seed}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "little")
