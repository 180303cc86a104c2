"""A node whose clock is wrong: told so in words, in again when it is right."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from flwr.supercore.date import now
from flwr.supernode import node_auth_http_interceptor

from fednnunet.config.node_file import read_node_file
from fednnunet.deployment.node import connection
from fednnunet.deployment.node.connection import NodeConnection
from fednnunet.deployment.node.preflight import server_checks
from tests.support.deployed_federation import Federation, waiting_server

OFF = timedelta(minutes=10)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server that knows the node Oslo."""
    with waiting_server(tmp_path_factory.mktemp("federation"), "Oslo") as federation:
        yield federation


@pytest.mark.parametrize(("off", "said"), [(-OFF, "behind the server's"), (OFF, "ahead of the server's")])
def test_a_wrong_clock_is_named_and_the_node_joins_once_it_is_right(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, off: timedelta, said: str
) -> None:
    clock = Clock(off)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(node_auth_http_interceptor, "now", clock.now)
    monkeypatch.setattr(server_checks, "time", clock)
    monkeypatch.setattr(connection, "RETRY_SECONDS", (0.1,))
    told: list[str] = []
    node = NodeConnection(read_node_file(federation.write_node_file("Oslo")), {}, told.append)
    joining = threading.Thread(target=node._join, daemon=True)
    joining.start()
    federation.wait_for(lambda: told, "the reason")
    found = re.search(rf"this machine's clock is (\d+) s {said}", told[0])
    assert found, told
    assert int(found[1]) == pytest.approx(OFF.total_seconds(), abs=10)
    assert "timedatectl" in told[0]
    assert joining.is_alive()
    clock.off = timedelta()
    joining.join(60)
    assert told[-1] == f"connected to {federation.address}"
    assert len(told) == 2
    node.leave()


class Clock:
    """The machine's clock, for the node's side of this process."""

    def __init__(self, off: timedelta) -> None:
        self.off = off

    def now(self) -> datetime:
        return now() + self.off

    def time(self) -> float:
        return time.time() + self.off.total_seconds()
