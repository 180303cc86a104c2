"""Softmax outputs of held-out cases, as ``trainer.save_probabilities=true`` and ``nnUNetv2_predict`` save them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fednnunet.errors import DataError


def read_probabilities(path: Path) -> np.ndarray:
    """Softmax outputs, or sigmoids of regions, (classes, Z, Y, X), float32.

    Raises:
        DataError: the file is damaged, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            probabilities = archive["probabilities"].astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; remove it, and let its case be segmented again") from None
    if not np.isfinite(probabilities).all():
        raise DataError(f"{path} holds NaN or infinity; remove it, and let its case be segmented again")
    return probabilities
