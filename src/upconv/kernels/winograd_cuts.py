"""How the tiles of a Winograd layer are cut into blocks, and a block's output channels into shares: what threads have to do."""

from __future__ import annotations

from math import ceil, prod

from upconv.codegen.target import Target
from upconv.kernels import columns, register_tile
from upconv.kernels import job as jobs
from upconv.kernels.geometry import round_up
from upconv.kernels.register_tile import Tile
from upconv.kernels.strassen_products import PRODUCTS
from upconv.kernels.winograd_tiles import Tiling, Way, lines, spare
from upconv.kernels.winograd_work import anew_cycles, column_bytes, rows_done, tile_blocks_of
from upconv.spec import Problem

ALONE, BY_POSITION = 5.6, 0.95
"""Cycles that an output of a row takes longer where each tile's are stored by themselves, and the share of the cycles that blocks
of one position each should leave. Measured."""

TASKS = 12
"""Tasks a thread where blocks are large enough, of which threads share the last. See `direct_way.TASKS`."""

BEGIN = 8000.0
"""Cycles that a task takes before its sums: to list its columns, to clear what it has to. Measured."""

EQUAL = 0.97
"""The share of the busiest thread's time that blocks more alike, which end in narrow tiles, should leave."""

SMALL, IN_PARTS = 256, 0.99
"""Tiles of a slice of an image that shares blocks with others, at most, for the parts of a large one lie far apart; and the share
of the cycles that this should leave. Measured."""

LONGER = 1.05
"""What longer blocks cost that fill more than half of the second-level cache with their V. Measured: 1.03 to 1.16 of 128 -> 3 k4s2
on 128 x 128, which an even number of blocks would spare 3 %; that number gains 1.03 over 28 other layers."""


def columns_of(problem: Problem, tiling: Tiling, slices: int, target: Target) -> tuple[int, int]:
    """(tiles, of how many images apart).

    The slices of a block's tiles mix, so that a block is one image's, and slices are vectors in turn; or slices are parts of each
    image, filled up to the same length, and images share blocks: small ones fill neither vectors nor register tiles.
    """
    tiles = columns.count(problem.batch, lines(problem, tiling.ways))
    if slices == 1 or problem.batch == 1:
        return tiles, 1
    image = tiles // problem.batch
    in_parts = problem.batch * round_up(image, slices)
    usual = register_tile.best_tile(problem.dtype, target, problem.spec.out_channels)
    apart = problem.batch * register_tile.columns_cycles(usual, ceil(image / slices))
    fewer = register_tile.columns_cycles(usual, in_parts // slices) < IN_PARTS * apart
    return (in_parts, 1) if image < SMALL * slices and fewer else (image, problem.batch)


def offered(
    problem: Problem, tiling: Tiling, tile: Tile, slices: int, of: tuple[int, int], few: bool, most: int, threads: int
) -> list[columns.Cut]:
    """Ways to cut the tiles (see `columns_of`) into blocks of about `most`, the usual one first; of `few`, finer ones as well."""
    (length, images), groups = of, problem.spec.groups
    pieces, width, alone = max(1, ceil(length / most)), tiling.tiles(tile.width, tile.lanes) * slices, groups * images
    if pieces * alone < TASKS * threads and length >= 4 * width:
        pieces = max(pieces, min(ceil(TASKS * threads / alone), length // (2 * width)))
    if pieces > 1 and alone < threads:
        pieces = round_up(pieces, threads)
    unit = tile.lanes * slices if length < 4 * width else width
    block = round_up(ceil(length / pieces), unit)
    usual = columns.cut(length, unit, ceil(length / block), images)  # as few as are no longer: weights stream past each
    cuts = [usual]
    if unit == width:  # as many, but more alike
        cuts.append(columns.cut(length, tile.lanes * slices, usual.pieces, images))
    if usual.pieces > threads and usual.count * groups % threads:  # one thread would have a block more
        cuts.append(columns.cut(length, unit, usual.pieces // threads * threads, images))
    if slices == 1 and few:
        finest = length // width + 1 if length >= width else length // tile.lanes
        cuts += [columns.cut(length, tile.lanes, pieces) for pieces in range(2, finest + 1)]
    return [_by_position(problem, tiling, tile, cut, most) for cut in cuts] if slices == 1 else cuts


def best(
    problem: Problem, tiling: Tiling, tile: Tile, slices: int, chunk: int, cuts: list[columns.Cut], target: Target, threads: int
) -> tuple[columns.Cut, int]:
    """The cut that leaves the busiest thread least to do, and the shares of its blocks' chunks."""
    room = max(cuts[0].block, 0.5 * target.l2 * slices / column_bytes(tiling, slices, problem.itemsize))
    shared = [_shared(problem, tiling, tile, slices, chunk, cut, threads) for cut in cuts]
    times = [time * (LONGER if cut.block > room else 1.0) for cut, (time, _) in zip(cuts, shared, strict=True)]
    least = times.index(min(times))
    least = least if times[least] < EQUAL * times[0] else 0
    return cuts[least], shared[least][1]


def _by_position(problem: Problem, tiling: Tiling, tile: Tile, cut: columns.Cut, most: int) -> columns.Cut:
    """The cut by positions where that saves products: whole blocks of last tiles, one position in many images, do with fewer."""
    spec, batch, count = problem.spec, problem.batch, cut.length // problem.batch
    if count == 1 or not any(spare(problem, tiling.ways)):
        return cut
    m, (d, h, _) = spec.out_channels // spec.groups, lines(problem, tiling.ways)
    strips = rows_done(tiling, tile_blocks_of(tiling, m, tile), tile) // tile.rows
    wide = tiling.tiles(tile.width, tile.lanes)
    unit = tile.lanes if batch < 4 * wide else wide
    other = columns.cut(batch, unit, ceil(batch / most), count)

    def cycles(cut: columns.Cut) -> float:
        apart, sizes = cut.parts > 1, cut.sizes()
        gemm = (
            strips
            * tiling.depth
            * _needed(problem, tiling.ways, apart)
            * sum(number * register_tile.columns_cycles(tile, tiling.columns(size, tile.lanes)) for number, size in sizes)
        )
        rows = m * d.out_step * h.out_step * sum(number * ceil(size / tile.lanes) for number, size in sizes)
        return gemm + ALONE * tile.lanes * rows * apart

    return other if cycles(other) < BY_POSITION * cycles(cut) else cut


def positions(problem: Problem, ways: tuple[Way, Way, Way]) -> tuple[int, int]:
    """Tiles in each of the two inner dimensions."""
    _, h, w = lines(problem, ways)
    return h.positions, w.positions


def useless(problem: Problem, ways: tuple[Way, Way, Way], by_position: bool) -> tuple[bool, bool]:
    """Whether the last tiles of the two inner dimensions leave out their windows' last point, for which blocks hold them alone."""
    h, w = (out and (by_position or n == 1) for out, n in zip(spare(problem, ways), positions(problem, ways), strict=True))
    return h, w


def _needed(problem: Problem, ways: tuple[Way, Way, Way], by_position: bool) -> float:
    """The share of the products that is not left out."""
    ends = zip(positions(problem, ways), useless(problem, ways, by_position), ways[1:], strict=True)
    return prod(1 - 1 / (way.window * n) if out else 1.0 for n, out, way in ends)


def _shared(
    problem: Problem, tiling: Tiling, tile: Tile, slices: int, chunk: int, cut: columns.Cut, threads: int
) -> tuple[float, int]:
    """(time of the busiest thread, shares of a block's chunks)."""
    spec, needed = problem.spec, _needed(problem, tiling.ways, slices == 1 and cut.parts > 1)
    chunks, parts = ceil(spec.out_channels // spec.groups // slices / chunk), cut.count * spec.groups
    rows = chunks * rows_done(tiling, tile_blocks_of(tiling, chunk, tile), tile) * PRODUCTS[slices]
    gemm = needed * rows * register_tile.step_cycles(tile) / (tile.rows * tile.vectors)
    transform = anew_cycles(tiling, slices) * len(tiling.points) / gemm  # of one part's input, beside its products
    columns_ = [(count * spec.groups, tiling.columns(ceil(size / slices), tile.lanes)) for count, size in cut.sizes()]
    sizes = [(count, register_tile.columns_cycles(tile, number)) for count, number in columns_]
    begin = BEGIN * tile.rows / (needed * rows * tiling.depth / slices)

    def time(splits: int) -> float:
        # of several blocks every share counts as if it transformed: fewer, larger ones in shares were 0.93 to 0.97 times as fast
        again = transform * min(1.0, threads / splits) if cut.count == 1 else transform
        tasks = [(count, time + begin) for count, time in jobs.tasks_of(sizes, chunks, splits, again)]
        pieces = ceil(chunks / splits)
        return jobs.helped(tasks, pieces, threads) * jobs.held_up(parts * splits * pieces, threads)

    least, most = (max(1, min(chunks, ceil(n * threads / parts))) if threads > 1 else 1 for n in (1, 8))
    offers = {ceil(chunks / ceil(chunks / n)) for n in range(least, most + 1)}
    return min((time(splits), splits) for splits in offers)
