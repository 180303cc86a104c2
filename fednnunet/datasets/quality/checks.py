"""Likely training problems in the centres' data, found in the measures of their cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from fednnunet.datasets.case_check import UNKNOWN_VALUE
from fednnunet.datasets.case_grids import NO_FIT
from fednnunet.datasets.description import unknown_label_values
from fednnunet.datasets.quality.summary import SHARES, CaseMeasures, CentreSummary, DataIssue, most_common
from fednnunet.datasets.splits import ADVICE_ON_FEW_CASES, effect_of_few_cases
from fednnunet.exchange.data_notes import NoteKind, count_notes
from fednnunet.listing import join_all

FEWEST_VOXELS = 10
"""A label with fewer voxels in a case is tiny; so is one that is smaller than one voxel at the median spacing."""
SPACING_FACTOR = 2.0
"""A case whose spacing differs from the centre's median by more than this factor is an outlier."""
LEAST_OVERLAP = 0.2
"""Intensity ranges whose overlap is a smaller part than this of their union differ strongly."""

NOTES: Mapping[NoteKind, tuple[str, str]] = {
    NoteKind.NOT_FINITE: (
        "NaN or infinity",
        "nnU-Net's reader makes them 0; write the value that stands for no signal",
    ),
    NoteKind.ONE_VALUE: (
        "constant image",
        "is it the right file?",
    ),
    NoteKind.IGNORED_EVERYWHERE: ("ignored everywhere", "annotate it, or take the case out: it only costs time"),
    NoteKind.LABEL_ROUNDED: ("label rounded", "nothing to do; write label maps as integers to be rid of this"),
    NoteKind.LABEL_REORIENTED: ("label reoriented", "look at one: labels must overlie their images in a viewer"),
    NoteKind.CHANNEL_REORIENTED: ("channel reoriented", "look at one: channels must overlie each other in a viewer"),
    NoteKind.NEARLY_ONE_GRID: ("geometry", "mostly rounding in headers; check that image and label overlie each other"),
    NoteKind.HEADERS_IGNORED: ("headers ignored", "set image_headers to check, to go by headers"),
    NoteKind.NO_POSITION: ("no position", "look at one: labels must overlie their images voxel by voxel"),
    NoteKind.UNIT: ("unit", "nothing to do, if the tables above give the right spacing in mm"),
    NoteKind.TWO_SPACINGS: ("two spacings", "compare with the tables above; correct the header where they are wrong"),
}
"""Name of each kind of note, and advice."""


def find_issues(centres: Sequence[CentreSummary]) -> list[DataIssue]:
    """All likely training problems, centre by centre; those that involve several centres come last."""
    issues: list[DataIssue] = []
    for centre in centres:
        for check in (
            _unreadable,
            _too_few,
            _problems,
            _notes,
            _empty_masks,
            _absent_labels,
            _tiny_labels,
            _orientations,
            _spacings,
            _copies,
        ):
            issues += check(centre)
    return [*issues, *_planes(centres), *_intensities(centres), *_copies_across(centres)]


def _issue(
    severity: Literal["warning", "bad"],
    centre: CentreSummary,
    kind: str,
    cases: Sequence[CaseMeasures],
    found: str,
    advice: str,
) -> DataIssue:
    return DataIssue(severity, centre.name, kind, found, tuple(case.name for case in cases), centre.number, advice)


# one centre --------------------------------------------------------------------------------------------


def _unreadable(centre: CentreSummary) -> Iterator[DataIssue]:
    if centre.unreadable:
        names = tuple(case.name for case in centre.unreadable)
        found = "; ".join(case.reason for case in centre.unreadable[:3])
        advice = "get the files again, or take the cases out"
        yield DataIssue("bad", centre.name, "cannot be read", found, names, centre.number, advice)


def _too_few(centre: CentreSummary) -> Iterator[DataIssue]:
    found = None if centre.external else effect_of_few_cases(centre.number)
    if found:
        yield _issue("warning", centre, "too few cases", (), found, ADVICE_ON_FEW_CASES)


def _problems(centre: CentreSummary) -> Iterator[DataIssue]:
    """What training stops at: values and grids of label maps."""
    found = {problem.kind: problem for case in centre.cases for problem in case.problems}
    for kind in found:
        having = [case for case in centre.cases if any(problem.kind == kind for problem in case.problems)]
        problems = [problem for case in having for problem in case.problems if problem.kind == kind]
        text, advice = problems[0].text, "correct it, or take the case out"
        if kind == NO_FIT:
            what = sorted({problem.differs for problem in problems})
            text = f"image and label differ in {join_all(what)}"
            advice = "resample the label to its image's grid, or take the case out; nnU-Net stops here"
        elif kind == UNKNOWN_VALUE:
            known = {value for values in centre.labels.values() for value in values} | {centre.ignored}
            values = unknown_label_values((value for case in having for value in case.label_voxels), known)
            text = f"labels hold {join_all([f'{value:g}' for value in values])}, which dataset.json does not name"
            advice = "name the values in labels, or map them"
        yield _issue("bad", centre, kind, having, text, advice)


def _notes(centre: CentreSummary) -> Iterator[DataIssue]:
    """What a run tells of each node at its start."""
    for note in count_notes({NoteKind(kind): voxels for kind, voxels in case.notes.items()} for case in centre.cases):
        having = [case for case in centre.cases if note.kind in case.notes]
        name, advice = NOTES[note.kind]
        yield _issue("warning", centre, name, having, str(note), advice)


def _empty_masks(centre: CentreSummary) -> Iterator[DataIssue]:
    told = NoteKind.IGNORED_EVERYWHERE
    empty = [c for c in centre.cases if not set(c.label_voxels) - {centre.ignored} and told not in c.notes]
    if empty:
        found = "the label map holds only background"
        advice = "is the annotation missing? Such a case teaches that there is nothing to find; its DSC is 1 or 0"
        yield _issue("warning", centre, "empty mask", empty, found, advice)


def _absent_labels(centre: CentreSummary) -> Iterator[DataIssue]:
    for label in centre.labels:
        if centre.cases and not centre.voxels(label).any():
            advice = "is it annotated under another value here? Without it the centre teaches that it is background"
            yield _issue("warning", centre, "absent label", (), f"no case holds {label}", advice)


def _tiny_labels(centre: CentreSummary) -> Iterator[DataIssue]:
    spacings = centre.spacings
    voxel = float(np.prod(np.median(spacings, axis=0))) if len(spacings) else 1.0
    for label in centre.labels:
        measured = zip(centre.cases, centre.voxels(label), centre.volumes(label), strict=True)
        tiny = [case for case, number, volume in measured if number and (number < FEWEST_VOXELS or volume < voxel)]
        if tiny:
            found = f"{label} has fewer than {FEWEST_VOXELS} voxels, or less than one at the centre's median spacing"
            advice = "check whether it is a stray voxel; resampling may lose it, and its DSC is all or nothing"
            yield _issue("warning", centre, "tiny label", tiny, found, advice)


def _orientations(centre: CentreSummary) -> Iterator[DataIssue]:
    orientations = centre.orientations
    if len(orientations) > 1:
        usual = most_common((case.orientation_label for case in centre.cases if case.plane), default="")
        others = [case for case in centre.cases if case.plane and case.orientation_label != usual]
        counted = [f"{number} {name}" for name, number in orientations.most_common()]
        advice = (
            "reorient all the same way (SimpleITK.DICOMOrient, images and labels): nnU-Net takes the axes as they are"
        )
        yield _issue("warning", centre, "mixed orientation", others, join_all(counted), advice)


def _spacings(centre: CentreSummary) -> Iterator[DataIssue]:
    spacings = np.sort(centre.spacings, axis=1)  # by size: a rotated image is no outlier
    if not len(spacings):
        return
    cases = [case for case in centre.cases if len(case.spacing or ()) == spacings.shape[1]]
    ratio = spacings / np.median(spacings, axis=0)
    far = np.maximum(ratio, 1 / ratio).max(axis=1) > SPACING_FACTOR
    outliers = [case for case, is_far in zip(cases, far, strict=True) if is_far]
    if outliers:
        first = " x ".join(f"{step:.3g}" for step in outliers[0].spacing or ())
        median = " x ".join(f"{step:.3g}" for step in np.median(centre.spacings, axis=0))
        found = f"spacing more than {SPACING_FACTOR:g} times off the median {median} mm, the first {first} mm (Z, Y, X)"
        advice = "is the header right? nnU-Net resamples all cases to one spacing"
        yield _issue("warning", centre, "spacing outlier", outliers, found, advice)


def _copies(centre: CentreSummary) -> Iterator[DataIssue]:
    groups = [cases for cases in _by_digest(centre.cases).values() if len(cases) > 1]
    if groups:
        found = "; ".join(" = ".join(case.name for case in cases) for cases in groups[:3])
        copied = [case for cases in groups for case in cases]
        advice = "keep one of each: training on one while its copy is held out makes scores too good"
        yield _issue("warning", centre, "duplicates", copied, f"the same image: {found}", advice)


# all centres -------------------------------------------------------------------------------------------


def _planes(centres: Sequence[CentreSummary]) -> Iterator[DataIssue]:
    planes = {centre.name: centre.plane for centre in centres if centre.plane}
    if len(set(planes.values())) < 2:
        return
    usual = most_common(planes.values(), default="")
    others = ", ".join(name for name, plane in planes.items() if plane == usual)
    for centre in centres:
        if centre.plane and centre.plane != usual:
            found = f"slices are {centre.plane}, those of {others} {usual}"
            advice = "reorient one of them if anatomy should look alike to the shared layers"
            yield _issue("warning", centre, "other orientation", (), found, advice)


def _intensities(centres: Sequence[CentreSummary]) -> Iterator[DataIssue]:
    with_cases = [centre for centre in centres if centre.cases]
    if len({centre.channels for centre in with_cases}) != 1:
        return
    for channel, name in enumerate(with_cases[0].channels):
        ranges = {
            centre.name: tuple(np.median(centre.intensities(channel), axis=0)[[0, -1]].tolist())
            for centre in with_cases
        }
        for centre in with_cases:
            ours = ranges[centre.name]
            others = [other for other_name, other in ranges.items() if other_name != centre.name]
            far = [other for other in others if _overlap(ours, other) < LEAST_OVERLAP]
            if 2 * len(far) > len(others):  # else the others are the unusual ones
                low, high = np.median(far, axis=0)
                found = (
                    f"{name} runs from {ours[0]:,.5g} to {ours[1]:,.5g} ({SHARES.low:g} to {SHARES.high:g} % of a "
                    f"case), at {'most' if len(far) < len(others) else 'all'} other centres from about {low:,.5g} to "
                    f"{high:,.5g}"
                )
                advice = (
                    "were images rescaled or cut to 8 bits here? nnU-Net scales each image by itself, but a channel "
                    "named CT by one rule for all"
                )
                yield _issue("warning", centre, "intensities", (), found, advice)


def _overlap(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    """Length of the intersection of two ranges over the length of their union."""
    shared = min(ours[1], theirs[1]) - max(ours[0], theirs[0])
    together = max(ours[1], theirs[1]) - min(ours[0], theirs[0])
    return 1.0 if together == 0 else max(shared, 0.0) / together


def _copies_across(centres: Sequence[CentreSummary]) -> Iterator[DataIssue]:
    digests = {centre.name: _by_digest(centre.cases) for centre in centres}
    for first, second in combinations(centres, 2):
        shared = [digest for digest in digests[first.name] if digest in digests[second.name]]
        if shared:
            pairs = [
                f"{digests[first.name][digest][0].name} = {second.name}'s {digests[second.name][digest][0].name}"
                for digest in shared
            ]
            copied = [digests[first.name][digest][0] for digest in shared]
            found = f"{second.name} holds the same image: {'; '.join(pairs[:3])}"
            advice = "keep each at one centre only: the other trains on what this one holds out or tests on"
            yield _issue("warning", first, "duplicates across", copied, found, advice)


def _by_digest(cases: Sequence[CaseMeasures]) -> dict[str, list[CaseMeasures]]:
    groups: dict[str, list[CaseMeasures]] = defaultdict(list)
    for case in cases:
        groups[case.digest].append(case)
    return groups
