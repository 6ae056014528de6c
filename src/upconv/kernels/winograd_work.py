"""What a block of Winograd tiles costs: cycles of its transforms, rows of its GEMMs, how long its sums are."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from upconv.codegen.target import LINE, Target
from upconv.kernels.register_tile import Tile
from upconv.kernels.strassen_products import PRODUCTS
from upconv.kernels.winograd_depth import classes, depth_of, live, phases_of
from upconv.kernels.winograd_tiles import Tiling, tiling_of
from upconv.spec import ConvSpec

NARROW_PART, WIDE_PART, WIDE_PART_OF_TWO, WIDE_PART_SHORT = 256, 128, 96, 64
WIDEST_PART, STREAMED_PART, SLICED_PART = (48, 64), 64, {2: 256, 4: 80}
"""Products that are added up at a time; the parts are added up afterwards. Short sums round less, which is what pays for wide
windows (in one of two transformed dimensions: OF_TWO; in both, or where phases lack taps, so that the direct sum is shorter: SHORT;
of eight, of two taps and of more: WIDEST) and for products of halves or quarters: all stay under four times the direct sum's error.
Parts of 256 cost nothing, of 128 one per cent, of 96 two and of 64 three. Measured. Weights that are transformed as they are read
(STREAMED) are read once a point of h, as many at a time as the near caches hold."""


TRANSFORM, WIDE_TRANSFORM, SLICED_TRANSFORM = (3.0, 7.0), (3.5, 9.0), {2: 20.0, 4: 160.0}
"""Cycles that one vector of a channel takes a point, from x to V, besides the reading of x: where one dimension is transformed, and
two, and where windows are wide; for products of halves or quarters, a vector of one slice, all slices. Measured over 60 layers, of
k = s over 78."""

MIDDLE_TRANSFORM, MIDDLE_SPILT, MIDDLE_MOST = (11.0, 10.0, 15.0), (4.0, 4.0, 8.0), (12.0, 16.0, 32.0)
"""The same for windows of five in both dimensions: of two taps, with 16 registers, which do not hold a window, and with 32 (by
`Target.kind`); more for each second-level cache that their V fills, one for each phase that stands apart; and at most, as for more
taps. Measured over 318 layers, with 32 registers: what is chosen takes 1.012 of the fastest kernel's time, where at most for all
took 1.018; over 63 of them with 16 to 128 channels 1.016 and 1.047, with 16 registers 1.029 and 1.042; over 173 others with these
1.007, where 14 at most took 1.010. The third were fitted to 55; with 28 at most, not 32, they would now take these windows for
256 -> 128 k4 s2 on 64 images of 8 x 8, which takes 1.17 times as long with them."""

ANEW, MIDDLE_ANEW, WIDE_ANEW = 5.0, 12.0, 6.5
"""The same for a share of a block's chunks, which reads x and transforms it anew. Measured."""

BACK, WIDE_BACK, SLICED_BACK = 2.0, 3.0, {2: 26.0, 4: 300.0}
"""Cycles that one vector of sums takes a point, from M to where outputs are stored, likewise. Measured."""

SHORT = 0.75
"""Part of these, to V and back, that vectors of less than a line take, but for windows of five. Measured over 281 layers with AVX2:
what is chosen takes 1.010 of the fastest kernel's time, where it took 1.017."""


def transform_cycles(tiling: Tiling, slices: int, v_bytes: int, target: Target) -> float:
    """See TRANSFORM."""
    if slices > 1:
        return SLICED_TRANSFORM[slices] * _part_of_line(target)
    if tiling.middle:
        most = MIDDLE_MOST[target.kind]
        near = MIDDLE_TRANSFORM[target.kind] if tiling.ways[2].taps == 2 else most
        return min(near + MIDDLE_SPILT[target.kind] * v_bytes / target.l2, most)
    several = sum(way.transformed for way in tiling.ways) > 1
    return (WIDE_TRANSFORM if tiling.wide else TRANSFORM)[several] * _part_of_line(target)


def _part_of_line(target: Target) -> float:
    """See SHORT."""
    return SHORT if target.vector_bytes < LINE else 1.0


def anew_cycles(tiling: Tiling, slices: int) -> float:
    """See ANEW."""
    if slices > 1:
        return SLICED_TRANSFORM[slices]
    if tiling.middle:
        return MIDDLE_ANEW
    return WIDE_ANEW if tiling.wide else ANEW


def back_cycles(tiling: Tiling, slices: int, target: Target) -> float:
    """See BACK."""
    if slices > 1:
        return SLICED_BACK[slices] * _part_of_line(target)
    return (WIDE_BACK if tiling.wide else BACK) * _part_of_line(target)


SUMS_NEAR, SUMS_FAR = (0.4, 1.0), (0, 0, 1)
"""Second-level caches that a chunk's sums may fill before they are stored, and that they fill when all of them leave it; and how
often they then count as moved, by `Target.kind`: Intel's servers fetch what is beyond it slowly. A single channel of stride 32 has
3 MB of sums. Measured twice over 29 layers of 2 to 64 channels and strides of 4 to 32: what is chosen takes 1.06 and 1.03 of the
fastest kernel's time, where it took 1.12 and 1.09."""


def far_sums(sums_bytes: float, chunk_bytes: int, target: Target) -> float:
    """Bytes that count as moved of so many of sums in all, in chunks of so many."""
    near, far = SUMS_NEAR
    return SUMS_FAR[target.kind] * sums_bytes * min(1.0, max(0.0, (chunk_bytes / target.l2 - near) / (far - near)))


def part_of(tiling: Tiling, slices: int, streamed: bool) -> int:
    """Products that are added up at a time: the depth in equal parts."""
    depth = tiling.sum_depth // slices
    return ceil(depth / ceil(depth / (STREAMED_PART if streamed else _most_of(tiling, slices))))


def _most_of(tiling: Tiling, slices: int) -> int:
    if slices > 1:
        return SLICED_PART[slices]
    if not tiling.wide:
        return NARROW_PART
    if tiling.widest:
        return WIDEST_PART[all(way.taps > 2 for way in tiling.ways if way.transformed)]
    if sum(way.transformed for way in tiling.ways) == 1:
        return WIDE_PART
    if tiling.middle or any(any(c.short) for c in classes(tiling)):
        return WIDE_PART_SHORT
    return WIDE_PART_OF_TWO


def column_bytes(tiling: Tiling, slices: int, itemsize: int) -> int:
    """Of V, for a tile of each half: all points' products of the whole depth."""
    return len(tiling.points) * PRODUCTS[slices] * (tiling.depth // slices) * itemsize * tiling.interleaved


MOST_NUMBERS = 1 << 17
"""What a tile's windows of four may be transformed to: in two dimensions 8192 channels and groups of taps. Blocks are 32 tiles and
more, and windows of eight would take up to 34 MB of them a thread."""


def too_deep(spec: ConvSpec) -> str | None:
    """Why the windows of a layer that has tiles are too many for a block, or None."""
    numbers = column_bytes(tiling_of(spec), 1, 1)
    return f"{numbers} numbers in a tile's transformed windows: a block would leave the caches" if numbers > MOST_NUMBERS else None


def rows_done(tiling: Tiling, tile_blocks: tuple[int, ...], tile: Tile) -> float:
    """Rows of a chunk, summed over the points: the classes that are live there, filled up to whole tiles.

    Those whose sums are shorter count as that part.
    """
    if not tiling.spec.transposed:
        return len(tiling.points) * sum(tile_blocks) * tile.rows
    return sum(blocks * points for blocks, points in zip(tile_blocks, _live_points(tiling), strict=True)) * tile.rows


@lru_cache(maxsize=512)
def _live_points(tiling: Tiling) -> tuple[float, ...]:
    """At how many points each class is live, for that part of the depth."""
    found = []
    for i, c in enumerate(classes(tiling)):
        points = sum(i in live(tiling, point, c.part) for point in tiling.points)
        found.append(points * depth_of(tiling, c.part)[1] / tiling.depth)
    return tuple(found)


def tile_blocks_of(tiling: Tiling, chunk: int, tile: Tile) -> tuple[int, ...]:
    """Strips of a chunk's rows, class by class."""
    return tuple(ceil(chunk * len(residues) / tile.rows) for residues in phases_of(tiling))
