"""The direct sum, phase by phase: space in the vector lanes, output channels in the tile's rows.

For a block of columns (`columns`: output positions by phase), every phase is a small GEMM: its rows are (output channel,
phase) pairs that read the same inputs, its depth is taps x input channels, its columns are positions. What the tiles read
of x is copied into panels first (`panel`); where a layer has few output channels a group, so that the copy would cost as
much as the sums, they read the band instead (`geometry`), or x itself where a block of the band is a piece of it. Loops,
outermost first: jc (blocks of columns, one a task), ic (chunks of output channels), pc (chunks of input channels), groups of
phases, jr (tile columns), ir (tile rows).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.target import Target
from upconv.kernels import columns, direct_code, register_tile, store, weights
from upconv.kernels import job as jobs
from upconv.kernels.direct_blocks import Blocking, groups_of
from upconv.kernels.direct_blocks import blocking as blocking  # offered with the rest
from upconv.kernels.direct_way import (
    COPIED,
    choose_way,
    distinct_reads,
    fuses,
    is_whole,
    lines,
    more_cycles,
    most_sums,
    outermost,
    typical_sums,
)
from upconv.kernels.geometry import Read, band, folded, round_up
from upconv.spec import Problem

NAME = "direct"
EXACT = True
SLOTS = direct_code.SLOTS
IN_PLACE = (0.4, 0.15, 0.15)
"""What blocks that are read where they stand in x save of the band's time, by `Target.kind`. Measured: 0.1 to 0.35
for decoders of 2 to 20 taps with 32; with 16 what is chosen takes 1.003 of the fastest kernel's time over 108 layers, with 0.15
1.004, and four layers of one or eight output channels in one dimension are 1.06 to 1.10 times as fast."""
TILES = (1.0, 1.0, 1.08)
"""What tiles take of the cycles that their steps add up to, beside products of halves, by `Target.kind`. Fitted to 81 layers of
k = s on the third: what is chosen takes 1.024 of the fastest kernel's time, where it took 1.032."""
PACK, LISTED, CROSSING = 600.0, 50.0, 4.0
"""Cycles to begin packing a block of the band, and to list one of its rows; and what a vector of a panel costs more where its
columns go on in another row. Measured."""

RESUMED = 0.3
"""The part of `more_cycles` that is left where the sums wait in a scratch block anyway. Measured: over 76 layers of kernels 3 and 4
what is chosen takes 1.016 of the fastest kernel's time for it, 1.019 without; over 289 others 1.010 either way."""
NEAR_STORE, NEAR = 0.4, 8
"""The part of the time of writing y that is left where tiles store their sums themselves and the arrays are in the caches: at most
so many second-level ones. Measured over 74 layers of k = s beside Strassen's kernel; of more taps they take as long as ever."""


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    return folded(problem.spec)


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """Weights in the order the tiles read them: per channel group and phase group [chunk][part][block][tap][channel][row]."""
    spec, rows = problem.spec, how.tile.rows
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    kernel = (1,) * (3 - spec.rank) + spec.kernel_size
    step, channel_step, group_step = weights.strides(spec)
    sections = []
    for group, blocks in zip(groups_of(problem, how), how.tile_blocks, strict=True):
        if not group.reads:
            continue
        phases = len(group.phases)
        places = np.array([[(k[0] * kernel[1] + k[1]) * kernel[2] + k[2] for k in tap] for tap in group.kernels])
        channel = weights.row_channels(how.chunks, how.chunk, blocks, rows, phases, m)
        member = (np.arange(blocks * rows) % phases).reshape(blocks, rows)
        member = np.tile(member, (how.chunks, 1))  # (chunks * blocks, rows)
        place = places[:, member].swapaxes(0, 1)  # entry tap row
        offsets = np.where(channel[:, None] >= 0, channel[:, None] * step + place, -1)
        sections.append(offsets[:, :, None, None, :])
    transform = weights.Transform(how.tile.element, rows, spec.transposed)
    return weights.Layout(transform, spec.groups, c, 1, channel_step, group_step, tuple(sections), how.channels_a_pack, how.chunks)


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec, shape = problem.spec, band(problem, how.cropped)
    groups, sums = groups_of(problem, how), _sums(problem, how)
    d, h, w = shape.axes
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    reads = distinct_reads(groups)
    number_of, parts = {read: number for number, read in enumerate(reads)}, ceil(c / how.channels_a_pack)
    taps: list[tuple[int, int, int]] = []
    group_rows, filled = [], Counter[int]()
    phase_rows = np.zeros((prod(a.out_step for a in shape.axes), sums, 2), np.int64)
    phase_rows[:, 1:, 0] = zero_row = sum(how.tile_blocks) * how.tile.rows  # behind the others, of zeros
    weight_at = first_row = 0
    for group, blocks in zip(groups, how.tile_blocks, strict=True):
        places = [number_of[read] if how.panels else _place(read, how) for read in group.reads]
        runs = list(_tap_runs(places, how, c))
        group_rows.append((len(runs), len(taps), blocks, weight_at, first_row, len(group.reads)))
        for first, length in runs:
            place = places[first] * (how.channels_a_pack * how.right_pitch if how.panels else 1)
            taps.append((place, first * how.channels_a_pack * how.tile.rows, length))
        for i, phase in enumerate(group.phases):
            phase_rows[phase, filled[phase]] = (first_row + i, len(group.phases))
            filled[phase] += 1
        weight_at += how.chunks * blocks * len(group.reads) * parts * how.channels_a_pack * how.tile.rows
        first_row += blocks * how.tile.rows
    image_in, image_out = prod(problem.input_size), prod(problem.output_size)
    numbers_of_pack = {
        "origin_d": d.base * d.in_step, "origin_h": h.base * h.in_step, "origin_w": w.base * w.in_step,
        "pitch_d": d.pitch, "pitch_h": h.pitch, "pitch_w": w.pitch, "batch": problem.batch,
        "planes_d": d.planes, "planes_h": h.planes, "planes_w": w.planes, "lead": ceil(how.left / shape.volume),
        "plane_pitch": how.plane_pitch, "channel_pitch": how.right_pitch,
        "rows_d": d.pitch, "rows_h": h.pitch, "rows_w": w.pitch,
    }  # fmt: skip
    slots = {
        **columns.slots(lines(shape), spec.in_channels, spec.out_channels),
        **({} if how.panels else numbers_of_pack),
        **how.cut.slots(), "x_channel": image_in, "read_count": len(reads),
        "panel_size": (len(reads) * how.channels_a_pack + 1) * how.tile.width,
        "panel_channels": how.channels_a_pack, "channels": c, "channels_a_pack": how.channels_a_pack, "y_channel": image_out,
        **store.numbers(problem),
        "channels_filled": parts * how.channels_a_pack,
        "group_count": len(groups), "room": how.room,
        "groups": spec.groups, "groups_a_task": how.groups_a_task, "splits": how.splits,
        "abreast": how.abreast, "prepared": int(how.groups_a_task == 1 and (parts == 1 or how.kept)),
        "part_pitch": ceil(how.cut.block / how.tile.width) * (len(reads) * how.channels_a_pack + 1) * how.tile.width * how.kept,
        "chunks_a_split": ceil(how.chunks / how.splits), "chunks_a_round": how.chunks_a_round,
        "columns_a_store": how.columns_a_store, "zero_row": zero_row, "fused": int(_fused(problem, how)),
        "y_rows_a_chunk": sum(how.tile_blocks) * how.tile.rows // w.out_step,
        "chunks": how.chunks, "chunk": how.chunk, "channels_out": m,
        "left": how.left, "right": how.right, "right_pitch": 1 if c == 1 else how.right_pitch, "weight_group": weight_at,
        "x_group": c * image_in, "scratch_pitch": how.scratch_pitch, "table_bytes": how.table_bytes,
        "found_bytes": how.found_bytes, "scratch_bytes": how.scratch_bytes, "line_bytes": how.line_bytes,
        "workspace_bytes": how.workspace_bytes, **_in_place(problem, how),
    }  # fmt: skip
    where = [(*r.at, (r.at[0] * h.size + r.at[1]) * w.size + r.at[2]) for r in reads]
    tables = {
        "taps": np.array(taps or [(0, 0, 0)], np.int64),
        "reads": np.array(where or [(0, 0, 0, 0)], np.int64),
        "phase_groups": np.array(group_rows, np.int64),
        "y_rows": _y_rows(problem, how),
        "phase_rows": phase_rows,
    }
    return jobs.Bound(slots, tables, tasks(problem, how))


def _sums(problem: Problem, how: Blocking) -> int:
    """Sums that the store adds up for a phase: the same for every size but, perhaps, those with taps in padding only."""
    return max(typical_sums(problem, how.shared), most_sums(groups_of(problem, how)))


def _in_place(problem: Problem, how: Blocking) -> dict[str, int]:
    """The job's numbers for blocks that tiles read in x."""
    shape, spec = band(problem, how.cropped), problem.spec
    image, outer = prod(problem.input_size), shape.axes[outermost(shape)]
    return {
        "in_place": int(how.in_place), "volume": shape.volume,
        "x_shift": outer.base * (image // outer.size), "x_pitch": 1 if spec.in_channels == spec.groups else image,
    }  # fmt: skip


def _fused(problem: Problem, how: Blocking) -> bool:
    """Whether tiles store their sums themselves at these sizes."""
    return fuses(problem, how.tile) and is_whole(band(problem, how.cropped), how.shared)


def _y_rows(problem: Problem, how: Blocking) -> NDArray[np.int64]:
    """For each chunk, the row of y that each of the tiles' rows (or each few of them, woven) is."""
    d, h, w = (axis.out_step for axis in band(problem, how.cropped).axes)
    m, size = problem.spec.out_channels // problem.spec.groups, sum(how.tile_blocks) * how.tile.rows // w
    row = np.arange(size)
    channel = np.arange(how.chunks)[:, None] * how.chunk + row // (d * h)
    used = (row // (d * h) < how.chunk) & (channel < m)
    phase = np.broadcast_to(row % (d * h), channel.shape)
    ad, ah = phase // h, phase % h
    size_d, size_h, size_w = (axis.out_size for axis in band(problem, how.cropped).axes)
    place = np.where(used, channel, 0) * (size_d * size_h * size_w) + (ad * size_h + ah) * size_w
    return np.stack([np.where(used, channel, -1), ad, ah, place], axis=-1)


def _tap_runs(places: list[int], how: Blocking, channels: int) -> Iterator[tuple[int, int]]:
    """(first tap, taps) of a group's reads that are one long tap to a tile: their places follow one another.

    In panels they follow as channels do; in a band of one channel they are what a tile steps over in place of channels.
    """
    joined = channels % how.channels_a_pack == 0 if how.panels else channels == 1
    first = 0
    for t in range(1, len(places) + 1):
        if t == len(places) or not joined or places[t] != places[t - 1] + 1:
            yield first, t - first
            first = t


def _place(read: Read, how: Blocking) -> int:
    """A read's place in a channel of the band."""
    return read.flat + read.plane * how.plane_pitch


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    return f"{kind}_f{problem.itemsize * 8}_{NAME}_{how.tile}_{target.name}"


def _code(problem: Problem, how: Blocking) -> direct_code.Code:
    inner = band(problem, how.cropped).axes[2]
    finish = store.store_of(how.tile.element, how.tile.lanes, inner.out_step, problem.spec.activation, how.tile.streams)
    fused = fuses(problem, how.tile)
    return direct_code.Code(how.tile, how.panels, inner.in_step, finish, _sums(problem, how), fused, how.scattered, how.asks)


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(_code(problem, how))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return direct_code.emit(_code(problem, how))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return how.cut.count * ceil(problem.spec.groups / how.groups_a_task) * how.splits


def _length(problem: Problem, how: Blocking) -> int:
    """Columns of the whole batch, the band's halo among them where the tiles read the band."""
    shape = band(problem, how.cropped)
    return columns.count(problem.batch, lines(shape)) if how.panels else shape.length


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds done, padding of tiles and rows included."""
    spec = problem.spec
    depth = sum(
        blocks * how.tile.rows * len(group.reads) for group, blocks in zip(groups_of(problem, how), how.tile_blocks, strict=True)
    )
    return depth * how.chunks * round_up(_length(problem, how), how.tile.lanes) * spec.in_channels


def _share_in_place(problem: Problem, how: Blocking) -> float:
    """The share of the blocks that tiles read in x: those that do not go on in another image, or end outside."""
    if not how.in_place:
        return 0.0
    return max(0.0, 1 - (1 + (how.left + how.right > 0)) * problem.batch / how.cut.count)


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the copy and the tiles, the rows stored, the bytes moved, the weights read once a block."""
    spec, tile, shape = problem.spec, how.tile, band(problem, how.cropped)
    repeats = how.chunks if how.channels_a_pack < spec.in_channels // spec.groups and not how.kept else how.splits
    tiles, packed = choose_way(problem, target).cycles * spec.groups * TILES[target.kind], 1.0 - _share_in_place(problem, how)
    tiles *= 1 - IN_PLACE[target.kind] * (1 - packed)
    if how.panels:
        vectors = ceil(_length(problem, how) / tile.lanes)
        fetches = len(distinct_reads(groups_of(problem, how))) * spec.in_channels * vectors
        crossing = min(1.0, (tile.lanes - 1) / shape.axes[2].positions)
        gathered = columns.gathering_cycles(problem, tile.lanes, _length(problem, how) / problem.batch)
        tiles += fetches * ((repeats - 1) * COPIED + repeats * (crossing * CROSSING + gathered))
        again = ceil(spec.in_channels // spec.groups / how.channels_a_pack) - 1
        resumed = again * spec.groups * how.chunks * sum(how.tile_blocks) * ceil(vectors / tile.vectors)
        tiles += resumed * more_cycles(tile) * (1.0 if _fused(problem, how) else RESUMED)
    else:
        packs = spec.groups * how.cut.count * ceil(spec.in_channels // spec.groups / how.channels_a_pack) * packed
        rows = ((how.block + how.left + how.right) / shape.axes[2].pitch + 1) * shape.planes
        tiles += packs * (PACK + LISTED * rows)
    d, h, w = shape.axes
    rows = problem.batch * spec.out_channels * d.positions * h.positions * d.out_step * h.out_step
    stored = store.cycles(rows * ceil(w.positions / tile.lanes), w.out_step, tile.lanes, w.positions <= 2 * tile.lanes)
    read, written = how.splits * packed + 1 - packed, 1.0
    if _fused(problem, how):
        stored /= 3  # the sums are still in registers, and the lines that they go to have been asked for
        one_tap = all(len(group.reads) == 1 for group in groups_of(problem, how))
        written = NEAR_STORE if one_tap and problem.bytes <= NEAR * target.l2 else 1.0
    moved = (prod(problem.input_shape) * read + prod(problem.output_shape) * written) * problem.itemsize
    streamed = how.cut.count * macs(problem, how) / round_up(_length(problem, how), tile.lanes) * problem.itemsize
    return register_tile.seconds(target, how.share(spec.groups, threads), tiles, stored, moved, streamed)


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    groups = len(groups_of(problem, how))
    phases = prod(problem.spec.stride) if problem.spec.transposed else 1
    what = f"{phases} phases in {groups} groups" if phases > 1 else "one phase"
    read = "panels" if how.panels else "x itself" if _share_in_place(problem, how) > 0 else "a band"
    return f"{what}, from {read}, blocks of {how.block} positions x {how.chunk} channels"


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer: sizes play no part, so it serves every length."""
    groups = tuple((g.phases, g.kernels) for g in groups_of(problem, how))
    return (how.tile.rows, how.chunk, how.channels_a_pack, groups)
