"""The process of a worker: nodes that share it, each with its own socket, audit log, folder and log file.

It computes for one node at a time. A node whose fit waits between two rounds is set aside when a request for another
one arrives, and taken up again by its own next request. Nodes that wait may hold so much memory as the plan of the
worker says; a node beyond that is dropped, and goes on as in a worker that has just started: from its record of
requests and its checkpoint.
"""

from __future__ import annotations

import gc
import logging
import selectors
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch

from fednnunet.audit.log import AUDIT_LOG, AuditLog
from fednnunet.exchange.channel import Request, WorkerChannel
from fednnunet.node.error_replies import failure_of
from fednnunet.node.gpus import use_gpus
from fednnunet.node.launcher import WorkerAddress
from fednnunet.node.process_setup import set_up_process
from fednnunet.node.process_state import ProcessState
from fednnunet.node.settings import NodeSettings, WorkerPlan
from fednnunet.node.worker import NodeWorker
from fednnunet.training.parking import ParkedTrainer

log = logging.getLogger(__name__)

NODE_LOG = "node.log"


class HostedNode:
    """A node of a worker process that others may share.

    Args:
        settings: settings of the node.
        address: where its requests come in.

    Attributes:
        channel: where its requests come from.
        num_bytes: main memory that the node held when it was set aside; it is the same until its next turn.
    """

    def __init__(self, settings: NodeSettings, address: WorkerAddress) -> None:
        self.settings = settings
        audit = AuditLog(settings.folder / AUDIT_LOG, settings.name)
        self.channel = WorkerChannel(address.socket, address.key, audit.record)
        self._process = ProcessState(settings.folder / NODE_LOG, settings.threads)
        self._worker: NodeWorker | None = None
        self._parked: ParkedTrainer | None = None
        self.num_bytes = 0

    def answer(self, request: Request, receive: Callable[[], Request | None]) -> None:
        """Answer a request, and those that follow it while a fit waits.

        Args:
            request: the node's.
            receive: its next one; None where the process is needed for another node.
        """
        try:
            if self._worker is None:
                self._worker = NodeWorker(self.settings, receive)
        except OSError as error:  # its folder cannot be written
            request.fail(failure_of(error, request.kind, self.settings))
            return
        self._worker.answer(request)

    def take_up(self) -> None:
        """Make the process the node's own, before a request of it is answered."""
        self._process.restore()
        if self._worker is not None:
            self._worker.stages.cap_memory()
        if self._parked is not None:
            self._parked.restore()
            self._parked = None

    def set_aside(self, parks: bool) -> None:
        """Keep what the process has of the node, before another one is taken up.

        Args:
            parks: leave no tensors of the node on its GPU.
        """
        self._process.keep()
        trainer = None if self._worker is None else self._worker.stages.trainer
        if parks and trainer is not None:
            self._parked = ParkedTrainer(trainer)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self.num_bytes = 0 if self._worker is None else self._worker.num_bytes

    def drop(self) -> None:
        """Free all memory of the node; it goes on from its files."""
        if self._worker is not None:
            log.info("node %s leaves memory; it goes on from its files", self.settings.name)
            self._worker.close()
            self._worker = self._parked = None
            self.num_bytes = 0
            gc.collect()  # Lightning's objects refer to each other


class SharedWorker:
    """Answers the requests of its nodes, one at a time.

    Args:
        plan: its nodes, and how much memory they may hold while they wait.
        addresses: Flower's node id to where the node's requests come in.
    """

    def __init__(self, plan: WorkerPlan, addresses: Mapping[int, WorkerAddress]) -> None:
        self._nodes = [HostedNode(settings, addresses[node]) for node, settings in plan.nodes.items()]
        self._selector = selectors.DefaultSelector()  # kept: a new one would cost a call for each node and request
        for number, node in enumerate(self._nodes):
            self._selector.register(node.channel, selectors.EVENT_READ, number)
        self._cache_bytes, self._parks = plan.cache_bytes, plan.parks
        self._current: HostedNode | None = None

    def serve(self) -> NoReturn:
        """Answer requests for ever; the process ends by signal or with its parent."""
        while True:
            node = self._ready()[0]
            request = node.channel.receive()
            if request is not None:  # else a peer was refused
                self._switch_to(node)
                node.answer(request, lambda node=node: self._receive_for(node))  # type: ignore[misc]

    def _receive_for(self, node: HostedNode) -> Request | None:
        """The next request of ``node``, whose fit waits for it; None where only another node has one."""
        while True:
            if node not in self._ready():
                return None
            request = node.channel.receive()
            if request is not None:
                return request

    def _ready(self) -> list[HostedNode]:
        """Wait until some nodes have requests; these, in the order of all."""
        return [self._nodes[number] for number in sorted(key.data for key, _ in self._selector.select())]

    def _switch_to(self, node: HostedNode) -> None:
        if node is self._current:
            return
        if self._current is not None:
            self._current.set_aside(self._parks)
            self._make_room(self._current, node)
        node.take_up()
        self._current = node

    def _make_room(self, last: HostedNode, following: HostedNode) -> None:
        """Drop nodes until those that wait hold no more than they may.

        Nodes take turns: the ``last`` one waits longest for its next, so it is dropped first.
        """
        waiting = [node for node in self._nodes if node not in (last, following)]
        held = last.num_bytes + sum(node.num_bytes for node in waiting)
        for node in (last, *waiting):
            if held <= self._cache_bytes:
                return
            held -= node.num_bytes
            node.drop()


def run_shared_worker(
    plan: WorkerPlan, addresses: Mapping[int, WorkerAddress], ready: Callable[[], None] = lambda: None
) -> None:
    """Process entry: quiet, own log files, ends with its parent.

    Args:
        plan: nodes of this worker.
        addresses: Flower's node id to where the node's requests come in.
        ready: called when the worker listens.
    """
    use_gpus(plan.gpus)  # before CUDA is first used: the process that this one was forked from has not
    set_up_process(plan.first.folder / NODE_LOG, plan.first.threads)
    gc.freeze()  # what all workers share with the process that they were forked from stays shared
    worker = SharedWorker(plan, addresses)
    ready()
    worker.serve()
