"""Winograd's tiles: how each dimension of a layer is taken, the transforms' matrices, and the tiles as a band."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from upconv.kernels.columns import LINE_OF_ONE, Line
from upconv.kernels.geometry import round_up
from upconv.spec import ConvSpec, Problem, times

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
        return self.plain_weight(taps) * self.scale[:, None]

    def plain_weight(self, taps: int) -> Matrix:
        """The same but for the `scale` of each point."""
        return np.array([*([p**t for t in range(taps)] for p in self.finite), [0.0] * (taps - 1) + [1.0]])

    @property
    def scale(self) -> NDArray[np.float64]:
        """What the transformed weights of each point are multiplied by."""
        finite = [prod(self.odd) / prod(p - q for q in self.finite if q != p) for p in self.finite]
        return np.array([*finite, float(prod(self.odd))])

    def output(self, taps: int) -> Matrix:
        """(output, point): powers of the points; the last belongs to the last output alone."""
        outputs = self.window - taps + 1
        return np.array([[*(p**i for p in self.finite), float(i == outputs - 1)] for i in range(outputs)])


NARROW, MIDDLE, WIDE = Points((1.0, -1.0), ()), Points((-1.0, 0.5, 2.0), (9,)), Points((1.0, -1.0, 0.5, -2.0), (3, 5))
WIDEST = Points((1.0, -1.0, 0.5, -0.5, 2.0, -2.0), (9, 5))
"""Windows of four, five, six and eight."""
FEWEST_TAPS = 2.0
"""Taps a phase, in the mean, of two dimensions, for a wide one: with fewer (kernel 4 at stride 3 has 1.8) the direct sum is so
short that wide windows err up to 4.3 times as much, and save little."""


def too_short(spec: ConvSpec, dimensions: int = 2) -> str | None:
    """Why wide windows would round too much for a layer of so many dimensions to transform, or None."""
    inner = [k / s for k, s in zip(spec.kernel_size[-2:], spec.stride[-2:], strict=True) if k > s]
    if len(inner) == dimensions and prod(inner) < FEWEST_TAPS:
        return f"{prod(inner):.2g} taps a phase in the mean: it would round too much for what it saves"
    return None


def nothing_to_save(spec: ConvSpec) -> str | None:
    """Why tiles of a layer that has them save nothing, or None."""
    if any(way.transformed for way in tiling_of(spec).ways):
        return None
    return "one tap a phase: nothing to save"


def dilated(spec: ConvSpec) -> str | None:
    """Why a kernel that does not take apart the layers that a dilation interleaves cannot run them, or None."""
    dilation = max(_between_taps(spec))
    return f"dilation {dilation}" if dilation > 1 else None


def slice_channels(spec: ConvSpec, slices: int) -> tuple[int, int]:
    """Input and output channels a group, of one of so many slices (`strassen_products.py`)."""
    return spec.in_channels // spec.groups // slices, spec.out_channels // spec.groups // slices


TAPS = {4: (3, 2), 5: (3, 2), 6: (3, 4, 2), 8: (4, 3, 5, 2)}
"""Taps that are transformed together, by the window's elements; of what needs as few products, the first. Measured, the others are
0.93 (groups of two, in place of three) and 0.99 times as fast (four)."""


MOST_TAPS = 32
"""Taps a phase; more are for other kernels."""
MOST_INTERLEAVED = 16
"""Layers that a dilation interleaves; a tile has outputs of each."""


@dataclass(frozen=True, slots=True)
class Way:
    """How one dimension is taken: `groups` of `taps` neighbouring taps, transformed together at `points`, or left plain.

    Where phases stand `apart`, each has its tiles begin with its own first output: there are two groups then, of the same taps,
    whose windows are one element apart, and each phase has weights for one of them.
    """

    taps: int
    groups: int
    points: Points | None = None
    apart: bool = False

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
        return self.taps if self.apart else self.taps * self.groups

    @property
    def beside(self) -> int:
        """Windows that are read at once, an element apart, where this is the innermost dimension."""
        return 2 if self.apart else 1


PLAIN = Way(1, 1)


def ways_of(spec: ConvSpec, last: Points) -> tuple[Way, Way, Way] | str:
    """How each of the three dimensions is taken, or why this layer has no tiles.

    The last that is transformed is at the points `last`, another one at NARROW: two wide ones would round too much. MIDDLE is for
    both, with phases apart where the padding sets them apart.
    """
    if prod(dilations(spec)) > MOST_INTERLEAVED:
        return f"dilation {times(spec.dilation)}: a tile would have outputs of {prod(dilations(spec))} interleaved layers"
    ways, other = [PLAIN] * (3 - spec.rank), last if last == MIDDLE else NARROW
    whole = spec.transposed and all(k % s == 0 for k, s in zip(spec.kernel_size, spec.stride, strict=True) if k > s)
    innermost = max((d for d, (k, s) in enumerate(zip(spec.kernel_size, spec.stride, strict=True)) if k > s), default=None)
    for d, (k, s, l) in enumerate(zip(spec.kernel_size, spec.stride, spec.dilation, strict=True)):
        taps = ceil(k / s)
        inner = d >= spec.rank - 2
        if l != 1 and k != 1 and s != 1:
            return f"dilation {l} at stride {s}"
        if inner and 1 < taps <= MOST_TAPS:
            way = _grouped(taps, last if d == innermost else other)
            if last == MIDDLE and whole and way.groups == 1 and spec.padding[d][0] % s:
                way = replace(way, groups=2, apart=True)
            ways.append(way)
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
        """Whether a dimension has windows of more than four."""
        return any(way.window > NARROW.window for way in self.ways)

    @property
    def widest(self) -> bool:
        """Whether a dimension has windows of eight."""
        return WIDEST in (way.points for way in self.ways)

    @property
    def middle(self) -> bool:
        """Whether both inner dimensions have windows of five."""
        return all(way.points == MIDDLE for way in self.ways[1:])

    @property
    def planes(self) -> int:
        """Planes of x along the outer dimension, which is left plain, that a tile's sums go over."""
        spec = self.spec
        return self.ways[0].groups if spec.transposed or spec.rank < 3 else spec.kernel_size[0]

    @property
    def depth(self) -> int:
        """What stands in V for one column and point: channels, planes of x and groups of taps."""
        _, h, w = self.ways
        return self.spec.in_channels // self.spec.groups * self.planes * prod(steps(self.spec)[1][1:]) * h.groups * w.groups

    @property
    def sum_depth(self) -> int:
        """Products that are summed for one row, column and point: those of one window where phases stand apart."""
        return self.depth // prod(way.groups for way in self.ways if way.apart)

    @property
    def interleaved(self) -> int:
        """Layers that a dilation interleaves. A tile has a column of V and M for each."""
        return prod(dilations(self.spec))

    def columns(self, tiles: int, lanes: int) -> int:
        """Columns of the GEMMs for so many tiles: vectors of each of the interleaved layers in turn."""
        return round_up(tiles, lanes) * self.interleaved if self.interleaved > 1 else tiles

    def tiles(self, columns: int, lanes: int) -> int:
        """The fewest tiles, in whole vectors, that are so many columns."""
        return round_up(ceil(columns / self.interleaved), lanes)


def tiling_of(spec: ConvSpec, last: Points = NARROW) -> Tiling:
    """The tiling of a layer that has one: see `ways_of`."""
    ways = ways_of(spec, last)
    assert not isinstance(ways, str)
    return Tiling(spec, ways)


def _grouped(taps: int, points: Points) -> Way:
    """Groups of two, three or four taps: what needs fewest products an output (see TAPS)."""
    ways = [Way(size, ceil(taps / size), points) for size in TAPS[points.window]]
    return min(ways, key=lambda way: Fraction(way.groups * way.window, way.outputs))


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
        (before, _), f, of = spec.padding[d], way.outputs, 3 - spec.rank + d
        out_step, planes = (n[of] * dilations(spec)[of] for n in steps(spec))
        if spec.transposed:
            low, crop = (before // out_step, 0) if way.apart else divmod(before + fronts(spec)[of], out_step)
            positions = ((out_size - 1 + crop) // out_step + f) // f
            origin = dilations(spec)[of] * low - spec.dilation[d] * (way.total - 1)
        else:
            crop, positions, origin = 0, ceil(out_size / (out_step * f)), -before
        line = Line(size, out_size, planes * f, out_step * f, crop, positions)
        found.append((line, Window(origin, planes * way.window, 1 if way.apart else planes * way.taps)))
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


def dilations(spec: ConvSpec) -> tuple[int, int, int]:
    """Layers that a dilation interleaves, in each dimension: of outputs, and inputs that they read, a multiple of it apart.

    The outermost of three is read tap by tap, as far apart as its dilation has them.
    """
    *_, h, w = (1, *_between_taps(spec))
    return 1, h, w


def between_planes(spec: ConvSpec) -> int:
    """Elements of x from one plane that a tile reads along the outermost of three dimensions to the next."""
    return _between_taps(spec)[0] if spec.rank == 3 else 1


def _between_taps(spec: ConvSpec) -> tuple[int, ...]:
    """The dilation of each dimension of the layer that has more than one tap, else 1."""
    return tuple(l if k > 1 else 1 for k, l in zip(spec.kernel_size, spec.dilation, strict=True))


def steps(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(out, in): phases of the output and planes of the input, three dimensions."""
    s, ones = (1,) * (3 - spec.rank) + spec.stride, (1, 1, 1)
    return (s, ones) if spec.transposed else (ones, s)
