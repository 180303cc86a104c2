"""The ledger of a node: what adds up, for which cases, and what it notices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fednnunet.errors import ConfigError
from fednnunet.privacy.accounting import Releases, composed_epsilon, epsilon_of
from fednnunet.privacy.ledger import Ledger, Unit

MADE = Releases(noise=2.0, rate=0.25, number=50)
DELTA = 1e-3


def spend(
    ledger: Ledger, cases: str = "abcd", made: Releases = MADE, run: str = "r", unit: Unit = "case", number: int = 1
) -> float:
    return ledger.spend(unit, list(cases), DELTA, made, run, 0, number)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "node" / "privacy.jsonl")


def test_rounds_add_up_over_runs(ledger: Ledger) -> None:
    assert ledger.epsilon("case", ["a"], DELTA) == 0.0
    assert spend(ledger) == pytest.approx(epsilon_of(2.0, 0.25, 50, DELTA))
    assert spend(ledger, number=2) == pytest.approx(epsilon_of(2.0, 0.25, 100, DELTA))
    other = Releases(4.0, 0.5, 10)
    expected = composed_epsilon([Releases(2.0, 0.25, 100), other], DELTA)
    assert spend(ledger, made=other, run="another") == pytest.approx(expected)
    again = Ledger(ledger.path)  # of a worker that has just started
    assert again.epsilon("case", list("abcd"), DELTA) == pytest.approx(expected)
    assert again.epsilon("case", list("abcd"), DELTA, without_run="r") == pytest.approx(epsilon_of(4.0, 0.5, 10, DELTA))
    assert [entry.epsilon for entry in again.read()][-1] == pytest.approx(expected)
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_a_case_costs_in_every_set_of_cases_that_has_it(ledger: Ledger) -> None:
    spend(ledger, "abcd")  # one fold
    spend(ledger, "abce")  # another
    once, twice = epsilon_of(2.0, 0.25, 50, DELTA), epsilon_of(2.0, 0.25, 100, DELTA)
    assert ledger.epsilon("case", ["d"], DELTA) == ledger.epsilon("case", ["e"], DELTA) == pytest.approx(once)
    assert ledger.epsilon("case", ["a", "d"], DELTA) == pytest.approx(twice)
    assert ledger.epsilon("case", ["new"], DELTA) == 0.0
    # Data that were extended are not new: their old cases have cost before.
    assert spend(ledger, "abcdenew") == pytest.approx(epsilon_of(2.0, 0.25, 150, DELTA))


def test_cases_are_listed_once(ledger: Ledger) -> None:
    for number, cases in enumerate(("ab", "ba", "abc"), start=1):
        spend(ledger, cases, number=number)
    assert [entry.members for entry in ledger.read()] == [["a", "b"], None, ["a", "b", "c"]]


def test_what_hid_the_node_costs_its_cases_and_not_the_other_way_round(ledger: Ledger) -> None:
    """A case may change an update by twice the clipping norm. The first round of either kind lists the cases."""
    made, half = Releases(10.0, 1.0, 1), Releases(5.0, 1.0, 1)
    spend(ledger, "ab", made, unit="node")
    assert spend(ledger, "ab") == pytest.approx(composed_epsilon([half, MADE], DELTA))
    assert spend(ledger, "cd", made, unit="node") == pytest.approx(epsilon_of(10.0, 1.0, 2, DELTA))
    assert ledger.epsilon("case", ["a"], DELTA) == pytest.approx(composed_epsilon([half, MADE], DELTA))
    assert ledger.epsilon("case", ["c"], DELTA) == pytest.approx(epsilon_of(5.0, 1.0, 1, DELTA))


def test_a_torn_line_is_no_round_and_the_chain_goes_on(ledger: Ledger) -> None:
    spend(ledger)
    with ledger.path.open("ab") as file:
        file.write(b'{"time": "20')
    assert len(ledger.read()) == 1
    assert spend(ledger, number=2) == pytest.approx(epsilon_of(2.0, 0.25, 100, DELTA))
    assert [entry.server_round for entry in ledger.read()] == [1, 2]


@pytest.mark.parametrize("change", ["removed", "changed", "garbled"])
def test_a_ledger_that_was_changed_is_not_gone_on_with(ledger: Ledger, change: str) -> None:
    for number in (1, 2, 3):
        spend(ledger, number=number)
    lines = ledger.path.read_text().splitlines()
    if change == "removed":
        del lines[1]
    elif change == "changed":
        lines[1] = json.dumps({**json.loads(lines[1]), "releases": 1})
    else:
        lines[1] = lines[1][:20]
    ledger.path.write_text("\n".join(lines) + "\n")
    for ask in (lambda: ledger.epsilon("case", ["a"], DELTA), lambda: spend(ledger, number=4)):
        with pytest.raises(ConfigError, match=r"privacy\.jsonl, line [23]: .* put the file back from a backup"):
            ask()
