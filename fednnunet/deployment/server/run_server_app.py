"""Run the ServerApp of a federation across machines, through outages and restarts of the server."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from flwr.serverapp import ServerApp

from fednnunet.deployment.server.operator_client import Operator
from fednnunet.deployment.server.run_connection import RunLost
from fednnunet.deployment.server.superlink_grid import SuperLinkGrid
from fednnunet.errors import ConfigError
from fednnunet.files import DISK_FULL, has_free_space
from fednnunet.lock import locked

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0


@contextlib.contextmanager
def reserved(state: Path) -> Iterator[None]:
    """Keep the server with this state folder for one run.

    Raises:
        ConfigError: there is no server, or another run is using it.
    """
    Operator(state)
    with locked(state / "run"):
        yield


def run_across_machines(state: Path, folder: Path, app: ServerApp, notify: Callable[[str], None]) -> None:
    """Run ``app`` at the server with this state folder; when Flower's run is lost, start another one and continue.

    When the disk is full, it continues as soon as there is space. The server is :func:`reserved` for it.

    Args:
        state: folder of the server's state (``fednnunet server up``).
        folder: folder that ``app`` writes to.
        app: can be called again: it continues from its last finished round.
        notify: gets a line for the operator.

    Raises:
        FednnUNetError: what ``app`` raises.
    """
    last_problem = ""
    while True:
        try:
            with contextlib.closing(_connect(state, notify)) as grid:
                last_problem = ""
                grid.run_server(app)
                return
        except RunLost as lost:
            log.warning("%s", lost, exc_info=True)
            if str(lost) != last_problem:
                last_problem = str(lost)
                notify(f"{lost}; the run continues from its last finished round once the server can be reached")
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            log.warning("%s", error, exc_info=True)
            notify(f"the disk of {folder} is full; with space on it the run continues from its last finished round")
            while not has_free_space(folder):
                threading.Event().wait(RETRY_SECONDS)
        threading.Event().wait(RETRY_SECONDS)


def _connect(state: Path, notify: Callable[[str], None]) -> SuperLinkGrid:
    """Start a new run of Flower's at the server.

    Raises:
        RunLost: the server is away.
    """
    try:
        return SuperLinkGrid(state, notify)
    except ConfigError as error:
        raise RunLost(str(error)) from error
