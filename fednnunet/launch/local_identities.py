"""What nodes on one machine prove with, to each other, who they are: an authority for the run alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_ssh_private_key

from fednnunet.files import write_private
from fednnunet.node.settings import NodeIdentity, NodeSettings
from fednnunet.privacy.identity import CURVE, certified_key, certify, make_authority

VALIDITY = timedelta(days=365)
"""Longer than a run that is interrupted again and again."""


def with_identities(nodes: Sequence[NodeSettings]) -> list[NodeSettings]:
    """Settings of the nodes, each with a key and certificate in its folder: those that are there, if all are sound.

    They make the same protocol work as between machines. The authority's own key is never written.
    """
    named = [
        dataclasses.replace(
            node, identity=NodeIdentity(*(node.folder / name for name in ("node.key", "node.crt", "ca.crt")))
        )
        for node in nodes
    ]
    authorities = {_authority_of(node) for node in named}
    if None in authorities or len(authorities) > 1:
        authority, signer = make_authority("FednnU-Net run", VALIDITY)
        for node in named:
            assert node.identity is not None
            write_identity(node.identity, node.name, authority, signer)
    return named


def _authority_of(node: NodeSettings) -> bytes | None:
    """The certificate of the authority in the node's folder; None where its files do not belong together."""
    files = node.identity
    assert files is not None
    try:
        certificate, authority = (
            x509.load_pem_x509_certificate(path.read_bytes()) for path in (files.certificate, files.authority)
        )
        key = load_ssh_private_key(files.key.read_bytes(), None)
        sound = key.public_key() == certified_key(certificate, node.name, authority)
    except (OSError, ValueError):
        return None
    return authority.public_bytes(Encoding.PEM) if sound else None


def write_identity(
    files: NodeIdentity, node: str, authority: x509.Certificate, signer: ec.EllipticCurvePrivateKey
) -> None:
    """Make a key and its certificate for the node of this name, and write them with the authority's certificate."""
    key = ec.generate_private_key(CURVE())
    certificate = certify(node, key.public_key(), authority, signer)
    for path, content in (
        (files.key, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())),
        (files.certificate, certificate.public_bytes(Encoding.PEM)),
        (files.authority, authority.public_bytes(Encoding.PEM)),
    ):
        write_private(path, content)
