"""Files of keys and certificates: new ones are written, existing ones are kept; only their owner reads private keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fednnunet.errors import ConfigError


@dataclass(frozen=True)
class KeyFiles:
    """Files that :func:`make_keys` wrote, and files that existed before.

    Attributes:
        written: new files.
        kept: files of an earlier call, which are unchanged.
        expires: when the server's certificate expires; None where there is none.
        uncertified: nodes whose keys have no certificate, as the authority's key is not there.
    """

    written: list[Path]
    kept: list[Path]
    expires: datetime | None = None
    uncertified: list[str] = field(default_factory=list)


def as_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM, without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_file(path: Path, content: bytes, files: KeyFiles) -> None:
    """Write a file that everybody may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    files.written.append(path)


def write_key(path: Path, content: bytes, files: KeyFiles) -> None:
    """Write a file that only its owner can ever read; an existing file is not overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    except FileExistsError:
        raise ConfigError(f"{path} exists without its counterpart; remove it, and both are made") from None
    files.written.append(path)
