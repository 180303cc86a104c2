"""ACDC: short-axis cine MRI of the heart, from one hospital."""

from __future__ import annotations

import re
from pathlib import Path

from fednnunet.conversion.readers.cine_mri import PHASES, Collector, image_and_label, list_folders, whole_number
from fednnunet.conversion.scan_result import ScanResult
from fednnunet.errors import DataError

ACDC_LABELS = {1: "RV", 2: "MYO", 3: "LV"}
ACDC_HOLDS = (
    "it should hold training (patient001 to patient100) and testing (patient101 to patient150), or database with both; "
    "download and unpack https://humanheart-project.creatis.insa-lyon.fr/database/#collection/637218c173e9f0047faa00fb"
)


def read_acdc(source: Path) -> ScanResult:
    """Short-axis cine MRI of ACDC: 150 patients of Dijon's University Hospital, ED and ES, for testing only.

    The layout is that of nnU-Net 2.8.1 (``Dataset027_ACDC.py``) and CineMA 4e352ac (``cinema/data/acdc``), for the
    dataset of Bernard et al., IEEE TMI 37(11), 2018, https://www.creatis.insa-lyon.fr/Challenge/acdc/. ``Info.cfg``
    numbers the frames from 1, as the files' names do.

    Args:
        source: folder with ``training`` and ``testing``, or with ``database`` that has both.

    Raises:
        DataError: ``source`` is not a complete download: says which folder is missing.
    """
    root = source / "database" if (source / "database").is_dir() else source
    found = Collector()
    for part in ("training", "testing"):
        for folder in list_folders(root / part, ACDC_HOLDS):
            try:
                frames = _read_info(folder / "Info.cfg")
            except DataError as error:
                found.add_problem(folder.name, str(error), "ACDC")
                continue
            stem = folder / folder.name
            pairs = {phase: image_and_label(f"{stem}_frame{frame:02d}") for phase, frame in frames.items()}
            found.add(folder.name, "ACDC", pairs, ACDC_LABELS)
    if not found.patients and not found.problems:
        raise DataError(f"{root / 'training'} and {root / 'testing'} hold no folder of a patient; {ACDC_HOLDS}")
    return found.result()


def _read_info(path: Path) -> dict[str, int]:
    """Numbers of the frames ED and ES, of lines such as ``ED: 1``."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; unpack the download again") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    values = dict(re.findall(r"^[ \t]*(\w+)[ \t]*:[ \t]*(\S*)", text, re.MULTILINE))
    frames = {phase: whole_number(values.get(phase, "")) for phase in PHASES}
    known = {phase: frame for phase, frame in frames.items() if frame is not None}
    if len(known) < len(PHASES) or known["ED"] == known["ES"]:
        raise DataError(f"{path} must have lines such as `ED: 1` and `ES: 12` with the numbers of two frames")
    return known
