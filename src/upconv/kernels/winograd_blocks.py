"""Sizes of the Winograd kernel's loops: the register tile, tiles a block, output channels a chunk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, gcd, inf, lcm, prod

from upconv.codegen.ir import SIZES
from upconv.codegen.target import Target
from upconv.kernels import ahead, columns, register_tile, store, winograd_cuts
from upconv.kernels import job as jobs
from upconv.kernels.geometry import round_up
from upconv.kernels.register_tile import ELEMENTS, Tile
from upconv.kernels.strassen_products import PRODUCTS
from upconv.kernels.winograd_cuts import useless
from upconv.kernels.winograd_depth import classes, lacking, phases_of
from upconv.kernels.winograd_tiles import NARROW, Points, Tiling, Way, dilations, lines, steps, tiling_of
from upconv.kernels.winograd_way import Code
from upconv.kernels.winograd_work import column_bytes, part_of, rows_done, tile_blocks_of
from upconv.spec import Problem

FEW, FEW_OF_SLICES, WORTH, FULL = 144, 4096, 0.95, 0.85
"""Tiles up to which the register tile is chosen for their number; the share of the cycles that another one than the usual should
leave then, and the share of the most sums that registers hold that it should have. 107 layers of so few are 1.12 times as fast for
it in geometric mean, up to 1.8. Measured."""

AGAIN = 0.36
"""Cycles that a weight from beyond the near caches takes each time that a block meets it. Measured: 512 -> 256 k4s2 on 64 images of
4 x 4 takes 17.7 ms in blocks of 32 columns, 15.6 ms in blocks of 64."""

ASKED_V, ASKED_DEPTH, ASKED_Y, ASKED_X = 1.2, 256, 4, (36, 12, inf)
"""Where lines are asked for while the sums go on: V takes at most so many second-level caches, sums are shorter than so many
products, and y (x) takes at least so many caches. Measured: for y 1.00 to 1.24 times as fast over 39 layers, 1.035 in the mean, for
x 0.97 to 1.15 over 24, 1.02 in the mean; elsewhere lines are in the caches anyway, few, or gone again before their time (0.97 to
1.0). With 16 registers 26 layers whose x takes 6 to 17 MB are 1.017 times as fast if it is not asked for, up to 1.09, larger ones
0.96 to 0.98. Intel's servers (the third of `Target.kind`) wait for the asking itself: without, 23 layers are 1.02 times as fast."""

ASKED_STEP = (16, 1, inf)
"""Outputs in a row of a tile, by `Target.kind`, that are more than so many where lines of y are asked for. Measured
with 16: asking for short rows takes 0.95 to 1.01 of the speed, 0.99 in the mean over 40 layers of stride 2; for 21 channels of
stride 8 to 32 it gives 1.06 to 1.12."""

READ, APART = (0.06, 0.08), 0.7
"""Cycles that a step of a register tile takes more, in slices, for each weight and each vector that it reads, and where a panel is
more than the first-level cache holds. Not in one dimension, whose lengths vary: narrow tiles waste less of them. Measured: with 32
registers fifteen layers are 1.04 times as fast, 1.01 to 1.12, mostly in tiles of 8 x 48 in place of 12 and 13 x 32; with 16
three layers 1.03."""

SPILT = 0.02
"""What a second-level cache's worth of V too much costs the products: a wide tile wants a wide block. Measured."""


FILLING = 0.3
"""The share of a block's tiles that is left at least where fewer make room for so many output channels that their rows fill
register tiles. Measured with 32 registers: 1.00 to 1.12 times as fast over four layers of 16 to 32 channels."""

LEAST = {1: (2, 0), 2: (2, 48), 4: (1, 32)}
"""Register tiles' widths a block, and rows a chunk (0: as a register tile has), at least, by slices: those of quarters would leave
the second-level cache. Measured over 7 layers: 1.03 times as fast as with those of halves."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `block` counts tiles; with `slices`, into which channels in and
    out and tiles are cut, `chunk` and `depth` are those of one."""

    tile: Tile
    slices: int
    tiling: Tiling
    chunk: int
    chunks: int
    tile_blocks: tuple[int, ...]
    cut: columns.Cut
    splits: int
    abreast: int
    depth: int
    sum_depth: int
    depth_part: int
    v_point: int
    m_pitch: int
    m_point: int
    table_bytes: int
    found_bytes: int
    line_bytes: int
    lines_bytes: int
    slices_bytes: int
    m_bytes: int
    v_bytes: int
    written: int
    """Entries of the list of lines that a block will write, which are asked for while its sums go on; 0 where they are not."""
    read: int
    """The same for what the thread's next block will read."""
    useless: tuple[bool, bool]
    """Whether the last tiles of the two inner dimensions leave out the last point of their windows."""
    streamed: int = 0
    """Where weights are transformed as they are read: for how many tiles at a time, where there are several."""

    @property
    def ways(self) -> tuple[Way, Way, Way]:
        """How each of the three dimensions is taken."""
        return self.tiling.ways

    @property
    def by_position(self) -> bool:
        """Whether tiles are numbered position by position, all images of each side by side."""
        return self.slices == 1 and self.cut.parts > 1

    @property
    def written_bytes(self) -> int:
        return round_up(ahead.size(self.written), 64)

    @property
    def read_bytes(self) -> int:
        return round_up(ahead.size(self.read), 64)

    @property
    def workspace_bytes(self) -> int:
        parts = (
            self.table_bytes,
            self.found_bytes,
            self.line_bytes,
            self.lines_bytes,
            self.slices_bytes,
            self.m_bytes,
            self.v_bytes,
            self.written_bytes,
            self.read_bytes,
        )
        return sum(parts) + 256

    @property
    def points(self) -> int:
        """Of the transforms; each takes as many GEMMs as there are products of slices."""
        return prod(way.window for way in self.ways)

    @property
    def block(self) -> int:
        return self.cut.block

    @property
    def tasks(self) -> list[tuple[int, float]]:
        """(count, relative time) of the tasks of a group."""
        sizes = [(count, register_tile.columns_cycles(self.tile, self._columns(size))) for count, size in self.cut.sizes()]
        return jobs.tasks_of(sizes, self.chunks, self.splits, 0.0)

    def _columns(self, tiles: int) -> int:
        return self.tiling.columns(ceil(tiles / self.slices), self.tile.lanes)

    @property
    def rows(self) -> int:
        """Rows of a chunk, all classes of phases one behind the other, each filled up to whole tiles."""
        return sum(self.tile_blocks) * self.tile.rows

    @property
    def room(self) -> int:
        """Tiles that a task's table has room for."""
        return round_up(self.block, self.tile.lanes * self.slices)


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int, slices: int = 1, last: Points = NARROW) -> Blocking:
    """Tiles a block as the second-level cache holds their transforms; output channels in chunks beside them.

    Tile and chunk depend on the number of tiles only where there are very few: packed weights and code depend on them.
    Images do not mix where a block's slices do: it is one image's, or each slice has the same images (see `columns_of`).
    """
    spec, tiling = problem.spec, tiling_of(problem.spec, last)
    m, of = spec.out_channels // spec.groups // slices, winograd_cuts.columns_of(problem, tiling, slices, target)
    length, _ = of
    few = FEW if slices == 1 else FEW_OF_SLICES
    alike = 0 if spec.rank == 1 or length > few else length // slices
    tile, chunk, most = _tile(tiling, problem.dtype, target, slices, alike)
    cuts = winograd_cuts.offered(problem, tiling, tile, slices, of, alike > 0, most, threads)
    if cuts[0].count * spec.groups < 2 * threads and chunk >= m > 1:
        chunk = _choose_chunk(tiling, tile, slices, ceil(m / threads))
    cut, splits = winograd_cuts.best(problem, tiling, tile, slices, chunk, cuts, target, threads)
    return sized(problem, tiling, tile, slices, chunk, cut, splits, target, threads)


@dataclass(frozen=True, slots=True)
class _Offer:
    """A register tile with the loops it would have, and its cycles a row and column: of many columns, of as few as there are."""

    tile: Tile
    chunk: int
    most: int
    many: float
    few: float


@lru_cache(maxsize=512)
def _tile(tiling: Tiling, dtype: str, target: Target, slices: int, alike: int) -> tuple[Tile, int, int]:
    """(the register tile, output channels a chunk, tiles a block at most) for the fewest cycles, padding included.

    `alike` is the number of columns where they are few, else 0.
    """
    tiles = [tile for tile in register_tile.tiles(ELEMENTS[dtype], target) if tile.vectors > 1]
    offers = [_offer(tiling, tile, target, slices, alike) for tile in tiles]
    usual, best = min(offers, key=lambda o: o.many), min(offers, key=lambda o: o.few)
    if slices == 1:  # few tiles to choose from, so that many sizes do with little code
        most = max(tile.rows * tile.vectors for tile in tiles)
        full = [o for o in offers if o.tile.rows * o.tile.vectors >= FULL * most]
        best = min(full, key=lambda o: o.few)
        best = best if best.few < WORTH * usual.few else usual
    return best.tile, best.chunk, best.most * slices


def _offer(tiling: Tiling, tile: Tile, target: Target, slices: int, alike: int) -> _Offer:
    """What a tile would do: blocks and chunks as the second-level cache holds them, and their cycles."""
    spec = tiling.spec
    m, phases = spec.out_channels // spec.groups // slices, prod(steps(spec)[0])
    points, item = len(tiling.points) * PRODUCTS[slices], SIZES[tile.element]
    column = column_bytes(tiling, slices, item)
    least_tiles, least_rows = LEAST[slices]
    wide = tiling.tiles(tile.width, tile.lanes)
    most = int(target.l2 * 0.35 / column) // wide * wide
    least = tiling.tiles(least_tiles * tile.width, tile.lanes)
    most = min(max(most, least), 512)
    channel = points * phases * item  # of M, for a column of tiles

    def room_of(tiles: int) -> int:
        return max(1, int(target.l2 * 0.3 / (channel * tiling.columns(tiles, tile.lanes))))

    filling = lcm(*(tile.rows // gcd(tile.rows, len(residues)) for residues in phases_of(tiling)))
    if not alike and target.many_registers and room_of(most) < filling <= m:
        most = next((n for n in range(most - wide, int(max(least, FILLING * most)) - 1, -wide) if room_of(n) >= filling), most)
    room = room_of(most)
    chunk = _choose_chunk(tiling, tile, slices, min(m, max(room, ceil((least_rows or tile.rows) / phases))))
    strips = ceil(m / chunk) * rows_done(tiling, tile_blocks_of(tiling, chunk, tile), tile) / tile.rows

    def cycles(step: float, block: int) -> float:
        """Of all strips, those of one step given; more where a block's V is too much for the cache."""
        return strips * step * (1 + SPILT * max(0.0, column * block / target.l2 - 1.0))

    more = _reading(tiling, tile, target, slices) if slices > 1 and spec.rank > 1 else 0.0
    many = cycles(register_tile.columns_cycles(tile, tile.width, more) / tile.width, most)
    if not alike:
        return _Offer(tile, chunk, most, many, many)
    blocks = columns.cut(alike, tile.lanes, ceil(alike / most) if slices == 1 else 1).sizes()
    far = register_tile.far(points * m * phases * tiling.sum_depth * item, target)
    again = AGAIN * tile.rows if slices == 1 and far else 0.0
    times = [(count, register_tile.columns_cycles(tile, tiling.columns(size, tile.lanes), more)) for count, size in blocks]
    few = cycles(sum(count * (time + again) for count, time in times) / alike, min(most, alike))
    return _Offer(tile, chunk, most, many, few)


def _reading(tiling: Tiling, tile: Tile, target: Target, slices: int) -> float:
    """Cycles that a step takes for what it reads, besides those that every kernel counts."""
    panel = tile.width * part_of(tiling, slices, False) * SIZES[tile.element]
    return READ[0] * tile.rows + READ[1] * tile.vectors + (APART if panel > target.l1 else 0.0)


def sized(
    problem: Problem, tiling: Tiling, tile: Tile, slices: int, chunk: int, cut: columns.Cut, splits: int, target: Target,
    threads: int, streamed: int = 0,
) -> Blocking:  # fmt: skip
    """The blocking of a chosen tile, output channels a chunk, blocks of tiles and shares of a block's chunks."""
    spec, item, ways = problem.spec, problem.itemsize, tiling.ways
    c, m, (_, in_steps) = spec.in_channels // spec.groups, spec.out_channels // spec.groups, steps(spec)
    depth, points = tiling.depth // slices, len(tiling.points)
    products, sum_depth = points * PRODUCTS[slices], tiling.sum_depth // slices
    block, wide, chunks = cut.block, tiling.columns(cut.block // slices, tile.lanes), ceil(m // slices / chunk)
    room = round_up(block, tile.lanes * slices)
    tile_blocks = tile_blocks_of(tiling, chunk, tile)
    rows = sum(tile_blocks) * tile.rows
    tile = register_tile.reading(tile, products * chunks * rows * sum_depth * item, target)
    panels = ceil(wide / tile.width)
    v_point = panels * depth * tile.width + 16
    m_pitch = tile.width if streamed else round_up(wide, 16) + 16 * (round_up(wide, 16) // 16 % 2 == 0)
    m_point = rows * m_pitch + (16 if rows * m_pitch % 32 == 0 else 0)
    code = code_of(problem, ways, tile, slices, streamed)
    out_step = lines(problem, ways)[2].out_step
    v_bytes = round_up(products * v_point * item, 64)
    near = v_bytes <= ASKED_V * target.l2 and depth < ASKED_DEPTH and not streamed
    sums = (slices**2 * prod(in_steps[1:]) if slices > 1 else tile.rows if streamed else 0) * points * tile.lanes
    written, read = _asked(problem, tiling, code, cut, room, splits, target) if near else (0, 0)
    return Blocking(
        tile=tile, slices=slices, tiling=tiling, chunk=chunk, chunks=chunks, tile_blocks=tile_blocks, cut=cut,
        splits=splits, abreast=threads, depth=depth, sum_depth=sum_depth, depth_part=part_of(tiling, slices, streamed > 0),
        v_point=v_point, m_pitch=m_pitch, m_point=m_point,
        table_bytes=columns.table_bytes(room, tile.lanes),
        found_bytes=round_up(code.found_bytes(tiling.depth // c // prod(in_steps[1:]) // code.side_by_side, room), 64),
        line_bytes=round_up(max(out_step, prod(code.reach)) * tile.lanes * item, 64),
        lines_bytes=round_up(code.together * ways[1].outputs * out_step * tile.lanes * item, 64),
        slices_bytes=round_up(sums * item, 64),
        m_bytes=round_up(products * m_point * item, 64), v_bytes=v_bytes,
        written=written, read=read, useless=useless(problem, ways, slices == 1 and cut.parts > 1),
        streamed=streamed,
    )  # fmt: skip


def _asked(
    problem: Problem, tiling: Tiling, code: Code, cut: columns.Cut, room: int, splits: int, target: Target
) -> tuple[int, int]:
    """Entries of the lists of lines asked for ahead: of what a block writes, and of what the next one reads.

    Not of y where columns are not widened, for its rows are short pieces then; nor of x where the next block is another share or
    another position.
    """
    ways, item, slices = tiling.ways, problem.itemsize, code.slices
    d, h, w = lines(problem, ways)
    written = read = 0
    if w.out_step > ASKED_STEP[target.kind] and prod(problem.output_shape) * item >= ASKED_Y * target.l2:
        written = slices * ahead.most_written(room, d.out_step * h.out_step, w.out_step, item)
    one_block = slices == 1 and splits == 1 and cut.parts == 1 and all(way.groups == 1 for way in ways[1:])
    if one_block and prod(problem.input_shape) * item >= ASKED_X[target.kind] * target.l2:
        rows = tiling.planes * code.window[0]
        read = ahead.most_read(room, rows, w.step, code.window[1], item, w.positions)
    return written, read


def _choose_chunk(tiling: Tiling, tile: Tile, slices: int, most: int) -> int:
    """Output channels at a time, at most so many, for the least padding of tiles; larger chunks where little speaks for less."""

    def cost(chunk: int) -> float:
        rows, spec = rows_done(tiling, tile_blocks_of(tiling, chunk, tile), tile), tiling.spec
        return ceil(spec.out_channels // spec.groups // slices / chunk) * (rows + 0.02 * most)

    return min(range(max(1, most // 2), most + 1), key=lambda chunk: (cost(chunk), -chunk))


def code_of(problem: Problem, ways: tuple[Way, Way, Way], tile: Tile, slices: int, streamed: int = 0) -> Code:
    """What of a problem changes the code."""
    d, h, w = (replace(way, groups=1, apart=way.apart and i == 2) for i, way in enumerate(ways))  # others are numbers of the job
    _, (_, ph, pw) = steps(problem.spec)
    out_step = lines(problem, ways)[2].out_step
    tiling, transposed = Tiling(problem.spec, ways), problem.spec.transposed
    uneven = transposed and any(any(c.short) or c.part[0] for c in classes(tiling))
    finish = store.store_of(tile.element, tile.lanes, out_step, problem.spec.activation, tile.streams)
    short = tuple(lacking(tiling, c) for c in classes(tiling)[: None if transposed else 1]) if streamed else ()
    _, dh, dw = dilations(problem.spec)
    return Code(tile, slices, (d, h, w), (ph * dh, pw * dw), uneven, finish, (dh, dw), streamed, short)
