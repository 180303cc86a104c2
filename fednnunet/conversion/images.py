"""Read the images of a case, bring them into nnU-Net's raw format, and check that they belong together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from fednnunet.conversion.options import Files
from fednnunet.conversion.scan_result import SourceImage
from fednnunet.datasets.geometry import Grid, format_size, grid_differences
from fednnunet.errors import DataError

PLACE_FILE: Mapping[Files, Callable[[Path, Path], object]] = {
    "copy": shutil.copyfile,
    "symlink": lambda source, target: os.symlink(source.absolute(), target),
    "hardlink": lambda source, target: os.link(source.resolve(), target),
}
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def read_image(source: SourceImage) -> sitk.Image:
    """The image: its frame cut out, and its baseline subtracted (as float32).

    Raises:
        DataError: names the file: unreadable, no such frame, another grid than the baseline's, NaN or infinity.
    """
    image = _frame(_read(source.path), source)
    if image.GetDimension() > 2 and image.GetNumberOfComponentsPerPixel() > 1:
        raise DataError(f"{source.path} has {image.GetNumberOfComponentsPerPixel()} values per voxel; it must have one")
    if source.baseline is not None:
        baseline = _frame(_read(source.baseline), SourceImage(source.baseline, source.frame))
        check_grid(baseline, image, source.baseline, source.path)
        values = sitk.GetArrayViewFromImage(image).astype(np.float32) - sitk.GetArrayViewFromImage(baseline)
        image = _with_header_of(image, values)
    if not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise DataError(f"{source.path} holds NaN or infinity")
    return image


def read_label(source: SourceImage, values: Mapping[int, int]) -> tuple[sitk.Image, bool]:
    """The label map in uint8, and whether its values are those of the source.

    Args:
        source: the label map.
        values: value in the source to the value to write; 0 need not be named.

    Raises:
        DataError: names the file: as :func:`read_image`, or a value that ``values`` lacks.
    """
    original = read_image(source)
    image = _grey(original)
    given = sitk.GetArrayViewFromImage(image)
    written = np.zeros(given.shape, dtype=np.uint8)
    found = np.unique(given)
    for value in found:
        new = {0: 0, **values}.get(int(value)) if value == int(value) else None
        if new is None:
            known = ", ".join(map(str, sorted({0, *values})))
            raise DataError(f"{source.path} holds the value {value:g}; this dataset's label maps hold {known}")
        if new:
            written[given == value] = new
    same = image is original and all(values.get(int(value), 0) == value for value in found)
    return _with_header_of(image, written), same


def check_grid(image: sitk.Image, reference: sitk.Image, path: Path, reference_path: Path) -> None:
    """Refuse an image whose voxels lie elsewhere than those of ``reference``.

    Raises:
        DataError: names both files and what differs: size, spacing, origin or direction.
    """
    check_size(image, reference, path, reference_path)
    for difference in grid_differences(_grid_of(image), _grid_of(reference)):
        raise DataError(
            f"{path} and {reference_path.name} differ in {difference.what}: {_listed(difference.value)} and "
            f"{_listed(difference.reference)}"
        )


def check_size(image: sitk.Image, reference: sitk.Image, path: Path, reference_path: Path) -> None:
    """Refuse an image of another number of voxels.

    Raises:
        DataError: names both files and sizes (X, Y, Z).
    """
    one, other = image.GetSize(), reference.GetSize()
    if one != other:
        raise DataError(f"{path} has {format_size(one)} voxels, {reference_path.name} {format_size(other)} (X, Y, Z)")


def has_same_grid(image: sitk.Image, reference: sitk.Image) -> bool:
    """Whether both have the same grid, as :func:`check_grid` sees it."""
    return not grid_differences(_grid_of(image), _grid_of(reference))


def with_header(image: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """``image`` with spacing, origin and direction of ``reference``."""
    return _with_header_of(reference, sitk.GetArrayFromImage(image))


def can_reuse_file(source: SourceImage, image: sitk.Image, ending: str) -> bool:
    """Whether the file that ``image`` was read from can be used unchanged; else the image is written anew."""
    whole = source.frame is None and source.baseline is None and source.path.name.endswith(ending)
    return whole and _is_readable(source.path) and (ending != ".png" or _is_8_bit_grey(image))


def has_foreground(label: sitk.Image) -> bool:
    """Whether any voxel is labelled."""
    return bool(sitk.GetArrayViewFromImage(label).any())


def copy_or_link(source: Path, target: Path, files: Files) -> None:
    """Copy or link a file; ``target`` appears once it is complete."""
    partial = target.with_name(f".partial-{target.name}")
    partial.unlink(missing_ok=True)
    PLACE_FILE[files](source, partial)
    os.replace(partial, target)


def write(image: sitk.Image, target: Path) -> None:
    """Write ``image``; ``target`` appears once it is complete.

    Raises:
        DataError: values outside 0 to 255 for an 8-bit file.
    """
    if target.suffix == ".png":
        image = _grey(image)
        values = sitk.GetArrayViewFromImage(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint8).max:
            raise DataError(
                f"values from {values.min():g} to {values.max():g} do not fit an 8-bit image, {target.name}"
            )
        image = _with_header_of(image, values.astype(np.uint8))
    partial = target.with_name(f".partial-{target.name}")  # the ending tells SimpleITK the format
    sitk.WriteImage(image, str(partial), useCompression=True)
    os.replace(partial, target)


def labelled_frames(path: Path) -> list[int]:
    """Numbers of the frames that are not empty in a label map, from 0."""
    image = _read(path)  # a view does not keep it alive
    frames = sitk.GetArrayViewFromImage(image)
    return [number for number, frame in enumerate(frames) if frame.any()]


def _read(path: Path) -> sitk.Image:
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        if "orthonormal" in str(error):
            return _read_sheared(path)
        cause = str(error).strip().splitlines()[-1] if path.is_file() else "there is no such file"
        raise DataError(f"{path} cannot be read: {cause}") from None


def _read_sheared(path: Path) -> sitk.Image:
    """Read a NIfTI file whose axes are, by rounding, not quite at right angles, with the nearest ones that are."""
    import nibabel

    file: Any = nibabel.load(path)
    lps = np.diag([-1.0, -1.0, 1.0]) @ file.affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    left, _, right = np.linalg.svd(lps[:, :3] / spacing)
    direction, origin = left @ right, lps[:, 3]
    values = np.asanyarray(file.dataobj)
    image = sitk.GetImageFromArray(values.transpose(), isVector=False)
    dimensions = image.GetDimension()
    image.SetSpacing([*spacing, 1.0][:dimensions])
    image.SetOrigin([*origin, 0.0][:dimensions])
    axes = np.eye(dimensions)
    axes[:3, :3] = direction
    image.SetDirection(axes.flatten())
    return image


def _is_readable(path: Path) -> bool:
    """Whether SimpleITK, and so nnU-Net, accepts the file's header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return False
    return True


def _frame(image: sitk.Image, source: SourceImage) -> sitk.Image:
    if source.frame is None:
        return image
    size = list(image.GetSize())
    if not 0 <= source.frame < size[-1]:
        raise DataError(f"{source.path} has {size[-1]} frames; there is no frame {source.frame} (from 0)")
    start = [0] * (len(size) - 1) + [source.frame]
    size[-1] = 0
    return sitk.Extract(image, size, start, sitk.ExtractImageFilter.DIRECTIONCOLLAPSETOSUBMATRIX)


def _grey(image: sitk.Image) -> sitk.Image:
    channels = image.GetNumberOfComponentsPerPixel()
    if channels == 1:
        return image
    colours = sitk.GetArrayViewFromImage(image)[..., :3].astype(np.float64)  # a fourth is opacity
    weights = LUMA if channels >= len(LUMA) else (1.0,)
    grey = np.rint(sum(weight * colours[..., place] for place, weight in enumerate(weights)))
    return _with_header_of(image, grey.astype(np.uint8))


def _is_8_bit_grey(image: sitk.Image) -> bool:
    return image.GetPixelID() == sitk.sitkUInt8


def _with_header_of(reference: sitk.Image, values: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(reference)
    return image


def _grid_of(image: sitk.Image) -> Grid:
    placement = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return Grid(image.GetSize(), placement)


def _listed(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
