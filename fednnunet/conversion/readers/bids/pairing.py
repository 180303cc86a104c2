"""Find the image that each label map in BIDS belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fednnunet.conversion.readers.bids.entities import DERIVED, DESCRIBES_LABELS, BidsFile
from fednnunet.errors import DataError


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
    sessions: dict[tuple[str, str], list[BidsFile]] = {}
    for image in images:
        sessions.setdefault(image.session, []).append(image)
    pairs, problems = {}, {}
    for scan, found in label_maps.items():
        try:
            label_map = _only_label_map(found, label_ending)
            session = sessions.get(label_map.session, [])
            pairs[scan] = label_map, [_only_image(session, channel, label_map) for channel in channels]
        except DataError as error:
            problems[scan] = str(error)
    shared = Counter(chosen[0] for _, chosen in pairs.values())
    for scan, (_, chosen) in list(pairs.items()):
        if shared[chosen[0]] > 1:
            del pairs[scan]
            problems[scan] = f"{chosen[0].path.name} fits {shared[chosen[0]]} label maps; choose one with --label-maps"
    return pairs, problems


def _only_label_map(found: list[BidsFile], label: str) -> BidsFile:
    """The one label map, or of several the one that has no other entities than ``label``."""
    asked = {part.partition("-")[0] for part in label.split("_")}
    plain = [file for file in found if not set(file.entities) & DERIVED - asked]
    if len(found) > 1 and len(plain) != 1:
        raise DataError(f"several label maps: {_listed(found)}; choose with --label-maps, as in desc-manual_{label}")
    return _with_content(found[0] if len(found) == 1 else plain[0])


def _only_image(session: list[BidsFile], channel: str, label_map: BidsFile) -> BidsFile:
    """The image that a label map belongs to."""
    chosen = {part.partition("-")[0] for part in channel.split("_")[:-1]}
    expected = label_map.without(DESCRIBES_LABELS | chosen)
    candidates = [image for image in session if image.matches(channel)]
    fitting = [
        image for image in candidates if all(image.entities.get(key, value) == value for key, value in expected.items())
    ]
    exact = [image for image in fitting if image.without(chosen) == expected]
    if len(fitting) == 1 or len(exact) == 1:
        return _with_content((fitting if len(fitting) == 1 else exact)[0])
    if not candidates:
        raise DataError(f"there is no image *_{channel} for {label_map.path.name}")
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
