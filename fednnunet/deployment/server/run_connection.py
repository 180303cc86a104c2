"""A run of Flower's whose ServerApp is this process: its token, heartbeats, and calls that outlast an outage."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx

from fednnunet.deployment.http_errors import error_text
from fednnunet.deployment.server.flower_internals import (
    HeartbeatSender,
    ObjectPushError,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    RetryInvoker,
    RuntimeHttpClient,
    RuntimeTokenHttpInterceptor,
    SendTaskHeartbeatRequest,
    SubStatus,
    exponential,
    grid_over,
    run_from_proto,
)
from fednnunet.deployment.server.operator_client import Operator, read_server
from fednnunet.errors import ConfigError, FednnUNetError
from fednnunet.exchange.flower_internals import act_as

log = logging.getLogger(__name__)

MAX_RETRY_SECONDS = 5
"""Longest pause between attempts to reach a server that does not answer."""

T = TypeVar("T")


class RunLost(FednnUNetError):
    """Flower's run is over: the server was away for too long, or was restarted. Nodes and checkpoints remain."""


class RunConnection:
    """A new run at the server, driven by this process.

    Args:
        state: folder of the server's state.
        notify: gets a line for the operator.

    Attributes:
        operator: client of the operator endpoint.
        run_id: Flower's id of the run.
        node_id: id that the server app has as a sender of messages.
        grid: Flower's grid of the run.
        client: of Flower's Runtime API, with the run's token.

    Raises:
        ConfigError: there is no server.
        RunLost: it does not answer.
    """

    def __init__(self, state: Path, notify: Callable[[str], None]) -> None:
        self.operator = Operator(state)
        self._state = state
        self._notify = notify
        self._is_over = False
        self._is_down = False
        try:
            self.run_id, token = self.operator.start_run()
        except httpx.HTTPError as error:
            raise RunLost(self._problem(error)) from None
        self._retry = RetryInvoker(
            lambda: exponential(max_delay=MAX_RETRY_SECONDS),
            (httpx.TransportError, httpx.HTTPStatusError, ObjectPushError),
            max_tries=None,
            max_time=None,
            on_success=lambda _: self._note_answer(),
            on_backoff=lambda state: self._note_failure(state.exception, state.tries),
            should_giveup=self._is_final,
        )
        server = self.operator.server.control
        self.client = RuntimeHttpClient.from_server_address(
            server,
            True,
            None,
            [*self.operator.interceptors("flwr-serverapp"), RuntimeTokenHttpInterceptor(token=token)],
            retry_invoker=self._retry,
        )
        self.grid = grid_over(self.client, server, token)
        task = self.call(lambda: self.client.PullTaskInput(PullTaskInputRequest()))
        self.node_id = task.context.node_id
        act_as(self.node_id, task.run.run_id, task.task_id)
        self.grid.set_run(run_from_proto(task.run))
        self._heartbeats = HeartbeatSender(self._send_heartbeat)
        self._heartbeats.start()

    def call(self, function: Callable[[], T]) -> T:
        """Call ``function`` until the server answers.

        Raises:
            RunLost: the run is over, or the server was restarted.
        """
        try:
            result: T = self._retry.invoke(function)
            return result
        except (httpx.HTTPStatusError, httpx.TransportError) as error:
            raise RunLost(f"{self._problem(error)}, and the run there is over") from error

    def finish(self, completed: bool) -> None:
        """Tell the server that the run is over; nothing is tried again."""
        self._is_over = True
        status = SubStatus.COMPLETED if completed else SubStatus.FAILED
        try:
            self.client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        except (httpx.HTTPError, RunLost) as error:
            log.warning("the server could not be told that the run is over: %s", error)

    def close(self) -> None:
        """Send no more heartbeats; Flower's run ends with them."""
        self._is_over = True
        if self._heartbeats.is_running:
            self._heartbeats.stop()
        self.client.close()

    def _send_heartbeat(self) -> bool:
        try:
            return self._is_over or self.client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
        except httpx.HTTPError as error:
            log.info("no heartbeat: %s", error)
            return self._is_over

    def _is_final(self, error: Exception) -> bool:
        """Whether another attempt is useless: the server was restarted, or does not know this run any more."""
        if self._is_over:
            return True
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code < 500
        try:
            return read_server(self._state) != self.operator.server
        except ConfigError:
            return True

    def _note_failure(self, error: Exception | None, attempts: int) -> None:
        if not self._is_down and attempts > 1:
            self._is_down = True
            self._notify(f"{self._problem(error)}; waiting for it")

    def _problem(self, error: Exception | None) -> str:
        if isinstance(error, httpx.HTTPStatusError):
            return f"the server answers {error_text(error.response)}"
        if isinstance(error, ObjectPushError):  # Flower does not say why
            free = shutil.disk_usage(self._state).free
            return f"the server does not store a message; {free / 1e6:.0f} MB are free at {self._state}"
        return f"the server does not answer ({type(error).__name__}: {str(error).rstrip('. ')})"

    def _note_answer(self) -> None:
        if self._is_down:
            self._is_down = False
            self._notify("the server answers again")
