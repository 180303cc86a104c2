"""Segment cases and score them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from fednnunet.datasets.file_integrity import check_written
from fednnunet.datasets.raw import Case
from fednnunet.errors import ConfigError
from fednnunet.evaluation.metrics import SegmentationMetrics
from fednnunet.evaluation.overlays import save_overlay
from fednnunet.evaluation.predict import NotFiniteError
from fednnunet.exchange.messages import CaseScore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutCase:
    """A case that the model was not trained on.

    Attributes:
        centre: centre that the case belongs to.
        number: position among the centre's cases sorted by name; all that leaves the node of the case's identity.
        identifier: name of the case in the preprocessed dataset.
        case: raw files of the case.
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
    annotated: Mapping[str, Collection[str]] = MappingProxyType({}),
    shown: int = 0,
) -> list[CaseScore]:
    """Scores of every annotated label of every case, by every model.

    Args:
        cases: cases to score.
        segment: yields models, None for the node's own, and their segmentations (Z, Y, X) in the image's own grid.
        reader: nnU-Net's reader of these files.
        labels: nnU-Net's ``labels``.
        distance_unit: unit of distances: mm by the image's spacing, or pixels.
        tolerance: tolerance of the surface DSC, in that unit.
        predictions: folder and file ending to write segmentations to, or None.
        overlays: folder for one slice of each case, with the last model's segmentation, or None.
        annotated: centre to the labels that its cases have; for centres that have not all of them.
        shown: number of the channel that overlays show.

    Raises:
        ConfigError: a model's output is NaN or infinite; says of which model, and in how many cases.
    """
    not_finite: list[str | None] = []
    scores: list[CaseScore] = []
    metrics: dict[str | None, SegmentationMetrics] = {}
    for held_out in cases:
        reference, properties = reader.read_seg(str(held_out.case.label))
        reference = reference[0]
        spacing = np.asarray(properties["spacing"], dtype=float)
        voxel = spacing if distance_unit == "mm" else np.ones_like(spacing)
        for model, segmentation in _note_not_finite(segment(held_out), not_finite):
            measure = metrics.setdefault(model, SegmentationMetrics(labels, tolerance))
            results = measure(segmentation, reference, tuple(voxel), annotated.get(held_out.centre))
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
        if not_finite:
            continue  # the other cases are only counted
        if predictions is not None:
            folder, ending = predictions
            folder.mkdir(parents=True, exist_ok=True)
            prediction = folder / f"{held_out.identifier}{ending}"
            reader.write_seg(segmentation, str(prediction), properties)
            check_written(prediction)
        if overlays is not None:
            image, _ = reader.read_images([str(held_out.case.images[shown])])
            known = np.where(reference == labels.get("ignore"), 0, reference)
            dsc = float(np.mean([score.dsc for score in results if np.isfinite(score.dsc)] or [np.nan]))
            save_overlay(overlays, held_out.centre, held_out.number, image[0], known, segmentation, spacing, dsc)
    if not_finite:
        raise _not_finite_error(not_finite, len(cases))
    for model, measure in metrics.items():
        _log_means(model, measure)
    return scores


def _note_not_finite(
    segmentations: Iterable[tuple[str | None, np.ndarray]], not_finite: list[str | None]
) -> Iterator[tuple[str | None, np.ndarray]]:
    """The segmentations up to the first model whose output is not finite, which is noted."""
    try:
        yield from segmentations
    except NotFiniteError as error:
        not_finite.append(error.model)


def _not_finite_error(models: Sequence[str | None], num_cases: int) -> ConfigError:
    whose = {"its own model" if model is None else f"the model of {model}" for model in models}
    owners = " and ".join(sorted(whose))
    return ConfigError(
        f"the output of {owners} is NaN or infinite in {len(models)} of {num_cases} cases, so none "
        "is scored: weights or running statistics are broken; train again with compute.precision=32-true or a lower "
        "trainer.initial_lr"
    )


def _log_means(model: str | None, measure: SegmentationMetrics) -> None:
    whose = "this node's model" if model is None else f"model of {model}"
    for label, mean in measure.compute().items():
        values = ", ".join(f"{metric} {value:.4g}" for metric, value in mean.items())
        log.info("%s, %s, of %d cases: %s", whose, label, measure.num_cases[label], values)


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
