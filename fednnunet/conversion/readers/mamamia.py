"""MAMA-MIA: breast DCE-MRI of four cohorts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from fednnunet.conversion.readers.dce_phases import (
    NumberOption,
    PhasesOption,
    Tree,
    centre_by_id,
    phase_channels,
    read_trees,
)
from fednnunet.conversion.scan_result import ScanResult

MAMAMIA_CENTRES = ("ISPY1", "ISPY2", "DUKE", "NACT")
MAMAMIA_FEWEST_PHASES = 3
"""``num_phases`` in ``clinical_and_imaging_info.xlsx`` is at least 3 in each of the four cohorts."""
MAMAMIA_HOLDS = (
    "MAMA-MIA as downloaded from Synapse (syn60868042) holds images/PATIENT/PATIENT_000N.nii.gz and "
    "segmentations/expert/PATIENT.nii.gz, with PATIENT such as ISPY1_1001 and N the phase"
)


def read_mamamia(
    source: Path,
    *,
    phases: PhasesOption = "first",
    number_of_phases: NumberOption = 3,
    segmentation: Annotated[
        Literal["expert", "automatic"], "label maps by experts, as in the paper, or by the authors' nnU-Net"
    ] = "expert",
) -> ScanResult:
    """Breast DCE-MRI of MAMA-MIA: ISPY1, ISPY2, DUKE and NACT.

    The layout is that of the figure and the readers in https://github.com/LidiaGarrucho/MAMA-MIA (commit bfc321a;
    ``docs/_static/dataset_info.png``, ``src/preprocessing.py``) for the dataset of Garrucho et al., Scientific Data
    12:453, 2025, Synapse syn60868042. Phase 0000 is before contrast, 0001 the first after it, on which the experts
    drew; the FednnU-Net paper does not say which it trained on. The case of letters does not matter: the figure has
    ``DUKE_001/DUKE_001_0001.nii.gz``, code of users ``DUKE_001/duke_001_0001.nii.gz`` (such as
    https://github.com/FraunhoferMEVIS/MAMA-MIA-Challange-FME). Tables and ``patient_info_files`` are not read. Axial
    and sagittal volumes are mixed, as in the paper.

    Args:
        source: folder with ``images`` and ``segmentations``.
        phases: phases that become the channels.
        number_of_phases: number of channels if ``phases`` is ``all``; every published study has 3.
        segmentation: kind of label maps.

    Raises:
        DataError: ``source`` is not a complete download: says what is missing.
        ConfigError: ``number_of_phases`` is less than 2.
    """
    channels = phase_channels(phases, number_of_phases)
    centre_of = partial(centre_by_id, MAMAMIA_CENTRES, "")
    tree = Tree(source, source / "segmentations" / segmentation, centre_of, MAMAMIA_HOLDS)
    return read_trees([tree], channels, MAMAMIA_FEWEST_PHASES)
