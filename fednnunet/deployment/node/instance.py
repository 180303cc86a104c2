"""Where this node works: the same after a restart, another one for a copy of its work folder or on another machine.

The server lets one node in for each key (:mod:`fednnunet.deployment.server.instances`); the lock of a work folder keeps
a second process out of it, so a node at the same place is the same node.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Differs between machines, even between copies of one; new with each start of the system."""


def instance_of(folder: Path) -> str:
    """An opaque name of the place of a work folder, which exists: 32 hexadecimal digits."""
    machine = BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.is_file() else socket.gethostname()
    place = folder.stat()
    return hashlib.sha256(f"{machine} {place.st_dev} {place.st_ino}".encode()).hexdigest()[:32]
