"""What a converted dataset was made from: ``manifest.json`` beside ``dataset.json``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednnunet.errors import DataError, first_problem
from fednnunet.files import write_atomically

NAME = "manifest.json"


class _ManifestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceFile(_ManifestModel):
    """A file that a case was made from.

    Attributes:
        sha256: digest of its bytes.
        size: bytes.
        modified: time of modification, nanoseconds since 1970.
    """

    sha256: str
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """The file as it is now."""
        status = path.stat()
        return cls(sha256=digest(path), size=status.st_size, modified=status.st_mtime_ns)

    def is_unchanged(self, path: Path) -> bool:
        """Whether ``path`` still is this file, by size and time."""
        if not path.is_file():
            return False
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified)


class CaseRecord(_ManifestModel):
    """A converted case.

    Attributes:
        patient: id of the patient.
        sources: path to the file it was made from; below the source's folder relative to that.
        files: path below the dataset's folder to the SHA-256 of its bytes.
        notes: what to know about it, such as an empty label map.
    """

    patient: str
    sources: dict[str, SourceFile]
    files: dict[str, str]
    notes: list[str] = []

    def is_whole(self, folder: Path, source: Path) -> bool:
        """Whether its sources, in the folder ``source``, are unchanged, and its files in ``folder`` as written."""
        return all(file.is_unchanged(source / path) for path, file in self.sources.items()) and all(
            (folder / path).is_file() and digest(folder / path) == expected for path, expected in self.files.items()
        )


class ExcludedCase(_ManifestModel):
    """Something in the source that did not become a case, and why."""

    name: str
    reason: str


class Manifest(_ManifestModel):
    """Content of ``manifest.json``: a dataset that was converted, or is being converted.

    Attributes:
        made_by: name of the command.
        settings: what the files depend on; another conversion into the same folder must have the same.
        centre: name of the centre.
        cases: name to case.
        skipped: cases with a problem.
        left_out: cases that a rule of the dataset leaves out.
        finished: whether all cases were processed.
    """

    made_by: str
    settings: dict[str, Any]
    centre: str
    cases: dict[str, CaseRecord] = Field(default_factory=dict)
    skipped: list[ExcludedCase] = Field(default_factory=list)
    left_out: list[ExcludedCase] = Field(default_factory=list)
    finished: bool = False

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest."""
        write_atomically(folder / NAME, json.dumps(self.model_dump(mode="json"), indent=1))


def place_of(path: Path, source: Path) -> str:
    """How a manifest names a file: relative to the source's folder, where it is in it.

    >>> place_of(Path("/data/in/a/1.dcm"), Path("/data/in")), place_of(Path("/cache/1.dcm"), Path("/data/in"))
    ('a/1.dcm', '/cache/1.dcm')
    """
    path, source = path.absolute(), source.absolute()
    return path.relative_to(source).as_posix() if path.is_relative_to(source) else str(path)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a dataset.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{folder} is there and has no {NAME}: it was not made by `fednnunet convert`") from None
    except ValidationError as error:
        raise DataError(f"{path} is not a manifest: {first_problem(error, NAME)}") from None


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
