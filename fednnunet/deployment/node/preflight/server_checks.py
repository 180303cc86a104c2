"""Checks of ``fednnunet node check`` against the server: each step of the way to it, and whether it knows the node."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, unquote

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fednnunet import __version__
from fednnunet.config.node_file import VERSION_PATH, NodeFile, split_address
from fednnunet.deployment.certificates import EXPIRES_SOON
from fednnunet.deployment.http_errors import error_text
from fednnunet.deployment.node.flower_internals import (
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_TOLERANCE,
    ActivateNodeRequest,
    ApiErrorCode,
    FlowerError,
    fleet_client,
    public_key_to_bytes,
)
from fednnunet.deployment.node.preflight.results import CheckResult
from fednnunet.deployment.proxies import Proxy, proxy_to

TIMEOUT = 10.0
"""Seconds to wait for a connection, and for an answer."""
CLOCK_TOLERANCE = 2.0
"""Difference in seconds that is not reported: the server gives whole seconds, and its answer takes time."""
INVALID_INTERVAL = 0
"""A heartbeat interval that Flower rejects."""


def check_connection(node_file: NodeFile) -> CheckResult:
    """Whether the server, or the proxy on the way to it, accepts connections."""
    proxy = _proxy(node_file)
    host, port = (proxy.host, proxy.port) if proxy else split_address(node_file.server)
    where = f"the proxy {proxy}" if proxy else f"{host}:{port}"
    needless = f"where the server needs no proxy, set NO_PROXY={split_address(node_file.server)[0]}"
    advice = f"correct {proxy.variable}; {needless}" if proxy else ""
    try:
        with socket.create_connection((host, port), TIMEOUT) as connection:
            address = connection.getpeername()[0]
    except socket.gaierror:
        found = f"this machine's DNS does not know {host}{f', of {where}' if proxy else ''}"
        return CheckResult("bad", found, advice or "fix server in the YAML, or the DNS")
    except ConnectionRefusedError:
        return CheckResult(
            "bad",
            f"{where} refuses connections",
            advice or "is the server up? its operator can see: fednnunet server status",
        )
    except OSError as error:
        return CheckResult(
            "bad",
            f"no connection to {where}: {error}",
            advice
            or f"ask IT to allow outgoing TCP connections to port {port} of {host}; for proxies see "
            "docs/how-to/deployment.md",
        )
    return CheckResult("good", f"{where} at {address} accepts connections")


def check_tls(node_file: NodeFile, _certificate: None, _connection: None) -> CheckResult:
    """Whether the server proves its identity, and how long its certificate is valid."""
    if node_file.insecure:
        return CheckResult("good", "none, as insecure is true")
    try:
        with _connected(node_file) as connection:
            der = connection.sock.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        return CheckResult("bad", *explain_untrusted(error, node_file))
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return CheckResult(
                "bad",
                f"{node_file.server} does not speak TLS",
                "is it the right port? was the server started insecure?",
            )
        return CheckResult("bad", f"no TLS with {node_file.server}{_through(node_file)}: {error}", _INSPECTED)
    except (OSError, HTTPException) as error:
        problem = f"no TLS with {node_file.server}{_through(node_file)}: {str(error) or type(error).__name__}"
        return CheckResult("bad", problem, _INSPECTED)
    expires = x509.load_der_x509_certificate(der).not_valid_after_utc
    found = f"the server's certificate is for {split_address(node_file.server)[0]}, until {expires:%Y-%m-%d}"
    if expires - datetime.now(UTC) < EXPIRES_SOON:
        return CheckResult(
            "warning", found, "remind the server's operator: the server needs a new server.crt, nodes need nothing"
        )
    return CheckResult("good", found)


_INSPECTED = "if a firewall or proxy inspects TLS, ask IT to exempt the server's address"


def explain_untrusted(error: ssl.SSLCertVerificationError, node_file: NodeFile) -> tuple[str, str]:
    """What is wrong with the server's certificate, and what to do; by OpenSSL's ``X509_V_ERR_…`` numbers."""
    host = split_address(node_file.server)[0]
    match error.verify_code:
        case 9 | 10:
            return (
                f"the server's certificate is not valid at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: "
                f"{error.verify_message}",
                "if that time is right, tell the server's operator: it needs a new server.crt; else set this clock",
            )
        case 62 | 64:
            return (
                f"the server's certificate is not for {host}",
                "in the YAML, use the server name that the certificate is for, or have one made for this name: "
                f"fednnunet keys … --server {host}",
            )
        case _:
            return (
                f"the server's certificate is not signed by {node_file.certificate} ({error.verify_message})",
                f"use the ca.crt that the server's operator sent; {_INSPECTED}",
            )


@dataclass(frozen=True)
class ServerAnswer:
    """What the server reports about itself.

    Attributes:
        ahead: seconds by which this machine's clock is ahead of the server's; None if the server gives no time.
    """

    ahead: float | None


def check_server(node_file: NodeFile, _tls: None) -> CheckResult:
    """Whether the server answers HTTP, and runs the same version as this node."""
    try:
        with _connected(node_file) as connection:
            asked = time.time()
            connection.request("GET", VERSION_PATH)
            response = connection.getresponse()
            answered = time.time()
            text, status, date = response.read(2**16), response.status, response.getheader("Date")
    except (OSError, HTTPException) as error:
        return CheckResult(
            "bad",
            f"{node_file.server} does not answer HTTP{_through(node_file)}: {str(error) or type(error).__name__}",
            "is it the right port?",
        )
    answer = ServerAnswer(_clock_difference((asked + answered) / 2, date))
    if status not in (200, 404):
        return CheckResult(
            "bad", f"{node_file.server} answers {status} {response.reason}", "tell the server's operator"
        )
    versions = _versions(text) if status == 200 else {}
    if "fednnunet" not in versions:
        return CheckResult(
            "warning", f"{node_file.server} answers, but does not report its version", "ask its operator", answer
        )
    found = f"fednnunet {versions['fednnunet']}, flwr {versions.get('flwr', 'unknown')}"
    if versions["fednnunet"] != __version__:
        return CheckResult(
            "bad",
            f"{found}; this node has fednnunet {__version__}",
            "server and nodes must run the same version: install the server's here, or ask its operator",
            answer,
        )
    return CheckResult("good", found, value=answer)


def _versions(text: bytes) -> dict[str, str]:
    with contextlib.suppress(ValueError):
        if isinstance(content := json.loads(text), dict):
            return {key: str(value)[:50] for key, value in content.items()}
    return {}


def _clock_difference(local: float, date: str | None) -> float | None:
    try:
        remote = email.utils.parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return local - (remote.timestamp() + 0.5)  # truncated to whole seconds


def check_clock(answer: ServerAnswer) -> CheckResult:
    """Whether this machine's clock is close enough to the server's for Flower to accept the node's signatures."""
    if answer.ahead is None:
        return CheckResult("warning", "the server does not report its time", "check this machine's clock: timedatectl")
    seconds, advice = abs(answer.ahead), "synchronize the clock: timedatectl set-ntp true (in WSL2: wsl --shutdown)"
    agrees = seconds <= CLOCK_TOLERANCE
    found = f"{seconds:.0f} s {'ahead of' if answer.ahead > 0 else 'behind'} the server's" if not agrees else ""
    if not -TIMESTAMP_TOLERANCE < answer.ahead < SYSTEM_TIME_TOLERANCE:
        return CheckResult(
            "bad",
            f"{found}; at most {SYSTEM_TIME_TOLERANCE} s ahead and {TIMESTAMP_TOLERANCE} s behind are accepted",
            advice,
        )
    return (
        CheckResult("good", f"within {CLOCK_TOLERANCE:g} s of the server's")
        if agrees
        else CheckResult("warning", found, advice)
    )


def check_registration(
    node_file: NodeFile, key: ec.EllipticCurvePrivateKey | None, _tls: None, _clock: None
) -> CheckResult:
    """Whether the server knows the node's key.

    Requests activation with a heartbeat interval that Flower rejects: it checks the signature
    first, then whether the key is registered, then the interval. So nothing changes at the server, and a node that
    runs with this key is not disturbed; any accepted call would put it offline or take its messages.
    """
    if key is None:
        return CheckResult("good", "none, as insecure is true")
    request = ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=INVALID_INTERVAL)
    try:
        with fleet_client(node_file, key) as client:
            client.ActivateNode(request)
    except httpx.HTTPStatusError as error:
        return _explain_flower_error(error.response, node_file)
    except httpx.HTTPError as error:
        return CheckResult(
            "bad",
            f"{node_file.server} does not answer{_through(node_file)}: {str(error) or type(error).__name__}",
            "try again; if it fails again, tell the server's operator",
        )
    return CheckResult("warning", "the server does not check the node", "tell the server's operator")


def ask_for_registration(node_file: NodeFile) -> str:
    """What to do where the server does not know the node's key."""
    return f"its operator must put node.pub into nodes/{node_file.name} of the server's keys"


def _explain_flower_error(response: httpx.Response, node_file: NodeFile) -> CheckResult:
    problem = FlowerError.from_json(response.text)
    code = problem.code if problem is not None else None
    if code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return CheckResult("good", f"the server knows the key of {node_file.name}")
    if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return CheckResult(
            "bad",
            f"the server does not know the key {node_file.key}",
            f"{ask_for_registration(node_file)}; no restart is needed",
        )
    if response.status_code == httpx.codes.CONFLICT:
        return CheckResult(
            "bad",
            f"{node_file.key}: the server answers {error_text(response)}",
            f"set key in the YAML to that of {node_file.name}; if it is, tell the server's operator whose key that is",
        )
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return CheckResult(
            "bad", f"the server does not accept signatures of {node_file.key}", "check the clock, then try again"
        )
    text = problem.message if problem is not None else response.reason_phrase
    return CheckResult(
        "bad",
        f"{node_file.server} answers {response.status_code} {text}",
        "is it a FednnU-Net server? ask its operator",
    )


def _proxy(node_file: NodeFile) -> Proxy | None:
    return proxy_to(node_file.server, tls=not node_file.insecure)


def _through(node_file: NodeFile) -> str:
    proxy = _proxy(node_file)
    return f" through the proxy {proxy}" if proxy else ""


@contextlib.contextmanager
def _connected(node_file: NodeFile) -> Iterator[Any]:
    """An HTTP connection to the server that trusts only the authority in ``certificate``."""
    (host, port), proxy = split_address(node_file.server), _proxy(node_file)
    via = (proxy.host, proxy.port) if proxy else (host, port)
    connection: HTTPConnection
    if node_file.insecure:
        connection = HTTPConnection(*via, timeout=TIMEOUT)
    else:
        context = ssl.create_default_context(cafile=node_file.certificate)  # as strict as Flower's client
        connection = HTTPSConnection(*via, timeout=TIMEOUT, context=context)
    if proxy:
        connection.set_tunnel(host, port, _credentials(proxy.url))
    try:
        connection.connect()
        yield connection
    finally:
        connection.close()


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    both = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(both.encode()).decode()}"}
