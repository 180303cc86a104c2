"""Certificates of a federation: the authority's, and those that it signs: the server's and the nodes'."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fednnunet.deployment.key_files import KeyFiles, as_pem, write_file, write_key
from fednnunet.errors import ConfigError
from fednnunet.privacy.identity import CURVE, certificate_builder, certified_key, certify, make_authority

CA_YEARS = 10
EXPIRES_SOON = timedelta(days=30)
"""A certificate that expires within this time is worth a warning."""


def read_certificate(path: Path) -> x509.Certificate:
    """A certificate (PEM).

    Raises:
        ConfigError: the file cannot be read, or holds something else, or half of one.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} holds no certificate (PEM), or not all of it; restore it from a backup") from None


def check_server_pair(keys: Path) -> None:
    """Check that ``server.crt`` and ``server.key`` in ``keys`` can be used for TLS.

    Raises:
        ConfigError: one of them is missing, damaged, or not of the other.
    """
    certificate, key = keys / "server.crt", keys / "server.key"
    read_certificate(certificate)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{key} is not the key of {certificate}; restore both from one backup") from None
        raise ConfigError(
            f"{key} holds no private key (PEM, without a password), or not all of it; restore it from a backup"
        ) from None
    except OSError as error:
        raise ConfigError(f"{key} cannot be read: {error.strerror}") from None


def _authority(folder: Path, files: KeyFiles) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_file, key_file = folder / "ca.crt", folder / "ca.key"
    if certificate_file.is_file():
        if not key_file.is_file():
            raise ConfigError(f"{certificate_file} exists without ca.key, which signs; add ca.key, or use a new folder")
        certificate, key = read_certificate(certificate_file), _read_key(key_file)
        if certificate.public_key() != key.public_key():
            raise ConfigError(f"{key_file} is not the key of {certificate_file}; nodes would not trust what it signs")
        files.kept.extend((certificate_file, key_file))
        return certificate, key
    certificate, key = make_authority("FednnU-Net federation", timedelta(days=365 * CA_YEARS))
    write_key(key_file, as_pem(key), files)
    write_file(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), files)
    return certificate, key


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no private key without a password, or not all of it: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is of another kind; `fednnunet keys` makes ECDSA keys")
    return key


def make_server_certificate(folder: Path, names: Mapping[str, x509.GeneralName], days: int, files: KeyFiles) -> None:
    """Make ``server.crt`` and ``server.key``, and the authority if there is none; check an existing certificate.

    Args:
        folder: folder for the files.
        names: names by which nodes reach the server, as given and as in certificates.
        days: validity.
        files: gets the names of the files.

    Raises:
        ConfigError: a damaged file; an existing certificate of other names or another authority, or an expired one.
    """
    certificate_file, key_file = folder / "server.crt", folder / "server.key"
    if certificate_file.is_file():
        certificate = read_certificate(certificate_file)
        known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        missing = [name for name, entry in names.items() if entry not in known]
        if missing:
            raise ConfigError(
                f"{certificate_file} is not for {missing[0]}; remove it, and a new one is made for all names"
            )
        if certificate.not_valid_after_utc < datetime.now(UTC):
            raise ConfigError(f"{certificate_file} has expired; remove it, and a new one is made")
        _check_issuer(certificate_file, certificate, folder / "ca.crt")
        files.kept.extend((certificate_file, key_file))
        return
    authority, signer = _authority(folder, files)
    key = ec.generate_private_key(CURVE())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, next(iter(names))[:64])])
    certificate = (
        certificate_builder(subject, authority.subject, key.public_key(), datetime.now(UTC) + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(list(names.values())), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        # Python 3.13 refuses certificates without these (ssl.VERIFY_X509_STRICT).
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    write_key(key_file, as_pem(key), files)
    write_file(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), files)


def make_node_certificate(folder: Path, file: Path, node: str, key: ec.EllipticCurvePublicKey, files: KeyFiles) -> None:
    """Make the certificate by which other nodes know a node's key, where the authority's key is there; or check it.

    Args:
        folder: folder with the authority's files.
        file: the certificate.
        node: name of the node.
        key: its public key.
        files: gets the name of the file; of the node, where its key stays without a certificate.

    Raises:
        ConfigError: a damaged file, or an existing certificate of something else.
    """
    if file.is_file():
        try:
            known = certified_key(read_certificate(file), node, read_certificate(folder / "ca.crt"))
        except ValueError as error:
            raise ConfigError(f"{file} does not count: {error}; remove it, and a new one is made") from None
        if known != key:
            raise ConfigError(f"{file} is of another key than node.pub; remove it, and a new one is made")
        files.kept.append(file)
    elif (folder / "ca.key").is_file():
        certificate = certify(node, key, *_authority(folder, KeyFiles([], [])))
        write_file(file, certificate.public_bytes(serialization.Encoding.PEM), files)
    else:
        files.uncertified.append(node)


def _check_issuer(file: Path, certificate: x509.Certificate, authority: Path) -> None:
    if not authority.is_file():
        return
    try:
        certificate.verify_directly_issued_by(read_certificate(authority))
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigError(f"{file} was not signed by {authority}; remove it and its key, and both are made") from None


def server_name(name: str) -> x509.GeneralName:
    """A host name or an IP address, as certificates name it.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise ConfigError(f"{name!r} is neither a host name nor an IP address") from None
