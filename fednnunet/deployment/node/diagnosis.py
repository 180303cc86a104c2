"""Why the server cannot be reached, or does not do what it is asked, in the operator's words."""

from __future__ import annotations

import json
import ssl

import httpx

from fednnunet.config.node_file import NodeFile
from fednnunet.deployment.node.preflight.server_checks import check_clock, check_server, explain_untrusted
from fednnunet.errors import one_line


def said(response: httpx.Response) -> str:
    """Status and text of an answer that is an error, Flower's or our own."""
    text = response.text
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if isinstance(told, dict):
        text = str(told.get("message") or told.get("detail") or text)
    return f"{response.status_code}: {one_line(text[:200])}"


def explain_unreachable(error: httpx.TransportError, site: NodeFile) -> str:
    """What an attempt to reach the server ended in; where it is the server's certificate, what to do."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "; ".join(explain_untrusted(cause, site))
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {error}"


def explain_rejection(answer: str, site: NodeFile) -> str:
    """Why a server that answers does not let the node in: its clock, if that is wrong, else most likely its key."""
    told = check_server(site, None).value
    clock = None if told is None else check_clock(told)
    if clock is not None and clock.state == "bad":
        return f"this machine's clock is {clock.found}; {clock.advice}"
    return f"{answer}; its key may not be registered there: fednnunet node check"
