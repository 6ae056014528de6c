"""Winograd's tiles: how each dimension of a layer is taken, the transforms' matrices, and the tiles as a band."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.kernels.columns import LINE_OF_ONE, Line
from upconv.spec import ConvSpec, Problem

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Points:
    """Where a window's polynomials are evaluated: at 0, at what lies `between`, and at infinity, in this order.

    `odd` are the odd factors of the interpolation's denominators. Weights are packed without them, so that integers stay exact,
    and each output is divided by them after all sums.
    """

    between: tuple[float, ...]
    odd: tuple[int, ...]

    @property
    def window(self) -> int:
        """Elements that a tile reads, which is as many as there are points."""
        return len(self.between) + 2

    @property
    def finite(self) -> tuple[float, ...]:
        return (0.0, *self.between)

    @property
    def input(self) -> Matrix:
        """(point, element): the coefficients of the product of all other points' factors."""
        rows = [np.poly([q for q in self.finite if q != p])[::-1] for p in self.finite]
        last = np.poly(self.finite)[::-1]
        return np.array([*(np.append(row, 0.0) for row in rows), last])

    def weight(self, taps: int) -> Matrix:
        """(point, tap): the taps as a polynomial, over the denominators but for their odd factors."""
        scale = [prod(self.odd) / prod(p - q for q in self.finite if q != p) for p in self.finite]
        rows = [[s * p**t for t in range(taps)] for p, s in zip(self.finite, scale, strict=True)]
        return np.array([*rows, [0.0] * (taps - 1) + [float(prod(self.odd))]])

    def output(self, taps: int) -> Matrix:
        """(output, point): powers of the points; the last belongs to the last output alone."""
        outputs = self.window - taps + 1
        return np.array([[*(p**i for p in self.finite), float(i == outputs - 1)] for i in range(outputs)])


NARROW, WIDE = Points((1.0, -1.0), ()), Points((1.0, -1.0, 0.5, -2.0), (3, 5))
FEWEST_TAPS = 2.0
"""Taps a phase, in the mean, of two dimensions, for a wide one: with fewer (kernel 4 at stride 3 has 1.8) the direct sum is so
short that wide windows err up to 4.3 times as much, and save little."""


def too_short(spec: ConvSpec) -> str | None:
    """Why wide windows would round too much, or None."""
    inner = [k / s for k, s in zip(spec.kernel_size[-2:], spec.stride[-2:], strict=True) if k > s]
    if len(inner) == 2 and prod(inner) < FEWEST_TAPS:
        return f"{prod(inner):.2g} taps a phase in the mean: it would round too much for what it saves"
    return None


TAPS = (2, 3)
"""Taps that are transformed together."""


MOST_TAPS = 9
"""Taps a phase; more are for other kernels."""


@dataclass(frozen=True, slots=True)
class Way:
    """How one dimension is taken: `groups` of `taps` neighbouring taps, transformed together at `points`, or left plain."""

    taps: int
    groups: int
    points: Points | None = None

    @property
    def transformed(self) -> bool:
        return self.points is not None

    @property
    def window(self) -> int:
        return self.points.window if self.points else 1

    @property
    def outputs(self) -> int:
        """Of a tile: what its window holds all taps for."""
        return self.window - self.taps + 1

    @property
    def total(self) -> int:
        """Taps a phase, those included that fill up the last group."""
        return self.taps * self.groups


PLAIN = Way(1, 1)


def ways_of(spec: ConvSpec, last: Points) -> tuple[Way, Way, Way] | str:
    """How each of the three dimensions is taken, or why this layer has no tiles.

    The last that is transformed is at the points `last`, another one at NARROW: two wide ones would round too much.
    """
    ways = [PLAIN] * (3 - spec.rank)
    innermost = max((d for d, (k, s) in enumerate(zip(spec.kernel_size, spec.stride, strict=True)) if k > s), default=None)
    for d, (k, s, l) in enumerate(zip(spec.kernel_size, spec.stride, spec.dilation, strict=True)):
        taps = ceil(k / s)
        inner = d >= spec.rank - 2
        if l != 1 and k != 1:
            return f"dilation {l}"
        if inner and 1 < taps <= MOST_TAPS:
            ways.append(_grouped(taps, last if d == innermost else NARROW))
        elif k == s or not inner:
            ways.append(Way(1, taps))
        else:
            return f"{taps} taps a phase from kernel {k}, stride {s}"
    return ways[0], ways[1], ways[2]


@dataclass(frozen=True, slots=True)
class Tiling:
    """A layer, and how each of its three dimensions is taken."""

    spec: ConvSpec
    ways: tuple[Way, Way, Way]

    @property
    def points(self) -> list[tuple[int, int]]:
        """Of the two inner dimensions."""
        _, h, w = self.ways
        return list(product(range(h.window), range(w.window)))

    @property
    def wide(self) -> bool:
        """Whether a dimension has wide windows."""
        return any(way.points == WIDE for way in self.ways)

    @property
    def planes(self) -> int:
        """Planes of x along the outer dimension, which is left plain, that a tile's sums go over."""
        spec = self.spec
        return self.ways[0].groups if spec.transposed or spec.rank < 3 else spec.kernel_size[0]

    @property
    def depth(self) -> int:
        """Products that are summed for one row, column and point: channels, planes of x and groups of taps."""
        _, h, w = self.ways
        return self.spec.in_channels // self.spec.groups * self.planes * prod(steps(self.spec)[1][1:]) * h.groups * w.groups


def tiling_of(spec: ConvSpec, last: Points = NARROW) -> Tiling:
    """The tiling of a layer that has one: see `ways_of`."""
    ways = ways_of(spec, last)
    assert not isinstance(ways, str)
    return Tiling(spec, ways)


def _grouped(taps: int, points: Points) -> Way:
    """Groups of two or of three taps: what needs fewer products an output, and fewer groups."""
    ways = [Way(size, ceil(taps / size), points) for size in TAPS]
    return min(ways, key=lambda way: (way.groups * way.window / way.outputs, way.groups))


@dataclass(frozen=True, slots=True)
class Window:
    """One dimension's reads: the first, the elements that a group of taps spans, and the steps between groups."""

    origin: int
    reach: int
    step: int


@lru_cache(maxsize=512)
def windows(problem: Problem, ways: tuple[Way, Way, Way]) -> tuple[tuple[Line, Window], ...]:
    """Each dimension: its tiles as columns (`columns.Line`), and the window that a tile reads."""
    spec = problem.spec
    found = [(LINE_OF_ONE, Window(0, 1, 1))] * (3 - spec.rank)
    for d, way in enumerate(ways[3 - spec.rank :]):
        size, out_size = problem.input_size[d], problem.output_size[d]
        s, (before, _), f = spec.stride[d], spec.padding[d], way.outputs
        if spec.transposed:
            low, crop = divmod(before + fronts(spec)[3 - spec.rank + d], s)
            positions = ((out_size - 1 + crop) // s + f) // f
            line, origin, planes = Line(size, out_size, f, s * f, crop, positions), low - (way.total - 1), 1
        else:
            line, origin, planes = Line(size, out_size, s * f, f, 0, -(-out_size // f)), -before, s
        found.append((line, Window(origin, planes * way.window, planes * way.taps)))
    return tuple(found)


def lines(problem: Problem, ways: tuple[Way, Way, Way]) -> tuple[Line, Line, Line]:
    """The tiles of a problem as columns."""
    d, h, w = (line for line, _ in windows(problem, ways))
    return d, h, w


def spare(problem: Problem, ways: tuple[Way, Way, Way]) -> tuple[bool, bool]:
    """Whether the last tiles of the two inner dimensions reach over the output's end, by one output a phase or more.

    The last point of a window serves a tile's last output alone: these tiles can do without it.
    """
    _, h, w = (
        way.transformed and line.positions * line.out_step >= line.out_size + line.crop + line.out_step // way.outputs
        for line, way in zip(lines(problem, ways), ways, strict=True)
    )
    return h, w


@lru_cache(maxsize=512)
def fronts(spec: ConvSpec) -> tuple[int, int, int]:
    """Zeros in front of a transposed layer's kernel that fill it up to a multiple of the stride; 0 where they stand behind it.

    They are in front where the phases that have all taps are cropped from the first position anyway: these begin one position later
    then, and the others lack the first tap in place of the last. Kernel 3 at stride 2 with padding 1 has as many positions so as x
    has, where the output before cropping has one more.
    """
    found = [0] * (3 - spec.rank)
    for k, s, (before, _) in zip(spec.kernel_size, spec.stride, spec.padding, strict=True):
        zeros = -k % s
        found.append(zeros if spec.transposed and k > s and before % s >= s - zeros else 0)
    return found[0], found[1], found[2]


def steps(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(out, in): phases of the output and planes of the input, three dimensions."""
    s, ones = (1,) * (3 - spec.rank) + spec.stride, (1, 1, 1)
    return (s, ones) if spec.transposed else (ones, s)


# -- what a product's depth is made of --------------------------------------------------------------------------------

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
    d, h, w = (range(way.groups) for way in tiling.ways)
    return list(product(d, h, w))


def weight_places(tiling: Tiling, phases: NDArray[np.int64]) -> NDArray[np.int64]:
    """The kernel's elements that are transformed together, -1 for zeros: (entry, depth tap, window of h, window of w, row).

    `phases` holds the phase of every row of every entry, in three dimensions.
    """
    spec, depth = tiling.spec, depth_taps(tiling)
    kernel, stride = (1,) * (3 - spec.rank) + spec.kernel_size, (1,) * (3 - spec.rank) + spec.stride
    group, plane = np.array([g for g, _ in depth]), np.array([p for _, p in depth])
    place: Any = 0
    for i, way in enumerate(tiling.ways):
        tap = way.taps * group[:, i].reshape(1, -1, 1, 1, 1)
        if i > 0:
            tap = tap + np.arange(way.taps).reshape([-1 if j == i + 1 else 1 for j in range(5)])
        if spec.transposed:  # later taps read earlier inputs
            index = stride[i] * (way.total - 1 - tap) + phases[:, None, None, None, :, i] - fronts(spec)[i]
        else:
            index = stride[i] * tap + plane[:, i].reshape(1, -1, 1, 1, 1)
        place = np.where((place >= 0) & (index >= 0) & (index < kernel[i]), place * kernel[i] + index, -1)
    _, h, w = tiling.ways
    return np.broadcast_to(place, (len(phases), len(depth), h.taps, w.taps, phases.shape[1]))


# -- residues whose last tap is missing --------------------------------------------------------------------------------

Residue = tuple[int, int, int]
"""A phase of the output (transposed) or a plane of the input, in each dimension."""


@dataclass(frozen=True, slots=True)
class Class:
    """Residues that lack a tap in the same dimensions: there the kernel is no multiple of the stride."""

    shallow: bool
    """Whether phases lack a tap of the outer dimension, which is left plain: their sums are shorter by what it reads, the first
    (or the last: see `fronts`)."""
    short: tuple[bool, bool]
    """Whether they lack the last tap of each inner dimension (or the first: see `fronts`), where a point is empty then."""
    residues: tuple[Residue, ...]


_ORDER = ((False, True), (False, False), (True, False), (True, True))
"""Of classes by (h, w) that lack a tap: whatever a point leaves out, what remains stands side by side."""


@lru_cache(maxsize=512)
def classes(tiling: Tiling) -> tuple[Class, ...]:
    """Phases of a transposed layer, planes of a convolution, by the taps they lack."""
    spec, ways = tiling.spec, tiling.ways
    kernel, stride = (1,) * (3 - spec.rank) + spec.kernel_size, (1,) * (3 - spec.rank) + spec.stride
    found: dict[tuple[bool, tuple[bool, bool]], list[Residue]] = {key: [] for key in product((False, True), _ORDER)}
    for residue in product(*(range(s) for s in stride)):
        d, h, w = (_lacks(way, *numbers) for way, *numbers in zip(ways, stride, kernel, residue, fronts(spec), strict=True))
        h, w = (lacks and way.transformed and way.groups == 1 for lacks, way in zip((h, w), ways[1:], strict=True))
        shallow = d and spec.transposed and ways[0].groups > 1
        found[shallow, (h, w)].append((residue[0], residue[1], residue[2]))
    return tuple(Class(*key, tuple(residues)) for key, residues in found.items() if residues)


def phases_of(tiling: Tiling) -> list[tuple[Residue, ...]]:
    """The phases of the output, class by class; a convolution has one."""
    return [c.residues for c in classes(tiling)] if tiling.spec.transposed else [((0, 0, 0),)]


def _lacks(way: Way, stride: int, kernel: int, residue: int, front: int) -> bool:
    """Whether a residue lacks its first tap or its last."""
    return residue < front or residue - front + stride * (way.total - 1) >= kernel


def live(tiling: Tiling, point: tuple[int, int], shallow: bool = False) -> range:
    """The classes, of those that are `shallow` or those that are not, whose transformed weights are not all zero at a point.

    One end of the window belongs to one tap alone: to the last, which a transposed layer reads first. So does the other, to the
    first.
    """
    every, transposed = classes(tiling), tiling.spec.transposed
    ends = zip(tiling.ways[1:], fronts(tiling.spec)[1:], strict=True)
    dead = [0 if transposed and not front else way.window - 1 for way, front in ends]
    kept = [
        i
        for i, c in enumerate(every)
        if c.shallow == shallow and not any(s and u == v for s, u, v in zip(c.short, point, dead, strict=True))
    ]
    return range(kept[0], kept[-1] + 1) if kept else range(0)


def depths(tiling: Tiling) -> tuple[bool, ...]:
    """The kinds of classes there are: not shallow, shallow."""
    return tuple(sorted({c.shallow for c in classes(tiling)}))


def depth_of(tiling: Tiling, shallow: bool) -> tuple[int, int]:
    """(first row of the depth, rows) of classes of a kind."""
    without = tiling.depth // tiling.ways[0].groups if shallow else 0
    return 0 if fronts(tiling.spec)[0] else without, tiling.depth - without
