"""The node worker of a hospital: it is told by the server what to do, within what its own configuration allows."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from fednnunet.audit.log import AUDIT_LOG, AuditLog
from fednnunet.config.node_file import NodeFile
from fednnunet.config.run import (
    CachePaths,
    FingerprintConfig,
    GpuMemoryConfig,
    ModelConfig,
    NodeConfig,
    NodeRunConfig,
    TrainerConfig,
)
from fednnunet.config.shared import SharedRunConfig
from fednnunet.datasets.raw import find_dataset
from fednnunet.deployment.supervision import OTHER_RUN
from fednnunet.errors import ConfigError, FednnUNetError, ProtocolError, first_problem
from fednnunet.exchange.channel import Request, WorkerChannel
from fednnunet.exchange.messages import Failure, FingerprintRequest, Kind, RunId, parse_body
from fednnunet.files import DISK_FULL, write_atomically
from fednnunet.node.process_setup import set_up_process
from fednnunet.node.settings import NodeSettings
from fednnunet.node.worker import NodeWorker
from fednnunet.processes import cores

log = logging.getLogger(__name__)

LOG_FILE = "worker.log"


class RunAssignment(BaseModel):
    """A run, and what this node is to do in it.

    Attributes:
        run: its id.
        task: as the server told it.
    """

    run: RunId
    task: SharedRunConfig


class DeployedWorker:
    """Gets its run from the server, and keeps it on disk: a worker that is started again goes on with it.

    Args:
        site: configuration of the node.
        channel: where requests come from.
        audit: log of what leaves the node; its entries name the run.
    """

    def __init__(self, site: NodeFile, channel: WorkerChannel, audit: AuditLog) -> None:
        self.site = site
        self.channel = channel
        self.audit = audit
        self.file = site.folder / "assignment.json"

    def serve(self) -> None:
        """Answer requests until the process ends."""
        if self.file.is_file():
            self._work_on(RunAssignment.model_validate_json(self.file.read_text(encoding="utf-8")), None)
        while True:
            request = self.channel.receive()
            if request is None:
                continue
            try:
                assignment = self._assignment_of(request)
                self._note(assignment)
            except FednnUNetError as error:
                log.error("%s: %s", request.kind, error)
                request.fail(Failure(reason=f"node {self.site.name}: {error}", error="protocol"))
                continue
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                log.error("%s: %s", request.kind, error)
                reason = f"node {self.site.name}: its disk is full; make room there"
                request.fail(Failure(reason=reason, error="unavailable"))
                continue
            self._work_on(assignment, request)

    def _work_on(self, assignment: RunAssignment, first: Request | None) -> NoReturn:
        log.info("run %s", assignment.run)
        self.audit.run = assignment.run
        worker = NodeWorker(settings_of(self.site, assignment), self.channel, self._begin_other_run)
        worker.deferred = first
        worker.serve()
        raise AssertionError("a worker serves until its process ends")

    def _assignment_of(self, request: Request) -> RunAssignment:
        if request.kind is not Kind.FINGERPRINT:
            raise ProtocolError(f"the server asked for {request.kind} before it told what the run is")
        body = parse_body(FingerprintRequest, request.body, "the server")
        return assignment_of(self.site, body)

    def _begin_other_run(self, body: FingerprintRequest) -> NoReturn:
        """Leave it to a new process, which has nothing of the run before; the relay asks that one again."""
        self._note(assignment_of(self.site, body))
        log.warning("run %s begins; this worker ends", body.run)
        os._exit(OTHER_RUN)

    def _note(self, assignment: RunAssignment) -> None:
        write_atomically(self.file, assignment.model_dump_json(by_alias=True))


def assignment_of(site: NodeFile, body: FingerprintRequest) -> RunAssignment:
    """What the server wants of this node, if the node allows it.

    Raises:
        ProtocolError: no run, or a task that is not of the published schema.
        ConfigError: it names a class that this node's configuration does not.
    """
    if body.run is None or body.task is None:
        raise ProtocolError("the server did not tell what the run is; is it of the same version?")
    try:
        task = SharedRunConfig.model_validate(body.task)
    except ValidationError as error:
        raise ProtocolError(f"the server sent a task that is none: {first_problem(error, 'task')}") from None
    for key, name in task.classes.items():
        if name not in site.classes:
            raise ConfigError(f"{key}={name} is not allowed here; its node.yaml lists allowed classes under `classes`")
    return RunAssignment(run=body.run, task=task)


def settings_of(site: NodeFile, assignment: RunAssignment) -> NodeSettings:
    """What the worker is told: the server's task, and what the hospital's own configuration says.

    Raises:
        DataError: the data folder is not there.
    """
    task = assignment.task
    own: dict[str, Any] = {name: getattr(site, name) for name in NodeConfig.model_fields}
    share = task.share if site.share == "full" else site.share
    config = NodeRunConfig(
        seed=task.seed,
        fold=task.fold,
        dataset=task.dataset,
        fingerprint=FingerprintConfig(intensity="histogram", share=share),
        trainer=TrainerConfig(
            **task.trainer.model_dump(), pretrained=site.pretrained, previous_stage=site.previous_stage
        ),
        model=ModelConfig(**task.model.model_dump(), plans=site.plans),
        gpu_memory=GpuMemoryConfig(default=site.gpu_memory or task.gpu_memory, cap=task.cap_memory),
        node=NodeConfig(**own),
        paths=CachePaths(cache=site.folder / "cache"),
    )
    return NodeSettings(
        name=site.name,
        folder=site.folder / "runs" / assignment.run,
        datasets={site.name: find_dataset(site.data, site.raw_folder, site.name)},
        external=site.external,
        config=config,
        threads=site.threads or cores(),
        same_machine=False,
        find_duplicates=site.find_duplicates,
        run=assignment.run,
    )


def run_site_worker(site: NodeFile, address: str, key: bytes) -> None:
    """Process entry: own log file, ends with its parent.

    Args:
        site: configuration of the node.
        address: of the socket to listen at.
        key: shared with the relay.
    """
    set_up_process(site.folder / LOG_FILE, site.threads or cores())
    Path(address).unlink(missing_ok=True)  # of a worker that was killed
    audit = AuditLog(site.folder / AUDIT_LOG, site.name)
    DeployedWorker(site, WorkerChannel(address, key, audit.record), audit).serve()
