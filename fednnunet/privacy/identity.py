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
from cryptography.x509.oid import NameOID

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import SignedKey
from fednnunet.privacy.masks import derive_seed

PURPOSE = "fednnunet secure sums"
CURVE = ec.SECP384R1
"""Curve of the keys that identify nodes."""
YEARS = 10
"""Validity of a node's certificate; its key is revoked by removing it at the server."""
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
        certificate = x509.load_pem_x509_certificate(signed.certificate.encode())
        certificate.verify_directly_issued_by(authority)
        (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        identity = certificate.public_key()
        public = X25519PublicKey.from_public_bytes(bytes.fromhex(signed.public))
        signature = bytes.fromhex(signed.signature)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ProtocolError(f"{where} has no certificate of this federation's authority: {error}") from None
    if name.value != signed.node:
        raise ProtocolError(f"{where} has the certificate of node {name.value!r}")
    if not isinstance(identity, ec.EllipticCurvePublicKey):
        raise ProtocolError(f"{where} has a certificate of another kind")
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


def certify(
    node: str, identity: ec.EllipticCurvePublicKey, authority: x509.Certificate | None, key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """Certificate of a node's key by the federation's authority; without one, by the key itself: an authority."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if authority is None else authority.subject)
        .public_key(identity)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .sign(key, SHA384())
    )
