"""A node's own files as copying, mail and other users leave them: one line names the file and what to do."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from flwr.proto.fleet_pb2 import ActivateNodeResponse

from fednnunet.config.groups import InitConfig
from fednnunet.config.node_file import NodeFile, read_node_file
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.staging import cache_of
from fednnunet.deployment.keys import make_keys, read_authorities, read_private_key
from fednnunet.deployment.node import connection as connection_module
from fednnunet.deployment.node.connection import NodeConnection
from fednnunet.deployment.node.data_check import check_data
from fednnunet.deployment.node.fleet_calls import Refused
from fednnunet.deployment.node.flower_internals import HeartbeatSender, fleet_client
from fednnunet.deployment.node.preflight import before_start
from fednnunet.deployment.node.preflight.before_start import check_before_start
from fednnunet.deployment.supervision import SupervisedProcess
from fednnunet.errors import ConfigError
from tests.conftest import write_boxes

pytestmark = pytest.mark.unit
MINIMAL = {"name": "Oslo", "data": 1, "server": "a:1", "certificate": "ca.crt", "key": "node.key", "folder": "work"}
Damage = Callable[[bytes], bytes]


@pytest.fixture
def node_file(tmp_path: Path) -> NodeFile:
    """Of a node whose keys are there; its work folder is not."""
    make_keys(tmp_path, ["127.0.0.1"], ["Oslo"])
    key = tmp_path / "nodes" / "Oslo" / "node.key"
    file = tmp_path / "node.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | {"key": str(key)}))
    return read_node_file(file)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "contains no keys"),
        (b"- Oslo\n", "contains no keys"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
        (b"name: M\xfcnchen\n", "is not text in UTF-8"),
        (b"name: Oslo\ncertif", "cannot be read as YAML"),
        (b"[" * 3000, "cannot be read as YAML"),
        (b"name: Oslo\nname: Porto\n", "the key name is given twice"),
        (b"init: {plans: a, plans: b}\n", "the key plans is given twice"),
        ({"data": ["a"]}, "data: must be a folder, or the number or name of a dataset"),
        ({"name": 12}, "name: must be text; put it in quotes"),
        ({"fingerprint": None}, "fingerprint: must hold keys with values"),
        ({"compute": {"device": "gpu"}}, "compute.device: must be 'auto', 'cpu', 'cuda' or 'mps'"),
        ({"folder": None}, "folder: "),
        ({"key": None}, "node.yaml: key is missing; `fednnunet keys` makes it"),
    ],
)
def test_a_damaged_configuration_is_named_with_what_is_wrong(
    content: bytes | dict[str, Any], problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "node.yaml"
    file.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(MINIMAL | content).encode())
    with pytest.raises(ConfigError) as raised:
        read_node_file(file)
    assert str(raised.value).startswith(str(file))
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def nothing(_: bytes) -> bytes:
    return b"\n"


DAMAGED_KEYS: list[tuple[Damage, str]] = [
    (nothing, "is empty; copy it again"),
    (half, "holds no private key in OpenSSH's format, or not all of it"),
    (lambda key: key[:200] + b"AAAA" + key[204:], "holds no private key in OpenSSH's format, or not all of it"),
    (lambda _: b"ecdsa-sha2-nistp384 AAAA Oslo\n", "is the public key; name the private one, without .pub"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGED_KEYS)
def test_a_damaged_key_is_named_before_the_node_starts(damage: Damage, problem: str, node_file: NodeFile) -> None:
    assert node_file.key is not None
    node_file.key.write_bytes(damage(node_file.key.read_bytes()))
    with pytest.raises(ConfigError) as raised:
        check_before_start(node_file)
    assert str(raised.value).startswith(f"key: {node_file.key} {problem}")


def test_a_key_with_a_password_is_named_with_the_command_that_removes_it(node_file: NodeFile, tmp_path: Path) -> None:
    key = tmp_path / "with_password"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "secret", "-f", str(key)], check=True)
    with pytest.raises(ConfigError, match="has a password") as raised:
        check_before_start(node_file.model_copy(update={"key": key}))
    assert f"ssh-keygen -p -N '' -f '{key}'" in str(raised.value)


DAMAGED_CERTIFICATES: list[tuple[Damage, str]] = [
    (nothing, "is empty; copy it again"),
    (half, "holds no certificate (PEM), or not all of it"),
    (lambda _: b"<html>not found</html>", "holds no certificate (PEM), or not all of it"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGED_CERTIFICATES)
def test_a_damaged_certificate_is_named_before_the_node_starts(
    damage: Damage, problem: str, node_file: NodeFile
) -> None:
    assert node_file.certificate is not None
    node_file.certificate.write_bytes(damage(node_file.certificate.read_bytes()))
    with pytest.raises(ConfigError) as raised:
        check_before_start(node_file)
    assert str(raised.value).startswith(f"certificate: {node_file.certificate} {problem}")


def test_a_certificate_of_another_node_or_key_is_named_before_the_node_starts(
    node_file: NodeFile, tmp_path: Path
) -> None:
    make_keys(tmp_path, [], ["Porto"])
    oslo, porto = (tmp_path / "nodes" / name / "node.crt" for name in ("Oslo", "Porto"))
    check_before_start(node_file.model_copy(update={"node_certificate": oslo}))
    for certificate, problem in (
        (porto, r"Porto/node\.crt does not count: it is that of CN=Porto; ask the server's operator"),
        (tmp_path / "server.crt", r"server\.crt does not count: it is that of CN=127"),
        (tmp_path / "missing", "missing cannot be read"),
    ):
        with pytest.raises(ConfigError, match=problem):
            check_before_start(node_file.model_copy(update={"node_certificate": certificate}))
    other_key = {"node_certificate": oslo, "key": tmp_path / "nodes" / "Porto" / "node.key"}
    with pytest.raises(ConfigError, match=r"Oslo/node\.crt is not of the key .*Porto/node\.key; ask"):
        check_before_start(node_file.model_copy(update=other_key))


def test_files_that_training_starts_from_are_named_before_the_node_starts(node_file: NodeFile, tmp_path: Path) -> None:
    for field in ("plans", "weights", "previous_stage"):
        init = InitConfig.model_validate({field: tmp_path / "none"})
        with pytest.raises(ConfigError, match=rf"^init.{field}: {tmp_path / 'none'} is not there$"):
            check_before_start(node_file.model_copy(update={"init": init}))


def test_files_that_are_not_there_are_named_before_the_node_starts(node_file: NodeFile) -> None:
    for field in ("key", "certificate"):
        missing = node_file.model_copy(update={field: node_file.folder / "none"})
        with pytest.raises(ConfigError, match=f"^{field}: .*none cannot be read: No such file or directory"):
            check_before_start(missing)


def test_text_around_a_certificate_does_no_harm(node_file: NodeFile) -> None:
    assert node_file.certificate is not None
    assert node_file.key is not None
    node_file.certificate.write_bytes("# Universitätsklinikum\n".encode() + node_file.certificate.read_bytes())
    assert len(read_authorities(node_file.certificate)) == 1
    fleet_client(node_file, read_private_key(node_file.key)).close()


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.ENOSPC, "is full; make room there"),
        (errno.EDQUOT, "is full; make room there"),
        (errno.EROFS, "cannot be written: Read-only file system"),
        (errno.EACCES, "cannot be written: Permission denied"),
    ],
)
def test_a_work_folder_that_cannot_be_written_is_named_before_the_node_starts(
    number: int, problem: str, node_file: NodeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ConfigError) as raised:
        check_before_start(node_file)
    assert str(raised.value).startswith("folder: ")
    assert f"{tmp_path} {problem}" in str(raised.value)


def test_files_of_another_user_in_the_work_folder_are_named_before_the_node_starts(
    node_file: NodeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_before_start(node_file)
    node_file.folder.mkdir()
    log = node_file.folder / "worker.log"
    log.touch()
    (node_file.folder / "audit.jsonl").symlink_to(tmp_path / "a_disk_of_its_own" / "audit.jsonl")
    check_before_start(node_file)
    monkeypatch.setattr(before_start.os, "access", lambda path, _: path != log)
    with pytest.raises(ConfigError, match=f"^folder: {log} cannot be written by this user; .*sudo chown -R USER"):
        check_before_start(node_file)


def test_broken_data_keep_a_node_from_joining(node_file: NodeFile, tmp_path: Path) -> None:
    data = write_boxes(tmp_path, "Dataset101_Oslo")
    label = data / "labelsTr" / "case_002.nii.gz"
    label.write_bytes(half(label.read_bytes()))
    content = MINIMAL | {"data": str(data), "key": str(node_file.key)}
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "fednnunet.cli.main", "node", "up", str(tmp_path / "node.yaml")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: centre Oslo: {label} ")
    assert len(ended.stderr.splitlines()) == 1
    assert "connecting to" not in ended.stdout


def test_what_the_check_before_joining_has_found_serves_the_run(
    node_file: NodeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fednnunet.deployment.node.data_check.QUIET_SECONDS", float("inf"))  # however slow this machine
    data = write_boxes(tmp_path, "Dataset101_Oslo")
    node_file.folder.mkdir()
    told: list[str] = []
    check_data(node_file.model_copy(update={"data": str(data)}), threading.Event(), told.append)
    assert not told
    cache = cache_of(node_file.folder / "cache", read_dataset(data, "Oslo"))
    assert [path.name for path in cache.iterdir()] == ["checked_check.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_node_ends_with_one_line_whatever_ends_it(number: signal.Signals) -> None:
    script = f"""
import os, signal
from fednnunet.deployment.supervision import ended_by_signal, supervise
signal.signal({int(number)}, signal.SIG_DFL)  # whatever this suite was started with
ended = ended_by_signal()
os.kill(os.getpid(), {int(number)})
assert ended.is_set()
for _ in supervise([], ended, print):
    raise SystemExit("still supervised")
print("has ended")
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (shown.stdout, shown.stderr) == ("has ended\n", "")


def test_the_end_of_a_terminal_ends_no_node_that_was_started_with_nohup() -> None:
    script = """
import os, signal
from fednnunet.deployment.supervision import ended_by_signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
ended = ended_by_signal()
os.kill(os.getpid(), signal.SIGHUP)
assert not ended.is_set()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_start_that_fails_is_tried_again() -> None:
    """The process that workers are forked from was killed."""
    fails = iter((True, False))
    told: list[str] = []

    def start() -> BaseProcess:
        if next(fails):
            raise EOFError
        return cast(BaseProcess, SimpleNamespace(is_alive=lambda: True))

    worker = SupervisedProcess("worker", start)
    worker.poll(told.append)
    assert told == ["the worker could not be started (EOFError); it is restarted"]
    worker.poll(told.append)
    assert worker.process is not None
    assert len(told) == 1


class Joined(Exception):
    """The node has joined."""


@pytest.mark.parametrize("stored", [b"", b"\xff", b"-1", b"9" * 40])
def test_a_damaged_id_keeps_no_node_out(stored: bytes, node_file: NodeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def join(*_: Any) -> None:
        raise Joined

    node_file.folder.mkdir()
    (node_file.folder / "node_id").write_bytes(stored)
    connection = NodeConnection(node_file, {}, lambda _: None)
    monkeypatch.setattr(connection.calls, "call", lambda *_: ActivateNodeResponse(node_id=7))
    monkeypatch.setattr(HeartbeatSender, "start", join)
    with pytest.raises(Joined):
        connection.serve()
    assert (node_file.folder / "node_id").read_text() == "7"


def test_a_node_whose_key_is_not_registered_yet_asks_again_soon_and_then_less_often(
    node_file: NodeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, told = list[float](), list[str]()

    def activate(*_: object) -> ActivateNodeResponse:
        if len(pauses) < 7:
            raise Refused("412 unknown")
        return ActivateNodeResponse(node_id=7)

    monkeypatch.setattr(connection_module, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(connection_module, "explain_rejection", lambda *_: "it does not know the key")
    monkeypatch.setattr(connection_module, "explain_other_version", lambda _: None)
    connection = NodeConnection(node_file, {}, told.append)
    monkeypatch.setattr(connection.calls, "call", activate)
    connection._join()
    assert pauses == [1, 2, 5, 10, 20, 20, 20]
    assert len(told) == 2, "why, once, and that it has joined"


@pytest.mark.parametrize(("answer_s", "least_s", "pause_s"), [(0.002, 0.1, 0.1), (0.2, 0.1, 2.0), (60.0, 1.0, 5.0)])
def test_a_node_asks_a_busy_server_less_often(
    answer_s: float, least_s: float, pause_s: float, node_file: NodeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, pauses = [0.0], list[float]()

    def ask() -> bool:
        if len(pauses) == 3:
            raise Joined  # seen enough
        clock[0] += answer_s
        return False

    fake = SimpleNamespace(monotonic=lambda: clock[0], sleep=pauses.append)
    monkeypatch.setattr(connection_module, "time", fake)
    monkeypatch.setattr(connection_module, "POLL_SECONDS", (least_s, least_s))
    connection = NodeConnection(node_file, {}, lambda _: None)
    monkeypatch.setattr(connection, "_join", lambda: None)
    monkeypatch.setattr(connection, "serve_one", ask)
    monkeypatch.setattr(HeartbeatSender, "start", lambda _: None)
    with pytest.raises(Joined):
        connection.serve()
    assert pauses == pytest.approx([pause_s] * 3)


def test_lines_for_the_operator_fit_a_terminal_that_shows_ascii_only(tmp_path: Path) -> None:
    script = "from fednnunet.deployment.supervision import terminal; terminal()('node Köln has ended …')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment).stdout
    assert shown.endswith(b" node Koln has ended ...\n")
