"""The server's certificate while the server runs: a new one is taken at once, one that ends soon is told of."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from fednnunet.deployment.node.preflight.server_checks import EXPIRES_SOON

POLL_SECONDS = 1.0
REMIND = timedelta(days=1)
"""Between two lines on the same certificate."""


def expiry_date(certificate: Path) -> datetime:
    """When a certificate (PEM) ends.

    Raises:
        OSError, ValueError: it cannot be read, or is none.
    """
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


async def watch_certificate(context: ssl.SSLContext, keys: Path, tell: Callable[[str], None]) -> None:
    """Watch ``server.crt`` until cancelled: new connections get what is there now, those that are open stay.

    Args:
        context: of the server.
        keys: folder with ``server.crt`` and ``server.key``.
        tell: gets a line for the operator.
    """
    certificate, key = keys / "server.crt", keys / "server.key"
    expires, seen = expiry_date(certificate), _version(certificate)
    reminded = datetime.min.replace(tzinfo=UTC)
    while True:
        now = datetime.now(UTC)
        # Not there, or of another key: it is being made, and the old one is in use until then.
        if (there := _version(certificate)) not in (None, seen) and _is_pair(certificate, key):
            context.load_cert_chain(certificate, key)
            expires, seen = expiry_date(certificate), there
            tell(f"the server's certificate is new, and in use from now on; it is valid until {expires:%Y-%m-%d}")
            reminded = datetime.min.replace(tzinfo=UTC)
        ends_soon = expires - now < EXPIRES_SOON and now - reminded >= REMIND
        if ends_soon or reminded < expires <= now:
            reminded = now
            tell(
                f"{_how_long(expires, now)}; put a new server.crt and server.key into {keys} "
                "(docs/how-to/deployment.md)"
            )
        await asyncio.sleep(POLL_SECONDS)


def _version(certificate: Path) -> tuple[int, int] | None:
    try:
        stat = certificate.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def _is_pair(certificate: Path, key: Path) -> bool:
    try:  # not in the context that is in use: it would be left with half of a pair
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError):
        return False
    return True


def _how_long(expires: datetime, now: datetime) -> str:
    if expires <= now:
        return f"warning: the server's certificate has expired on {expires:%Y-%m-%d}: nodes cannot connect"
    days = (expires - now) // timedelta(days=1)
    return f"warning: the server's certificate expires on {expires:%Y-%m-%d}, in {days} days"
