"""Options of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Files = Literal["copy", "symlink", "hardlink"]
OnError = Literal["stop", "skip"]
Headers = Literal["strict", "image"]


@dataclass(frozen=True)
class Options:
    """Choices of the user for any dataset.

    Attributes:
        files: how files that need no change get to the target; the others are written anew.
        on_error: ``stop`` at the first case with a problem, or ``skip`` and list it.
        headers: ``strict``: a label map on another grid than its image is a problem; ``image``: a label map of the same
            size gets the image's spacing, origin and direction.
        processes: number of processes that convert at the same time.
    """

    files: Files = "copy"
    on_error: OnError = "stop"
    headers: Headers = "strict"
    processes: int = 1
