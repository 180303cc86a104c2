"""Write what a reader found as nnU-Net raw datasets, one per centre."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fednnunet.conversion.case_writer import CaseTask, convert_case
from fednnunet.conversion.manifest import CaseRecord, ExcludedCase, Manifest, read_manifest
from fednnunet.conversion.options import Options
from fednnunet.conversion.plan import CentrePlan, ConversionPlan
from fednnunet.conversion.scan_result import ConversionIssue, SourceCase
from fednnunet.conversion.targets import TargetCentre
from fednnunet.datasets.splits import splits_by_patient
from fednnunet.errors import ConfigError, DataError
from fednnunet.files import DISK_FULL, write_atomically
from fednnunet.processes import map_in_processes

SECONDS_BETWEEN_SAVES = 5.0
"""Cases written after the last save are written again if a conversion is killed."""


@dataclass(frozen=True)
class ConversionResult:
    """A centre's dataset after a conversion.

    Attributes:
        centre: the centre.
        folder: folder of the dataset.
        manifest: manifest as it was written.
        converted: number of cases that this conversion wrote; the others were there before.
    """

    centre: TargetCentre
    folder: Path
    manifest: Manifest
    converted: int


def convert(
    plan: ConversionPlan,
    source: Path,
    target: Path,
    made_by: str,
    source_settings: Mapping[str, Any],
    options: Options,
    progress: Progress,
) -> list[ConversionResult]:
    """Write the datasets of a plan; what an earlier, interrupted conversion wrote stays, if it is whole.

    A dataset has its ``dataset.json`` once all its cases are processed. Case files appear when they are whole. The
    source is only read.

    Args:
        plan: what to write.
        source: what was read: a folder, or a file in it.
        target: folder of nnU-Net raw datasets.
        made_by: name of the command, for the manifest.
        source_settings: what else the files depend on, for the manifest.
        options: the user's choices.
        progress: called for every case.

    Returns:
        One result per centre that has cases.

    Raises:
        DataError: a case has a problem and ``on_error`` is ``stop``; a folder is there that was not made by this
            conversion, with these settings; too little space on the disk. What was written until then stays.
    """
    if options.on_error == "stop" and plan.all_problems:
        first, *others = plan.all_problems
        raise DataError(f"{first.line}{_and_more(others)}; fix it, or leave such cases out with --on-error skip")
    settings = {
        **source_settings,
        "channel_names": list(plan.scan.channel_names),
        "labels": dict(plan.labels),
        "files": options.files,
        "headers": options.headers,
    }
    writers = {
        centre_plan.centre.name: DatasetWriter.open(
            plan, centre_plan, folder_of(source), target / centre_plan.centre.dataset, made_by, settings
        )
        for centre_plan in plan.centres
        if centre_plan.cases or centre_plan.problems
    }
    tasks = [task for writer in writers.values() for task in writer.tasks(options)]
    _check_free_space(target, tasks, options)
    progress.start(sum(len(centre_plan.cases) for centre_plan in plan.centres), len(tasks))
    for writer in writers.values():
        writer.save()
    saved = time.monotonic()
    try:
        for task, result in zip(tasks, map_in_processes(convert_case, tasks, options.processes), strict=True):
            if isinstance(result, ConversionIssue) and options.on_error == "stop":
                raise DataError(
                    f"{result.line}; fix it, or leave such cases out with --on-error skip; what was converted is kept"
                )
            writers[task.case.centre].record(task.case, result)
            progress.advance(task.case)
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                writers[task.case.centre].save()
                saved = time.monotonic()
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ConfigError(f"{error.strerror}: {target}; make room, and repeat the command to continue") from None
    finally:
        for writer in writers.values():
            writer.save()
    done = [writer.finish() for writer in writers.values()]
    if not any(entry.manifest.cases for entry in done):
        raise DataError(f"no case could be converted; the first: {plan.all_problems[0].line}")
    return done


def folder_of(source: Path) -> Path:
    """The folder of a source, which may be a file in it."""
    return source if source.is_dir() else source.parent


class Progress(Protocol):
    """Follows a conversion."""

    def start(self, cases: int, remaining: int) -> None:
        """``remaining`` of ``cases`` have yet to be converted."""

    def advance(self, case: SourceCase) -> None:
        """``case`` was processed."""


@dataclass
class DatasetWriter:
    """A dataset being written: its remaining cases and its manifest."""

    plan: ConversionPlan
    centre_plan: CentrePlan
    source: Path
    folder: Path
    manifest: Manifest
    converted: int = 0

    @classmethod
    def open(
        cls,
        plan: ConversionPlan,
        centre_plan: CentrePlan,
        source: Path,
        folder: Path,
        made_by: str,
        settings: dict[str, Any],
    ) -> DatasetWriter:
        fresh = Manifest(made_by=made_by, settings=settings, centre=centre_plan.centre.name)
        if not folder.exists() or not any(folder.iterdir()):
            return cls(plan, centre_plan, source, folder, fresh)
        before = read_manifest(folder)
        differs = [key for key in {**before.settings, **settings} if before.settings.get(key) != settings.get(key)]
        if (before.made_by, before.centre) != (made_by, centre_plan.centre.name):
            differs.insert(0, f"source ({before.made_by}, {before.centre})")
        if differs:
            raise DataError(
                f"{folder} was converted with another {', '.join(differs)}; choose another folder, or remove it first"
            )
        surplus = sorted(set(before.cases) - {case.name for case in centre_plan.cases})
        if surplus:
            raise DataError(
                f"{folder} holds {surplus[0]}{_and_more(surplus[1:])}, which the source no longer has; choose another "
                "folder, or remove it first"
            )
        cases = {name: record for name, record in before.cases.items() if record.is_whole(folder, source)}
        return cls(plan, centre_plan, source, folder, fresh.model_copy(update={"cases": cases}))

    def tasks(self, options: Options) -> list[CaseTask]:
        """One task per remaining case; what a killed conversion left of a case is removed."""
        suffix, scan = "Ts" if self.centre_plan.centre.external else "Tr", self.plan.scan
        tasks = [
            CaseTask(
                case,
                self.source,
                self.folder,
                f"images{suffix}",
                f"labels{suffix}",
                scan.file_ending,
                {value: self.plan.labels[name] for value, name in case.label_values.items()},
                self.plan.labels.get("ignore"),
                options,
            )
            for case in self.centre_plan.cases
            if case.name not in self.manifest.cases
        ]
        for task in tasks:
            for path in task.files:
                path.unlink(missing_ok=True)
        return tasks

    def record(self, case: SourceCase, result: CaseRecord | ConversionIssue) -> None:
        if isinstance(result, ConversionIssue):
            self.centre_plan.problems.append(result)
        else:
            self.manifest.cases[case.name] = result
            self.converted += 1

    def save(self) -> None:
        listed = self.manifest.model_copy(
            update={
                "cases": dict(sorted(self.manifest.cases.items())),
                "skipped": _as_excluded(
                    [*sorted(self.centre_plan.problems, key=lambda issue: issue.name), *self.plan.problems]
                ),
                "left_out": _as_excluded([*self.centre_plan.left_out, *self.plan.left_out]),
            }
        )
        listed.write(self.folder)
        self.manifest = listed

    def finish(self) -> ConversionResult:
        """Write the dataset's description; from now on it can be trained on."""
        cases, external = self.manifest.cases, self.centre_plan.centre.external
        if cases:
            self._write_splits()
            description = {
                "name": self.centre_plan.centre.dataset,
                "channel_names": {str(number): name for number, name in enumerate(self.plan.scan.channel_names)},
                "labels": dict(self.plan.labels),
                "numTraining": 0 if external else len(cases),
                "file_ending": self.plan.scan.file_ending,
            }
            write_atomically(self.folder / "dataset.json", json.dumps(description, indent=1))
        self.manifest = self.manifest.model_copy(update={"finished": True})
        self.manifest.write(self.folder)
        return ConversionResult(self.centre_plan.centre, self.folder, self.manifest, self.converted)

    def _write_splits(self) -> None:
        """Write splits by patient where nnU-Net's own would put one patient into both training and held-out part.

        Fewer than five patients are held out once each, in as many folds.
        """
        patients = {case: record.patient for case, record in self.manifest.cases.items()}
        if not self.centre_plan.centre.external and 1 < len(set(patients.values())) < len(patients):
            splits = [fold for fold in splits_by_patient(patients) if fold["val"]]
            write_atomically(self.folder / "splits_final.json", json.dumps(splits, indent=1))


def _check_free_space(target: Path, tasks: Sequence[CaseTask], options: Options) -> None:
    """Refuse to begin without enough disk space: compressed images take about as much as the source's files."""
    files = {path for task in tasks for path in task.case.files} if options.files == "copy" else set()
    needed = sum(path.stat().st_size for path in files)
    existing = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ConfigError(
            f"about {needed / 2**30:.1f} GiB are needed in {existing}, and {free / 2**30:.1f} are free; make room, or "
            "link files that need no change: --files symlink"
        )


def _as_excluded(issues: Sequence[ConversionIssue]) -> list[ExcludedCase]:
    return [ExcludedCase(name=issue.name, reason=issue.reason) for issue in issues]


def _and_more(others: Sequence[object]) -> str:
    return f" (and {len(others)} more)" if others else ""
