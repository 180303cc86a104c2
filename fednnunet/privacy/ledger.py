"""Ledger of a node: what its rounds have cost of the privacy of its cases, over all runs on them.

One JSON line per round, written before the round's layers leave, chained as the log of what leaves
(:mod:`fednnunet.audit.chain`). A case is known by a digest of its name and the sizes of its images, so that it counts
again when data are copied, extended or split otherwise; a fold costs the cases that it trains on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from fednnunet.audit.chain import append_line, digest_of
from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import Fold
from fednnunet.privacy.accounting import Releases, composed_epsilon

LEDGER = "privacy.jsonl"
Unit: TypeAlias = Literal["case", "node"]
"""What noise hides: a case, or the whole node."""


class Spending(BaseModel):
    """One round.

    Attributes:
        time: time in UTC, ISO 8601.
        run: digest that stands for the run.
        fold: fold that was trained.
        server_round: number of the round.
        unit: what its noise hides.
        cases: digest that stands for the training cases.
        members: digests of these, where they are listed for the first time.
        noise: noise multiplier.
        rate: rate of sampling.
        releases: noisy sums that were made.
        delta: for ``epsilon``.
        epsilon: of everything so far, this round included, for the case that it is largest of.
        previous: digest of the line before, without its end of line; None for the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: str
    run: str
    fold: Fold
    server_round: int
    unit: Unit
    cases: str
    members: list[str] | None = None
    noise: float
    rate: float
    releases: int
    delta: float
    epsilon: float
    previous: str | None = None


@dataclass(frozen=True)
class Cost:
    """What rounds have cost.

    Attributes:
        hides: what their noise hides.
        rounds: number of rounds.
        runs: number of runs.
        epsilon: largest epsilon of any case, or of the node.
        delta: probability that it does not hold.
    """

    hides: str
    rounds: int
    runs: int
    epsilon: float
    delta: float


class Ledger:
    """The ledger in a file.

    Args:
        path: file; it is made by the first round.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def epsilon(
        self,
        unit: Unit,
        cases: Sequence[str],
        delta: float,
        more: Iterable[Releases] = (),
        without_run: str | None = None,
    ) -> float:
        """Epsilon of everything so far, for that one of ``cases`` that it is largest of.

        Rounds that hid the node count for its cases, too: one of them may change an update by twice the clipping norm.
        Rounds that hid cases do not hide the node, so they have no place in its account.

        Args:
            unit: what is hidden.
            cases: digests of cases.
            delta: in (0, 1).
            more: count these, too, as made of all ``cases``.
            without_run: leave out the rounds of this run.

        Raises:
            ConfigError: the file cannot be read, or was changed.
        """
        entries = self.read()
        members = {entry.cases: frozenset(entry.members) for entry in entries if entry.members is not None}
        spent: dict[str, Counter[tuple[float, float]]] = {}
        for entry in entries:
            if entry.run != without_run and unit in ("case", entry.unit):
                noise = entry.noise if entry.unit == unit else entry.noise / 2
                spent.setdefault(entry.cases, Counter())[noise, entry.rate] += entry.releases
        # A node is in all of its rounds; a case is in those of the sets of cases that have it.
        chosen = {frozenset(key for key in spent if unit == "node" or case in members[key]) for case in cases}
        added = list(more)
        return max(
            composed_epsilon([*_kinds(sum((spent[key] for key in keys), Counter())), *added], delta) for keys in chosen
        )

    def spend(
        self, unit: Unit, cases: Sequence[str], delta: float, made: Releases, run: str, fold: Fold, server_round: int
    ) -> float:
        """Write down a round, before its layers leave.

        Args:
            unit: what its noise hides.
            cases: digests of the training cases.
            delta: in (0, 1).
            made: noisy sums of the round.
            run: digest that stands for the run.
            fold: fold of the round.
            server_round: its number.

        Returns:
            Epsilon with it.

        Raises:
            ConfigError: the file cannot be read, or was changed.
            OSError: it cannot be written.
        """
        key = hashlib.sha256(json.dumps(sorted(cases)).encode()).hexdigest()[:16]
        is_known = any(entry.cases == key and entry.members is not None for entry in self.read())
        spending = Spending(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            run=run,
            fold=fold,
            server_round=server_round,
            unit=unit,
            cases=key,
            members=None if is_known else sorted(cases),
            noise=made.noise,
            rate=made.rate,
            releases=made.number,
            delta=delta,
            epsilon=self.epsilon(unit, cases, delta, [made]),
        )
        append_line(
            self.path,
            lambda previous, _: (
                spending.model_copy(update={"previous": previous}).model_dump_json(exclude_none=True).encode()
            ),
        )
        return spending.epsilon

    def read(self) -> list[Spending]:
        """All rounds, in their order; a torn last line, whose round has not left, is passed over.

        Raises:
            ConfigError: the file cannot be read, or was changed.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}") from None
        entries, head = [], None
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                entry = Spending.model_validate_json(line)
            except ValidationError:
                entry = None
            if entry is None or entry.previous != head:
                raise ConfigError(
                    f"{self.path}, line {number}: it, or the one before, was changed or removed, so what was spent is "
                    "not known; put the file back from a backup"
                )
            entries.append(entry)
            head = digest_of(line)
        return entries


def costs_of(entries: Sequence[Spending]) -> list[Cost]:
    """What everything so far has cost, by what noise hides."""
    costs = []
    for unit in ("case", "node"):
        of_unit = [entry for entry in entries if entry.unit == unit]
        if of_unit:
            largest = max(of_unit, key=lambda entry: entry.epsilon)
            runs = len({entry.run for entry in of_unit})
            costs.append(Cost(unit, len(of_unit), runs, largest.epsilon, largest.delta))
    return costs


def _kinds(spent: Counter[tuple[float, float]]) -> list[Releases]:
    return [Releases(noise, rate, number) for (noise, rate), number in spent.items()]
