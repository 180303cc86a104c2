"""The node worker of a hospital: it does what the server asks, within what its own configuration allows."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, ValidationError

from fednnunet.audit.log import AUDIT_LOG, AuditLog
from fednnunet.config.groups import CachePaths
from fednnunet.config.node_file import NodeFile
from fednnunet.config.shared import NodeRunConfig, SharedRunConfig
from fednnunet.datasets.raw import find_dataset
from fednnunet.deployment.node.data_check import LOG_FILE
from fednnunet.deployment.node.identity import identity_of
from fednnunet.deployment.supervision import OTHER_RUN, show_warnings, terminal
from fednnunet.errors import ConfigError, FednnUNetError, ProtocolError, first_problem
from fednnunet.exchange.channel import Request, WorkerChannel
from fednnunet.exchange.messages import Failure, FingerprintRequest, Kind, RunId, parse_body
from fednnunet.files import DISK_FULL, write_atomically
from fednnunet.node.error_replies import NO_SPACE, refuse
from fednnunet.node.gpus import chosen, find_gpus, use_gpus
from fednnunet.node.process_setup import set_up_process
from fednnunet.node.settings import NodeIdentity, NodeSettings
from fednnunet.node.worker import NodeWorker
from fednnunet.privacy.ledger import LEDGER
from fednnunet.processes import cores

log = logging.getLogger(__name__)


class RunAssignment(BaseModel):
    """A run, and the part of its configuration that this node works by.

    Attributes:
        run: id of the run.
        shared_config: configuration that the server sent.
    """

    run: RunId
    shared_config: SharedRunConfig


class DeployedWorker:
    """Gets its run from the server and stores it on disk: a worker that is restarted continues with it.

    Args:
        node_file: configuration of the node.
        channel: where requests come from.
        audit: log of the data that leave the node; its entries name the run.
    """

    def __init__(self, node_file: NodeFile, channel: WorkerChannel, audit: AuditLog) -> None:
        self.node_file = node_file
        self.channel = channel
        self.audit = audit
        self.file = node_file.folder / "assignment.json"

    def serve(self) -> NoReturn:
        """Answer requests until the process ends; the stored run is gone on with before anything is asked."""
        assignment, request = self._stored_assignment(), None
        while True:
            try:
                if request is not None and (assignment is None or request.kind is Kind.FINGERPRINT):
                    assignment = self._assignment_of(request)
                    self._store(assignment)
                worker = self._worker_of(assignment) if assignment is not None else None
            except (FednnUNetError, OSError) as error:
                self._refuse(request, error)
            else:
                if worker is not None:
                    worker.serve(request)
            request = self._receive()

    def _refuse(self, request: Request | None, error: FednnUNetError | OSError) -> None:
        """Say why the run cannot be worked on: here, and to the server, if it has asked."""
        node = self.node_file.name
        if isinstance(error, FednnUNetError):
            failure = refuse(error, Kind.FINGERPRINT if request is None else request.kind, node, same_machine=False)
        else:
            log.error("%s", error)
            full = error.errno in DISK_FULL
            reason = NO_SPACE if full else f"its work folder cannot be written ({error.strerror})"
            failure = Failure(reason=f"node {node}: {reason}", error="unavailable" if full else "config")
        if request is not None:
            request.fail(failure)

    def _receive(self) -> Request:
        while True:
            request = self.channel.receive()
            if request is not None:
                return request

    def _stored_assignment(self) -> RunAssignment | None:
        """The run that this worker was on before; None before its first one, or if another version stored it."""
        if not self.file.is_file():
            return None
        try:
            return RunAssignment.model_validate_json(self.file.read_bytes())
        except (ValidationError, OSError):
            log.warning("%s is damaged, or of another version; waiting for the server", self.file)
            return None

    def _worker_of(self, assignment: RunAssignment) -> NodeWorker:
        log.info("run %s", assignment.run)
        self.audit.run = assignment.run
        return NodeWorker(settings_of(self.node_file, assignment), self._receive, self._switch_run)

    def _assignment_of(self, request: Request) -> RunAssignment:
        if request.kind is not Kind.FINGERPRINT:
            raise ProtocolError(f"the server asked for {request.kind} before it described the run")
        body = parse_body(FingerprintRequest, request.body, "the server")
        return assignment_of(self.node_file, body)

    def _switch_run(self, body: FingerprintRequest) -> NoReturn:
        """Leave another run to a new process, which has no state of this one; the relay sends it the request again."""
        self._store(assignment_of(self.node_file, body))
        log.warning("run %s starts; this worker ends", body.run)
        os._exit(OTHER_RUN)

    def _store(self, assignment: RunAssignment) -> None:
        write_atomically(self.file, assignment.model_dump_json(by_alias=True))


def assignment_of(node_file: NodeFile, body: FingerprintRequest) -> RunAssignment:
    """The run and the configuration that the server asks this node to work by, if the node allows it.

    Raises:
        ProtocolError: the run is missing, or its configuration does not follow the published schema.
        ConfigError: it names a class that this node's configuration does not, or protects less than that asks for.
    """
    if body.run is None or body.shared_config is None:
        raise ProtocolError("the server did not describe the run; is it the same version?")
    try:
        shared_config = SharedRunConfig.model_validate(body.shared_config)
    except ValidationError as error:
        problem = first_problem(error, "shared_config")
        raise ProtocolError(f"the server sent an invalid configuration: {problem}") from None
    for key, name in shared_config.classes.items():
        if name not in node_file.classes:
            raise ConfigError(f"{key}={name} is not allowed here; its node.yaml lists allowed classes under `classes`")
    shared_config.privacy.within(node_file.privacy)
    return RunAssignment(run=body.run, shared_config=shared_config)


def settings_of(node_file: NodeFile, assignment: RunAssignment) -> NodeSettings:
    """Settings of the worker: the server's configuration of the run, and the hospital's own.

    Raises:
        ConfigError: its layers are summed securely, and this node cannot prove who it is; it protects less than the
            node asks for; or the node cannot compute as it needs.
        DataError: the data folder does not exist.
    """
    shared = assignment.shared_config
    try:
        config = NodeRunConfig(
            **dict(shared)
            | {
                "fingerprint": shared.fingerprint.within(node_file.fingerprint),
                "privacy": shared.privacy.within(node_file.privacy),
                "gpu_memory": shared.gpu_memory.within(node_file.gpu_memory),
            },
            init=node_file.init,
            compute=node_file.compute,
            paths=CachePaths(cache=node_file.folder / "cache"),
        )
    except ValidationError as error:
        raise ConfigError(f"its node.yaml does not go with the run: {first_problem(error, '')}") from None
    return NodeSettings(
        name=node_file.name,
        folder=node_file.folder / "runs" / assignment.run,
        datasets={node_file.name: find_dataset(node_file.data, node_file.raw_folder, node_file.name)},
        external=node_file.external,
        config=config,
        threads=node_file.compute.threads or cores(),
        same_machine=False,
        image_headers=node_file.image_headers,
        run=assignment.run,
        identity=_identity(node_file) if config.privacy.secure_sums and not node_file.external else None,
        privacy_ledger=node_file.folder / LEDGER,
    )


def _identity(node_file: NodeFile) -> NodeIdentity:
    try:
        return identity_of(node_file)
    except ConfigError as error:
        if node_file.node_certificate is None:
            raise
        log.error("%s", error)
        raise ConfigError(
            "its node_certificate does not count; its own terminal and log tell why"
        ) from None  # it names files


def run_deployed_worker(node_file: NodeFile, address: str, key: bytes) -> None:
    """Entry of the worker's process: it has its own log file, shows what went wrong at the terminal, too, and ends with
    its parent.

    Args:
        node_file: configuration of the node.
        address: path of the socket to listen at.
        key: secret that the relay shows.
    """
    print_line = terminal()
    if isinstance(node_file.compute.gpus, list):
        gpus = find_gpus()
        use_gpus([chosen(gpus, id_).uuid for id_ in node_file.compute.gpus])
    set_up_process(node_file.folder / LOG_FILE, node_file.compute.threads or cores())
    show_warnings(print_line)
    Path(address).unlink(missing_ok=True)  # left by a worker that was killed
    audit = AuditLog(node_file.folder / AUDIT_LOG, node_file.name)
    DeployedWorker(node_file, WorkerChannel(address, key, audit.record), audit).serve()
