"""How datasets are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Files = Literal["copy", "symlink", "hardlink"]
OnError = Literal["stop", "skip"]
Headers = Literal["strict", "image"]


@dataclass(frozen=True)
class Options:
    """What a user chooses, whatever the dataset.

    Attributes:
        files: what becomes of files that need no change; those that do are written anew.
        on_error: ``stop`` at the first study with a problem, or ``skip`` and list it.
        headers: ``strict``: a label map on another grid than its image is a problem; ``image``: where it has as many
            voxels, it gets the image's spacing, origin and direction.
        processes: that convert at the same time.
    """

    files: Files = "copy"
    on_error: OnError = "stop"
    headers: Headers = "strict"
    processes: int = 1
