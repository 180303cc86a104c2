"""What may be in a checkpoint of nnU-Net besides tensors; without nnU-Net, so that a checkpoint is read in no time."""

from __future__ import annotations

from typing import Any

import numpy as np

_SCALAR, _RECONSTRUCT = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
NUMBERS: list[Any] = [
    np.dtype,
    np.ndarray,
    *(
        (function, f"numpy.{core}.multiarray.{name}")  # numpy 1 and 2 name them differently
        for core in ("core", "_core")
        for function, name in ((_SCALAR, "scalar"), (_RECONSTRUCT, "_reconstruct"))
    ),
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")),
]
"""Types in nnU-Net's checkpoints besides tensors; a checkpoint with any other is not read."""
