"""From a model, images and a folder to segmentations: what ``fednnunet predict`` does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fednnunet.dicom.library import require_dicom
from fednnunet.errors import ConfigError, DataError
from fednnunet.inference.cases import ImageCase, find_cases
from fednnunet.inference.dicom_cases import find_dicom_cases, holds_dicom, parse_channels
from fednnunet.inference.output import OF_SERIES, OutputFolder
from fednnunet.inference.run import Chain, Outcome, Progress, Stages, segment_cases
from fednnunet.inference.segmenter import Segmenter
from fednnunet.models.open_ensemble import open_ensemble


@dataclass(frozen=True)
class Settings:
    """How to segment.

    Attributes:
        node: whose model of a run.
        personal: whether the model is the node's own, fine-tuned or Ditto's.
        configuration: nnU-Net's configuration, where a source has several.
        folds: folds to average; all that are finished if None.
        mirroring: whether to average over mirrored images.
        postprocessing: whether to apply the model's post-processing, if it has one.
        probabilities: whether to keep softmax outputs.
        overwrite: whether to segment anew what is there.
        dicom_seg: whether to write a DICOM SEG, too.
        channels: of DICOM, what the series of each channel are called; None for the channels' names.
    """

    node: str | None = None
    personal: bool = False
    configuration: str | None = None
    folds: tuple[str, ...] | None = None
    mirroring: bool = True
    postprocessing: bool = True
    probabilities: bool = False
    overwrite: bool = False
    dicom_seg: bool = False
    channels: str | None = None


@dataclass(frozen=True)
class Prediction:
    """A model, and the cases that it is to segment.

    Attributes:
        chain: the model.
        cases: all cases of the input.
        output: folder of the segmentations.
        settings: how.
        decided: which models, where a file beside them says which are best; else empty.
    """

    chain: Chain
    cases: Sequence[ImageCase]
    output: OutputFolder
    settings: Settings
    decided: str = ""

    @classmethod
    def of(
        cls, source: Path, inputs: Sequence[Path], output: Path, settings: Settings, device: torch.device
    ) -> Prediction:
        """Open a model and find the cases; nothing is written yet.

        Args:
            source: what :func:`~fednnunet.models.open_ensemble.open_ensemble` opens.
            inputs: what :func:`~fednnunet.inference.cases.find_cases` takes, or a folder of DICOM files.
            output: folder of the segmentations.
            settings: how to segment.
            device: where networks compute.

        Raises:
            DataError: there is no such model, or no case that it can segment.
            ConfigError: a DICOM SEG cannot be written of these images or labels, or the extra ``dicom`` is missing.
        """
        is_dicom = holds_dicom(inputs)
        if settings.dicom_seg and not is_dicom:
            raise ConfigError(f"--dicom-seg: {inputs[0]} holds no DICOM files, to which a segmentation could refer")
        if settings.channels and not is_dicom:
            raise ConfigError(f"--channels is for DICOM series, and {inputs[0]} holds none; leave it out")
        ensemble = open_ensemble(
            source,
            node=settings.node,
            configuration=settings.configuration,
            folds=settings.folds,
            personal=settings.personal,
        )
        described = ensemble.first.dataset_json
        if settings.dicom_seg:
            require_dicom()
        for member in ensemble.members:
            if not member.is_complete:
                raise DataError(
                    f"{member.model.configuration} refines what {member.previous_stage} segments, and its model is not "
                    f"there, beside {member.model.where}; give a folder or file that holds both"
                )
        members = tuple(
            Stages(
                Segmenter(member.model, device, settings.mirroring),
                None if member.previous is None else Segmenter(member.previous, device, settings.mirroring),
            )
            for member in ensemble.members
        )
        chain = Chain(members, ensemble.postprocessing if settings.postprocessing else None, settings.dicom_seg)
        ending, more = str(described["file_ending"]), OF_SERIES if settings.dicom_seg else ()
        folder = OutputFolder(output, ending, settings.probabilities, more)
        if is_dicom:
            called = parse_channels(settings.channels, chain.takes) if settings.channels else None
            cases = find_dicom_cases(inputs[0], chain.takes, called)
        else:
            cases = find_cases(inputs, chain.takes)
        decided = f"model: {ensemble.configurations}, as {ensemble.decided} says" if ensemble.decided else ""
        return cls(chain, cases, folder, settings, decided)

    @property
    def left(self) -> list[ImageCase]:
        """Cases that are not done, and those that cannot be segmented, which are named each time."""
        is_new = self.settings.overwrite
        return [case for case in self.cases if is_new or case.problem is not None or not self.output.is_done(case.name)]

    def run(self, progress: Progress) -> Outcome:
        """Segment them.

        Raises:
            ConfigError: the folder cannot be written, is in use, or holds segmentations made with something else.
        """
        model = self.chain.first.model
        beside = {"dataset.json": model.dataset_json, "plans.json": model.plans}
        images = {case.name: case.fingerprint() for case in self.cases if case.problem is None}
        with self.output.opened(self.record(), beside, images, self.settings.overwrite):
            return segment_cases(self.left, self.chain, self.output, progress)

    def record(self) -> dict[str, Any]:
        """What segmentations depend on, beside their images."""
        chain, model = self.chain, self.chain.first.model
        configurations = [member.segmenter.model.configuration for member in chain.members]
        return {
            "configuration": configurations if len(configurations) > 1 else model.configuration,
            "folds": list(model.folds),
            "mirroring": self.settings.mirroring,
            "postprocessing": None if chain.postprocessing is None else chain.postprocessing.to_json(),
            "plans": _digest(*(stage.model.plans for stage in chain.segmenters)),
            "labels": _digest(*(model.dataset_json.get(key) for key in ("labels", "regions_class_order"))),
            "weights": [digest for stage in chain.segmenters for digest in stage.digests],
        }


def _digest(*described: Any) -> str:
    """SHA-256 of what is said in JSON."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
