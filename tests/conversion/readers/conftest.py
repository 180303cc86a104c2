"""Downloads that the tests of several readers need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.dce_downloads import SAGITTAL, write_image, write_patient


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """A patient of each cohort, and what else a download holds; sagittal where ISPY1 and NACT mostly are."""
    root = tmp_path / "mama_mia"
    write_patient(root, "DUKE_001", phases=5)
    write_patient(root, "ISPY1_1001", phases=3, direction=SAGITTAL)
    write_patient(root, "ISPY2_125418", phases=6)
    write_patient(root, "NACT_01", phases=4, direction=SAGITTAL)
    for patient in ("DUKE_001", "ISPY1_1001"):
        write_image(root / f"segmentations/automatic/{patient}.nii.gz", 1)
    for name in (
        "clinical_and_imaging_info.xlsx",
        "train_test_splits.csv",
        "automatic_segmentations_quality_scores.csv",
        "patient_info_files/duke_001.json",
        "nnUNet_pretrained_weights/full_image_dce_mri_tumor_segmentation.zip",
        "images/SYNAPSE_METADATA_MANIFEST.tsv",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    return root
