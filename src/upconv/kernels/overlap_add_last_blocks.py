"""Overlap-add's blocks of channels-last arrays: the dimensions as it scatters over them, cut so that little is computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, inf, prod

import numpy as np

from upconv.codegen.ir import SIZES
from upconv.codegen.target import LINE, Target
from upconv.kernels import register_tile
from upconv.kernels.geometry import round_up
from upconv.kernels.overlap_add_last_code import TOGETHER
from upconv.kernels.register_tile import Tile
from upconv.shapes.phase import phase_taps
from upconv.spec import ConvSpec, Problem

PATCHES = 0.5
"""Of the second-level cache, for the patches that a block has at a time."""
ROW, STEP = 6, 16
"""What a row of positions and a step of a block cost besides, in inputs."""

Sizes = tuple[int, int, int, int]
"""Images, and positions of the output in d, h and w."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension: output position q, of `positions` from `first` on, adds up the inputs q + least to q + most."""

    size: int
    out_size: int
    step: int
    first: int
    positions: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `block` counts images and positions of the output in d, h and w, of which `rows` in h are taken at a time
    while `ring` lines of x have their patches."""

    tile: Tile
    patch: int
    block: Sizes
    rows: int
    ring: int
    inputs: int
    cells: int
    vectors: int
    row: int
    met: int

    @property
    def lanes(self) -> int:
        """Of a patch: whole vectors."""
        return round_up(self.patch, self.tile.lanes)

    @property
    def pitch(self) -> int:
        """Elements from patch to patch: a line more where many would meet in the same sets of the caches."""
        line = LINE // SIZES[self.tile.element]
        return self.lanes + line * (self.lanes % (8 * line) == 0)

    @property
    def wide(self) -> int:
        """Whole tiles of rows that make a patch."""
        return self.lanes // self.tile.rows

    @property
    def narrow(self) -> int:
        """Tiles of a single vector after them: one or none."""
        return int(self.lanes > self.wide * self.tile.rows)

    @property
    def room(self) -> int:
        """Entries of each half of the table: the inputs of a block, rounded up to whole tiles."""
        return round_up(self.inputs, self.tile.turned)

    def _bytes(self, elements: int) -> int:
        return round_up(elements * SIZES[self.tile.element], LINE)

    @property
    def table_bytes(self) -> int:
        return round_up(2 * self.room * 8, LINE)

    @property
    def row_bytes(self) -> int:
        return self._bytes(self.row)

    @property
    def bias_bytes(self) -> int:
        return self._bytes(self.vectors * self.tile.lanes)

    @property
    def met_bytes(self) -> int:
        return round_up(self.met * 8, LINE)

    @property
    def patch_bytes(self) -> int:
        """Every cell's patch, one that nobody reads, and what the last vector of an output reaches over it."""
        return self._bytes((self.cells + 1) * self.pitch + (self.vectors + 1) * self.tile.lanes)

    @property
    def workspace_bytes(self) -> int:
        return self.table_bytes + self.row_bytes + self.bias_bytes + self.met_bytes + self.patch_bytes


# -- geometry ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def axes(problem: Problem) -> tuple[Axis, Axis, Axis]:
    """The dimensions. In d and h position q has the outputs step * q + phase, in w those before cropping."""
    spec = problem.spec
    found = [Axis(1, 1, 1, 0, 1, 0, 0)] * (3 - spec.rank)
    for i, (size, out) in enumerate(zip(problem.input_size, problem.output_size, strict=True)):
        kernel, step, crop, dilation = scatter(spec, i)
        if i == spec.rank - 1:
            first, last = crop // step, (out - 1 + crop) // step
            found.append(Axis(size, out, step, first, last - first + 1, -((kernel - 1) // step), 0))
        else:
            offsets = [offset for a in range(step) for _, offset in phase_taps(kernel, step, crop, dilation, a)]
            found.append(Axis(size, out, step, 0, ceil(out / step), min(offsets), max(offsets)))
    d, h, w = found
    return d, h, w


def scatter(spec: ConvSpec, i: int) -> tuple[int, int, int, int]:
    """(taps, stride, outputs cropped before, dilation) of a dimension, seen as a transposed convolution's."""
    kernel, dilation, (before, _) = spec.kernel_size[i], spec.dilation[i], spec.padding[i]
    if spec.transposed:
        return kernel, spec.stride[i], before, dilation
    return kernel, 1, dilation * (kernel - 1) - before, dilation


def row_taps(spec: ConvSpec) -> list[list[tuple[int, int, int]]]:
    """For each phase in d and h: (first column in a patch, offset in d, in h) of its taps."""
    lists = [[[(0, 0)]]] * (3 - spec.rank)
    kernels = [1] * (3 - spec.rank)
    for i in range(spec.rank - 1):
        kernel, step, crop, dilation = scatter(spec, i)
        lists.append([list(phase_taps(kernel, step, crop, dilation, a)) for a in range(step)])
        kernels.append(kernel)
    each = spec.kernel_size[-1] * spec.out_channels
    return [
        [((kd * kernels[1] + kh) * each, od, oh) for kd, od in taps_d for kh, oh in taps_h]
        for taps_d, taps_h in product(lists[0], lists[1])
    ]


# -- the choice ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """The block with the fewest inputs on the busiest thread, those that neighbours compute too included."""
    spec = problem.spec
    tile = register_tile.turned_tile(register_tile.ELEMENTS[problem.dtype], target, inf)
    patch = prod(spec.kernel_size) * spec.out_channels
    most = int(target.l2 * PATCHES / (round_up(patch, tile.lanes) * problem.itemsize))
    offers = _offers(problem, most)
    block, rows = min(offers, key=lambda offer: _work(problem, *offer) * _share(problem, offer[0], threads))
    _, h, w = axes(problem)
    each = w.step * spec.out_channels
    vectors, reach = ceil(each / tile.lanes), 1 - w.least
    return Blocking(
        tile=tile, patch=patch, block=block, rows=rows, ring=min(rows + h.most - h.least, h.size),
        inputs=_cells(problem, block, rows, 1), cells=_cells(problem, block, rows, TOGETHER),
        vectors=vectors, row=(round_up(block[3], TOGETHER) + 1) * each + (vectors + 1) * tile.lanes,
        met=max(len(taps) for taps in row_taps(spec)) * reach + 1,
    )  # fmt: skip


def lengths(problem: Problem) -> Sizes:
    """All there is."""
    d, h, w = axes(problem)
    return problem.batch, d.positions, h.positions, w.positions


def _parts(length: int) -> Iterator[int]:
    """The lengths of equal parts, each about half as long as the one before, down to one."""
    count = 1
    while count < 2 * length:
        yield ceil(length / count)
        count *= 2


def _offers(problem: Problem, most: int) -> Iterator[tuple[Sizes, int]]:
    """Blocks, parts of an image or whole images, and rows at a time for at most so many patches."""
    images, *whole = lengths(problem)
    line, found = axes(problem)[1], False
    for d, h, w in product(*(_parts(n) for n in whole)):
        for several in _parts(images) if [d, h, w] == whole else (1,):
            lines = most // _a_line(problem, (several, d, h, w), TOGETHER)
            rows = h if lines >= line.size else min(lines - (line.most - line.least), h)
            if rows == h or (rows > 0 and several == 1):
                found = True
                yield (several, d, h, w), ceil(h / ceil(h / rows))
                break  # fewer images are no better
    if not found:
        yield (1, 1, 1, 1), 1


def _cells(problem: Problem, sizes: Sizes, rows: int, unit: int) -> int:
    """Inputs that have their patches at a time, at most, with positions rounded up to a unit."""
    line = axes(problem)[1]
    return min(rows + line.most - line.least, line.size) * _a_line(problem, sizes, unit)


def _a_line(problem: Problem, sizes: Sizes, unit: int) -> int:
    """Those for every line in h of a block."""
    images, d, _, w = sizes
    planes, _, columns = axes(problem)
    each = round_up(w, unit) - columns.least if unit > 1 else min(w - columns.least, columns.size)
    return images * min(d + planes.most - planes.least, planes.size) * each


def _work(problem: Problem, sizes: Sizes, rows: int) -> int:
    """What all blocks cost together, in inputs."""
    images, d, h, w = lengths(problem)
    pieces = images * d * h * ceil(w / sizes[3])
    return inputs_met(problem, sizes) + ROW * pieces + STEP * tasks_of(problem, sizes) * ceil(sizes[2] / rows)


def tasks_of(problem: Problem, sizes: Sizes) -> int:
    """Blocks of these sizes."""
    return prod(ceil(length / size) for length, size in zip(lengths(problem), sizes, strict=True))


def inputs_met(problem: Problem, sizes: Sizes) -> int:
    """Inputs that all blocks meet together."""
    return problem.batch * prod(_met(axis, size) for axis, size in zip(axes(problem), sizes[1:], strict=True))


@lru_cache(maxsize=4096)
def _met(axis: Axis, size: int) -> int:
    """The inputs that parts of so many positions meet, one after the other."""
    end = axis.first + axis.positions
    low = np.arange(axis.first, end, size)
    first, last = np.maximum(low + axis.least, 0), np.minimum(np.minimum(low + size, end) + axis.most, axis.size)
    return int(np.maximum(last - first, 0).sum())


def _share(problem: Problem, sizes: Sizes, threads: int) -> float:
    """The busiest thread's share; a quarter of a task is what threads wait for each other."""
    tasks = tasks_of(problem, sizes)
    return (ceil(tasks / threads) + 0.25) / tasks if threads > 1 else 1.0
