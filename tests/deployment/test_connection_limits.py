"""What strangers cost the server: places for connections, and lines of its log, of which each cause has a few."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import SimpleNamespace
from unittest.mock import Mock

import h11
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from fednnunet.deployment.server import connection_limits, log_limit
from fednnunet.deployment.server.connection_limits import LimitedConnection, OpenConnections, host_of
from fednnunet.deployment.server.log_limit import LINES, MAX_CAUSES, PERIOD_S, LogLimit
from fednnunet.deployment.server.supervisor import listen
from tests.support.deployed_federation import free_port

pytestmark = pytest.mark.unit


def test_connections_are_counted_by_host_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "MAX_CONNECTIONS_PER_HOST", 2)
    monkeypatch.setattr(connection_limits, "MAX_CONNECTIONS", 5)
    places = OpenConnections()
    assert [places.admit("stranger") for _ in range(4)] == [True, True, False, False]
    assert places.admit("Oslo"), "others are let in"
    places.release("stranger")
    assert places.admit("stranger")
    assert [places.admit(f"host {number}") for number in range(4)] == [True, True, False, False], "five in all"


def test_answers_do_not_wait_for_the_receipt_of_those_before() -> None:
    """TCP_NODELAY: without it, each of a message's objects takes 40 ms more."""

    async def is_set(listener: socket.socket) -> int:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        connection, _ = await loop.sock_accept(listener)
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, connection)
        accepted = transport.get_extra_info("socket")
        try:
            return accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        finally:
            transport.close()

    port = free_port()
    with listen(f"127.0.0.1:{port}") as listener, socket.create_connection(("127.0.0.1", port)):
        assert asyncio.run(is_set(listener))


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_host_is_an_address_or_the_network_of_many(address: str, host: str) -> None:
    assert host_of(address) == host


def test_a_request_that_breaks_off_ends_its_connection_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever uvicorn makes of it."""

    def fail(_: H11Protocol) -> None:
        raise h11.LocalProtocolError("can't handle event type Response when role=SERVER and state=SEND_BODY")

    monkeypatch.setattr(H11Protocol, "handle_events", fail)
    connection = LimitedConnection.__new__(LimitedConnection)
    connection.client, connection.transport = ("192.0.2.7", 1), Mock()
    connection.handle_events()
    connection.transport.abort.assert_called_once()
    (record,) = caplog.records
    assert record.getMessage().startswith("a request from 192.0.2.7 cannot be read: ")
    assert record.exc_info is None


# the log -----------------------------------------------------------------------------------------------


class Log:
    """A logger with a limit, and what it has written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(log_limit, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        handler.addFilter(LogLimit())
        self.logger = logging.Logger("limited")
        self.logger.addHandler(handler)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(monkeypatch)


def test_each_cause_has_a_few_lines_an_hour_and_the_others_are_counted(log: Log) -> None:
    for number in range(1000):
        log.logger.warning("no TLS with %s", f"192.0.2.{number}")
    log.logger.warning("the disk is full")
    *first, last, other = log.lines
    assert first == [f"no TLS with 192.0.2.{number}" for number in range(LINES - 1)]
    assert last.endswith("(more lines like this are left out for 60 min)")
    assert other == "the disk is full", "another cause is not affected"
    log.now += PERIOD_S
    log.logger.warning("no TLS with %s", "192.0.2.1")
    assert log.lines[-1] == f"no TLS with 192.0.2.1 ({1000 - LINES} lines like this were left out since the last one)"


def test_causes_are_told_apart_by_what_was_given_or_by_the_text(log: Log) -> None:
    for _ in range(LINES):
        for cause in ("the key is not registered", "the request is not signed"):
            log.logger.warning("rejected %s: %s", "path", cause, extra={"cause": cause})
        for text in ("node Oslo may join", "node Porto may join"):
            log.logger.warning("%s", text)
    assert len(log.lines) == 4 * LINES


def test_lines_that_are_all_different_are_limited_as_well(log: Log) -> None:
    for number in range(MAX_CAUSES + 1000):
        log.logger.warning(f"something {number}")
    assert len(log.lines) == MAX_CAUSES + LINES
