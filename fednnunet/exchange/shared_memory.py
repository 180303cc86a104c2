"""Anonymous memory that processes of one machine share by its descriptor: mapped once, used for many transfers.

Mapping costs more than copying: a page fault for every 4 KiB. So both ends keep the memory of a transfer mapped, and
its owner writes the next one there, unless somebody still reads the last: views in this process are known by their
window, those in others by a lease, which the kernel ends with the process that holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np

from fednnunet.errors import ProtocolError


class Window(np.ndarray):
    """The bytes of a memory, as ``uint8``: alive as long as any array that was made from it.

    Attributes:
        memory: whose bytes they are.
    """

    memory: SharedMemory


class SharedMemory:
    """Memory of one process, or of another one that lent it.

    Args:
        fd: descriptor; owned from here on.
        size: bytes, one or more.
        writeable: whether it is this process's own.
    """

    def __init__(self, fd: int, size: int, writeable: bool) -> None:
        self.fd, self.size = fd, size
        weakref.finalize(self, os.close, fd)
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writeable else 0)
        self._mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, access)
        self._windows: list[weakref.ref[Window]] = []
        self._lent_for_good = False

    @classmethod
    def allocate(cls, size: int) -> SharedMemory:
        """New memory of this process, of zeros."""
        fd = _anonymous_file()
        os.ftruncate(fd, size)
        return cls(fd, size, writeable=True)

    def window(self, lease: int | None = None) -> Window:
        """The bytes, without a copy; until nothing made from them is left, the memory is in use.

        Args:
            lease: descriptor to close then.
        """
        window = Window((self.size,), np.uint8, buffer=self._mapping)
        window.memory = self
        if lease is not None:
            weakref.finalize(window, os.close, lease)
        self._windows = [known for known in self._windows if known() is not None] + [weakref.ref(window)]
        return window

    def lend(self) -> int:
        """A descriptor for another process: to read only, and until it is closed everywhere the memory is in use.

        It holds a shared lock (flock) of an open file of its own, which goes with the last descriptor of it, be it in
        this process, on its way through a socket, or in a process that is killed.
        """
        try:
            fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # no such file system: nobody can tell when it is free
            self._lent_for_good = True
            return os.dup(self.fd)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    @property
    def is_in_use(self) -> bool:
        """Whether a view in this process is alive, or another process has the memory."""
        if self._lent_for_good or any(known() is not None for known in self._windows):
            return True
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return False


class Borrowed:
    """Memory of other processes that stays mapped: the last ``most`` of them.

    Args:
        most: number of memories.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[Hashable, tuple[tuple[int, int], SharedMemory]] = OrderedDict()

    def window(self, fd: int, size: int, where: str, lender: Hashable = None) -> Window:
        """The memory behind a descriptor that another process lent; owns the descriptor from here on.

        Args:
            fd: of :meth:`SharedMemory.lend`.
            size: bytes that it must have at least.
            where: who sent it, for the error.
            lender: whose last memory is kept; None for memory that is kept by itself.

        Raises:
            ProtocolError: it is smaller; names ``where``.
        """
        with contextlib.ExitStack() as on_error:  # a lease that stays open keeps the memory from its owner
            on_error.callback(os.close, fd)
            memory = self._mapped(fd, size, where, lender)
            on_error.pop_all()
        return memory.window(lease=fd)

    def _mapped(self, fd: int, size: int, where: str, lender: Hashable) -> SharedMemory:
        status = os.fstat(fd)
        if status.st_size < max(size, 1):  # an empty file cannot be mapped at all
            raise ProtocolError(f"{where} sent less memory than its layout needs")
        file = status.st_dev, status.st_ino
        key = file if lender is None else lender
        known, memory = self._known.pop(key, (None, None))
        if memory is None or known != file or memory.size < size:
            # The mapping needs an open file of its own: it keeps it open, and with it would keep the lease.
            memory = SharedMemory(_reopened(fd), max(size, 1), writeable=False)
        self._known[key] = file, memory
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return memory

    def clear(self) -> None:
        """Keep none."""
        self._known.clear()


def _reopened(fd: int) -> int:
    with contextlib.suppress(OSError):
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    return os.dup(fd)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fednnunet", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
