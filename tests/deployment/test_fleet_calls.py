"""Calls of a node to its server."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fednnunet.config.node_file import NodeFile
from fednnunet.deployment.node.fleet_calls import SLICE_BYTES, FleetCalls
from fednnunet.deployment.node.flower_internals import http_client
from fednnunet.exchange.packing import CHUNK_BYTES


class Line(httpx.BaseTransport):
    """Takes requests write by write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)
        self.writes = list(request.stream)
        assert request.headers["content-length"] == str(sum(len(write) for write in self.writes))
        assert "transfer-encoding" not in request.headers, "the server takes announced lengths alone"
        return httpx.Response(200, content=b"taken")


@pytest.mark.unit
@pytest.mark.parametrize("size", [0, 1, SLICE_BYTES, SLICE_BYTES + 1, CHUNK_BYTES + 100])
def test_a_request_leaves_in_writes_that_a_slow_line_takes_in_time(tmp_path: Path, size: int) -> None:
    node_file = NodeFile(name="Oslo", data=1, server="127.0.0.1:1", folder=tmp_path, insecure=True)
    calls = FleetCalls(node_file, ec.generate_private_key(ec.SECP384R1()), lambda _: None)
    line, content = Line(), bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    client = http_client(calls.client)
    client._transport, client._mounts = line, {}
    assert client.post("http://127.0.0.1:1/", content=content).content == b"taken"
    assert b"".join(line.writes) == content
    assert max((len(write) for write in line.writes), default=0) <= SLICE_BYTES
