"""A node joins under its own name, and one node for each key: who is refused is told so, and so is the operator."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fednnunet.deployment.node import instance
from fednnunet.deployment.node.instance import instance_of
from fednnunet.deployment.server import admission
from fednnunet.deployment.server.admission import LEASE_SECONDS, Admission, Sender

pytestmark = pytest.mark.unit

NAMES = {"key of Oslo": "Oslo", "key of Porto": "Porto"}


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(admission, "time", clock)
    return clock


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def admitted(clock: Clock, lines: list[str]) -> Admission:
    return Admission(lambda key: NAMES.get(key, ""), lines.append)


def oslo(place: str, address: str = "10.0.0.1", name: str = "Oslo") -> Sender:
    return Sender("key of Oslo", name, place, address)


def test_a_second_node_with_a_key_is_refused_by_name_on_both_sides(admitted: Admission, lines: list[str]) -> None:
    old, copy = oslo("hospital"), oslo("replacement", "10.0.0.2")
    assert admitted.problem(old) is None
    problem = admitted.problem(copy)
    assert problem is not None
    assert problem.startswith("node Oslo is connected with this key from another machine or work folder, at 10.0.0.1")
    assert admitted.problem(copy), "also when it asks again"
    assert admitted.problem(old) is None, "the first one is not disturbed"
    assert lines == [
        "node Oslo: a second machine or work folder, at 10.0.0.2, uses its key, and is refused while the first one, at "
        "10.0.0.1, is connected; one of them must be stopped"
    ]


def test_a_restarted_node_is_let_in_at_once(admitted: Admission) -> None:
    for _ in range(3):
        assert admitted.problem(oslo("hospital")) is None


def test_another_machine_takes_over_when_the_first_one_has_left_or_is_silent(admitted: Admission, clock: Clock) -> None:
    first, second, third = oslo("a"), oslo("b"), oslo("c")
    assert admitted.problem(first) is None
    admitted.leave(second)
    assert admitted.problem(second), "only the node that is at work can leave"
    admitted.leave(first)
    assert admitted.problem(second) is None
    clock.now += LEASE_SECONDS - 1
    assert admitted.problem(third)
    clock.now += 2
    assert admitted.problem(third) is None
    assert admitted.problem(second)


def test_nodes_with_keys_of_their_own_do_not_meet(admitted: Admission) -> None:
    assert admitted.problem(oslo("a")) is None
    assert admitted.problem(Sender("key of Porto", "Porto", "b", "10.0.0.2")) is None


def test_swapped_keys_are_named_and_block_nobody(admitted: Admission, lines: list[str]) -> None:
    assert admitted.problem(oslo("b", name="Porto")) == "this is the key of node Oslo, not of node Porto"
    assert admitted.problem(oslo("", name="Porto")), "`node check` is told, too"
    assert admitted.problem(oslo("a")) is None
    assert lines == [
        "node Porto, at 10.0.0.1, has the key of node Oslo, and is refused; were two hospitals' keys swapped?"
    ]


def test_a_check_takes_no_place(admitted: Admission) -> None:
    assert admitted.problem(oslo("")) is None
    assert admitted.problem(oslo("a")) is None
    assert admitted.problem(oslo("")) is None


# where a node works ------------------------------------------------------------------------------------


def test_a_work_folder_is_the_same_place_until_it_is_copied(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    place = instance_of(tmp_path / "work")
    (tmp_path / "work" / "node_id").write_text("7")
    assert instance_of(tmp_path / "work") == place
    shutil.copytree(tmp_path / "work", tmp_path / "copy")
    assert instance_of(tmp_path / "copy") != place


def test_the_same_folder_on_another_machine_is_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = instance_of(tmp_path)
    (tmp_path / "boot_id").write_text("d4b1c7a2-0000-4000-8000-000000000000\n")
    monkeypatch.setattr(instance, "BOOT_ID", tmp_path / "boot_id")
    assert instance_of(tmp_path) != here
