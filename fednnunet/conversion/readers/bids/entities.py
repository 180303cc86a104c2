"""Images and label maps in BIDS by what their names say: entities and suffix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fednnunet.conversion.readers.source_files import NIFTI_ENDINGS
from fednnunet.listing import join_first

DERIVED = frozenset({"space", "res", "den", "seg", "scale", "atlas", "label", "desc"})
"""Entities that a derivative adds to those of its source."""
DESCRIBES_LABELS = frozenset({"seg", "scale", "atlas", "label", "desc"})
"""Entities of these that say nothing about the image that a label map belongs to."""
DATATYPES = frozenset({"anat", "dwi", "fmap", "func", "perf", "pet", "micr", "meg", "eeg", "ieeg", "nirs"})
"""Folders of a session; what lies in different ones was acquired on different grids."""
ENDINGS_LISTED = 12


@dataclass(frozen=True)
class BidsFile:
    """An image or label map of a subject: ``<key>-<value>_ … _<suffix>``."""

    path: Path
    parts: tuple[str, ...]

    @cached_property
    def entities(self) -> dict[str, str]:
        """Keys and values, without ``space-orig``, which says that the image was not transformed."""
        pairs = (part.partition("-") for part in self.parts[:-1] if part != "space-orig")
        return {key: value for key, hyphen, value in pairs if hyphen}

    @property
    def subject(self) -> str:
        return self.entities["sub"]

    @property
    def session(self) -> tuple[str, str]:
        return self.subject, self.entities.get("ses", "")

    @property
    def datatype(self) -> str:
        """Name of the datatype's folder that the file lies in; empty in any other folder."""
        return self.path.parent.name if self.path.parent.name in DATATYPES else ""

    @property
    def ending(self) -> str:
        """What options name: the name without entities of subject, session, acquisition and space."""
        describing = [part for part in self.parts[:-1] if part.partition("-")[0] in DESCRIBES_LABELS or "-" not in part]
        return "_".join([*describing, self.parts[-1]])

    @cached_property
    def scan(self) -> str:
        """The scan it is derived from, which names the case: ``sub-01_ses-1_run-2``."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items() if key not in DERIVED)

    def matches(self, ending: str) -> bool:
        *parts, suffix = ending.split("_")
        return self.parts[-1] == suffix and set(parts) <= set(self.parts[:-1])

    def without(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: value for key, value in self.entities.items() if key not in keys}


def list_endings(files: Iterable[BidsFile]) -> str:
    """How the names of ``files`` end, and how many do, most frequent first, for messages."""
    counts = Counter(f"*_{file.ending}" for file in files)
    listed = [f"{ending} ({count})" for ending, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return join_first(listed, ENDINGS_LISTED) if listed else "no image"


def list_files(folder: Path) -> Iterator[BidsFile]:
    """Images and label maps of all subjects; CIFTI files, which have one more ending, are ignored."""
    for subject in sorted(folder.glob("sub-*")):
        for parent, folders, names in os.walk(subject):
            folders.sort()
            for name in sorted(names):
                stem = name.removesuffix(".gz").removesuffix(".nii")
                if name.startswith("sub-") and name.endswith(NIFTI_ENDINGS) and "." not in stem:
                    yield BidsFile(Path(parent) / name, tuple(stem.split("_")))
