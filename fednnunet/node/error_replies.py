"""Errors of a worker as replies: logged in full here, one line for the server."""

from __future__ import annotations

import logging
from typing import Literal

from fednnunet.errors import ConfigError, DataError, FednnUNetError, ProtocolError
from fednnunet.exchange.messages import Failure, Kind
from fednnunet.node.resource_errors import explain_out_of_memory, is_disk_full
from fednnunet.node.settings import NodeSettings

log = logging.getLogger(__name__)


def failure_of(error: Exception, kind: Kind, settings: NodeSettings) -> Failure:
    """Log ``error`` in full, and put into one line what the server may know.

    Args:
        error: what was raised.
        kind: kind of the request that led to it.
        settings: settings of the node.
    """
    if isinstance(error, FednnUNetError):
        log.error("%s: %s", kind, error)
        return Failure(reason=f"node {settings.name}: {_public(error, settings)}", error=_error_kind(error))
    log.exception("%s failed", kind, exc_info=error)
    if is_disk_full(error):
        return Failure(reason=f"node {settings.name}: its disk is full; make room there", error="unavailable")
    out_of_memory = explain_out_of_memory(error, settings.name, settings.config)
    if out_of_memory is not None:
        return Failure(reason=f"node {settings.name}: {out_of_memory}", error="config")
    reason = _public(f"internal error in {kind}: {type(error).__name__}: {error}", settings)
    return Failure(reason=f"node {settings.name}: {reason}", error="internal")


def _public(problem: FednnUNetError | str, settings: NodeSettings) -> str:
    """What may leave the node: messages about data can name cases and files."""
    if settings.same_machine or isinstance(problem, ConfigError | ProtocolError):
        return str(problem)
    return "the data or the software of the node; its own log tells the file and the cause"


def _error_kind(error: FednnUNetError) -> Literal["data", "config", "protocol"]:
    if isinstance(error, DataError):
        return "data"
    return "config" if isinstance(error, ConfigError) else "protocol"
