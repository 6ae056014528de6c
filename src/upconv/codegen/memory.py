"""Memory that comes back: outputs and workspaces reuse pages that are already mapped.

First touch of fresh pages costs more than many layers do. A `lease` is a block from the pool; when the array made of it (and
every view) is gone, the block returns. At most `MOST_FREE` bytes wait for reuse: those of sizes that nobody has asked for
for the longest time are given up for those that have just been used.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_FREE = 256 << 20
SMALL = 64 << 10
_PAGE = 64 << 10


class _Block:
    """Pages, and where they are."""

    __slots__ = ("address", "pages", "size")

    def __init__(self, pages: mmap.mmap, size: int):
        self.pages, self.size = pages, size
        self.address = np.frombuffer(pages, np.uint8).ctypes.data


_lock = threading.RLock()  # a collection inside it may finalise a lease
_free: OrderedDict[int, list[_Block]] = OrderedDict()  # by size, the size last in use at the end
_free_bytes = 0


def _forget() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@lru_cache(maxsize=4096)
def _size_class(size: int) -> int:
    """Rounded up so that nearly equal sizes share blocks: to an eighth of the power of two below, and to whole pages."""
    unit = max(_PAGE, 1 << max(0, size.bit_length() - 4))
    return -(-size // unit) * unit


def _map(size: int) -> mmap.mmap:
    """Fresh pages of this process alone: mmap's default would share them with every child forked later."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def _take(size: int) -> _Block:
    global _free_bytes
    with _lock:
        waiting = _free.get(size)
        if waiting:
            _free_bytes -= size
            _free.move_to_end(size)
            return waiting.pop()
    pages = _map(size)
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= 4 << 20:
        with suppress(OSError):  # a kernel without huge pages serves small ones
            pages.madvise(mmap.MADV_HUGEPAGE)
    return _Block(pages, size)


def _give(block: _Block) -> None:
    global _free_bytes
    size = block.size
    if size > MOST_FREE:
        return
    with _lock:
        _free.setdefault(size, []).append(block)
        _free.move_to_end(size)
        _free_bytes += size
        while _free_bytes > MOST_FREE:
            oldest, blocks = next(iter(_free.items()))
            if blocks:
                blocks.pop()
                _free_bytes -= oldest
            if not blocks:
                _free.pop(oldest, None)


@lru_cache(maxsize=1024)
def _lease(size: int) -> Any:
    """The class of what holds a block for the array made of it: a ctypes array, the memory that NumPy takes up fastest."""

    def give(self: Any) -> None:
        with suppress(AttributeError, TypeError):  # interpreter shutdown
            _give(self.block)

    return type("Lease", (ctypes.c_char * size,), {"__slots__": ("block",), "__del__": give})


def empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Like np.empty: a C-contiguous array whose memory is reused once it is gone.

    >>> empty((2, 3), np.float32).shape
    (2, 3)
    """
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    if size < SMALL:
        return np.empty(shape, dtype)
    block = _take(_size_class(size))
    lease = _lease(block.size).from_address(block.address)
    lease.block = block
    return np.ndarray(shape, dtype, lease)


def _layout_is_known() -> bool:
    """Whether an array object holds its data's address right behind the object header, as CPython's NumPy does."""
    probes = [np.empty(n, np.uint8) for n in (1, 64, 4096)]
    offset = object.__basicsize__
    return sys.implementation.name == "cpython" and all(
        ctypes.c_void_p.from_address(id(a) + offset).value == a.ctypes.data for a in probes
    )


def address_by_attribute(array: NDArray[Any]) -> int:
    return array.ctypes.data


def _address_by_layout(array: NDArray[Any]) -> int:
    return _pointer_at(id(array) + _HEADER).value or 0


_HEADER = object.__basicsize__
_pointer_at = ctypes.c_void_p.from_address
address = _address_by_layout if _layout_is_known() else address_by_attribute
"""An array's data address. `array.ctypes.data` says the same in a microsecond, a tenth of a small layer's call."""


def trim() -> int:
    """Give all waiting memory back to the system; returns the bytes freed."""
    global _free_bytes
    with _lock:
        freed = _free_bytes
        _free.clear()
        _free_bytes = 0
    return freed
