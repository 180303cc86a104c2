"""Why the server cannot be reached, or refuses a request, in words for the operator."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import httpx

from fednnunet.config.node_file import NodeFile, split_address
from fednnunet.deployment.node.preflight.server_checks import (
    ask_for_registration,
    check_clock,
    check_server,
    explain_untrusted,
)
from fednnunet.deployment.proxies import proxy_to
from fednnunet.errors import one_line


def explain_unreachable(error: httpx.TransportError, node_file: NodeFile) -> str:
    """Why an attempt to reach the server failed, and through which proxy; for its certificate, also what to do."""
    proxy = proxy_to(node_file.server, tls=not node_file.insecure)
    through = f"through the proxy {proxy}: " if proxy else ""
    host = proxy.host if proxy else split_address(node_file.server)[0]
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return through + "; ".join(explain_untrusted(cause, node_file))
        if isinstance(cause, socket.gaierror):
            return f"{through}this machine's DNS does not know {host}"
        if isinstance(cause, OSError) and cause.strerror:
            return through + one_line(cause.strerror)
    return through + (one_line(str(error)).rstrip(". ") or type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explain_rejection(answer: str, node_file: NodeFile) -> str:
    """Why a server that answers does not let the node in: a wrong clock, otherwise most likely the key."""
    server = check_server(node_file, None).value
    clock = None if server is None else check_clock(server)
    if clock is not None and clock.state == "bad":
        return f"this machine's clock is {clock.found}; {clock.advice}"
    if answer.startswith("409"):  # a second node with this key, or the key of another node: it says so
        return answer
    if answer.startswith("412"):  # Flower: it could not be activated
        return f"the server does not know {node_file.key or 'its key'}; {ask_for_registration(node_file)}"
    return f"{answer}; to find out more: fednnunet node check"


def explain_other_version(node_file: NodeFile) -> str | None:
    """What to do where the server, which refuses other versions in every stage, has another one; else None."""
    server = check_server(node_file, None)
    is_other = server.state == "bad" and server.value is not None
    return f"the server has {server.found}; {server.advice}" if is_other else None
