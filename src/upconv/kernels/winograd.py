"""Winograd's minimal filtering on the phases: all phases of a transposed layer share one input transform.

In uncropped coordinates every phase of a layer with kernel r*s reads the same r inputs, so a tile of F outputs a phase needs
one window of F + r - 1 inputs, whatever the phase. With the points 0, 1, -1 and infinity the window has four inputs: F(3, 2)
for two taps a phase, F(2, 3) for three; two dimensions then need 16 multiplications where the direct sum needs 36. A strided
convolution is the same read from the other side: its input planes are summed in the transformed domain.

A block of tiles is transformed (V), multiplied by the transformed weights (U), one small GEMM a point, and transformed back,
a vector of tiles at a time, to be stored as the direct kernel stores its own, the step F times as wide.

Source: Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks, 2016, for the use on layers. Sharing the transform between phases is described in docs/winograd.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.target import Target
from upconv.kernels import columns, microkernel, store, weights, winograd_code
from upconv.kernels import job as jobs
from upconv.kernels.columns import TOO_FAR, too_far
from upconv.kernels.geometry import round_up
from upconv.kernels.microkernel import Tile
from upconv.kernels.winograd_tiles import WEIGHT, Residue, Way, classes, lines, live, steps, ways_of, windows
from upconv.spec import ConvSpec, Problem

NAME = "winograd"
SLOTS = winograd_code.SLOTS
EXACT = False
"""Rounding differs from the direct sum's, and a NaN spreads over its tile."""


DEPTH = 1024
"""Products that are added up at a time: longer sums round more than the direct kernel's, which come in parts as well. Parts
short enough for the first-level cache (330) cost a tenth of the time of layers with 512 channels and more. Measured."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `block` counts tiles."""

    tile: Tile
    ways: tuple[Way, Way, Way]
    chunk: int
    chunks: int
    tile_blocks: tuple[int, ...]
    block: int
    block_count: int
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
    m_bytes: int
    v_bytes: int

    @property
    def workspace_bytes(self) -> int:
        parts = (self.table_bytes, self.found_bytes, self.line_bytes, self.lines_bytes, self.m_bytes, self.v_bytes)
        return sum(parts) + 256

    @property
    def points(self) -> int:
        return prod(way.window for way in self.ways)

    @property
    def rows(self) -> int:
        """Rows of a chunk, all classes of phases one behind the other, each filled up to whole tiles."""
        return sum(self.tile_blocks) * self.tile.rows

    @property
    def room(self) -> int:
        """Tiles that a task's table has room for."""
        return round_up(self.block, self.tile.lanes)


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec = problem.spec
    if spec.padding_mode != "zeros":
        return f"padding_mode {spec.padding_mode} is folded outside the kernel"
    if target.lanes(problem.itemsize) < 4:
        return "vectors too short to be worth the transforms"
    if too_far(problem, target.lanes(problem.itemsize)):
        return TOO_FAR
    ways = ways_of(spec)
    if isinstance(ways, str):
        return ways
    least = min(spec.in_channels, spec.out_channels * prod(steps(spec)[0])) // spec.groups
    if least < 8:
        return f"{least} channels (times phases) a group: the transforms would cost more"
    return None


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """Tiles a block as the second-level cache holds their transforms; output channels in chunks beside them."""
    spec, item = problem.spec, problem.itemsize
    ways = _ways(problem)
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    out_steps, in_steps = steps(spec)
    phases, length = prod(out_steps), columns.count(problem.batch, lines(problem))
    tile = microkernel.best_tile(problem.dtype, target, m * phases)
    points = prod(way.window for way in ways)
    depth = c * prod(in_steps) * prod(way.groups for way in ways)
    most = int(target.l2 * 0.35 / (points * depth * item)) // tile.width * tile.width
    most = min(max(most, 2 * tile.width), 512)
    pieces = max(1, ceil(length / most))
    if pieces * spec.groups < 4 * threads and length >= 4 * tile.width:
        pieces = max(pieces, min(ceil(4 * threads / spec.groups), length // (2 * tile.width)))
    if pieces > 1 and spec.groups < threads:
        pieces = round_up(pieces, threads)
    block = round_up(ceil(length / pieces), tile.lanes if length < 4 * tile.width else tile.width)
    block_count = max(1, ceil(length / block))
    room = max(1, int(target.l2 * 0.3 / (points * most * item * phases)))  # whatever the length: packed weights depend on it
    chunk = _choose_chunk(problem, tile, m, min(m, max(room, ceil(tile.rows / phases))))
    if block_count * spec.groups < 2 * threads and chunk >= m > 1:
        chunk = _choose_chunk(problem, tile, m, ceil(m / threads))
    chunks, splits = ceil(m / chunk), 1
    if block_count * spec.groups < 3 * threads and chunks > 1 < threads:
        splits = jobs.shares(chunks, block_count * spec.groups, threads, 3)
    tile_blocks = tuple(ceil(chunk * n / tile.rows) for n in map(len, _phases(spec)))
    rows = sum(tile_blocks) * tile.rows
    panels = ceil(block / tile.width)
    v_point = panels * depth * tile.width + 16
    m_pitch = round_up(block, 16) + 16 * (round_up(block, 16) // 16 % 2 == 0)
    m_point = rows * m_pitch + (16 if rows * m_pitch % 32 == 0 else 0)
    code = _code(problem, tile)
    out_step = lines(problem)[2].out_step
    return Blocking(
        tile=tile, ways=ways, chunk=chunk, chunks=chunks, tile_blocks=tile_blocks, block=block, block_count=block_count,
        splits=splits, depth=depth, depth_part=ceil(depth / ceil(depth / DEPTH)),
        v_point=v_point, m_pitch=m_pitch, m_point=m_point,
        table_bytes=columns.table_bytes(round_up(block, tile.lanes), tile.lanes),
        found_bytes=round_up(code.found_bytes(depth // c // prod(in_steps[1:]), round_up(block, tile.lanes)), 64),
        line_bytes=round_up(max(out_step, prod(code.reach)) * tile.lanes * item, 64),
        lines_bytes=round_up(ways[1].outputs * out_step * tile.lanes * item, 64),
        m_bytes=round_up(points * m_point * item, 64), v_bytes=round_up(points * v_point * item, 64),
    )  # fmt: skip


def _phases(spec: ConvSpec) -> list[tuple[Residue, ...]]:
    """The phases of the output, class by class; a convolution has one."""
    return [c.residues for c in classes(spec)] if spec.transposed else [((0, 0, 0),)]


def _rows_done(problem: Problem, tile_blocks: tuple[int, ...], tile: Tile) -> int:
    """Rows of a chunk, summed over the points: the classes that are live there, filled up to whole tiles."""
    spec = problem.spec
    if not spec.transposed:
        return len(_points(problem)) * sum(tile_blocks) * tile.rows
    return sum(tile_blocks[i] * tile.rows for point in _points(problem) for i in live(spec, point))


def _choose_chunk(problem: Problem, tile: Tile, channels: int, most: int) -> int:
    """Output channels at a time, at most so many, for the least padding of tiles; larger chunks where little speaks for less."""

    def cost(chunk: int) -> float:
        blocks = tuple(ceil(chunk * n / tile.rows) for n in map(len, _phases(problem.spec)))
        return ceil(channels / chunk) * (_rows_done(problem, blocks, tile) + 0.02 * most)

    return min(range(max(1, most // 2), most + 1), key=lambda chunk: (cost(chunk), -chunk))


def _points(problem: Problem) -> list[tuple[int, int]]:
    """The points of the two inner dimensions."""
    _, h, w = _ways(problem)
    return list(product(range(h.window), range(w.window)))


def _ways(problem: Problem) -> tuple[Way, Way, Way]:
    ways = ways_of(problem.spec)
    assert not isinstance(ways, str)
    return ways


# -- weights -----------------------------------------------------------------------------------------------------------


Group = tuple[int, int, int]
"""A group of taps, in each dimension."""


def _depth_taps(problem: Problem) -> list[tuple[Group, Residue]]:
    """What the depth of a GEMM goes over, besides channels: (group of taps, plane of x), the planes class by class."""
    d, h, w = (range(way.groups) for way in _ways(problem))
    groups = list(product(d, h, w))
    if problem.spec.transposed:
        return [(group, (0, 0, 0)) for group in groups]
    return [(group, plane) for c in classes(problem.spec) for group in groups for plane in c.residues]


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """U in the order the tiles read it: [group][point][chunk][block][group of taps and plane][channel][row]."""
    spec, rows = problem.spec, how.tile.rows
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    kernel, stride = (1,) * (3 - spec.rank) + spec.kernel_size, (1,) * (3 - spec.rank) + spec.stride
    step, channel_step, group_step = weights.strides(spec)
    channels, phases = [], []
    for blocks, residues in zip(how.tile_blocks, _phases(spec), strict=True):
        found = weights.row_channels(how.chunks, how.chunk, blocks, rows, len(residues), m)
        channels.append(found.reshape(how.chunks, blocks, rows))
        phases.append(np.array(residues)[np.arange(blocks * rows) % len(residues)].reshape(blocks, rows, 3))
    channel, phase = np.concatenate(channels, axis=1), np.concatenate(phases)  # chunk block row; block row dimension
    depth = _depth_taps(problem)
    group, plane = np.array([g for g, _ in depth]), np.array([p for _, p in depth])
    place: Any = 0
    for i, way in enumerate(how.ways):  # axes: block, depth tap, window of h, window of w, row
        tap = way.taps * group[:, i].reshape(1, -1, 1, 1, 1)
        if i > 0:
            tap = tap + np.arange(way.taps).reshape([-1 if j == i + 1 else 1 for j in range(5)])
        if spec.transposed:  # later taps read earlier inputs
            index = stride[i] * (way.total - 1 - tap) + phase[:, None, None, None, :, i]
        else:
            index = stride[i] * tap + plane[:, i].reshape(1, -1, 1, 1, 1)
        place = np.where((place >= 0) & (index < kernel[i]), place * kernel[i] + index, -1)
    place = np.broadcast_to(place, (channel.shape[1], *place.shape[1:4], rows)).reshape(channel.shape[1], len(depth), 1, -1, rows)
    good = (channel[:, :, None, None, None] >= 0) & (place >= 0)
    where = np.where(good, channel[:, :, None, None, None] * step + place, -1)
    where = where.reshape(-1, *where.shape[2:])  # entry, depth tap, plane, window, row
    matrices = [_rows_of(WEIGHT[way.taps]) if way.transformed else None for way in how.ways[1:]]
    transform = weights.Transform(how.tile.element, rows, False, matrices[0], matrices[1])  # windows fill lines by themselves
    return weights.Layout(transform, spec.groups, c, 1, channel_step, group_step, (where,), c)


def _rows_of(matrix: NDArray[Any]) -> weights.Matrix:
    return tuple(tuple(float(v) for v in row) for row in matrix)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer."""
    return (how.tile.rows, how.chunk)


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec = problem.spec
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    _, ph, pw = steps(spec)[0]
    image_in, image_out = prod(problem.input_size), prod(problem.output_size)
    chunk_size = how.rows * how.depth
    outer, reads = _reads(problem)
    slots = {
        **columns.slots(lines(problem), problem.batch, spec.in_channels, spec.out_channels),
        "x_channel": image_in, "y_channel": image_out, "read_count": len(reads), "outer_count": len(outer),
        "panel_size": how.depth * how.tile.width, "block": how.block,
        "block_count": how.block_count, "room": how.room, "splits": how.splits,
        "chunks_a_split": ceil(how.chunks / how.splits), "chunks": how.chunks, "chunk": how.chunk,
        "tile_blocks": sum(how.tile_blocks), "channels_out": m, "channels_in": c, "depth": how.depth, "depth_part": how.depth_part,
        "phases_h": ph, "phases_w": pw, "weight_point": how.chunks * chunk_size,
        "weight_group": how.points * how.chunks * chunk_size,
        "x_group": c * image_in, "v_point": how.v_point, "m_pitch": how.m_pitch, "m_point": how.m_point,
        "table_bytes": how.table_bytes, "found_bytes": how.found_bytes, "line_bytes": how.line_bytes,
        "lines_bytes": how.lines_bytes, "m_bytes": how.m_bytes, "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    tables = {
        "taps": np.array([(0, 0, 1)]), "outer": outer, "reads": reads, "points": _point_table(problem, how),
        "phase_rows": _phase_rows(problem, how), "plane_rows": _plane_rows(problem),
    }  # fmt: skip
    return jobs.Bound(slots, tables, tasks(problem, how))


def _point_table(problem: Problem, how: Blocking) -> NDArray[np.int64]:
    """For each point, what is live there: first strip of rows, strips, first row of the depth, rows."""
    spec = problem.spec
    c, groups = spec.in_channels // spec.groups, prod(way.groups for way in _ways(problem))
    sizes = how.tile_blocks if spec.transposed else tuple(len(k.residues) * groups * c for k in classes(spec))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found = []
    for point in _points(problem):
        kept = live(spec, point)
        part = (int(starts[kept.start]), int(starts[kept.stop] - starts[kept.start]))
        found.append((*part, 0, how.depth) if spec.transposed else (0, sum(how.tile_blocks), *part))
    return np.array(found, np.int64)


def _phase_rows(problem: Problem, how: Blocking) -> NDArray[np.int64]:
    """For each phase, row-major: its row of a chunk's first channel, and the rows a channel."""
    out_steps, _ = steps(problem.spec)
    table, first = np.zeros((*out_steps, 2), np.int64), 0
    for residues, blocks in zip(_phases(problem.spec), how.tile_blocks, strict=True):
        for i, residue in enumerate(residues):
            table[residue] = (first + i, len(residues))
        first += blocks * how.tile.rows
    return table.reshape(-1, 2)


def _plane_rows(problem: Problem) -> NDArray[np.int64]:
    """For each group of taps and plane (as `outer` lists them) and each inner plane: its place among the depth's taps."""
    _, (pd, ph, pw) = steps(problem.spec)
    number = {tap: i for i, tap in enumerate(_depth_taps(problem))}
    gd, gh, gw = (range(way.groups) for way in _ways(problem))
    outer = product(gd, range(pd), gh, gw, range(ph), range(pw))
    return np.array([number[(td, th, tw), (d, h, w)] for td, d, th, tw, h, w in outer], np.int64)


def _reads(problem: Problem) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first element of the window of each group of taps and outer plane, every element of it), as `panel` reads."""
    (_, d), (line_h, h), (line_w, w) = windows(problem)
    ways = _ways(problem)

    def at(ed: int, eh: int, ew: int) -> tuple[int, ...]:
        return ed, eh, ew, (ed * line_h.size + eh) * line_w.size + ew

    outer_h, outer_w = (
        range(window.origin, window.origin + window.step * way.groups, window.step)
        for window, way in zip((h, w), ways[1:], strict=True)
    )
    outer = list(product(range(d.origin, d.origin + d.reach * ways[0].groups), outer_h, outer_w))
    every = [at(e, eh + i, ew + j) for e, eh, ew in outer for i, j in product(range(h.reach), range(w.reach))]
    return np.array([at(*e) for e in outer], np.int64), np.array(every, np.int64)


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    sizes = "_".join(f"f{way.outputs}x{way.taps}" for way in how.ways if way.transformed)
    return f"{kind}_f{problem.itemsize * 8}_{NAME}_{sizes}_{how.tile}_{target.name}"


def _code(problem: Problem, tile: Tile) -> winograd_code.Code:
    d, h, w = (replace(way, groups=1) for way in _ways(problem))  # groups are numbers of the job
    _, (_, ph, pw) = steps(problem.spec)
    out_step = lines(problem)[2].out_step
    uneven = problem.spec.transposed and len(classes(problem.spec)) > 1
    finish = store.store_of(tile.element, tile.lanes, out_step, problem.spec.activation)
    return winograd_code.Code(tile, (d, h, w), (ph, pw), uneven, finish)


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(_code(problem, how.tile))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return winograd_code.emit(_code(problem, how.tile))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return how.block_count * problem.spec.groups * how.splits


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds of the GEMMs, padding of tiles included; none where transformed weights are zero."""
    length = round_up(columns.count(problem.batch, lines(problem)), how.tile.lanes)
    table = _point_table(problem, how)
    return how.chunks * how.tile.rows * int((table[:, 1] * table[:, 3]).sum()) * length * problem.spec.groups


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the GEMMs, the transforms, the bytes stored and the weights streamed, on the threads' share."""
    spec, tile = problem.spec, how.tile
    _, _, w = lines(problem)
    vectors = ceil(columns.count(problem.batch, lines(problem)) / tile.lanes)
    tile_steps = macs(problem, how) / (tile.rows * tile.width)
    rows = how.chunks * how.rows * spec.groups
    transforms = vectors * how.points * (5.0 * how.depth * spec.groups * how.splits + 2.5 * rows)
    outputs = prod(way.outputs for way in how.ways[:2])
    wide = w.positions > 2 * tile.lanes
    stored = store.cycles(vectors * rows * outputs / prod(spec.stride[-1:]), w.out_step, tile.lanes, wide)
    moved = (prod(problem.input_shape) * how.splits + prod(problem.output_shape)) * problem.itemsize
    streamed = how.block_count * rows * how.depth * how.points / spec.groups * problem.itemsize
    gemm = tile_steps * microkernel.step_cycles(tile) * 1.1
    return microkernel.seconds(target, threads, tasks(problem, how), gemm, transforms + stored, moved, streamed)


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    phases = prod(steps(problem.spec)[0])
    shared = f"the {phases} phases share one input transform, " if phases > 1 else ""
    return f"{shared}{how.points} points, blocks of {how.block} tiles x {how.chunk} channels"
