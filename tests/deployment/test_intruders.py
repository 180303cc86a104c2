"""Who is no node of the federation gets no connection, and who is one speaks for itself alone.

Against the real ``fednnunet server up``, with the node's real client.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message, RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.message_pb2 import PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supernode import node_auth_http_interceptor
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fednnunet.config.node_file import NodeFile, read_node_file
from fednnunet.deployment.keys import make_keys
from fednnunet.deployment.node.connection import NodeConnection
from fednnunet.deployment.node.fleet_calls import Refused
from fednnunet.deployment.node.flower_internals import http_client
from fednnunet.deployment.node.message_transfer import receive_message, send_reply
from fednnunet.deployment.server import connection_limits, gateway, operator_client, signatures
from fednnunet.deployment.server.operator_client import POLLS_PATH, TOKEN_FILE, TOKEN_HEADER, Operator
from fednnunet.deployment.server.superlink_grid import SuperLinkGrid
from fednnunet.errors import ConfigError
from fednnunet.exchange.flower_internals import act_as, relabel
from tests.conftest import write_boxes
from tests.support.deployed_federation import Federation, free_port, waiting_server
from tests.support.public_endpoint import flower_server, register

PULL = "/v1/fleet/pull-messages"
PUSH_OBJECT = "/v1/fleet/push-object"
NEEDED = {f"/v1/fleet/{name}" for name in ("activate-node", "deactivate-node", "send-node-heartbeat")} | {
    f"/v1/fleet/{name}"
    for name in ("pull-messages", "push-messages", "pull-object", "push-object", "confirm-message-received")
}
PROTOBUF = {"content-type": "application/protobuf"}
MEBIBYTE = 2**20
WriteNodeFile = Callable[..., NodeFile]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server, and keys of two nodes; no node runs."""
    folder = tmp_path_factory.mktemp("federation")
    (folder / "server").mkdir(mode=0o755)  # as a careless operator has made it
    with waiting_server(folder, "Oslo", "Porto") as federation:
        yield federation


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def connection_of(federation: Federation, name: str, **changes: Any) -> NodeConnection:
    return NodeConnection(read_node_file(federation.write_node_file(name, **changes)), {}, lambda _: None)


def activate(connection: NodeConnection) -> Node:
    """Join as a node does, in one attempt."""
    asked = ActivateNodeRequest(public_key=connection.calls.public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    connection.node = Node(node_id=connection.calls.client.ActivateNode(asked).node_id)
    return connection.node


@pytest.fixture
def oslo(federation: Federation) -> Iterator[NodeConnection]:
    connection = connection_of(federation, "Oslo")
    activate(connection)
    yield connection
    connection.leave()


@pytest.fixture
def porto(federation: Federation) -> Iterator[NodeConnection]:
    connection = connection_of(federation, "Porto")
    activate(connection)
    yield connection
    connection.leave()


def signed(keys: Path, name: str) -> dict[str, str]:
    """Headers of a genuine request of a node, that was not sent."""
    key = load_ssh_private_key((keys / "nodes" / name / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    request = httpx.Request("POST", "https://nowhere")

    class Context:
        pass

    context = Context()
    context.request = request  # type: ignore[attr-defined]
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(context, lambda _: httpx.Response(200))  # type: ignore[arg-type]
    return {name: value for name, value in request.headers.items() if name.startswith("flwr-")} | PROTOBUF


def knock(
    federation: Federation, path: str, headers: Mapping[str, str] | None = None, body: Any = b"", method: str = "POST"
) -> int:
    """Status of one request at the public endpoint, with the path as it is written."""
    host, _, port = federation.address.rpartition(":")
    context = ssl.create_default_context(cafile=str(federation.keys / "ca.crt"))
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(body)
        return connection.getresponse().status
    finally:
        connection.close()


def memory(federation: Federation) -> float:
    """Of the SuperLink, in MiB."""
    process = federation.part("server", "superlink")
    assert process is not None
    return process.memory_info().rss / MEBIBYTE


# certificates ------------------------------------------------------------------------------------------


def test_without_the_authority_there_is_no_connection(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{federation.address}{gateway.VERSION_PATH}")
    with pytest.raises(ConfigError, match="certificate is missing"):
        connection_of(federation, "Oslo", certificate=None)
    make_keys(tmp_path, ["127.0.0.1"], [])
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        activate(connection_of(federation, "Oslo", certificate=str(tmp_path / "ca.crt")))


def test_a_certificate_for_another_name_is_none(federation: Federation) -> None:
    _, _, port = federation.address.rpartition(":")
    with pytest.raises(httpx.ConnectError, match="not valid for 'localhost'"):
        activate(connection_of(federation, "Oslo", server=f"localhost:{port}"))


def test_a_server_whose_certificate_has_expired_gets_no_node(federation: Federation, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["127.0.0.1"], ["Oslo"], days=0)
    with flower_server(tmp_path / "keys", tmp_path / "state") as (port, known):
        register(known, tmp_path / "keys" / "nodes" / "Oslo" / "node.pub")
        trusted = str(tmp_path / "keys" / "ca.crt")
        with pytest.raises(httpx.ConnectError, match="certificate has expired"):
            activate(connection_of(federation, "Oslo", server=f"127.0.0.1:{port}", certificate=trusted))


def test_plain_http_and_garbage_get_no_answer(federation: Federation, oslo: NodeConnection) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{federation.address}{gateway.VERSION_PATH}")
    host, _, port = federation.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(os.urandom(4096))
        assert not _answered(connection)
    context = ssl.create_default_context(cafile=str(federation.keys / "ca.crt"))
    with context.wrap_socket(socket.create_connection((host, int(port)), timeout=30), server_hostname=host) as inside:
        inside.sendall(b"\x00garbage\r\n\r\n")
        assert inside.recv(100).startswith(b"HTTP/1.1 400 ")
    assert not oslo.calls.client.PullMessages(PullMessagesRequest(node=oslo.node)).messages_list, "others are served"


def _answered(connection: socket.socket) -> bool:
    """Whether the other end sent anything but TLS's word that it gives up."""
    try:
        return connection.recv(100)[:1] not in (b"", b"\x15")
    except ConnectionResetError:
        return False


# keys --------------------------------------------------------------------------------------------------


def test_a_key_that_is_not_registered_gets_nothing(
    federation: Federation, oslo: NodeConnection, tmp_path: Path
) -> None:
    make_keys(tmp_path, ["127.0.0.1"], ["Mallory"])
    stranger = connection_of(federation, "Oslo", key=str(tmp_path / "nodes" / "Mallory" / "node.key"))
    with pytest.raises(httpx.HTTPStatusError) as refused:
        activate(stranger)
    assert refused.value.response.status_code == httpx.codes.PRECONDITION_FAILED
    stranger.node = oslo.node  # who it would be
    for ask in (
        lambda: stranger.calls.call(stranger.calls.client.PullMessages, PullMessagesRequest(node=oslo.node)),
        lambda: stranger.calls.call(
            stranger.calls.client.PullObject, PullObjectRequest(node=oslo.node, object_id="0" * 64)
        ),
    ):
        with pytest.raises(Refused, match=r"401: .*the key is not registered"):
            ask()
    assert not stranger.send_heartbeat()


def test_strangers_do_not_fill_the_log(federation: Federation, tmp_path: Path) -> None:
    log = federation.state / "server.log"
    make_keys(tmp_path, ["127.0.0.1"], ["Mallory"])
    stranger = connection_of(federation, "Oslo", key=str(tmp_path / "nodes" / "Mallory" / "node.key"))

    def knock_often() -> int:
        before = log.stat().st_size
        for _ in range(100):
            with pytest.raises(httpx.HTTPStatusError):
                activate(stranger)
        return log.stat().st_size - before

    knock_often()
    assert "/v1/fleet/activate-node from 127.0.0.1: the key is not registered" in log.read_text()
    assert knock_often() < 1000


def test_a_node_that_was_removed_gets_nothing_until_its_key_is_back(federation: Federation, tmp_path: Path) -> None:
    make_keys(federation.keys, ["127.0.0.1"], ["Riga"])
    federation.wait_for(lambda: "node Riga may join" in federation.output("server"), "registration")
    riga = connection_of(federation, "Riga", data=1)
    activate(riga)
    assert not riga.calls.client.PullMessages(PullMessagesRequest(node=riga.node)).messages_list
    before = riga.node.node_id
    public = federation.keys / "nodes" / "Riga" / "node.pub"
    public.rename(tmp_path / "node.pub")
    federation.wait_for(lambda: "node Riga may no longer join" in federation.output("server"), "removal")
    assert "Riga" not in [node.name for node in Operator(federation.state).nodes()]
    with pytest.raises(Refused, match="the key is not registered"):
        riga.calls.call(riga.calls.client.PullMessages, PullMessagesRequest(node=riga.node))
    assert not riga.send_heartbeat()
    with pytest.raises(httpx.HTTPStatusError):
        activate(riga)
    (tmp_path / "node.pub").rename(public)
    federation.wait_for(lambda: federation.output("server").count("node Riga may join") == 2, "registration")
    assert activate(riga).node_id == before, "the node that it was"
    riga.leave()


def test_a_copy_of_a_work_folder_gets_nothing_while_its_node_is_connected(
    federation: Federation, oslo: NodeConnection
) -> None:
    copy = connection_of(federation, "Oslo", folder="copy")
    copy.node = oslo.node  # stands in the folder
    copy.leave()  # as a node does that starts: nothing happens to the other one
    for ask in (
        lambda: copy.calls.call(copy.calls.client.ActivateNode, ActivateNodeRequest(public_key=copy.calls.public_key)),
        lambda: copy.calls.call(copy.calls.client.PullMessages, PullMessagesRequest(node=oslo.node)),
    ):
        with pytest.raises(Refused, match=r"409: node Oslo is connected with this key from another machine"):
            ask()
    assert "node Oslo: a second machine or work folder, at 127.0.0.1, uses its key" in federation.output("server")
    assert oslo.send_heartbeat(), "the first one is not disturbed"
    oslo.leave()
    activate(copy)
    copy.leave()


# replayed requests -------------------------------------------------------------------------------------


def test_a_recorded_request_is_taken_once(federation: Federation, oslo: NodeConnection, porto: NodeConnection) -> None:
    headers = signed(federation.keys, "Oslo")
    body = PullMessagesRequest(node=oslo.node).SerializeToString()
    assert knock(federation, PULL, headers, body) == 200
    assert knock(federation, PULL, headers, body) == 401
    # The signature covers the time alone: neither another body nor another path makes the request a new one.
    other = PullMessagesRequest(node=porto.node).SerializeToString()
    assert knock(federation, PULL, headers, other) == 401
    assert knock(federation, "/v1/fleet/pull-object", headers, body) == 401


def test_a_signature_speaks_for_its_own_node(
    federation: Federation, oslo: NodeConnection, porto: NodeConnection
) -> None:
    body = PullMessagesRequest(node=porto.node).SerializeToString()
    assert knock(federation, PULL, signed(federation.keys, "Oslo"), body) == 401
    with_key_of_porto = signed(federation.keys, "Oslo") | {
        name: value for name, value in signed(federation.keys, "Porto").items() if name == "flwr-public-key"
    }
    assert knock(federation, PULL, with_key_of_porto, body) == 401


@pytest.mark.parametrize("shift", [-306, 6])
def test_a_signature_of_another_time_is_rejected(
    federation: Federation, oslo: NodeConnection, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    with monkeypatch.context() as clock:
        clock.setattr(node_auth_http_interceptor, "now", lambda: now() + timedelta(seconds=shift))
        headers = signed(federation.keys, "Oslo")
    body = PullMessagesRequest(node=oslo.node).SerializeToString()
    assert knock(federation, PULL, headers, body) == 401


def test_a_signature_is_remembered_as_long_as_it_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    public = public_key_to_bytes(key.public_key())
    checked = signatures.Signatures({public: 7}.get)
    clock = 1000.0
    monkeypatch.setattr(signatures.time, "monotonic", lambda: clock)

    def headers() -> list[tuple[bytes, bytes]]:
        request = httpx.Request("POST", "https://nowhere")
        context = type("Context", (), {"request": request})
        NodeAuthHttpInterceptor(key, key.public_key()).intercept(context, lambda _: httpx.Response(200))
        return [(name.lower(), value) for name, value in request.headers.raw]

    first, second = headers(), headers()
    assert checked.problem(first) is None
    assert checked.problem(first) == "the request was sent before"
    assert checked.problem(_mirrored(first)) == "the request was sent before"
    assert checked.problem(second) is None, "each request is signed anew"
    assert checked.problem([*first, *second]) == "the request is not signed", "two signatures are none"
    clock += signatures.REMEMBERED_SECONDS + 1
    assert checked.problem(headers()) is None
    assert len(checked._seen) == 1, "old ones are forgotten"


def _mirrored(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The other signature (r, n - s) that is valid where (r, s) is."""
    from base64 import b64decode, b64encode

    order = int(
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        16,
    )
    name = signatures.FLEET_HTTP_SIGNATURE_HEADER.encode()
    r, s = decode_dss_signature(b64decode(dict(headers)[name]))
    return [*((n, v) for n, v in headers if n != name), (name, b64encode(encode_dss_signature(r, order - s)))]


# one node for another ----------------------------------------------------------------------------------


@pytest.fixture
def grid(federation: Federation) -> Iterator[SuperLinkGrid]:
    grid = SuperLinkGrid(federation.state, lambda _: None)
    yield grid
    grid.close()


def as_node(node_id: int, run_id: int) -> None:
    """Messages that are made from now on are this node's: Flower keeps it in the process."""
    act_as(node_id, run_id)


def test_a_node_replies_only_to_its_own_messages(
    grid: SuperLinkGrid, oslo: NodeConnection, porto: NodeConnection
) -> None:
    message = Message(RecordDict(), porto.node.node_id, "query.fingerprint")
    (id_,) = grid.push_messages([message])
    asked = porto.calls.client.PullMessages(PullMessagesRequest(node=porto.node))
    received = receive_message(
        porto.calls,
        porto.node,
        asked.messages_list[0].metadata.run_id,
        asked.messages_list[0].metadata.message_id,
        asked.message_object_trees[0],
    )

    as_node(porto.node.node_id, grid.run_id)
    with pytest.raises(Refused, match=r"403: .*may only send its own messages"):
        send_reply(oslo.calls, oslo.node, Message(RecordDict(), reply_to=received), 0.0)  # calls itself Porto
    as_node(oslo.node.node_id, grid.run_id)
    forged = Message(RecordDict(), reply_to=received)
    relabel(forged, oslo.node.node_id, received.metadata.message_id)
    send_reply(oslo.calls, oslo.node, forged, 0.0)  # Flower answers, and keeps nothing
    assert grid.pull_messages([id_]) == []

    as_node(porto.node.node_id, grid.run_id)
    send_reply(porto.calls, porto.node, Message(RecordDict(), reply_to=received), 0.0)
    (reply,) = grid.pull_messages([id_])
    assert reply.metadata.src_node_id == porto.node.node_id


def test_a_node_sends_no_other_node_an_instruction(
    grid: SuperLinkGrid, oslo: NodeConnection, porto: NodeConnection
) -> None:
    as_node(SUPERLINK_NODE_ID, grid.run_id)
    with pytest.raises(Refused, match=r"403: .*may only send its own messages"):
        send_reply(oslo.calls, oslo.node, Message(RecordDict(), porto.node.node_id, "train"), 0.0)
    as_node(oslo.node.node_id, grid.run_id)
    send_reply(
        oslo.calls, oslo.node, Message(RecordDict(), porto.node.node_id, "train"), 0.0
    )  # Flower answers, and keeps nothing
    assert not porto.calls.client.PullMessages(PullMessagesRequest(node=porto.node)).messages_list


# endpoints ---------------------------------------------------------------------------------------------


def test_the_public_endpoint_serves_only_what_a_node_needs(federation: Federation, oslo: NodeConnection) -> None:
    flower = {path for _, path in PROTOBUF_REQUEST_TYPES}
    assert flower > NEEDED, "Flower's paths have changed"
    others = (flower - NEEDED) | {"/", "/docs", "/openapi.json", "/health", "/v1/runtime/ready", POLLS_PATH}
    for path in sorted(others):
        assert knock(federation, path, signed(federation.keys, "Oslo")) == 404, path
        assert knock(federation, path, method="GET") == 404, path


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages%0a",
        "/v1/fleet/pull-messages%3F",
        "//v1/fleet/pull-messages",
        "//v1/control/list-nodes",
        "/v1//control/list-nodes",
        "/V1/FLEET/PULL-MESSAGES",
        "/v1/fleet/%",
    ],
)
def test_no_spelling_of_a_path_bypasses_the_endpoint(federation: Federation, path: str) -> None:
    assert knock(federation, path, signed(federation.keys, "Oslo")) in (400, 404)


def test_no_host_and_no_forwarding_header_bypasses_the_endpoint(federation: Federation, porto: NodeConnection) -> None:
    body = PullObjectRequest(node=porto.node, object_id="0" * 64).SerializeToString()
    # Flower looks at the whole URL, of which the host is a part; the same request is one of its Runtime API, too.
    for host in ("x/v1/runtime/pull-object?", "x/v1/runtime/pull-object#", "127.0.0.1"):
        headers = PROTOBUF | {"host": host, "x-forwarded-for": "127.0.0.1", "x-forwarded-prefix": "/v1/runtime"}
        assert knock(federation, "/v1/fleet/pull-object", headers, body) in (400, 401)
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x"}
    assert knock(federation, "/v1/control/list-nodes", upgrade, method="GET") == 404


def test_the_operator_endpoint_needs_the_token_and_is_on_this_machine(federation: Federation) -> None:
    host, _, port = Operator(federation.state).server.control.partition(":")
    url = f"http://{host}:{port}"
    token = (federation.state / TOKEN_FILE).read_text()
    for headers in (
        {},
        {TOKEN_HEADER: token},
        {TOKEN_HEADER: f"Bearer {'0' * len(token)}"},
        {TOKEN_HEADER: f"Bearer {token.upper()}"},
        {TOKEN_HEADER: f"bearer {token}"},
        {"authorization": f"Bearer {token}"},
    ):
        for path in (POLLS_PATH, "/v1/control/list-nodes", PULL, "/docs", "/openapi.json", "/"):
            assert httpx.post(url + path, headers=headers).status_code == 401, (path, headers)
    twice = httpx.Headers([(TOKEN_HEADER, f"Bearer {token}"), (TOKEN_HEADER, "Bearer x")])
    assert httpx.get(url + POLLS_PATH, headers=twice).status_code == 401
    assert httpx.get(url + POLLS_PATH, headers={TOKEN_HEADER: f"Bearer {token}"}).status_code == 200
    listening = [
        c.laddr.ip
        for c in psutil.Process(federation.processes["server"].pid).net_connections()
        if c.status == psutil.CONN_LISTEN and c.laddr.port == int(port)
    ]
    assert listening == ["127.0.0.1"]


def test_no_proxy_sees_the_operators_token(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "intranet.example.org")  # where both are there the small one counts
        monkeypatch.setenv("NO_PROXY", "other.example.org")
        assert Operator(federation.state).nodes()
        assert os.environ["no_proxy"] == "intranet.example.org,127.0.0.1"
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_only_their_owner_can_read_the_servers_files(federation: Federation) -> None:
    written = [path for path in federation.state.rglob("*") if path.is_file()]
    assert {"state.db", "server.json", TOKEN_FILE, "server.log"} <= {path.name for path in written}
    assert {path.name for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077} == set()


def test_only_their_owner_can_read_a_nodes_files(federation: Federation) -> None:
    write_boxes(federation.raw, "Dataset201_Oslo")
    try:
        federation.start_node("Oslo")
        federation.wait_for(lambda: "connected to" in federation.output("Oslo"), "connection")
        work = federation.work_folder("Oslo")
        written = [work, *work.rglob("*")]
        assert {"connection.log", "node_id"} <= {path.name for path in written}
        assert {path.name for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077} == set()
    finally:
        node = federation.processes.pop("Oslo")
        node.terminate()
        node.wait(60)


# floods ------------------------------------------------------------------------------------------------


def test_no_body_is_read_from_strangers(federation: Federation) -> None:
    before = memory(federation)
    announced = {"content-length": str(60 * MEBIBYTE)} | PROTOBUF
    for headers in (announced, announced | {"flwr-public-key": "x", "flwr-signature": "x", "flwr-timestamp": "x"}):
        assert knock(federation, PUSH_OBJECT, headers) == 401, "before the body"
        for _ in range(10):
            flood(federation, PUSH_OBJECT, headers, 30)
    assert memory(federation) - before < 10


def test_requests_to_each_path_are_limited_in_size(federation: Federation, oslo: NodeConnection) -> None:
    too_long = {"content-length": str(gateway.LIMITS[PUSH_OBJECT] + 1)}
    assert knock(federation, PUSH_OBJECT, signed(federation.keys, "Oslo") | too_long) == 413
    small = {"content-length": str(gateway.MAX_SMALL_BYTES + 1)}
    assert knock(federation, PULL, signed(federation.keys, "Oslo") | small) == 413
    flood(federation, PUSH_OBJECT, signed(federation.keys, "Oslo"), 100)
    before = memory(federation)
    for _ in range(5):
        sent = flood(federation, PUSH_OBJECT, signed(federation.keys, "Oslo"), 100)
        assert sent < 90, "it was cut off"
    assert memory(federation) - before < 100


def test_headers_are_limited_in_size(federation: Federation) -> None:
    before = memory(federation)
    for _ in range(5):
        assert flood(federation, PULL, {}, 50, inside_headers=True) < 40, "it was cut off"
    assert memory(federation) - before < 10


def flood(
    federation: Federation, path: str, headers: Mapping[str, str], mebibytes: int, inside_headers: bool = False
) -> int:
    """Send a request without an end, or the length that ``headers`` tell; MiB that went before it was cut off."""
    host, _, port = federation.address.rpartition(":")
    context = ssl.create_default_context(cafile=str(federation.keys / "ca.crt"))
    text = f"POST {path} HTTP/1.1\r\nhost: x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    block = b"x: " + b"y" * 1000 + b"\r\n" if inside_headers else b"z" * 1024
    if not inside_headers:
        text += "\r\n" if "content-length" in headers else "transfer-encoding: chunked\r\n\r\n"
    chunk = block * 1024
    if not inside_headers and "content-length" not in headers:
        chunk = f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"
    sent = 0
    with context.wrap_socket(socket.create_connection((host, int(port)), timeout=30), server_hostname=host) as flow:
        try:
            flow.sendall(text.encode())
            for sent in range(1, mebibytes + 1):  # noqa: B007
                flow.sendall(chunk)
        except OSError:
            pass
    return sent


@pytest.fixture
def short_timeouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """Address and keys of a server that waits for half a second."""
    monkeypatch.setattr(connection_limits, "IDLE_TIMEOUT_S", 0.25)
    monkeypatch.setattr(connection_limits, "HANDSHAKE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(connection_limits, "MAX_CONNECTIONS_PER_HOST", 3)
    monkeypatch.setattr(gateway, "REQUEST_SECONDS", 0.5)
    make_keys(tmp_path / "keys", ["127.0.0.1"], ["Oslo"])
    with flower_server(tmp_path / "keys", tmp_path / "state") as (port, known):
        register(known, tmp_path / "keys" / "nodes" / "Oslo" / "node.pub")
        yield f"127.0.0.1:{port}", tmp_path / "keys"


def connected(address: str, keys: Path) -> ssl.SSLSocket:
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=30), server_hostname=host)


@pytest.mark.parametrize("started", [b"", b"POST /v1/fl", b"POST / HTTP/1.1\r\nhost: x\r\nx: "])
def test_an_idle_connection_is_closed(short_timeouts: tuple[str, Path], started: bytes) -> None:
    with connected(*short_timeouts) as idle:
        idle.sendall(started)
        assert not _answered(idle)


def test_a_request_that_never_ends_is_rejected(short_timeouts: tuple[str, Path]) -> None:
    with connected(*short_timeouts) as slow:
        slow.sendall(b"POST /v1/fleet/activate-node HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n")
        headers = signed(short_timeouts[1], "Oslo")
        slow.sendall("".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode() + b"\r\n12345")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_connections_per_host_are_limited_before_their_handshake(
    short_timeouts: tuple[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    host, _, port = short_timeouts[0].rpartition(":")
    held = [connected(*short_timeouts) for _ in range(2)]
    silent = [socket.create_connection((host, int(port)), timeout=30)]
    with pytest.raises(OSError, match=r"reset|EOF"):
        connected(*short_timeouts)
    assert "a connection from 127.0.0.1 is refused: there are too many" in caplog.text
    for one in held + silent:
        one.close()


def test_a_silent_connection_is_closed_and_its_place_is_free(
    short_timeouts: tuple[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    host, _, port = short_timeouts[0].rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=30) for _ in range(3)]
    for one in silent:
        assert not _answered(one)
        one.close()
    with connected(*short_timeouts) as genuine:
        genuine.sendall(f"GET {gateway.VERSION_PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert genuine.recv(100).startswith(b"HTTP/1.1 200 ")
    assert {record.exc_info for record in caplog.records} == {None}, "no tracebacks"


# plain HTTP --------------------------------------------------------------------------------------------


def test_plain_http_is_for_this_machine_only_and_warns(tmp_path: Path) -> None:
    here = Federation(tmp_path, tmp_path / "raw", nodes=("Oslo",))
    beyond = f"0.0.0.0:{free_port()}"
    for options, problem in (
        (["--address", beyond, "--insecure"], "--insecure is for this machine"),
        (["--address", here.address], "name the folder that `fednnunet keys` made"),
    ):
        here._start("refused", ["server", "up", "--state", str(here.state), *options])
        assert here.processes.pop("refused").wait(60) == 2
        assert problem in " ".join(here.output("refused").split())
    try:
        here._start("server", ["server", "up", "--state", str(here.state), "--address", here.address, "--insecure"])
        here.wait_for(lambda: (here.state / "server.json").is_file(), "the server")
        assert "warning: plain HTTP and no node keys" in here.wait_for(lambda: here.output("server"), "its output")
    finally:
        here.end()


# what the server sends to a node ------------------------------------------------------------------------


def test_the_app_that_a_run_brings_is_neither_fetched_nor_run(
    federation: Federation, oslo: NodeConnection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, trace = tmp_path / "flower", tmp_path / "executed"
    monkeypatch.setenv("FLWR_HOME", str(home))
    genuine = operator_client.build_fab_from_files

    def with_code(files: Mapping[str, bytes]) -> Any:
        return genuine({**files, "fednnunet_app.py": f"open({str(trace)!r}, 'w').close()\napp = None\n".encode()})

    monkeypatch.setattr(operator_client, "build_fab_from_files", with_code)
    (tmp_path / "key").write_bytes(b"k" * 32)
    oslo.node_config = {"socket": str(tmp_path / "no.worker"), "key-file": str(tmp_path / "key")}
    asked: list[str] = []
    http_client(oslo.calls.client).event_hooks["request"] = [lambda request: asked.append(request.url.path)]
    grid = SuperLinkGrid(federation.state, lambda _: None)
    try:
        (id_,) = grid.push_messages([Message(RecordDict(), oslo.node.node_id, "query.fingerprint")])
        assert oslo.serve_one()
        (reply,) = grid.pull_messages([id_])
    finally:
        grid.close()
    assert "the node worker cannot be reached" in reply.error.reason, "the installed app has answered"
    assert set(asked) <= NEEDED
    assert not trace.exists()
    assert not (home / "apps").exists()
    with pytest.raises(ModuleNotFoundError):
        __import__("fednnunet_app")


def test_invalid_messages_are_dropped_and_the_connection_lives_on(
    grid: SuperLinkGrid, oslo: NodeConnection, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("query.files", "train.everything", "system"):
        as_node(SUPERLINK_NODE_ID, grid.run_id)
        grid.push_messages([Message(RecordDict(), oslo.node.node_id, kind)])
        assert oslo.serve_one()
    assert caplog.text.count("is dropped") == 3
    assert not oslo.serve_one(), "and asks for the next"
