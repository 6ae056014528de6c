"""Winograd's tiles: how each dimension of a layer is taken, the transforms' matrices, and the tiles as a band."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, prod

import numpy as np

from upconv.kernels.columns import LINE_OF_ONE, Line
from upconv.spec import ConvSpec, Problem

WINDOW = 4
OUTPUTS = {2: 3, 3: 2}
"""Taps a phase -> outputs of a tile."""

INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
OUTPUT = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, 0], [0, 1, 1, -1]]),
    3: np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
}
WEIGHT = {
    2: np.array([[1, 0], [0.5, 0.5], [0.5, -0.5], [0, 1]]) * 1.0,
    3: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]) * 1.0,
}


MOST_TAPS = 9
"""Taps a phase; more are for other kernels."""


@dataclass(frozen=True, slots=True)
class Way:
    """How one dimension is taken: `groups` of `taps` neighbouring taps, 2 or 3 transformed together, or 1 left plain."""

    taps: int
    groups: int

    @property
    def transformed(self) -> bool:
        return self.taps > 1

    @property
    def outputs(self) -> int:
        return OUTPUTS[self.taps] if self.transformed else 1

    @property
    def window(self) -> int:
        return WINDOW if self.transformed else 1

    @property
    def total(self) -> int:
        """Taps a phase, those included that fill up the last group."""
        return self.taps * self.groups


PLAIN = Way(1, 1)


def ways_of(spec: ConvSpec) -> tuple[Way, Way, Way] | str:
    """How each of the three dimensions is taken, or why this layer has no tiles."""
    ways = [PLAIN] * (3 - spec.rank)
    for d, (k, s, l) in enumerate(zip(spec.kernel_size, spec.stride, spec.dilation, strict=True)):
        taps = ceil(k / s)
        inner = d >= spec.rank - 2
        if l != 1 and k != 1:
            return f"dilation {l}"
        if inner and 1 < taps <= MOST_TAPS:
            ways.append(_grouped(taps))
        elif k == s or not inner:
            ways.append(Way(1, taps))
        else:
            return f"{taps} taps a phase from kernel {k}, stride {s}"
    return ways[0], ways[1], ways[2]


def ways_taken(spec: ConvSpec) -> tuple[Way, Way, Way]:
    """How each dimension of a layer that has tiles is taken."""
    ways = ways_of(spec)
    assert not isinstance(ways, str)
    return ways


def points_of(spec: ConvSpec) -> list[tuple[int, int]]:
    """The points of the two inner dimensions."""
    _, h, w = ways_taken(spec)
    return list(product(range(h.window), range(w.window)))


def depth_of(spec: ConvSpec) -> int:
    """Products that are summed for one row, column and point: channels, planes of x and groups of taps."""
    return spec.in_channels // spec.groups * prod(steps(spec)[1]) * prod(way.groups for way in ways_taken(spec))


def _grouped(taps: int) -> Way:
    """Groups of two or of three taps: what needs fewer products an output, and fewer groups."""
    ways = [Way(size, ceil(taps / size)) for size in OUTPUTS]
    return min(ways, key=lambda way: (way.groups * way.window / way.outputs, way.groups))


@dataclass(frozen=True, slots=True)
class Window:
    """One dimension's reads: the first, the elements that a group of taps spans, and the steps between groups."""

    origin: int
    reach: int
    step: int


@lru_cache(maxsize=512)
def windows(problem: Problem) -> tuple[tuple[Line, Window], ...]:
    """Each dimension: its tiles as columns (`columns.Line`), and the window that a tile reads."""
    spec, ways = problem.spec, ways_taken(problem.spec)
    found = [(LINE_OF_ONE, Window(0, 1, 1))] * (3 - spec.rank)
    for d, way in enumerate(ways[3 - spec.rank :]):
        size, out_size = problem.input_size[d], problem.output_size[d]
        s, (before, _), f = spec.stride[d], spec.padding[d], way.outputs
        if spec.transposed:
            low = before // s
            crop = before - s * low
            positions = ((out_size - 1 + crop) // s + f) // f
            line, origin, planes = Line(size, out_size, f, s * f, crop, positions), low - (way.total - 1), 1
        else:
            line, origin, planes = Line(size, out_size, s * f, f, 0, -(-out_size // f)), -before, s
        found.append((line, Window(origin, planes * way.window, planes * way.taps)))
    return tuple(found)


def lines(problem: Problem) -> tuple[Line, Line, Line]:
    """The tiles of a problem as columns."""
    d, h, w = (line for line, _ in windows(problem))
    return d, h, w


def spare(problem: Problem) -> tuple[bool, bool]:
    """Whether the last tiles of the two inner dimensions reach over the output's end, by one output a phase or more.

    The last point of a window serves a tile's last output alone: these tiles can do without it.
    """
    _, h, w = (
        way.transformed and line.positions * line.out_step >= line.out_size + line.crop + line.out_step // way.outputs
        for line, way in zip(lines(problem), ways_taken(problem.spec), strict=True)
    )
    return h, w


def steps(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(out, in): phases of the output and planes of the input, three dimensions."""
    s, ones = (1,) * (3 - spec.rank) + spec.stride, (1, 1, 1)
    return (s, ones) if spec.transposed else (ones, s)


# -- residues whose last tap is missing --------------------------------------------------------------------------------

Residue = tuple[int, int, int]
"""A phase of the output (transposed) or a plane of the input, in each dimension."""


@dataclass(frozen=True, slots=True)
class Class:
    """Residues that lack a tap in the same dimensions: there the kernel is no multiple of the stride."""

    short: tuple[bool, bool]
    residues: tuple[Residue, ...]


_ORDER = ((False, True), (False, False), (True, False), (True, True))
"""Of classes by (h, w) that lack a tap: whatever a point leaves out, what remains stands side by side."""


@lru_cache(maxsize=512)
def classes(spec: ConvSpec) -> tuple[Class, ...]:
    """Phases of a transposed layer, planes of a convolution, by the taps they lack."""
    ways = ways_taken(spec)
    kernel, stride = (1,) * (3 - spec.rank) + spec.kernel_size, (1,) * (3 - spec.rank) + spec.stride
    found: dict[tuple[bool, bool], list[Residue]] = {key: [] for key in _ORDER}
    for residue in product(*(range(s) for s in stride)):
        h, w = (_short(way, s, k, r) for way, s, k, r in zip(ways[1:], stride[1:], kernel[1:], residue[1:], strict=True))
        found[h, w].append((residue[0], residue[1], residue[2]))
    return tuple(Class(key, tuple(residues)) for key, residues in found.items() if residues)


def phases_of(spec: ConvSpec) -> list[tuple[Residue, ...]]:
    """The phases of the output, class by class; a convolution has one."""
    return [c.residues for c in classes(spec)] if spec.transposed else [((0, 0, 0),)]


def _short(way: Way, stride: int, kernel: int, residue: int) -> bool:
    """Whether a residue lacks a tap whose absence leaves a point empty: the one group's last."""
    return way.transformed and way.groups == 1 and residue + stride * (way.taps - 1) >= kernel


def live(spec: ConvSpec, point: tuple[int, int]) -> range:
    """The classes whose transformed weights are not all zero at a point: one end of the window belongs to one tap alone.

    That is the last tap, which a transposed layer reads first.
    """
    dead = 0 if spec.transposed else WINDOW - 1
    every = classes(spec)
    kept = [i for i, c in enumerate(every) if not any(s and u == dead for s, u in zip(c.short, point, strict=True))]
    return range(kept[0], kept[-1] + 1) if kept else range(0)
