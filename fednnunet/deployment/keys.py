"""Keys and certificates of a federation: TLS for the server, a key pair that authenticates each node.

``ca.crt`` goes to every node, ``server.crt`` and ``server.key`` to the server, ``nodes/<name>/node.key`` to its node
only. ``ca.key`` signs further certificates: keep it offline.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import TypeAdapter, ValidationError

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import NodeName

CURVE = ec.SECP384R1
"""Curve of all keys: the one that Flower documents for its nodes."""
CA_YEARS = 10
EXPIRES_SOON = timedelta(days=30)
"""A certificate that expires within this time is worth a warning."""
PUBLIC_KEY_FILE = "node.pub"
MAX_KEY_BYTES = 2**16
BACKDATING = timedelta(days=1)
"""How long before its creation a certificate is valid, for machines whose clocks are slow."""


@dataclass(frozen=True)
class KeyFiles:
    """Files that :func:`make_keys` wrote, and files that existed before.

    Attributes:
        written: new files.
        kept: files of an earlier call, which are unchanged.
        expires: when the server's certificate expires; None where there is none.
    """

    written: list[Path]
    kept: list[Path]
    expires: datetime | None = None


def make_keys(folder: Path, servers: Sequence[str], nodes: Sequence[str], days: int = 825) -> KeyFiles:
    """Make a certificate authority, the server's certificate and one key pair per node, where they do not exist yet.

    Called again, for example with another node, it adds files and changes none. Only a new server's certificate needs
    the authority's key.

    Args:
        folder: folder for the files.
        servers: host names and IP addresses by which nodes reach the server; may be empty where there is an authority.
        nodes: names of nodes.
        days: validity of the server's certificate.

    Raises:
        ConfigError: an invalid name, an existing server certificate that is for other names or has expired, or a
            certificate of the authority without the key that is needed.
    """
    for node in nodes:
        _check_node(node)
    names = {name: _server_name(name) for name in servers}
    if not names and not (folder / "ca.crt").is_file():
        raise ConfigError("give the name by which nodes reach the server: --server, a host name or an IP address")
    files = KeyFiles([], [])
    expires = _server(folder, names, days, files).not_valid_after_utc if names else _expiry(folder / "server.crt")
    for node in nodes:
        public = nodes_folder(folder) / node / PUBLIC_KEY_FILE
        if public.is_file():  # without node.key, too: the node has it, and must not be locked out by another pair
            files.kept.append(public)
        else:
            make_node_key(public.parent, files)
    return KeyFiles(files.written, files.kept, expires)


def _expiry(certificate: Path) -> datetime | None:
    if not certificate.is_file():
        return None
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


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


def _authority(folder: Path, files: KeyFiles) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_file, key_file = folder / "ca.crt", folder / "ca.key"
    if certificate_file.is_file():
        if not key_file.is_file():
            raise ConfigError(f"{certificate_file} exists without ca.key, which signs; add ca.key, or use a new folder")
        files.kept.extend((certificate_file, key_file))
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate(certificate_file.read_bytes()), key
    key = ec.generate_private_key(CURVE())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FednnU-Net federation")])
    usage = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _certificate(name, name, key, timedelta(days=365 * CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_key(key_file, _pem(key), files)
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), files)
    return certificate, key


def _server(folder: Path, names: Mapping[str, x509.GeneralName], days: int, files: KeyFiles) -> x509.Certificate:
    certificate_file, key_file = folder / "server.crt", folder / "server.key"
    if certificate_file.is_file():
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        missing = [name for name, entry in names.items() if entry not in known]
        if missing:
            raise ConfigError(
                f"{certificate_file} is not for {missing[0]}; remove it, and a new one is made for all names"
            )
        if certificate.not_valid_after_utc < datetime.now(UTC):
            raise ConfigError(f"{certificate_file} has expired; remove it, and a new one is made")
        files.kept.extend((certificate_file, key_file))
        return certificate
    authority, signer = _authority(folder, files)
    key = ec.generate_private_key(CURVE())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, next(iter(names))[:64])])
    certificate = (
        _certificate(subject, authority.subject, key, timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(list(names.values())), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        # Python 3.13 refuses certificates without these (ssl.VERIFY_X509_STRICT).
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    _write_key(key_file, _pem(key), files)
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), files)
    return certificate


def _server_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise ConfigError(f"{name!r} is neither a host name nor an IP address") from None


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, valid: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + valid)
    )


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
    _write_key(private, key.private_bytes(encoding, serialization.PrivateFormat.OpenSSH, none), files)
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    _write(public, key.public_key().public_bytes(*openssh) + b"\n", files)


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


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, files: KeyFiles) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    files.written.append(path)


def _write_key(path: Path, content: bytes, files: KeyFiles) -> None:
    """Write a file that only its owner can ever read; an existing file is not overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    except FileExistsError:
        raise ConfigError(f"{path} exists without its counterpart; remove it, and both are made") from None
    files.written.append(path)
