"""Miniature downloads of M&Ms and ACDC, laid out as the published ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from fednnunet.conversion.scan_result import ScanResult

SHAPE = (3, 8, 8)
"""Voxels (Z, Y, X)."""
MNMS1_HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"
MNMS1_CSV = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
MNMS1_OLD_CSV = "201014_M&Ms_Dataset_Information_-_opendataset.csv"
MNMS1 = {  # id: part, centre, ED, ES
    "A0S9V9": ("Training/Labeled", 1, 0, 2),
    "B2D9O2": ("Training/Labeled", 2, 3, 1),
    "A5C2D2": ("Validation", 3, 0, 1),
    "A1K2P5": ("Testing", 4, 0, 1),
    "Z9Y8X7": ("Testing", 5, 1, 0),
    "C1K9Q8": ("Training/Unlabeled", 4, 0, 0),
}
MNMS2 = {  # subject: disease, vendor
    1: ("NOR", "GE MEDICAL SYSTEMS"),
    41: ("LV", "SIEMENS"),
    172: ("HCM", "Philips Medical Systems"),
    321: ("TRI", "SIEMENS"),
}
LV_FIRST = {1: "LV", 2: "MYO", 3: "RV"}
RV_FIRST = {1: "RV", 2: "MYO", 3: "LV"}


def write_image(path: Path, values: np.ndarray, shear: bool = False) -> Path:
    """(Z, Y, X) or (T, Z, Y, X); ``shear`` gives directions that are not orthonormal, which SimpleITK refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shear:
        import nibabel as nib

        affine = np.diag([1.3, 1.3, 10, 1.0])
        affine[0, 1] = 0.4
        image = nib.Nifti1Image(values.transpose(), affine)
        image.set_qform(None, code=0)
        nib.save(image, path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(values, isVector=False), str(path))
    return path


def noise(seed: int, frames: int | None = None) -> np.ndarray:
    size = SHAPE if frames is None else (frames, *SHAPE)
    return np.random.default_rng(seed).integers(0, 900, size).astype(np.int16)


def write_table(path: Path, lines: Iterable[str], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]), encoding=encoding)
    return path


def mnms1_line(number: int, patient: str, centre: Any, ed: Any, es: Any) -> str:
    return f"{number},{patient},Siemens,A,{centre},{ed},{es},45,HCM,M,170.0,"


def make_mnms1(root: Path, lines: Sequence[str] | None = None) -> Path:
    """The release OpenDataset; the seed of a patient's cine is its place in :data:`MNMS1`."""
    for number, (patient, (part, _, ed, es)) in enumerate(MNMS1.items()):
        stem = root / part / patient / f"{patient}_sa"
        label = np.zeros((4, *SHAPE), np.uint8)
        label[[ed, es], 1, 2:5, 2:5] = 3
        write_image(Path(f"{stem}.nii.gz"), noise(number, 4))
        write_image(Path(f"{stem}_gt.nii.gz"), label)
    if lines is None:
        lines = [mnms1_line(n, patient, *row[1:]) for n, (patient, row) in enumerate(MNMS1.items())]
    write_table(root / MNMS1_CSV, [MNMS1_HEADER, *lines])
    return root


def make_mnms2(root: Path, lines: Sequence[str] | None = None) -> Path:
    """The release MnM2, with its long axis and cine, and the empty lines at its CSV's end."""
    for subject in MNMS2:
        code = f"{subject:03d}"
        for number, what in enumerate(("SA_ED", "SA_ES", "LA_ED", "LA_ES"), start=1):
            write_image(root / "dataset" / code / f"{code}_{what}.nii.gz", noise(1000 * number + subject))
            write_image(root / "dataset" / code / f"{code}_{what}_gt.nii.gz", np.ones(SHAPE, np.uint8))
        for what in ("SA_CINE", "LA_CINE"):
            write_image(root / "dataset" / code / f"{code}_{what}.nii.gz", noise(9000 + subject, 2))
    if lines is None:
        lines = [f"{subject},{disease},{vendor},Scanner,1.5" for subject, (disease, vendor) in MNMS2.items()]
    write_table(root / "dataset_information.csv", ["SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD", *lines, ",,,,", ",,,,"])
    return root


def patients(scan: ScanResult) -> dict[str, str]:
    """Patient to centre."""
    return {case.patient: case.centre for case in scan.cases}


def reason_of(scan: ScanResult, name: str) -> str:
    [issue] = [issue for issue in scan.problems if issue.name == name]
    return issue.reason


ACDC = {  # patient: part, ED, ES
    "patient001": ("training", 1, 12),
    "patient090": ("training", 11, 3),
    "patient101": ("testing", 1, 14),
}


def make_acdc(root: Path) -> Path:
    for number, (patient, (part, ed, es)) in enumerate(ACDC.items()):
        folder = root / part / patient
        for frame in (ed, es):
            write_image(folder / f"{patient}_frame{frame:02d}.nii.gz", noise(100 * number + frame))
            write_image(folder / f"{patient}_frame{frame:02d}_gt.nii.gz", np.ones(SHAPE, np.uint8))
        write_image(folder / f"{patient}_4d.nii.gz", noise(0, 2))
        write_table(
            folder / "Info.cfg",
            [f"ED: {ed}", f"ES: {es}", "Group: DCM", "Height: 184.0", "NbFrame: 30", "Weight: 95.0"],
        )
        (folder / "MANDATORY_CITATION.md").touch()
    return root
