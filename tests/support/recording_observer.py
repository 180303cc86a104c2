"""An observer that keeps what the operator of a run would read."""

from __future__ import annotations

from fednnunet.server.run_observer import RunObserver


class RecordingObserver(RunObserver):
    """Keeps every message."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)
