"""Run the ServerApp of a federation across machines, through whatever happens to the server."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from flwr.serverapp import ServerApp

from fednnunet.deployment.server.operator_client import Operator
from fednnunet.deployment.server.superlink_grid import RunLost, SuperLinkGrid
from fednnunet.errors import ConfigError
from fednnunet.files import DISK_FULL, has_free_space
from fednnunet.lock import locked

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0


def run_across_machines(state: Path, folder: Path, app: ServerApp, tell: Callable[[str], None]) -> None:
    """Run ``app`` at the server with this state folder; where Flower's run is lost, begin another and go on.

    So it does when the disk is full, as soon as there is room.

    Args:
        state: folder of the server's state (``fednnunet server up``).
        folder: that ``app`` writes to.
        app: can be called again: it goes on from its last finished round.
        tell: gets a line for the operator.

    Raises:
        ConfigError: there is no server, or another run is using it.
        FednnUNetError: what ``app`` raises.
    """
    Operator(state)  # now, an error is the operator's; later, the server may be away
    told = ""
    with locked(state / "run"):
        while True:
            try:
                with contextlib.closing(_connected(state, tell)) as grid:
                    told = ""
                    grid.run_server(app)
                    return
            except RunLost as lost:
                log.warning("%s", lost, exc_info=True)
                if str(lost) != told:
                    told = str(lost)
                    tell(f"{lost}; the run goes on from its last finished round as soon as the server can be reached")
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                log.warning("%s", error, exc_info=True)
                tell(f"the disk of {folder} is full; when there is room the run goes on from its last finished round")
                while not has_free_space(folder):
                    threading.Event().wait(RETRY_SECONDS)
            threading.Event().wait(RETRY_SECONDS)


def _connected(state: Path, tell: Callable[[str], None]) -> SuperLinkGrid:
    """A new run of Flower's at the server.

    Raises:
        RunLost: the server is not there now.
    """
    try:
        return SuperLinkGrid(state, tell)
    except ConfigError as error:
        raise RunLost(str(error)) from error
