"""Winograd's tiles: how each dimension of a layer is taken, the transforms' matrices, and the tiles as a band."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import ceil

import numpy as np

from upconv.kernels.geometry import Axis, Band
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


@dataclass(frozen=True, slots=True)
class Way:
    """How one dimension is taken: `taps` a phase (2 or 3: transformed; 1 or, outermost, any: plain)."""

    taps: int
    transformed: bool

    @property
    def outputs(self) -> int:
        return OUTPUTS[self.taps] if self.transformed else 1

    @property
    def window(self) -> int:
        return WINDOW if self.transformed else 1


PLAIN = Way(1, False)


def ways_of(spec: ConvSpec) -> tuple[Way, Way, Way] | str:
    """How each of the three dimensions is taken, or why this layer is not for Winograd."""
    ways = [PLAIN] * (3 - spec.rank)
    for d, (k, s, l) in enumerate(zip(spec.kernel_size, spec.stride, spec.dilation, strict=True)):
        taps = ceil(k / s)
        inner = d >= spec.rank - 2
        if l != 1 and k != 1:
            return f"dilation {l}"
        if inner and taps in OUTPUTS:
            ways.append(Way(taps, True))
        elif (taps == 1 and k == s) or (not inner and s == 1) or k == s == 1:
            ways.append(Way(taps, False))
        else:
            return f"{taps} taps a phase from kernel {k}, stride {s}"
    if not any(way.transformed for way in ways):
        return "one tap a phase: nothing to save"
    return ways[0], ways[1], ways[2]


def _axis(spec: ConvSpec, d: int, size: int, out_size: int, way: Way) -> Axis:
    """One dimension, its positions counted in tiles; `first` is 0: the window's first input stands at its position."""
    k, s, (before, _) = spec.kernel_size[d], spec.stride[d], spec.padding[d]
    f = way.outputs
    if spec.transposed:
        low = before // s
        crop, out_step, in_step = before - s * low, s * f, f
        positions = ((out_size - 1 + crop) // s + 1 + f - 1) // f
        origin = low - (way.taps - 1)
    else:
        crop, out_step, in_step = 0, f, s * f
        positions = -(-out_size // f)
        origin = -before
    inner_step = 1 if spec.transposed else s
    reach = (way.window if way.transformed else way.taps) * inner_step
    if k < reach and not spec.transposed:
        reach = (way.window - 1) * inner_step + min(k, s)
    span = (reach - 1) // in_step
    return Axis(
        size=size, out_size=out_size, out_step=out_step, in_step=in_step, crop=crop, positions=positions,
        pitch=positions + span, base=origin, first=0, planes=min(in_step, reach), phases=(),
    )  # fmt: skip


@lru_cache(maxsize=512)
def band(problem: Problem) -> Band:
    """The tiles of a problem as a band: `base` holds the index of x at position 0, plane 0."""
    spec, ways = problem.spec, ways_of(problem.spec)
    assert not isinstance(ways, str)
    missing = [Axis(1, 1, 1, 1, 0, 1, 1, 0, 0, 1, ())] * (3 - spec.rank)
    axes = [
        _axis(spec, d, n, o, way)
        for d, (n, o, way) in enumerate(zip(problem.input_size, problem.output_size, ways[3 - spec.rank :], strict=True))
    ]
    a, b, c = [*missing, *axes]
    return Band(problem.batch, (a, b, c))


@lru_cache(maxsize=512)
def tiles(problem: Problem) -> Band:
    """The same tiles numbered without the band's halo: the columns of V and M. The outermost taps keep theirs."""
    ways = ways_of(problem.spec)
    assert not isinstance(ways, str)
    shape = band(problem)
    d, h, w = shape.axes
    outer = replace(d, pitch=d.positions + (0 if ways[0].transformed else ways[0].taps - 1))
    return Band(shape.batch, (outer, replace(h, pitch=h.positions), replace(w, pitch=w.positions)))


def band_reach(shape: Band, compact: Band, columns: int) -> int:
    """Positions of the band that `columns` neighbouring tiles can span, the tiles' own included."""
    rows = columns // compact.axes[2].pitch + 2
    planes = rows // compact.axes[1].pitch + 2
    images = planes // compact.axes[0].pitch + 2
    rows += planes * (shape.axes[1].pitch - compact.axes[1].pitch)
    rows += images * (shape.axes[0].pitch - compact.axes[0].pitch) * shape.axes[1].pitch
    return rows * shape.axes[2].pitch


def steps(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(out, in): phases of the output and planes of the input, three dimensions."""
    s, ones = (1,) * (3 - spec.rank) + spec.stride, (1, 1, 1)
    return (s, ones) if spec.transposed else (ones, s)


def reads(shape: Band, ways: tuple[Way, Way, Way], planes_in: tuple[int, ...], plane_pitch: int) -> list[int]:
    """For each input plane b and each point of the window: where it stands in a channel of the packed band."""
    _, h, w = shape.axes
    strides = (h.pitch * w.pitch, w.pitch, 1)
    counts = (h.planes * w.planes, w.planes, 1)
    found = []
    for b in product(*(range(n) for n in planes_in)):
        for u in product(*(range(way.window) for way in ways)):
            flat = plane = 0
            for i, axis in enumerate(shape.axes):
                offset, number = divmod(planes_in[i] * u[i] + b[i], axis.in_step)
                flat += offset * strides[i]
                plane += number * counts[i]
            found.append(flat + plane * plane_pitch)
    return found


def depth_taps(spec: ConvSpec, ways: tuple[Way, Way, Way]) -> int:
    """Taps of the outermost dimension, taken one by one."""
    return ways[0].taps if not ways[0].transformed else 1


def offsets(shape: Band, ways: tuple[Way, Way, Way], planes_in: tuple[int, ...]) -> list[int]:
    """Flat offsets of the window's points within a plane."""
    _, h, w = shape.axes
    strides = (h.pitch * w.pitch, w.pitch, 1)
    return [
        sum((planes_in[i] * u[i] + planes_in[i] - 1) // axis.in_step * strides[i] for i, axis in enumerate(shape.axes))
        for u in product(*(range(way.window) for way in ways))
    ]
