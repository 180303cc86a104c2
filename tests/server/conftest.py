"""Federations whose nodes follow a script."""

from __future__ import annotations

from tests.support.scripted_federation import run_federation

__all__ = ["run_federation"]  # a fixture
