"""From a CSV file, BIDS or the Decathlon's layout to datasets that nnU-Net reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fednnunet.conversion.options import Options
from fednnunet.conversion.plan import plan_conversion
from fednnunet.conversion.readers.bids.reader import read_bids
from fednnunet.conversion.readers.generic import read_generic
from fednnunet.conversion.readers.msd import read_msd
from fednnunet.conversion.scan_result import ScanResult
from fednnunet.conversion.targets import numbered_targets
from fednnunet.conversion.writer import convert
from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import RawDataset, read_dataset
from tests.conversion.test_writer import Silent, read, write

CASES = 5


def image(number: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 200, shape).astype(np.int16)


def label(*values: int) -> np.ndarray:
    """A row of each value in (3, 8, 8)."""
    array = np.zeros((3, 8, 8), dtype=np.uint8)
    for row, value in enumerate(values, start=1):
        array[1, row, 2:5] = value
    return array


def converted(scan: ScanResult, target: Path, external: tuple[str, ...] = ()) -> dict[str, RawDataset]:
    """Centre to its dataset, every image of it checked."""
    centres = numbered_targets(scan, "Mine", 601, external)
    plan = plan_conversion(scan, centres, scan.labels)
    assert not plan.all_problems
    done = convert(plan, target.parent, target, "convert test", {}, Options(), Silent())
    datasets = {
        entry.centre.name: read_dataset(entry.folder, entry.centre.name, entry.centre.external) for entry in done
    }
    for centre, dataset in datasets.items():
        check_images(dataset, centre)
    return datasets


def test_a_csv_file_becomes_a_dataset_a_centre(tmp_path: Path) -> None:
    lines = ["image_CT,image_PET,label,centre,case,patient"]
    for number in range(CASES + 2):
        for name in ("ct", "pet"):
            write(tmp_path / "in" / f"{name}{number}.mha", image(number, 3, 8, 8))
        write(tmp_path / "in" / f"label{number}.nrrd", label(64, 255))
        centre = "Oslo" if number < CASES else "Riga"
        lines.append(f"ct{number}.mha,pet{number}.mha,label{number}.nrrd,{centre},case {number},p{number}")
    (tmp_path / "in" / "cases.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    scan = read_generic(tmp_path / "in" / "cases.csv", labels="node=255,tumour=64")
    datasets = converted(scan, tmp_path / "raw", ("Riga",))
    assert {centre: dataset.name for centre, dataset in datasets.items()} == {
        "Oslo": "Dataset601_Mine_Oslo",
        "Riga": "Dataset602_Mine_Riga",
    }
    oslo = datasets["Oslo"]
    assert oslo.channel_names == {"0": "CT", "1": "PET"}
    assert oslo.labels == {"background": 0, "tumour": 1, "node": 2}
    assert [case.name for case in oslo.cases] == [f"case_{number}" for number in range(CASES)]
    assert np.array_equal(read(oslo.cases[3].images[1]), image(3, 3, 8, 8))
    assert np.array_equal(read(oslo.cases[3].label), label(1, 2))
    assert [case.images[0].parent.name for case in datasets["Riga"].cases] == ["imagesTs", "imagesTs"]


def test_a_bids_dataset_becomes_a_dataset_a_centre(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    for number in range(CASES):
        anat = f"sub-{number:02d}/anat/sub-{number:02d}"
        write(root / f"{anat}_T1w.nii.gz", image(number, 3, 8, 8))
        write(root / "derivatives" / "manual" / f"{anat}_dseg.nii.gz", label(100, 102))
    (root / "derivatives" / "manual" / "dseg.tsv").write_text("index\tname\n100\tGray Matter\n102\tBrainstem\n")
    (dataset,) = converted(read_bids(root), tmp_path / "raw").values()
    assert dataset.labels == {"background": 0, "Gray Matter": 1, "Brainstem": 2}
    assert [case.name for case in dataset.cases] == [f"sub-{number:02d}" for number in range(CASES)]
    assert np.array_equal(read(dataset.cases[4].images[0]), image(4, 3, 8, 8))
    assert np.array_equal(read(dataset.cases[4].label), label(1, 2))


@pytest.mark.parametrize("channels", [("T2", "ADC"), ("MRI",)])
def test_a_task_of_the_decathlon_becomes_a_dataset(tmp_path: Path, channels: tuple[str, ...]) -> None:
    task, cases = tmp_path / "Task05_Prostate", [f"prostate_{number:02d}" for number in range(CASES)]
    shape = (len(channels), 3, 8, 8) if len(channels) > 1 else (3, 8, 8)
    for number, case in enumerate(cases):
        write(task / "imagesTr" / f"{case}.nii.gz", image(number, *shape))
        write(task / "labelsTr" / f"{case}.nii.gz", label(1, 2))
    description = {
        "name": "PROSTATE",
        "modality": {str(number): name for number, name in enumerate(channels)},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases],
        "test": [],
    }
    (task / "dataset.json").write_text(json.dumps(description))
    (dataset,) = converted(read_msd(task), tmp_path / "raw").values()
    assert tuple(dataset.channel_names.values()) == channels
    assert [len(case.images) for case in dataset.cases] == [len(channels)] * CASES
    voxels = np.stack([read(path) for path in dataset.cases[2].images])
    assert np.array_equal(voxels, image(2, *shape).reshape(voxels.shape))
    assert np.array_equal(read(dataset.cases[2].label), label(1, 2))
