"""Overlap-add's blocks of channels-last arrays: the dimensions as it scatters over them, cut so that little is computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, prod

from upconv.codegen.ir import SIZES
from upconv.codegen.target import LINE, Target
from upconv.kernels import register_tile
from upconv.kernels.geometry import round_up
from upconv.kernels.overlap_add_last_code import TOGETHER
from upconv.kernels.register_tile import Tile
from upconv.kernels.scatter import Sizes, axes, inputs_met, parts, row_taps, tasks_of
from upconv.spec import Problem

PATCHES = 0.5
"""Of the second-level cache, for the patches that a block has at a time."""
ROW, STEP = 6, 16
"""What a row of positions and a step of a block cost besides, in inputs."""


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
        """Tiles of a single vector after them: fewer than a whole tile has."""
        return (self.lanes - self.wide * self.tile.rows) // self.tile.lanes

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


# -- the choice ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """The block with the fewest inputs on the busiest thread, those that neighbours compute too included."""
    spec = problem.spec
    patch, each = prod(spec.kernel_size) * spec.out_channels, axes(problem)[2].step * spec.out_channels
    tile = register_tile.last_tile(problem.dtype, target, patch, each)
    most = int(target.l2 * PATCHES / (round_up(patch, tile.lanes) * problem.itemsize))
    offers = _offers(problem, most)
    block, rows = min(offers, key=lambda offer: _work(problem, *offer) * _share(problem, offer[0], threads))
    _, h, w = axes(problem)
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


def _offers(problem: Problem, most: int) -> Iterator[tuple[Sizes, int]]:
    """Blocks, parts of an image or whole images, and rows at a time for at most so many patches."""
    images, *whole = lengths(problem)
    line, found = axes(problem)[1], False
    for d, h, w in product(*(parts(n) for n in whole)):
        for several in parts(images) if [d, h, w] == whole else (1,):
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
    return inputs_met(problem, sizes) + ROW * pieces + STEP * tasks_of(lengths(problem), sizes) * ceil(sizes[2] / rows)


def _share(problem: Problem, sizes: Sizes, threads: int) -> float:
    """The busiest thread's share; a quarter of a task is what threads wait for each other."""
    tasks = tasks_of(lengths(problem), sizes)
    return (ceil(tasks / threads) + 0.25) / tasks if threads > 1 else 1.0
