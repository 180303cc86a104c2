"""Look into a model's zip, or change it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path


def members(content: bytes, name: str = "") -> dict[str, bytes]:
    """Path to content of everything in a zip, and in the zips within it, such as torch's checkpoints."""
    found = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            path, inner = f"{name}{entry.filename}", archive.read(entry)
            found[path] = inner
            if zipfile.is_zipfile(io.BytesIO(inner)):
                found |= members(inner, f"{path}/")
    return found


def changed_zip(source: Path, target: Path, changes: Mapping[str, bytes | Callable[[bytes], bytes] | None]) -> Path:
    """A copy in which files that end like a key are replaced, changed or left out; others are added."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        unused = dict(changes)
        for entry in archive.infolist():
            content: bytes | None = archive.read(entry)
            for end, change in changes.items():
                if entry.filename.endswith(end):
                    unused.pop(end, None)
                    content = change(content) if callable(change) and content is not None else change  # type: ignore[assignment]
            if content is not None:
                copy.writestr(entry.filename, content)
        for name, added in unused.items():
            assert isinstance(added, bytes), f"no file ends with {name}"
            copy.writestr(name, added)
    return target
