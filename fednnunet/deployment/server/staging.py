"""Contents of objects that are taken into files before the transaction that stores them.

SQLite lets one transaction write at a time, and who waits for it sleeps: nothing is hashed or written to files in one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Staged:
    """Stands for the content of an object that is in its file already.

    Attributes:
        size: number of bytes that came with the request.
    """

    size: int

    def __len__(self) -> int:
        return self.size


@runtime_checkable
class StagingStore(Protocol):
    """A store that takes contents before the transaction that they belong to."""

    def stage(self, object_id: str, object_content: bytes) -> bytes | Staged:
        """Take a content; returns what to put in its place."""

    def unstage(self, object_id: str) -> None:
        """Forget a content that was not put after all."""


def staging(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of pushed objects, such as Flower's, before which their contents are staged.

    Args:
        handler: gets the request, the state, and further arguments; its answer says whether the object was stored.
    """

    def handle(message: Any, state: Any, *others: Any) -> Any:
        store, object_id = state.object_store, message.object_id
        if not isinstance(store, StagingStore):
            return handler(message, state, *others)
        content = store.stage(object_id, message.object_content)
        is_stored = False
        try:
            request = SimpleNamespace(
                node=message.node,
                run_id=message.run_id,
                session_id=message.session_id,
                object_id=object_id,
                object_content=content,
            )
            answer = handler(request, state, *others)
            is_stored = answer.stored
        finally:
            if isinstance(content, Staged) and not is_stored:
                store.unstage(object_id)
        return answer

    return handle
