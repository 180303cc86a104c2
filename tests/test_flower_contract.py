"""What this project uses of Flower beyond its public API; a failure names what a release of Flower changed."""

from __future__ import annotations

import ast
import base64
import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.grid import HttpGrid

import fednnunet
from fednnunet.config.node_file import NodeFile
from fednnunet.deployment.node import flower_internals as node
from fednnunet.deployment.server import flower_internals as server
from fednnunet.deployment.server import flower_superlink as server_app
from fednnunet.deployment.server import gateway
from fednnunet.deployment.server.flower_superlink import NodeRegister, superlink_app
from fednnunet.exchange import flower_internals as messages

PACKAGE = Path(fednnunet.__file__).parent
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
INTERNAL = {
    "exchange/flower_internals.py",
    "deployment/node/flower_internals.py",
    "deployment/server/flower_internals.py",
    "deployment/server/flower_superlink.py",
}


def imports_of(file: Path) -> set[str]:
    """Modules of Flower that a file imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.split(".")[0] == "flwr"}


def test_internals_of_flower_are_used_in_four_modules_only() -> None:
    users = {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py") if not imports_of(file) <= PUBLIC}
    assert users == INTERNAL


# messages ----------------------------------------------------------------------------------------------


@pytest.fixture
def message() -> Message:
    messages.act_as(node_id=0, run_id=7)
    return Message(RecordDict({"config": ConfigRecord({"body": "{}"})}), 5, "train")


def test_the_sender_of_a_message_is_the_process_identity(message: Message) -> None:
    assert message.metadata.run_id == 7
    assert message.metadata.src_node_id == 0
    messages.act_as(node_id=5, run_id=7)
    assert Message(RecordDict(), reply_to=message).metadata.src_node_id == 5


def test_a_message_keeps_its_id_and_labels_in_private_attributes_of_its_metadata(message: Message) -> None:
    messages.set_message_id(message, "one")
    assert message.metadata.message_id == "one"
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "one"
    messages.relabel(reply, 9, "two")
    assert (reply.metadata.src_node_id, reply.metadata.reply_to_message_id) == (9, "two")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("CLIENT_APP_RAISED_EXCEPTION", 2),
        ("MESSAGE_UNAVAILABLE", 3),
        ("REPLY_MESSAGE_UNAVAILABLE", 4),
        ("NODE_UNAVAILABLE", 5),
    ],
)
def test_error_codes(name: str, number: int) -> None:
    assert getattr(messages.ErrorCode, name) == number


def test_a_message_is_taken_apart_into_objects_and_put_together_again(message: Message) -> None:
    messages.set_message_id(message, message.object_id)
    tree, objects = messages.get_object_tree(message), messages.get_all_nested_objects(message)
    ids = [part.object_id for part in node.iterate_object_tree(tree)]
    assert set(ids) == set(objects)
    contents = {object_id: part.deflate() for object_id, part in objects.items()}
    copy = messages.inflate_object_from_contents(message.object_id, contents)
    assert copy.content.config_records["config"] == message.content.config_records["config"]
    head = messages.message_to_proto(messages.remove_content_from_message(message))
    assert head.metadata.message_id == message.object_id
    assert head.content.ByteSize() == 0


def test_an_array_in_pieces_is_to_flower_what_its_bytes_in_one_place_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 4)
    for pieces in ([b"abc", b"", memoryview(b"defghijk")], [b"aaaa", b"aaaabbbb"], [b"abcd"], []):
        joined = b"".join(pieces)
        ours = messages.ArrayInPieces("bytes", pieces, 4)
        flowers = Array("uint8", (len(joined),), "bytes", joined)
        assert ours.data == joined
        contents = [
            {id_: part.deflate() for id_, part in messages.get_all_nested_objects(array).items()}
            for array in (ours, flowers)
        ]
        assert list(contents[0].items()) == list(contents[1].items())
        assert ours.object_id == flowers.object_id
        if joined:
            assert messages.inflate_object_from_contents(ours.object_id, contents[0]).data == joined


# the node's side ---------------------------------------------------------------------------------------

KEY = ec.generate_private_key(ec.SECP384R1())
NODE_FILE = NodeFile(name="Oslo", data=1, server="127.0.0.1:1", folder=Path("work"), insecure=True)


def test_the_fleet_client_sends_by_an_httpx_client_that_can_be_limited() -> None:
    client = node.http_client(node.fleet_client(NODE_FILE, KEY))
    assert isinstance(client, httpx.Client)
    assert {"follow_redirects", "event_hooks"} <= set(dir(client))


class Context:
    """What an interceptor of Flower's gets."""

    def __init__(self) -> None:
        self.request = httpx.Request("POST", "https://nowhere")


def test_a_node_signs_the_time_in_three_headers() -> None:
    context: Any = Context()
    node.NodeAuthHttpInterceptor(KEY, KEY.public_key()).intercept(context, lambda _: httpx.Response(200))
    headers = context.request.headers
    time = headers[server.TIMESTAMP_HEADER]
    key = server.bytes_to_public_key(base64.b64decode(headers[server.FLEET_HTTP_PUBLIC_KEY_HEADER]))
    signature = base64.b64decode(headers[server.FLEET_HTTP_SIGNATURE_HEADER])
    assert server.verify_signature(key, time.encode("ascii"), signature)


@pytest.mark.parametrize("name", sorted(gateway.LIMITS))
def test_the_gateway_lets_a_node_call(name: str) -> None:
    paths = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(404, content=b"")

    client = node.fleet_client(NODE_FILE, KEY)
    client._client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://127.0.0.1:1")
    method = "".join(word.capitalize() for word in name.rpartition("/")[2].split("-"))
    request = next(iter(inspect.signature(getattr(client, method), eval_str=True).parameters.values())).annotation()
    with pytest.raises(httpx.HTTPStatusError):
        getattr(client, method)(request)
    assert paths == [name]


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_objects_are_pulled_and_pushed_by_functions() -> None:
    assert {"object_ids", "pull_object_fn", "initial_backoff"} <= parameters(node.pull_objects)
    assert {"max_tries_per_object", "initial_backoff"} <= parameters(server.pull_objects)
    assert {"objects", "push_object_fn"} <= parameters(node.push_objects)
    assert list(inspect.signature(node.make_pull_object_fn_protobuf).parameters)[1:3] == ["node", "run_id"]
    assert list(inspect.signature(node.make_push_object_fn_protobuf).parameters)[1:3] == ["node", "run_id"]


# the server's side -------------------------------------------------------------------------------------


def test_the_superlink_has_no_settings_that_are_not_decided() -> None:
    assert {each.name for each in fields(SuperLinkLifespanConfig)} == {
        *("control_address", "health_server_address", "host", "port", "insecure", "certificates"),
        *("superexec_auth_secret", "authn_plugin", "event_log_plugin", "fleet_event_log_plugin", "enable_event_log"),
        *("artifact_provider", "enable_supernode_auth", "fleet_api_type", "fleet_api_address", "simulation"),
        *("ssl_ca_certfile", "ssl_certfile", "ssl_keyfile", "database", "isolation", "runtime_dependency_install"),
    }


def test_the_superlink_finds_the_node_of_a_key(tmp_path: Path) -> None:
    assert NodeRegister(superlink_app(tmp_path / "state.db", auth=True)).node_id(b"no key") is None


def test_the_superlink_keeps_objects_where_it_is_told(tmp_path: Path) -> None:
    app = superlink_app(tmp_path / "state.db", auth=True)
    state = app.state.linkstate_factory.state()
    store = server_app.SqlObjectStore(str(tmp_path / "other.db"), verify=False)
    assert state.object_store is not store
    server_app.use_object_store(app, store)
    assert state.object_store is store
    assert app.state.linkstate_factory.objectstore_factory.store() is store
    columns = {column.name for column in server_app.StoredObject.__table__.columns}
    assert columns == {"object_id", "content", "is_available", "ref_count"}


def test_the_grid_sends_by_a_client_that_can_be_replaced() -> None:
    assert "_client" in vars(HttpGrid("127.0.0.1:1", insecure=True, token="token"))


def test_the_retries_of_calls() -> None:
    wanted = {"wait_gen_factory", "recoverable_exceptions", "max_tries", "max_time"}
    assert wanted | {"on_success", "on_backoff", "should_giveup"} <= parameters(server.RetryInvoker)
    assert "max_delay" in parameters(server.exponential)


def test_a_node_that_is_not_registered_is_told_so() -> None:
    error = server.FlowerError(server.ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, "unknown")
    public = server.API_ERROR_MAP[error.code]
    sent = server.FlowerError.from_json(json.dumps(error.to_json(public.public_message)))
    assert sent is not None
    assert (public.http_status_code, sent.code) == (412, server.ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED)


def test_what_the_server_knows_of_a_node() -> None:
    names = {field.name for field in server.NodeInfo.DESCRIPTOR.fields}
    assert names >= {
        *("node_id", "name", "public_key", "status", "online_until", "last_activated_at", "heartbeat_interval")
    }


def test_tolerances_that_the_documentation_names() -> None:
    assert (server.SYSTEM_TIME_TOLERANCE, server.TIMESTAMP_TOLERANCE) == (5, 300)
    assert node.HEARTBEAT_DEFAULT_INTERVAL > 0
    assert server.HEARTBEAT_PATIENCE > 0
