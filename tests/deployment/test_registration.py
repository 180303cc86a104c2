"""Who may join follows the keys folder while the server runs, and one hospital's key cannot stop the others."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fednnunet.deployment.keys import make_node_key, read_public_key
from fednnunet.deployment.server import registration
from fednnunet.deployment.server.flower_internals import public_key_to_bytes
from fednnunet.deployment.server.flower_superlink import NodeRegister, superlink_app
from fednnunet.deployment.server.registration import Registration, watch_keys
from fednnunet.errors import ConfigError

pytestmark = pytest.mark.unit


class Folder:
    """A keys folder, and a SuperLink's state that follows it."""

    def __init__(self, folder: Path, register: NodeRegister) -> None:
        self.keys = folder / "keys"
        (self.keys / "nodes").mkdir(parents=True)
        self.register = register
        self.lines: list[str] = []
        self.registration = Registration(self.register, self.lines.append)

    def add(self, *nodes: str) -> None:
        for node in nodes:
            make_node_key(self.public_key(node).parent)

    def public_key(self, node: str) -> Path:
        return self.keys / "nodes" / node / "node.pub"

    def follow(self) -> list[str]:
        """Lines of one look at the folder."""
        self.lines.clear()
        self.registration.follow(self.keys)
        return list(self.lines)

    def registered(self) -> dict[str, int]:
        """Ids of the nodes that may join, by name."""
        return {node.name: node.node_id for node in self.register.nodes() if node.is_registered}


@pytest.fixture(scope="module")
def new_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Database of a SuperLink that has seen no node; making one takes a second."""
    database = tmp_path_factory.mktemp("state") / "state.db"
    NodeRegister(superlink_app(database, auth=True))
    return database


@pytest.fixture
def folder(new_state: Path, tmp_path: Path) -> Folder:
    shutil.copy(new_state, tmp_path / "state.db")
    return Folder(tmp_path, NodeRegister(superlink_app(tmp_path / "state.db", auth=True)))


def test_registration_follows_the_folder_both_ways(folder: Folder) -> None:
    folder.add("Oslo", "Porto")
    assert folder.follow() == ["node Oslo may join", "node Porto may join"]
    shutil.rmtree(folder.public_key("Oslo").parent)
    make_node_key(folder.public_key("Riga").parent)
    assert sorted(folder.follow()) == ["node Oslo may no longer join", "node Riga may join"]
    make_node_key(folder.public_key("Tartu").parent)
    assert folder.follow() == ["node Tartu may join"], "a node that was removed is in nobody's way"
    assert set(folder.registered()) == {"Porto", "Riga", "Tartu"}
    assert folder.follow() == []


def test_a_key_that_was_away_is_the_node_that_it_was(folder: Folder, tmp_path: Path) -> None:
    folder.add("Oslo", "Porto")
    folder.follow()
    before = folder.registered()
    shutil.move(folder.public_key("Oslo").parent, tmp_path / "away")
    assert folder.follow() == ["node Oslo may no longer join"]
    shutil.move(tmp_path / "away", folder.public_key("Oslo").parent)
    assert folder.follow() == ["node Oslo may join"]
    assert folder.registered() == before
    assert folder.register.node_id(public_key_to_bytes(read_public_key(folder.public_key("Oslo")))) == before["Oslo"]


def test_a_restarted_server_says_who_may_join(folder: Folder) -> None:
    folder.add("Oslo", "Porto")
    folder.follow()
    again = Registration(folder.register, folder.lines.append)
    folder.lines.clear()
    again.follow(folder.keys)
    assert folder.lines == ["2 nodes may join"]


def test_a_node_whose_key_cannot_be_used_is_left_out_by_name(folder: Folder, tmp_path: Path) -> None:
    folder.add("Oslo")
    folder.follow()
    other_kind = ed25519.Ed25519PrivateKey.generate().public_key()
    unusable = {
        "Empty": (b"", "is empty; copy the node's public key again"),
        "Half": (b"ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNo", "holds no public key in OpenSSH's format, or not all of it"),
        "Noise": (b"\x00\xff" * 500, "holds no public key in OpenSSH's format, or not all of it"),
        "Other": (
            other_kind.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
            "holds a key of another kind; make one with `ssh-keygen -t ecdsa -b 384`",
        ),
    }
    for name, (content, _) in unusable.items():
        folder.public_key(name).parent.mkdir()
        folder.public_key(name).write_bytes(content)
    folder.add("Riga")
    added, *left_out = folder.follow()
    assert added == "node Riga may join", "the others go on"
    for line, (name, (_, says)) in zip(left_out, unusable.items(), strict=True):
        assert line.startswith(f"node {name} is left out: {folder.public_key(name)} {says}")
    assert folder.follow() == [], "told once"
    make_node_key(tmp_path / "genuine")
    folder.public_key("Half").write_bytes((tmp_path / "genuine" / "node.pub").read_bytes())
    assert folder.follow() == ["node Half may join"]


def test_a_name_that_no_node_can_have_is_left_out(folder: Folder) -> None:
    folder.add("Oslo", ".trash")
    assert [line for line in folder.follow() if "left out" in line] == [
        "node .trash is left out: '.trash' is not a valid node name: use letters, digits, spaces, and _ . ' -"
    ]
    assert set(folder.registered()) == {"Oslo"}


def test_one_key_under_two_names_stays_with_the_node_that_it_is_registered_for(folder: Folder) -> None:
    folder.add("Oslo")
    folder.follow()
    shutil.copytree(folder.public_key("Oslo").parent, folder.public_key("Aarhus").parent)
    make_node_key(folder.public_key("Riga").parent)
    assert folder.follow() == [
        "node Riga may join",
        "node Aarhus is left out: its key is also that of node Oslo; each node needs its own node.pub",
    ]
    assert set(folder.registered()) == {"Oslo", "Riga"}


def test_one_key_under_two_new_names_is_nobodys(folder: Folder) -> None:
    folder.add("Oslo", "Riga")
    shutil.copytree(folder.public_key("Oslo").parent, folder.public_key("Aarhus").parent)
    assert [line.partition(":")[0] for line in folder.follow()] == [
        "node Riga may join",
        "node Aarhus is left out",
        "node Oslo is left out",
    ]
    shutil.rmtree(folder.public_key("Aarhus").parent)
    assert folder.follow() == ["node Oslo may join"]


def test_a_new_key_and_a_new_name_are_told_as_such(folder: Folder) -> None:
    folder.add("Oslo", "Porto")
    folder.follow()
    before = folder.registered()
    shutil.rmtree(folder.public_key("Oslo").parent)
    make_node_key(folder.public_key("Oslo").parent)
    assert folder.follow() == ["node Oslo may join with a new key, and no longer with its former one"]
    folder.public_key("Porto").parent.rename(folder.public_key("Lisboa").parent)
    assert folder.follow() == ["node Lisboa may join, with the key that was node Porto's until now"]
    assert folder.registered()["Lisboa"] == before["Porto"]


def test_a_folder_that_cannot_be_read_changes_nothing_and_is_told_once(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unmounted disk, for example: nobody is registered anew, nobody is removed."""
    folder.add("Oslo")
    folder.follow()
    (folder.keys / "nodes").rename(tmp_path / "away")
    with pytest.raises(ConfigError, match="cannot be read"):
        folder.follow()
    looks = iter(range(3))

    async def next_look(_: float) -> None:
        if next(looks, None) is None:
            raise asyncio.CancelledError

    monkeypatch.setattr(registration.asyncio, "sleep", next_look)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watch_keys(folder.registration, folder.keys, folder.lines.append))
    assert [line for line in folder.lines if "cannot be registered" in line] == [
        f"the keys in {folder.keys / 'nodes'} cannot be registered ({folder.keys / 'nodes'} cannot be read: No such "
        "file or directory); it is tried again"
    ]
    assert set(folder.registered()) == {"Oslo"}
