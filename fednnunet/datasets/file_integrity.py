"""Read image files to their end, and what their headers say that a reader may hide.

SimpleITK reads NIfTI and GIPL files that were cut off without an error, missing voxels as 0, and NaN and infinity in
NIfTI files as 0, too. Each compressed file is decompressed once, to its end marker and checksum.
"""

from __future__ import annotations

import bz2
import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from fednnunet.datasets.raw import TIFF_ENDINGS
from fednnunet.errors import DataError
from fednnunet.files import disk_full

NIFTI_ENDINGS = (".nii", ".nii.gz")
GZIP_MAGIC = b"\x1f\x8b"
GIPL_HEADER_BYTES = 256
LONGEST_HEADER = 2**20
"""Bytes; the text at the start of an NRRD or MetaImage file is looked for in these."""
CHUNK = 2**24
"""Bytes that are held in memory at a time; a multiple of the size of every type of voxel."""
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
"""Length of NIfTI's units in mm; one that is not given is mm."""


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI file says of its grid.

    Attributes:
        shape: voxels along every axis (X, Y, Z, …), without axes of one voxel at the end.
        unit: ``mm``, ``meter``, ``micron`` or ``unknown``.
        spacing: size of a voxel (X, Y, Z) by ``pixdim``, in ``unit``.
        qform: (4, 4) from voxels to the scanner's coordinates in ``unit``; None where it is not set.
        sform: likewise.
    """

    shape: tuple[int, ...]
    unit: str
    spacing: tuple[float, ...]
    qform: np.ndarray | None
    sform: np.ndarray | None

    @property
    def millimetres(self) -> float:
        """Length of ``unit`` in mm."""
        return MILLIMETRES.get(self.unit, 1.0)


@dataclass(frozen=True)
class FileContent:
    """What was found in a file that was read to its end.

    Attributes:
        not_finite: number of voxels that are NaN or infinite in the file, whatever a reader makes of them; 0 for other
            formats than NIfTI, whose readers keep them.
        nifti: header of a NIfTI file.
    """

    not_finite: int = 0
    nifti: NiftiHeader | None = None


def inspect_file(path: Path) -> FileContent:
    """Read ``path`` to its end.

    What is no file of the format that its ending says is left to the reader. PNG and BMP are, too: their readers stop
    at a file that was cut off; that of TIFF does so within a page.

    Raises:
        DataError: the file was cut off or is damaged; names it.
    """
    try:
        if path.name.lower().endswith(NIFTI_ENDINGS):
            return _inspect_nifti(path)
        if path.name.lower().endswith((".nrrd", ".mha")):
            _check_text_header_format(path)
        elif path.name.lower().endswith(TIFF_ENDINGS):
            _check_pages(path)
        elif path.name.lower().endswith(".gipl"):
            expected = _bytes_of_voxels(path)
            if expected is not None and path.stat().st_size < GIPL_HEADER_BYTES + expected:
                raise _cut_off(path)
    except EOFError:
        raise _cut_off(path) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); copy it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return FileContent()


def check_written(path: Path) -> None:
    """Check a file that was just written, and remove it where it is cut off.

    SimpleITK does not say that the disk was full when it wrote a NIfTI file.

    Raises:
        OSError: it is cut off.
    """
    try:
        inspect_file(path)
        if not path.stat().st_size:  # which is no file of its format, and left to its reader
            raise disk_full(path)
    except DataError:
        path.unlink(missing_ok=True)
        raise disk_full(path) from None


def _cut_off(path: Path) -> DataError:
    return DataError(
        f"{path} is cut off: it ends before all voxels that its header names; copy it again",
        "a file of its images and labels is cut off; its own terminal and log name it",
    )


# NIfTI -------------------------------------------------------------------------------------------------


def read_nifti_header(start: bytes) -> Nifti1Header | None:
    """NIfTI header at the start of a file, with its fields as they are; None where there is none."""
    for kind in (Nifti1Header, Nifti2Header):
        size = kind.template_dtype.itemsize
        if len(start) >= size and kind.may_contain_header(start):
            return kind(start[:size], check=False)
    return None


def open_nifti(path: Path) -> IO[bytes]:
    """A NIfTI file's bytes, decompressed where it is compressed, whatever its ending says."""
    with path.open("rb") as file:
        is_compressed = file.read(2) == GZIP_MAGIC
    return cast(IO[bytes], gzip.open(path)) if is_compressed else path.open("rb")


def _inspect_nifti(path: Path) -> FileContent:
    with open_nifti(path) as file:
        header = read_nifti_header(file.read(Nifti2Header.template_dtype.itemsize))
        if header is None:
            return FileContent()  # the reader says what it is
        try:
            dtype, shape = header.get_data_dtype(), header.get_data_shape()
            voxels = math.prod(shape) * dtype.itemsize
            file.seek(max(int(header["vox_offset"]), header.sizeof_hdr))
        except (HeaderDataError, KeyError, ValueError, OverflowError):
            raise DataError(f"{path} is damaged: its header makes no sense; copy it again") from None
        found, not_finite = _count(file, voxels, dtype if dtype.kind == "f" else None)
        if found < voxels:
            raise _cut_off(path)
        _read_to_checksum(file)
    return FileContent(not_finite, _nifti_header(header, shape))


def _count(file: IO[bytes], size: int, floats: np.dtype[Any] | None = None) -> tuple[int, int]:
    """Number of bytes that are there of ``size``, and of values of type ``floats`` in them that are not finite."""
    found = not_finite = 0
    while found < size and (chunk := file.read(min(CHUNK, size - found))):
        found += len(chunk)
        if floats is not None:
            values = np.frombuffer(chunk, floats, count=len(chunk) // floats.itemsize)
            not_finite += values.size - int(np.count_nonzero(np.isfinite(values)))
    return found, not_finite


def _read_to_checksum(file: IO[bytes]) -> None:
    """Read what follows the voxels; a compressed file's checksum is compared at its end."""
    try:
        while file.read(CHUNK):
            pass
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):  # else something was appended, which readers pass over
            raise


def _nifti_header(header: Nifti1Header, shape: tuple[int, ...]) -> NiftiHeader:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:  # a code that NIfTI does not define
        unit = "unknown"
    header["pixdim"][0] = -1 if header["pixdim"][0] == -1 else 1  # 0 means 1; readers take the others for 1, too
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    try:
        qform = header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError):  # no rotation; a reader that needs it says so
        qform = None
    return NiftiHeader(
        shape=tuple(int(size) for size in shape),
        unit=unit,
        spacing=tuple(float(step) for step in header["pixdim"][1:4]),
        qform=qform,
        sform=header.get_sform(coded=True)[0],
    )


# TIFF --------------------------------------------------------------------------------------------------


def _check_pages(path: Path) -> None:
    """Check that the last page that can be found names no other after it."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            end = file.pages.next_page_offset
            if end is None:
                return
            file.filehandle.seek(end)
            next_page = file.filehandle.read(file.tiff.offsetsize)
    except Exception:  # noqa: BLE001  damaged in whatever way
        return  # the reader says what it is
    if any(next_page):
        raise _cut_off(path)


# NRRD, MetaImage, GIPL ---------------------------------------------------------------------------------


def _bytes_of_voxels(path: Path) -> int | None:
    """Bytes that the voxels of a file take uncompressed, by its header; None where SimpleITK cannot read that."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        components = reader.GetNumberOfComponents()
        voxel = sitk.Image([1, 1], reader.GetPixelID(), components).GetSizeOfPixelComponent() * components
    except RuntimeError:
        return None
    return math.prod(reader.GetSize()) * int(voxel)


def _check_text_header_format(path: Path) -> None:
    """Check an NRRD or MetaImage file whose voxels follow its header; others name files that the reader looks for."""
    expected = _bytes_of_voxels(path)
    with path.open("rb") as file:
        start = file.read(LONGEST_HEADER)
        encoding, offset = (_nrrd_data if path.suffix.lower() == ".nrrd" else _metaimage_data)(start)
        if expected is None or encoding is None:
            return
        file.seek(offset)
        if encoding == "raw":
            complete = os.fstat(file.fileno()).st_size - offset >= expected
        elif encoding == "zlib":
            complete = _inflate(file) >= expected
        else:
            stream: Any = gzip.GzipFile(fileobj=file) if encoding == "gzip" else bz2.BZ2File(file)
            complete = _count(stream, expected)[0] >= expected
            _read_to_checksum(stream)
    if not complete:
        raise _cut_off(path)


def _nrrd_data(start: bytes) -> tuple[str | None, int]:
    """How voxels are encoded, and where they begin; None where they are text, or not simply behind the header."""
    offset = min((at + len(end) for end in (b"\n\n", b"\r\n\r\n") if (at := start.find(end)) >= 0), default=0)
    lines = start[:offset].decode("latin-1").splitlines()
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    if any("skip" in field or field in ("data file", "datafile") for field in map(str.lower, fields)):
        return None, offset
    encodings = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
    return encodings.get(fields.get("encoding", "").strip().lower()), offset


def _metaimage_data(start: bytes) -> tuple[str | None, int]:
    """As :func:`_nrrd_data`."""
    marker = b"ElementDataFile = LOCAL"
    at = start.find(marker)
    end = start.find(b"\n", at)
    if at < 0 or end < 0:
        return None, 0
    lines = start[:at].decode("latin-1").splitlines()
    fields = {key.strip().lower(): value.strip().lower() for key, _, value in (line.partition("=") for line in lines)}
    if fields.get("binarydata") == "false":
        return None, end + 1
    return ("zlib" if fields.get("compresseddata") == "true" else "raw"), end + 1


def _inflate(file: IO[bytes]) -> int:
    """Number of bytes that a zlib or gzip stream holds, its checksum compared.

    Raises:
        EOFError: it has no end.
        zlib.error: it is damaged.
    """
    stream, found = zlib.decompressobj(wbits=47), 0
    while not stream.eof and (data := file.read(2**16)):
        found += len(stream.decompress(data))
    if not stream.eof:
        raise EOFError
    return found
