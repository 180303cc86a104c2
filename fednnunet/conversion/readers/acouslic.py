"""ACOUSLIC-AI: fetal ultrasound of Sierra Leone.

Sources of the layout: acouslic-ai.grand-challenge.org/datasets; Zenodo 10.5281/zenodo.12697994, v1.1 (Sappia et al.,
Medical Image Analysis 103640, 2025); the values in the masks and the rule of the largest area from
github.com/DIAGNijmegen/ACOUSLIC-AI-baseline (``model.py``, ``postprocess_probability_maps.py``, commit 1dd4ba1); the
table as in github.com/louisapraszezynki/acouslic-ai-challenge (``acouslic-ai-train-set/circumferences``, commit
fc9b928); which cases have which plane from github.com/naamiinepal/acouslic-ai-repo
(``data_stats/artifacts/ACOUSLIC_AI_data_stats.csv``, commit 51eb6dc).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import SimpleITK as sitk

from fednnunet.conversion.names import as_case_name
from fednnunet.conversion.readers.csv_table import read_table
from fednnunet.conversion.readers.source_files import find_file, image_files
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.datasets.file_integrity import inspect_file
from fednnunet.datasets.geometry import format_size
from fednnunet.errors import DataError

CENTRE = "Sierra Leone"
OPTIMAL, SUBOPTIMAL = 1, 2
MASK_VALUES = {OPTIMAL: "abdomen", SUBOPTIMAL: "abdomen"}
STACKS, MASK_STACKS = "images/stacked_fetal_ultrasound", "masks/stacked_fetal_abdomen"
CIRCUMFERENCES = "circumferences/fetal_abdominal_circumferences_per_sweep.csv"
LAYOUT = (
    f"the folder must hold {STACKS}, {MASK_STACKS} and {CIRCUMFERENCES} of acouslic-ai-train-set.zip, "
    "https://zenodo.org/records/12697994"
)
Planes = Literal["optimal", "optimal-first", "largest"]


@dataclass(frozen=True, order=True)
class _Frame:
    """A frame that can become a case; the greater, the better."""

    preferred: bool
    area: int  # pixels of its mask
    number: int = field(compare=False)  # from 0


def read_acouslic(
    source: Path,
    *,
    planes: Annotated[
        Planes,
        "the frame to take, the one with the largest mask: of the optimal plane (cases without it are left out), of "
        "the optimal plane or else of the suboptimal one, or of either",
    ] = "optimal",
    one_per: Annotated[Literal["subject", "case"], "take one image of each subject, or of each case"] = "subject",
    cases: Annotated[Path | None, "file of the uuids to take, one per line; default: all"] = None,
) -> ScanResult:
    """ACOUSLIC-AI fetal ultrasound of Sierra Leone: one frame of each subject's blind sweeps.

    ``source`` (or a folder in it, such as ``acouslic-ai-train-set``) holds ``images/stacked_fetal_ultrasound/UUID.mha``
    (744 x 562 pixels of 0.28 mm, six sweeps of 140 frames), ``masks/stacked_fetal_abdomen/UUID.mha`` of the same size
    (0 background, 1 abdomen in the optimal plane, 2 in a suboptimal one) and
    ``circumferences/fetal_abdominal_circumferences_per_sweep.csv``, whose ``subject_id`` is the patient.

    The paper takes "178 cases" and does not say how. Of the 300 published cases 187 have a frame of the optimal plane,
    and these are of 178 subjects: hence the defaults. Which of several frames or cases it takes is not known; the
    largest mask is the rule of the challenge's baseline.

    Every mask is read, some 350 MB of memory at a time; of the images only the headers.

    Raises:
        DataError: a folder or the table is missing, or ``cases`` cannot be read.
    """
    root = find_file(source, "images")
    root = source if root is None else root.parent
    images, masks = (_files_by_name(root, folder) for folder in (STACKS, MASK_STACKS))
    table = root / CIRCUMFERENCES
    if not table.is_file():
        raise DataError(f"{table} is missing: {LAYOUT}")
    rows = read_table(table, ("uuid", "subject_id")).rows
    subjects = {row.cells["uuid"]: row.cells["subject_id"] for row in rows if row.cells["uuid"]}
    listed = None if cases is None else _listed_cases(cases)
    problems, left_out = [], []
    found: dict[str, _Frame] = {}
    for uuid in sorted({*images, *masks, *subjects, *(listed or ())}):
        if listed is not None and uuid not in listed:
            left_out.append(ConversionIssue(uuid, f"not in {cases}", CENTRE))
        elif uuid not in images or uuid not in masks:
            missing = [folder for folder, files in ((STACKS, images), (MASK_STACKS, masks)) if uuid not in files]
            problems.append(ConversionIssue(uuid, f"there is no {uuid}.mha in {' and '.join(missing)}", CENTRE))
        else:
            try:
                frame = _choose_frame(_areas(images[uuid], masks[uuid]), planes)
            except DataError as error:
                problems.append(ConversionIssue(uuid, str(error), CENTRE))
                continue
            if isinstance(frame, str):
                left_out.append(ConversionIssue(uuid, frame, CENTRE))
            else:
                found[uuid] = frame
    patients = {uuid: as_case_name(subjects.get(uuid) or uuid) for uuid in found}
    best: dict[str, str] = {}
    for uuid, patient in patients.items():
        if patient not in best or found[uuid] > found[best[patient]]:
            best[patient] = uuid
    converted = []
    for uuid, frame in found.items():
        chosen = best[patients[uuid]]
        if one_per == "subject" and uuid != chosen:
            left_out.append(ConversionIssue(uuid, f"subject {patients[uuid]} has a better frame in {chosen}", CENTRE))
        else:
            image, label = (SourceImage(stacks[uuid], frame=frame.number) for stacks in (images, masks))
            converted.append(SourceCase(as_case_name(uuid), CENTRE, (image,), label, MASK_VALUES, patients[uuid]))
    return ScanResult(tuple(converted), ("ultrasound",), tuple(problems), tuple(left_out), file_ending=".png")


def _files_by_name(root: Path, folder: str) -> dict[str, Path]:
    # the challenge's own interface spells the folders with hyphens
    existing = next((path for path in (root / folder, root / folder.replace("_", "-")) if path.is_dir()), None)
    found = (
        {} if existing is None else {path.stem: path for path in image_files(existing) if path.suffix.lower() == ".mha"}
    )
    if not found:
        raise DataError(f"{root / folder} {'is missing' if existing is None else 'holds no .mha'}: {LAYOUT}")
    return found


def _listed_cases(path: Path) -> set[str]:
    try:
        return {line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cases: {path} cannot be read: {error}") from None


def _areas(image: Path, mask: Path) -> np.ndarray:
    """Pixels of the optimal and of the suboptimal plane in each frame's mask, (frames, 2).

    Raises:
        DataError: a file cannot be read, or they are not stacks of one size.
    """
    for path in (image, mask):
        if path.suffix != ".mha":
            raise DataError(f"{path} must be renamed to end in .mha, in lower case: SimpleITK chooses the format by it")
    try:
        path, header = image, sitk.ImageFileReader()
        header.SetFileName(str(image))
        header.ReadImageInformation()
        path = mask
        stack = sitk.ReadImage(str(mask))
    except RuntimeError as error:
        inspect_file(path)  # says so if it was cut off; SimpleITK says that there is no such file
        raise DataError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from None
    if header.GetSize() != stack.GetSize() or stack.GetDimension() != 3:
        sizes = [format_size(size) for size in (header.GetSize(), stack.GetSize())]
        raise DataError(
            f"image and mask must be stacks of one size; they have {sizes[0]} and {sizes[1]} (X, Y, frames)"
        )
    areas = np.zeros((stack.GetSize()[2], 2), dtype=np.int64)
    for number, frame in enumerate(sitk.GetArrayViewFromImage(stack)):
        if frame.any():  # few of the 840 are annotated
            areas[number] = [np.count_nonzero(frame == value) for value in (OPTIMAL, SUBOPTIMAL)]
    return areas


def _choose_frame(areas: np.ndarray, planes: Planes) -> _Frame | str:
    """The frame with the largest mask, or why there is none."""
    if not areas.any():
        return "no frame is annotated"
    optimal, suboptimal = areas.T
    if planes == "optimal" and not optimal.any():
        return "no frame is annotated as the optimal plane"
    preferred = planes == "largest" or bool(optimal.any())
    of_plane = areas.max(axis=1) if planes == "largest" else optimal if preferred else suboptimal
    return _Frame(preferred, int(of_plane.max()), int(of_plane.argmax()))
