"""What an operator has to fix, named and waited for: disks without room, a certificate at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fednnunet.deployment.keys import make_keys
from tests.support.deployed_federation import Federation, check_result, reached, running, train_locally, write_centres
from tests.support.disks import disk_at, filled

pytestmark = pytest.mark.nightly
NODES = ("Oslo", "Porto")
OPTIONS = ("strategy=fedadam", "trainer.epochs=5")  # it writes to the run's folder in every round
SECOND = 1 / (24 * 3600)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Two nodes; Oslo's work, its audit log, the server's state and the run of the first test have small disks."""
    folder = tmp_path_factory.mktemp("federation")
    write_centres(folder / "raw")
    federation = Federation(folder, folder / "raw", nodes=NODES)
    with contextlib.ExitStack() as stack:
        for disk in (federation.work_folder("Oslo"), folder / "audit", federation.state, folder / "run"):
            stack.enter_context(disk_at(disk, 16))
        (federation.work_folder("Oslo") / "audit.jsonl").symlink_to(folder / "audit" / "audit.jsonl")
        yield stack.enter_context(running(federation))


@pytest.fixture(scope="module")
def undisturbed(federation: Federation) -> Path:
    """Folder of the same training on the local grid."""
    run = federation.folder / "here"
    train_locally(federation.raw, run, *OPTIONS, nodes=NODES)
    return run


def wait_for_words(federation: Federation, by: str, words: str) -> None:
    federation.wait_for(lambda: words in federation.output(by), f"{words!r} of {by}")


def wait_for_stage(federation: Federation, run: Path, stage: str) -> None:
    federation.wait_for(lambda: reached(federation, run, stage), f"stage {stage}")


def test_a_full_disk_is_named_and_the_run_continues_once_there_is_space(
    federation: Federation, undisturbed: Path
) -> None:
    folder, run, work = federation.folder, federation.folder / "run", federation.work_folder("Oslo")
    federation.start_train(run, *OPTIONS)
    wait_for_stage(federation, run, "plan")
    with filled(federation.state):
        wait_for_words(federation, "train", str(federation.state))
    wait_for_stage(federation, run, "round 1")
    with filled(work, leave=20_000):  # less than a checkpoint
        wait_for_words(federation, "train", "node Oslo: its disk is full")
        assert not list(work.rglob("*.partial"))
    wait_for_stage(federation, run, "round 2")
    with filled(folder / "audit"):
        wait_for_words(federation, "train", "the log of what leaves it cannot be written")
    wait_for_stage(federation, run, "round 3")
    with filled(run):
        wait_for_words(federation, "train", f"the disk of {run} is full")
        assert not list(run.rglob("*.partial"))
    federation.finish_train()
    check_result(run, undisturbed)


def test_an_expired_certificate_is_named_on_both_sides_and_replaced_without_a_restart(
    federation: Federation, undisturbed: Path
) -> None:
    run = federation.folder / "certificate"
    federation.start_train(run, *OPTIONS)
    wait_for_stage(federation, run, "round 1")
    renew_certificate(federation, days=2 * SECOND)
    wait_for_words(federation, "server", "has expired")
    federation.kill("server", "superlink")  # what is open is not looked at again
    wait_for_words(federation, "Porto", "certificate has expired")
    assert "tell the server's operator" in federation.output("Porto")
    renew_certificate(federation, days=20)
    wait_for_words(federation, "Porto", "answers again")
    wait_for_words(federation, "server", "in 19 days")
    federation.finish_train()
    check_result(run, undisturbed)


def renew_certificate(federation: Federation, days: float) -> None:
    """As docs/how-to/deployment.md says."""

    def renewals() -> int:
        return federation.output("server").count("a new server certificate is in use")

    before = renewals()
    for name in ("server.crt", "server.key"):
        (federation.keys / name).unlink()
    make_keys(federation.keys, [federation.address.rpartition(":")[0]], (), days)  # type: ignore[arg-type]
    federation.wait_for(lambda: renewals() > before, "the new certificate")
