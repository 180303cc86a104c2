"""Whose keys count: those that the federation's authority has certified, for this node, run and time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key, load_ssh_private_key

from fednnunet.deployment.keys import make_keys
from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import SignedKey
from fednnunet.privacy import identity
from fednnunet.privacy.identity import sign_key, verify_key

pytestmark = pytest.mark.unit
KEY = X25519PrivateKey.generate()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation's keys, whose server has a name that a node may have, too."""
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, ["fed.example.org"], ["Oslo", "Porto"])
    return folder


def authority_of(keys: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((keys / "ca.crt").read_bytes())


def signed(keys: Path, key_of: str = "Oslo", certificate_of: str = "Oslo", node: str = "Oslo") -> SignedKey:
    private: Any = load_ssh_private_key((keys / "nodes" / key_of / "node.key").read_bytes(), None)
    certificate = (keys / "nodes" / certificate_of / "node.crt").read_text()
    return sign_key(KEY, node, "run", private, certificate)


def test_a_key_that_its_node_has_signed_for_the_run_counts(keys: Path) -> None:
    assert verify_key(signed(keys), "run", authority_of(keys)) == KEY.public_key()


def test_keys_of_other_runs_nodes_and_authorities_do_not_count(keys: Path, tmp_path: Path) -> None:
    authority = authority_of(keys)
    with pytest.raises(ProtocolError, match="key of node Oslo was not signed by this node for this run"):
        verify_key(signed(keys), "another run", authority)
    with pytest.raises(ProtocolError, match="key of node Oslo was not signed by this node for this run"):
        verify_key(signed(keys, key_of="Porto"), "run", authority)
    with pytest.raises(ProtocolError, match="key of node Oslo has no certificate that counts: it is that of CN=Porto"):
        verify_key(signed(keys, certificate_of="Porto"), "run", authority)
    make_keys(tmp_path, ["localhost"], ["Oslo"])
    with pytest.raises(ProtocolError, match="it is not signed by this federation's authority"):
        verify_key(signed(tmp_path), "run", authority)
    with pytest.raises(ProtocolError, match="key of node Oslo has no certificate that counts"):
        verify_key(signed(keys).model_copy(update={"certificate": "half"}), "run", authority)


def test_the_server_cannot_be_a_node_by_its_own_certificate(keys: Path) -> None:
    private: Any = load_pem_private_key((keys / "server.key").read_bytes(), None)
    stranger = sign_key(KEY, "fed.example.org", "run", private, (keys / "server.crt").read_text())
    with pytest.raises(ProtocolError, match=r"key of node fed\.example\.org .* it is not that of a node"):
        verify_key(stranger, "run", authority_of(keys))


def test_a_node_can_certify_nobody(keys: Path) -> None:
    certificate = x509.load_pem_x509_certificate((keys / "nodes" / "Oslo" / "node.crt").read_bytes())
    private: Any = load_ssh_private_key((keys / "nodes" / "Oslo" / "node.key").read_bytes(), None)
    other = ec.generate_private_key(identity.CURVE())
    made = identity.certify("Riga", other.public_key(), certificate, private).public_bytes(Encoding.PEM).decode()
    with pytest.raises(ProtocolError, match="it is not signed by this federation's authority"):
        verify_key(sign_key(KEY, "Riga", "run", other, made), "run", authority_of(keys))


def test_a_certificate_that_has_expired_does_not_count(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = x509.load_pem_x509_certificate((keys / "nodes" / "Oslo" / "node.crt").read_bytes())
    authority = authority_of(keys)
    assert certificate.not_valid_after_utc <= authority.not_valid_after_utc

    class Later(datetime):
        """A clock of ten years from now."""

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(UTC) + timedelta(days=3651)

    monkeypatch.setattr(identity, "datetime", Later)
    with pytest.raises(ProtocolError, match=r"key of node Oslo has no certificate that counts: it is valid from"):
        verify_key(signed(keys), "run", authority)
