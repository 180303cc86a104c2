"""Several trackers as one; none of them can end a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fednnunet.errors import ConfigError
from fednnunet.tracking.base import CsvTracker, Tracker, Trackers
from tests.support.run_folders import track

MakeRun = Callable[..., Path]


class Noted(Tracker):
    """Keeps the events, and fails in one round where it should."""

    def __init__(self, breaks_in: int = 0) -> None:
        self.breaks_in = breaks_in
        self.rounds: list[int] = []
        self.finished: list[bool] = []

    def on_round_end(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rounds.append(server_round)
        if self.rounds[-1] == self.breaks_in:
            raise ConnectionError("gone\naway")

    def on_run_end(self, error: BaseException | None = None) -> None:
        self.finished.append(error is None)


class NotSetUp(Tracker):
    def on_run_start(self, metadata: Mapping[str, Any]) -> None:
        raise ConfigError("no account")


def test_csv_adds_no_files(make_run: MakeRun) -> None:
    folder = make_run("asym")
    before = sorted(folder.rglob("*"))
    track(CsvTracker(), folder)
    assert sorted(folder.rglob("*")) == before


def test_one_that_fails_is_named_once_and_the_run_goes_on(make_run: MakeRun) -> None:
    broken, whole, messages = Noted(breaks_in=3), Noted(), list[str]()
    track(Trackers([broken, whole], notify=messages.append), make_run("asym"))
    assert broken.rounds == [1, 2, 3]
    assert whole.rounds == list(range(1, 13))
    assert messages == ["Noted failed and is left out from here on: gone away"]
    assert broken.finished == whole.finished == [True], "what it has is kept"


def test_one_that_is_not_set_up_is_an_error_before_training(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match="no account"):
        track(Trackers([NotSetUp()], notify=print), make_run("asym"))
