"""Find the image that each label map in BIDS belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fednnunet.conversion.readers.bids.entities import DERIVED, DESCRIBES_LABELS, BidsFile
from fednnunet.errors import DataError


def split_by_datatype(
    label_maps: Iterable[BidsFile], images: Iterable[BidsFile], channels: Sequence[str]
) -> tuple[list[BidsFile], list[BidsFile]]:
    """Label maps that lie in a datatype's folder which holds images of ``channels``, and those that lie in another.

    A mask in ``func`` does not belong to an image in ``anat``, whatever their names. Label maps or images in folders
    that are no datatype's can belong to any.
    """
    types = {image.datatype for image in images if any(map(image.matches, channels))}
    own: list[BidsFile] = []
    others: list[BidsFile] = []
    for label_map in label_maps:
        fits = not label_map.datatype or not types or "" in types or label_map.datatype in types
        (own if fits else others).append(label_map)
    return own, others


def pair_images(
    images: list[BidsFile], label_maps: Mapping[str, list[BidsFile]], channels: tuple[str, ...], label_ending: str
) -> tuple[dict[str, tuple[BidsFile, list[BidsFile]]], dict[str, str]]:
    """Find the images of each label map.

    Args:
        images: all images.
        label_maps: scan to its label maps.
        channels: endings of the images' names, one per channel.
        label_ending: ending of the label maps' names.

    Returns:
        Scan to its label map and images, and scan to what is not clear about them.
    """
    subjects: dict[str, list[BidsFile]] = {}
    for image in images:
        subjects.setdefault(image.subject, []).append(image)
    pairs, problems = {}, {}
    for scan, found in label_maps.items():
        try:
            label_map = _only_label_map(found, label_ending)
            subject = subjects.get(label_map.subject, [])
            chosen = [_only_image(subject, channel, label_map) for channel in channels]
            _check_source(label_map, chosen, subject, label_ending)
            pairs[scan] = label_map, chosen
        except DataError as error:
            problems[scan] = str(error)
    shared = Counter(chosen[0] for _, chosen in pairs.values())
    for scan, (_, chosen) in list(pairs.items()):
        if shared[chosen[0]] > 1:
            del pairs[scan]
            problems[scan] = f"{chosen[0].path.name} fits {shared[chosen[0]]} label maps; choose one with --label-maps"
    return pairs, problems


def _check_source(label_map: BidsFile, chosen: Sequence[BidsFile], subject: Sequence[BidsFile], ending: str) -> None:
    """Refuse a label map of which no chosen image is the source, by datatype and by the suffix in its name."""
    if all(image.datatype and label_map.datatype not in ("", image.datatype) for image in chosen):
        raise DataError(
            f"{label_map.path.name} lies in {label_map.datatype}, {chosen[0].path.name} in {chosen[0].datatype}: an "
            "image of another datatype is not its own"
        )
    named = set(label_map.parts[:-1]) - set(ending.split("_")) & {image.parts[-1] for image in subject}
    if named and not named & {image.parts[-1] for image in chosen}:
        raise DataError(
            f"{label_map.path.name} is a label map of *_{sorted(named)[0]}; choose such images with --channels, or "
            "other label maps with --label-maps"
        )


def _only_label_map(found: list[BidsFile], label: str) -> BidsFile:
    """The one label map, or of several the one that has no other entities than ``label``."""
    asked = {part.partition("-")[0] for part in label.split("_")}
    plain = [file for file in found if not set(file.entities) & DERIVED - asked]
    if len(found) > 1 and len(plain) != 1:
        raise DataError(f"several label maps: {_listed(found)}; choose with --label-maps, as in desc-manual_{label}")
    return _with_content(found[0] if len(found) == 1 else plain[0])


def _only_image(subject: list[BidsFile], channel: str, label_map: BidsFile) -> BidsFile:
    """The image that a label map belongs to: of its session, unless ``channel`` names another."""
    chosen = {part.partition("-")[0] for part in channel.split("_")[:-1]}
    expected = label_map.without(DESCRIBES_LABELS | chosen)
    anywhere = [image for image in subject if image.matches(channel)]
    candidates = [image for image in anywhere if "ses" in chosen or image.session == label_map.session]
    candidates = [image for image in candidates if image.datatype == label_map.datatype] or candidates
    fitting = [
        image for image in candidates if all(image.entities.get(key, value) == value for key, value in expected.items())
    ]
    exact = [image for image in fitting if image.without(chosen) == expected]
    if len(fitting) == 1 or len(exact) == 1:
        return _with_content((fitting if len(fitting) == 1 else exact)[0])
    if not candidates:
        sessions = sorted({f"ses-{image.session[1]}" for image in anywhere if image.session[1]})
        choose = f"choose it with --channels, as in {sessions[0]}_{channel}" if sessions else ""
        elsewhere = f" in its session; {', '.join(sessions)} has one: {choose}" if sessions else ""
        raise DataError(f"there is no image *_{channel} for {label_map.path.name}{elsewhere}")
    what = "several images fit" if fitting else "no image fits"
    raise DataError(
        f"{what} {label_map.path.name}: {_listed(fitting or candidates)}; choose with --channels, as in run-1_{channel}"
    )


def _with_content(file: BidsFile) -> BidsFile:
    if not file.path.is_file():
        raise DataError(f"{file.path} is a link to content that is not here; fetch it (datalad get, git annex get)")
    return file


def _listed(files: list[BidsFile]) -> str:
    return ", ".join(file.path.name for file in files)
