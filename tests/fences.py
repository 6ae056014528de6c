"""Buffers with a forbidden page directly before or directly after: one byte outside and the process dies.

Run as a program (`python fences.py LEVEL EVERY`), it takes every kernel through the layers below and prints each before it runs,
so that a fault names its layer.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import sys
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kernel_runs as runs
from upconv.kernels import indirect_first, winograd, winograd_wide, winograd_widest

PAGE = mmap.PAGESIZE
FENCE = 16 * PAGE
_NONE, _READ, _WRITE = 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Fenced:
    """Buffers that begin at the start of a page (`at_end` False) or stop at the end of one; pages beside them are closed."""

    def __init__(self, at_end: bool):
        self.at_end = at_end
        self._regions: list[tuple[mmap.mmap, NDArray[Any], slice]] = []

    def _region(self, size: int) -> tuple[NDArray[Any], int, int]:
        """`size` bytes between two fences, every byte of their pages 255."""
        inside = max(PAGE, -(-size // PAGE) * PAGE)
        memory = mmap.mmap(-1, inside + 2 * FENCE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        everything = np.frombuffer(memory, np.uint8)
        everything[FENCE : FENCE + inside] = 255
        base = everything.ctypes.data
        for address, length in ((base, FENCE), (base + FENCE + inside, FENCE)):
            _protect(address, length, _NONE)
        start = FENCE + (inside - size if self.at_end else 0)
        self._regions.append((memory, everything[FENCE : FENCE + inside], slice(start - FENCE, start - FENCE + size)))
        return everything[start : start + size], base + FENCE, inside

    def hold(self, array: NDArray[Any]) -> NDArray[Any]:
        place, pages, inside = self._region(array.nbytes)
        held = place.view(array.dtype).reshape(array.shape)
        held[...] = array
        _protect(pages, inside, _READ)
        return held

    def room(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        return self._region(prod(shape) * np.dtype(dtype).itemsize)[0].view(dtype).reshape(shape)

    def workspace(self, size: int) -> NDArray[Any]:
        return self._region(size)[0]

    def untouched(self) -> bool:
        """Whether the rest of each buffer's pages still holds what it was filled with."""
        return all((pages[: used.start] == 255).all() and (pages[used.stop :] == 255).all() for _, pages, used in self._regions)


def _protect(address: int, length: int, how: int) -> None:
    if _libc.mprotect(address, length, how):
        raise OSError(ctypes.get_errno(), "mprotect")


def layers() -> list[dict[str, Any]]:
    """Layers that take every path: steps below, at and beyond the lanes, planes, groups, ranks, crops, sizes at tile edges."""
    found: list[dict[str, Any]] = []

    def add(size: Any, cin: int, cout: int, k: Any, s: Any, **more: Any) -> None:
        found.append(dict(size=size, in_channels=cin, out_channels=cout, kernel_size=k, stride=s, **more))

    for length in (1, 2, 15, 16, 17, 31, 33, 47, 64, 65, 129):
        add((length,), 3, 2, 4, 2, padding=1)
    for size in ((1, 1), (5, 9), (30, 61)):  # few output channels, kernels no multiple of the stride: shared reads
        add(size, 20, 1, 9, 2, padding=4, output_padding=1)
        add(size, 5, 2, 5, 3, padding=1)
    for batch in (1, 2, 3, 5):  # fewer columns than lanes, many channels; weights in one piece, and in streams
        add((1, 1), 37, 130, 4, 2, padding=1, batch=batch)
        add((1, 1), 36, 130, 4, 2, padding=1, batch=batch)
        add((3, 1), 21, 65, 3, 1, padding=1, batch=batch, transposed=False)
        add((3, 1), 24, 65, 3, 1, padding=1, batch=batch, transposed=False)
        add((length,), 1, 5, 3, 1, padding=1, transposed=False)
        add((length + 2,), 2, 3, 3, 2, transposed=False)
    for step in (3, 4, 5, 7, 8, 9, 16, 17, 31, 32, 33, 40):
        add((9,), 5, 3, 2 * step, step, padding=step // 2)
        add((70,), 2, 1, step, step, batch=2)
    for step in (3, 5, 8, 17):
        add((step * 7 + 1,), 2, 3, step, step, transposed=False)
        add((step * 40 + 3,), 2, 3, 5, step, padding=2, transposed=False)
    for size in ((1, 1), (2, 3), (7, 5), (16, 17), (13, 40)):
        add(size, 24, 20, 4, 2, padding=1)
        add(size, 16, 40, 4, 2, padding=((0, 2), (3, 0)), output_padding=1, batch=2)
    for length in (1, 5, 48, 49, 200):
        add((length,), 32, 16, 16, 8, padding=4)
        add((length,), 16, 24, 9, 3, padding=3)
        add((length,), 16, 16, 3, 1, padding=1)
    for length in (1, 40, 299):  # layers that a dilation interleaves
        add((length,), 9, 12, 3, 1, dilation=3, padding=3, batch=2, transposed=False)
        add((length,), 12, 9, 4, 1, dilation=5, padding=((7, 1),))
        add((length,), 8, 8, 11, 1, dilation=9, padding=45, transposed=False)
    for size in ((3, 4), (19, 30), (35, 8)):
        add(size, 9, 8, 3, 1, dilation=2, padding=2, transposed=False)
        add(size, 8, 9, (3, 1), 1, dilation=(3, 1), padding=(3, 0))
        add(size, 12, 8, (4, 3), (2, 1), dilation=(1, 4), padding=(1, 4), batch=2)
    add((3, 9, 10), 8, 9, 3, 1, dilation=(1, 2, 3), padding=(1, 2, 3), transposed=False)
    add((7, 6, 9), 9, 8, (3, 4, 4), (1, 2, 2), dilation=(3, 1, 1), padding=(3, 1, 1))
    add((1,), 4, 7, 1, 1)
    add((300,), 64, 3, 3, 1, padding=1)
    add((37,), 8, 8, 3, 2, dilation=3, padding=((0, 3),), output_padding=1)
    add((1, 1), 20, 33, 4, 1)
    add((5, 6), 20, 33, 4, 2, padding=1, batch=3)
    add((7, 13), 16, 33, (3, 5), (2, 1), padding=(2, 1))
    add((33, 17), 3, 8, 7, 2, padding=3, transposed=False)
    add((9, 33), 6, 9, 3, (3, 2), groups=3, padding=((0, 2), (1, 0)), output_padding=1)
    add((9, 33), 6, 6, 4, 2, groups=6, padding=1)
    add((11, 9), 32, 24, 2, 2, activation="silu", batch=2)
    add((12, 10), 12, 10, 3, 2, transposed=False, padding=((2, 0), (0, 2)), dilation=2)
    add((40, 40), 70, 3, 3, 1, padding=1, activation=("leaky_relu", 0.2))
    add((64, 64), 8, 2, 4, 4)
    add((3, 4, 5), 5, 6, 3, 2, padding=1, output_padding=1)
    add((3, 4, 17), 4, 6, 2, 2, batch=2)
    for width in (1, 7, 8, 9, 33, 70, 131):  # depthwise: rows shorter than a vector, of heads and tails, and of blocks
        add((3, width), 3, 3, 4, 2, groups=3, padding=1, batch=2)
        add((4, width), 2, 4, 5, 1, groups=2, padding=2, transposed=False)
        add((width,), 5, 5, 12, 2, groups=5)
        add((width,), 3, 3, 7, 5, groups=3, padding=3, dilation=2, output_padding=1)
        add((2, 3, width), 2, 2, (2, 3, 16), (2, 1, 8), groups=2, padding=(0, 1, 4))
    for length in (1, 7, 8, 9, 16, 17, 33, 97, 193):  # slices: pairs and fours of vectors: full, half empty, of several images
        add((length,), 16, 12, 2, 2, batch=3)
        add((3 * length,), 12, 16, 4, 2, padding=1, batch=2)
        add((2, length), 8, 10, 3, 2, padding=1, groups=1, batch=2)
        add((4, 2 * length), 8, 24, 2, 2, transposed=False, batch=2)
    for size in ((1,), (5,), (2, 3), (5, 5), (2, 7, 3)):  # slices that are parts of images, which they do not divide
        add(size, 16, 12, 2, 2, batch=23)
        add(tuple(2 * n for n in size), 12, 16, 2, 2, transposed=False, batch=23)
        add(size[:1], 16, 12, 4, 2, padding=1, batch=23)
    for size in (3, 4, 7):  # one position in many images, the last of which do without a point
        add((size, size), 9, 12, 4, 2, padding=1, batch=19)
        add((size, size), 8, 9, 3, 1, padding=1, batch=9, transposed=False)
        add((size,), 8, 9, 3, 2, batch=7)
    for size in ((6, 3), (13, 9), (33, 30)):  # windows that reach beyond the ends of rows, read whole or masked
        add(size, 9, 8, 4, 2, padding=1, batch=2)
        add(size, 9, 8, 4, 2)
        add(size, 8, 9, 3, 1, padding=(0, 1), transposed=False)
    for size in ((1, 5, 9), (4, 6, 11)):  # volumes whose phases, or planes of x, lack a tap
        add(size, 9, 8, 3, 2, padding=1, output_padding=1)
        add(tuple(2 * n + 1 for n in size), 8, 9, (3, 4, 3), 2, padding=(0, 1, 1), transposed=False)
    for length in (97, 200, 401, 1000):  # few rows: blocks inside an image are read where they stand, those at its ends packed
        add((length,), 9, 1, 16, 8, padding=4, batch=2)
        add((length,), 7, 1, 3, 1, padding=1, transposed=False, batch=2)
        add((length,), 5, 2, 2, 2, batch=3)
        add((length,), 1, 2, 5, 2)
        add((2, length), 6, 1, 2, 2, batch=2)
        add((2, 3, length), 4, 2, 1, 1, groups=2, transposed=False)
    for size in ((4, 3), (8, 8), (5, 9), (12, 11), (16, 15)):  # few tiles of windows of five, and strips of rows that are not full
        add(size, 9, 5, 4, 2, padding=1)
        add(size, 17, 40, 6, 2, padding=2)
        add(size, 10, 9, 3, 2, padding=1)
        add(size, 70, 3, 3, 1, padding=1, transposed=False)
        add(size, 12, 9, 4, 2, padding=1, transposed=False)
    add((3, 4, 4), 16, 6, 4, 2, padding=1)
    add((3, 4, 5), 16, 20, 2, 2, batch=2, groups=2)
    add((5, 6, 7), 4, 3, (1, 3, 2), (1, 2, 3), transposed=False, padding=(0, 1, 1))
    add((4, 1, 9), 6, 4, (2, 1, 20), (1, 1, 18), groups=2)
    return found


def main(level: str, thin: int) -> None:
    """Every `thin`-th layer on this target."""
    faulthandler.enable()
    host, small = runs.target_of(level), runs.small(runs.target_of(level))
    wrong = count = 0
    for module, target, by_position in (
        *((module, host, False) for module in runs.KERNELS),
        (indirect_first, small, False),
        (winograd, host, True),
        (winograd_wide, host, True),
        (winograd_widest, host, True),
    ):
        if by_position:
            runs.number_by_position()
        for number, layer in list(enumerate(layers()))[::thin]:
            for dtype in ("float32", "float64") if number % 3 == 0 else ("float32",):
                problem = runs.make(dtype=dtype, **layer)
                if module.rejects(problem, target) or (by_position and not module.blocking(problem, target, 1).by_position):
                    continue
                if target is small and module.blocking(problem, target, 1).streams == 1:
                    continue
                given = runs.operands(problem, bias=number % 2 == 0)
                for at_end in (False, True):
                    print(module.NAME, level, "end" if at_end else "start", problem, flush=True)
                    fenced = Fenced(at_end)
                    got = runs.run_kernel(module, problem, given, target, 1 + number % 2, fenced)
                    close = problem.spec.activation or not runs.exact(module)
                    same = np.allclose(got, given.expected, 1e-4, 1e-4) if close else np.array_equal(got, given.expected)
                    count += 1
                    if not (same and fenced.untouched()):
                        wrong += 1
                        print("WRONG" if not same else "STRAYED", flush=True)
    print(f"{count} runs, {wrong} wrong", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
