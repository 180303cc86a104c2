"""Write files that nnU-Net would read wrong anew, beside the originals, which stay as they are."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from fednnunet.datasets.case_check import CheckedCase
from fednnunet.datasets.checked_file import CheckedFile
from fednnunet.datasets.file_integrity import MILLIMETRES, check_written, open_nifti, read_nifti_header
from fednnunet.datasets.raw import Case


def write_corrected(case: Case, checked: CheckedCase, reader: Any, ending: str, folder: Path) -> Case:
    """The case with the files that nnU-Net is to read.

    Label maps that were rounded or brought onto their image's grid are written by nnU-Net's own writer; images whose
    header gives another unit than mm, with the header changed and every other byte as it was.

    Args:
        case: the original files; they are referred to where they need no change.
        checked: the case as training is to see it.
        reader: nnU-Net's reader of these files.
        ending: their ending.
        folder: where to write; whole cases appear in it.
    """
    changed = [file for file in (*checked.images, checked.label) if file.changed]
    if not changed:
        return case
    names = {image.path: f"{case.name}_{channel:04d}{ending}" for channel, image in enumerate(checked.images)}
    names[case.label] = f"{case.name}{ending}"
    grid = checked.images[0].properties
    with complete_folder(folder / case.name, [names[file.path] for file in changed]) as partial:
        for file in changed:
            target = partial / names[file.path]
            if file is checked.label:
                reader.write_seg(file.voxels[0], str(target), grid)
            elif "voxels" in file.changed:
                _write_image(file, grid, target)
            else:
                _write_in_millimetres(file.path, target)
            check_written(target)
        times = case.label.stat()
        for path in partial.iterdir():  # written again, they are the same to raw_digest
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    places = {file.path: folder / case.name / names[file.path] for file in changed}
    images = tuple(places.get(path, path) for path in case.images)
    return Case(case.name, images, places.get(case.label, case.label))


@contextlib.contextmanager
def complete_folder(folder: Path, names: list[str]) -> Iterator[Path]:
    """A folder to write ``names`` to, which appears as ``folder`` at the end; one that another run made stays."""
    partial = folder.with_name(f".partial-{uuid.uuid4().hex[:8]}-{folder.name}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if not all((folder / name).is_file() for name in names):
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_image(image: CheckedFile, grid: dict[str, Any], target: Path) -> None:
    """Write one channel in the grid of the first."""
    voxels = image.voxels[0]
    if "nibabel_stuff" in grid:
        affine = grid["nibabel_stuff"].get("reoriented_affine", grid["nibabel_stuff"]["original_affine"])
        file = nib.Nifti1Image(voxels.transpose(), affine)
        file.header.set_xyzt_units("mm")
        nib.save(file, target)
        return
    header = grid["sitk_stuff"]
    written = sitk.GetImageFromArray(voxels[0] if len(header["spacing"]) == 2 else voxels)
    written.SetSpacing(header["spacing"])
    written.SetOrigin(header["origin"])
    written.SetDirection(header["direction"])
    sitk.WriteImage(written, str(target), True)


def _write_in_millimetres(source: Path, target: Path) -> None:
    """Copy a NIfTI file, with lengths of its header in mm."""
    with open_nifti(source) as file:
        content = file.read()
    header = read_nifti_header(content)
    assert header is not None, "its unit was read from it"
    space, time = header.get_xyzt_units()
    factor = MILLIMETRES[space]
    for name in ("pixdim", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):
        scaled = np.asarray(header[name], dtype=np.float64) * factor
        header[name] = [header[name][0], *scaled[1:4], *header[name][4:]] if name == "pixdim" else scaled
    header.set_xyzt_units("mm", time)
    changed = header.binaryblock + content[header.sizeof_hdr :]
    target.write_bytes(gzip.compress(changed, mtime=0) if target.name.endswith(".gz") else changed)
