"""Sizes of the Winograd kernel's loops: the register tile, tiles a block, output channels a chunk, and how tasks share them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, prod

from upconv.codegen.ir import SIZES
from upconv.codegen.target import Target
from upconv.kernels import columns, microkernel, store
from upconv.kernels.geometry import round_up
from upconv.kernels.microkernel import ELEMENTS, Tile
from upconv.kernels.strassen_products import PRODUCTS
from upconv.kernels.winograd_tiles import (
    WINDOW,
    Way,
    classes,
    depth_of,
    lines,
    live,
    phases_of,
    points_of,
    spare,
    steps,
    ways_taken,
)
from upconv.kernels.winograd_way import Code
from upconv.spec import ConvSpec, Problem

DEPTH = {1: 1024, 2: 256}
"""Products that are added up at a time, by the halves: longer sums round more than the direct kernel's, which come in parts as
well. Parts short enough for the first-level cache (330) cost a tenth of the time of layers with 512 channels and more.
Measured. Strassen's products round more, and are the shorter."""


TRANSFORM = {1: 5.0, 2: 20.0}
"""Cycles that one vector of a channel takes a point, from x to V, by the halves (a vector of one half, all quadrants). Measured."""

BACK = {1: 2.0, 2: 26.0}
"""Cycles that one vector of sums takes a point, from M to where outputs are stored, by the halves. Measured."""

END = 12.0
"""Cycles that a tile takes besides its steps and the storing of its sums. Measured."""

FEW = 4096
"""Tiles an image up to which the register tile is chosen for their number."""

ALONE, BY_POSITION = 45.0, 0.95
"""Cycles that a row of a vector's outputs takes longer where each tile's are stored by themselves, and the share of the cycles that
blocks of one position each should leave. Measured."""

SPILT = 0.02
"""What a second-level cache's worth of V too much costs the products: a wide tile wants a wide block. Measured."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `block` counts tiles; where there are two halves, `chunk` and `depth` are those of one."""

    tile: Tile
    halves: int
    ways: tuple[Way, Way, Way]
    chunk: int
    chunks: int
    tile_blocks: tuple[int, ...]
    cut: columns.Cut
    splits: int
    depth: int
    depth_part: int
    v_point: int
    m_pitch: int
    m_point: int
    table_bytes: int
    found_bytes: int
    line_bytes: int
    lines_bytes: int
    quads_bytes: int
    m_bytes: int
    v_bytes: int
    useless: tuple[bool, bool]
    """Whether the last tiles of the two inner dimensions leave out the last point of their windows."""

    @property
    def by_position(self) -> bool:
        """Whether tiles are numbered position by position, all images of each side by side."""
        return self.halves == 1 and self.cut.parts > 1

    @property
    def workspace_bytes(self) -> int:
        parts = (
            self.table_bytes,
            self.found_bytes,
            self.line_bytes,
            self.lines_bytes,
            self.quads_bytes,
            self.m_bytes,
            self.v_bytes,
        )
        return sum(parts) + 256

    @property
    def points(self) -> int:
        """Of the transforms; each takes as many GEMMs as there are products of halves."""
        return prod(way.window for way in self.ways)

    @property
    def block(self) -> int:
        return self.cut.block

    @property
    def rows(self) -> int:
        """Rows of a chunk, all classes of phases one behind the other, each filled up to whole tiles."""
        return sum(self.tile_blocks) * self.tile.rows

    @property
    def room(self) -> int:
        """Tiles that a task's table has room for."""
        return round_up(self.block, self.tile.lanes * self.halves)


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int, halves: int = 1) -> Blocking:
    """Tiles a block as the second-level cache holds their transforms; output channels in chunks beside them.

    Tile and chunk depend on the number of tiles only where there are very few: packed weights and code depend on them.
    Two halves of a block's tiles mix, so that each block is one image's.
    """
    spec, images = problem.spec, problem.batch if halves > 1 else 1
    m, groups, length = spec.out_channels // spec.groups, spec.groups, columns.count(problem.batch, lines(problem)) // images
    alike = 0 if halves == 1 or spec.rank == 1 or length > FEW else length // halves
    tile, chunk, most = _tile(spec, problem.dtype, target, halves, alike)
    pieces, width, alone = max(1, ceil(length / most)), tile.width * halves, groups * images
    if pieces * alone < 4 * threads and length >= 4 * width:
        pieces = max(pieces, min(ceil(4 * threads / alone), length // (2 * width)))
    if pieces > 1 and alone < threads:
        pieces = round_up(pieces, threads)
    unit = tile.lanes * halves if length < 4 * width else width
    block = round_up(ceil(length / pieces), unit)
    cut = columns.cut(length, unit, ceil(length / block), images)  # as few as are no longer: weights stream past each
    if halves == 1:
        cut = _by_position(problem, tile, cut, most)
    parts = cut.count * groups
    if parts < 2 * threads and chunk >= m // halves > 1:
        chunk = _choose_chunk(spec, tile, halves, ceil(m // halves / threads))
    return sized(problem, tile, halves, chunk, cut, _splits(spec, tile, halves, chunk, parts, threads))


def _by_position(problem: Problem, tile: Tile, cut: columns.Cut, most: int) -> columns.Cut:
    """The cut by positions where that saves products: whole blocks of last tiles, one position in many images, do with fewer."""
    spec, batch, count = problem.spec, problem.batch, cut.length // problem.batch
    if count == 1 or not any(spare(problem)):
        return cut
    m, (d, h, _) = spec.out_channels // spec.groups, lines(problem)
    strips = rows_done(spec, _tile_blocks(spec, m, tile), tile) // tile.rows
    unit = tile.lanes if batch < 4 * tile.width else tile.width
    other = columns.cut(batch, unit, ceil(batch / most), count)

    def cycles(cut: columns.Cut) -> float:
        apart, sizes = cut.parts > 1, cut.sizes()
        ends = zip(positions(problem), useless(problem, apart), strict=True)
        share = prod(1 - 1 / (WINDOW * n) if out else 1.0 for n, out in ends)
        gemm = strips * depth_of(spec) * share * sum(number * columns_cycles(tile, size) for number, size in sizes)
        rows = m * d.out_step * h.out_step * sum(number * ceil(size / tile.lanes) for number, size in sizes)
        return gemm + ALONE * rows * apart

    return other if cycles(other) < BY_POSITION * cycles(cut) else cut


def positions(problem: Problem) -> tuple[int, int]:
    """Tiles in each of the two inner dimensions."""
    _, h, w = lines(problem)
    return h.positions, w.positions


def useless(problem: Problem, by_position: bool) -> tuple[bool, bool]:
    """Whether the last tiles of the two inner dimensions leave out their windows' last point, for which blocks hold them alone."""
    h, w = (out and (by_position or n == 1) for out, n in zip(spare(problem), positions(problem), strict=True))
    return h, w


@lru_cache(maxsize=512)
def _tile(spec: ConvSpec, dtype: str, target: Target, halves: int, alike: int) -> tuple[Tile, int, int]:
    """(the register tile, output channels a chunk, tiles a block at most) for the fewest cycles, padding included.

    `alike` is the number of columns where they are few and always as many, else 0.
    """
    m, phases = spec.out_channels // spec.groups // halves, prod(steps(spec)[0])
    points, depth, item = len(points_of(spec)) * PRODUCTS[halves], depth_of(spec) // halves, SIZES[ELEMENTS[dtype]]
    offers: list[tuple[float, int, tuple[Tile, int, int]]] = []
    for tile in microkernel.tiles(ELEMENTS[dtype], target):
        if tile.vectors == 1:
            continue
        most = int(target.l2 * 0.35 / (points * depth * item)) // tile.width * tile.width
        most = min(max(most, 2 * tile.width), 512)
        room = max(1, int(target.l2 * 0.3 / (points * most * item * phases)))
        chunk = _choose_chunk(spec, tile, halves, min(m, max(room, ceil((tile.rows if halves == 1 else 48) / phases))))
        cycles = ceil(m / chunk) * rows_done(spec, _tile_blocks(spec, chunk, tile), tile) * microkernel.step_cycles(tile)
        spilt = max(0.0, points * depth * most * item / target.l2 - 1.0)
        ends = columns_cycles(tile, alike) / (alike / tile.width * microkernel.step_cycles(tile)) if alike else 1.0
        offers.append((cycles / (tile.rows * tile.width) * (1 + SPILT * spilt) * ends, len(offers), (tile, chunk, most * halves)))
    return min(offers)[2]


def tiles_of(tile: Tile, count: int) -> tuple[int, int]:
    """Wide tiles of so many columns, and narrow ones at the end."""
    return divmod(ceil(count / tile.lanes), tile.vectors)


def columns_cycles(tile: Tile, count: int) -> float:
    """Cycles of a step of so many columns."""
    wide, narrow = tiles_of(tile, count)
    return wide * microkernel.step_cycles(tile) + narrow * microkernel.step_cycles(replace(tile, vectors=1))


def _splits(spec: ConvSpec, tile: Tile, halves: int, chunk: int, parts: int, threads: int) -> int:
    """Into how many shares to cut the chunks of each of `parts` equal parts, each of which transforms its input anew.

    The busiest thread is to be done first; tasks that are fewer than three a thread leave none for it to give away where
    another is held up: one a thread instead of three costs 12 % of 1024 -> 256, k4s2, on 16 x 16.
    """
    chunks = ceil(spec.out_channels // spec.groups // halves / chunk)
    rows = chunks * rows_done(spec, _tile_blocks(spec, chunk, tile), tile) * PRODUCTS[halves]
    gemm = rows * microkernel.step_cycles(tile) / (tile.rows * tile.vectors)
    transform = TRANSFORM[halves] * len(points_of(spec)) / gemm  # of one part's input, beside its products

    def time(splits: int) -> float:
        tasks = parts * splits
        alone = 0.12 * max(0.0, 1.5 - tasks / threads / 2)
        return ceil(tasks / threads) * (ceil(chunks / splits) / chunks + transform) * (1 + alone)

    offers = {ceil(chunks / ceil(chunks / n)) for n in range(1, max(1, min(chunks, 8 * threads // parts)) + 1)}
    return min(sorted(offers), key=time) if threads > 1 else 1


def sized(problem: Problem, tile: Tile, halves: int, chunk: int, cut: columns.Cut, splits: int) -> Blocking:
    """The blocking of a chosen tile, output channels a chunk, blocks of tiles and shares of a block's chunks."""
    spec, item, ways = problem.spec, problem.itemsize, ways_taken(problem.spec)
    c, m, (_, in_steps) = spec.in_channels // spec.groups, spec.out_channels // spec.groups, steps(spec)
    depth, points, products = depth_of(spec) // halves, len(points_of(spec)), len(points_of(spec)) * PRODUCTS[halves]
    block, wide, chunks = cut.block, cut.block // halves, ceil(m // halves / chunk)
    room = round_up(block, tile.lanes * halves)
    tile_blocks = _tile_blocks(spec, chunk, tile)
    rows = sum(tile_blocks) * tile.rows
    panels = ceil(wide / tile.width)
    v_point = panels * depth * tile.width + 16
    m_pitch = round_up(wide, 16) + 16 * (round_up(wide, 16) // 16 % 2 == 0)
    m_point = rows * m_pitch + (16 if rows * m_pitch % 32 == 0 else 0)
    code = code_of(problem, tile, halves)
    out_step = lines(problem)[2].out_step
    return Blocking(
        tile=tile, halves=halves, ways=ways, chunk=chunk, chunks=chunks, tile_blocks=tile_blocks, cut=cut,
        splits=splits, depth=depth, depth_part=ceil(depth / ceil(depth / DEPTH[halves])),
        v_point=v_point, m_pitch=m_pitch, m_point=m_point,
        table_bytes=columns.table_bytes(room, tile.lanes),
        found_bytes=round_up(code.found_bytes(depth_of(spec) // c // prod(in_steps[1:]), room), 64),
        line_bytes=round_up(max(out_step, prod(code.reach)) * tile.lanes * item, 64),
        lines_bytes=round_up(ways[1].outputs * out_step * tile.lanes * item, 64),
        quads_bytes=round_up(4 * prod(in_steps[1:]) * points * tile.lanes * item, 64) if halves > 1 else 0,
        m_bytes=round_up(products * m_point * item, 64), v_bytes=round_up(products * v_point * item, 64),
        useless=useless(problem, halves == 1 and cut.parts > 1),
    )  # fmt: skip


def rows_done(spec: ConvSpec, tile_blocks: tuple[int, ...], tile: Tile) -> int:
    """Rows of a chunk, summed over the points: the classes that are live there, filled up to whole tiles."""
    if not spec.transposed:
        return len(points_of(spec)) * sum(tile_blocks) * tile.rows
    return sum(blocks * points for blocks, points in zip(tile_blocks, _live_points(spec), strict=True)) * tile.rows


@lru_cache(maxsize=512)
def _live_points(spec: ConvSpec) -> tuple[int, ...]:
    """At how many points each class is live."""
    kept = [live(spec, point) for point in points_of(spec)]
    return tuple(sum(i in classes_ for classes_ in kept) for i in range(len(classes(spec))))


def _tile_blocks(spec: ConvSpec, chunk: int, tile: Tile) -> tuple[int, ...]:
    """Strips of a chunk's rows, class by class."""
    return tuple(ceil(chunk * len(residues) / tile.rows) for residues in phases_of(spec))


def _choose_chunk(spec: ConvSpec, tile: Tile, halves: int, most: int) -> int:
    """Output channels at a time, at most so many, for the least padding of tiles; larger chunks where little speaks for less."""

    def cost(chunk: int) -> float:
        rows = rows_done(spec, _tile_blocks(spec, chunk, tile), tile)
        return ceil(spec.out_channels // spec.groups // halves / chunk) * (rows + 0.02 * most)

    return min(range(max(1, most // 2), most + 1), key=lambda chunk: (cost(chunk), -chunk))


def code_of(problem: Problem, tile: Tile, halves: int) -> Code:
    """What of a problem changes the code."""
    d, h, w = (replace(way, groups=1) for way in ways_taken(problem.spec))  # groups are numbers of the job
    _, (_, ph, pw) = steps(problem.spec)
    out_step = lines(problem)[2].out_step
    uneven = problem.spec.transposed and len(classes(problem.spec)) > 1
    finish = store.store_of(tile.element, tile.lanes, out_step, problem.spec.activation)
    return Code(tile, halves, (d, h, w), (ph, pw), uneven, finish)
