"""Keys that TLS and Flower accept, and that nobody else reads."""

from __future__ import annotations

import argparse
import shutil
import socket
import ssl
import stat
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

from fednnunet.cli.main import main
from fednnunet.deployment.certificates import read_certificate
from fednnunet.deployment.keys import make_keys, make_node_key, read_private_key
from fednnunet.deployment.server.supervisor import check_keys
from fednnunet.errors import ConfigError
from fednnunet.privacy.identity import certified_key

pytestmark = pytest.mark.unit


def shake_hands(server: Path, trusted: Path, name: str) -> None:
    """Connect over TLS to a server with the certificate in ``server``, trusting the authority in ``trusted``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    client = ssl.create_default_context(cafile=str(trusted / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as is the default from Python 3.13 on
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            context.wrap_socket(theirs, server_side=True).close()
        except OSError:  # the client went away
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


def test_a_node_trusts_its_server_by_each_of_its_names_and_no_other(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    make_keys(ours, ["127.0.0.1", "fl.example.org"], [])
    make_keys(theirs, ["127.0.0.1"], [])
    for name in ("127.0.0.1", "fl.example.org"):
        shake_hands(ours, ours, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(ours, ours, "other.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(theirs, ours, "127.0.0.1")


def test_flower_accepts_a_nodes_key_pair(tmp_path: Path) -> None:
    make_keys(tmp_path, ["localhost"], ["Vall d'Hebron"])
    folder = tmp_path / "nodes" / "Vall d'Hebron"
    options = {"auth_supernode_private_key": str(folder / "node.key"), "auth_supernode_public_key": None}
    pair = _try_setup_client_authentication(argparse.Namespace(**options))
    assert pair is not None
    assert load_ssh_public_key((folder / "node.pub").read_bytes()) == pair[1]


def test_only_their_owner_can_read_private_keys(tmp_path: Path) -> None:
    made = make_keys(tmp_path, ["localhost"], ["Oslo"])
    private = [path for path in made.written if path.suffix == ".key"]
    assert {path.name for path in private} == {"ca.key", "server.key", "node.key"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_a_later_call_adds_a_node_and_changes_nothing(tmp_path: Path) -> None:
    make_keys(tmp_path, ["localhost"], ["Oslo"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    made = make_keys(tmp_path, ["localhost"], ["Oslo", "Porto"])
    assert [path.relative_to(tmp_path).as_posix() for path in made.written] == [
        *("nodes/Porto/node.key", "nodes/Porto/node.pub", "nodes/Porto/node.crt")
    ]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert {path.name for path in made.kept} == {"server.crt", "server.key", "node.pub", "node.crt"}


def test_a_key_that_a_node_has_is_not_replaced(tmp_path: Path) -> None:
    """Its private half was sent to the hospital and deleted here, or was never here."""
    make_keys(tmp_path, ["localhost"], ["Oslo"])
    (tmp_path / "nodes" / "Oslo" / "node.key").unlink()
    before = (tmp_path / "nodes" / "Oslo" / "node.pub").read_bytes()
    make_keys(tmp_path, ["localhost"], ["Oslo", "Porto"])
    assert (tmp_path / "nodes" / "Oslo" / "node.pub").read_bytes() == before
    assert not (tmp_path / "nodes" / "Oslo" / "node.key").exists()


@pytest.mark.parametrize("servers", [[], ["localhost"]])
def test_a_nodes_pair_is_made_while_the_authoritys_key_is_offline(tmp_path: Path, servers: list[str]) -> None:
    first = make_keys(tmp_path, ["localhost"], [])
    (tmp_path / "ca.key").unlink()
    made = make_keys(tmp_path, servers, ["Porto"])
    assert {path.name for path in made.written} == {"node.key", "node.pub"}
    assert made.uncertified == ["Porto"]
    assert made.expires == first.expires
    with pytest.raises(ConfigError, match=r"server\.crt is not for 10\.0\.0\.7"):
        make_keys(tmp_path, ["10.0.0.7"], [])
    (tmp_path / "server.crt").unlink()
    (tmp_path / "server.key").unlink()
    with pytest.raises(ConfigError, match=r"ca\.crt exists without ca\.key, which signs"):
        make_keys(tmp_path, ["localhost"], ["Riga"])
    assert make_keys(tmp_path, [], ["Riga"]).expires is None


def test_a_key_that_a_hospital_has_made_is_certified_when_the_authoritys_key_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, elsewhere = tmp_path / "keys", tmp_path / "ca.key"
    make_keys(keys, ["localhost"], [])
    make_node_key(tmp_path / "Oslo")
    oslo = keys / "nodes" / "Oslo"
    oslo.mkdir(parents=True)
    shutil.copy(tmp_path / "Oslo" / "node.pub", oslo)
    (keys / "ca.key").rename(elsewhere)
    monkeypatch.setattr(sys, "argv", ["fednnunet", "keys", str(keys), "--node", "Oslo"])
    with pytest.raises(SystemExit):
        main()
    assert "no node.crt for Oslo, as ca.key is not there" in capsys.readouterr().out
    elsewhere.rename(keys / "ca.key")
    assert [path.name for path in make_keys(keys, [], ["Oslo"]).written] == ["node.crt"]
    authority = read_certificate(keys / "ca.crt")
    certified = certified_key(read_certificate(oslo / "node.crt"), "Oslo", authority)
    assert certified == read_private_key(tmp_path / "Oslo" / "node.key").public_key()


def test_a_certificate_that_no_other_node_would_trust_is_named(tmp_path: Path) -> None:
    make_keys(tmp_path / "old", ["localhost"], ["Oslo"])
    make_keys(tmp_path / "new", ["localhost"], [])
    oslo = tmp_path / "new" / "nodes" / "Oslo"
    shutil.copytree(tmp_path / "old" / "nodes" / "Oslo", oslo)
    with pytest.raises(ConfigError, match=r"Oslo/node\.crt does not count: it is not signed by .*; remove it"):
        make_keys(tmp_path / "new", [], ["Oslo"])
    (oslo / "node.crt").unlink()
    make_keys(tmp_path / "new", [], ["Oslo"])
    for name in ("node.key", "node.pub"):
        (oslo / name).unlink()
    make_node_key(oslo)
    with pytest.raises(ConfigError, match=r"Oslo/node\.crt is of another key than node\.pub; remove it"):
        make_keys(tmp_path / "new", [], ["Oslo"])


@pytest.mark.parametrize(
    ("servers", "nodes", "problem"),
    [
        (["localhost"], ["../Oslo"], "'../Oslo' is not a valid node name"),
        (["bücher"], ["Oslo"], "'bücher' is neither a host name nor an IP address"),
        ([], ["Oslo"], "give the name by which nodes reach the server"),
    ],
)
def test_invalid_names_are_refused(tmp_path: Path, servers: list[str], nodes: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_keys(tmp_path, servers, nodes)
    assert not list(tmp_path.iterdir()), "nothing half-made"


def test_existing_files_are_not_overwritten_for_another_server(tmp_path: Path) -> None:
    make_keys(tmp_path, ["localhost"], [])
    with pytest.raises(ConfigError, match=r"server\.crt is not for 10\.0\.0\.7; remove it"):
        make_keys(tmp_path, ["localhost", "10.0.0.7"], [])
    (tmp_path / "server.crt").unlink()
    with pytest.raises(ConfigError, match=r"server\.key exists without its counterpart"):
        make_keys(tmp_path, ["localhost"], [])
    (tmp_path / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"ca\.crt exists without ca\.key"):
        make_keys(tmp_path, ["localhost"], [])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, ["localhost"], ["Oslo"])
    return folder


@pytest.fixture
def keys(made: Path, tmp_path: Path) -> Path:
    """Sound keys, to be damaged."""
    return shutil.copytree(made, tmp_path / "keys")


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("server.crt", r"server\.crt holds no certificate \(PEM\), or not all of it"),
        ("server.key", r"server\.key holds no private key \(PEM, without a password\), or not all of it"),
    ],
)
def test_a_server_with_a_damaged_certificate_or_key_does_not_start(keys: Path, name: str, problem: str) -> None:
    check_keys(keys, "127.0.0.1:0", insecure=False)
    half(keys / name)
    with pytest.raises(ConfigError, match=problem):
        check_keys(keys, "127.0.0.1:0", insecure=False)


def test_a_key_that_is_not_of_its_certificate_is_named(keys: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "others", ["localhost"], [])
    shutil.copy(tmp_path / "others" / "server.key", keys)
    with pytest.raises(ConfigError, match=r"server\.key is not the key of .*server\.crt"):
        check_keys(keys, "127.0.0.1:0", insecure=False)
    shutil.copy(tmp_path / "others" / "server.crt", keys)
    with pytest.raises(ConfigError, match=r"server\.crt was not signed by .*ca\.crt"):
        make_keys(keys, ["localhost"], [])
    for name in ("server.crt", "server.key"):
        (keys / name).unlink()
    shutil.copy(tmp_path / "others" / "ca.key", keys)
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of .*ca\.crt; nodes would not trust what it signs"):
        make_keys(keys, ["localhost"], [])


@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
def test_a_damaged_authority_is_named(keys: Path, name: str) -> None:
    for made_again in ("server.crt", "server.key"):
        (keys / made_again).unlink()
    half(keys / name)
    with pytest.raises(ConfigError, match=f"{name} holds no .* or not all of it"):
        make_keys(keys, ["localhost"], [])


def test_an_expired_certificate_is_named(tmp_path: Path) -> None:
    make_keys(tmp_path, ["localhost"], [], days=0)
    with pytest.raises(ConfigError, match=r"server\.crt has expired"):
        make_keys(tmp_path, ["localhost"], [])
