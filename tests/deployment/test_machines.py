"""Server and hospitals on machines of their own, over networks that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deployment.conftest import OPTIONS
from tests.support.deployed_federation import CENTRES, Federation, check_result, running, train_locally
from tests.support.network import Link, Trouble, machines

pytestmark = pytest.mark.xdist_group("deployed")
PORT = 9092


def test_four_machines_reach_the_result_of_one(raw: Path, undisturbed: Path, tmp_path: Path) -> None:
    with machines(len(CENTRES)) as network:
        inside = {name: node.command() for name, node in zip(CENTRES, network.nodes, strict=True)}
        federation = Federation(
            tmp_path,
            raw,
            address=f"{network.server.address}:{PORT}",
            inside={"server": network.server.command(), **inside},
        )
        with running(federation):
            federation.start_train(tmp_path / "run", *OPTIONS)
            federation.finish_train()
    check_result(tmp_path / "run", undisturbed)


@pytest.mark.nightly
def test_a_slow_and_unreliable_network_changes_nothing(raw: Path, tmp_path: Path) -> None:
    options = ("strategy=asym", "trainer.epochs=4")
    federation = Federation(tmp_path, raw, nodes=("Oslo", "Porto"))
    host, port = federation.address.split(":")
    trouble = Trouble(seed=1, every=1.0, stall=0.3, resets=0.3)
    with (
        Link(host, int(port), delay=0.02, bandwidth=500_000, trouble=trouble) as lossy,
        Link(host, int(port)) as cable,
    ):
        federation.start_server()
        federation.start_node("Oslo", server=lossy.address)
        federation.start_node("Porto", server=cable.address)
        run = tmp_path / "run"
        try:
            federation.start_train(run, *options)
            for cut_at in (1, 2):
                federation.wait_for(lambda at=cut_at: federation.status().get("round", 0) >= at, f"round {cut_at}")
                cable.cut()
                federation.wait_for(
                    lambda: "does not answer" in federation.output("Porto"), "Porto's note that the server is away"
                )
                cable.restore()
            federation.finish_train()
        finally:
            federation.end()
    train_locally(raw, tmp_path / "here", *options, nodes=("Oslo", "Porto"))
    check_result(run, tmp_path / "here")
    assert federation.output("Porto").count("answers again") >= 1
