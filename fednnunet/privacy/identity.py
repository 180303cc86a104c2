"""Keys of a run, by which its nodes agree on secrets that the server does not know.

Each node makes an X25519 key (RFC 7748) for a run and signs it with the key that identifies it. The others trust the
federation's authority, which has certified that key: not the server, which passes the keys on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import SignedKey
from fednnunet.privacy.masks import derive_seed

PURPOSE = "fednnunet secure sums"
CURVE = ec.SECP384R1
"""Curve of the keys that identify nodes, and of those that sign: the one that Flower documents for its nodes."""
VALIDITY = timedelta(days=365 * 10)
"""Validity of a node's certificate, which ends with its authority's."""
BACKDATING = timedelta(days=1)
"""How long before its creation a certificate is valid, for machines whose clocks are slow."""


def sign_key(
    key: X25519PrivateKey, node: str, run: str, identity: ec.EllipticCurvePrivateKey, certificate: str
) -> SignedKey:
    """The public part of ``key``, signed by the node's ``identity``, which ``certificate`` certifies."""
    public = key.public_key().public_bytes_raw().hex()
    signature = identity.sign(_signed_text(run, node, public), ec.ECDSA(SHA384())).hex()
    return SignedKey(node=node, public=public, signature=signature, certificate=certificate)


def verify_key(signed: SignedKey, run: str, authority: x509.Certificate) -> X25519PublicKey:
    """The public key that ``signed`` holds, if it is the node's for this run.

    Raises:
        ProtocolError: names the node: another authority or name, a key for another run, a malformed one.
    """
    where = f"the key of node {signed.node}"
    try:
        identity = certified_key(x509.load_pem_x509_certificate(signed.certificate.encode()), signed.node, authority)
        public = X25519PublicKey.from_public_bytes(bytes.fromhex(signed.public))
        signature = bytes.fromhex(signed.signature)
    except ValueError as error:
        raise ProtocolError(f"{where} has no certificate that counts: {error}") from None
    try:
        identity.verify(signature, _signed_text(run, signed.node, signed.public), ec.ECDSA(SHA384()))
    except InvalidSignature:
        raise ProtocolError(f"{where} was not signed by this node for this run") from None
    return public


def pair_secrets(own: X25519PrivateKey, others: Mapping[str, X25519PublicKey], run: str) -> dict[str, bytes]:
    """Node name to the secret that this node shares with it alone; the same at both ends.

    Raises:
        ProtocolError: a key that gives no secret; names the node.
    """
    secrets = {}
    for name, public in others.items():
        try:
            secrets[name] = derive_seed(own.exchange(public), PURPOSE, run)
        except ValueError:
            raise ProtocolError(f"the key of node {name} gives no secret") from None
    return secrets


def _signed_text(run: str, node: str, public: str) -> bytes:
    return json.dumps([PURPOSE, run, node, public]).encode()


def certified_key(certificate: x509.Certificate, node: str, authority: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The key that identifies ``node`` by its certificate.

    The server's certificate is of the same authority, and identifies no node.

    Raises:
        ValueError: the certificate is of another authority, node or purpose, or not valid now.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise ValueError("it is not signed by this federation's authority") from None
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [name.value for name in names] != [node]:
        raise ValueError(f"it is that of {certificate.subject.rfc4514_string()}")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not _is_of_a_node(certificate):
        raise ValueError("it is not that of a node")
    if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
        dates = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        raise ValueError(f"it is valid from {dates}")
    return key


def _is_of_a_node(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage


def certificate_builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    """What all certificates of a federation have in common; ``until`` is the end of its validity, in UTC."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - BACKDATING)
        .not_valid_after(until)
    )


def certify(
    node: str, identity: ec.EllipticCurvePublicKey, authority: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """Certificate of a node's key, by the federation's authority and its private ``key``."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    until = min(datetime.now(UTC) + VALIDITY, authority.not_valid_after_utc)
    return (
        certificate_builder(subject, authority.subject, identity, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, SHA384())
    )


def make_authority(name: str, validity: timedelta) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A new authority: its certificate, and the key that signs others."""
    key, subject = ec.generate_private_key(CURVE()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
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
        certificate_builder(subject, subject, key.public_key(), datetime.now(UTC) + validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA384())
    )
    return certificate, key
