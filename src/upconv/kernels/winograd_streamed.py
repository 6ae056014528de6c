"""Winograd's minimal filtering for few tiles of many channels: weights are transformed as they are read.

Where images are small, weights are what a call is about, and transformed ones are four to six times as many: 1024 -> 512, k4 s2,
has 34 MB of them, and 210 MB in windows of five, to come from memory for a handful of tiles. Here they stay as they are, and each
vector of output channels is transformed in registers right before it meets the points of all tiles (`winograd_streamed_code.py`).
Windows are of five, with phases in tiles of their own where they begin apart (`winograd_middle.py`), else of four.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod
from typing import Any

from upconv.codegen.ir import SIZES
from upconv.codegen.target import Target
from upconv.kernels import columns, register_tile, winograd
from upconv.kernels import job as jobs
from upconv.kernels.geometry import round_up
from upconv.kernels.register_tile import ELEMENTS, Tile
from upconv.kernels.winograd_blocks import Blocking, sized
from upconv.kernels.winograd_depth import classes, depth_of
from upconv.kernels.winograd_tiles import MIDDLE, Tiling, dilated, lines, tiling_of, too_short
from upconv.kernels.winograd_work import far_sums, rows_done
from upconv.spec import ConvSpec, Problem

NAME = "winograd_streamed"
M_BYTES = 128 << 10
"""Of sums, of a chunk of output channels."""
READ, COMBINED, INPUT, BACK = (1.08, 1.08, 1.8), 1.5, (1.27, 1.27, 2.0), 0.245
"""Cycles, as estimates count them: of a product, in multiply-adds; of an operation on weights, likewise; of a point of a channel,
from x to V, and of sums, from M to outputs, for each of a vector's tiles. Fitted to 100 times of 52 layers, which they meet within
6 %, and a fifteenth more, which suits the choice; the third of `Target.kind` fitted to 52 more, within 20 %."""
ALONE = ((1.0, 1.0), (1.0, 1.0), (1.2, 9.0))
"""How many times as dear a product and a sum are of a single tile, by `Target.kind`: its outputs are stored one by one. Measured:
18 layers were taken to be 1.35 times as fast as they are, 96 -> 320 k3s2 on 4 x 4 2.1 times."""
FASTER = 1.2
"""How many times as fast weights come as where they are not asked for so far ahead. Measured."""


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    reason = winograd.rejects(problem, target) or dilated(problem.spec)
    if reason:
        return reason
    if sum(way.transformed for way in tiling_of(problem.spec).ways) < 2:
        return "one dimension to transform: transformed weights are few"
    found = classes(tiling_of(problem.spec))
    if any(c.part[0] for c in found) or (not problem.spec.transposed and any(any(c.short) for c in found)):
        return "planes of x, or phases of its outer dimension, that lack a tap: their sums have other lengths"
    tiles, most = columns.count(problem.batch, lines(problem, _tiling(problem.spec).ways)), target.lanes(problem.itemsize)
    if tiles > most:
        return f"{tiles} tiles, and one vector holds {most}: transformed weights are met often enough"
    return None


def _tiling(spec: ConvSpec) -> Tiling:
    """In windows of five; of four for two taps a phase without padding, where images of 8 pixels a side have outputs for nine."""
    middle = tiling_of(spec, MIDDLE)
    uncropped = spec.transposed and middle.ways[2].taps == 2 and not any(before for before, _ in spec.padding[-2:])
    return tiling_of(spec) if uncropped or too_short(spec) else middle


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """One block of all tiles; output channels in chunks, of which every thread has one share.

    What code is for are one tile, and up to four, eight and sixteen, as many as a vector holds; four in a pass, or five where these
    leave fewer idle.
    """
    spec, tiling, element = problem.spec, _tiling(problem.spec), ELEMENTS[problem.dtype]
    tiles, whole = columns.count(problem.batch, lines(problem, tiling.ways)), target.lanes(problem.itemsize)
    alone = tiles == 1 and _together(tiling, target, 2) > 0
    rows, lanes = (2 if alone else 1) * whole, max(4, 1 << (tiles - 1).bit_length())
    tile = Tile(element, lanes, rows, 1, 1 if alone else lanes, asks=False, cycles=1 / target.fmas, stalls=target.stalls)
    m, point = spec.out_channels // spec.groups, lanes * SIZES[element] * prod(spec.stride if spec.transposed else ())
    share = ceil(m / threads)
    chunk = round_up(ceil(share / ceil(share * len(tiling.points) * point / M_BYTES)), rows)
    splits = jobs.shares(ceil(m / chunk), spec.groups, threads, 1)
    passes = [n for n in (4, 5) if n <= _together(tiling, target, 1)] or [2]
    each = min(passes, key=lambda n: ceil(tiles / n) * n)
    return sized(problem, tiling, tile, 1, chunk, columns.cut(tiles, lanes, 1), splits, target, threads, each)


def _together(tiling: Tiling, target: Target, vectors: int) -> int:
    """Tiles whose sums of so many vectors of rows registers hold at a point of h, beside combined weights, one of these and a
    broadcast. The sums of one tile and one vector would wait for each other."""
    _, _, w = tiling.ways
    return (target.registers - 1 - (w.taps + 1) * vectors) // (w.window * vectors)


def _columns(how: Blocking) -> tuple[int, int]:
    """(passes, columns of each)."""
    each = 1 if how.tile.turned == 1 else how.streamed
    return ceil(how.cut.length / each), each


def _dearer(how: Blocking, target: Target) -> tuple[float, float]:
    """See ALONE."""
    return ALONE[target.kind] if how.tile.turned == 1 else (1.0, 1.0)


def _products(problem: Problem, how: Blocking, target: Target) -> float:
    """Cycles of the products, and of the weights' transforms, of all output channels."""
    (h, w), (passes, each) = how.ways[1:], _columns(how)
    read, operations = READ[target.kind], 0.0  # a pass, of a chunk's strips
    for c, strips in zip(classes(how.tiling), how.tile_blocks, strict=False):  # a convolution's are of planes: it has one
        (taps_h, points_h), (taps_w, points_w) = (
            (way.taps - short, way.window - short) for way, short in zip((h, w), c.short, strict=True)
        )
        combined = (points_h - 2) * (taps_h - 1) * taps_w + points_h * (points_w - 2) * (taps_w - 1)
        depth = depth_of(how.tiling, c.part)[1]
        operations += strips * depth * (read * points_h * points_w * each + COMBINED * combined)
    vectors = how.tile.rows / target.lanes(problem.itemsize)
    return how.chunks * operations * vectors * passes * problem.spec.groups * how.tile.cycles * _dearer(how, target)[0]


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: products and the weights' transforms, those of x and of the sums, the bytes of weights and outputs."""
    spec = problem.spec
    width = how.points * how.tile.lanes
    back = BACK * _dearer(how, target)[1]
    transforms = INPUT[target.kind] * how.depth * how.splits * width + back * how.chunks * how.rows * width
    weights = prod(spec.weight_shape) * problem.itemsize
    moved = float(prod(problem.input_shape) * how.splits + prod(problem.output_shape)) * problem.itemsize
    moved += far_sums(how.chunks * how.rows * width * spec.groups * problem.itemsize, how.m_bytes, target)
    share = jobs.helped_share([(count * spec.groups, time) for count, time in how.tasks], ceil(how.chunks / how.splits), threads)
    return register_tile.seconds(target, share, _products(problem, how, target), transforms * spec.groups, moved, weights / FASTER)


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds of the products, columns included that fill up the last pass; not those of the weights' transforms."""
    rows = how.chunks * rows_done(how.tiling, how.tile_blocks, how.tile)
    return round(rows * how.depth * prod(_columns(how)) * problem.spec.groups)


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    apart = "phases in tiles of their own, " if any(way.apart for way in how.ways) else ""
    return f"weights transformed as they are read, {apart}{how.points} points, {how.cut.length} tiles x {how.chunk} channels"


def __getattr__(name: str) -> Any:
    """What this module does not say itself is as Winograd has it."""
    return getattr(winograd, name)
