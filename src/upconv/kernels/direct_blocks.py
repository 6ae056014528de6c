"""The direct kernel's sizes: blocks whose panels and scratch the second-level cache holds, and what of them each task does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

from upconv.codegen.target import Target
from upconv.kernels import columns, pack, register_tile
from upconv.kernels import job as jobs
from upconv.kernels.columns import Cut
from upconv.kernels.direct_way import (
    COPIED,
    STORED_TILES,
    PhaseGroup,
    Way,
    band_channels,
    choose_tile,
    choose_way,
    distinct_reads,
    in_parts,
    keeps,
    lines,
    more_cycles,
    offered_cuts,
    pack_channels,
    phase_groups,
    reads_x,
    scattered_channels,
    scatters,
    shape_groups,
)
from upconv.kernels.geometry import band, round_up
from upconv.kernels.register_tile import Tile
from upconv.spec import ConvSpec, Problem

ASKS = (True, True, False)
"""Whether tiles that store their sums themselves ask for the lines first, by `Target.kind`. With 16 registers k2s2 192 -> 192 on
80 x 80 takes 10.6 ms in place of 12.0. On Intel's servers 25 layers are 1.00 to 1.07 times as fast without, 1.03 in the mean: as
many lines can be on their way as there are places for them, and those of weights and columns wait. Asked for into the second-level
cache 1.00."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops; the same for every group of channels."""

    tile: Tile
    panels: bool
    kept: bool
    """Whether panels of all parts of the channels are kept for a block's chunks."""
    in_place: bool
    """Whether blocks that are pieces of x are read where they stand there."""
    scattered: bool
    """Whether that is what the layer mostly does: so the code asks for columns ahead."""
    asks: bool
    """Whether tiles that store their sums themselves ask for the lines of y."""
    cropped: bool
    shared: bool
    chunk: int
    chunks: int
    tile_blocks: tuple[int, ...]
    cut: Cut
    groups_a_task: int
    splits: int
    abreast: int
    chunks_a_round: int
    columns_a_store: int
    channels_a_pack: int
    scratch_pitch: int
    right_pitch: int
    plane_pitch: int
    left: int
    right: int
    table_bytes: int
    found_bytes: int
    scratch_bytes: int
    line_bytes: int
    right_bytes: int

    @property
    def workspace_bytes(self) -> int:
        return self.table_bytes + self.found_bytes + self.scratch_bytes + self.line_bytes + self.right_bytes + 256

    @property
    def block(self) -> int:
        return self.cut.block

    @property
    def _pieces(self) -> int:
        """That others may help with, of a task."""
        return ceil(ceil(self.chunks / self.splits) / self.chunks_a_round) if self.groups_a_task == 1 else 1

    def share(self, groups: int, threads: int) -> float:
        """The share of all the tiles of so many groups of channels that the busiest thread has, the padding of blocks included."""
        loads = tasks_of(self.tile, self.cut, self.chunks, Shares(self.chunk, self.groups_a_task, self.splits), groups)
        whole = groups * self.cut.parts * register_tile.columns_cycles(self.tile, self.cut.length)
        return jobs.helped(loads, self._pieces, threads) / whole

    @property
    def room(self) -> int:
        """Columns that a task's table has room for."""
        return round_up(self.block, self.tile.lanes)


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """Blocks whose panels and scratch the second-level cache holds, and tasks that keep every thread busy."""
    spec, tile, way = problem.spec, choose_tile(problem, target), choose_way(problem, target)
    channels_in, channels_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    shape, item = band(problem, way.cropped), problem.itemsize
    groups_ = phase_groups(shape, way.shared)
    in_place = not way.panels and reads_x(problem, target, tile, way.cropped)
    channels_a_pack = _channels_a_pack(problem, target, tile, way)
    cut, (chunk, groups_a_task, splits) = _cut(problem, target, threads, tile, way, channels_a_pack, in_place)
    left, right = _reach(groups_)
    tile_blocks = _tile_blocks(tile, chunk, groups_)
    rows, parts = sum(tile_blocks) * tile.rows, ceil(channels_in / channels_a_pack)
    kept = way.panels and parts > 1 and keeps(channels_in, len(distinct_reads(groups_)), tile, target)
    repeats = parts > 1 and not kept
    room = round_up(cut.block, tile.lanes)
    strip = sum(b * len(g.reads) for b, g in zip(tile_blocks, groups_, strict=True)) * tile.rows * channels_in * item
    columns_a_store = room if repeats else min(room, STORED_TILES * tile.width)
    scratch_pitch = round_up(columns_a_store, 16)
    scratch_pitch += 16 * (scratch_pitch // 16 % 2 == 0)
    plane_pitch = round_up(cut.block + left + right + tile.lanes, 16)
    if way.panels:
        reads = len(distinct_reads(groups_))
        right_pitch, found = tile.width, reads * room // tile.lanes * (16 + 4 * tile.lanes)
        right_size = ceil(cut.block / tile.width) * (reads * channels_a_pack + 1) * tile.width * (parts if kept else 1)
    else:
        right_pitch, found = plane_pitch * shape.planes, pack.table_bytes(cut.block + left + right + tile.lanes, shape)
        while right_pitch * item % 1024 == 0 or right_pitch * item % 4096 < 64:
            right_pitch += 16
        right_size = channels_a_pack * right_pitch
    weight_bytes = prod(spec.weight_shape) * item / spec.groups
    return Blocking(
        tile=register_tile.reading(tile, weight_bytes, target), panels=way.panels, kept=kept, in_place=in_place,
        scattered=not way.panels and scatters(problem, tile), asks=ASKS[target.kind],
        cropped=way.cropped, shared=way.shared, chunk=chunk, chunks=ceil(channels_out / chunk), tile_blocks=tile_blocks, cut=cut,
        groups_a_task=groups_a_task, splits=splits, abreast=cut.count if repeats else threads,
        chunks_a_round=1 if repeats else _chunks_a_round(cut, ceil(channels_out / chunk), splits, strip, target, threads),
        columns_a_store=columns_a_store, channels_a_pack=channels_a_pack,
        scratch_pitch=scratch_pitch, right_pitch=right_pitch, plane_pitch=plane_pitch, left=left, right=right,
        table_bytes=columns.table_bytes(room, tile.lanes), found_bytes=round_up(found, 64),
        scratch_bytes=round_up((rows + way.shared) * scratch_pitch * item, 64),
        line_bytes=round_up(tile.lanes * shape.axes[2].out_step * item, 64),
        right_bytes=round_up((right_size + 2 * tile.width) * item, 64),
    )  # fmt: skip


PIECES = 4
"""Rounds of chunks, about, that the tasks of few blocks go over: each is a piece that another thread may help with."""


def _chunks_a_round(cut: Cut, chunks: int, splits: int, strip: int, target: Target, threads: int) -> int:
    """Chunks that a task takes together, `strip` bytes of weights each: what the second-level cache holds."""
    most = max(1, int(target.l2 * 0.35 / max(strip, 1)))
    return min(most, ceil(chunks / splits / PIECES)) if threads > 1 and cut.count * splits < 8 * threads else most


def _reach(groups: tuple[PhaseGroup, ...]) -> tuple[int, int]:
    """How far to the left and to the right of a column its reads lie in the band."""
    flats = [read.flat for read in distinct_reads(groups)] or [0]
    return max(0, -min(flats)), max(0, max(flats))


def _channels_a_pack(problem: Problem, target: Target, tile: Tile, way: Way) -> int:
    """Input channels that are copied, or gone over, at a time."""
    spec, shape = problem.spec, band(problem, way.cropped)
    channels_in = spec.in_channels // spec.groups
    if way.panels:
        return pack_channels(tile, target, channels_in, shape_groups(shape, way.shared))
    if way.chunk < spec.out_channels // spec.groups:
        return channels_in  # parts would be packed anew for every chunk
    groups_ = phase_groups(shape, way.shared)
    halo, column = sum(_reach(groups_)), shape.planes * problem.itemsize
    more = sum(_tile_blocks(tile, way.chunk, groups_)) * more_cycles(tile) / tile.width
    most = scattered_channels(tile, target) if scatters(problem, tile) else channels_in
    return min(band_channels(channels_in, halo, column, more, target), in_parts(channels_in, most))


class Shares(NamedTuple):
    """What of a block a task does: output channels a chunk, groups of channels, and parts that the chunks are split into."""

    chunk: int
    groups_a_task: int
    splits: int


def _cut(
    problem: Problem, target: Target, threads: int, tile: Tile, way: Way, channels_a_pack: int, in_place: bool
) -> tuple[Cut, Shares]:
    """The blocks, of one image each where they are read in x and images are large enough, and what of each a task does.

    The usual ones, or else those that leave the busiest thread clearly less.
    """
    spec, shape, item, images = problem.spec, band(problem, way.cropped), problem.itemsize, 1
    groups_, channels = phase_groups(shape, way.shared), spec.in_channels // spec.groups
    kept = way.panels and keeps(channels, len(distinct_reads(groups_)), tile, target)
    if way.panels:
        length, halo, right_row = (
            columns.count(problem.batch, lines(shape)),
            0,
            len(distinct_reads(groups_)) * (channels if kept else channels_a_pack) * item,
        )
    else:
        length, halo, right_row = shape.length, sum(_reach(groups_)), channels_a_pack * shape.planes * item
    if in_place and shape.volume >= 4 * tile.width:
        length, images = shape.volume, problem.batch
    repeats = channels_a_pack < channels and not kept
    scratch_row = sum(_tile_blocks(tile, way.chunk, groups_)) * tile.rows * item if repeats else 0
    cuts = offered_cuts(length, tile, target, threads, images * spec.groups, right_row, scratch_row, halo)
    offers = []
    for cut in (replace(cut, parts=images) for cut in cuts):
        shares = _shares(spec, cut, threads, way.chunk)
        offers.append((_busiest(problem, tile, way, cut, shares, threads), cut, shares))
    best = min(offers, key=lambda offer: offer[0])
    return (best if best[0] < EQUAL * offers[0][0] else offers[0])[1:]


EQUAL = 0.96
"""The share of the busiest thread's time that other blocks than the usual ones should leave."""


def _busiest(problem: Problem, tile: Tile, way: Way, cut: Cut, shares: Shares, threads: int) -> float:
    """Cycles of the thread that has most to do, all groups of channels counted: its tiles, and what each of its tasks copies."""
    spec, groups_ = problem.spec, phase_groups(band(problem, way.cropped), way.shared)
    channels_in, chunks = spec.in_channels // spec.groups, ceil(spec.out_channels // spec.groups / shares.chunk)
    blocks = zip(_tile_blocks(tile, shares.chunk, groups_), groups_, strict=True)
    steps = max(1, chunks * channels_in * sum(n * len(group.reads) for n, group in blocks))  # of nothing but bias, none
    copied = COPIED * channels_in * len(distinct_reads(groups_)) * tile.vectors * way.panels
    loads = tasks_of(tile, cut, chunks, shares, spec.groups, copied / (steps * register_tile.step_cycles(tile)))
    count = sum(count for count, _ in loads)
    pieces = min(ceil(chunks / shares.splits), PIECES) if shares.groups_a_task == 1 else 1
    return steps * jobs.helped(loads, pieces, threads) * jobs.held_up(count * pieces, threads)


def tasks_of(tile: Tile, cut: Cut, chunks: int, shares: Shares, groups: int, again: float = 0.0) -> list[tuple[int, float]]:
    """(count, cycles a step) of tasks, each of which takes the part `again` of its block's time besides its share of it."""
    alike = [(ceil(groups / shares.groups_a_task) * count, size) for count, size in cut.sizes()]
    sizes = [(count, shares.groups_a_task * register_tile.columns_cycles(tile, size)) for count, size in alike]
    return jobs.tasks_of(sizes, chunks, shares.splits, again)


SHARES = 4
"""Tasks a thread that the chunks of few blocks are split into. Each copies its columns anew."""


def _shares(spec: ConvSpec, cut: Cut, threads: int, chunk: int) -> Shares:
    """What of its block a task does."""
    channels_out, group_parts = spec.out_channels // spec.groups, min(spec.groups, max(1, ceil(4 * threads / cut.count)))
    groups_a_task = ceil(spec.groups / group_parts)
    parts = cut.count * ceil(spec.groups / groups_a_task)
    if threads > 1 and parts * ceil(channels_out / chunk) < 2 * threads:
        chunk = ceil(channels_out / min(ceil(2 * threads / parts), channels_out))
    chunks = ceil(channels_out / chunk)
    splits = jobs.shares(chunks, parts, threads, SHARES) if parts < 4 * threads and chunks > 1 else 1
    return Shares(chunk, groups_a_task, splits)


def groups_of(problem: Problem, how: Blocking) -> tuple[PhaseGroup, ...]:
    """The groups of phases at these sizes."""
    return phase_groups(band(problem, how.cropped), how.shared)


def _tile_blocks(tile: Tile, chunk: int, groups: tuple[PhaseGroup, ...]) -> tuple[int, ...]:
    """Strips of tile rows of each group of phases for so many output channels."""
    return tuple(ceil(chunk * len(group.phases) / tile.rows) for group in groups)
