"""Datasets that the cases of each centre are written to."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fednnunet.config.hydra_datasets import configured_dataset
from fednnunet.conversion.scan_result import ScanResult
from fednnunet.errors import ConfigError


@dataclass(frozen=True)
class TargetCentre:
    """A centre and its dataset.

    Attributes:
        name: name of the centre in the source.
        dataset: ``DatasetXXX_Name``.
        external: whether its cases are for testing only; they go to ``imagesTs`` and ``labelsTs``.
        studies: number of studies in the paper; None without a paper.
    """

    name: str
    dataset: str
    external: bool = False
    studies: int | None = None

    @property
    def node(self) -> str:
        """Name of the node: without accents, other characters become hyphens."""
        return re.sub(r"[^A-Za-z0-9 _.'-]", "-", _without_accents(self.name)).lstrip(" _.'-")[:64] or "Centre"


def configured_targets(dataset: str, external: bool) -> tuple[list[TargetCentre], Mapping[str, int]]:
    """Centres and labels of ``conf/dataset/DATASET.yaml``: the external centres, or the others.

    Raises:
        ConfigError: there is no such configuration, or it names no labels.
    """
    config = configured_dataset(dataset)
    if config.labels is None:
        raise ConfigError(f"conf/dataset/{dataset}.yaml names no labels")
    centres = [
        TargetCentre(centre.name, str(centre.dataset), external, centre.studies)
        for centre in config.centres
        if centre.external == external
    ]
    return centres, config.labels


def numbered_targets(scan: ScanResult, name: str, first_id: int, external: Sequence[str]) -> list[TargetCentre]:
    """One dataset for every centre of a scan, in alphabetical order.

    Args:
        scan: what was found.
        name: part of every dataset's name, after the number.
        first_id: number of the first dataset.
        external: centres that are for testing only; parts of a name that has commas, one after another, are joined.

    Raises:
        ConfigError: ``external`` names an unknown centre, or all centres, or numbers run out.
    """
    names = sorted({case.centre for case in scan.cases})
    external = _join_parts(external, names)
    unknown = sorted(set(external) - set(names))
    if unknown:
        raise ConfigError(f"--external: {unknown[0]} is none of the centres: {', '.join(names)}")
    if names and set(names) == set(external):
        raise ConfigError("--external: all centres would only test; at least one must train")
    if first_id + len(names) > 1000:
        raise ConfigError(f"--first-id: {len(names)} centres do not fit between {first_id} and 999")
    centres = [
        TargetCentre(centre, f"Dataset{number:03d}_{_safe(name)}_{_safe(centre)}", centre in external)
        for number, centre in enumerate(names, start=first_id)
    ]
    nodes = Counter(centre.node for centre in centres)
    for centre in centres:
        if nodes[centre.node] > 1:
            raise ConfigError(
                f"centre {centre.name}: its node would be named {centre.node}, like another centre's; rename it"
            )
    return centres


def _join_parts(parts: Sequence[str], names: Sequence[str]) -> list[str]:
    """``parts``, with those that are one of ``names`` only together, by commas, as that name."""
    spelling = {tuple(part.strip() for part in name.split(",")): name for name in names}
    joined, rest = [], list(parts)
    while rest:
        lengths = range(len(rest), 0, -1)
        length = next((length for length in lengths if tuple(rest[:length]) in spelling), 1)
        joined.append(spelling.get(tuple(rest[:length]), rest[0]))
        rest = rest[length:]
    return joined


def _safe(name: str) -> str:
    """``name`` for a folder: without accents and without what is neither letter nor digit."""
    return re.sub(r"[^A-Za-z0-9-]+", "", _without_accents(name)) or "Centre"


def _without_accents(name: str) -> str:
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
