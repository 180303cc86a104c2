"""A model's zip from outside: what may be in it is listed here; nothing is extracted, and no name is trusted."""

from __future__ import annotations

import contextlib
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from fednnunet.errors import DataError, one_line

_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}"
_DATASET = rf"Dataset\d{{3}}_{_NAME}"
_MODEL = rf"{_NAME}?__{_NAME}?__{_NAME}"
_FOLD = r"fold_(?:\d{1,3}|all)"
CARD, CARD_TEXT = "model_card.json", "model_card.md"
ENSEMBLES = "ensembles"
"""Folder of what belongs to several models together."""
_ENSEMBLE = rf"{ENSEMBLES}/ensemble___[A-Za-z0-9_.+-]{{1,500}}"
READ = "|".join(
    (
        rf"{_DATASET}/{_MODEL}/(?:(?:model_card|plans|dataset|postprocessing)\.json|{_FOLD}/checkpoint_final\.pth)",
        rf"{_DATASET}/{_MODEL}/crossval_results_folds_\w{{1,100}}/postprocessing\.json",
        rf"{_DATASET}/{_ENSEMBLE}/(?:model_card|postprocessing)\.json",
        rf"{_DATASET}/inference_information\.json",
    )
)
"""Files that are read."""
IGNORED = "|".join(
    (
        rf"{_DATASET}/(?:inference_information\.txt|inference_instructions\.txt|ensembles/.*)",
        rf"{_DATASET}/{_MODEL}/(?:model_card\.md|postprocessing\.pkl|dataset_fingerprint\.json|crossval_results_folds_\w+/.*)",
        rf"{_DATASET}/{_MODEL}/{_FOLD}/(?:checkpoint_(?:best|latest)\.pth|debug\.json|progress\.png|validation/.*)",
        rf"{_DATASET}/{_MODEL}/{_FOLD}/(?:network_architecture(?:\.pdf)?|training_log[\w.]*\.txt)",
    )
)
"""Files that nnU-Net's own export writes, too; they are not read."""
MOST_FILES = 100_000
MOST_MODELS = 200
MOST_BYTES = 8 * 2**30
"""Of one file. nnU-Net's largest networks (ResEnc XL) have checkpoints of about 2 GB, with their optimizer's state."""

MOST_GROWTH = 100
"""Times that a file may be as large as its compressed form; weights shrink by a tenth, JSON by ten."""


def check_entries(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    """Name to entry of every file that is read; others are checked by their names and sizes alone.

    Raises:
        DataError: a name that no model's zip has, that leads outside, that comes twice or is a link; or a size beyond
            all that a model needs. Names the entry.
    """
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        raise DataError(f"{where} holds {len(entries)} files, more than the {MOST_FILES} that a model's zip may have")
    seen: set[str] = set()
    found = {}
    for entry in entries:
        named = f"{where}: entry {one_line(entry.orig_filename)[:200]!r}"
        name = entry.filename
        parts = name.removesuffix("/").split("/")
        if (
            entry.orig_filename != name
            or "\\" in name
            or name.startswith("/")
            or any(p in ("", ".", "..") for p in parts)
        ):
            raise DataError(f"{named} would lie outside of the model's folder")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{named} is a link or a device, not a file")
        if name.casefold() in seen:
            raise DataError(f"{named} comes twice")
        seen.add(name.casefold())
        if entry.is_dir():
            if not re.match(_DATASET, parts[0]) or entry.file_size:
                raise DataError(f"{named} is no folder of a model of nnU-Net")
            continue
        is_read = re.fullmatch(READ, name, re.ASCII) is not None
        if not is_read and not re.fullmatch(IGNORED, name, re.ASCII):
            raise DataError(f"{named} is no file of a model of nnU-Net; this may not be a model")
        if entry.file_size > MOST_BYTES:
            raise DataError(f"{named} announces {entry.file_size} bytes, more than the {MOST_BYTES} that it may have")
        if is_read:
            if entry.file_size > MOST_GROWTH * entry.compress_size + 2**20:
                raise DataError(
                    f"{named} grows from {entry.compress_size} to {entry.file_size} bytes; this is no model"
                )
            if entry.flag_bits & 0x1:
                raise DataError(f"{named} is encrypted; decrypt the zip first")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{named} is compressed in a way that nnU-Net does not use; zip it anew")
            found[name] = entry
    return found


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str, most: int = MOST_BYTES) -> bytes:
    """Content of a file in a zip: as long as it is announced, by its checksum, and not longer than ``most`` bytes.

    Raises:
        DataError: it is not; names the file.
    """
    named = f"{where}: {entry.filename}"
    if entry.file_size > most:
        raise DataError(f"{named} announces {entry.file_size} bytes, more than the {most} that it may have")
    try:
        with archive.open(entry) as file:
            content = file.read(entry.file_size + 1)
            rest = file.read(1)  # at its end, the checksum is compared
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{named} is damaged: {one_line(str(error))[:200]}") from None
    if len(content) != entry.file_size or rest:
        raise DataError(f"{named} has not the {entry.file_size} bytes that it announces")
    return content


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip to read.

    Raises:
        DataError: it is none.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as a zip: {one_line(str(error))[:200]}") from None
    with archive:
        yield archive
