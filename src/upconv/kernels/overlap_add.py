"""Overlap-add: every input position's whole patch by one GEMM without any halo, then the patches added up where they meet.

For small images with many channels. A band has a zero column for every few real ones there, and phases of a cropped image
have positions of their own; here the GEMM's columns are exactly the input positions of a block of images, its rows are
(output channel, tap) pairs and its depth is the input channels. The patches stay in the second-level cache, where each
phase of the output gathers its taps' rows (`fold`); the rows are then woven and stored as the direct kernel's are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import numpy as np

from upconv.codegen.target import Target
from upconv.kernels import columns, overlap_add_code, pack, register_tile, store, weights
from upconv.kernels import job as jobs
from upconv.kernels.columns import Line
from upconv.kernels.geometry import Axis, Band, folded, round_up
from upconv.kernels.register_tile import Tile
from upconv.shapes.phase import phase_taps
from upconv.spec import Problem

NAME = "overlap_add"
EXACT = True
MOST_POSITIONS = 4096
"""Input positions of an image at most: a task takes whole images, patches and all."""

LISTED = 20.0
"""Cycles of finding which lanes of a vector of positions a tap meets, once for all channels of a chunk. Measured."""

AWAY = 1.0
"""How many times x's own copying is what tiles take longer where a block's inputs have left the second-level cache: a line here
and a line there is read of them. Measured: 0 to 4 for 320 to 768 channels."""

ONCE = (1.0, 1.0, 1.25)
"""How many times as fast weights come that meet one tile's columns, as others, by `Target.kind`. Measured over 54 small images, 23
of them twice: what is chosen takes 1.04 and 1.03 of the fastest kernel's time, where it took 1.06 and 1.07."""

SLOTS = overlap_add_code.SLOTS


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops; a block is a number of whole images."""

    tile: Tile
    chunk: int
    chunks: int
    tile_blocks: int
    images: int
    block_count: int
    splits: int
    abreast: int
    x_pitch: int
    patch_pitch: int
    scratch_pitch: int
    room: int
    table_bytes: int
    line_bytes: int
    scratch_bytes: int
    patch_bytes: int
    found_bytes: int
    x_bytes: int

    @property
    def workspace_bytes(self) -> int:
        return self.table_bytes + self.line_bytes + self.scratch_bytes + self.patch_bytes + self.found_bytes + self.x_bytes + 256


# -- geometry ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def band(problem: Problem) -> Band:
    """The input without any halo."""
    axes = [Axis(n, n, 1, 1, 0, n, n, 0, 0, 1, ()) for n in problem.input_size]
    d, h, w = [*[Axis(1, 1, 1, 1, 0, 1, 1, 0, 0, 1, ())] * (3 - problem.spec.rank), *axes]
    return Band(problem.batch, (d, h, w))


@lru_cache(maxsize=512)
def lines(problem: Problem) -> tuple[Line, Line, Line]:
    """The output's positions as columns, cropped."""
    sizes = zip(problem.input_size, problem.output_size, problem.spec.stride, strict=True)
    found = [Line(n, out, 1, stride, 0, -(-out // stride)) for n, out, stride in sizes]
    d, h, w = [*[columns.LINE_OF_ONE] * (3 - problem.spec.rank), *found]
    return d, h, w


def _fold(problem: Problem) -> list[list[tuple[int, int, int, int]]]:
    """For each phase, row-major: (tap number, offsets) of the taps it gathers."""
    spec = problem.spec
    kernel = (1,) * (3 - spec.rank) + spec.kernel_size
    lists = [[[(0, 0)]]] * (3 - spec.rank)
    for k, s, (lo, _), d in zip(spec.kernel_size, spec.stride, spec.padding, spec.dilation, strict=True):
        lists.append([list(phase_taps(k, s, lo, d, a)) for a in range(s)])
    return [
        [((kd * kernel[1] + kh) * kernel[2] + kw, od, oh, ow) for kd, od in rows_d for kh, oh in rows_h for kw, ow in rows_w]
        for rows_d in lists[0]
        for rows_h in lists[1]
        for rows_w in lists[2]
    ]


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec = problem.spec
    if not spec.transposed:
        return "a convolution gathers, it does not scatter"
    if folded(spec):
        return folded(spec)
    if prod(problem.input_size) > MOST_POSITIONS:
        return f"{prod(problem.input_size)} positions an image: the patches would leave the cache"
    return None


CHUNKS, WORTH = (4, 8, 16, 32), 0.93
"""Output channels a chunk, as images are large or small, and the share of the cycles that a tile whose rows suit them should leave.
Measured: nine taps in 12 x 32 take 0.94 to 1.0 of the time in 14 x 32; what would gain less, 16 taps in 8 x 32, 0.98 to 1.04."""


@lru_cache(maxsize=512)
def _tile(dtype: str, target: Target, m: int, taps: int) -> Tile:
    """The tile of all rows as one, or another as wide that takes clearly fewer for chunks' rows, filled up to whole tiles."""
    usual, chunks = register_tile.best_tile(dtype, target, m * taps), [n for n in CHUNKS if n <= m]

    def cycles(tile: Tile) -> float:
        return sum(ceil(n * taps / tile.rows) / n for n in chunks) * register_tile.step_cycles(tile)

    offered = register_tile.tiles(usual.element, target)
    best = min((tile for tile in offered if (tile.vectors, tile.lanes) == (usual.vectors, usual.lanes)), key=cycles)
    return best if cycles(best) < WORTH * cycles(usual) else usual


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """Images a block as the cache holds, output channels in chunks whose patches fit beside them."""
    spec, item = problem.spec, problem.itemsize
    c, m, taps = spec.in_channels // spec.groups, spec.out_channels // spec.groups, prod(spec.kernel_size)
    tile = _tile(problem.dtype, target, m, taps)
    positions, out_positions = prod(problem.input_size), columns.count(1, lines(problem))
    phases = prod(spec.stride)
    images = max(1, int(target.l2 * 0.4 / (c * positions * item)))
    images = max(images, ceil(2 * tile.width / positions))
    images = min(images, max(1, ceil(problem.batch * spec.groups / threads)), problem.batch)
    block_count = ceil(problem.batch / images)
    images = ceil(problem.batch / block_count)
    width = images * positions
    patch_pitch = round_up(width + tile.lanes, 16)
    room = round_up(images * out_positions, tile.lanes)
    scratch_pitch = room + tile.lanes
    most = target.l2 * 0.35 / ((taps * patch_pitch + phases * scratch_pitch) * item)
    chunk = max(1, min(m, int(most)))
    least = ceil(4 * threads / (block_count * spec.groups))
    chunk = max(1, min(chunk, ceil(m / min(m, least))))
    parts = block_count * spec.groups

    def busiest(n: int) -> int:
        """Strips of tiles that the busiest thread has with chunks of n channels."""
        return ceil(parts * ceil(m / n) / threads) * ceil(n * taps / tile.rows)

    chunk = min(range(max(1, chunk // 2), chunk + 1), key=busiest)
    chunks = ceil(m / chunk)
    tile_blocks = ceil(chunk * taps / tile.rows)
    splits = 1
    if parts < 4 * threads and chunks > 1:
        splits = jobs.shares(chunks, parts, threads, 4)
    x_pitch = round_up(width + 2 * tile.lanes, 16)
    if x_pitch * item % 1024 == 0:
        x_pitch += 16
    tile = register_tile.reading(tile, chunks * tile_blocks * tile.rows * c * item, target)
    return Blocking(
        tile=tile, chunk=chunk, chunks=chunks, tile_blocks=tile_blocks, images=images, block_count=block_count,
        splits=splits, abreast=threads, x_pitch=x_pitch, patch_pitch=patch_pitch, scratch_pitch=scratch_pitch, room=room,
        table_bytes=max(columns.table_bytes(room, tile.lanes), pack.table_bytes(width, band(problem))),
        line_bytes=round_up(tile.lanes * spec.stride[-1] * item, 64),
        scratch_bytes=round_up((phases * chunk * scratch_pitch + tile.lanes) * item, 64),
        patch_bytes=round_up((tile_blocks * tile.rows * patch_pitch + 2 * tile.lanes) * item, 64),
        found_bytes=round_up((taps + 1) * overlap_add_code.found_size(tile), 64),
        x_bytes=round_up((c * x_pitch + 2 * tile.width) * item, 64),
    )  # fmt: skip


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """Per group [chunk][block][channel][row]; a row is an (output channel, tap) pair."""
    spec, rows, taps = problem.spec, how.tile.rows, prod(problem.spec.kernel_size)
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    step, channel_step, group_step = weights.strides(spec)
    channel = weights.row_channels(how.chunks, how.chunk, how.tile_blocks, rows, taps, m)
    tap = np.tile((np.arange(how.tile_blocks * rows) % taps).reshape(how.tile_blocks, rows), (how.chunks, 1))
    offsets = np.where(channel >= 0, channel * step + tap, -1)
    transform = weights.Transform(how.tile.element, rows, spec.transposed)
    return weights.Layout(transform, spec.groups, c, 1, channel_step, group_step, (offsets[:, None, None, None, :],), c)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer."""
    return (how.tile.rows, how.chunk)


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec, shape = problem.spec, lines(problem)
    d, h, w = shape
    c, m, taps = spec.in_channels // spec.groups, spec.out_channels // spec.groups, prod(spec.kernel_size)
    image_in, image_out = prod(problem.input_size), prod(problem.output_size)
    fold = _fold(problem)
    starts = np.cumsum([0] + [len(row) for row in fold])
    phases = [(len(row), int(start)) for row, start in zip(fold, starts, strict=False)]
    phase_rows = [(number * how.chunk, 1) for number in range(len(fold))]
    slots = {
        **columns.slots(shape, spec.in_channels, spec.out_channels), "x_channel": image_in, "room": how.room,
        "origin_d": 0, "origin_h": 0, "origin_w": 0, "pitch_d": d.size, "pitch_h": h.size, "pitch_w": w.size,
        "batch": problem.batch, "planes_d": 1, "planes_h": 1, "planes_w": 1, "lead": 0, "plane_pitch": how.x_pitch,
        "channel_pitch": how.x_pitch, "y_channel": image_out, **store.numbers(problem), "scratch_pitch": how.scratch_pitch,
        "phase_count": len(fold), "images_a_block": how.images, "block_count": how.block_count, "splits": how.splits,
        "abreast": how.abreast,
        "chunks_a_split": ceil(how.chunks / how.splits), "chunks": how.chunks, "chunk": how.chunk,
        "tile_blocks": how.tile_blocks, "channels_in": c, "channels_out": m,
        "weight_group": how.chunks * how.tile_blocks * how.tile.rows * c, "x_group": c * image_in, "tap_count": taps,
        "positions": image_in, "image_positions": d.positions * h.positions * w.positions,
        "x_pitch": how.x_pitch, "patch_pitch": how.patch_pitch,
        "table_bytes": how.table_bytes, "line_bytes": how.line_bytes, "scratch_bytes": how.scratch_bytes,
        "patch_bytes": how.patch_bytes, "found_bytes": how.found_bytes, "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    tables = {
        "taps": np.array([(0, 0, 1)]),
        "fold_phases": np.array(phases, np.int64),
        "fold_taps": np.array([tap for row in fold for tap in row] or [(0, 0, 0, 0)], np.int64),
        "phase_rows": np.array(phase_rows, np.int64),
    }
    return jobs.Bound(slots, tables, tasks(problem, how))


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    return f"convt_f{problem.itemsize * 8}_{NAME}_{how.tile}_{target.name}"


def _code(problem: Problem, how: Blocking) -> overlap_add_code.Code:
    finish = store.store_of(how.tile.element, how.tile.lanes, problem.spec.stride[-1], problem.spec.activation, how.tile.streams)
    return overlap_add_code.Code(how.tile, finish)


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(_code(problem, how))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return overlap_add_code.emit(_code(problem, how))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return how.block_count * problem.spec.groups * how.splits


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds done, padding of tiles included."""
    spec, lanes = problem.spec, how.tile.lanes
    columns = how.block_count * round_up(how.images * prod(problem.input_size), lanes)
    rows = how.chunks * how.tile_blocks * how.tile.rows
    return rows * columns * (spec.in_channels // spec.groups) * spec.groups


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the GEMM, the folding row by row, the rows stored, the weights read once a block."""
    spec, tile = problem.spec, how.tile
    d, h, w = lines(problem)
    taps = prod(spec.kernel_size)
    columns_ = how.images * prod(problem.input_size)
    depth, strips = spec.in_channels // spec.groups, how.block_count * how.chunks * how.tile_blocks * spec.groups
    gemm = strips * (depth * register_tile.columns_cycles(tile, columns_) + register_tile.ends_cycles(tile, columns_))
    vectors = problem.batch * d.positions * h.positions * ceil(w.positions / tile.lanes)
    rows = vectors * spec.out_channels
    fold = rows * taps * 2.0 + rows * prod(spec.stride) * 5.0 + vectors * taps * how.chunks * spec.groups * LISTED
    stored = store.cycles(rows * d.out_step * h.out_step, w.out_step, tile.lanes, w.positions <= 2 * tile.lanes)
    often = jobs.prepared(how.block_count, how.splits, threads)
    moved = float(prod(problem.input_shape) * often + prod(problem.output_shape)) * problem.itemsize
    streamed = how.block_count * prod(spec.weight_shape) * problem.itemsize / (ONCE[target.kind] if columns_ <= tile.width else 1.0)
    if how.x_bytes > 0.7 * target.l2:  # every chunk reads the block's inputs from beyond the second-level cache
        streamed += how.block_count * how.chunks * spec.groups * how.x_bytes
        moved += AWAY * prod(problem.input_shape) * problem.itemsize
    share = jobs.helped_share([(tasks(problem, how), 1.0)], ceil(how.chunks / how.splits), threads)
    return register_tile.seconds(target, share, gemm, fold + stored, moved, streamed)


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    return f"patches of {prod(problem.spec.kernel_size)} taps, {how.images} images x {how.chunk} channels at a time"
