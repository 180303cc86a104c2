"""Errors of a worker as replies: in full for the node's own people, one line for the server."""

from __future__ import annotations

import logging
from typing import Literal

from fednnunet.errors import ConfigError, DataError, FednnUNetError, MissingReferenceError, ProtocolError
from fednnunet.exchange.messages import Failure, Kind
from fednnunet.node.resource_errors import CacheLostError, explain_out_of_memory, is_disk_full, not_writable
from fednnunet.node.settings import NodeSettings

log = logging.getLogger(__name__)

NO_SPACE = "its disk is full; make room there"
UNUSABLE_DATA = "its data cannot be used; its own terminal and log tell which file, and why"
INTERNAL_ERROR = "its software failed; its own terminal and log tell the cause"
"""What a server on another machine is told instead of texts that may name cases and files."""
WORK: dict[Kind, str] = {
    Kind.FINGERPRINT: "describing the images",
    Kind.PLAN: "planning",
    Kind.PREPROCESS: "preprocessing",
    Kind.TRAIN: "training",
    Kind.UNMASK: "opening sums",
    Kind.EVALUATE: "scoring",
    Kind.SEND_MODEL: "sending the model",
    Kind.KEEP_MODEL: "keeping a model",
    Kind.SCORE_MODELS: "scoring other nodes' models",
}
"""What a node does on a request of each kind."""


def failure_of(error: Exception, kind: Kind, settings: NodeSettings) -> Failure:
    """Log ``error`` in full, and put into one line what the server may know.

    Args:
        error: what was raised.
        kind: kind of the request that led to it.
        settings: settings of the node.
    """
    if isinstance(error, FednnUNetError):
        return refuse(error, kind, settings.name, settings.same_machine)
    text, code = f"internal error in {kind}: {type(error).__name__}: {error}", "internal"
    out_of_memory = explain_out_of_memory(error, settings)
    if isinstance(error, CacheLostError):
        text, code = str(error), "unavailable"
    elif is_disk_full(error):
        text, code = NO_SPACE, "unavailable"
    elif (why := not_writable(error, settings.folder)) is not None:
        text, code = f"its work folder cannot be written ({why}); make it writable", "config"
    elif out_of_memory is not None:
        text, code = out_of_memory, "config"
    log.error("%s failed: %s", WORK[kind], text, exc_info=error)
    public = text if settings.same_machine or code != "internal" else INTERNAL_ERROR
    return Failure.model_validate({"reason": f"node {settings.name}: {public}", "error": code})


def refuse(error: FednnUNetError, kind: Kind, node: str, same_machine: bool) -> Failure:
    """As :func:`failure_of`, for an error that somebody can fix.

    Args:
        error: what was raised.
        kind: kind of the request that led to it.
        node: name of the node.
        same_machine: whether the server may know all of it.
    """
    level = logging.INFO if isinstance(error, MissingReferenceError) else logging.ERROR
    log.log(level, "%s failed: %s", WORK[kind], error)
    public = str(error)
    if not same_machine and not isinstance(error, ConfigError | ProtocolError):
        public = (isinstance(error, DataError) and error.public) or UNUSABLE_DATA
    return Failure(reason=f"node {node}: {public}", error=_error_kind(error))


def _error_kind(error: FednnUNetError) -> Literal["data", "config", "protocol", "reference"]:
    if isinstance(error, MissingReferenceError):
        return "reference"
    if isinstance(error, DataError):
        return "data"
    return "config" if isinstance(error, ConfigError) else "protocol"
