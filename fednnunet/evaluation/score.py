"""Segment cases, score them, keep a slice of each for the eye."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from fednnunet.datasets.raw import Case
from fednnunet.evaluation.metrics import score_case
from fednnunet.exchange.messages import CaseScore
from fednnunet.files import write_arrays


@dataclass(frozen=True)
class HeldOutCase:
    """A case that the model was not trained on.

    Attributes:
        centre: whose case it is.
        number: its place among the centre's cases sorted by name; the only name of it that leaves the node.
        identifier: its name in the preprocessed dataset.
        case: its raw files.
    """

    centre: str
    number: int
    identifier: str
    case: Case


def score_cases(
    cases: Sequence[HeldOutCase],
    segment: Callable[[HeldOutCase], Iterable[tuple[str | None, np.ndarray]]],
    reader: BaseReaderWriter,
    labels: dict[str, Any],
    distance_unit: Literal["mm", "pixels"],
    tolerance: float,
    predictions: tuple[Path, str] | None,
    overlays: Path | None,
) -> list[CaseScore]:
    """Scores of every label of every case, by every model.

    Args:
        cases: what to score.
        segment: yields models, None for the node's own, and their segmentations (Z, Y, X) in the image's own grid.
        reader: nnU-Net's reader of these files.
        labels: nnU-Net's ``labels``.
        distance_unit: distances by the image's spacing, or in pixels.
        tolerance: of the surface DSC, in that unit.
        predictions: folder and file ending to write segmentations to, or None.
        overlays: folder for one slice of each case, with the last model's segmentation, or None.
    """
    scores = []
    for held_out in cases:
        reference, properties = reader.read_seg(str(held_out.case.label))
        reference = reference[0]
        spacing = np.asarray(properties["spacing"], dtype=float)
        voxel = spacing if distance_unit == "mm" else np.ones_like(spacing)
        for model, segmentation in segment(held_out):
            results = score_case(segmentation, reference, labels, tuple(voxel), tolerance)
            scores += [
                CaseScore(
                    centre=held_out.centre,
                    case=held_out.number,
                    model=model,
                    label=score.label,
                    dsc=_defined(score.dsc),
                    hd95=_defined(score.hd95),
                    surface_dsc=_defined(score.surface_dsc),
                    volume_error=_defined(score.volume_error),
                    empty=score.empty,
                )
                for score in results
            ]
        if predictions is not None:
            folder, ending = predictions
            folder.mkdir(parents=True, exist_ok=True)
            reader.write_seg(segmentation, str(folder / f"{held_out.identifier}{ending}"), properties)
        if overlays is not None:
            image, _ = reader.read_images([str(held_out.case.images[0])])  # the channel that is shown
            known = np.where(reference == labels.get("ignore"), 0, reference)
            dsc = float(np.mean([score.dsc for score in results if np.isfinite(score.dsc)] or [np.nan]))
            _save_overlay(overlays, held_out, image[0], known, segmentation, spacing, dsc)
    return scores


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _save_overlay(
    folder: Path,
    held_out: HeldOutCase,
    image: np.ndarray,
    reference: np.ndarray,
    segmentation: np.ndarray,
    spacing: np.ndarray,
    dsc: float,
) -> None:
    """The slice with most foreground, of the reference if it has any, as ``<centre>__<case>.npz``."""
    foreground = reference if reference.any() else segmentation
    z = int(np.argmax((foreground > 0).sum(axis=(1, 2))))
    slices = {
        "image": _grey(image[z]),
        "reference": reference[z].astype(np.uint8),
        "prediction": segmentation[z].astype(np.uint8),
        "spacing": spacing[1:],
        "dsc": dsc,
    }
    write_arrays(folder / f"{held_out.centre}__{held_out.number}.npz", slices, compressed=True)


def _grey(image: np.ndarray) -> np.ndarray:
    """Intensities as 0 to 255, without the half per cent at either end."""
    low, high = np.percentile(image, [0.5, 99.5])
    return np.rint(255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
