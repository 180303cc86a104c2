"""Memory that processes share: who reads it, and when it is written again."""

from __future__ import annotations

import errno
import gc
import mmap
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import numpy as np
import pytest
from flwr.app import ArrayRecord

from fednnunet.exchange.arrays import SharedArrays
from fednnunet.exchange.records import as_array_record, from_array_record, record_of
from fednnunet.exchange.shared_memory import Borrowed, SharedMemory
from fednnunet.server.strategy.downlink import Downlink


def _no_memory(*_: object) -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


W = {"w": ((3, 5), np.dtype("float32")), "n": ((), np.dtype("int64"))}


def test_memory_is_in_use_as_long_as_anything_made_from_it() -> None:
    memory = SharedMemory.allocate(100)
    assert not memory.is_in_use
    part = np.frombuffer(memory.window().data[10:20], np.uint8)[2:]
    assert memory.is_in_use
    del part
    assert not memory.is_in_use


def test_memory_is_in_use_as_long_as_its_descriptor_is_open_anywhere() -> None:
    memory = SharedMemory.allocate(100)
    lent = memory.lend()
    other = os.dup(lent)
    os.close(lent)
    assert memory.is_in_use
    os.close(other)
    assert not memory.is_in_use


def hold(lent: int, pipe: Connection) -> None:
    """A process, forked with the descriptor, that reads the memory until it is killed."""
    window = Borrowed(1).window(lent, 1, "a test")
    pipe.send(int(window[0]))
    signal.pause()


def test_memory_is_free_once_its_reader_is_killed() -> None:
    memory = SharedMemory.allocate(100)
    memory.window()[0] = 7
    lent = memory.lend()
    ours, theirs = multiprocessing.Pipe()
    reader = multiprocessing.get_context("fork").Process(target=hold, args=(lent, theirs), daemon=True)
    reader.start()
    os.close(lent)
    assert ours.recv() == 7
    assert memory.is_in_use
    reader.kill()
    reader.join()
    assert not memory.is_in_use


def test_borrowed_memory_can_not_be_written() -> None:
    memory = SharedMemory.allocate(100)
    with pytest.raises(ValueError, match="read-only"):
        Borrowed(1).window(memory.lend(), 100, "a test")[0] = 1
    lent = memory.lend()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(lent, b"1")
    os.close(lent)


def test_borrowed_memory_is_mapped_once_and_lent_back_when_its_arrays_are_gone() -> None:
    memory, borrowed = SharedMemory.allocate(100), Borrowed(2)
    first = borrowed.window(memory.lend(), 100, "a test")
    kept = first.memory
    del first
    assert not memory.is_in_use, "kept mapped, but not read"
    memory.window()[5] = 9
    second = borrowed.window(memory.lend(), 100, "a test")
    assert second.memory is kept
    assert second[5] == 9


def test_memory_that_cannot_be_mapped_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SharedMemory.allocate(100)
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", _no_memory)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            Borrowed(1).window(memory.lend(), 100, "a test")
    assert not memory.is_in_use


@pytest.mark.parametrize("lender", [None, "a worker"])
def test_no_more_memories_are_kept_than_asked_for(lender: str | None) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    borrowed = Borrowed(2)
    for _ in range(5):
        borrowed.window(SharedMemory.allocate(100).lend(), 100, "a test", lender)
    gc.collect()
    kept = 2 if lender is None else 1
    assert len(os.listdir("/proc/self/fd")) == before + 2 * kept, "each has a descriptor, and one of its mapping"


def test_arrays_of_one_memory_are_recognised_with_no_copy() -> None:
    shared = SharedArrays.allocate(W)
    shared.views()["w"][...] = np.arange(15).reshape(3, 5)
    record = as_array_record(shared)
    renamed = record_of({"other.w": record["w"]})
    around = SharedArrays.around(from_array_record(renamed, "a test"))
    assert around is not None
    assert around.memory is shared.memory
    assert np.array_equal(around.views()["other.w"], np.arange(15).reshape(3, 5))


def test_arrays_of_several_memories_or_none_are_not() -> None:
    one, other = (SharedArrays.allocate({"w": ((3,), np.dtype("float32"))}).views()["w"] for _ in range(2))
    assert SharedArrays.around({"a": one, "b": other}) is None
    assert SharedArrays.around({"a": one, "b": np.zeros(3)}) is None
    assert SharedArrays.around({"a": one[1:]}) is None, "not at a place where arrays begin"
    assert SharedArrays.around({}) is None


def test_averages_of_a_round_are_never_written_over_while_anybody_has_them() -> None:
    downlink, records = Downlink("float32"), []
    for value in range(5):
        records.append(downlink.to_record({"g": np.full(4, value, np.float32)}, {}))
    assert [float(from_array_record(record, "a test")["g"][0]) for record in records] == [0, 1, 2, 3, 4]


def test_averages_alternate_between_two_memories_once_nobody_has_them() -> None:
    downlink, used = Downlink("float32"), []
    record = ArrayRecord()
    for value in range(6):
        start = record  # of the round before: nodes are still compared with it
        record = downlink.to_record({"g": np.full(4, value, np.float32)}, from_array_record(start, "a test"))
        arrays = from_array_record(record, "a test")
        around = SharedArrays.around(arrays)
        assert around is not None
        used.append(id(around.memory))
        assert arrays["g"][0] == value
        del around, arrays, start
    assert len(set(used)) == 2
