"""What a node does not do, whatever its server asks: with the real connection, and the real worker of a hospital."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import multiprocessing
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import httpx
import pytest
import yaml
from flwr.proto.fleet_pb2 import PullMessagesRequest

from fednnunet.audit.log import AUDIT_LOG, AuditLog
from fednnunet.config.groups import ComputeConfig
from fednnunet.config.node_file import NodeFile, read_node_file
from fednnunet.config.privacy import NodePrivacy
from fednnunet.config.shared import SharedRunConfig
from fednnunet.deployment.keys import make_keys
from fednnunet.deployment.node.connection import NodeConnection
from fednnunet.deployment.node.deployed_worker import (
    DeployedWorker,
    RunAssignment,
    assignment_of,
    run_deployed_worker,
    settings_of,
)
from fednnunet.deployment.node.fleet_calls import Refused
from fednnunet.deployment.supervision import OTHER_RUN, show_warnings
from fednnunet.errors import ConfigError, DataError, NodeError, ProtocolError
from fednnunet.exchange.channel import WorkerChannel, WorkerFailure, WorkerUnreachable, call_worker
from fednnunet.exchange.messages import Failure, FingerprintRequest, Kind
from fednnunet.files import write_atomically
from fednnunet.node.error_replies import failure_of
from fednnunet.node.settings import NodeIdentity
from tests.conftest import write_boxes

KEY = b"k" * 32
SHARED_CONFIG: dict[str, Any] = {
    "seed": 0,
    "fold": 0,
    "configuration": "2d",
    "fingerprint": {"precision": "full"},
    "trainer": {"class": "nnUNetTrainer", "epochs": 1},
    "model": {"planner": "ExperimentPlanner"},
    "privacy": {},
    "gpu_memory": {"gb": None, "cap": True},
    "evaluation": {"distance_unit": "mm"},
}
Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def node_file(tmp_path: Path) -> NodeFile:
    path = tmp_path / "node.yaml"
    content = {"name": "Oslo", "data": 101, "raw_folder": "raw", "server": "127.0.0.1:1", "folder": "work"}
    options = {"insecure": True, "classes": ["our.trainers.OurTrainer"], "compute": {"threads": 1}}
    path.write_text(yaml.safe_dump(content | options))
    return read_node_file(path)


# the connection ----------------------------------------------------------------------------------------


@pytest.fixture
def connect_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], NodeConnection]]:
    """A node's connection to a server with the right certificate, or plain HTTP, which answers as it is told."""
    monkeypatch.setenv("no_proxy", "*")
    make_keys(tmp_path / "keys", ["127.0.0.1"], ["Oslo"])
    servers = []

    def serving(answer: Answer, insecure: bool = False) -> NodeConnection:
        class Handler(BaseHTTPRequestHandler):
            do_GET = do_POST = answer  # type: ignore[assignment]

            def log_message(self, *_: Any) -> None:
                """Be quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if not insecure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "keys" / "server.crt", tmp_path / "keys" / "server.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        node_file = NodeFile(
            name="Oslo",
            data=101,
            server=f"127.0.0.1:{server.server_port}",
            certificate=tmp_path / "keys" / "ca.crt",
            key=tmp_path / "keys" / "nodes" / "Oslo" / "node.key",
            folder=tmp_path / "work",
            insecure=insecure,
        )
        return NodeConnection(node_file, {}, lambda _: None)

    yield serving
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_insecure_node_with_a_certificate_speaks_plain_http(connect_to: Callable[..., NodeConnection]) -> None:
    connection = connect_to(lambda request: _say(request, 403, b"no"), insecure=True)
    assert connection.node_file.certificate is not None
    with pytest.raises(Refused, match="403: no"):
        connection.serve_one()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_node_follows_no_redirect(connect_to: Callable[[Answer], NodeConnection], status: int) -> None:
    asked: list[str] = []

    def intranet(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        _say(request, 200, b"secret")

    elsewhere = connect_to(intranet).node_file.server

    def answer(request: BaseHTTPRequestHandler) -> None:
        _say(request, status, b"", location=f"https://{elsewhere}/printer/erase")

    with pytest.raises(Refused, match=str(status)):
        connect_to(answer).serve_one()
    assert asked == []


def _say(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in ({"content-length": str(len(body))} | headers).items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-length": str(2**40)},
        {"content-length": ""},
        {"content_encoding": "gzip"},
        {"transfer_encoding": "chunked"},
    ],
)
def test_an_answer_without_an_end_is_not_read(
    connect_to: Callable[[Answer], NodeConnection], headers: dict[str, str]
) -> None:
    bomb = gzip.compress(bytes(2**26))
    with pytest.raises((Refused, httpx.TransportError)) as refused:
        connect_to(lambda request: _say(request, 200, bomb, **headers)).calls.client.PullMessages(PullMessagesRequest())
    assert isinstance(refused.value, Refused) or "content-length" in str(refused.value).lower()


def test_an_unreadable_answer_does_not_end_the_connection(connect_to: Callable[[Answer], NodeConnection]) -> None:
    connection = connect_to(lambda request: _say(request, 200, b"\xff" * 100))
    with pytest.raises(Refused, match="cannot be read"):
        connection.serve_one()
    assert connection.send_heartbeat() is False


def test_text_of_others_cannot_control_a_terminal(connect_to: Callable[[Answer], NodeConnection]) -> None:
    connection = connect_to(lambda request: _say(request, 403, b"\x1b[2J\x1b]0;owned\x07\nnode Porto has ended"))
    with pytest.raises(Refused) as refused:
        connection.serve_one()
    assert str(refused.value) == "403:  [2J ]0;owned  node Porto has ended"
    assert str(NodeError("Oslo", "\x1b[31mall\nis well")) == "node Oslo:  [31mall is well"


# the configuration that it sends -----------------------------------------------------------------------


def changed(**changes: Any) -> dict[str, Any]:
    """The configuration with other values; ``a__b`` is ``b`` in ``a``."""
    shared_config = json.loads(json.dumps(SHARED_CONFIG))
    for key, value in changes.items():
        *groups, last = key.split("__")
        part = shared_config
        for group in groups:
            part = part[group]
        part[last] = value
    return shared_config


@pytest.mark.parametrize(
    ("shared_config", "problem"),
    [
        (changed(paths={"cache": "/etc"}), "paths"),
        (changed(compute={"device": "cpu"}), "compute"),
        (changed(init={"weights": "/etc/passwd"}), "init"),
        (changed(init={"previous_stage": "/"}), "init"),
        (changed(model__plans="/etc/passwd"), "model.plans"),
        (changed(dataset={"raw_folder": "/data"}), "dataset"),
        (changed(dataset={"generator": {"_target_": "os.system"}}), "dataset"),
        (changed(model__plans_name="../../elsewhere"), "model.plans_name"),
        (changed(model__overrides={"dataset_name": "/etc"}), "numbers only"),
        (changed(model__overrides={"plans_identifier": ["x"]}), "numbers only"),
        (changed(model__overrides={"__class__": 1}), "numbers only"),
        (changed(model__overrides={"UNet_class": {"a": 1}}), "numbers only"),
        (changed(fold="../0"), "fold"),
        (changed(fold=1000), "fold"),
        (changed(fingerprint__precision="everything"), "fingerprint.precision"),
        (changed(configuration="../2d"), "configuration"),
        (changed(trainer__epochs=0), "trainer.epochs"),
        (changed(seed=-1), "seed"),
    ],
)
def test_a_configuration_is_of_the_published_schema(
    node_file: NodeFile, shared_config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ProtocolError, match=f"the server sent an invalid configuration: .*{problem}"):
        assignment_of(node_file, FingerprintRequest(run="r1", shared_config=shared_config))


@pytest.mark.parametrize("key", ["trainer.class", "model.planner", "model.preprocessor"])
@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "our.trainers.Other", ".", "a..b", "../x.Trainer"])
def test_a_server_names_no_class_that_the_node_does_not_list(node_file: NodeFile, key: str, name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not allowed here; its node\.yaml lists"):
        assignment_of(node_file, FingerprintRequest(run="r1", shared_config=changed(**{key.replace(".", "__"): name})))


def test_classes_that_the_node_allows_are_accepted(node_file: NodeFile) -> None:
    shared_config = changed(trainer__class="our.trainers.OurTrainer", model__overrides={"UNet_base_num_features": 4})
    assert assignment_of(node_file, FingerprintRequest(run="r1", shared_config=shared_config)).run == "r1"


@pytest.mark.parametrize("allowed", [False, True])
def test_only_the_node_can_allow_digests_of_images(node_file: NodeFile, tmp_path: Path, allowed: bool) -> None:
    write_boxes(tmp_path / "raw")
    limits = node_file.fingerprint.model_copy(update={"find_duplicates": allowed})
    own = node_file.model_copy(update={"fingerprint": limits})
    for asked in (False, True):
        shared_config = changed(fingerprint__find_duplicates=asked)
        assignment = assignment_of(node_file, FingerprintRequest(run="r1", shared_config=shared_config, salt="0" * 64))
        assert settings_of(own, assignment).config.fingerprint.find_duplicates is allowed


@pytest.mark.parametrize(
    ("own", "asked", "precision"),
    [("full", "full", "full"), ("quantised", "full", "quantised"), ("full", "quantised", "quantised")],
)
def test_the_coarser_fingerprint_of_node_and_server_leaves_the_node(
    node_file: NodeFile, tmp_path: Path, own: str, asked: str, precision: str
) -> None:
    write_boxes(tmp_path / "raw")
    node_file = node_file.model_copy(
        update={"fingerprint": node_file.fingerprint.model_copy(update={"precision": own})}
    )
    shared_config = changed(fingerprint__precision=asked)
    assignment = assignment_of(node_file, FingerprintRequest(run="r1", shared_config=shared_config))
    assert settings_of(node_file, assignment).config.fingerprint.precision == precision


SECURE = {"secure_sums": {"colluding": 1, "min_group": 3}}


def with_floor(node_file: NodeFile, **floor: Any) -> NodeFile:
    return node_file.model_copy(update={"privacy": NodePrivacy(**floor)})


@pytest.mark.parametrize(
    ("asked", "floor", "result"),
    [
        ({}, {}, ("cases", 0, None)),
        ({"scores": "mean", "least_steps": 50, "max_epsilon": 8}, {}, ("mean", 50, 8)),
        ({}, {"scores": "mean", "least_steps": 50, "max_epsilon": 8}, ("mean", 50, 8)),
        (
            {"scores": "nothing", "least_steps": 5, "max_epsilon": 2},
            {"scores": "mean", "least_steps": 50, "max_epsilon": 8},
            ("nothing", 50, 2),
        ),
    ],
)
def test_the_stricter_protection_of_node_and_server_holds(
    node_file: NodeFile, tmp_path: Path, asked: dict[str, Any], floor: dict[str, Any], result: tuple[Any, ...]
) -> None:
    write_boxes(tmp_path / "raw")
    assignment = assignment_of(node_file, FingerprintRequest(run="r1", shared_config=changed(privacy=asked)))
    privacy = settings_of(with_floor(node_file, **floor), assignment).config.privacy
    assert (privacy.scores, privacy.least_steps, privacy.max_epsilon) == result


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({}, r"privacy\.secure_sums: required; start the run with privacy=secure"),
        ({"secure_sums": {"min_group": 2}}, r"privacy\.secure_sums\.min_group=2 is less than this node's"),
        ({"secure_sums": {"colluding": 0}}, r"privacy\.secure_sums\.colluding=0 is less .*; start the run with 1"),
    ],
)
def test_a_run_whose_sums_are_not_what_the_node_requires_is_refused_at_its_first_message(
    node_file: NodeFile, tmp_path: Path, asked: dict[str, Any], problem: str
) -> None:
    write_boxes(tmp_path / "raw")
    body = FingerprintRequest(run="r1", shared_config=changed(privacy=asked))
    careful = with_floor(node_file, secure_sums="required")
    assignment = assignment_of(node_file, body)
    with pytest.raises(ConfigError, match=problem):
        assignment_of(careful, body)
    with pytest.raises(ConfigError, match=problem):  # the file was changed in mid-run
        settings_of(careful, assignment)


def test_a_node_that_cannot_compute_as_a_run_needs_says_so(node_file: NodeFile, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    asked = {"case": {"epsilon": 8}}
    assignment = assignment_of(node_file, FingerprintRequest(run="r1", shared_config=changed(privacy=asked)))
    settings = settings_of(node_file, assignment)
    assert settings.ledger == node_file.folder / "privacy.jsonl"
    busy = node_file.model_copy(update={"compute": ComputeConfig(augmentation_workers=4)})
    with pytest.raises(ConfigError, match=r"node\.yaml does not go with the run: compute\.augmentation_workers=4"):
        settings_of(busy, assignment)


def test_a_node_without_a_certificate_takes_part_in_no_secure_sums(node_file: NodeFile, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    make_keys(tmp_path / "keys", ["127.0.0.1"], ["Oslo"])
    oslo = tmp_path / "keys" / "nodes" / "Oslo"
    assignment = assignment_of(node_file, FingerprintRequest(run="r1", shared_config=changed(privacy=SECURE)))
    with pytest.raises(ConfigError, match=r"node_certificate: node\.yaml names none, and secure sums need it"):
        settings_of(node_file, assignment)
    own = {"node_certificate": oslo / "node.crt", "key": oslo / "node.key", "certificate": tmp_path / "keys" / "ca.crt"}
    identity = settings_of(node_file.model_copy(update=own), assignment).identity
    assert identity == NodeIdentity(own["key"], own["node_certificate"], own["certificate"])
    with pytest.raises(ConfigError) as refused:
        settings_of(node_file.model_copy(update=own | {"node_certificate": oslo / "node.pub"}), assignment)
    assert str(tmp_path) not in str(refused.value), "it goes to the server"


@pytest.mark.parametrize(("key", "open_", "strict"), [("geometry", "cases", "sums"), ("intensities", "all", "needed")])
def test_a_server_cannot_make_a_node_tell_more_of_its_cases_than_its_file_allows(
    node_file: NodeFile, tmp_path: Path, key: str, open_: str, strict: str
) -> None:
    write_boxes(tmp_path / "raw")
    for own, asked, holds in ((open_, open_, open_), (strict, open_, strict), (open_, strict, strict)):
        limits = node_file.fingerprint.model_copy(update={key: own})
        shared_config = changed(**{f"fingerprint__{key}": asked})
        assignment = assignment_of(node_file, FingerprintRequest(run="r1", shared_config=shared_config))
        config = settings_of(node_file.model_copy(update={"fingerprint": limits}), assignment).config
        assert getattr(config.fingerprint, key) == holds


def test_a_nodes_own_memory_target_wins(node_file: NodeFile, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    shared_config = changed(gpu_memory={"gb": 8, "per_node": {"Oslo": 100}})
    assignment = assignment_of(node_file, FingerprintRequest(run="r1", shared_config=shared_config))
    assert settings_of(node_file, assignment).config.gpu_memory_of("Oslo") == 8
    own = node_file.model_copy(update={"gpu_memory": node_file.gpu_memory.model_copy(update={"gb": 6})})
    assert settings_of(own, assignment).config.gpu_memory_of("Oslo") == 6


@pytest.mark.parametrize("run", ["../r", "", "a/b", "a" * 65, "r\n", "."])
def test_a_run_id_is_not_a_path(run: str) -> None:
    with pytest.raises(ValueError, match="run"):
        FingerprintRequest(run=run, shared_config=SHARED_CONFIG)


# the worker --------------------------------------------------------------------------------------------


class Asked(Exception):
    """The worker asked its channel for a request."""


class QuietChannel(WorkerChannel):
    """A channel at which no request arrives."""

    def __init__(self) -> None:
        pass

    def receive(self) -> NoReturn:  # type: ignore[override]
        raise Asked


@pytest.mark.parametrize("content", ['{"run": "r1", "shared_config": {"seed": 0}}', '{"run": "r1"', "[]"])
def test_a_worker_waits_for_the_server_where_another_version_stored_its_run(
    node_file: NodeFile, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    stored = node_file.folder / "assignment.json"
    stored.parent.mkdir(parents=True)
    stored.write_text(content)
    worker = DeployedWorker(node_file, QuietChannel(), AuditLog(node_file.folder / AUDIT_LOG, "Oslo"))
    with pytest.raises(Asked):
        worker.serve()
    assert [record.getMessage() for record in caplog.records] == [
        f"{stored} is damaged, or of another version; waiting for the server"
    ]


class Asking(QuietChannel):
    """A channel at which one request arrives; keeps how it was refused."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.failures: list[Failure] = []
        self.asked = False

    def receive(self) -> Any:  # type: ignore[override]
        if self.asked:
            raise Asked
        self.asked = True
        return SimpleNamespace(kind=self.kind, body=b"{}", fail=self.failures.append)


def test_a_worker_whose_data_are_gone_says_so_at_both_ends_and_lives_on(
    node_file: NodeFile, caplog: pytest.LogCaptureFixture
) -> None:
    stored = RunAssignment(run="r1", shared_config=SharedRunConfig.model_validate(SHARED_CONFIG))
    write_atomically(node_file.folder / "assignment.json", stored.model_dump_json(by_alias=True))
    channel = Asking(Kind.TRAIN)
    with pytest.raises(Asked):
        DeployedWorker(node_file, channel, AuditLog(node_file.folder / AUDIT_LOG, "Oslo")).serve()
    here = f"failed: centre Oslo: there is no raw folder {node_file.raw_folder}"
    assert [record.getMessage() for record in caplog.records] == [f"describing the images {here}", f"training {here}"]
    assert [failure.error for failure in channel.failures] == ["data"]
    assert str(node_file.raw_folder) not in channel.failures[0].reason


def test_what_goes_wrong_in_a_worker_is_shown_at_the_nodes_terminal() -> None:
    settings: Any = SimpleNamespace(name="Oslo", same_machine=False, config=None, folder=Path("/work"))
    lines: list[str] = []
    log = logging.getLogger("fednnunet")
    show_warnings(lines.append)
    try:
        for error in (DataError("/data/a.nii.gz is cut off"), OSError(errno.EDQUOT, "quota"), KeyError("spacing")):
            for _ in range(2):
                told = failure_of(error, Kind.PLAN, settings)
        log.info("round 1")
    finally:
        log.removeHandler(log.handlers[-1])
    assert lines == [
        "planning failed: /data/a.nii.gz is cut off",
        "planning failed: its disk is full; make room there",
        "planning failed: internal error in query.plan: KeyError: 'spacing'",
    ]
    assert "spacing" not in told.reason, "the server is on another machine"


def test_a_worker_starts_another_run_only_for_a_complete_description(
    node_file: NodeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # AF_UNIX paths are short
    write_boxes(tmp_path / "raw")
    noted = node_file.folder / "assignment.json"

    def started() -> multiprocessing.process.BaseProcess:
        context = multiprocessing.get_context("forkserver")  # which has imported torch, as for `node up`
        process = context.Process(target=run_deployed_worker, args=(node_file, "s", KEY))
        process.start()
        return process

    def ask(
        process: multiprocessing.process.BaseProcess, run: str | None, shared_config: Any, kind: Kind = Kind.FINGERPRINT
    ):  # type: ignore[no-untyped-def]
        body = (
            FingerprintRequest(run=run, shared_config=shared_config).model_dump_json()
            if kind is Kind.FINGERPRINT
            else "{}"
        )
        while True:
            try:
                return call_worker("s", KEY, kind, body)
            except WorkerUnreachable as error:
                if error.started or not process.is_alive():
                    raise
                process.join(0.1)  # it does not listen yet

    worker = started()
    try:
        for kind in set(Kind) - {Kind.FINGERPRINT}:
            with pytest.raises(WorkerFailure, match="before it described the run"):
                ask(worker, None, None, kind)
        for run, shared_config in (
            (None, None),
            (None, SHARED_CONFIG),
            ("r1", None),
            ("r1", changed(paths={"run": "/"})),
        ):
            with pytest.raises(WorkerFailure, match="the server"):
                ask(worker, run, shared_config)
        assert not noted.exists()
        ask(worker, "r1", SHARED_CONFIG)
        assert json.loads(noted.read_text())["run"] == "r1"

        for run, shared_config in (
            ("r2", None),
            (None, SHARED_CONFIG),
            ("r2", changed(trainer__class="os.system")),
            ("r2", {"seed": 0}),
        ):
            with pytest.raises(WorkerFailure):
                ask(worker, run, shared_config)
        assert worker.is_alive()
        assert json.loads(noted.read_text())["run"] == "r1"
        assert sorted(path.name for path in (node_file.folder / "runs").iterdir()) == ["r1"]

        with pytest.raises(WorkerUnreachable):
            ask(worker, "r2", SHARED_CONFIG)
        worker.join(60)
        assert worker.exitcode == OTHER_RUN
        assert json.loads(noted.read_text())["run"] == "r2"
    finally:
        worker.kill()
        worker.join()
