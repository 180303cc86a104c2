"""Flower's app passes requests through as few of its layers as they need."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import HTTPException
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TASK_TOKEN_HEADER,
)
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from sqlalchemy import Engine, event

from fednnunet.deployment.server.admission import Admission
from fednnunet.deployment.server.flower_superlink import (
    FRESH_SECONDS,
    OF_CONTROL,
    DirectCalls,
    NodeRegister,
    superlink_app,
)
from fednnunet.deployment.server.gateway import public_endpoint
from fednnunet.deployment.server.signatures import Signatures
from fednnunet.deployment.server.uploads import Uploads

Answer: TypeAlias = tuple[int, str, bytes]


@pytest.mark.unit
def test_only_requests_to_the_control_api_pass_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []

    def watch(layer: type[Any]) -> None:
        def of(self: Any, request: Any, call_next: Any) -> Any:
            passed.append(layer.__name__)
            return call_next(request)

        monkeypatch.setattr(layer, "dispatch", of)

    for layer in OF_CONTROL:
        watch(layer)

    async def layers_of(path: str) -> tuple[set[str], int]:
        passed.clear()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answer = await client.post(path, headers={"content-type": "application/protobuf"})
        return set(passed), answer.status_code

    app = superlink_app(tmp_path / "state.db", auth=True)
    every = {layer.__name__ for layer in OF_CONTROL}
    assert asyncio.run(layers_of("/v1/control/list-nodes"))[0] == every
    assert asyncio.run(layers_of("/v1/control/%6cist-nodes"))[0] == every
    assert asyncio.run(layers_of("/v1/control/nothing"))[0] == every
    assert asyncio.run(layers_of("/v1/runtime/push-messages"))[0] == set()
    assert asyncio.run(layers_of("/v1/fleet/push-messages")) == (set(), 401)  # nodes are still told apart by their keys


# calls that are handled without FastAPI ----------------------------------------------------------------


class Caller:
    """Sends requests to Flower's app, with its own routes and with ours, as a registered node."""

    def __init__(self, database: Path) -> None:
        self.app = superlink_app(database, auth=True)
        self.routes = self.app.build_middleware_stack()  # Flower's own
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.public_key = public_key_to_bytes(self.key.public_key())
        self.register = NodeRegister(self.app)
        self.register.add("Oslo", self.public_key)

    @property
    def node(self) -> Node:
        return Node(node_id=self.register.node_id(self.public_key) or 0)

    def headers(self, **others: str) -> dict[str, str]:
        timestamp = now().isoformat()
        return {
            "content-type": "application/protobuf",
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public_key).decode(),
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(self.key, timestamp.encode())).decode(),
            TIMESTAMP_HEADER: timestamp,
        } | others

    def both(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[Answer, Answer]:
        """Answers of our calls and of Flower's routes: status, type and body."""

        async def post(app: Any) -> Answer:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                answer = await client.post(path, content=body, headers=headers)
            return answer.status_code, answer.headers.get("content-type", ""), answer.content

        async def flowers(scope: Any, receive: Any, send: Any) -> None:
            await self.routes({**scope, "app": self.app}, receive, send)

        return asyncio.run(post(self.app)), asyncio.run(post(flowers))


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Caller:
    return Caller(tmp_path_factory.mktemp("state") / "state.db")


FLEET = ["/v1/fleet/pull-messages", "/v1/fleet/pull-object", "/v1/fleet/push-object"]
RUNTIME = ["/v1/runtime/get-nodes", "/v1/runtime/pull-messages", "/v1/runtime/pull-object", "/v1/runtime/push-object"]


@pytest.mark.unit
def test_a_call_of_a_node_is_answered_as_by_flowers_routes(caller: Caller) -> None:
    assert caller.both(FLEET[0], PullMessagesRequest(node=caller.node).SerializeToString(), caller.headers()) == (
        (200, "application/protobuf", b""),
        (200, "application/protobuf", b""),
    )


@pytest.mark.unit
@pytest.mark.parametrize("path", FLEET)
def test_nobody_calls_in_the_place_of_a_node(caller: Caller, path: str) -> None:
    of_another = PullMessagesRequest(node=Node(node_id=caller.node.node_id + 1)).SerializeToString()
    own = PullMessagesRequest(node=caller.node).SerializeToString()
    forged = caller.headers(**{FLEET_HTTP_SIGNATURE_HEADER: b64encode(b"forged").decode()})
    late = caller.headers(**{TIMESTAMP_HEADER: (now() - timedelta(hours=1)).isoformat()})
    unsigned = {"content-type": "application/protobuf"}
    for body, headers in ((of_another, caller.headers()), (own, forged), (own, late), (own, unsigned)):
        ours, flowers = caller.both(path, body, headers)
        assert ours == flowers
        assert ours[0] == 401


@pytest.mark.unit
@pytest.mark.parametrize("path", RUNTIME)
def test_nobody_calls_in_the_place_of_the_server_app(caller: Caller, path: str) -> None:
    for headers in (
        caller.headers(),
        caller.headers(**{TASK_TOKEN_HEADER: ""}),
        caller.headers(**{TASK_TOKEN_HEADER: "guessed"}),
    ):
        ours, flowers = caller.both(path, b"", headers)
        assert ours == flowers
        assert ours[0] in (401, 403)


@pytest.mark.unit
@pytest.mark.parametrize("path", FLEET + RUNTIME)
def test_what_cannot_be_read_is_answered_as_by_flowers_routes(caller: Caller, path: str) -> None:
    own = PullMessagesRequest(node=caller.node).SerializeToString()
    for body, headers in (
        (b"\xff\xff", caller.headers()),
        (own, caller.headers(**{"content-type": "application/json"})),
        (own, {name: value for name, value in caller.headers().items() if name != "content-type"}),
    ):
        ours, flowers = caller.both(path, body, headers)
        assert ours == flowers
        assert ours[0] in (400, 415)


@pytest.mark.unit
@pytest.mark.parametrize("path", FLEET + RUNTIME)
def test_other_versions_are_answered_as_by_flowers_routes(caller: Caller, path: str) -> None:
    older = caller.headers(
        **{"flwr-package-name": "flwr", "flwr-package-version": "0.1.0", "flwr-component-name": "old"}
    )
    ours, flowers = caller.both(path, PullMessagesRequest(node=caller.node).SerializeToString(), older)
    assert ours == flowers
    assert (ours[0] == 412) is (path in RUNTIME)


@pytest.mark.unit
def test_the_calls_that_are_handled_are_those_that_are_compared(caller: Caller) -> None:
    assert sorted(DirectCalls(caller.app).paths) == FLEET + RUNTIME


# nodes that are known ----------------------------------------------------------------------------------


@pytest.mark.unit
def test_a_node_is_forgotten_at_once_when_it_is_unregistered_here(tmp_path: Path) -> None:
    register = NodeRegister(superlink_app(tmp_path / "state.db", auth=True))
    register.add("Oslo", b"key")
    key = b64encode(b"key").decode()
    node_id = register.node_id(b"key")
    assert node_id is not None
    assert register.name(key) == "Oslo"
    register.restore(node_id, "Bergen")
    assert register.name(key) == "Bergen"
    register.remove(node_id)
    assert register.node_id(b"key") is None
    assert register.name(key) == ""
    register.restore(node_id, "Oslo")
    assert register.node_id(b"key") == node_id


@pytest.mark.unit
def test_a_node_that_is_unregistered_elsewhere_is_forgotten_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = superlink_app(tmp_path / "state.db", auth=True)
    ours, others = NodeRegister(app), NodeRegister(app)
    ours.add("Oslo", b"key")
    node_id = ours.node_id(b"key")
    assert node_id is not None
    others.remove(node_id)
    later = time.monotonic() + FRESH_SECONDS + 0.01
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert ours.node_id(b"key") is None


# the database ------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_asking_for_a_status_writes_once_in_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = superlink_app(tmp_path / "state.db", auth=True).state.linkstate_factory.state()
    clock = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    written: list[str] = []

    def note(*arguments: Any) -> None:
        if not arguments[2].startswith("SELECT"):
            written.append(arguments[2])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        counts = []
        for seconds in (FRESH_SECONDS, 0, 0.9 * FRESH_SECONDS, 0.2 * FRESH_SECONDS):
            clock[0] += seconds
            written.clear()
            assert state.get_run_status(set()) == {}
            counts.append(len(written))
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert counts == [2, 0, 0, 2]


# a full disk -------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_a_full_disk_that_the_gateway_meets_is_named_to_the_node(caller: Caller) -> None:
    def full(_: bytes) -> int:
        raise HTTPException(507, "the disk of the server's state is full")

    admission = Admission(caller.register.name, lambda _: None)
    endpoint = public_endpoint(caller.app, Counter(), admission, Uploads(lambda _: None), Signatures(full))

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(endpoint), base_url="http://server") as client:  # type: ignore[arg-type]
            return await client.post(FLEET[0], headers=caller.headers())

    answer = asyncio.run(post())
    assert (answer.status_code, answer.json()) == (507, {"detail": "the disk of the server's state is full"})
    assert int(answer.headers["content-length"]) == len(answer.content)
