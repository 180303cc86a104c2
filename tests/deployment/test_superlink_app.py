"""Flower's app passes requests through as few of its layers as they need."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from fednnunet.deployment.server import flower_superlink
from fednnunet.deployment.server.flower_superlink import OF_CONTROL, superlink_app


@pytest.mark.unit
def test_only_requests_to_the_control_api_pass_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []

    def watch(layer: type[Any]) -> None:
        def of(self: Any, request: Any, call_next: Any) -> Any:
            passed.append(layer.__name__)
            return call_next(request)

        monkeypatch.setattr(layer, "dispatch", of)

    for layer in (*OF_CONTROL, flower_superlink.FleetEventLogMiddleware):
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
    assert asyncio.run(layers_of("/v1/runtime/get-nodes"))[0] == set()
    assert asyncio.run(layers_of("/v1/fleet/pull-messages")) == (set(), 401)  # nodes are still told apart by their keys
