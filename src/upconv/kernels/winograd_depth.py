"""What the sums of Winograd's products go over: groups of taps, planes of x, and which of them each phase has.

Phases differ where the kernel is no multiple of the stride, so that some lack a tap, and where they stand apart, so that each reads
windows of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.kernels.winograd_tiles import Tiling, Way, fronts, steps
from upconv.spec import ConvSpec

Group = tuple[int, int, int]
"""A group of taps, in each dimension."""


def depth_taps(tiling: Tiling) -> list[tuple[Group, Residue]]:
    """What the depth of a GEMM goes over, besides channels: (group of taps, plane of x), the planes class by class."""
    if tiling.spec.transposed:
        return [(group, (0, 0, 0)) for group in _groups(tiling)]
    return [tap for c in classes(tiling) for tap in class_taps(tiling, c)]


def class_taps(tiling: Tiling, c: Class) -> list[tuple[Group, Residue]]:
    """The same for one class of a convolution: the planes of x that its kernel reaches."""
    step = steps(tiling.spec)[1][0]
    return [(group, plane) for group in _groups(tiling) for plane in c.residues if step * group[0] + plane[0] < tiling.planes]


def _groups(tiling: Tiling) -> list[Group]:
    """All of one window together where phases stand apart."""
    d, h, w = (range(way.groups) for way in tiling.ways)
    return sorted(product(d, h, w), key=lambda group: [g for g, way in zip(group, tiling.ways, strict=True) if way.apart])


def weight_places(tiling: Tiling, phases: NDArray[np.int64]) -> NDArray[np.int64]:
    """The kernel's elements that are transformed together, -1 for zeros: (entry, depth tap, window of h, window of w, row).

    `phases` holds the phase of every row of every entry, in three dimensions. Where they stand apart, depth taps are those of a
    row's own window.
    """
    spec, depth = tiling.spec, depth_taps(tiling)
    depth = depth[: len(depth) * tiling.sum_depth // tiling.depth]
    kernel, stride = (1,) * (3 - spec.rank) + spec.kernel_size, (1,) * (3 - spec.rank) + spec.stride
    group, plane = np.array([g for g, _ in depth]), np.array([p for _, p in depth])
    place: Any = 0
    for i, way in enumerate(tiling.ways):
        tap = way.taps * (0 if way.apart else group[:, i].reshape(1, -1, 1, 1, 1))
        if i > 0:
            tap = tap + np.arange(way.taps).reshape([-1 if j == i + 1 else 1 for j in range(5)])
        if spec.transposed:  # later taps read earlier inputs
            phase = phases[:, None, None, None, :, i]
            residue = (phase + spec.padding[i - 3 + spec.rank][0]) % stride[i] if way.apart else phase - fronts(spec)[i]
            index = stride[i] * (way.total - 1 - tap) + residue
        else:
            index = stride[i] * tap + plane[:, i].reshape(1, -1, 1, 1, 1)
        place = np.where((place >= 0) & (index >= 0) & (index < kernel[i]), place * kernel[i] + index, -1)
    _, h, w = tiling.ways
    return np.broadcast_to(place, (len(phases), len(depth), h.taps, w.taps, phases.shape[1]))


# -- residues by what their sums go over -------------------------------------------------------------------------------

Residue = tuple[int, int, int]
"""A phase of the output (transposed) or a plane of the input, in each dimension."""


@dataclass(frozen=True, slots=True)
class Class:
    """Residues that lack a tap in the same dimensions, where the kernel is no multiple of the stride; or that read the same window,
    where phases stand apart."""

    part: Part
    short: tuple[bool, bool]
    """Whether they lack the last tap of each inner dimension (or the first: see `fronts`), where a point is empty then."""
    residues: tuple[Residue, ...]


Part = tuple[bool, int, int]
"""The part of the depth that sums go over. Whether phases lack a tap of the outer dimension, which is left plain: their sums are
shorter by what it reads, the first (or the last: see `fronts`). And which window of each inner dimension they read, where they
stand apart."""


_ORDER = ((False, True), (False, False), (True, False), (True, True))
"""Of classes by (h, w) that lack a tap: whatever a point leaves out, what remains stands side by side."""


@lru_cache(maxsize=512)
def classes(tiling: Tiling) -> tuple[Class, ...]:
    """Phases of a transposed layer, planes of a convolution, by the taps they lack."""
    spec, ways = tiling.spec, tiling.ways
    kernel, stride = (1,) * (3 - spec.rank) + spec.kernel_size, (1,) * (3 - spec.rank) + spec.stride
    gh, gw = (range(way.groups if way.apart else 1) for way in ways[1:])
    parts = product((False, True), gh, gw)
    found: dict[tuple[Part, tuple[bool, bool]], list[Residue]] = {key: [] for key in product(parts, _ORDER)}
    for residue in product(*(range(s) for s in stride)):
        d, h, w = (_lacks(way, *numbers) for way, *numbers in zip(ways, stride, kernel, residue, fronts(spec), strict=True))
        h, w = (lacks and way.transformed and way.groups == 1 for lacks, way in zip((h, w), ways[1:], strict=True))
        shallow = d and spec.transposed and ways[0].groups > 1
        window_h, window_w = (_window(spec, i, residue[i]) if ways[i].apart else 0 for i in (1, 2))
        part = (shallow, window_h, window_w)
        found[part, (h, w)].append((residue[0], residue[1], residue[2]))
    return tuple(Class(*key, tuple(residues)) for key, residues in found.items() if residues)


def phases_of(tiling: Tiling) -> list[tuple[Residue, ...]]:
    """The phases of the output, class by class; a convolution has one."""
    return [c.residues for c in classes(tiling)] if tiling.spec.transposed else [((0, 0, 0),)]


def _window(spec: ConvSpec, dimension: int, residue: int) -> int:
    """Which window a phase reads where phases stand apart: the second, where the padding has it begin an element later."""
    padding, s = spec.padding[dimension - 3 + spec.rank][0], spec.stride[dimension - 3 + spec.rank]
    return (residue + padding) // s - padding // s


def _lacks(way: Way, stride: int, kernel: int, residue: int, front: int) -> bool:
    """Whether a residue lacks its first tap or its last."""
    return residue < front or residue - front + stride * (way.total - 1) >= kernel


def live(tiling: Tiling, point: tuple[int, int], part: Part = (False, 0, 0)) -> range:
    """The classes, of those whose sums go over a part of the depth, whose transformed weights are not all zero at a point.

    One end of the window belongs to one tap alone: to the last, which a transposed layer reads first. So does the other, to the
    first.
    """
    every = classes(tiling)
    dead = [0 if first else way.window - 1 for way, first in zip(tiling.ways[1:], _lack_first(tiling.spec), strict=True)]
    kept = [
        i
        for i, c in enumerate(every)
        if c.part == part and not any(s and u == v for s, u, v in zip(c.short, point, dead, strict=True))
    ]
    return range(kept[0], kept[-1] + 1) if kept else range(0)


def _lack_first(spec: ConvSpec) -> tuple[bool, bool]:
    """Whether what lacks a tap of an inner dimension lacks the first, in the order of transforms; else it is the last."""
    _, h, w = (spec.transposed and not front for front in fronts(spec))
    return h, w


def lacking(tiling: Tiling, c: Class) -> tuple[int | None, int | None]:
    """The tap that phases of a class lack in each of the two inner dimensions, in the order of transforms, or None."""
    ends = zip(c.short, tiling.ways[1:], _lack_first(tiling.spec), strict=True)
    h, w = ((0 if first else way.taps - 1) if short else None for short, way, first in ends)
    return h, w


def depths(tiling: Tiling) -> tuple[Part, ...]:
    """The parts of the depth that classes have."""
    return tuple(sorted({c.part for c in classes(tiling)}))


def depth_of(tiling: Tiling, part: Part) -> tuple[int, int]:
    """(first row of the depth, rows) of a part of it."""
    shallow, *windows_ = part
    without = tiling.depth // tiling.ways[0].groups if shallow else 0
    number = 0
    for window, way in zip(windows_, tiling.ways[1:], strict=True):
        number = number * way.groups + window if way.apart else number
    return number * tiling.sum_depth + (0 if fronts(tiling.spec)[0] else without), tiling.sum_depth - without
