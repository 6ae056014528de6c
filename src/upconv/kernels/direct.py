"""The direct sum, phase by phase: space in the vector lanes, output channels in the tile's rows.

For a block of band positions (`geometry`), every phase is a small GEMM: its rows are (output channel, phase) pairs that read
the same inputs, its depth is taps x input channels, its columns are positions. Loops, outermost first: jc (position
blocks, one a task), ic (chunks of output channels), groups of phases, ir (tile rows), jr (tile columns).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, inf, prod

import numpy as np

from upconv.codegen.ir import SIZES, Function, Int, Value, module
from upconv.codegen.target import Target
from upconv.kernels import job as jobs
from upconv.kernels import microkernel, pack, store, weights
from upconv.kernels.geometry import Band, band, round_up
from upconv.kernels.microkernel import Tile
from upconv.spec import Problem

NAME = "direct"
EXACT = True
SLOTS = jobs.Slots(
    (
        *pack.SLOTS,
        *store.SLOTS,
        "channels",
        "out_step_w",
        "y",
        "weight",
        "phase_groups",
        "group_count",
        "taps",
        "length",
        "block",
        "block_count",
        "splits",
        "chunks_a_split",
        "chunks",
        "chunk",
        "channels_out",
        "left",
        "right",
        "weight_group",
        "x_group",
        "table_bytes",
        "scratch_bytes",
    )
)
GROUP = 5  # i64 a phase group: tap count, tap table offset, tile blocks, weight offset, first scratch row


@dataclass(frozen=True, slots=True)
class PhaseGroup:
    """Phases that read the same inputs: (kernel indices of each tap, one entry a phase), and the taps' (flat, plane)."""

    phases: tuple[int, ...]
    reads: tuple[tuple[int, int], ...]
    kernels: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops; the same for every group of channels."""

    tile: Tile
    cropped: bool
    chunk: int
    chunks: int
    tile_blocks: tuple[int, ...]
    block: int
    block_count: int
    splits: int
    left: int
    right: int
    plane_pitch: int
    channel_pitch: int
    table_bytes: int
    scratch_bytes: int
    band_bytes: int

    @property
    def workspace_bytes(self) -> int:
        return self.table_bytes + self.scratch_bytes + self.band_bytes + 256

    @property
    def scratch_rows(self) -> int:
        return sum(self.tile_blocks) * self.tile.rows


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    if problem.spec.padding_mode != "zeros":
        return f"padding_mode {problem.spec.padding_mode} is folded outside the kernel"
    return None


@lru_cache(maxsize=512)
def phase_groups(shape: Band) -> tuple[PhaseGroup, ...]:
    """The phases that have outputs, those with equal reads together."""
    found: dict[tuple[tuple[int, int], ...], list[tuple[int, list[tuple[int, ...]]]]] = {}
    for number, taps in enumerate(shape.taps()):
        if taps is not None:
            reads = tuple((flat, plane) for _, flat, plane in taps)
            found.setdefault(reads, []).append((number, [k for k, _, _ in taps]))
    return tuple(
        PhaseGroup(
            tuple(number for number, _ in members),
            reads,
            tuple(tuple(kernels[t] for _, kernels in members) for t in range(len(reads))),
        )
        for reads, members in found.items()
    )


def _rows_cost(tile: Tile, channels: int, chunk: int, groups: tuple[tuple[int, int], ...]) -> float:
    """Tile steps (times input channels) for all output channels in chunks; `groups` holds (phases, taps)."""
    steps = sum((t + 0.25) * ceil(chunk * p / tile.rows) for p, t in groups)
    return ceil(channels / chunk) * steps


def _choose_chunk(tile: Tile, target: Target, channels: int, groups: tuple[tuple[int, int], ...]) -> int:
    """The number of output channels that a scratch block holds, for the least padding of tiles."""
    phases = sum(p for p, _ in groups)
    most = target.l2 // 4 // (8 * tile.width * SIZES[tile.element])  # scratch rows for eight tile widths
    best = (inf, 1)
    for parts in range(1, min(channels, 512) + 1):
        chunk = ceil(channels / parts)
        if chunk * phases > most and chunk > 1:
            continue
        best = min(best, (_rows_cost(tile, channels, chunk, groups) * (1 + 0.002 * parts), chunk))
        if chunk * phases < tile.rows:
            break
    return best[1]


def _shape_groups(shape: Band) -> tuple[tuple[int, int], ...]:
    return tuple((len(g.phases), len(g.reads)) for g in phase_groups(shape))


@lru_cache(maxsize=1024)
def _choose_tile(problem: Problem, target: Target) -> Tile:
    """The tile of a layer; sizes play no part, so that every length runs the same code."""
    spec = problem.spec
    size = tuple(8 * (k * d + s) for k, s, d in zip(spec.kernel_size, spec.stride, spec.dilation, strict=True))
    typical = replace(problem, batch=1, input_size=size, output_size=spec.output_size(size))
    groups, channels = _shape_groups(band(typical)), spec.out_channels // spec.groups
    best = (inf, -1)
    offered = microkernel.tiles(microkernel.ELEMENTS[problem.dtype], target)
    for i, tile in enumerate(offered):
        chunk = _choose_chunk(tile, target, channels, groups)
        cost = _rows_cost(tile, channels, chunk, groups) * microkernel.step_cycles(tile) / tile.width
        best = min(best, (cost, i))
    return offered[best[1]]


def _columns(length: int, tile: Tile) -> float:
    """Columns computed, in wide tiles' worth: the last ones run in narrow tiles, at a wide tile's price a vector or so."""
    whole, rest = divmod(length, tile.width)
    narrow = replace(tile, vectors=1)
    return whole + ceil(rest / tile.lanes) * min(1.0, microkernel.step_cycles(narrow) / microkernel.step_cycles(tile))


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """Blocks that keep a task's band and scratch in the second-level cache, and every thread busy."""
    spec, tile = problem.spec, _choose_tile(problem, target)
    channels_in, channels_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    offers = []
    for cropped in (False, True) if spec.transposed and any(lo for lo, _ in spec.padding) else (False,):
        shape = band(problem, cropped)
        groups = _shape_groups(shape)
        chunk = _choose_chunk(tile, target, channels_out, groups)
        rows_cost = _rows_cost(tile, channels_out, chunk, groups)
        offers.append((rows_cost * _columns(shape.length, tile), cropped, chunk))
    _, cropped, chunk = min(offers)
    shape = band(problem, cropped)
    groups_ = phase_groups(shape)
    chunks = ceil(channels_out / chunk)
    tile_blocks = tuple(ceil(chunk * len(g.phases) / tile.rows) for g in groups_)
    flats = [flat for g in groups_ for flat, _ in g.reads] or [0]
    left, right = max(0, -min(flats)), max(0, max(flats))
    rows, item, planes = sum(tile_blocks) * tile.rows, problem.itemsize, shape.planes
    block = _choose_block(shape.length, tile, target, threads, spec.groups, channels_in * planes * item, rows * item, left + right)
    block_count = max(1, ceil(shape.length / block))
    splits = 1
    if block_count * spec.groups < 4 * threads and chunks > 1:
        splits = min(chunks, ceil(4 * threads / (block_count * spec.groups)))
        splits = ceil(chunks / ceil(chunks / splits))
    plane_pitch = round_up(block + left + right + tile.lanes, 16)
    channel_pitch = plane_pitch * planes
    while channel_pitch * item % 1024 == 0 or channel_pitch * item % 4096 < 64:
        channel_pitch += 16
    out_rows = (block // shape.axes[2].pitch + 3) * shape.axes[0].out_step * shape.axes[1].out_step
    return Blocking(
        tile=tile,
        cropped=cropped,
        chunk=chunk,
        chunks=chunks,
        tile_blocks=tile_blocks,
        block=block,
        block_count=block_count,
        splits=splits,
        left=left,
        right=right,
        plane_pitch=plane_pitch,
        channel_pitch=channel_pitch,
        table_bytes=max(round_up((out_rows + 1) * store.ENTRY * 8, 64), pack.table_bytes(block + left + right + tile.lanes, shape)),
        scratch_bytes=round_up(rows * block * item, 64),
        band_bytes=round_up((channels_in * channel_pitch + 2 * tile.width) * item, 64),
    )


def _choose_block(
    length: int, tile: Tile, target: Target, threads: int, groups: int, band_row: int, scratch_row: int, halo: int
) -> int:
    """Positions a task takes: as many as the cache holds, fewer where threads would stand idle.

    `band_row` and `scratch_row` are the bytes that one position needs in the band and in the scratch block.
    """
    most = min(target.l2 * 0.45 / band_row - halo, target.l2 * 0.25 / scratch_row)
    most = max(2 * tile.width, int(most), halo // 2)
    pieces = max(1, ceil(length / most))
    if pieces * groups < 4 * threads:  # even out the threads' shares, in blocks that are worth their halo
        least = max(4 * tile.width, 2 * halo)
        pieces = max(pieces, min(ceil(4 * threads / groups), length // least, 4 * threads))
    if pieces > 1 and groups < threads:
        pieces = round_up(pieces, threads)
    return round_up(ceil(length / max(pieces, 1)), tile.lanes if length < 4 * tile.width else tile.width)


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """Weights in the order the tiles read them: per channel group and phase group [chunk][block][tap][channel][row]."""
    spec, rows = problem.spec, how.tile.rows
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    kernel = (1,) * (3 - spec.rank) + spec.kernel_size
    step, channel_step, group_step = weights.strides(spec)
    sections = []
    for group, blocks in zip(phase_groups(band(problem, how.cropped)), how.tile_blocks, strict=True):
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
    transform = weights.Transform(how.tile.element, rows)
    return weights.Layout(transform, spec.groups, c, 1, channel_step, group_step, tuple(sections))


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec, shape = problem.spec, band(problem, how.cropped)
    groups = phase_groups(shape)
    d, h, w = shape.axes
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    rows = how.tile.rows
    taps: list[tuple[int, int]] = []
    group_rows, phase_rows = [], np.zeros((prod(a.out_step for a in shape.axes), 2), np.int64)
    weight_at = first_row = 0
    for group, blocks in zip(groups, how.tile_blocks, strict=True):
        depth = len(group.reads) * c * rows
        group_rows.append((len(group.reads), len(taps), blocks, weight_at, first_row))
        taps += [(flat + plane * how.plane_pitch, t * c * rows) for t, (flat, plane) in enumerate(group.reads)]
        for i, phase in enumerate(group.phases):
            phase_rows[phase] = (first_row + i, len(group.phases))
        weight_at += how.chunks * blocks * depth
        first_row += blocks * rows
    image_in, image_out = prod(problem.input_size), prod(problem.output_size)
    slots = {
        "channels": c, "x_image": spec.in_channels * image_in, "x_channel": image_in,
        "x_d": h.size * w.size, "x_h": w.size, "size_d": d.size, "size_h": h.size, "size_w": w.size,
        "step_d": d.in_step, "step_h": h.in_step,
        "origin_d": d.base * d.in_step, "origin_h": h.base * h.in_step, "origin_w": w.base * w.in_step,
        "pitch_d": d.pitch, "pitch_h": h.pitch, "pitch_w": w.pitch, "batch": problem.batch,
        "planes_d": d.planes, "planes_h": h.planes, "planes_w": w.planes, "lead": ceil(how.left / shape.volume),
        "plane_pitch": how.plane_pitch, "channel_pitch": how.channel_pitch,
        "out_d": d.out_size, "out_h": h.out_size, "out_w": w.out_size,
        "out_step_d": d.out_step, "out_step_h": h.out_step, "out_step_w": w.out_step,
        "crop_d": d.crop, "crop_h": h.crop, "crop_w": w.crop, "positions_w": w.positions,
        "y_image": spec.out_channels * image_out, "y_channel": image_out, "scratch_pitch": how.block,
        "rows_d": d.pitch, "rows_h": h.pitch, "rows_w": w.pitch,
        "group_count": len(groups), "length": shape.length, "block": how.block, "block_count": how.block_count,
        "splits": how.splits, "chunks_a_split": ceil(how.chunks / how.splits), "chunks": how.chunks,
        "chunk": how.chunk, "channels_out": m, "left": how.left, "right": how.right,
        "weight_group": weight_at, "x_group": c * image_in,
        "table_bytes": how.table_bytes, "scratch_bytes": how.scratch_bytes, "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    tables = {
        "taps": np.array(taps or [(0, 0)], np.int64),
        "phase_groups": np.array(group_rows, np.int64),
        "phase_rows": phase_rows,
    }
    return jobs.Bound(slots, tables, how.block_count * spec.groups * how.splits)


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    return f"{kind}_f{problem.itemsize * 8}_{NAME}_{how.tile}_{target.name}"


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    inner = band(problem, how.cropped).axes[2]
    step = inner.out_step if inner.out_step <= how.tile.lanes else 0
    return f"{how.tile!r} out {step} in {inner.in_step} {problem.spec.activation!r}"


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile, inner = how.tile, band(problem, how.cropped).axes[2]
    step = inner.out_step if inner.out_step <= tile.lanes else 0
    do_pack = pack.emit(pack.Pack(tile.element, tile.lanes, inner.in_step), SLOTS)
    do_rows = store.emit_rows(SLOTS)
    do_store = store.emit(store.Store(tile.element, tile.lanes, step, problem.spec.activation), SLOTS)
    do_tiles = microkernel.emit_both(tile)

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        position, rest = number % s["block_count"], number // s["block_count"]
        split, group = rest % s["splits"], rest // s["splits"]
        low = position * s["block"]
        width = f.minimum(s["length"] - low, s["block"])
        table = workspace
        scratch = workspace[s["table_bytes"]].of(tile.element)
        stored = workspace[s["table_bytes"] + s["scratch_bytes"]].of(tile.element)
        x = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"]]
        y = SLOTS.pointer(f, job, "y", tile.element)
        weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"]]
        wide = (width + (tile.lanes - 1)) // tile.lanes * tile.lanes
        f.call(do_pack, [job, table, x, stored, low - s["left"], low + wide + s["right"], s["channels"]])
        count = f.call(do_rows, [job, table, low, low + width])
        first = split * s["chunks_a_split"]
        with f.loop(first, f.minimum(first + s["chunks_a_split"], s["chunks"]), name="ic") as ic:
            _emit_chunk(f, job, s, ic, stored[s["left"]], weight, scratch, width, tile, do_tiles)
            channel = ic * s["chunk"]
            number_out = group * s["channels_out"] + channel
            several = f.minimum(s["channels_out"] - channel, s["chunk"])
            y_plane = y[number_out * s["y_channel"]]
            f.call(do_store, [job, table, count, scratch, y_plane, number_out, several])

    entry = jobs.emit_entry("entry", SLOTS, task)
    return module([*do_tiles, do_pack, do_rows, do_store, entry])


_TASK_SLOTS = (
    "channels", "channel_pitch", "scratch_pitch", "y_channel", "group_count", "length", "block", "block_count",
    "splits", "chunks_a_split", "chunks", "chunk", "channels_out", "left", "right", "weight_group", "x_group",
    "table_bytes", "scratch_bytes",
)  # fmt: skip


def _emit_chunk(
    f: Function,
    job: Value,
    s: dict[str, Value],
    ic: Value,
    stored: Value,
    weight: Value,
    scratch: Value,
    width: Value,
    tile: Tile,
    do_tiles: tuple[Function, Function],
) -> None:
    """Every phase group of one chunk of output channels, into the scratch block: wide tiles, then narrow ones."""
    taps, table = SLOTS.pointer(f, job, "taps", "i64"), SLOTS.pointer(f, job, "phase_groups", "i64")
    with f.loop(0, s["group_count"], name="pg") as pg:
        count, first_tap, blocks, weight_at, first_row = (f.load("i64", table[pg * GROUP + i]) for i in range(GROUP))
        depth = count * s["channels"] * tile.rows
        with f.loop(0, blocks, name="ir") as ir:
            left = weight[weight_at + (ic * blocks + ir) * depth]
            row = scratch[(first_row + ir * tile.rows) * s["scratch_pitch"]]
            sizes: list[Int] = [taps[first_tap * 2], count, s["channels"], s["channel_pitch"]]
            microkernel.emit_strip(f, tile, do_tiles, left, stored, sizes, row, s["scratch_pitch"], width)


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return how.block_count * problem.spec.groups * how.splits


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds done, padding of tiles and rows included."""
    spec = problem.spec
    depth = sum(
        blocks * how.tile.rows * len(group.reads)
        for group, blocks in zip(phase_groups(band(problem, how.cropped)), how.tile_blocks, strict=True)
    )
    columns = round_up(band(problem, how.cropped).length, how.tile.lanes)
    return depth * how.chunks * columns * (spec.in_channels // spec.groups) * spec.groups


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the tiles, the rows stored, the bytes packed and stored, the weights read once a block."""
    spec, tile = problem.spec, how.tile
    shape = band(problem, how.cropped)
    steps = macs(problem, how) / (tile.rows * tile.width)
    stored = store.cycles(problem.batch * spec.out_channels, shape.axes, tile.lanes)
    moved = (prod(problem.input_shape) * how.splits + prod(problem.output_shape)) * problem.itemsize
    streamed = how.block_count * prod(spec.weight_shape) * problem.itemsize
    parallel = min(threads, tasks(problem, how))
    cycles = steps * microkernel.step_cycles(tile) + stored
    return (cycles / target.hertz + moved / 10e9 + streamed / 12e9) / parallel + 5e-6


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    groups = len(phase_groups(band(problem, how.cropped)))
    phases = prod(problem.spec.stride) if problem.spec.transposed else 1
    what = f"{phases} phases in {groups} groups" if phases > 1 else "one phase"
    return f"{what}, blocks of {how.block} positions x {how.chunk} channels"


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer: sizes play no part, so it serves every length."""
    groups = tuple((g.phases, g.kernels) for g in phase_groups(band(problem, how.cropped)))
    return (how.tile.rows, how.chunk, groups)
