"""Errors that a user can fix: each says who, what, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

LONGEST_LINE = 1000
"""Number of characters that are shown of text from elsewhere."""


class FednnUNetError(Exception):
    """Base of every error that is the user's or the data's, not a bug.

    ``train.py`` prints it as one line and exits with code 2.
    """


class ConfigError(FednnUNetError):
    """A configuration key, value or combination that cannot work."""


class DataError(FednnUNetError):
    """A dataset that cannot be trained on. The text may name cases and files: it stays at its node
    unless server and node are one machine.

    Args:
        text: what is wrong, where, and what to do.
        public: what a server on another machine may know of it, without names of cases and files; None for nothing.
    """

    def __init__(self, text: str, public: str | None = None) -> None:
        super().__init__(text)
        self.public = public


class ProtocolError(FednnUNetError):
    """A message that does not follow the protocol: unknown kind, wrong schema, size, shape or dtype."""


class MissingReferenceError(ProtocolError):
    """A node does not have what a received step starts from: the layers are to be sent whole."""


class NodeError(FednnUNetError):
    """A node answered a message with an error.

    Args:
        node: name of the node.
        reason: message of the node.
    """

    def __init__(self, node: str, reason: str) -> None:
        reason = one_line(reason).removeprefix(f"node {node}: ").removeprefix(f"node {node} ")
        super().__init__(f"node {node}: {reason}")
        self.node = node
        self.reason = reason


def first_problem(error: ValidationError, whole: str) -> str:
    """The first field that failed validation and why; ``whole`` names what was validated where no field did."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, first["loc"])) or whole
    if first["type"] == "extra_forbidden":
        return one_line(f"unknown key {key}")
    return one_line(f"{key}: {plain_message(first)}".removeprefix(": "))


def plain_message(problem: Mapping[str, Any]) -> str:
    """A message of pydantic's, without its own terms."""
    match problem["type"]:
        case "missing":
            return "is missing"
        case "string_type":
            return "must be text; put it in quotes"
        case "model_type" | "dict_type":
            return "must hold keys with values"
        case _:
            return problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)


def one_line(text: str) -> str:
    """Text that came from elsewhere, fit for a terminal and a log: no control characters, and not endless."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text[: LONGEST_LINE + 1])
    return shown if len(shown) <= LONGEST_LINE else shown[: LONGEST_LINE - 1] + "…"
