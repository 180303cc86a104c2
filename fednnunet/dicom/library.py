"""The libraries for DICOM, which are an extra."""

from __future__ import annotations

import contextlib
import importlib.util
import struct
import warnings
from collections.abc import Iterator

from fednnunet.errors import ConfigError, DataError, one_line

NEEDED = ("pydicom", "highdicom")
MISSING = "reading and writing DICOM needs more packages: pip install fednnunet[dicom]"


def require_dicom() -> None:
    """Refuse to go on where the extra is not installed.

    Raises:
        ConfigError: says how to install it.
    """
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        raise ConfigError(MISSING)


READ_ERRORS = (
    *(AttributeError, LookupError, ValueError, TypeError, ArithmeticError, RuntimeError),
    *(EOFError, OSError, AssertionError, struct.error),
)
"""What pydicom and highdicom raise where an element lacks or is damaged; NotImplementedError is a RuntimeError."""


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Within it, what is wrong with a file becomes an error of ours, and what is only odd is not printed.

    Args:
        what: the file, and what it should be: how the error begins.

    Raises:
        DataError: one line.
    """
    import pydicom

    try:
        with without_warnings():
            yield
    except (*READ_ERRORS, pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{what}: {one_line(cause)}") from None


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Within it, what pydicom finds odd in a file is not printed: what matters to us is checked by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
