"""One slice of each scored case, for the report: image, reference and segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fednnunet.files import write_arrays


def save_overlay(
    folder: Path,
    centre: str,
    case: int,
    image: np.ndarray,
    reference: np.ndarray,
    segmentation: np.ndarray,
    spacing: np.ndarray,
    dsc: float,
) -> None:
    """Save the slice with most foreground as ``<centre>__<case>.npz``.

    Args:
        folder: folder of the overlays.
        centre: centre that the case belongs to.
        case: number of the case at its centre.
        image: one channel (Z, Y, X).
        reference: label map of the same shape; the slice is chosen by it, if it has any foreground.
        segmentation: label map of the same shape.
        spacing: size of a voxel along (Z, Y, X), mm.
        dsc: mean DSC of the case's labels.
    """
    foreground = reference if reference.any() else segmentation
    z = int(np.argmax((foreground > 0).sum(axis=(1, 2))))
    slices = {
        "image": _grey(image[z]),
        "reference": reference[z].astype(np.uint8),
        "prediction": segmentation[z].astype(np.uint8),
        "spacing": spacing[1:],
        "dsc": dsc,
    }
    write_arrays(folder / f"{centre}__{case}.npz", slices, compressed=True)


def _grey(image: np.ndarray) -> np.ndarray:
    """Intensities as 0 to 255, clipped at the 0.5th and 99.5th percentile."""
    low, high = np.percentile(image, [0.5, 99.5])
    return np.rint(255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
