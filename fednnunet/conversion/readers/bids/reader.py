"""Segmentation datasets in the Brain Imaging Data Structure (BIDS), any organ.

Layout (BIDS specification 1.8.0, https://bids-specification.readthedocs.io/en/v1.8.0: modality agnostic files, and
derivatives: imaging; with the entities ``seg`` and ``scale`` that its repository has added since, at 01160d9)::

    participants.tsv                                           participant_id, and here a column for the centre
    sub-<label>/[ses-<label>/]anat/<entities>_<suffix>.nii[.gz]
    derivatives/<pipeline>/[dseg.tsv]                          index, name
    derivatives/<pipeline>/sub-<label>/[ses-<label>/]anat/
        <source entities>[_space-<space>][_res-<label>]_dseg.nii.gz                    values: the nearest dseg.tsv
        <source entities>[_space-<space>][_label-<label>][_desc-<label>]_mask.nii.gz   1 inside, 0 outside

What the specification leaves open is an option or a rule here:

* which of several images and label maps to read: options, by the ends of the names. A label map's image is the one of
  its subject and session whose other entities do not contradict it, and of several the one with exactly its entities;
* the column with the centre: ``site`` or ``centre``, or the one that the option names; another table may hold it;
* ``dseg.tsv`` is not required; the standard's own table (1 is grey matter …) is not assumed without one.

Label maps with other endings (``_msk``, ``_T2w_seg-manual``), beside the images, or in ``derivatives`` without a
pipeline's folder are read with the same options. One label map per case: several masks are not merged.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from fednnunet.conversion.names import name_cases, name_values, number_labels, read_labels
from fednnunet.conversion.readers.bids.entities import BidsFile, list_files
from fednnunet.conversion.readers.bids.pairing import pair_images
from fednnunet.conversion.readers.bids.participants import read_participants
from fednnunet.conversion.readers.csv_table import read_table
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.errors import ConfigError, DataError


def read_bids(
    source: Path,
    *,
    channels: Annotated[
        str,
        "Images of a case in the order of its channels, by how their names end; entities before it choose one of "
        "several: T1w,acq-ax_T2w or desc-preproc_T1w.",
    ] = "T1w",
    label_maps: Annotated[
        str, "Label maps, by how their names end: dseg, label-lesion_mask or T2w_seg-manual."
    ] = "dseg",
    pipeline: Annotated[
        str | None,
        "Folder below derivatives that holds the label maps; optional if only one has them. A dot: beside the images.",
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
        str | None,
        "Column of participants.tsv that has the centre; if not given, site or centre; without it all are one.",
    ] = None,
    participants: Annotated[
        Path | None, "Table with the columns participant_id and the centre's, in place of participants.tsv in SRC."
    ] = None,
) -> ScanResult:
    """A segmentation dataset in BIDS: SRC holds sub-* folders, participants.tsv and derivatives.

    See the module for the layout. No image is opened.

    Args:
        source: folder of the dataset.
        channels: endings of the images' names, one per channel.
        label_maps: ending of the label maps' names.
        pipeline: folder of the label maps.
        image_pipeline: folder of the images.
        labels: names and values of the labels.
        centre_column: column of the table that holds the centre.
        participants: table of participants.

    Raises:
        ConfigError: an option names something that does not exist, or a required one is missing.
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
    images = list(list_files(pipeline_folder(source, image_pipeline) if image_pipeline else source))
    folder, maps = find_label_maps(source, label_maps, pipeline)
    origins = read_participants(source, participants, centre_column)
    pairs, unclear = pair_images(images, maps, wanted, label_maps)
    given = read_labels(labels) if labels else None
    tables: dict[Path, dict[int, str]] = {}
    names = name_cases(pairs)
    cases = []
    problems = [ConversionIssue(scan, reason, origins.centre_of(maps[scan][0])) for scan, reason in unclear.items()]
    for scan, (label_map, channel_images) in pairs.items():
        centre = origins.centre_of(label_map)
        if not centre:
            problems.append(ConversionIssue(scan, origins.problem_of(label_map)))
            continue
        cases.append(
            SourceCase(
                names[scan],
                centre,
                tuple(SourceImage(image.path) for image in channel_images),
                SourceImage(label_map.path),
                given or _label_values(label_map, folder, tables),
                f"sub-{label_map.subject}",
            )
        )
    used = {images_of[0] for _, images_of in pairs.values()}
    maybe = {maps[scan][0].session for scan in unclear}  # these are reported as problems already
    left_out = [
        ConversionIssue(image.path.name, f"no annotation: there is no *_{label_maps} of it", origins.centre_of(image))
        for image in images
        if image.matches(wanted[0]) and image not in used and image.session not in maybe
    ]
    suffixes = tuple(channel.split("_")[-1] for channel in wanted)
    return ScanResult(
        tuple(cases),
        suffixes if len(set(suffixes)) == len(suffixes) else wanted,
        tuple(problems),
        (*left_out, *origins.without_files([*images, *(found[0] for found in maps.values())])),
        labels=number_labels(case.label_values for case in cases),
    )


def pipeline_folder(source: Path, name: str) -> Path:
    """Folder of a pipeline; an absolute path stays as it is."""
    folder = source if name == "." else source / "derivatives" / name
    if not folder.is_dir():
        there = sorted(path.name for path in (source / "derivatives").glob("*/"))
        raise ConfigError(f"there is no pipeline {folder}; derivatives holds {', '.join(there) or 'nothing'}")
    return folder


def find_label_maps(source: Path, label: str, pipeline: str | None) -> tuple[Path, dict[str, list[BidsFile]]]:
    """Folder of the pipeline, and scan to its label maps."""
    derivatives = source / "derivatives"
    folders = [pipeline_folder(source, pipeline)] if pipeline else [derivatives, *sorted(derivatives.glob("*/"))]
    files = {folder: list(list_files(folder)) for folder in folders if not folder.name.startswith("sub-")}
    found = {folder: [file for file in files[folder] if file.matches(label)] for folder in files}
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
    scans: dict[str, list[BidsFile]] = {}
    for file in found[having[0]]:
        scans.setdefault(file.scan, []).append(file)
    return having[0], scans


def _label_values(label_map: BidsFile, pipeline: Path, tables: dict[Path, dict[int, str]]) -> dict[int, str]:
    """Value to label name by the nearest table, as the standard's inheritance principle says; 1 for a mask."""
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
