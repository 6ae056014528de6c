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

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.ir import Function, Value, module
from upconv.codegen.target import Target
from upconv.kernels import job as jobs
from upconv.kernels import microkernel, pack, store, weights
from upconv.kernels.geometry import Axis, Band
from upconv.kernels.microkernel import Tile
from upconv.spec import ConvSpec, Problem

NAME = "winograd"
EXACT = False
"""Rounding differs from the direct sum's, and a NaN spreads over its tile."""
ELEMENTS = {"float32": "float", "float64": "double"}
WINDOW = 4
OUTPUTS = {2: 3, 3: 2}
"""Taps a phase -> outputs of a tile."""

INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
OUTPUT = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, 0], [0, 1, 1, -1]]),
    3: np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
}
WEIGHT = {
    2: np.array([[1, 0], [0.5, 0.5], [0.5, -0.5], [0, 1]]) * 1.0,
    3: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]) * 1.0,
}

SLOTS = jobs.Slots(
    (
        *pack.SLOTS, *store.SLOTS, "out_step_w", "y", "weight", "taps", "tap_count", "reads", "length", "block",
        "block_count", "splits", "chunks_a_split", "chunks", "chunk", "tile_blocks", "channels_out", "channels_in",
        "channels_a_pack", "left", "right", "band_left", "depth", "planes_in", "weight_group", "weight_point", "x_group",
        "v_pitch", "v_point", "m_pitch", "m_point", "rows_used", "table_bytes", "scratch_bytes", "m_bytes", "v_bytes",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Way:
    """How one dimension is taken: `taps` a phase (2 or 3: transformed; 1 or, outermost, any: plain)."""

    taps: int
    transformed: bool

    @property
    def outputs(self) -> int:
        return OUTPUTS[self.taps] if self.transformed else 1

    @property
    def window(self) -> int:
        return WINDOW if self.transformed else 1


PLAIN = Way(1, False)


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


# -- geometry ------------------------------------------------------------------------------------------------------------


def ways_of(spec: ConvSpec) -> tuple[Way, Way, Way] | str:
    """How each of the three dimensions is taken, or why this layer is not for Winograd."""
    ways = [PLAIN] * (3 - spec.rank)
    for d, (k, s, l) in enumerate(zip(spec.kernel_size, spec.stride, spec.dilation, strict=True)):
        taps = ceil(k / s)
        inner = d >= spec.rank - 2
        if l != 1 and k != 1:
            return f"dilation {l}"
        if inner and taps in OUTPUTS:
            ways.append(Way(taps, True))
        elif (taps == 1 and k == s) or (not inner and s == 1) or k == s == 1:
            ways.append(Way(taps, False))
        else:
            return f"{taps} taps a phase from kernel {k}, stride {s}"
    if not any(way.transformed for way in ways):
        return "one tap a phase: nothing to save"
    return ways[0], ways[1], ways[2]


def _axis(spec: ConvSpec, d: int, size: int, out_size: int, way: Way) -> Axis:
    """One dimension, its positions counted in tiles; `first` is 0: the window's first input stands at its position."""
    k, s, (before, _) = spec.kernel_size[d], spec.stride[d], spec.padding[d]
    f = way.outputs
    if spec.transposed:
        low = before // s
        crop, out_step, in_step = before - s * low, s * f, f
        positions = ((out_size - 1 + crop) // s + 1 + f - 1) // f
        origin = low - (way.taps - 1)
    else:
        crop, out_step, in_step = 0, f, s * f
        positions = -(-out_size // f)
        origin = -before
    inner_step = 1 if spec.transposed else s
    reach = (way.window if way.transformed else way.taps) * inner_step
    if k < reach and not spec.transposed:
        reach = (way.window - 1) * inner_step + min(k, s)
    span = (reach - 1) // in_step
    return Axis(
        size=size, out_size=out_size, out_step=out_step, in_step=in_step, crop=crop, positions=positions,
        pitch=positions + span, base=origin, first=0, planes=min(in_step, reach), phases=(),
    )  # fmt: skip


@lru_cache(maxsize=512)
def band(problem: Problem) -> Band:
    """The tiles of a problem as a band: `base` holds the index of x at position 0, plane 0."""
    spec, ways = problem.spec, ways_of(problem.spec)
    assert not isinstance(ways, str)
    missing = [Axis(1, 1, 1, 1, 0, 1, 1, 0, 0, 1, ())] * (3 - spec.rank)
    axes = [
        _axis(spec, d, n, o, way)
        for d, (n, o, way) in enumerate(zip(problem.input_size, problem.output_size, ways[3 - spec.rank :], strict=True))
    ]
    a, b, c = [*missing, *axes]
    return Band(problem.batch, (a, b, c))


@lru_cache(maxsize=512)
def tiles(problem: Problem) -> Band:
    """The same tiles numbered without the band's halo: the columns of V and M. The outermost taps keep theirs."""
    ways = ways_of(problem.spec)
    assert not isinstance(ways, str)
    shape = band(problem)
    d, h, w = shape.axes
    outer = replace(d, pitch=d.positions + (0 if ways[0].transformed else ways[0].taps - 1))
    return Band(shape.batch, (outer, replace(h, pitch=h.positions), replace(w, pitch=w.positions)))


def _band_reach(shape: Band, compact: Band, columns: int) -> int:
    """Positions of the band that `columns` neighbouring tiles can span, the tiles' own included."""
    rows = columns // compact.axes[2].pitch + 2
    planes = rows // compact.axes[1].pitch + 2
    images = planes // compact.axes[0].pitch + 2
    rows += planes * (shape.axes[1].pitch - compact.axes[1].pitch)
    rows += images * (shape.axes[0].pitch - compact.axes[0].pitch) * shape.axes[1].pitch
    return rows * shape.axes[2].pitch


def _steps(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(out, in): phases of the output and planes of the input, three dimensions."""
    s, ones = (1,) * (3 - spec.rank) + spec.stride, (1, 1, 1)
    return (s, ones) if spec.transposed else (ones, s)


def _reads(shape: Band, ways: tuple[Way, Way, Way], planes_in: tuple[int, ...], how: Blocking) -> list[int]:
    """For each input plane b and each point of the window: where it stands in a channel of the packed band."""
    _, h, w = shape.axes
    strides = (h.pitch * w.pitch, w.pitch, 1)
    counts = (h.planes * w.planes, w.planes, 1)
    found = []
    for b in product(*(range(n) for n in planes_in)):
        for u in product(*(range(way.window) for way in ways)):
            flat = plane = 0
            for i, axis in enumerate(shape.axes):
                offset, number = divmod(planes_in[i] * u[i] + b[i], axis.in_step)
                flat += offset * strides[i]
                plane += number * counts[i]
            found.append(flat + plane * how.plane_pitch)
    return found


def _depth_taps(spec: ConvSpec, ways: tuple[Way, Way, Way]) -> int:
    """Taps of the outermost dimension, taken one by one."""
    return ways[0].taps if not ways[0].transformed else 1


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


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _phases(spec: ConvSpec) -> int:
    return prod(_steps(spec)[0])


@lru_cache(maxsize=512)
def _choose_tile(element: str, target: Target, rows: int) -> Tile:
    """The tile of a layer, for the fewest cycles over its rows."""
    offered = [t for t in microkernel.tiles(element, target) if t.vectors > 1]
    return min(offered, key=lambda t: ceil(rows / t.rows) * microkernel.step_cycles(t) / t.width)


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """Tiles a block as the second-level cache holds their transforms; output channels in chunks beside them."""
    spec, item = problem.spec, problem.itemsize
    ways = ways_of(spec)
    assert not isinstance(ways, str)
    shape, compact = band(problem), tiles(problem)
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    phases, planes_in = _phases(spec), prod(_steps(spec)[1])
    tile = _choose_tile(ELEMENTS[problem.dtype], target, m * phases)
    points, outputs = prod(w.window for w in ways), prod(w.outputs for w in ways)
    depth = c * planes_in
    plane_size = compact.axes[1].pitch * compact.axes[2].pitch
    halo = (_depth_taps(spec, ways) - 1) * plane_size
    most = int(target.l2 * 0.3 / (points * depth * item)) - halo
    most = max(_round_up(max(most, 1), tile.lanes), 2 * tile.width, halo // 2)
    pieces = max(1, ceil(compact.length / most))
    if pieces * spec.groups < 2 * threads and compact.length >= 4 * tile.width:
        pieces = max(pieces, min(ceil(2 * threads / spec.groups), compact.length // (2 * tile.width)))
    if pieces > 1 and spec.groups < threads:
        pieces = _round_up(pieces, threads)
    block = _round_up(ceil(compact.length / pieces), tile.lanes)
    block_count = max(1, ceil(compact.length / block))
    room = max(1, int(target.l2 * 0.45 / ((points + outputs) * block * item * phases)))
    unit = max(1, tile.rows // phases)
    chunk = min(m, max(unit, room // unit * unit))
    chunks = ceil(m / chunk)
    chunk = min(m, _round_up(ceil(m / chunks), unit))
    chunks = ceil(m / chunk)
    tile_blocks = ceil(chunk * phases / tile.rows)
    splits = 1
    if block_count * spec.groups < 2 * threads and chunks == 1 and m >= 2 * unit:
        chunk = _round_up(ceil(m / threads), unit)
        chunks, tile_blocks = ceil(m / chunk), ceil(chunk * phases / tile.rows)
    if block_count * spec.groups < 2 * threads and chunks > 1:
        splits = min(chunks, ceil(threads / (block_count * spec.groups)))
        splits = ceil(chunks / ceil(chunks / splits))
    band_right = max(u for u in _offsets(shape, ways, _steps(spec)[1]))
    plane_pitch = _round_up(_band_reach(shape, compact, block + halo + tile.lanes) + band_right + 2 * tile.lanes, 16)
    channel_pitch = plane_pitch * shape.planes
    v_pitch = _round_up(block + halo + 2 * tile.lanes, 16)
    rows = tile_blocks * tile.rows
    v_point = depth * v_pitch + (16 if depth * v_pitch % 32 == 0 else 0)
    m_point = rows * block + (16 if rows * block % 32 == 0 else 0)
    channels_a_pack = max(1, min(c, int(target.l2 * 0.12 / (channel_pitch * item))))
    out_rows = (block // compact.axes[2].pitch + 3) * shape.axes[0].out_step * shape.axes[1].out_step
    return Blocking(
        tile=tile, ways=ways, chunk=chunk, chunks=chunks, tile_blocks=tile_blocks, block=block, block_count=block_count,
        splits=splits, channels_a_pack=channels_a_pack, left=0, right=halo, plane_pitch=plane_pitch,
        channel_pitch=channel_pitch, v_pitch=v_pitch, v_point=v_point, m_point=m_point,
        table_bytes=max(_round_up((out_rows + 1) * store.ENTRY * 8, 64), pack.table_bytes(plane_pitch, shape)),
        scratch_bytes=_round_up(outputs * rows * block * item, 64),
        m_bytes=_round_up(points * m_point * item, 64), v_bytes=_round_up(points * v_point * item, 64),
        band_bytes=_round_up((channels_a_pack * channel_pitch + 2 * tile.width) * item, 64),
    )  # fmt: skip


def _offsets(shape: Band, ways: tuple[Way, Way, Way], planes_in: tuple[int, ...]) -> list[int]:
    """Flat offsets of the window's points within a plane."""
    _, h, w = shape.axes
    strides = (h.pitch * w.pitch, w.pitch, 1)
    return [
        sum((planes_in[i] * u[i] + planes_in[i] - 1) // axis.in_step * strides[i] for i, axis in enumerate(shape.axes))
        for u in product(*(range(way.window) for way in ways))
    ]


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """U in the order the tiles read it: [group][point][chunk][block][outer tap][channel][plane][row]."""
    spec, rows = problem.spec, how.tile.rows
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    kernel, stride = (1,) * (3 - spec.rank) + spec.kernel_size, (1,) * (3 - spec.rank) + spec.stride
    out_steps, in_steps = _steps(spec)
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
    offsets = np.where(good, channel[:, None, None, None] * step + place, -1)
    matrices = [_rows_of(WEIGHT[way.taps]) if way.transformed else None for way in how.ways[1:]]
    transform = weights.Transform(how.tile.element, rows, matrices[0], matrices[1])
    return weights.Layout(transform, spec.groups, c, prod(in_steps), channel_step, group_step, (offsets,))


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
    out_steps, in_steps = _steps(spec)
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
        "band_left": max(_offsets(shape, how.ways, in_steps)),
        "table_bytes": how.table_bytes, "scratch_bytes": how.scratch_bytes, "m_bytes": how.m_bytes,
        "v_bytes": how.v_bytes, "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    tables = {
        "taps": np.array(tap_table, np.int64),
        "reads": np.array(_reads(shape, how.ways, in_steps, how), np.int64),
        "phase_rows": phase_rows,
    }
    return jobs.Bound(slots, tables, tasks(problem, how))


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    sizes = "_".join(f"f{way.outputs}x{way.taps}" for way in how.ways if way.transformed)
    return f"{kind}_f{problem.itemsize * 8}_{NAME}_{sizes}_{how.tile}_{target.name}"


def _store_step(shape: Band, tile: Tile) -> int:
    step = shape.axes[2].out_step
    return step if step <= max(tile.lanes, 8) else 0


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    shape = band(problem)
    inner = shape.axes[2]
    return f"{how.tile!r} {how.ways!r} out {_store_step(shape, how.tile)} in {inner.in_step} {problem.spec.activation!r}"


def _combine(f: Function, row: NDArray[Any], values: list[Value]) -> Value:
    """The sum of values with coefficients 0, 1 and -1, the first of them 1."""
    total: Value | None = None
    negative: list[Value] = []
    for coefficient, value in zip(row, values, strict=True):
        if coefficient == 1:
            total = value if total is None else f.fadd(total, value)
        elif coefficient == -1:
            negative.append(value)
    assert total is not None
    for value in negative:
        total = f.fsub(total, value)
    return total


def _transform(f: Function, values: dict[tuple[int, int], Value], matrices: tuple[Any, Any]) -> dict[tuple[int, int], Value]:
    """A matrix applied along each of the two inner dimensions; None leaves a dimension alone."""
    for d, matrix in enumerate(matrices):
        if matrix is None:
            continue
        others = sorted({key[1 - d] for key in values})
        turned = {}
        for other in others:
            line = [values[(i, other) if d == 0 else (other, i)] for i in range(matrix.shape[1])]
            for i, row in enumerate(matrix):
                turned[(i, other) if d == 0 else (other, i)] = _combine(f, row, line)
        values = turned
    return values


def _emit_at(f: Function, s: dict[str, Value], column: Value) -> Value:
    """Where a tile, numbered without halo, stands in the band."""
    w, row = column % s["rows_w"], column // s["rows_w"]
    return _emit_row_at(f, s, row) + w


def _emit_row_at(f: Function, s: dict[str, Value], row: Value) -> Value:
    h, rest = row % s["rows_h"], row // s["rows_h"]
    d, n = rest % s["rows_d"], rest // s["rows_d"]
    return ((n * s["pitch_d"] + d) * s["pitch_h"] + h) * s["pitch_w"]


def _emit_input(tile: Tile, ways: tuple[Way, Way, Way]) -> Function:
    """`input(job, band, v, channels, low, high)`: the windows of tiles low..high-1 of `channels` channels, into V.

    The band starts at tile `low`. Rows are taken in rising order and written in whole vectors, as in `pack`.
    """
    f = Function(
        "input",
        [("job", "ptr"), ("band", "ptr"), ("v", "ptr"), ("channels", "i64"), ("low", "i64"), ("high", "i64")],
        attributes="internal noinline nounwind",
    )
    job, stored, v, channels, low, high = f.arguments
    stored, v = stored.of(tile.element), v.of(tile.element)
    s = {n: SLOTS.read(f, job, n) for n in ("channel_pitch", "planes_in", "v_pitch", "v_point", *_PLACES)}
    reads = SLOTS.pointer(f, job, "reads", "i64")
    points = list(product(range(ways[1].window), range(ways[2].window)))
    matrices = (INPUT if ways[1].transformed else None, INPUT if ways[2].transformed else None)
    begin = _emit_at(f, s, low)
    with f.loop(low // s["rows_w"], (high - 1) // s["rows_w"] + 1, name="row") as row:
        start = row * s["rows_w"]
        w0, w1 = f.maximum(low - start, 0), f.minimum(high - start, s["rows_w"])
        row_source = stored[_emit_row_at(f, s, row) + w0 - begin]
        row_target = v[start + w0 - low]
        with f.loop(0, channels, name="c") as c, f.loop(0, s["planes_in"], name="b") as b:
            source = row_source[c * s["channel_pitch"]]
            target = row_target[(c * s["planes_in"] + b) * s["v_pitch"]]
            addresses = [source[f.load("i64", reads[b * len(points) + i])] for i in range(len(points))]
            with f.loop(0, w1 - w0, tile.lanes, name="t") as t:
                window = {p: f.load(tile.type, a[t]) for p, a in zip(points, addresses, strict=True)}
                done = _transform(f, window, matrices)
                for i, p in enumerate(points):
                    f.store(done[p], target[s["v_point"] * i + t])
    return f


_PLACES = ("rows_d", "rows_h", "rows_w", "pitch_d", "pitch_h", "pitch_w")


def _emit_output(tile: Tile, ways: tuple[Way, Way, Way]) -> Function:
    """`output(job, m, scratch, rows, count)`: M back to outputs, F of them a position in each transformed dimension."""
    f = Function(
        "output",
        [("job", "ptr"), ("m", "ptr"), ("scratch", "ptr"), ("rows", "i64"), ("count", "i64")],
        attributes="internal noinline nounwind",
    )
    job, m, scratch, rows, count = f.arguments
    m, scratch = m.of(tile.element), scratch.of(tile.element)
    s = {n: SLOTS.read(f, job, n) for n in ("m_pitch", "m_point", "rows_used")}
    points = list(product(range(ways[1].window), range(ways[2].window)))
    matrices = tuple(OUTPUT[way.taps] if way.transformed else None for way in ways[1:])
    line = s["rows_used"] * s["m_pitch"]
    with f.loop(0, rows, name="r") as r:
        source, target = m[r * s["m_pitch"]], scratch[r * s["m_pitch"]]
        with f.loop(0, count, tile.lanes, name="t") as t:
            sums = {p: f.load(tile.type, source[s["m_point"] * i + t]) for i, p in enumerate(points)}
            done = _transform(f, sums, (matrices[0], matrices[1]))
            for i, p in enumerate(sorted(done)):
                f.store(done[p], target[line * i + t])
    return f


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile, shape = how.tile, band(problem)
    inner = shape.axes[2]
    do_pack = pack.emit(pack.Pack(tile.element, tile.lanes, inner.in_step), SLOTS)
    do_rows = store.emit_rows(SLOTS)
    finish = store.Store(tile.element, tile.lanes, _store_step(shape, tile), problem.spec.activation)
    do_store = store.emit(finish, SLOTS)
    do_tile, do_narrow = microkernel.emit(tile), microkernel.emit(replace(tile, vectors=1), "narrow")
    do_input, do_output = _emit_input(tile, how.ways), _emit_output(tile, how.ways)
    points = how.points

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        position, rest = number % s["block_count"], number // s["block_count"]
        split, group = rest % s["splits"], rest // s["splits"]
        low = position * s["block"]
        width = f.minimum(s["length"] - low, s["block"])
        table = workspace
        scratch = workspace[s["table_bytes"]].of(tile.element)
        m = workspace[s["table_bytes"] + s["scratch_bytes"]].of(tile.element)
        v_at = s["table_bytes"] + s["scratch_bytes"] + s["m_bytes"]
        v, stored = workspace[v_at].of(tile.element), workspace[v_at + s["v_bytes"]].of(tile.element)
        x = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"]]
        y = SLOTS.pointer(f, job, "y", tile.element)
        weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"]]
        wide = (width + s["right"] + (tile.lanes - 1)) // tile.lanes * tile.lanes
        from_band, to_band = _emit_at(f, s, low), _emit_at(f, s, low + wide - 1) + 1 + s["band_left"]
        with f.loop(0, s["channels_in"], s["channels_a_pack"], name="pc") as pc:
            several = f.minimum(s["channels_in"] - pc, s["channels_a_pack"])
            f.call(do_pack, [job, table, x[pc * s["x_channel"]], stored, from_band, to_band, several])
            f.call(do_input, [job, stored, v[pc * s["planes_in"] * s["v_pitch"]], several, low, low + wide])
        count = f.call(do_rows, [job, table, low, low + width])
        first = split * s["chunks_a_split"]
        with f.loop(first, f.minimum(first + s["chunks_a_split"], s["chunks"]), name="ic") as ic:
            with f.loop(0, points, name="point") as p:
                left = weight[p * s["weight_point"]]
                _emit_gemm(f, job, s, ic, left, v[p * s["v_point"]], m[p * s["m_point"]], width, tile, (do_tile, do_narrow))
            f.call(do_output, [job, m, scratch, s["rows_used"], width])
            channel = ic * s["chunk"]
            number_out = group * s["channels_out"] + channel
            several = f.minimum(s["channels_out"] - channel, s["chunk"])
            f.call(do_store, [job, table, count, scratch, y[number_out * s["y_channel"]], number_out, several])

    entry = jobs.emit_entry("entry", SLOTS, task)
    return module([do_tile, do_narrow, do_pack, do_rows, do_store, do_input, do_output, entry])


_TASK_SLOTS = (
    "length", "block", "block_count", "splits", "chunks_a_split", "chunks", "chunk", "tile_blocks", "channels_out",
    "channels_in", "channels_a_pack", "x_channel", "left", "right", "band_left", "depth", "planes_in", "weight_group",
    "weight_point", "x_group", "v_pitch", "v_point", "m_pitch", "m_point", "rows_used", "y_channel", "tap_count",
    "table_bytes", "scratch_bytes", "m_bytes", "v_bytes", *_PLACES,
)  # fmt: skip


def _emit_gemm(
    f: Function,
    job: Value,
    s: dict[str, Value],
    ic: Value,
    weight: Value,
    v: Value,
    m: Value,
    width: Value,
    tile: Tile,
    do_tiles: tuple[Function, Function],
) -> None:
    """One point of one chunk: M = U V, wide tiles, then narrow ones."""
    taps = SLOTS.pointer(f, job, "taps", "i64")
    whole = width // tile.width * tile.width
    depth = s["depth"] * s["tap_count"] * tile.rows
    with f.loop(0, s["tile_blocks"], name="ir") as ir:
        left = weight[(ic * s["tile_blocks"] + ir) * depth]
        row = m[ir * tile.rows * s["m_pitch"]]
        ends = ((f.value(0), whole, tile.width, do_tiles[0]), (whole, width, tile.lanes, do_tiles[1]))
        for start, stop, step, do in ends:
            with f.loop(start, stop, step, name="jr") as jr:
                f.call(do, [left, v[jr], taps, s["tap_count"], s["depth"], s["v_pitch"], row[jr], s["m_pitch"]])


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return how.block_count * problem.spec.groups * how.splits


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds of the GEMMs, padding of tiles included."""
    spec = problem.spec
    columns = _round_up(tiles(problem).length, how.tile.lanes)
    depth = spec.in_channels // spec.groups * prod(_steps(spec)[1]) * how.ways[0].taps
    return how.points * how.chunks * how.tile_blocks * how.tile.rows * depth * columns * spec.groups


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the GEMMs, the transforms, the bytes stored and the weights streamed, on the threads' share."""
    spec, tile = problem.spec, how.tile
    compact = tiles(problem)
    d, h, w = compact.axes
    steps = macs(problem, how) / (tile.rows * tile.width)
    row_vectors = problem.batch * d.pitch * h.positions * ceil(w.positions / tile.lanes)
    vectors = _round_up(compact.length, tile.lanes) / tile.lanes
    depth = spec.in_channels * prod(_steps(spec)[1])
    rows = how.chunks * how.tile_blocks * tile.rows * spec.groups
    transforms = how.points * (5.0 * row_vectors * depth * how.splits + 5.0 * vectors * rows)
    stored = store.cycles(problem.batch * spec.out_channels, compact.axes, tile.lanes)
    moved = (prod(problem.input_shape) * how.splits + prod(problem.output_shape)) * problem.itemsize
    streamed = how.block_count * rows * depth * how.points * how.ways[0].taps / spec.groups * problem.itemsize
    parallel = min(threads, tasks(problem, how))
    cycles = steps * microkernel.step_cycles(tile) * 1.05 + transforms + stored
    return (cycles / target.hertz + moved / 10e9 + streamed / 12e9) / parallel + 5e-6


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    phases = _phases(problem.spec)
    shared = f"the {phases} phases share one input transform, " if phases > 1 else ""
    return f"{shared}{how.points} points, blocks of {how.block} tiles x {how.chunk} channels"
