"""Why the server cannot be reached, or refuses a request, in words for the operator."""

from __future__ import annotations

import ssl

import httpx

from fednnunet.config.node_file import NodeFile
from fednnunet.deployment.node.preflight.server_checks import check_clock, check_server, explain_untrusted


def explain_unreachable(error: httpx.TransportError, node_file: NodeFile) -> str:
    """Why an attempt to reach the server failed; where its certificate is the reason, what to do."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "; ".join(explain_untrusted(cause, node_file))
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {error}"


def explain_rejection(answer: str, node_file: NodeFile) -> str:
    """Why a server that answers does not let the node in: a wrong clock, otherwise most likely the key."""
    server = check_server(node_file, None).value
    clock = None if server is None else check_clock(server)
    if clock is not None and clock.state == "bad":
        return f"this machine's clock is {clock.found}; {clock.advice}"
    return f"{answer}; its key may not be registered there: fednnunet node check"
