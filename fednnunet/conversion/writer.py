"""Write what a reader found as nnU-Net raw datasets, one per centre."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fednnunet.conversion import images
from fednnunet.conversion.manifest import CaseRecord, Manifest, Missing, SourceFile, digest, read_manifest
from fednnunet.conversion.options import Options
from fednnunet.conversion.plan import CentrePlan, ConversionPlan
from fednnunet.conversion.study import ConversionIssue, SourceCase
from fednnunet.conversion.targets import TargetCentre
from fednnunet.datasets.splits import FOLDS, splits_by_patient
from fednnunet.errors import ConfigError, DataError
from fednnunet.files import DISK_FULL, write_atomically
from fednnunet.processes import map_in_processes

SECONDS_BETWEEN_SAVES = 5.0
"""What was written after the last one is written again where a conversion is killed."""


@dataclass(frozen=True)
class ConversionResult:
    """A centre's dataset as it is there now.

    Attributes:
        centre: whose it is.
        folder: of the dataset.
        manifest: as it was written.
        converted: cases that this conversion wrote; the others were there.
    """

    centre: TargetCentre
    folder: Path
    manifest: Manifest
    converted: int


def convert(
    plan: ConversionPlan,
    target: Path,
    made_by: str,
    source_settings: Mapping[str, Any],
    options: Options,
    progress: Progress,
) -> list[ConversionResult]:
    """Write the datasets of a plan; what an earlier, interrupted conversion wrote stays, if it is whole.

    A dataset has its ``dataset.json`` when all its studies were looked at. Case files appear when they are whole. The
    source is only read.

    Args:
        plan: what to write.
        target: folder of nnU-Net raw datasets.
        made_by: for the manifest.
        source_settings: for the manifest: what else the files depend on.
        options: how.
        progress: is told of every study.

    Returns:
        One entry per centre that has studies.

    Raises:
        DataError: a study has a problem and ``on_error`` is ``stop``; a folder is there that was not made by this
            conversion, with these settings; too little room on the disk. What was written until then stays.
    """
    if options.on_error == "stop" and plan.all_problems:
        first, *others = plan.all_problems
        raise DataError(f"{first.line}{_and_more(others)}; fix it, or leave such studies out with --on-error skip")
    settings = {
        **source_settings,
        "channel_names": list(plan.survey.channel_names),
        "labels": dict(plan.labels),
        "files": options.files,
        "headers": options.headers,
    }
    books = {
        part.centre.name: DatasetWriter.open(plan, part, target / part.centre.dataset, made_by, settings)
        for part in plan.parts
        if part.studies or part.problems
    }
    tasks = [task for book in books.values() for task in book.tasks(options)]
    _check_room(target, tasks, options)
    progress.start(sum(len(part.studies) for part in plan.parts), len(tasks))
    for book in books.values():
        book.save()
    saved = time.monotonic()
    try:
        for task, result in zip(tasks, map_in_processes(convert_study, tasks, options.processes), strict=True):
            if isinstance(result, ConversionIssue) and options.on_error == "stop":
                raise DataError(
                    f"{result.line}; fix it, or leave such studies out with --on-error skip; what was converted is kept"
                )
            books[task.study.centre].note(task.study, result)
            progress.advance(task.study)
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                books[task.study.centre].save()
                saved = time.monotonic()
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ConfigError(f"{error.strerror}: {target}; make room, and give the same command to go on") from None
    finally:
        for book in books.values():
            book.save()
    done = [book.finish() for book in books.values()]
    if not any(entry.manifest.cases for entry in done):
        raise DataError(f"no study could be converted; the first: {plan.all_problems[0].line}")
    return done


class Progress(Protocol):
    """Is told how far a conversion is."""

    def start(self, studies: int, to_do: int) -> None:
        """``to_do`` of so many studies are not there yet."""

    def advance(self, study: SourceCase) -> None:
        """One more was looked at."""


@dataclass(frozen=True)
class _Task:
    """One study to convert; all that a process needs."""

    study: SourceCase
    folder: Path
    images: str
    labels: str
    ending: str
    values: Mapping[int, int]
    options: Options

    @property
    def files(self) -> list[Path]:
        """What is written: channels, then label map."""
        case = self.study.case
        channels = [self.folder / self.images / f"{case}_{n:04d}{self.ending}" for n in range(len(self.study.channels))]
        return [*channels, self.folder / self.labels / f"{case}{self.ending}"]


@dataclass
class DatasetWriter:
    """The manifest of a dataset under way."""

    plan: ConversionPlan
    part: CentrePlan
    folder: Path
    manifest: Manifest
    converted: int = 0

    @classmethod
    def open(
        cls, plan: ConversionPlan, part: CentrePlan, folder: Path, made_by: str, settings: dict[str, Any]
    ) -> DatasetWriter:
        fresh = Manifest(made_by=made_by, settings=settings, centre=part.centre.name)
        if not folder.exists() or not any(folder.iterdir()):
            return cls(plan, part, folder, fresh)
        before = read_manifest(folder)
        differs = [key for key in {**before.settings, **settings} if before.settings.get(key) != settings.get(key)]
        if (before.made_by, before.centre) != (made_by, part.centre.name):
            differs.insert(0, f"source ({before.made_by}, {before.centre})")
        if differs:
            raise DataError(
                f"{folder} was converted with another {', '.join(differs)}; choose another folder, or remove it first"
            )
        surplus = sorted(set(before.cases) - {study.case for study in part.studies})
        if surplus:
            raise DataError(
                f"{folder} holds {surplus[0]}{_and_more(surplus[1:])}, which the source has no more; choose another "
                "folder, or remove it first"
            )
        cases = {name: record for name, record in before.cases.items() if record.is_whole(folder)}
        return cls(plan, part, folder, fresh.model_copy(update={"cases": cases}))

    def tasks(self, options: Options) -> list[_Task]:
        """The studies that are not there yet; half a case that a killed conversion left is removed."""
        part, survey = "Ts" if self.part.centre.external else "Tr", self.plan.survey
        tasks = [
            _Task(
                study,
                self.folder,
                f"images{part}",
                f"labels{part}",
                survey.file_ending,
                {value: self.plan.labels[name] for value, name in study.label_values.items()},
                options,
            )
            for study in self.part.studies
            if study.case not in self.manifest.cases
        ]
        for task in tasks:
            for path in task.files:
                path.unlink(missing_ok=True)
        return tasks

    def note(self, study: SourceCase, result: CaseRecord | ConversionIssue) -> None:
        if isinstance(result, ConversionIssue):
            self.part.problems.append(result)
        else:
            self.manifest.cases[study.case] = result
            self.converted += 1

    def save(self) -> None:
        listed = self.manifest.model_copy(
            update={
                "cases": dict(sorted(self.manifest.cases.items())),
                "skipped": _as_missing([*sorted(self.part.problems, key=lambda r: r.study), *self.plan.problems]),
                "left_out": _as_missing([*self.part.left_out, *self.plan.left_out]),
            }
        )
        listed.write(self.folder)
        self.manifest = listed

    def finish(self) -> ConversionResult:
        """Describe the dataset; from now on it can be trained on."""
        cases, external = self.manifest.cases, self.part.centre.external
        if cases:
            self._write_splits()
            description = {
                "name": self.part.centre.dataset,
                "channel_names": {str(number): name for number, name in enumerate(self.plan.survey.channel_names)},
                "labels": dict(self.plan.labels),
                "numTraining": 0 if external else len(cases),
                "file_ending": self.plan.survey.file_ending,
            }
            write_atomically(self.folder / "dataset.json", json.dumps(description, indent=1))
        self.manifest = self.manifest.model_copy(update={"finished": True})
        self.manifest.write(self.folder)
        return ConversionResult(self.part.centre, self.folder, self.manifest, self.converted)

    def _write_splits(self) -> None:
        """Only where nnU-Net's own would put cases of one patient into training and held-out part."""
        patients = {case: record.patient for case, record in self.manifest.cases.items()}
        different = len(set(patients.values()))
        if not self.part.centre.external and FOLDS <= different < len(patients):
            splits = splits_by_patient(patients)
            write_atomically(self.folder / "splits_final.json", json.dumps(splits, indent=1))


def _check_room(target: Path, tasks: Sequence[_Task], options: Options) -> None:
    """Compressed images take about what they took, so the sizes of the source's files are a fair guess."""
    files = {path for task in tasks for path in task.study.files} if options.files == "copy" else set()
    needed = sum(path.stat().st_size for path in files)
    there = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ConfigError(
            f"about {needed / 2**30:.1f} GiB are needed in {there}, and {free / 2**30:.1f} are free; make room, or "
            "link files that need no change: --files symlink"
        )


def convert_study(task: _Task) -> CaseRecord | ConversionIssue:
    """Check a study and write its case; a problem leaves no file."""
    study = task.study
    try:
        channels = [images.read_image(source) for source in study.channels]
        for image, source in zip(channels, study.channels, strict=True):
            if source.frame is not None and image.GetDimension() == 2 and task.ending != ".png":
                raise DataError(f"{source.path} has no frames; it is one volume")
        label, label_is_same = images.read_label(study.label, task.values)
        if study.label.frame is not None and not images.has_foreground(label):
            labelled = ", ".join(map(str, images.labelled_frames(study.label.path))) or "none"
            raise DataError(
                f"frame {study.label.frame} of {study.label.path} has no label; the frames that have: {labelled}"
            )
        first_path = study.channels[0].path
        for image, source in zip(channels[1:], study.channels[1:], strict=True):
            images.check_grid(image, channels[0], source.path, first_path)
        if task.options.headers == "image":
            images.check_size(label, channels[0], study.label.path, first_path)
            label_is_same = label_is_same and images.has_same_grid(label, channels[0])
            label = images.with_header(label, channels[0])
        else:
            images.check_grid(label, channels[0], study.label.path, first_path)
        sources = [*study.channels, study.label if label_is_same else None]
        for path, image, origin in zip(task.files, [*channels, label], sources, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            if origin is not None and images.can_reuse_file(origin, image, task.ending):
                images.copy_or_link(origin.path, path, task.options.files)
            else:
                images.write(image, path)
        return CaseRecord(
            patient=study.patient or study.case,
            sources={str(path.absolute()): SourceFile.of(path) for path in study.files},
            files={str(path.relative_to(task.folder)): digest(path) for path in task.files},
            remarks=[] if images.has_foreground(label) else ["the label map is empty"],
        )
    except (DataError, OSError) as error:
        for path in task.files:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        return ConversionIssue(study.case, str(error), study.centre)


def _as_missing(remarks: Sequence[ConversionIssue]) -> list[Missing]:
    return [Missing(study=remark.study, reason=remark.reason) for remark in remarks]


def _and_more(others: Sequence[object]) -> str:
    return f" (and {len(others)} more)" if others else ""
