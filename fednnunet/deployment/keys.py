"""Keys and certificates of a federation: TLS for the server, a key pair that authenticates each node.

``ca.crt`` goes to every node, ``server.crt`` and ``server.key`` to the server, ``nodes/<name>/node.key`` to its node
only, and ``node.crt``, by which other nodes know it, to the same. ``ca.key`` signs further certificates: keep it
offline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import TypeAdapter, ValidationError

from fednnunet.deployment.certificates import (
    make_node_certificate,
    make_server_certificate,
    read_certificate,
    server_name,
)
from fednnunet.deployment.key_files import KeyFiles, write_file, write_key
from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import NodeName
from fednnunet.privacy.identity import CURVE

PUBLIC_KEY_FILE = "node.pub"
CERTIFICATE_FILE = "node.crt"
MAX_KEY_BYTES = 2**16


def make_keys(folder: Path, servers: Sequence[str], nodes: Sequence[str], days: int = 825) -> KeyFiles:
    """Make a certificate authority, the server's certificate, and each node's key pair and certificate.

    What exists stays. Called again, for example with another node, it adds files and changes none; a node whose public
    key is there gets a certificate of it. Only new certificates need the authority's key: without it, a node's pair is
    made alone.

    Args:
        folder: folder for the files.
        servers: host names and IP addresses by which nodes reach the server; may be empty where there is an authority.
        nodes: names of nodes.
        days: validity of the server's certificate.

    Raises:
        ConfigError: an invalid name, an existing certificate that is for another name or key, of another authority or
            has expired, a certificate of the authority without the key that is needed, or a damaged file.
    """
    for node in nodes:
        _check_node(node)
    names = {name: server_name(name) for name in servers}
    if not names and not (folder / "ca.crt").is_file():
        raise ConfigError("give the name by which nodes reach the server: --server, a host name or an IP address")
    files = KeyFiles([], [])
    if names:
        make_server_certificate(folder, names, days, files)
    server = folder / "server.crt"
    expires = read_certificate(server).not_valid_after_utc if server.is_file() else None
    for node in nodes:
        public = nodes_folder(folder) / node / PUBLIC_KEY_FILE
        if public.is_file():  # without node.key, too: the node has it, and must not be locked out by another pair
            files.kept.append(public)
        else:
            make_node_key(public.parent, files)
        make_node_certificate(folder, public.with_name(CERTIFICATE_FILE), node, read_public_key(public), files)
    return dataclasses.replace(files, expires=expires)


def nodes_folder(keys: Path) -> Path:
    """Folder with one folder per node, in a folder that :func:`make_keys` made."""
    return keys / "nodes"


def read_node_keys(keys: Path) -> tuple[dict[str, ec.EllipticCurvePublicKey], dict[str, str]]:
    """Public keys of the nodes, by name, in a folder that :func:`make_keys` made.

    Returns:
        The keys, and why the keys of other nodes cannot be used.

    Raises:
        ConfigError: the folder cannot be read, so that nothing is known of any node.
    """
    try:
        names = sorted(path.name for path in nodes_folder(keys).iterdir() if (path / PUBLIC_KEY_FILE).is_file())
    except OSError as error:
        raise ConfigError(f"{nodes_folder(keys)} cannot be read: {error.strerror}") from None
    readable, problems = {}, {}
    for name in names:
        try:
            _check_node(name)
            readable[name] = read_public_key(nodes_folder(keys) / name / PUBLIC_KEY_FILE)
        except ConfigError as error:
            problems[name] = str(error)
    return readable, problems


def _check_node(name: str) -> None:
    try:
        TypeAdapter(NodeName).validate_python(name)
    except ValidationError:
        raise ConfigError(f"{name!r} is not a valid node name: use letters, digits, spaces, and _ . ' -") from None


def make_node_key(folder: Path, files: KeyFiles | None = None) -> None:
    """Make a node's key pair, ``node.key`` and ``node.pub``, in OpenSSH's format, unless it exists.

    Args:
        folder: folder for the files.
        files: gets the names of the files.
    """
    files = files or KeyFiles([], [])
    private, public = folder / "node.key", folder / "node.pub"
    if private.is_file() and public.is_file():
        files.kept.extend((private, public))
        return
    key = ec.generate_private_key(CURVE())
    encoding, none = serialization.Encoding.PEM, serialization.NoEncryption()
    write_key(private, key.private_bytes(encoding, serialization.PrivateFormat.OpenSSH, none), files)
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    write_file(public, key.public_key().public_bytes(*openssh) + b"\n", files)


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A node's private key.

    Raises:
        ConfigError: the file cannot be read, or holds no key, another kind of key, or half of one.
    """
    content = _read(path, "key")
    if content.startswith(b"ecdsa-"):
        raise ConfigError(f"key: {path} is the public key; name the private one, without .pub")
    try:
        key = serialization.load_ssh_private_key(content, None)
    except TypeError:
        raise ConfigError(
            f"key: {path} has a password, which nobody can type where a service starts; remove it: "
            f"ssh-keygen -p -N '' -f '{path}'"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"key: {path} holds no private key in OpenSSH's format, or not all of it ({error}); copy it again"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"key: {path} is of another kind; `fednnunet keys` makes ECDSA keys")
    return key


def read_authorities(path: Path) -> list[x509.Certificate]:
    """The certificates in ``ca.crt``, of which one has signed the server's.

    Raises:
        ConfigError: the file cannot be read, or holds something else, or half of one.
    """
    try:
        certificates = x509.load_pem_x509_certificates(_read(path, "certificate"))
    except ValueError:
        raise ConfigError(
            f"certificate: {path} holds no certificate (PEM), or not all of it; copy ca.crt again"
        ) from None
    if not all(map(_is_authority, certificates)):
        raise ConfigError(f"certificate: {path} is not the certificate of an authority; name the server's ca.crt")
    return certificates


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _read(path: Path, field: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{field}: {path} cannot be read: {error.strerror}") from None
    if not content.strip():
        raise ConfigError(f"{field}: {path} is empty; copy it again")
    return content


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """A node's public key.

    Raises:
        ConfigError: the file cannot be read, or holds another kind of key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not content.strip():
        raise ConfigError(f"{path} is empty; copy the node's public key again")
    try:
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} holds no public key in OpenSSH's format, or not all of it ({error}); copy it again"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path} holds a key of another kind; make one with `ssh-keygen -t ecdsa -b 384`")
    return key
