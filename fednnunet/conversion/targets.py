"""Where the cases of each centre go."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fednnunet.config.hydra_datasets import configured_dataset
from fednnunet.conversion.study import ScanResult
from fednnunet.errors import ConfigError


@dataclass(frozen=True)
class TargetCentre:
    """A centre, and the dataset that takes its cases.

    Attributes:
        name: as the studies name it.
        dataset: ``DatasetXXX_Name``.
        external: its cases only test: they go to ``imagesTs`` and ``labelsTs``.
        studies: how many the paper has; None where no paper says.
    """

    name: str
    dataset: str
    external: bool = False
    studies: int | None = None

    @property
    def node(self) -> str:
        """The name as nodes may have it: accents fall away, other signs become hyphens."""
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


def numbered_targets(survey: ScanResult, name: str, first_id: int, external: Sequence[str]) -> list[TargetCentre]:
    """One dataset for every centre that a survey names, in alphabetical order.

    Args:
        survey: whose centres.
        name: comes after the number in every dataset's name.
        first_id: number of the first dataset.
        external: centres that only test.

    Raises:
        ConfigError: ``external`` names a centre that is not there, or all, or numbers run out.
    """
    names = sorted({study.centre for study in survey.studies})
    unknown = sorted(set(external) - set(names))
    if unknown:
        raise ConfigError(f"--external: {unknown[0]} is none of the centres: {', '.join(names)}")
    if names and set(names) == set(external):
        raise ConfigError("--external: all centres only test; one at least must train")
    if first_id + len(names) > 1000:
        raise ConfigError(f"--first-id: {len(names)} centres do not fit between {first_id} and 999")
    centres = [
        TargetCentre(centre, f"Dataset{number:03d}_{_safe(name)}_{_safe(centre)}", centre in external)
        for number, centre in enumerate(names, start=first_id)
    ]
    nodes = Counter(centre.node for centre in centres)
    for centre in centres:
        if nodes[centre.node] > 1:
            raise ConfigError(f"centre {centre.name}: as a node's name it is {centre.node}, as another's; rename it")
    return centres


def _safe(name: str) -> str:
    """Fit for a folder's name: accents fall away, and what is neither letter nor digit."""
    return re.sub(r"[^A-Za-z0-9-]+", "", _without_accents(name)) or "Centre"


def _without_accents(name: str) -> str:
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
