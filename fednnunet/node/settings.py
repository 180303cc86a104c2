"""Settings that a node worker starts with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fednnunet.config.dataset import ImageHeaders
from fednnunet.config.shared import NodeRunConfig
from fednnunet.privacy.ledger import LEDGER

SECURE_KEY, SECURE_ROUND, OPENED_SUMS = "secure_sums.key", "secure_round.json", "opened_sums.jsonl"
"""In a node's folder: its part in the secure sums of a run."""
NOISE_KEY = "noise.key"
"""In a node's folder: the secret that the noise of its run follows from, readable by its owner alone."""


@dataclass(frozen=True)
class NodeIdentity:
    """Files that prove to other nodes who this one is.

    Attributes:
        key: private key of the node.
        certificate: certificate of its public key, from the federation's authority.
        authority: certificate of the authority, by which other nodes' certificates are checked.
    """

    key: Path
    certificate: Path
    authority: Path


@dataclass(frozen=True)
class NodeSettings:
    """Settings of one node worker.

    Attributes:
        name: name of the node.
        folder: work folder of the node: log, nnU-Net's raw, planning and results folders.
        datasets: centre name to raw folder; one entry, or all centres for the pooled baseline.
        external: whether the node has no training cases.
        config: configuration of the run.
        threads: number of threads of torch.
        same_machine: whether server and node run on one machine: errors may then name files, and overlays are kept for
            the report.
        image_headers: whether label maps lie where their headers say, as in
            :class:`~fednnunet.config.groups.DatasetConfig`.
        run: id of the run, where the server sends it; None for a worker that is started for its run.
        identity: files for secure sums; None where there are none.
        privacy_ledger: file where the cost of rounds is kept over runs; None for one in ``folder``.
    """

    name: str
    folder: Path
    datasets: dict[str, Path]
    external: bool
    config: NodeRunConfig
    threads: int
    same_machine: bool
    image_headers: ImageHeaders = "check"
    run: str | None = None
    identity: NodeIdentity | None = None
    privacy_ledger: Path | None = None

    @property
    def ledger(self) -> Path:
        """File where the cost of rounds is kept."""
        return self.privacy_ledger or self.folder / LEDGER

    @property
    def seed(self) -> int:
        """Seed of this node, made of the run's seed and the node's name."""
        digest = hashlib.sha256(f"{self.config.seed}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "little")


@dataclass(frozen=True)
class WorkerPlan:
    """A worker process and the nodes that share it; it computes for one of them at a time.

    Attributes:
        nodes: Flower's node id to the settings of the node.
        cache_bytes: main memory that nodes may hold while they wait for their turn.
        gpus: UUIDs of the GPUs that it sees; None for what this process sees.
        parks: a node that waits holds no GPU memory.
    """

    nodes: Mapping[int, NodeSettings]
    cache_bytes: int = 0
    gpus: tuple[str, ...] | None = None
    parks: bool = False

    @property
    def first(self) -> NodeSettings:
        """Settings of the first node."""
        return next(iter(self.nodes.values()))
