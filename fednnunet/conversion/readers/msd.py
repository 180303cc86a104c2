"""A task of the Medical Segmentation Decathlon, or another dataset in its layout.

Layout, of the published ``dataset.json`` (release 1.0 of 04/05/2018) and as nnU-Net 2.8's ``convert_MSD_dataset.py``
reads it; the data are Antonelli et al., Nature Communications 13, 4128, 2022, and Simpson et al., arXiv:1902.09063v1,
2019, from http://medicaldecathlon.com::

    Task05_Prostate/
        dataset.json               name; modality: {"0": "T2", "1": "ADC"}; labels: {"0": "background", "1": "PZ", …};
                                   training: [{"image": "./imagesTr/prostate_16.nii.gz",
                                               "label": "./labelsTr/prostate_16.nii.gz"}, …];
                                   test: ["./imagesTs/prostate_08.nii.gz", …]
        imagesTr/, labelsTr/       .nii.gz; images of several modalities are 4D (X, Y, Z, modality), label maps 3D
        imagesTs/                  without published label maps: left out

Files ``._*``, which macOS puts into archives, are ignored. The layout names no centres: a CSV file with the columns
``case`` (``prostate_16``) and ``centre``, and ``patient`` if one has several cases, does; without it all are of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fednnunet.conversion.names import label_values, name_cases, number_labels, read_json
from fednnunet.conversion.readers.centre_table import Origin, read_origins
from fednnunet.conversion.readers.source_files import NIFTI_ENDINGS
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.datasets.geometry import format_size
from fednnunet.errors import DataError

HIDDEN = "._"


def read_msd(
    source: Path,
    *,
    centres: Annotated[
        Path | None, "CSV file with the columns case and centre (and patient); without it all cases are of one centre."
    ] = None,
) -> ScanResult:
    """A task of the Medical Segmentation Decathlon: SRC is its folder, such as Task05_Prostate.

    See the module for the layout. Headers of images are read.

    Args:
        source: folder of the task.
        centres: table of cases and their centres.

    Raises:
        DataError: ``dataset.json`` or the table cannot be read, or is not what it should be.
    """
    description = _read_description(source)
    channels = _channel_names(description["modality"], source)
    values = label_values(description["labels"], f"{source / 'dataset.json'}: labels")
    origins = read_origins(centres, _case_name) if centres else None
    whole = str(description.get("name") or "").strip() or source.resolve().name
    pairs = _training(description["training"], source)
    names = name_cases(pairs)
    cases, problems = [], []
    for name, (image, label) in pairs.items():
        origin = Origin(whole) if origins is None else origins.get(name, Origin("", problem=f"is not in {centres}"))
        try:
            if origin.problem:
                raise DataError(origin.problem)
            if not label.is_file():
                raise DataError(f"{label} is missing")
            images = _channel_sources(image, len(channels))
        except DataError as error:
            problems.append(ConversionIssue(name, str(error), origin.centre))
        else:
            cases.append(
                SourceCase(names[name], origin.centre, images, SourceImage(label), values, origin.patient or name)
            )
    problems += [
        ConversionIssue(case, origin.problem or f"is in {centres}, and not in training in dataset.json", origin.centre)
        for case, origin in (origins or {}).items()
        if case not in pairs
    ]
    return ScanResult(
        tuple(cases),
        channels,
        tuple(problems),
        tuple(_left_out(description, source, pairs)),
        labels=number_labels([values]),
    )


def _read_description(source: Path) -> dict[str, Any]:
    path = source / "dataset.json"
    if not path.is_file():
        tasks = ", ".join(sorted(folder.parent.name for folder in source.glob("*/dataset.json")))
        instead = f" (it holds {tasks}: give one of them)" if tasks else ""
        raise DataError(
            f"{source} has no dataset.json{instead}; SRC is the folder of one task, such as Task05_Prostate, unpacked "
            "from http://medicaldecathlon.com: dataset.json, imagesTr, labelsTr"
        )
    description = read_json(path)
    for key, kind, what in (
        ("modality", dict, "channel numbers and names"),
        ("labels", dict, "label values and names"),
        ("training", list, "pairs of image and label"),
    ):
        if not isinstance(description.get(key), kind):
            raise DataError(f"{path} must have the field {key}: {what}, as in the Medical Segmentation Decathlon")
    return description


def _channel_names(modality: Mapping[str, Any], source: Path) -> tuple[str, ...]:
    expected = [str(number) for number in range(len(modality))]
    if not expected or sorted(modality) != sorted(expected):
        raise DataError(f"{source / 'dataset.json'}: modality must have the keys 0, 1, …; it has {', '.join(modality)}")
    return tuple(str(modality[key]) for key in expected)


def _training(listed: list[Any], source: Path) -> dict[str, tuple[Path, Path]]:
    """Case to image and label map."""
    pairs: dict[str, tuple[Path, Path]] = {}
    where = f"{source / 'dataset.json'}: training"
    for item in listed:
        files = (item.get("image"), item.get("label")) if isinstance(item, dict) else (None, None)
        image, label = (source / file if isinstance(file, str) else None for file in files)
        if image is None or label is None:
            raise DataError(f"{where} must list pairs of image and label; it has {item!r}")
        if image.name.startswith(HIDDEN):
            continue
        if _case_name(image) in pairs:
            raise DataError(f"{where} lists {_case_name(image)} twice")
        pairs[_case_name(image)] = image, label
    if not pairs:
        raise DataError(f"{where} is empty")
    return pairs


def _case_name(image: Path | str) -> str:
    name = Path(image).name
    return next((name.removesuffix(ending) for ending in NIFTI_ENDINGS if name.endswith(ending)), name)


def _channel_sources(image: Path, channels: int) -> tuple[SourceImage, ...]:
    """One source per channel, which is a frame of a 4D image.

    Raises:
        DataError: the image is missing, cannot be read, or has another number of channels.
    """
    import SimpleITK as sitk

    if not image.is_file():
        raise DataError(f"{image} is missing")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(image))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"{image} cannot be read: {str(error).strip().splitlines()[-1]}") from None
    size = reader.GetSize()
    if len(size) == 3 and channels == 1:
        return (SourceImage(image),)
    if len(size) == 4 and size[3] == channels:
        return tuple(SourceImage(image, frame) for frame in range(channels))
    raise DataError(
        f"{image} has {format_size(size)} voxels; modality in dataset.json names {channels}, so it must be "
        f"{'X x Y x Z' if channels == 1 else f'X x Y x Z x {channels}'}"
    )


def _left_out(
    description: Mapping[str, Any], source: Path, pairs: Mapping[str, tuple[Path, Path]]
) -> list[ConversionIssue]:
    """Test images, and images that ``dataset.json`` does not list."""
    test = [item.get("image", "") if isinstance(item, dict) else item for item in description.get("test") or []]
    test_images = [
        ConversionIssue(_case_name(str(image)), "no annotation: a test image, whose label map is not published")
        for image in test
        if not Path(str(image)).name.startswith(HIDDEN)
    ]
    listed = {image.name for image, _ in pairs.values()}
    return test_images + [
        ConversionIssue(f"imagesTr/{path.name}", "dataset.json does not list it")
        for path in sorted((source / "imagesTr").glob("*.nii*"))
        if not path.name.startswith(HIDDEN) and path.name not in listed
    ]
