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
    """Takes note of what it is told, and breaks in one round if it is told to."""

    def __init__(self, breaks_in: int = 0) -> None:
        self.breaks_in = breaks_in
        self.rounds: list[int] = []
        self.finished: list[bool] = []

    def log_round(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rounds.append(rows[0]["round"])
        if self.rounds[-1] == self.breaks_in:
            raise ConnectionError("gone\naway")

    def finish(self, ok: bool) -> None:
        self.finished.append(ok)


class NotSetUp(Tracker):
    def start(self, run: Mapping[str, Any]) -> None:
        raise ConfigError("no account")


def test_csv_adds_no_files(make_run: MakeRun) -> None:
    folder = make_run("asym")
    before = sorted(folder.rglob("*"))
    track(CsvTracker(), folder)
    assert sorted(folder.rglob("*")) == before


def test_one_that_fails_is_named_once_and_the_run_goes_on(make_run: MakeRun) -> None:
    broken, whole, told = Noted(breaks_in=3), Noted(), list[str]()
    track(Trackers([broken, whole], tell=told.append), make_run("asym"))
    assert broken.rounds == [1, 2, 3]
    assert whole.rounds == list(range(1, 13))
    assert told == ["Noted failed and is left out from here on: gone away"]
    assert broken.finished == whole.finished == [True], "what it has is kept"


def test_one_that_is_not_set_up_is_an_error_before_training(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match="no account"):
        track(Trackers([NotSetUp()], tell=print), make_run("asym"))
