"""A federation that may go on without some nodes: who is away, who is slow, and who is in again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.support.deployed_federation import Federation, running, write_centres

pytestmark = pytest.mark.nightly
ROUNDS = 12
OPTIONS = ("strategy=asym", f"trainer.epochs={ROUNDS}", "federation.min_nodes=1")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    write_centres(folder / "raw")
    with running(Federation(folder, folder / "raw", nodes=("Oslo", "Porto"))) as federation:
        for node in federation.nodes:  # a run may wait for them for a few seconds only
            federation.wait_for(lambda node=node: "connected to" in federation.output(node), f"{node}'s connection")
        yield federation


def nodes_of_rounds(run: Path) -> list[set[str]]:
    """Who was in each finished round."""
    rounds = run / "rounds.csv"
    if not rounds.is_file():
        return []
    table = pd.read_csv(rounds, on_bad_lines="skip")
    return [set(nodes) for _, nodes in table.groupby("round").node]


def wait_for_round_of(federation: Federation, run: Path, nodes: set[str]) -> int:
    """Until the last finished round had just these nodes; how many rounds are finished then."""

    def there() -> int:
        assert federation.processes["train"].poll() is None, federation.everything()
        rounds = nodes_of_rounds(run)
        return len(rounds) if rounds and rounds[-1] == nodes else 0

    return federation.wait_for(there, f"a round of {nodes}")


def test_nodes_that_differ_from_the_configuration_end_the_run_by_name(federation: Federation, tmp_path: Path) -> None:
    federation.start_train(tmp_path / "run", *OPTIONS, "dataset.centres=[{name: Oslo}, {name: Porto, external: true}]")
    assert (
        "error: node Porto: is a training node by its own configuration, and external by dataset.centres"
        in federation.fail_train()
    )
    assert federation.status()["stage"] == "stopped"


def test_a_node_that_leaves_and_comes_back_joins_the_next_round(federation: Federation, tmp_path: Path) -> None:
    run = tmp_path / "run"
    federation.start_train(run, *OPTIONS)
    wait_for_round_of(federation, run, {"Oslo", "Porto"})
    federation.stop("Porto")
    wait_for_round_of(federation, run, {"Oslo"})
    with frozen(federation, "Oslo"):  # so that rounds are left
        federation.start_node("Porto")
        federation.wait_for(lambda: federation.output("Porto").count("connected to") == 2, "Porto's connection")
    assert wait_for_round_of(federation, run, {"Oslo", "Porto"}) < ROUNDS
    output = federation.finish_train()
    assert "node Porto is away; the federation goes on without it" in output
    assert "node Porto is back" in output
    rounds = nodes_of_rounds(run)
    assert len(rounds) == ROUNDS
    assert rounds[-1] == {"Oslo", "Porto"}
    assert set(pd.read_csv(run / "cases.csv").node) == {"Oslo", "Porto"}


def test_a_round_closes_at_its_deadline_and_a_late_node_joins_the_next_one(
    federation: Federation, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    federation.start_train(run, *OPTIONS, "federation.reply_timeout_s=8")
    wait_for_round_of(federation, run, {"Oslo", "Porto"})
    with frozen(federation, "Oslo"):  # the node whose reply is asked for first
        wait_for_round_of(federation, run, {"Porto"})
    assert wait_for_round_of(federation, run, {"Oslo", "Porto"}) < ROUNDS
    output = federation.finish_train()
    assert "node Oslo: round" in output
    assert "no reply within 8.0 s; the federation goes on without it" in output
    assert len(nodes_of_rounds(run)) == ROUNDS


@contextlib.contextmanager
def frozen(federation: Federation, node: str) -> Iterator[None]:
    """The node's worker makes no step."""
    worker = federation.part(node, "worker")
    assert worker is not None
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()
