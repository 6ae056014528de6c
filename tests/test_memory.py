"""The pool of outputs and workspaces: memory comes back, and is never two arrays' at once."""

from __future__ import annotations

import gc
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest

from processes import said
from upconv.codegen import memory

BIG = (256, 1024)  # a megabyte of float32


@pytest.fixture(autouse=True)
def _no_leftovers() -> None:
    gc.collect()
    memory.trim()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (7,), (16384,), (16385,), BIG, (5, 3, 999, 17)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_an_array_as_np_empty_makes_it(shape: tuple[int, ...], dtype: type) -> None:
    made = memory.empty(shape, dtype)
    assert (type(made), made.shape, made.dtype) == (np.ndarray, shape, np.dtype(dtype))
    assert made.flags.c_contiguous
    assert made.flags.writeable
    assert made.flags.aligned
    made[...] = 3
    assert (made == 3).all()


def test_the_pages_of_a_dead_array_are_used_again() -> None:
    first = memory.empty(BIG, np.float32)
    address = first.ctypes.data
    del first
    again = memory.empty(BIG, np.float32)
    assert again.ctypes.data == address


def test_a_view_keeps_the_pages() -> None:
    first = memory.empty(BIG, np.float32)
    view = first[3:, ::2].T
    address = first.ctypes.data
    del first
    gc.collect()
    others = [memory.empty(BIG, np.float32) for _ in range(3)]
    assert address not in [o.ctypes.data for o in others]
    view[...] = 1
    for other in others:
        other[...] = 2
    assert (view == 1).all()


def test_living_arrays_never_overlap() -> None:
    rng = np.random.default_rng(0)
    living: list[np.ndarray] = []
    for turn in range(300):
        if living and rng.random() < 0.5:
            living.pop(rng.integers(len(living)))
        array = memory.empty((int(rng.integers(16_000, 60_000)),), np.float32)
        array[:] = turn
        living.append(array)
        assert all((a == a[0]).all() for a in living[-5:])
    spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in living)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_sizes_of_long_ago_make_room_for_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process that has run large layers maps fresh pages at every call of the next one."""
    monkeypatch.setattr(memory, "MOST_FREE", 4 << 20)
    for size in (3 << 20, 1 << 20):
        memory.empty((size,), np.uint8)
    array = memory.empty((2 << 20,), np.uint8)
    del array
    assert memory._of(2 << 20).waiting
    assert memory._waiting_bytes() <= 4 << 20
    too_large = memory.empty((5 << 20,), np.uint8)
    del too_large
    assert memory._of(2 << 20).waiting  # it pushed nobody out
    assert not memory._of(5 << 20).waiting


def test_waiting_memory_is_bounded_and_can_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_FREE", 3 << 20)
    arrays = [memory.empty(BIG, np.float32) for _ in range(6)]
    del arrays
    gc.collect()
    waiting = memory._waiting_bytes()
    assert 1 << 20 <= waiting <= 3 << 20
    before = memory._mapped
    assert memory.trim() == waiting
    assert (memory._waiting_bytes(), memory.trim(), before - memory._mapped) == (0, 0, waiting)


def test_nearly_equal_sizes_share_pages_and_little_is_wasted() -> None:
    for size in range(memory.SMALL, 64 << 20, 999_983):
        room = memory._size_class(size)
        assert size <= room <= max(size * 1.13, size + memory._PAGE)
        assert room % 4096 == 0
        assert memory._size_class(room) == room


def test_threads_take_and_give_without_sharing() -> None:
    wrong: list[int] = []

    def work(mark: int) -> None:
        for _ in range(100):
            array = memory.empty((20_000,), np.float32)
            array[:] = mark
            if not (array == mark).all():
                wrong.append(mark)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert wrong == []


def test_a_collection_inside_the_pool_does_not_deadlock() -> None:
    """The garbage collector may finalise an array in a cycle while this very thread is inside the pool."""
    code = """
import numpy as np
from upconv.codegen import memory
cycle = [memory.empty((256, 1024), np.float32)]
cycle.append(cycle)
with memory._lock:
    del cycle
    import gc; gc.collect()
print("on")
"""
    assert said(code, timeout=30) == "on"


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
def test_a_child_writes_into_pages_of_its_own() -> None:
    code = """
import os, warnings
import numpy as np
warnings.simplefilter("ignore", DeprecationWarning)
from upconv.codegen import memory
kept = memory.empty((256, 1024), np.float32); kept[:] = 1
waiting = memory.empty((256, 1024), np.float32); del waiting
pid = os.fork()
if pid == 0:
    kept[:] = 2
    memory.empty((256, 1024), np.float32)[:] = 3
    os._exit(0)
mine = memory.empty((256, 1024), np.float32); mine[:] = 4
os.waitpid(pid, 0)
print((kept == 1).all(), (mine == 4).all())
"""
    assert said(code, timeout=30) == "True True"
