"""The server's certificate while the server runs: a new one is used at once, one that expires soon is reported."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from fednnunet.deployment.certificates import EXPIRES_SOON

POLL_SECONDS = 1.0
REMINDER_INTERVAL = timedelta(days=1)
"""Time between two lines about the same certificate."""


def expiry_date(certificate: Path) -> datetime:
    """Time at which a certificate (PEM) expires.

    Raises:
        OSError, ValueError: the file cannot be read, or holds no certificate.
    """
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


async def watch_certificate(context: ssl.SSLContext, keys: Path, notify: Callable[[str], None]) -> None:
    """Watch ``server.crt`` until cancelled: new connections use the current file, open connections stay.

    Args:
        context: TLS context of the server.
        keys: folder with ``server.crt`` and ``server.key``.
        notify: gets a line for the operator.
    """
    certificate, key = keys / "server.crt", keys / "server.key"
    expires, seen = expiry_date(certificate), _version(certificate)
    reminded = datetime.min.replace(tzinfo=UTC)
    while True:
        now = datetime.now(UTC)
        # Missing, or not for this key: it is being replaced, and the old one is used until then.
        if (current := _version(certificate)) not in (None, seen) and _is_pair(certificate, key):
            try:
                context.load_cert_chain(certificate, key)
                expires, seen = expiry_date(certificate), current
            except (OSError, ValueError, ssl.SSLError):  # replaced again meanwhile
                await asyncio.sleep(POLL_SECONDS)
                continue
            notify(f"a new server certificate is in use; it is valid until {expires:%Y-%m-%d}")
            reminded = datetime.min.replace(tzinfo=UTC)
        is_due = expires - now < EXPIRES_SOON and now - reminded >= REMINDER_INTERVAL
        if is_due or reminded < expires <= now:
            reminded = now
            notify(
                f"{_warning(expires, now)}; put a new server.crt and server.key into {keys} (docs/how-to/deployment.md)"
            )
        await asyncio.sleep(POLL_SECONDS)


def _version(certificate: Path) -> tuple[int, int] | None:
    try:
        stat = certificate.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def _is_pair(certificate: Path, key: Path) -> bool:
    try:  # not with the context in use, which could be left with half of a pair
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError):
        return False
    return True


def _warning(expires: datetime, now: datetime) -> str:
    if expires <= now:
        return f"warning: the server's certificate has expired on {expires:%Y-%m-%d}: nodes cannot connect"
    days = (expires - now) // timedelta(days=1)
    return f"warning: the server's certificate expires on {expires:%Y-%m-%d}, in {days} days"
