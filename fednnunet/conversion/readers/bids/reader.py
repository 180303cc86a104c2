"""Segmentation datasets in the Brain Imaging Data Structure (BIDS), any organ.

Layout (BIDS specification 1.8.0, https://bids-specification.readthedocs.io/en/v1.8.0: modality agnostic files, and
derivatives: imaging; with the entities ``seg`` and ``scale`` that its repository has added since, at 01160d9)::

    [rawdata/]participants.tsv                                 participant_id, and here a column for the centre
    [rawdata/]sub-<label>/[ses-<label>/]anat/<entities>_<suffix>.nii[.gz]
    derivatives/<pipeline>/[dseg.tsv]                          index, name
    derivatives/<pipeline>/sub-<label>/[ses-<label>/]anat/
        <source entities>[_space-<space>][_res-<label>]_dseg.nii.gz                    values: the nearest dseg.tsv
        <source entities>[_space-<space>][_label-<label>][_desc-<label>]_mask.nii.gz   1 inside, 0 outside

What the specification leaves open is an option or a rule here:

* which of several images and label maps to read: options, by the ends of the names. A label map's image is the one of
  its subject, session and datatype (``anat``, ``func`` …) whose other entities do not contradict it, and of several the
  one with exactly its entities;
* the column with the centre: ``site`` or ``centre``, or the one that the option names; another table may hold it;
* ``dseg.tsv`` is not required; the standard's own table (1 is grey matter …) is not assumed without one.

Label maps with other endings (``_msk``, ``_T2w_seg-manual``), beside the images, or in ``derivatives`` without a
pipeline's folder are read with the same options. One label map per case: several masks are not merged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fednnunet.conversion.names import name_cases, name_values, number_labels, read_labels
from fednnunet.conversion.readers.bids.entities import BidsFile, list_endings, list_files
from fednnunet.conversion.readers.bids.layout import find_layout
from fednnunet.conversion.readers.bids.pairing import pair_images, split_by_datatype
from fednnunet.conversion.readers.bids.participants import read_participants
from fednnunet.conversion.readers.csv_table import read_table
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.errors import ConfigError, DataError
from fednnunet.listing import split_list


def read_bids(
    source: Path,
    *,
    channels: Annotated[
        str,
        "Images of a case in the order of its channels, by how their names end; entities before it choose one of "
        "several: T1w,acq-ax_T2w or desc-preproc_T1w.",
    ] = "T1w",
    channel_names: Annotated[
        str | None,
        "Names of the channels in dataset.json, in their order, if not the ends of the images' names. nnU-Net chooses "
        "the normalisation by them: CT for CT.",
    ] = None,
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
    """A segmentation dataset in BIDS: SRC holds sub-* folders (or rawdata with them), participants.tsv and derivatives.

    See the module for the layout. No image is opened.

    Args:
        source: folder of the dataset.
        channels: endings of the images' names, one per channel.
        channel_names: names of the channels.
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
    wanted = tuple(split_list(channels))
    if not wanted or not label_maps:
        raise ConfigError("channels and label maps must say how names end, such as T1w and dseg")
    named = _name_channels(wanted, channel_names)
    layout = find_layout(source)
    image_folder = layout.pipeline_folder(image_pipeline) if image_pipeline else layout.raw
    images = list(list_files(image_folder))
    absent = [channel for channel in wanted if not any(image.matches(channel) for image in images)]
    if absent:
        raise DataError(
            f"no image *_{absent[0]}.nii.gz in {image_folder}; it has {list_endings(images)}; say how their names end "
            "by --channels"
        )
    folder, found = layout.find_label_maps(label_maps, pipeline)
    own, foreign = split_by_datatype(found, images, wanted)
    if not own:
        raise DataError(_of_another_datatype(foreign[0], wanted))
    maps: dict[str, list[BidsFile]] = {}
    for label_map in own:
        maps.setdefault(label_map.scan, []).append(label_map)
    origins = read_participants(layout, participants, centre_column)
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
        ConversionIssue(file.path.name, _of_another_datatype(file, wanted), origins.centre_of(file)) for file in foreign
    ]
    left_out += [
        ConversionIssue(image.path.name, f"no annotation: there is no *_{label_maps} of it", origins.centre_of(image))
        for image in images
        if image.matches(wanted[0]) and image not in used and image.session not in maybe
    ]
    return ScanResult(
        tuple(cases),
        named,
        tuple(problems),
        (*left_out, *origins.without_files([*images, *found])),
        labels=number_labels(case.label_values for case in cases),
        notes=(origins.note,) if origins.note else (),
    )


def _name_channels(channels: tuple[str, ...], given: str | None) -> tuple[str, ...]:
    """Names of the channels in the dataset: as given, or the images' suffixes where these differ."""
    if given is not None:
        names = tuple(split_list(given))
        if len(names) != len(channels):
            raise ConfigError(f"--channel-names {given}: {len(names)} names for {len(channels)} channels")
        return names
    suffixes = tuple(channel.split("_")[-1] for channel in channels)
    return suffixes if len(set(suffixes)) == len(suffixes) else channels


def _of_another_datatype(label_map: BidsFile, channels: tuple[str, ...]) -> str:
    return (
        f"{label_map.path.name} lies in {label_map.datatype}, no image *_{' nor *_'.join(channels)} does; choose the "
        "images that it was drawn on with --channels, or list both in a CSV file (fednnunet convert generic) if they "
        "lie on one grid"
    )


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
