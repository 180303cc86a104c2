"""The command ``fednnunet``, called in the tests' own process."""

from __future__ import annotations

import sys
from typing import Protocol

import pytest

from fednnunet.cli.main import main


class CommandLine(Protocol):
    """Takes the words of a command, ``fednnunet`` left out; returns its exit code."""

    def __call__(self, *arguments: object) -> int: ...


@pytest.fixture
def fednnunet(monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Call the command; what it prints is for ``capsys``."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["fednnunet", *map(str, arguments)])
        try:
            return main()
        except SystemExit as finished:  # how typer ends a command that went well
            return int(finished.code or 0)

    return call
