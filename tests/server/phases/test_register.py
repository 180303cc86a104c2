"""The first stage waits for nodes that join when they like: the real relay, over a local grid that grows."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from fednnunet.client_app import app
from fednnunet.errors import ConfigError, NodeError
from fednnunet.exchange.channel import Request, WorkerChannel
from fednnunet.exchange.messages import Failure, FingerprintReply
from fednnunet.server.local_grid import LocalGrid
from fednnunet.server.node_client import NodeClient
from fednnunet.server.phases.register import register_nodes
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import Federation, ServerSettings, Session
from fednnunet.server.strategy.no_exchange import NoExchange
from tests.support.recording_observer import RecordingObserver

KEY = b"k" * 32
NAMES = ("Oslo", "Porto", "Lund", "Riga")


class GrowingGrid(LocalGrid):
    """A local grid on which a node more is seen after so many looks; as at a SuperLink, looks come in intervals."""

    looks_until: Sequence[int] = ()
    looks = 0
    together = False
    """Replies are seen when all are there."""

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        return [node for node, until in enumerate(self.looks_until, start=1) if until < self.looks]

    def wait_for_reply(self, message_ids: Iterable[str], timeout: float | None) -> None:
        for ids in [[id_] for id_ in message_ids] if self.together else [list(message_ids)]:
            super().wait_for_reply(ids, timeout)


Answer = Callable[[Request], object]


def introduction(name: str) -> FingerprintReply:
    return FingerprintReply(
        node=name,
        external=False,
        num_training=5,
        configuration="2d",
        channel_names={"0": "MRI"},
        labels={"background": 0, "tumour": 1},
        file_ending=".nii.gz",
    )


def introduce(name: str) -> Answer:
    return lambda request: request.reply(introduction(name).model_dump_json())


def fail(request: Request) -> None:
    request.fail(Failure(reason="node Porto: Dataset202_Porto has no images", error="data"))


def keep_silent(request: Request) -> None:
    """The relay waits for an answer that never comes."""


Describe = Callable[..., Federation]


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()


@pytest.fixture
def asked() -> list[str]:
    """Names of the nodes in the order in which they were asked."""
    return []


@pytest.fixture
def describe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observer: RecordingObserver, asked: list[str]
) -> Iterator[Describe]:
    """Describe the nodes of which one more is seen after each of so many looks."""
    monkeypatch.chdir(tmp_path)
    Path("key").write_bytes(KEY)

    with contextlib.ExitStack() as stack:

        def run(
            looks_until: Sequence[int],
            answers: dict[str, Answer] | None = None,
            together: bool = False,
            **settings: object,
        ) -> Federation:
            configs = {}
            for node, name in enumerate(NAMES[: len(looks_until)], start=1):
                channel = WorkerChannel(name, KEY)
                stack.callback(channel.close)
                answer = (answers or {}).get(name, introduce(name))
                threading.Thread(target=serve, args=(channel, name, answer), daemon=True).start()
                configs[node] = {"socket": name, "key-file": "key"}
            grid = GrowingGrid(app, configs, len(configs))
            grid.looks_until = looks_until
            grid.together = together
            stack.callback(grid.close)
            recorder = RunRecorder(tmp_path, "asym", observers=[observer])
            all_settings = ServerSettings(**{"fingerprint": None, "folds": [0], "timeout": 20, **settings})  # type: ignore[arg-type]
            session = Session(NodeClient(grid, recorder), all_settings, NoExchange(), recorder)
            register_nodes(session)
            return session.federation

        held: list[Request] = []  # of nodes that keep silent: the relay sees no end of the connection

        def serve(channel: WorkerChannel, name: str, answer: Answer) -> None:
            with contextlib.suppress(ConnectionError):  # the test is over
                while (request := channel.receive()) is not None:
                    asked.append(name)
                    held.append(request)
                    answer(request)

        yield run
        for request in held:
            with contextlib.suppress(OSError):  # its own thread closes it at this moment
                request.close()


def names(federation: Federation) -> list[str]:
    return [federation.name(node) for node in federation.nodes]


def test_who_comes_late_is_in(describe: Describe, observer: RecordingObserver, asked: list[str]) -> None:
    federation = describe([0, 2, 2, 4], expected_nodes=4, timeout=None)
    assert names(federation) == sorted(NAMES)
    assert sorted(asked) == sorted(NAMES), "each is asked once"
    assert asked[0] == "Oslo", "a node that is there does not wait for the others"
    assert observer.messages == [
        "3 of 4 nodes are not connected yet; the federation waits for them",
        "1 of 4 nodes are not connected yet; the federation waits for them",
        "nodes of the run: Lund, Oslo, Porto, Riga",
    ]


@pytest.mark.parametrize("nodes", [None, 4])
def test_nothing_is_said_where_all_are_there(
    describe: Describe, observer: RecordingObserver, nodes: int | None
) -> None:
    assert names(describe([0, 0, 0, 0], expected_nodes=nodes, timeout=None)) == sorted(NAMES)
    assert observer.messages == []


def test_without_a_number_those_that_are_there_are_the_federation(describe: Describe, asked: list[str]) -> None:
    assert names(describe([0, 0, 1])) == ["Oslo", "Porto"]
    assert sorted(asked) == ["Oslo", "Porto"]


def test_without_a_number_none_are_an_error(describe: Describe) -> None:
    with pytest.raises(ConfigError, match=r"no node is connected; .*federation.expected_nodes"):
        describe([1])


def test_no_more_nodes_than_wanted_are_in(describe: Describe) -> None:
    assert names(describe([0, 0, 0, 0], expected_nodes=3, together=True)) == ["Lund", "Oslo", "Porto"]


def test_after_the_time_enough_are_enough(describe: Describe, observer: RecordingObserver) -> None:
    federation = describe([0, 2, 10**6], {"Oslo": keep_silent}, expected_nodes=4, min_nodes=1, timeout=2)
    assert names(federation) == ["Porto"]
    assert observer.messages[-1] == (
        "nodes of the run: Porto; 3 of 4 nodes are missing, 1 of them connected without an answer"
    )


@pytest.mark.parametrize(
    ("least", "to_lower"), [(None, "federation.expected_nodes"), (2, "federation.min_nodes")], ids=["all", "least"]
)
def test_after_the_time_too_few_are_an_error(describe: Describe, least: int | None, to_lower: str) -> None:
    said = (
        "after 2 s: nodes of the run: Oslo; 2 of 3 nodes are missing; start the others and see their logs, "
        f"or raise federation.reply_timeout_s, or lower {to_lower}"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        describe([0, 10**6, 10**6], expected_nodes=3, min_nodes=least, timeout=2)


def test_no_node_at_all_is_an_error(describe: Describe) -> None:
    with pytest.raises(ConfigError, match=r"after 0.5 s: nodes of the run: none; 2 of 2 nodes are missing; "):
        describe([10**6], expected_nodes=2, timeout=0.5)


def test_another_takes_the_place_of_one_that_fails(describe: Describe, observer: RecordingObserver) -> None:
    federation = describe([0, 0, 0, 6], {"Porto": fail}, expected_nodes=3, min_nodes=2)
    assert names(federation) == ["Lund", "Oslo", "Riga"]
    assert observer.messages == [
        "node Porto: Dataset202_Porto has no images; it is left out",
        "1 of 3 nodes are not connected yet; the federation waits for them",
        "nodes of the run: Lund, Oslo, Riga",
    ]


@pytest.mark.parametrize("nodes", [None, 3])
def test_a_failure_ends_the_run_where_all_are_needed(describe: Describe, nodes: int | None) -> None:
    with pytest.raises(NodeError, match=r"^node Porto: Dataset202_Porto has no images$"):
        describe([0, 0, 0], {"Porto": fail}, expected_nodes=nodes)


@pytest.mark.parametrize("called", ["Lund", "Oslo"])
def test_a_node_has_the_name_that_its_key_was_registered_under(
    describe: Describe, monkeypatch: pytest.MonkeyPatch, called: str
) -> None:
    monkeypatch.setattr(GrowingGrid, "names", lambda _: {1: "Oslo", 2: "Porto"}, raising=False)
    with pytest.raises(NodeError, match=f"^node Porto: calls itself {called}; its key was registered as Porto$"):
        describe([0, 0], {"Porto": introduce(called)}, expected_nodes=2)
