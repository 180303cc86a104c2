"""Segmentation datasets in the Brain Imaging Data Structure (BIDS), any organ.

Layout (BIDS specification 1.8.0, https://bids-specification.readthedocs.io/en/v1.8.0: modality agnostic files, and
derivatives: imaging; with the entities ``seg`` and ``scale`` that its repository has added since, at 01160d9)::

    participants.tsv                                           participant_id, and here a column for the centre
    sub-<label>/[ses-<label>/]anat/<entities>_<suffix>.nii[.gz]
    derivatives/<pipeline>/[dseg.tsv]                          index, name
    derivatives/<pipeline>/sub-<label>/[ses-<label>/]anat/
        <source entities>[_space-<space>][_res-<label>]_dseg.nii.gz                    values: the nearest dseg.tsv
        <source entities>[_space-<space>][_label-<label>][_desc-<label>]_mask.nii.gz   1 inside, 0 outside

What the specification leaves open, and is an option or a rule here:

* which of several images and label maps are meant: options, by the ends of the names. A label map's image is the one of
  its subject and session whose other entities do not contradict it, and of several the one that has just its entities;
* the column with the centre: ``site`` or ``centre``, or as the option says; another table may have it;
* ``dseg.tsv`` is not required; the standard's own table (1 is grey matter …) is not assumed without one.

Label maps that end otherwise (``_msk``, ``_T2w_seg-manual``), or lie beside the images, or in ``derivatives`` without
a pipeline's folder, are read by the same options. One label map a case: several masks are not put together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

from fednnunet.conversion.names import name_cases, name_values, number_labels, read_labels
from fednnunet.conversion.readers.csv_table import read_table
from fednnunet.conversion.study import ConversionIssue, ScanResult, Source, SourceCase
from fednnunet.errors import ConfigError, DataError

ENDINGS = (".nii.gz", ".nii")
DERIVED = frozenset({"space", "res", "den", "seg", "scale", "atlas", "label", "desc"})
"""Entities that a derivative adds to those of its source."""
DESCRIBES_LABELS = frozenset({"seg", "scale", "atlas", "label", "desc"})
"""Of these, those that say nothing of the image that a label map lies on."""
CENTRE_COLUMNS = ("site", "centre", "center")
NOT_AVAILABLE = ("", "n/a")


@dataclass(frozen=True)
class _File:
    """An image or label map of a subject: ``<key>-<value>_ … _<suffix>``."""

    path: Path
    parts: tuple[str, ...]

    @cached_property
    def entities(self) -> dict[str, str]:
        """Without ``space-orig``, which says that the image was not transformed."""
        pairs = (part.partition("-") for part in self.parts[:-1] if part != "space-orig")
        return {key: value for key, hyphen, value in pairs if hyphen}

    @property
    def subject(self) -> str:
        return self.entities["sub"]

    @property
    def session(self) -> tuple[str, str]:
        return self.subject, self.entities.get("ses", "")

    @cached_property
    def scan(self) -> str:
        """What it is derived from, and the case's name: ``sub-01_ses-1_run-2``."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items() if key not in DERIVED)

    def is_a(self, wanted: str) -> bool:
        *parts, suffix = wanted.split("_")
        return self.parts[-1] == suffix and set(parts) <= set(self.parts[:-1])

    def without(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: value for key, value in self.entities.items() if key not in keys}


@dataclass
class _Participants:
    """Who is listed, and where each is from.

    Attributes:
        path: of the table.
        column: with the centre; none if all are of ``whole``.
        whole: name of the dataset.
        centres: subject to all centres that are given.
    """

    path: Path
    column: str
    whole: str
    centres: dict[str, set[str]] = field(default_factory=dict)

    def centre_of(self, file: _File) -> str:
        """The centre of a file's subject, or nothing where it is not clear."""
        if not self.column:
            return self.whole
        found = self.centres.get(file.subject, set())
        return next(iter(found)) if len(found) == 1 else ""

    def problem_of(self, file: _File) -> str:
        """Why its centre is not clear."""
        found = self.centres.get(file.subject)
        if found is None:
            return f"sub-{file.subject} is not in {self.path}, so its centre is not known"
        given = f"has the centres {', '.join(sorted(found))}" if found else "has no centre"
        return f"sub-{file.subject} {given} in the column {self.column} of {self.path}"

    def without_files(self, files: Iterable[_File]) -> list[ConversionIssue]:
        """Subjects that are listed, and have neither an image nor a label map."""
        there = {file.subject for file in files}
        return [
            ConversionIssue(
                f"sub-{subject}", f"is in {self.path.name} and has no file", "".join(found) if len(found) == 1 else ""
            )
            for subject, found in self.centres.items()
            if subject not in there
        ]


def read_bids(
    source: Path,
    *,
    channels: Annotated[
        str,
        "Images of a case in the order of its channels, by how their names end; entities before it choose one of "
        "several: T1w,acq-ax_T2w or desc-preproc_T1w.",
    ] = "T1w",
    label_maps: Annotated[
        str, "Label maps, by how their names end, likewise: dseg, label-lesion_mask or T2w_seg-manual."
    ] = "dseg",
    pipeline: Annotated[
        str | None,
        "Folder below derivatives that holds the label maps; not needed where one has them. A dot: beside the images.",
    ] = None,
    image_pipeline: Annotated[
        str | None, "Folder below derivatives that holds the images; the raw images if not given."
    ] = None,
    labels: Annotated[
        str | None,
        "Names of the labels and their values in the label maps: tumour=1,node=2, or a JSON file; dseg.tsv says if not "
        "given, and a mask has its label's name.",
    ] = None,
    centre_column: Annotated[
        str | None, "Column of participants.tsv that has the centre; site or centre if not given; else all are one."
    ] = None,
    participants: Annotated[
        Path | None, "Table with the columns participant_id and the centre's, in place of participants.tsv in SRC."
    ] = None,
) -> ScanResult:
    """A segmentation dataset in BIDS: SRC holds sub-* folders, participants.tsv and derivatives.

    See the module for the layout. No image is opened.

    Args:
        source: the dataset's folder.
        channels: of a case.
        label_maps: which.
        pipeline: where they lie.
        image_pipeline: where the images lie.
        labels: names and values.
        centre_column: of ``participants.tsv``.
        participants: in its place.

    Raises:
        ConfigError: an option that names what is not there, or one that is needed.
        DataError: the folder is no BIDS dataset, or a table in it cannot be read.
    """
    wanted = tuple(channel.strip() for channel in channels.split(",") if channel.strip())
    if not wanted or not label_maps:
        raise ConfigError("channels and label maps must say how names end, such as T1w and dseg")
    if not any(path.is_dir() for path in source.glob("sub-*")):
        raise DataError(
            f"{source} is no BIDS dataset: it has no folder sub-*; SRC is the folder that holds participants.tsv, "
            "sub-* and derivatives"
        )
    images = list(_files(_folder(source, image_pipeline) if image_pipeline else source))
    folder, maps = _label_maps(source, label_maps, pipeline)
    origins = _read_participants(source, participants, centre_column)
    pairs, unclear = _pair(images, maps, wanted, label_maps)
    given = read_labels(labels) if labels else None
    tables: dict[Path, dict[int, str]] = {}
    names = name_cases(pairs)
    studies = []
    problems = [ConversionIssue(scan, reason, origins.centre_of(maps[scan][0])) for scan, reason in unclear.items()]
    for scan, (label_map, channel_images) in pairs.items():
        centre = origins.centre_of(label_map)
        if not centre:
            problems.append(ConversionIssue(scan, origins.problem_of(label_map)))
            continue
        studies.append(
            SourceCase(
                names[scan],
                centre,
                tuple(Source(image.path) for image in channel_images),
                Source(label_map.path),
                given or _label_values(label_map, folder, tables),
                f"sub-{label_map.subject}",
            )
        )
    used = {images_of[0] for _, images_of in pairs.values()}
    maybe = {maps[scan][0].session for scan in unclear}  # a problem is told there already
    left_out = [
        ConversionIssue(image.path.name, f"no annotation: there is no *_{label_maps} of it", origins.centre_of(image))
        for image in images
        if image.is_a(wanted[0]) and image not in used and image.session not in maybe
    ]
    suffixes = tuple(channel.split("_")[-1] for channel in wanted)
    return ScanResult(
        tuple(studies),
        suffixes if len(set(suffixes)) == len(suffixes) else wanted,
        tuple(problems),
        (*left_out, *origins.without_files([*images, *(found[0] for found in maps.values())])),
        labels=number_labels(study.label_values for study in studies),
    )


def _pair(
    images: list[_File], maps: Mapping[str, list[_File]], wanted: tuple[str, ...], label: str
) -> tuple[dict[str, tuple[_File, list[_File]]], dict[str, str]]:
    """Scan to its label map and images; scan to what is not clear about them."""
    sessions: dict[tuple[str, str], list[_File]] = {}
    for image in images:
        sessions.setdefault(image.session, []).append(image)
    pairs, problems = {}, {}
    for scan, found in maps.items():
        try:
            label_map = _only_label_map(found, label)
            session = sessions.get(label_map.session, [])
            pairs[scan] = label_map, [_only_image(session, channel, label_map) for channel in wanted]
        except DataError as error:
            problems[scan] = str(error)
    shared = Counter(chosen[0] for _, chosen in pairs.values())
    for scan, (_, chosen) in list(pairs.items()):
        if shared[chosen[0]] > 1:
            del pairs[scan]
            problems[scan] = f"{chosen[0].path.name} fits {shared[chosen[0]]} label maps; choose one with --label-maps"
    return pairs, problems


def _folder(source: Path, name: str) -> Path:
    """Of a pipeline; an absolute path is itself."""
    folder = source if name == "." else source / "derivatives" / name
    if not folder.is_dir():
        there = sorted(path.name for path in (source / "derivatives").glob("*/"))
        raise ConfigError(f"there is no pipeline {folder}; derivatives holds {', '.join(there) or 'nothing'}")
    return folder


def _files(folder: Path) -> Iterator[_File]:
    """Images and label maps of all subjects; a CIFTI file has one ending more and is none."""
    for subject in sorted(folder.glob("sub-*")):
        for parent, folders, names in os.walk(subject):
            folders.sort()
            for name in sorted(names):
                stem = name.removesuffix(".gz").removesuffix(".nii")
                if name.startswith("sub-") and name.endswith(ENDINGS) and "." not in stem:
                    yield _File(Path(parent) / name, tuple(stem.split("_")))


def _label_maps(source: Path, label: str, pipeline: str | None) -> tuple[Path, dict[str, list[_File]]]:
    """Folder of the pipeline; scan to its label maps."""
    derivatives = source / "derivatives"
    folders = [_folder(source, pipeline)] if pipeline else [derivatives, *sorted(derivatives.glob("*/"))]
    files = {folder: list(_files(folder)) for folder in folders if not folder.name.startswith("sub-")}
    found = {folder: [file for file in files[folder] if file.is_a(label)] for folder in files}
    having = [folder for folder in found if found[folder]]
    if not having:
        others = Counter(f"*_{file.parts[-1]}" for folder in files for file in files[folder])
        there = ", ".join(f"{name} ({count})" for name, count in sorted(others.items())) or "no image"
        raise DataError(
            f"{folders[0]} has no label map *_{label}.nii.gz; it has {there}; say how their names end by "
            "--label-maps, and where they lie by --pipeline"
        )
    if len(having) > 1:
        names = ", ".join(folder.name for folder in having)
        raise ConfigError(f"several pipelines have label maps *_{label}: {names}; choose one with --pipeline")
    scans: dict[str, list[_File]] = {}
    for file in found[having[0]]:
        scans.setdefault(file.scan, []).append(file)
    return having[0], scans


def _only_label_map(found: list[_File], label: str) -> _File:
    """The one, or of several the one that has no entities but those asked for."""
    asked = {part.partition("-")[0] for part in label.split("_")}
    plain = [file for file in found if not set(file.entities) & DERIVED - asked]
    if len(found) > 1 and len(plain) != 1:
        raise DataError(f"several label maps: {_listed(found)}; choose with --label-maps, as in desc-manual_{label}")
    return _that_is_here(found[0] if len(found) == 1 else plain[0])


def _only_image(session: list[_File], channel: str, label_map: _File) -> _File:
    """The image that a label map lies on."""
    chosen = {part.partition("-")[0] for part in channel.split("_")[:-1]}
    expected = label_map.without(DESCRIBES_LABELS | chosen)
    candidates = [image for image in session if image.is_a(channel)]
    fitting = [
        image for image in candidates if all(image.entities.get(key, value) == value for key, value in expected.items())
    ]
    exact = [image for image in fitting if image.without(chosen) == expected]
    if len(fitting) == 1 or len(exact) == 1:
        return _that_is_here((fitting if len(fitting) == 1 else exact)[0])
    if not candidates:
        raise DataError(f"there is no image *_{channel} for {label_map.path.name}")
    what = "several images fit" if fitting else "no image fits"
    raise DataError(
        f"{what} {label_map.path.name}: {_listed(fitting or candidates)}; choose with --channels, as in run-1_{channel}"
    )


def _that_is_here(file: _File) -> _File:
    if not file.path.is_file():
        raise DataError(f"{file.path} is a link to content that is not here; fetch it (datalad get, git annex get)")
    return file


def _read_participants(source: Path, given: Path | None, column: str | None) -> _Participants:
    path = given or source / "participants.tsv"
    whole = source.resolve().name
    if not given and not column and not path.is_file():
        return _Participants(path, "", whole)
    table = read_table(path, ("participant_id", column) if column else ("participant_id",))
    usual = [name for wanted in CENTRE_COLUMNS for name in table.columns if name.lower() == wanted]
    participants = _Participants(path, column or next(iter(usual), ""), whole)
    for row in table.rows:
        found = participants.centres.setdefault(row.cells["participant_id"].removeprefix("sub-"), set())
        centre = row.cells.get(participants.column, "")
        if centre not in NOT_AVAILABLE and not row.problem:
            found.add(centre)
    return participants


def _label_values(label_map: _File, pipeline: Path, tables: dict[Path, dict[int, str]]) -> dict[int, str]:
    """By the table nearest to the label map: the standard's inheritance principle; 1 for the mask."""
    suffix = label_map.parts[-1]
    folders = [label_map.path.parent, *label_map.path.parent.parents]
    for folder in folders[: folders.index(pipeline) + 1]:
        parts = {path: path.stem.split("_") for path in sorted(folder.glob(f"*{suffix}.tsv"))}
        fitting = [path for path in parts if set(parts[path]) <= set(label_map.parts) and parts[path][-1] == suffix]
        if fitting:
            path = max(fitting, key=lambda path: len(parts[path]))
            if path not in tables:
                tables[path] = _read_lookup(path)
            return tables[path]
    if suffix == "mask":
        return {1: label_map.entities.get("label", "mask")}
    raise ConfigError(
        f"there is no table {suffix}.tsv (index, name) in {pipeline}, nor beside {label_map.path.name}; give the "
        "labels' names and values: --labels tumour=1,node=2"
    )


def _read_lookup(path: Path) -> dict[int, str]:
    table = read_table(path, ("index", "name"))
    try:
        return name_values(((row.cells["name"], row.cells["index"]) for row in table.rows), str(path))
    except ValueError as error:
        raise DataError(str(error)) from None


def _listed(files: list[_File]) -> str:
    return ", ".join(file.path.name for file in files)
