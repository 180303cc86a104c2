"""Memory of processes that pass messages on: freed buffers are used again, and few objects are looked at for garbage.

A message is handled in buffers of 8 MiB, several for each at every step. By default glibc returns them to the system
when they are freed: each page of the next one is a page fault, which costs as much as all work on its bytes.
"""

from __future__ import annotations

import ctypes
import gc
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's ``mallopt``, from ``malloc.h``."""
KEPT_BYTES = 128 * 2**20
"""Freed memory that is kept at the end of the heap; what is larger by itself is always returned."""
REUSED_BYTES = 32 * 2**20
"""Buffers below this size come from the heap; larger ones are requested from the system each, and returned."""


def keep_freed_buffers() -> bool:
    """Let glibc's ``malloc`` use freed buffers again, in one heap for all threads.

    Does nothing with another C library, nor where the user has set ``malloc`` by ``GLIBC_TUNABLES`` or ``MALLOC_…``.

    Returns:
        Whether it was set.
    """
    environment = os.environ
    if "glibc.malloc" in environment.get("GLIBC_TUNABLES", ""):
        return False
    if any(name.startswith("MALLOC_") for name in environment):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    # A threshold that is not set adapts itself, and the other with it. A heap per thread would keep as much in each.
    settings = {M_MMAP_THRESHOLD: REUSED_BYTES, M_TRIM_THRESHOLD: KEPT_BYTES, M_ARENA_MAX: 1}
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def exempt_from_collection() -> None:
    """Look for garbage only among objects that are made from now on: imports leave hundreds of thousands, for good."""
    gc.collect()
    gc.freeze()
