"""The weight gradient of a convolution: one GEMM whose depth is the batch's output positions.

`dW[m, c, k] = sum over n, o of g[n, m, o] * x[n, c, s*o + d*k - p]`. x is copied, with its zeros, into the band of the
convolution of stride 1 (`geometry`): an output stands at one index there and a tap is one offset. A transposed layer's
gradient is that of its dual convolution, which has the same weight, reads grad_output and is answered by x.

A task owns a block of channels (jc of x, ic of g) and a share of the positions (pc). Tasks that share a block leave their
sums side by side; the last to end adds them up in order, so a result depends on the number of threads, not on their luck.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.ir import Function, Value, module
from upconv.codegen.target import Target
from upconv.kernels import job as jobs
from upconv.kernels import register_tile, weight_tile
from upconv.kernels.geometry import Band, axis, round_up
from upconv.kernels.weight_tile import Tile
from upconv.spec import Problem

NAME = "weight_gradient"
SLOTS = jobs.Slots(
    (
        *weight_tile.RUN_SLOTS,
        "x", "x_channel", "channel_pitch", "gaps", "zeros", "g", "w", "partial", "counters", "offsets",
        "out_d", "out_h", "out_w", "stride_d", "stride_h", "stride_w",
        "g_image", "g_channel", "g_group", "x_group", "w_group", "w_channel", "panel_pitch",
        "taps", "channels_in", "channels_out", "c_block", "c_blocks", "m_block", "m_blocks",
        "positions", "block", "share", "splits", "left", "right", "sums_pitch", "sums_size",
        "runs_at", "band_at", "panel_at", "sums_at",
    )
)  # fmt: skip
_NOTHING = np.int64(-(1 << 62))
DEPTH = 256
"""Positions a tile adds up in registers: its panel of g stays in the first-level cache."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops, the same for every group, and where things lie in a thread's workspace."""

    tile: Tile
    c_block: int
    c_blocks: int
    m_block: int
    m_blocks: int
    block: int
    share: int
    splits: int
    left: int
    right: int
    channel_pitch: int
    panel_pitch: int
    sums_pitch: int
    sums_size: int
    at: tuple[int, int, int, int]
    workspace_bytes: int
    partial_bytes: int


@lru_cache(maxsize=512)
def band(problem: Problem) -> Band:
    """The band of the convolution of stride 1, of whose outputs every stride-th is meant."""
    spec = problem.spec
    sizes = zip(problem.input_size, problem.output_size, spec.kernel_size, spec.stride, spec.padding, spec.dilation, strict=True)
    axes = [axis(False, n, s * (o - 1) + 1, k, 1, lo, d, planes=False) for n, o, k, s, (lo, _), d in sizes]
    d, h, w = [*[axis(False, 1, 1, 1, 1, 0, 1)] * (3 - spec.rank), *axes]
    return Band(problem.batch, (d, h, w))


def _reads(problem: Problem) -> NDArray[np.int64]:
    """Each tap's offset in the band, or _NOTHING for a tap that meets only padding."""
    kernel = _three(problem.spec.kernel_size)
    found = np.full(kernel, _NOTHING)
    for tap in band(problem).taps()[0] or ():
        found[tap.kernel] = tap.read.flat
    return found.reshape(-1)


def _padded(shape: Band) -> bool:
    """Whether the band has positions that are no element of x."""
    return any(a.base < 0 or a.base + a.pitch > a.size for a in shape.axes)


def _three(values: tuple[int, ...]) -> tuple[int, int, int]:
    """One value a dimension, 1 for those that are missing."""
    d, h, w = (1,) * (3 - len(values)) + tuple(values)
    return d, h, w


def _flat(problem: Problem, output: NDArray[np.int64]) -> NDArray[np.int64]:
    """The band index of each output, counted through the batch."""
    shape, (_, oh, ow), (sd, sh, sw) = band(problem), _three(problem.output_size), _three(problem.spec.stride)
    od = _three(problem.output_size)[0]
    d, h, w = (a.pitch for a in shape.axes)
    row, i = np.divmod(output, ow)
    rest, j = np.divmod(row, oh)
    n, k = np.divmod(rest, od)
    found: NDArray[np.int64] = ((n * d + k * sd) * h + j * sh) * w + i * sw
    return found


def _choose_tile(element: str, target: Target, channels: int, rows: int) -> Tile:
    """The tile that takes least time for this many channels in its lanes and this many rows."""
    return min(
        weight_tile.tiles(element, target),
        key=lambda t: (ceil(channels / t.width) * ceil(rows / t.rows) * t.cycles, -t.rows * t.vectors),
    )


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """Blocks whose sums, band and panels share the second-level cache, and tasks for every thread."""
    spec, item = problem.spec, problem.itemsize
    c, m, taps = spec.in_channels // spec.groups, spec.out_channels // spec.groups, prod(spec.kernel_size)
    tile = _choose_tile(register_tile.ELEMENTS[problem.dtype], target, m, c * taps)
    outputs = problem.batch * prod(problem.output_size)
    block = min(DEPTH, outputs)
    panels = ceil(m / tile.width)
    m_blocks = ceil(panels / max(1, ceil(256 * 4 / item / tile.width)))
    m_block = ceil(panels / m_blocks) * tile.width
    m_blocks = ceil(m / m_block)
    flats = [flat for flat in _reads(problem).tolist() if flat != _NOTHING] or [0]
    left, right = max(0, -min(flats)), max(0, max(flats))
    starts = np.arange(0, outputs, block)
    spans = _flat(problem, np.minimum(starts + block, outputs) - 1) - _flat(problem, starts)
    reach = round_up(int(spans.max()) + 1 + left + right + tile.lanes, 16)
    room = min(target.l2 * 0.4 / item / (taps * m_block), target.l2 * 0.3 / item / reach)
    c_blocks = ceil(c / max(1, int(room)))
    work = outputs * c * m * taps * spec.groups
    wanted = 1 if threads == 1 else min(4 * threads, ceil(work / 500_000))
    if c_blocks * m_blocks * spec.groups < wanted and outputs < 4 * block:
        c_blocks = min(c, ceil(wanted / (m_blocks * spec.groups)))
    c_block = ceil(c / c_blocks)
    c_blocks = ceil(c / c_block)
    channel_pitch = reach + 16 * (reach * item % 1024 == 0)
    rows = round_up(c_block * taps, tile.rows)
    sums_pitch = rows * tile.width
    sums_size = m_block // tile.width * sums_pitch
    blocks = c_blocks * m_blocks * spec.groups
    splits = min(ceil(wanted / blocks), ceil(outputs / block), max(1, (32 << 20) // (blocks * sums_size * item)))
    share = round_up(ceil(outputs / splits), block)
    splits = ceil(outputs / share)
    panel_pitch = (block + tile.lanes) * tile.width
    sizes = (
        (block + weight_tile.INDEX_LANES) * 8,
        (reach // band(problem).axes[2].pitch + 4) * weight_tile.RUN * 8,
        ((c_block + 1) * channel_pitch + tile.lanes) * item,
        m_block // tile.width * panel_pitch * item,
        sums_size * item if splits == 1 else 0,
    )
    ends = np.cumsum([round_up(size, 64) for size in sizes]).tolist()
    return Blocking(
        tile=tile,
        c_block=c_block,
        c_blocks=c_blocks,
        m_block=m_block,
        m_blocks=m_blocks,
        block=block,
        share=share,
        splits=splits,
        left=left,
        right=right,
        channel_pitch=channel_pitch,
        panel_pitch=panel_pitch,
        sums_pitch=sums_pitch,
        sums_size=sums_size,
        at=(ends[0], ends[1], ends[2], ends[3]),
        workspace_bytes=ends[4],
        partial_bytes=0 if splits == 1 else blocks * splits * sums_size * item,
    )


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return how.c_blocks * how.m_blocks * how.splits * problem.spec.groups


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes. The caller adds x, g, w, the workspace and, with splits, `partial`.

    Taps that meet only padding read a channel of zeros behind the others.
    """
    spec, shape = problem.spec, band(problem)
    d, h, w = shape.axes
    out, stride = _three(problem.output_size), _three(spec.stride)
    flats = _reads(problem)
    c, m, taps = spec.in_channels // spec.groups, spec.out_channels // spec.groups, len(flats)
    image_in, image_out = prod(problem.input_size), prod(problem.output_size)
    slots = {
        "x_image": spec.in_channels * image_in, "size_d": d.size, "size_h": h.size, "size_w": w.size,
        "base_d": d.base, "base_h": h.base, "base_w": w.base,
        "pitch_d": d.pitch, "pitch_h": h.pitch, "pitch_w": w.pitch, "batch": problem.batch, "lead": ceil(how.left / shape.volume),
        "x_channel": image_in, "channel_pitch": how.channel_pitch, "gaps": int(_padded(shape)),
        "zeros": how.channel_pitch if (flats == _NOTHING).any() else 0,
        "out_d": out[0], "out_h": out[1], "out_w": out[2],
        "stride_d": stride[0], "stride_h": stride[1], "stride_w": stride[2],
        "g_image": spec.out_channels * image_out, "g_channel": image_out, "g_group": m * image_out,
        "x_group": c * image_in, "w_group": m * c * taps, "w_channel": c * taps, "panel_pitch": how.panel_pitch,
        "taps": taps, "channels_in": c, "channels_out": m,
        "c_block": how.c_block, "c_blocks": how.c_blocks, "m_block": how.m_block, "m_blocks": how.m_blocks,
        "positions": problem.batch * image_out, "block": how.block, "share": how.share, "splits": how.splits,
        "left": how.left, "right": how.right, "sums_pitch": how.sums_pitch, "sums_size": how.sums_size,
        "runs_at": how.at[0], "band_at": how.at[1], "panel_at": how.at[2], "sums_at": how.at[3],
        "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    channel_at = np.arange(how.c_block)[:, None] * how.channel_pitch + how.left
    offsets = np.where(flats == _NOTHING, how.c_block * how.channel_pitch, channel_at + flats).reshape(-1)
    missing = round_up(len(offsets), how.tile.rows) - len(offsets)
    tables = {
        "offsets": np.concatenate([offsets, np.repeat(offsets[-1:], missing)]),
        "counters": np.zeros(how.c_blocks * how.m_blocks * spec.groups, np.int64),
    }
    return jobs.Bound(slots, tables, tasks(problem, how))


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    return f"{NAME}_f{problem.itemsize * 8}_{how.tile}_{target.name}"


def code_parameters(how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return f"{how.tile!r}"


def emit(how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = how.tile
    do_runs = weight_tile.emit_runs(SLOTS)
    do_copy = weight_tile.emit_copy(tile, SLOTS)
    do_positions = weight_tile.emit_positions(SLOTS)
    do_transpose = weight_tile.emit_transpose(tile, SLOTS)
    do_tile = weight_tile.emit_tile(tile)
    do_finish = weight_tile.emit_finish(tile, SLOTS)

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        split, owner = number % s["splits"], number // s["splits"]
        mb, rest = owner % s["m_blocks"], owner // s["m_blocks"]
        cb, group = rest % s["c_blocks"], rest // s["c_blocks"]
        first_c, first_m = cb * s["c_block"], mb * s["m_block"]
        channels = f.minimum(s["channels_in"] - first_c, s["c_block"])
        width = f.minimum(s["channels_out"] - first_m, s["m_block"])
        index, runs = workspace.of("i64"), workspace[s["runs_at"]].of("i64")
        band, panels = workspace[s["band_at"]].of(tile.element), workspace[s["panel_at"]].of(tile.element)
        x = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"] + first_c * s["x_channel"]]
        g = SLOTS.pointer(f, job, "g", tile.element)[group * s["g_group"] + first_m * s["g_channel"]]
        partial = SLOTS.pointer(f, job, "partial", tile.element)[owner * s["splits"] * s["sums_size"]]
        private = s["splits"].equals(1)
        every = f.select(private, workspace[s["sums_at"]], partial).of(tile.element)
        sums = every[split * s["sums_size"]]
        rows = channels * s["taps"]
        begin = split * s["share"]
        end = f.minimum(begin + s["share"], s["positions"])
        nothing = band[s["c_block"] * s["channel_pitch"]]
        with f.loop(0, s["zeros"], tile.lanes, name="zero") as i:
            f.store(f.splat(0.0, tile.type), nothing[i])
        with f.loop(begin, end, s["block"], name="pc") as low:
            high = f.minimum(low + s["block"], end)
            origin = weight_tile.flat(s, low // s["out_w"]) + low % s["out_w"] * s["stride_w"]
            past = weight_tile.flat(s, (high - 1) // s["out_w"]) + (high - 1) % s["out_w"] * s["stride_w"] + 1
            f.call(do_positions, [job, index, low, high, origin])
            first, last = origin - s["left"], past + s["right"]
            count = f.call(do_runs, [job, runs, first, last])
            f.call(do_copy, [job, x, band, runs, count, channels, last - first])
            f.call(do_transpose, [job, g, width, panels, low, high])
            fresh = f.select(low.equals(begin), 1, 0)
            offsets = SLOTS.pointer(f, job, "offsets", "i64")
            with f.loop(0, (width + (tile.width - 1)) // tile.width, name="ic") as ic:
                panel, block_sums = panels[ic * s["panel_pitch"]], sums[ic * s["sums_pitch"]]
                with f.loop(0, rows, tile.rows, name="jr") as jr:
                    target = block_sums[jr * tile.width]
                    f.call(do_tile, [panel, band, index, high - low, offsets[jr], target, fresh])
        counter = SLOTS.pointer(f, job, "counters", "i64")[owner]
        ended = f.emit(f"atomicrmw add ptr {counter.text}, i64 1 acq_rel, align 8", "i64")
        with f.when(ended.equals(s["splits"] - 1), name="last"):
            f.store(f.value(0), counter)
            out = SLOTS.pointer(f, job, "w", tile.element)
            place = out[group * s["w_group"] + first_m * s["w_channel"] + first_c * s["taps"]]
            f.call(do_finish, [job, every, rows, width, place])

    return module([do_positions, do_runs, do_copy, do_transpose, do_tile, do_finish, jobs.emit_entry("entry", SLOTS, task)])


_TASK_SLOTS = (
    *weight_tile.POSITION_SLOTS,
    "zeros", "channel_pitch", "x_group", "x_channel", "g_group", "g_channel", "w_group", "w_channel",
    "taps", "channels_in", "channels_out",
    "c_block", "c_blocks", "m_block", "m_blocks", "positions", "block", "share", "splits", "left", "right",
    "panel_pitch", "sums_pitch", "sums_size", "runs_at", "band_at", "panel_at", "sums_at",
)  # fmt: skip


# -- what a plan says ----------------------------------------------------------------------------------------------------


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds done, padding of tiles included."""
    spec, tile = problem.spec, how.tile
    rows = round_up(how.c_block * prod(problem.spec.kernel_size), tile.rows) * how.c_blocks
    columns = round_up(spec.out_channels // spec.groups, tile.width)
    return problem.batch * prod(problem.output_size) * rows * columns * spec.groups


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    shares = f", positions in {how.splits} shares" if how.splits > 1 else ""
    return (
        f"GEMM over {problem.batch * prod(problem.output_size)} positions, blocks of {how.c_block} channels x "
        f"{prod(problem.spec.kernel_size)} taps x {how.m_block} channels, {how.block} positions at a time{shares}"
    )
