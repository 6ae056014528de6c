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
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from itertools import count
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_FREE = 256 << 20
SMALL = 64 << 10
_PAGE = 64 << 10


class _Block:
    """Pages, and where they are."""

    __slots__ = ("address", "pages")

    def __init__(self, size: int):
        self.pages = _map(size)
        self.address = np.frombuffer(self.pages, np.uint8).ctypes.data


class _Size:
    """The blocks of one size that wait, and the class of what holds one for the array made of it."""

    __slots__ = ("lease", "size", "used", "waiting")

    def __init__(self, size: int):
        self.size, self.used, self.waiting = size, 0, list[_Block]()
        self.lease = _lease_of(self)

    def take(self) -> Any:
        """A block's lease: memory for an array, which comes back when the array is gone.

        Here and where it comes back every step counts: after a layer of some size the interpreter's own data are no longer in the
        near caches, and each function and object that is looked at is fetched again. A list's `pop` and `append` need no lock.
        """
        self.used = next(_clock)
        try:
            block = self.waiting.pop()
        except IndexError:
            block = _fresh(self.size)
        lease = self.lease.from_address(block.address)
        lease.block = block
        return lease


_lock = threading.RLock()  # a collection inside it may finalise a lease
_clock = count()
_sizes: dict[int, _Size] = {}
_mapped = 0
"""Bytes of all blocks: while they are no more than may wait, nobody need count those that do."""


def _forget() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _size_class(size: int) -> int:
    """Rounded up so that nearly equal sizes share blocks: to an eighth of the power of two below, and to whole pages."""
    unit = max(_PAGE, 1 << max(0, size.bit_length() - 4))
    return -(-size // unit) * unit


@lru_cache(maxsize=4096)
def _of(size: int) -> _Size:
    """Where blocks for so many bytes wait."""
    room = _size_class(size)
    with _lock:
        return _sizes.get(room) or _sizes.setdefault(room, _Size(room))


def _map(size: int) -> mmap.mmap:
    """Fresh pages of this process alone: mmap's default would share them with every child forked later."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= 4 << 20:
        with suppress(OSError):  # a kernel without huge pages serves small ones
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _fresh(size: int) -> _Block:
    """A block of pages that nobody has touched."""
    global _mapped
    block = _Block(size)
    with _lock:
        _mapped += size
    return block


def _lease_of(of: _Size) -> Any:
    """The class of what holds a block for the array made of it: a ctypes array, the memory that NumPy takes up fastest."""
    waiting = of.waiting

    def give(self: Any) -> None:
        waiting.append(self.block)
        try:
            if _mapped > MOST_FREE:
                _make_room(of)
        except (AttributeError, TypeError):  # interpreter shutdown
            pass

    return type("Lease", (ctypes.c_char * of.size,), {"__slots__": ("block",), "__del__": give})


def _make_room(of: _Size) -> None:
    """Gives up blocks until few enough wait: the one that has just come if it alone is too large, else sizes of long ago."""
    with _lock:
        if of.size > MOST_FREE:
            _drop(of)
        while _waiting_bytes() > MOST_FREE:  # others take some meanwhile
            _drop(min((s for s in _sizes.values() if s.waiting), key=lambda s: s.used, default=of))


def _waiting_bytes() -> int:
    return sum(of.size * len(of.waiting) for of in _sizes.values())


def _drop(of: _Size) -> int:
    """Gives one of the blocks that wait back to the system, if none has taken it meanwhile; returns its bytes."""
    global _mapped
    try:
        of.waiting.pop(0)
    except IndexError:
        return 0
    _mapped -= of.size
    return of.size


def empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Like np.empty: a C-contiguous array whose memory is reused once it is gone.

    >>> empty((2, 3), np.float32).shape
    (2, 3)
    """
    return maker(shape, np.dtype(dtype))()


def maker(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Callable[[], NDArray[Any]]:
    """What makes such arrays, one at each call.

    >>> maker((2, 3), np.dtype(np.float32))().shape
    (2, 3)
    """
    size = prod(shape) * dtype.itemsize
    if size < SMALL:
        return partial(np.empty, shape, dtype)
    take = _of(size).take
    return lambda: np.ndarray(shape, dtype, take())


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
    with _lock:
        return sum(_drop(of) for of in _sizes.values() for _ in range(len(of.waiting)))
