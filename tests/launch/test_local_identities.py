"""Keys and certificates of the nodes of one machine: of one authority, and the same when a run goes on."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import SignedKey
from fednnunet.launch.local_identities import with_identities
from fednnunet.node.settings import NodeSettings
from fednnunet.privacy.identity import sign_key, verify_key

pytestmark = pytest.mark.unit


def settings_in(folder: Path, *names: str) -> list[NodeSettings]:
    config: Any = None
    return [NodeSettings(name, folder / name, {}, False, config, 1, True) for name in names]


def signed_by(node: NodeSettings, run: str = "run") -> SignedKey:
    assert node.identity is not None
    identity: Any = load_ssh_private_key(node.identity.key.read_bytes(), None)
    certificate = node.identity.certificate.read_text()
    return sign_key(X25519PrivateKey.generate(), node.name, run, identity, certificate)


def authority_of(node: NodeSettings) -> x509.Certificate:
    assert node.identity is not None
    return x509.load_pem_x509_certificate(node.identity.authority.read_bytes())


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nodes_of_one_machine_know_each_other_and_those_of_another_run_do_not(tmp_path: Path) -> None:
    oslo, porto = with_identities(settings_in(tmp_path / "a", "Oslo", "Porto"))
    (stranger,) = with_identities(settings_in(tmp_path / "b", "Porto"))
    verify_key(signed_by(porto), "run", authority_of(oslo))
    with pytest.raises(ProtocolError, match=r"key of node Porto .* not signed by this federation's authority"):
        verify_key(signed_by(stranger), "run", authority_of(oslo))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files_of(tmp_path / "a")}
    assert modes == dict.fromkeys(("node.key", "node.crt", "ca.crt"), 0o600), "and no key of the authority"


def test_they_stay_when_the_run_goes_on(tmp_path: Path) -> None:
    nodes = settings_in(tmp_path, "Oslo", "Porto")
    with_identities(nodes)
    before = files_of(tmp_path)
    with_identities(nodes)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", ["node.key", "node.crt", "ca.crt"])
def test_where_a_file_is_damaged_all_nodes_get_new_ones(tmp_path: Path, name: str) -> None:
    nodes = settings_in(tmp_path, "Oslo", "Porto")
    with_identities(nodes)
    (tmp_path / "Oslo" / name).write_text("half")
    oslo, porto = with_identities(nodes)
    verify_key(signed_by(porto), "run", authority_of(oslo))
    verify_key(signed_by(oslo), "run", authority_of(porto))


def test_where_the_authorities_differ_all_nodes_get_new_ones(tmp_path: Path) -> None:
    """As after a process that was killed while it wrote them."""
    nodes = settings_in(tmp_path, "Oslo", "Porto")
    with_identities(nodes[:1])
    with_identities(nodes[1:])
    oslo, porto = with_identities(nodes)
    verify_key(signed_by(porto), "run", authority_of(oslo))
