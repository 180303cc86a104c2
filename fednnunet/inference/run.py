"""Segment many cases: one is read and preprocessed while another is at the network, and a third is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fednnunet.errors import DataError
from fednnunet.evaluation.predict import NotFiniteError
from fednnunet.exchange.data_notes import NoteKind
from fednnunet.inference.cases import ImageCase, ModelInput
from fednnunet.inference.dicom_cases import write_seg
from fednnunet.inference.output import OutputFolder, Segmented
from fednnunet.inference.segmenter import Preprocessed, RawImages, Segmenter
from fednnunet.models.postprocessing import Postprocessing


class Progress:
    """Is told what happens; every method is called in the thread that segments."""

    def on_tile(self, case: str, part: float) -> None:
        """A tile is done; ``part`` is the part of all the case's tiles that one is."""

    def on_case(self, case: str) -> None:
        """A case is written."""

    def on_failure(self, case: str, reason: str) -> None:
        """A case is left out, for a reason of one line."""


@dataclass
class Outcome:
    """What came of the cases.

    Attributes:
        written: names of cases.
        failed: name to reason.
        notes: of each case that was read, what people should know of its files.
    """

    written: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[Mapping[NoteKind, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Stages:
    """A model, of a cascade with the model whose segmentations it takes.

    Attributes:
        segmenter: the model.
        previous: the previous stage; None without a cascade.
    """

    segmenter: Segmenter
    previous: Segmenter | None = None

    @property
    def all(self) -> tuple[Segmenter, ...]:
        """In the order in which they compute."""
        return (self.segmenter,) if self.previous is None else (self.previous, self.segmenter)

    def logits(
        self, raw: RawImages, images: Preprocessed, on_tile: Callable[[int], None]
    ) -> tuple[torch.Tensor, Preprocessed]:
        """Logits of the last network, and what it was given; ``images`` is for the first one."""
        if self.previous is not None:
            before = self.previous.segmentation(self.previous.logits(images, on_tile), images)
            images = self.segmenter.preprocess(raw, before)
        return self.segmenter.logits(images, on_tile), images


@dataclass
class Computed:
    """What networks say of a case.

    Attributes:
        logits: of the last model.
        images: what it was given, without voxels.
        before: sum of the softmax outputs (classes, Z, Y, X) of the models before it; None of one alone.
        properties: of the first model, for the files.
    """

    logits: torch.Tensor
    images: Preprocessed
    before: np.ndarray | None
    properties: dict[str, Any]


@dataclass(frozen=True)
class Chain:
    """What segments: a model, or several whose softmax outputs are averaged.

    Attributes:
        members: the models.
        postprocessing: applied to segmentations; None for none.
        dicom_seg: whether a DICOM SEG is written, too.
    """

    members: tuple[Stages, ...]
    postprocessing: Postprocessing | None = None
    dicom_seg: bool = False

    @property
    def first(self) -> Segmenter:
        """The model that reads and writes files, and gives labels."""
        return self.members[0].segmenter

    @property
    def segmenters(self) -> tuple[Segmenter, ...]:
        """All, in the order in which they compute."""
        return tuple(segmenter for member in self.members for segmenter in member.all)

    @property
    def takes(self) -> ModelInput:
        """What files the models take: a channel may lack that all of them do without."""
        takes = self.first.takes
        lacking = [segmenter.takes.may_lack for segmenter in self.segmenters]
        return replace(takes, may_lack=frozenset.intersection(*lacking))

    def prepare(self, case: ImageCase) -> tuple[RawImages, Preprocessed]:
        """Read a case, and preprocess it for the first network; only further ones need its own voxels after that."""
        raw = self.first.read(case)
        images = self.members[0].all[0].preprocess(raw)
        return (raw if len(self.segmenters) > 1 else replace(raw, voxels=raw.voxels[:, :0])), images

    def compute(self, raw: RawImages, images: Preprocessed, on_part: Callable[[float], None]) -> Computed:
        """Run all networks on a case: one model after another, so that one softmax output and the sum are in memory."""
        number = sum(len(segmenter.model.folds) for segmenter in self.segmenters)

        def on_tile(tiles: int) -> None:
            on_part(1 / (tiles * number))

        *others, last = self.members
        before: np.ndarray | None = None
        properties: dict[str, Any] | None = None
        for member, following in zip(others, self.members[1:], strict=True):
            logits, images = member.logits(raw, images, on_tile)
            _, softmax = member.segmenter.with_probabilities(logits, images)
            before = _added(before, softmax)
            properties = properties or images.properties
            del logits, softmax
            images = following.all[0].preprocess(raw)
        logits, images = last.logits(raw, images, on_tile)
        given = replace(images, voxels=images.voxels[:, :0])
        return Computed(logits, given, before, properties or images.properties)

    def finish(self, case: ImageCase, computed: Computed, probabilities: bool) -> Segmented:
        """The segmentation in the grid of the case's images."""
        softmax: np.ndarray | None = None
        segmenter = self.members[-1].segmenter
        if computed.before is not None:
            softmax = _added(computed.before, segmenter.with_probabilities(computed.logits, computed.images)[1])
            softmax /= len(self.members)
            labels = self.first.label_map(softmax)
            softmax = softmax if probabilities else None
        elif probabilities:
            labels, softmax = segmenter.with_probabilities(computed.logits, computed.images)
        else:
            labels = segmenter.segmentation(computed.logits, computed.images)
        if self.postprocessing is not None:
            labels = self.postprocessing.apply(labels)
        names = self.first.model.dataset_json["labels"]
        more = partial(write_seg, case=case, labels=names) if self.dicom_seg else None
        return Segmented(case.name, labels, computed.properties, softmax, more)


def _added(total: np.ndarray | None, softmax: np.ndarray) -> np.ndarray:
    """The sum, in float32 as nnU-Net's ``average_probabilities``."""
    if total is None:
        return softmax.astype(np.float32)
    if total.shape != softmax.shape:
        raise DataError(f"outputs of shape {softmax.shape} and {total.shape} cannot be averaged")
    total += softmax
    return total


def segment_cases(cases: Sequence[ImageCase], chain: Chain, output: OutputFolder, progress: Progress) -> Outcome:
    """Segment cases into an opened folder.

    Three cases are in memory at most. One that fails is left out, and the others go on.

    Args:
        cases: what to segment.
        chain: the model.
        output: where segmentations go.
        progress: is told what happens.

    Raises:
        ConfigError: the folder cannot be written.
    """
    outcome = Outcome()
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        written = _Written(outcome, progress)
        try:
            for case, prepared in _prepared(cases, chain, reader):
                with written.failures_of(case.name):
                    raw, images = prepared()
                    outcome.notes.append(raw.notes)
                    computed = chain.compute(raw, images, partial(progress.on_tile, case.name))
                    del raw, images
                    written.wait()
                    written.follow(case.name, writer.submit(_write, case, computed, chain, output))
                    del computed
            written.wait()
        except BaseException:
            reader.shutdown(cancel_futures=True)
            writer.shutdown(cancel_futures=True)
            raise
    return outcome


def _prepared(
    cases: Sequence[ImageCase], chain: Chain, reader: ThreadPoolExecutor
) -> Iterator[tuple[ImageCase, Callable[[], tuple[RawImages, Preprocessed]]]]:
    """Each case once it is ready, with what gives it or raises; the next one is read meanwhile, no further one."""
    following = [reader.submit(chain.prepare, case) for case in cases[:1]]
    for number, case in enumerate(cases):
        current = following.pop()
        current.exception()  # waits
        following = [reader.submit(chain.prepare, after) for after in cases[number + 1 : number + 2]]
        yield case, current.result


class _Written:
    """What is being written, one case at a time, and what came of those before."""

    def __init__(self, outcome: Outcome, progress: Progress) -> None:
        self.outcome = outcome
        self.progress = progress
        self._case = ""
        self._future: Future[None] | None = None

    def follow(self, case: str, future: Future[None]) -> None:
        """A case is being written."""
        self._case, self._future = case, future

    def wait(self) -> None:
        """Wait until it is."""
        if self._future is None:
            return
        case, future, self._future = self._case, self._future, None
        with self.failures_of(case):
            future.result()
            self.outcome.written.append(case)
            self.progress.on_case(case)

    @contextlib.contextmanager
    def failures_of(self, case: str) -> Iterator[None]:
        """Leave out a case that fails."""
        try:
            yield
        except (DataError, NotFiniteError, MemoryError, torch.OutOfMemoryError) as error:
            self.outcome.failed[case] = _reason(error, case)
            self.progress.on_failure(case, self.outcome.failed[case])


def _write(case: ImageCase, computed: Computed, chain: Chain, output: OutputFolder) -> None:
    output.write(chain.finish(case, computed, output.probabilities), chain.first.reader)


def _reason(error: Exception, case: str) -> str:
    if isinstance(error, NotFiniteError):
        return f"the model's output for {case} is NaN or infinite; look at its images, or at how the model was trained"
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory does not suffice for {case}; try --device cpu"
    if isinstance(error, MemoryError):
        return f"there is not enough memory for {case}"
    return str(error)
