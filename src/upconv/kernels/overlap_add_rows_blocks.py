"""Blocks of overlap-add row by row: parts of an image's outputs, walked down a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

from upconv.codegen.ir import SIZES
from upconv.codegen.target import LINE, Target
from upconv.kernels import register_tile
from upconv.kernels.geometry import round_up
from upconv.kernels.overlap_add_rows_code import MET
from upconv.kernels.register_tile import Tile
from upconv.kernels.scatter import Sizes, axes, parts, row_taps
from upconv.spec import Problem

PATCHES, PANEL, MOST = 0.5, 0.15, 2.0
"""Of the second-level cache, for the patches that a block has at a time, for the inputs that a GEMM multiplies, and for these where
RUN asks for more."""
RUN = 600
"""Neighbouring columns that are copied of each channel, if there is room: memory is slow to begin somewhere else. 320 -> 1 k3s2 on
70 x 147 and 1024 -> 1 k3 on 149 x 149 are 1.7 times as fast as with 120 and 75 of them."""
FEWEST = 4
"""Vectors of columns that a GEMM has, whatever the panel then takes."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `sizes` counts images (of one group each) and positions of the output in d, h and w, of which `rows` in h
    are taken at a time while `ring` lines of x, of `cells` inputs, have their patches; `lines` are copied at a time."""

    tile: Tile
    sizes: Sizes
    rows: int
    ring: int
    lines: int
    planes: int
    cells: int
    patch_rows: int
    channels: int
    step: int
    met: int

    @property
    def block(self) -> int:
        """Positions of a row."""
        return self.sizes[3]

    @property
    def tile_blocks(self) -> int:
        return ceil(self.patch_rows / self.tile.rows)

    @property
    def panel_pitch(self) -> int:
        """Elements from channel to channel of the panel."""
        return _apart(round_up(self.lines * self.cells, self.tile.lanes), self.tile)

    @property
    def plane_pitch(self) -> int:
        """Elements from plane to plane of the patches: a GEMM may write a vector over the end of the last line."""
        return round_up(self.ring * self.cells + self.tile.lanes, self.tile.lanes)

    @property
    def pitch(self) -> int:
        """Elements from row to row of the patches."""
        return _apart(self.planes * self.plane_pitch, self.tile)

    def _bytes(self, elements: int) -> int:
        return round_up(elements * SIZES[self.tile.element], LINE)

    @property
    def line_bytes(self) -> int:
        return self._bytes(self.tile.lanes * self.step)

    @property
    def met_bytes(self) -> int:
        return round_up(self.met * MET * 8, LINE)

    @property
    def panel_bytes(self) -> int:
        return self._bytes(self.channels * self.panel_pitch + self.tile.width)

    @property
    def patch_bytes(self) -> int:
        """And what the vectors at the ends of rows reach over them."""
        return self._bytes(self.tile_blocks * self.tile.rows * self.pitch + 2 * self.tile.width)

    @property
    def workspace_bytes(self) -> int:
        return self.line_bytes + self.met_bytes + self.panel_bytes + self.patch_bytes


def _apart(elements: int, tile: Tile) -> int:
    """A pitch of at least so many elements: a line more where many rows would meet in the same sets of the caches."""
    line = LINE // SIZES[tile.element]
    return elements + line * (elements * SIZES[tile.element] % 1024 == 0)


def lengths(problem: Problem) -> Sizes:
    """All there is; an image has one group."""
    d, h, w = axes(problem)
    return problem.batch * problem.spec.groups, d.positions, h.positions, w.positions


def offers(problem: Problem, target: Target) -> Iterator[Blocking]:
    """Blocks whose patches and inputs fit, each with the most rows at a time for which they do; or else of a single position."""
    spec = problem.spec
    channels = spec.in_channels // spec.groups
    patch_rows = spec.out_channels // spec.groups * prod(spec.kernel_size)
    tile = register_tile.best_tile(problem.dtype, target, patch_rows)
    tile = register_tile.reading(tile, patch_rows * channels * problem.itemsize, target)
    axis_d, line, axis_w = axes(problem)
    _, *whole = lengths(problem)
    spread, reach = line.most - line.least, 1 - axis_w.least
    met = max(len(taps) for taps in row_taps(spec)) * reach + 1
    most = target.l2 * PATCHES / (round_up(patch_rows, tile.rows) * problem.itemsize)
    room = target.l2 / (channels * problem.itemsize)
    wide = max(room * PANEL, min(RUN, room * MOST), FEWEST * tile.lanes)
    found = False
    for d, h, w in product(*(parts(n) for n in whole)):
        planes, cells = min(d + axis_d.most - axis_d.least, axis_d.size), min(w - axis_w.least, axis_w.size)
        least = h == w == d == 1 and not found
        for rows in parts(h):
            ring = min(rows + spread + ceil((tile.lanes - 1) / cells), line.size)  # the last ones may be written over
            if planes * ring * cells > most and not (least and rows == 1):
                continue
            lines = max(1, min(rows + spread, line.size, int(wide) // cells))
            if cells > wide and not least:
                break
            found = True
            yield Blocking(
                tile=tile, sizes=(1, d, h, w), rows=rows, ring=ring, lines=lines, planes=planes, cells=cells,
                patch_rows=patch_rows, channels=channels, step=axis_w.step, met=met,
            )  # fmt: skip
            break
