"""The libraries for DICOM, which are an extra."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator

from fednnunet.errors import ConfigError

NEEDED = ("pydicom", "highdicom")
MISSING = "reading and writing DICOM needs more packages: pip install fednnunet[dicom]"


def require_dicom() -> None:
    """Refuse to go on where the extra is not installed.

    Raises:
        ConfigError: says how to install it.
    """
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        raise ConfigError(MISSING)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Within it, what pydicom finds odd in a file is not printed: what matters to us is checked by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
