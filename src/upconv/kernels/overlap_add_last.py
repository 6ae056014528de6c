"""Overlap-add for arrays with their channels last and few output channels: (tap, channel) pairs in the lanes, rows of y from them.

With fewer output channels than lanes a vector of them is mostly empty. But every input of a transposed convolution is multiplied
with all taps, whatever the phase, so the lanes hold a whole patch: taps x output channels, of which none is computed in vain but
those that the last vector lacks. The row of x is the broadcast operand and is read where it stands. An output row then adds up
pieces of patches as they lie: stride x output channels of one patch, of its neighbours' next ones, and so on. A block goes down the
image a few rows at a time and keeps the patches that the next ones need too.

A convolution with stride 1 is the same with its taps reversed.
"""

from __future__ import annotations

from math import ceil, prod

import numpy as np

from upconv.codegen.target import Target
from upconv.kernels import job as jobs
from upconv.kernels import overlap_add_last_code, register_tile, scatter, weights
from upconv.kernels.geometry import folded
from upconv.kernels.overlap_add_last_blocks import Blocking, lengths
from upconv.kernels.overlap_add_last_blocks import blocking as blocking  # offered with the rest
from upconv.kernels.overlap_add_last_code import TOGETHER, Code
from upconv.kernels.scatter import axes, inputs_met, refuses, tasks_of
from upconv.spec import Problem

NAME = "overlap_add_last"
SLOTS = overlap_add_last_code.SLOTS
EXACT = True
LEAST = 4
"""Input channels: with fewer, patches end before they have begun."""


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec = problem.spec
    if folded(spec):
        return folded(spec)
    if target.lanes(problem.itemsize) < 2:
        return "no vectors"
    if spec.groups > 1:
        return "groups: their outputs are not neighbours"
    if refuses(spec):
        return refuses(spec)
    if spec.in_channels < LEAST:
        return f"{spec.in_channels} input channels: too few for a sum"
    return None


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """[tile of rows][input channel][row]; a row is a (tap, output channel) pair, taps reversed for a convolution."""
    spec, rows, taps = problem.spec, how.tile.rows, prod(problem.spec.kernel_size)
    step, channel_step, group_step = weights.strides(spec)
    pair = np.arange(ceil(how.lanes / rows) * rows)
    tap, channel = pair // spec.out_channels, pair % spec.out_channels
    place = channel * step + (tap if spec.transposed else taps - 1 - tap)
    offsets = np.where(pair < how.patch, place, -1).reshape(-1, 1, 1, 1, rows)
    transform = weights.Transform(how.tile.element, rows, spec.transposed)
    return weights.Layout(transform, 1, spec.in_channels, 1, channel_step, group_step, (offsets,), spec.in_channels)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer."""
    return (how.tile.rows,)


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec = problem.spec
    slots = {
        **scatter.slots(problem), "channels": spec.in_channels, "channels_out": spec.out_channels,
        "tail": scatter.rest(spec) * spec.out_channels, "wide": how.wide, "narrow": how.narrow, "pitch": how.pitch,
        "vectors": how.vectors, "room": how.room, "rows": how.rows, "ring": how.ring, "spare": how.cells,
        "table_bytes": how.table_bytes, "row_bytes": how.row_bytes, "bias_bytes": how.bias_bytes, "met_bytes": how.met_bytes,
        "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    return jobs.Bound(slots, scatter.tables(problem, lengths(problem), how.block), tasks(problem, how))


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    return f"{kind}_f{problem.itemsize * 8}_{NAME}_{how.tile}_{target.name}"


def _code(problem: Problem, how: Blocking) -> Code:
    return Code(how.tile, problem.spec.activation)


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(_code(problem, how))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return overlap_add_last_code.emit(_code(problem, how))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return tasks_of(lengths(problem), how.block)


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds, the unused lanes and what two blocks compute included."""
    return inputs_met(problem, how.block) * how.lanes * problem.spec.in_channels


END, STORED, ADDED, LISTED = 10.0, 5.0, (5.0, 5.0, 7.0), 60.0
"""Cycles that a tile of patches takes besides its steps, and for each vector that it stores; that adding up one vector for TOGETHER
positions takes, by `Target.kind`, and a row besides. Measured, with vectors of which two are multiplied in a cycle. The third of
ADDED over 150 layers: what is chosen takes 1.025 of the fastest kernel's time, 1.027 with 5."""


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the patches, the rows added up and copied, the bytes moved."""
    spec, tile = problem.spec, how.tile
    d, h, w = axes(problem)
    inputs, count = inputs_met(problem, how.block), tasks(problem, how)
    tiles = ceil(inputs / count / tile.turned) * count
    step = how.wide * register_tile.step_cycles(tile) + how.narrow * NARROW
    slow = 2 * tile.cycles
    ends = (how.wide + how.narrow) * END + how.lanes / tile.lanes * tile.turned * STORED * slow
    gemm = tiles * (spec.in_channels * step + ends)
    rows = problem.batch * d.out_size * h.out_size * ceil(w.positions / how.block[3])
    met = prod(spec.kernel_size[:-1]) / (d.step * h.step) * (1 - w.least)
    added = ceil(how.block[3] / TOGETHER) * how.vectors * (met * ADDED[target.kind] + 2 * TOGETHER) * slow
    copied = how.block[3] * w.step * spec.out_channels / tile.lanes
    moved = (inputs * spec.in_channels + prod(problem.output_shape)) * problem.itemsize
    weight = how.lanes * spec.in_channels * problem.itemsize
    streamed = tiles * weight * (weight > target.l2 / 2)  # less stays in the second-level cache
    share = jobs.busiest_share([(count, 1.0)], threads)
    return register_tile.seconds(target, share, gemm, rows * (added + copied + met * 8 + LISTED), moved, streamed)


NARROW = 4.3
"""Cycles of a step of a tile of one vector, whose products wait for each other."""


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    images, *sizes = how.block
    shape = " x ".join(str(n) for n in (images, *sizes[3 - problem.spec.rank :]))
    walked = f", {how.rows} rows at a time" if how.rows < how.block[2] else ""
    patches = f"patches of {prod(problem.spec.kernel_size)} taps in {how.patch} of {how.lanes} lanes"
    return f"channels last, {patches}, blocks of {shape} positions{walked}"
