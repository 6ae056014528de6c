"""Depthwise layers: one input channel a group. Nothing is copied, and nothing is a matrix product.

A row of y is the sum over the taps of the outer dimensions of rows of x, each met by all taps of the innermost dimension at
once: several vectors of neighbouring positions, each read for every phase that takes it, and the phases woven as they are
stored. Rows end where x ends: what lies beyond is read under masks. A row shorter than a vector is copied to y from a line of
workspace.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.target import Target
from upconv.kernels import depthwise_code, register_tile, store, weights
from upconv.kernels import job as jobs
from upconv.kernels.depthwise_code import Code
from upconv.kernels.geometry import folded, inner_taps, round_up
from upconv.spec import Problem

NAME = "depthwise"
SLOTS = depthwise_code.SLOTS
EXACT = True
CROSSING, BEGIN, WOVEN, EDGE, ROW = 1.5, 12.0, 1.5, 10.0, 15.0
"""Cycles, but for the first: what a read that may cross a line costs more; to begin a few vectors; a phase's store; a vector
near an end, besides; and a row. Measured."""
MOVED = 22e9
"""Bytes a second and thread, read and written."""
SUMS = 8
"""Sums at a time: as many as the latency of two FMAs a cycle asks for."""
TOGETHER, ODD = 2, 32
"""Planes that a task sums in turn, as far apart as half of its own, and the channels from which on their number may be odd. Memory
gives more to several readers and writers: 1.09 times as fast in geometric mean over six layers of 24 to 768 long rows, 1.08 over
nine others (1.01 to 1.20); four planes 1.04 and 1.02."""
ASKING = 2
"""The kind of processors (`Target.kind`) that ask for lines of y before they write them. Measured: 1.21 to 1.31 over six layers of
24 to 768 long rows and 1.10 over 24 others, on Intel's servers; elsewhere 0.98 and 1.00."""
MOST, LONGEST = 128, 64
"""Products in the innermost loop, which is written out, and taps of a row: longer ones would take a second to compile."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """What a task takes: channels of images, rows of each, positions of each row."""

    lanes: int
    vectors: int
    together: int
    planes: int
    rows: int
    positions: int
    asks: bool
    workspace_bytes: int


@dataclass(frozen=True, slots=True)
class Inner:
    """The innermost dimension: positions a row, and those whose reads lie in x and whose outputs lie in y."""

    positions: int
    low: int
    high: int


def _three(values: tuple[int, ...]) -> tuple[int, int, int]:
    """Sizes in three dimensions; missing ones have size 1."""
    d, h, w = (1,) * (3 - len(values)) + values
    return d, h, w


@lru_cache(maxsize=512)
def _inner(problem: Problem) -> Inner:
    """The innermost dimension of a problem."""
    size, out = problem.input_size[-1], problem.output_size[-1]
    reads, taps = inner_taps(problem.spec)
    low = max([0, *(-r for r in reads)])
    high = min([out // len(taps), *(size - r for r in reads)])
    return Inner(ceil(out / len(taps)), low, max(high, low))


def code_of(problem: Problem, lanes: int, vectors: int, together: int, asks: bool) -> Code:
    """What of a problem changes the code."""
    reads, taps = inner_taps(problem.spec)
    element = register_tile.ELEMENTS[problem.dtype]
    finish = store.store_of(element, lanes, len(taps), problem.spec.activation)
    return Code(element, lanes, vectors, reads, taps, not problem.spec.transposed, together, asks, finish)


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec, lanes = problem.spec, target.lanes(problem.itemsize)
    if folded(spec):
        return folded(spec)
    if spec.in_channels != spec.groups:
        return f"{spec.in_channels // spec.groups} input channels a group"
    if lanes < 2:
        return "no vectors"
    step = spec.stride[-1]
    if not spec.transposed and step > 1:
        return f"stride {step} of x: every read would be a gather"
    if step > lanes:
        return f"{step} phases, more than lanes"
    if spec.kernel_size[-1] > LONGEST:
        return f"{spec.kernel_size[-1]} taps in a row: too many to write out"
    return None


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """Six tasks a thread and more, of planes where there are enough, else of rows, else of parts of rows."""
    lanes, (_, taps) = target.lanes(problem.itemsize), inner_taps(problem.spec)
    vectors = max(1, min(SUMS // len(taps), MOST // sum(len(t) for t in taps)))
    planes, wanted = problem.batch * problem.spec.out_channels, 1 if threads == 1 else 6 * threads
    d, h, _ = _three(problem.output_size)
    inner, span = _inner(problem), vectors * lanes
    per_plane = ceil(wanted / planes)
    rows = ceil(d * h / min(per_plane, d * h))
    pieces = ceil(wanted / (planes * ceil(d * h / rows)))
    positions = round_up(ceil(inner.positions / pieces), span)
    together = _together(problem.spec.out_channels, wanted)
    planes_a_task = max(1, planes // wanted // together) * together
    asks = target.kind == ASKING
    code = code_of(problem, lanes, vectors, together, asks)
    return Blocking(lanes, vectors, together, planes_a_task, rows, positions, asks, code.line_bytes)


def _together(channels: int, wanted: int) -> int:
    """Planes that are summed in turn, whatever the batch, so that all run the same code.

    Where their number is odd the last is summed twice, which is too much where they are few.
    """
    few = channels < TOGETHER * wanted or (channels % TOGETHER and channels < ODD)
    return 1 if few else TOGETHER


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """The weights as they are: [output channel][tap]."""
    del how
    spec, taps = problem.spec, prod(problem.spec.kernel_size)
    per, (step, channel_step, group_step) = spec.out_channels // spec.groups, weights.strides(spec)
    offsets = np.arange(per)[:, None] * step + np.arange(taps)
    transform = weights.Transform(register_tile.ELEMENTS[problem.dtype], 1, spec.transposed)
    section = offsets[:, :, None, None, None]  # entry tap plane window row
    return weights.Layout(transform, spec.groups, 1, 1, channel_step, group_step, (section,), 1)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer: nothing."""
    del problem, how
    return ()


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec, inner = problem.spec, _inner(problem)
    size, out, kernel = (_three(v) for v in (problem.input_size, problem.output_size, spec.kernel_size))
    planes, rows = problem.batch * spec.out_channels, out[0] * out[1]
    parts_w, parts_h = ceil(inner.positions / how.positions), ceil(rows / how.rows)
    starts_d, taps_d = _outer(problem, 0, size[1] * size[2], kernel[1] * kernel[2])
    starts_h, taps_h = _outer(problem, 1, size[2], kernel[2])
    slots = {
        "x_plane": prod(size), "y_channel": prod(out), "size_w": size[2], "out_h": out[1], "out_w": out[2],
        "multiplier": spec.out_channels // spec.groups, "channels": spec.out_channels, "weight_channel": prod(kernel),
        "inner_low": inner.low, "inner_high": inner.high, "positions": inner.positions, "planes": planes, "rows": rows,
        "planes_a_task": how.planes, "rows_a_task": how.rows, "positions_a_task": how.positions, "parts_w": parts_w,
        "parts_h": parts_h, "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    tables = {"starts_d": starts_d, "starts_h": starts_h, "taps_d": taps_d, "taps_h": taps_h}
    return jobs.Bound(slots, tables, tasks(problem, how))


def _outer(problem: Problem, d: int, pitch: int, weight_pitch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first tap, taps in x and all taps of each output index; places in x and the weight of every tap) of an outer dimension.

    A transposed layer has no taps in padding; a convolution's stand behind the others.
    """
    spec = problem.spec
    if d < 3 - spec.rank:
        return np.array([(0, 1, 1)], np.int64), np.array([(0, 0)], np.int64)
    i = d - (3 - spec.rank)
    size, out, k, s, l = problem.input_size[i], problem.output_size[i], spec.kernel_size[i], spec.stride[i], spec.dilation[i]
    index, tap = np.arange(out)[:, None], np.arange(k)[None, :]
    if spec.transposed:
        read, rest = np.divmod(index + spec.padding[i][0] - l * tap, s)
    else:
        read, rest = s * index + l * tap - spec.padding[i][0], np.zeros((out, k), np.int64)
    there = (rest == 0) & (read >= 0) & (read < size)
    listed = there if spec.transposed else np.ones_like(there)
    order = np.argsort(~there, axis=1, kind="stable")
    taps = np.stack([read * pitch, np.broadcast_to(tap * weight_pitch, read.shape)], axis=-1)
    taps = np.take_along_axis(taps, order[..., None], axis=1)[np.take_along_axis(listed, order, axis=1)]
    count = listed.sum(axis=1)
    starts = np.stack([np.cumsum(count) - count, there.sum(axis=1), count], axis=-1)
    return np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(taps if len(taps) else [(0, 0)], np.int64)


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    return f"{kind}_f{problem.itemsize * 8}_{NAME}_{how.lanes}x{how.vectors}_{target.name}"


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(code_of(problem, how.lanes, how.vectors, how.together, how.asks))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return depthwise_code.emit(code_of(problem, how.lanes, how.vectors, how.together, how.asks))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    d, h, _ = _three(problem.output_size)
    planes = ceil(problem.batch * problem.spec.out_channels / how.planes)
    return planes * ceil(d * h / how.rows) * ceil(_inner(problem).positions / how.positions)


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds of the direct sum, borders not subtracted: none are done besides but for the lanes at rows' ends."""
    del how
    return problem.flops // 2


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: products or reads of each row's vectors, whichever take longer, the store, and the rows' ends."""
    spec, inner, (reads, taps) = problem.spec, _inner(problem), inner_taps(problem.spec)
    d, h, _ = _three(problem.output_size)
    outer = prod(spec.kernel_size[:-1]) / (prod(spec.stride[:-1]) if spec.transposed else 1)
    products, step = sum(len(t) for t in taps), len(taps)

    def sums(vectors: int) -> float:
        return outer * max(products * vectors / 2, (len(reads) * vectors * CROSSING + products) / 2) + BEGIN

    low = min(round_up(inner.low, how.lanes), inner.positions)
    whole = max(0, inner.high - low) // how.lanes
    ends = ceil(low / how.lanes) + ceil((inner.positions - low - whole * how.lanes) / how.lanes)
    inside, left = (whole + ends) * WOVEN * step, whole
    for vectors in code_of(problem, how.lanes, how.vectors, how.together, how.asks).blocks:
        inside, left = inside + left // vectors * sums(vectors), left % vectors
    rows = problem.batch * spec.out_channels * d * h
    cycles = rows * (inside + ends * (outer * (len(reads) + products) + EDGE) + ROW)
    moved = (prod(problem.input_shape) + prod(problem.output_shape)) * problem.itemsize
    share = ceil(tasks(problem, how) / threads) / tasks(problem, how)
    return max(cycles / target.hertz, moved / MOVED) * share + 5e-6


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    phases = len(inner_taps(problem.spec)[1])
    what = f"{phases} phases of a row at once" if phases > 1 else "rows"
    return f"{what}, {how.vectors} vectors at a time, tasks of {how.planes} planes x {how.rows} rows x {how.positions} positions"
