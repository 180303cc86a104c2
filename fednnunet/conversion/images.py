"""Read the images of a case, bring them into nnU-Net's raw format, and check that they belong together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from fednnunet.conversion.options import Files
from fednnunet.conversion.scan_result import SourceImage
from fednnunet.datasets.checked_file import has_three_directions, header_notes
from fednnunet.datasets.file_integrity import FileContent, NiftiHeader, check_written, inspect_file
from fednnunet.datasets.geometry import Grid, format_numbers, format_size, grid_differences
from fednnunet.errors import DataError
from fednnunet.exchange.data_notes import NoteKind
from fednnunet.files import DISK_FULL, disk_full

PLACE_FILE: Mapping[Files, Callable[[Path, Path], object]] = {
    "copy": shutil.copyfile,
    "symlink": lambda source, target: os.symlink(source.absolute(), target),
    "hardlink": lambda source, target: os.link(source.resolve(), target),
}
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""
NOT_FINITE = "voxels that are NaN or infinite in the source are 0"
SHEARED = "axes that are not at right angles were turned to the nearest ones that are"
TWO_SPACINGS = "the source's header gives two spacings, in pixdim and in sform; pixdim was taken"
UNIT = "the source gives lengths in another unit than mm; they are in mm"


@dataclass(frozen=True)
class LoadedImage:
    """An image or label map of the source, as a case is to have it.

    Attributes:
        image: frame cut out, baseline subtracted; lengths in mm.
        notes: what reading changed; what concerns the file alone is in parentheses at the end.
        is_plain: whether any reader makes this of the file, so that the file can be used unchanged.
        nifti: header of a NIfTI file.
        not_finite: voxels in the files that are NaN or infinite, and 0 in ``image``.
    """

    image: sitk.Image
    notes: tuple[str, ...] = ()
    is_plain: bool = True
    nifti: NiftiHeader | None = None
    not_finite: int = 0


def read_image(source: SourceImage) -> LoadedImage:
    """The image: read to its end, its frame cut out, and its baseline subtracted (as float32).

    SimpleITK reads NaN and infinity in NIfTI files as 0, which is noted; in other files they are an error.

    Raises:
        DataError: names the file: cut off, unreadable, no such frame, more than three dimensions, another grid than the
            baseline's, complex numbers, NaN or infinity.
    """
    if source.volume is not None:
        return LoadedImage(source.volume.read(), is_plain=False)
    contents = {path: inspect_file(path) for path in source.files}
    notes = [note for path, content in contents.items() for note in _content_notes(path, content)]
    image, tilt = _volume(source.path, source.frame, contents)
    notes += tilt
    if source.baseline is not None:
        baseline, tilt = _volume(source.baseline, source.frame, contents)
        notes += tilt
        check_grid(baseline, image, source.baseline, source.path)
        values = sitk.GetArrayViewFromImage(image).astype(np.float32) - sitk.GetArrayViewFromImage(baseline)
        image = with_values(image, values)
    if not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise DataError(f"{source.path} holds NaN or infinity")
    not_finite = sum(content.not_finite for content in contents.values())
    return LoadedImage(image, tuple(notes), not notes, contents[source.path].nifti, not_finite)


def _content_notes(path: Path, content: FileContent) -> Iterator[str]:
    """What SimpleITK reads otherwise than the file, or another reader, says."""
    kinds = header_notes(content.nifti)
    if content.nifti is not None and NoteKind.UNIT in kinds:
        yield f"{UNIT} ({content.nifti.unit} in {path})"
    if NoteKind.TWO_SPACINGS in kinds:
        yield f"{TWO_SPACINGS} ({path})"
    if content.not_finite:
        yield f"{NOT_FINITE} ({content.not_finite:,} voxels in {path})"


def check_grid(image: sitk.Image, reference: sitk.Image, path: Path, reference_path: Path) -> None:
    """Refuse an image whose voxels lie elsewhere than those of ``reference``.

    Raises:
        DataError: names both files and what differs: size, spacing, origin or direction.
    """
    check_size(image, reference, path, reference_path)
    for difference in grid_differences(grid_of(image), grid_of(reference)):
        raise DataError(
            f"{path} and {reference_path.name} differ in {difference.what}: {format_numbers(difference.value)} and "
            f"{format_numbers(difference.reference)}"
        )


def check_size(image: sitk.Image, reference: sitk.Image, path: Path, reference_path: Path) -> None:
    """Refuse an image of another number of voxels.

    Raises:
        DataError: names both files and sizes (X, Y, Z).
    """
    one, other = image.GetSize(), reference.GetSize()
    if one != other:
        raise DataError(f"{path} has {format_size(one)} voxels, {reference_path.name} {format_size(other)} (X, Y, Z)")


def grid_of(image: sitk.Image) -> Grid:
    """Size, spacing, origin and direction."""
    placement = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return Grid(image.GetSize(), placement)


def with_values(reference: sitk.Image, values: np.ndarray) -> sitk.Image:
    """``values`` (Z, Y, X) with spacing, origin and direction of ``reference``."""
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(reference)
    return image


def as_grey(image: sitk.Image) -> sitk.Image:
    """A colour image in grey, as uint8; any other as it is."""
    channels = image.GetNumberOfComponentsPerPixel()
    if channels == 1:
        return image
    colours = sitk.GetArrayViewFromImage(image)[..., :3].astype(np.float64)  # a fourth is opacity
    weights = LUMA if channels >= len(LUMA) else (1.0,)
    grey = np.rint(sum(weight * colours[..., place] for place, weight in enumerate(weights)))
    return with_values(image, grey.astype(np.uint8))


def can_reuse_file(source: SourceImage, loaded: LoadedImage, ending: str) -> bool:
    """Whether the file that was read can be used unchanged; else the image is written anew."""
    whole = source.frame is None and source.baseline is None and source.path.name.endswith(ending)
    readable = whole and loaded.is_plain and _is_readable(source.path)
    return readable and (ending != ".png" or _is_8_bit_grey(loaded.image))


def copy_or_link(source: Path, target: Path, files: Files) -> None:
    """Copy or link a file; ``target`` appears once it is complete."""
    partial = target.with_name(f".partial-{target.name}")
    partial.unlink(missing_ok=True)
    PLACE_FILE[files](source, partial)
    os.replace(partial, target)


def write(image: sitk.Image, target: Path) -> None:
    """Write ``image``; ``target`` appears once it is complete.

    Raises:
        DataError: values outside 0 to 255 for an 8-bit file, or a type of voxels that the format cannot hold.
        OSError: the disk is full.
    """
    if target.suffix == ".png":
        image = as_grey(image)
        values = sitk.GetArrayViewFromImage(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint8).max:
            raise DataError(
                f"values from {values.min():g} to {values.max():g} do not fit an 8-bit image, {target.name}"
            )
        image = with_values(image, values.astype(np.uint8))
    partial = target.with_name(f".partial-{target.name}")  # the ending tells SimpleITK the format
    try:
        sitk.WriteImage(image, str(partial), useCompression=True)
    except RuntimeError as error:
        partial.unlink(missing_ok=True)
        if any(os.strerror(full) in str(error) for full in DISK_FULL):
            raise disk_full(target) from None
        raise DataError(f"{target.name} cannot be written: {str(error).strip().splitlines()[-1]}") from None
    check_written(partial)
    os.replace(partial, target)


def read_file(path: Path, millimetres: float = 1.0) -> tuple[sitk.Image, float]:
    """All of a file, and the angle in degrees by which axes were turned that are not at right angles.

    Args:
        path: the file.
        millimetres: length of the unit that its header gives, in mm.

    Raises:
        DataError: it cannot be read; names it.
    """
    try:
        return sitk.ReadImage(str(path)), 0.0
    except RuntimeError as error:
        if "orthonormal" in str(error):
            return _read_sheared(path, millimetres)
        cause = str(error).strip().splitlines()[-1] if path.is_file() else "there is no such file"
        raise DataError(f"{path} cannot be read: {cause}") from None


def _read_sheared(path: Path, millimetres: float) -> tuple[sitk.Image, float]:
    """Read a NIfTI file whose axes are, mostly by rounding, not at right angles, with the nearest ones that are."""
    import nibabel

    file: Any = nibabel.load(path)
    lps = np.diag([-1.0, -1.0, 1.0]) @ file.affine[:3] * millimetres
    if not has_three_directions(lps[:, :3]):
        raise DataError(f"the axes of {path} are not three directions by its header; correct it")
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    given = lps[:, :3] / spacing
    left, _, right = np.linalg.svd(given)
    direction, origin = left @ right, lps[:, 3]
    turned = float(np.degrees(np.arccos(np.clip((direction * given).sum(axis=0), -1, 1)).max()))
    values = np.nan_to_num(np.asanyarray(file.dataobj), nan=0, posinf=0, neginf=0)  # as SimpleITK reads them
    image = sitk.GetImageFromArray(values.transpose(), isVector=False)
    dimensions = image.GetDimension()
    image.SetSpacing([*spacing, 1.0][:dimensions])
    image.SetOrigin([*origin, 0.0][:dimensions])
    axes = np.eye(dimensions)
    axes[:3, :3] = direction
    image.SetDirection(axes.flatten())
    return image, turned


def _is_readable(path: Path) -> bool:
    """Whether SimpleITK, and so nnU-Net, accepts the file's header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return False
    return True


def _volume(path: Path, frame: int | None, contents: Mapping[Path, FileContent]) -> tuple[sitk.Image, list[str]]:
    """A file, or a frame of it: one value per voxel (colours in 2D), and at most three axes; and what to note."""
    header = contents[path].nifti
    image, turned = read_file(path, header.millimetres if header else 1.0)
    size = image.GetSize()
    if frame is not None:
        if not 0 <= frame < size[-1]:
            raise DataError(f"{path} has {size[-1]} frames; there is no frame {frame} (from 0)")
        image = _without_last_axis(image, frame)
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = _without_last_axis(image, 0)
    if image.GetDimension() > 3:
        raise DataError(
            f"{path} has {len(size)} dimensions, {format_size(size)} (X, Y, Z and more); a case has one 3D file per "
            "channel, and one per label map: write each volume to a file of its own"
        )
    components = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() > 2 and components > 1:
        raise DataError(f"{path} has {components} values per voxel; it must have one")
    if "complex" in image.GetPixelIDTypeAsString():
        raise DataError(f"{path} holds complex numbers; write their magnitude to a file")
    return image, [f"{SHEARED} ({turned:.2g} degrees in {path})"] if turned else []


def _without_last_axis(image: sitk.Image, place: int) -> sitk.Image:
    start = [0] * (image.GetDimension() - 1) + [place]
    size = [*image.GetSize()[:-1], 0]
    return sitk.Extract(image, size, start, sitk.ExtractImageFilter.DIRECTIONCOLLAPSETOSUBMATRIX)


def _is_8_bit_grey(image: sitk.Image) -> bool:
    return image.GetPixelID() == sitk.sitkUInt8
