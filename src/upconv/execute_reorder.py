"""Arrays that hold their channels last, copied to channels-first and back at the memory's pace."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen import jit, memory, threads
from upconv.codegen.target import Target
from upconv.kernels import job as jobs
from upconv.kernels import register_tile, reorder

FEW = 1 << 15
"""Elements that one thread copies alone."""


def reordered(x: int, shape: tuple[int, ...], dtype: Any, to_last: bool, target: Target | None) -> NDArray[Any] | None:
    """The batched array of a shape (images, channels, *spatial) whose elements stand at an address, in the other order.

    The result's own shape is (images, *spatial, channels) where it goes `to_last`. None where no code can be made.
    """
    if target is None:
        return None
    n, c, *spatial = shape
    y = memory.empty((n, *spatial, c) if to_last else shape, dtype)
    if y.size:
        fill(x, memory.address(y), shape, y.dtype, to_last, target)
    return y


def fill(x: int, y: int, shape: tuple[int, ...], dtype: np.dtype[Any], to_last: bool, target: Target) -> None:
    """Writes at the address y what stands at x, in the other order."""
    n, c, *spatial = shape
    entry, known = _known(n, prod(spatial), c, dtype, to_last, target)
    job = jobs.again(known)
    count = threads.get_num_threads() if prod(shape) > FEW else 1
    job[_X], job[_Y], job[jobs.SEATS] = x, y, count
    threads.run(entry, memory.address(job), count, target)


_X, _Y = (reorder.SLOTS.index[name] for name in ("x", "y"))


@lru_cache(maxsize=512)
def _known(
    images: int, positions: int, channels: int, dtype: np.dtype[Any], to_last: bool, target: Target
) -> tuple[int, NDArray[np.int64]]:
    """The address of the code for a shape, and its job but for the arrays."""
    element = register_tile.ELEMENTS[dtype.name]
    few = reorder.few(element, channels, target)
    which = f"{'last' if to_last else 'first'}{f'_{few}' if few else ''}"
    name = f"{reorder.NAME}_f{dtype.itemsize * 8}_{which}_{target.name}"
    code = jit.get(name, "", ("entry",), lambda: reorder.emit(element, to_last, target, few), target)
    bound = reorder.bind(images, positions, channels)
    return code["entry"], jobs.filled(reorder.SLOTS, bound.slots, bound.tasks)


def channels_last(x: NDArray[Any]) -> bool:
    """Whether a batched array lies densely in memory with its channels last, and not channels-first at once.

    >>> channels_last(np.zeros((2, 4, 5, 3)).transpose(0, 3, 1, 2)), channels_last(np.zeros((2, 3, 4, 5)))
    (True, False)
    """
    return not x.flags.c_contiguous and bool(np.moveaxis(x, 1, -1).flags.c_contiguous)


def channels_first(x: NDArray[Any], target: Target | None) -> NDArray[Any]:
    """The batched array as a C-contiguous one: itself where it is."""
    if x.dtype.name in register_tile.ELEMENTS and x.flags.aligned and channels_last(x):
        found = reordered(memory.address(x), x.shape, x.dtype, False, target)
        if found is not None:
            return found
    return np.ascontiguousarray(x)
