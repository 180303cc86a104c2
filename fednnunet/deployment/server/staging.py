"""Contents of objects that are taken into files before the transaction that stores them.

SQLite lets one transaction write at a time, and who waits for it sleeps: nothing is hashed or written to files in one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Staged:
    """Stands for the content of an object that is in a file already.

    Attributes:
        size: number of bytes that came with the request.
        file: takes its name when the object is put, so that nobody reads it before; None for one that has it.
    """

    size: int
    file: Path | None = None

    def __len__(self) -> int:
        return self.size


@runtime_checkable
class StagingStore(Protocol):
    """A store that takes contents before the transaction that they belong to."""

    def stage(self, object_id: str, object_content: bytes) -> bytes | Staged:
        """Take a content; returns what to put in its place."""

    def unstage(self, staged: Staged) -> None:
        """Forget a content, unless it was put."""


def staging(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of pushed objects, such as Flower's, before which their contents are staged.

    Args:
        handler: gets the request, the state, and further arguments.
    """

    def handle(message: Any, state: Any, *others: Any) -> Any:
        store, object_id = state.object_store, message.object_id
        if not isinstance(store, StagingStore):
            return handler(message, state, *others)
        content = store.stage(object_id, message.object_content)
        request = SimpleNamespace(
            node=message.node,
            run_id=message.run_id,
            session_id=message.session_id,
            object_id=object_id,
            object_content=content,
        )
        try:
            return handler(request, state, *others)
        finally:
            if isinstance(content, Staged):
                store.unstage(content)

    return handle
