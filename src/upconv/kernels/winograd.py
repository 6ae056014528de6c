"""Winograd's minimal filtering on the phases: all phases of a transposed layer share one input transform.

In uncropped coordinates every phase of a layer with kernel r*s reads the same r inputs, so a tile of F outputs a phase needs
one window of F + r - 1 inputs, whatever the phase. With the points 0, 1, -1 and infinity the window has four inputs: F(3, 2)
for two taps a phase, F(2, 3) for three; two dimensions then need 16 multiplications where the direct sum needs 36. A strided
convolution is the same read from the other side: its input planes are summed in the transformed domain.

A block of tiles is transformed (V), multiplied by the transformed weights (U), one small GEMM a point, and transformed back
into a scratch block that is stored as the direct kernel stores its own, the step F times as wide.

Source: Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks, 2016, for the use on layers. Sharing the transform between phases is described in docs/winograd.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.target import Target
from upconv.kernels import job as jobs
from upconv.kernels import microkernel, pack, store, weights, winograd_code
from upconv.kernels.geometry import round_up
from upconv.kernels.microkernel import Tile
from upconv.kernels.winograd_tiles import WEIGHT, Way, band, band_reach, depth_taps, offsets, reads, steps, tiles, ways_of
from upconv.spec import ConvSpec, Problem

NAME = "winograd"
SLOTS = winograd_code.SLOTS
EXACT = False
"""Rounding differs from the direct sum's, and a NaN spreads over its tile."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `block` counts tiles."""

    tile: Tile
    ways: tuple[Way, Way, Way]
    chunk: int
    chunks: int
    tile_blocks: int
    block: int
    block_count: int
    splits: int
    channels_a_pack: int
    left: int
    right: int
    plane_pitch: int
    channel_pitch: int
    v_pitch: int
    v_point: int
    m_point: int
    table_bytes: int
    scratch_bytes: int
    m_bytes: int
    v_bytes: int
    band_bytes: int

    @property
    def workspace_bytes(self) -> int:
        return self.table_bytes + self.scratch_bytes + self.m_bytes + self.v_bytes + self.band_bytes + 256

    @property
    def points(self) -> int:
        return prod(way.window for way in self.ways)


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec = problem.spec
    if spec.padding_mode != "zeros":
        return f"padding_mode {spec.padding_mode} is folded outside the kernel"
    if target.lanes(problem.itemsize) < 4:
        return "vectors too short to be worth the transforms"
    ways = ways_of(spec)
    if isinstance(ways, str):
        return ways
    if min(spec.in_channels, spec.out_channels) // spec.groups < 8:
        return f"{min(spec.in_channels, spec.out_channels) // spec.groups} channels a group: the transforms would cost more"
    return None


def _phases(spec: ConvSpec) -> int:
    return prod(steps(spec)[0])


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """Tiles a block as the second-level cache holds their transforms; output channels in chunks beside them."""
    spec, item = problem.spec, problem.itemsize
    ways = ways_of(spec)
    assert not isinstance(ways, str)
    shape, compact = band(problem), tiles(problem)
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    phases, planes_in = _phases(spec), prod(steps(spec)[1])
    tile = microkernel.best_tile(problem.dtype, target, m * phases)
    points, outputs = prod(w.window for w in ways), prod(w.outputs for w in ways)
    depth = c * planes_in
    plane_size = compact.axes[1].pitch * compact.axes[2].pitch
    halo = (depth_taps(spec, ways) - 1) * plane_size
    most = int(target.l2 * 0.3 / (points * depth * item)) - halo
    most = max(round_up(max(most, 1), tile.lanes), 2 * tile.width, halo // 2)
    pieces = max(1, ceil(compact.length / most))
    if pieces * spec.groups < 2 * threads and compact.length >= 4 * tile.width:
        pieces = max(pieces, min(ceil(2 * threads / spec.groups), compact.length // (2 * tile.width)))
    if pieces > 1 and spec.groups < threads:
        pieces = round_up(pieces, threads)
    block = round_up(ceil(compact.length / pieces), tile.lanes)
    block_count = max(1, ceil(compact.length / block))
    room = max(1, int(target.l2 * 0.45 / ((points + outputs) * block * item * phases)))
    unit = max(1, tile.rows // phases)
    chunk = min(m, max(unit, room // unit * unit))
    chunks = ceil(m / chunk)
    chunk = min(m, round_up(ceil(m / chunks), unit))
    chunks = ceil(m / chunk)
    tile_blocks = ceil(chunk * phases / tile.rows)
    splits = 1
    if block_count * spec.groups < 2 * threads and chunks == 1 and m >= 2 * unit:
        chunk = round_up(ceil(m / threads), unit)
        chunks, tile_blocks = ceil(m / chunk), ceil(chunk * phases / tile.rows)
    if block_count * spec.groups < 2 * threads and chunks > 1:
        splits = min(chunks, ceil(threads / (block_count * spec.groups)))
        splits = ceil(chunks / ceil(chunks / splits))
    band_right = max(u for u in offsets(shape, ways, steps(spec)[1]))
    plane_pitch = round_up(band_reach(shape, compact, block + halo + tile.lanes) + band_right + 2 * tile.lanes, 16)
    channel_pitch = plane_pitch * shape.planes
    v_pitch = round_up(block + halo + 2 * tile.lanes, 16)
    rows = tile_blocks * tile.rows
    v_point = depth * v_pitch + (16 if depth * v_pitch % 32 == 0 else 0)
    m_point = rows * block + (16 if rows * block % 32 == 0 else 0)
    channels_a_pack = max(1, min(c, int(target.l2 * 0.12 / (channel_pitch * item))))
    out_rows = (block // compact.axes[2].pitch + 3) * shape.axes[0].out_step * shape.axes[1].out_step
    return Blocking(
        tile=tile, ways=ways, chunk=chunk, chunks=chunks, tile_blocks=tile_blocks, block=block, block_count=block_count,
        splits=splits, channels_a_pack=channels_a_pack, left=0, right=halo, plane_pitch=plane_pitch,
        channel_pitch=channel_pitch, v_pitch=v_pitch, v_point=v_point, m_point=m_point,
        table_bytes=max(round_up((out_rows + 1) * store.ENTRY * 8, 64), pack.table_bytes(plane_pitch, shape)),
        scratch_bytes=round_up(outputs * rows * block * item, 64),
        m_bytes=round_up(points * m_point * item, 64), v_bytes=round_up(points * v_point * item, 64),
        band_bytes=round_up((channels_a_pack * channel_pitch + 2 * tile.width) * item, 64),
    )  # fmt: skip


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """U in the order the tiles read it: [group][point][chunk][block][outer tap][channel][plane][row]."""
    spec, rows = problem.spec, how.tile.rows
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    kernel, stride = (1,) * (3 - spec.rank) + spec.kernel_size, (1,) * (3 - spec.rank) + spec.stride
    out_steps, in_steps = steps(spec)
    step, channel_step, group_step = weights.strides(spec)
    channel = weights.row_channels(how.chunks, how.chunk, how.tile_blocks, rows, prod(out_steps), m)
    phase = np.unravel_index(np.arange(how.tile_blocks * rows) % prod(out_steps), out_steps)
    plane = np.unravel_index(np.arange(prod(in_steps)), in_steps)
    place: Any = 0
    for i, way in enumerate(how.ways):  # axes: outer tap, plane, window of h, window of w, row
        tap = np.arange(way.taps)
        if spec.transposed:  # later taps read earlier inputs
            tap = tap[::-1]
        index = stride[i] * tap.reshape([-1 if j == (0, 2, 3)[i] else 1 for j in range(5)])
        index = index + phase[i] if spec.transposed else index + plane[i].reshape(1, -1, 1, 1, 1)
        place = np.where((place >= 0) & (index < kernel[i]), place * kernel[i] + index, -1)
    place = np.broadcast_to(place, (*place.shape[:4], how.tile_blocks * rows))
    place = place.reshape(how.ways[0].taps, len(plane[0]), -1, how.tile_blocks, rows)
    place = np.tile(place.transpose(3, 0, 1, 2, 4), (how.chunks, 1, 1, 1, 1))  # entry, outer tap, plane, window, row
    good = (channel[:, None, None, None] >= 0) & (place >= 0)
    where = np.where(good, channel[:, None, None, None] * step + place, -1)
    matrices = [_rows_of(WEIGHT[way.taps]) if way.transformed else None for way in how.ways[1:]]
    transform = weights.Transform(how.tile.element, rows, matrices[0], matrices[1])
    return weights.Layout(transform, spec.groups, c, prod(in_steps), channel_step, group_step, (where,))


def _rows_of(matrix: NDArray[Any]) -> weights.Matrix:
    return tuple(tuple(float(v) for v in row) for row in matrix)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer."""
    return (how.tile.rows, how.chunk)


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec, shape, compact = problem.spec, band(problem), tiles(problem)
    d, h, w = shape.axes
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    out_steps, in_steps = steps(spec)
    phases, planes_in = prod(out_steps), prod(in_steps)
    depth = c * planes_in
    rows = how.tile_blocks * how.tile.rows
    taps = how.ways[0].taps
    tap_table = [(t * h.positions * w.positions, t * depth * how.tile.rows) for t in range(taps)]
    phase_rows = np.zeros((d.out_step * h.out_step * w.out_step, 2), np.int64)
    fd, fh, fw = (way.outputs for way in how.ways)
    members = product(range(fd), range(out_steps[0]), range(fh), range(out_steps[1]), range(fw), range(out_steps[2]))
    for number, (_, ad, ih, ah, iw, aw) in enumerate(members):
        phase = (ad * out_steps[1] + ah) * out_steps[2] + aw
        phase_rows[number] = ((ih * fw + iw) * rows + phase, phases)
    image_in, image_out = prod(problem.input_size), prod(problem.output_size)
    slots = {
        "x_image": spec.in_channels * image_in, "x_channel": image_in, "x_d": h.size * w.size, "x_h": w.size,
        "size_d": d.size, "size_h": h.size, "size_w": w.size, "step_d": d.in_step, "step_h": h.in_step,
        "origin_d": d.base, "origin_h": h.base, "origin_w": w.base,
        "pitch_d": d.pitch, "pitch_h": h.pitch, "pitch_w": w.pitch, "batch": problem.batch,
        "planes_d": d.planes, "planes_h": h.planes, "planes_w": w.planes, "lead": 0,
        "plane_pitch": how.plane_pitch, "channel_pitch": how.channel_pitch,
        "out_d": d.out_size, "out_h": h.out_size, "out_w": w.out_size,
        "out_step_d": d.out_step, "out_step_h": h.out_step, "out_step_w": w.out_step,
        "crop_d": d.crop, "crop_h": h.crop, "crop_w": w.crop, "positions_w": w.positions,
        "y_image": spec.out_channels * image_out, "y_channel": image_out, "scratch_pitch": how.block,
        "rows_d": compact.axes[0].pitch, "rows_h": h.positions, "rows_w": w.positions,
        "tap_count": taps, "length": compact.length, "block": how.block, "block_count": how.block_count,
        "splits": how.splits, "chunks_a_split": ceil(how.chunks / how.splits), "chunks": how.chunks, "chunk": how.chunk,
        "tile_blocks": how.tile_blocks, "channels_out": m, "channels_in": c, "channels_a_pack": how.channels_a_pack,
        "left": how.left, "right": how.right, "depth": depth, "planes_in": planes_in,
        "weight_point": how.chunks * how.tile_blocks * how.tile.rows * depth * taps,
        "weight_group": how.points * how.chunks * how.tile_blocks * how.tile.rows * depth * taps,
        "x_group": c * image_in, "v_pitch": how.v_pitch, "v_point": how.v_point, "m_pitch": how.block,
        "m_point": how.m_point, "rows_used": rows,
        "band_left": max(offsets(shape, how.ways, in_steps)),
        "table_bytes": how.table_bytes, "scratch_bytes": how.scratch_bytes, "m_bytes": how.m_bytes,
        "v_bytes": how.v_bytes, "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    tables = {
        "taps": np.array(tap_table, np.int64),
        "reads": np.array(reads(shape, how.ways, in_steps, how.plane_pitch), np.int64),
        "phase_rows": phase_rows,
    }
    return jobs.Bound(slots, tables, tasks(problem, how))


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    sizes = "_".join(f"f{way.outputs}x{way.taps}" for way in how.ways if way.transformed)
    return f"{kind}_f{problem.itemsize * 8}_{NAME}_{sizes}_{how.tile}_{target.name}"


def _code(problem: Problem, how: Blocking) -> winograd_code.Code:
    inner = band(problem).axes[2]
    return winograd_code.Code(how.tile, how.ways, inner.in_step, inner.out_step, problem.spec.activation)


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(_code(problem, how))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return winograd_code.emit(_code(problem, how))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return how.block_count * problem.spec.groups * how.splits


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds of the GEMMs, padding of tiles included."""
    spec = problem.spec
    columns = round_up(tiles(problem).length, how.tile.lanes)
    depth = spec.in_channels // spec.groups * prod(steps(spec)[1]) * how.ways[0].taps
    return how.points * how.chunks * how.tile_blocks * how.tile.rows * depth * columns * spec.groups


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the GEMMs, the transforms, the bytes stored and the weights streamed, on the threads' share."""
    spec, tile = problem.spec, how.tile
    compact = tiles(problem)
    d, h, w = compact.axes
    tile_steps = macs(problem, how) / (tile.rows * tile.width)
    row_vectors = problem.batch * d.pitch * h.positions * ceil(w.positions / tile.lanes)
    vectors = round_up(compact.length, tile.lanes) / tile.lanes
    depth = spec.in_channels * prod(steps(spec)[1])
    rows = how.chunks * how.tile_blocks * tile.rows * spec.groups
    transforms = how.points * (5.0 * row_vectors * depth * how.splits + 5.0 * vectors * rows)
    stored = store.cycles(problem.batch * spec.out_channels, compact.axes, tile.lanes)
    moved = (prod(problem.input_shape) * how.splits + prod(problem.output_shape)) * problem.itemsize
    streamed = how.block_count * rows * depth * how.points * how.ways[0].taps / spec.groups * problem.itemsize
    parallel = min(threads, tasks(problem, how))
    cycles = tile_steps * microkernel.step_cycles(tile) * 1.05 + transforms + stored
    return (cycles / target.hertz + moved / 10e9 + streamed / 12e9) / parallel + 5e-6


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    phases = _phases(problem.spec)
    shared = f"the {phases} phases share one input transform, " if phases > 1 else ""
    return f"{shared}{how.points} points, blocks of {how.block} tiles x {how.chunk} channels"
