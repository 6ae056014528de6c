"""Depthwise layers of arrays with their channels last: one channel a group, channels in the lanes, nothing copied.

Each output position is a sum of rows of x, all channels of one position, times rows of the weight. Where the rows stand is looked
up in a table (`positions.py`), so that strides, dilations and padding are all the same to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import numpy as np

from upconv.codegen.target import Target
from upconv.kernels import depthwise_last_code, positions, register_tile, weights
from upconv.kernels import job as jobs
from upconv.kernels.depthwise_last_code import PHASE, WORK, Code
from upconv.kernels.geometry import band, folded, round_up
from upconv.kernels.positions import columns_of, phase_sets, place_of
from upconv.spec import Problem

NAME = "depthwise_last"
SLOTS = depthwise_last_code.SLOTS
EXACT = True
VECTORS = 4
"""Vectors of channels at a time."""
TABLE, MOST = 16 << 10, 4096
"""Bytes of a task's table, which stays in the first-level cache beside the rows; and about how many tasks there are at most, for
which it is longer in very large images."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `block` counts positions of a phase."""

    lanes: int
    vectors: int
    block: int
    table_bytes: int
    asks: bool

    @property
    def workspace_bytes(self) -> int:
        return self.table_bytes


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec, lanes = problem.spec, target.lanes(problem.itemsize)
    if folded(spec):
        return folded(spec)
    if spec.in_channels != spec.groups:
        return f"{spec.in_channels // spec.groups} input channels a group"
    if spec.out_channels != spec.groups:
        return f"{spec.out_channels // spec.groups} output channels a group: they are no neighbours of their inputs"
    if lanes < 2:
        return "no vectors"
    if spec.groups < lanes:
        return f"{spec.groups} channels: fewer than lanes"
    return None


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """As many positions as the table has room for; fewer for idle threads, more for very many."""
    lanes, sets = target.lanes(problem.itemsize), phase_sets(problem)
    taps = max((len(s.reads) for s in sets), default=0)
    columns = max((columns_of(problem, s) for s in sets), default=1)
    total = sum(columns_of(problem, s) * len(s.phases) for s in sets)
    block = max(TABLE // ((taps + 1) * 8), ceil(total / MOST), 1)
    block = min(block, max(1, ceil(total / (6 * threads))), max(1, columns))
    vectors = min(VECTORS, problem.spec.groups // lanes)
    return Blocking(lanes, vectors, block, round_up((taps + 1) * block * 8, 64), target.kind == 2 and vectors > 1)


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """[phase][tap][channel], phases by the inputs that they read."""
    del how
    spec = problem.spec
    _, channel_step, group_step = weights.strides(spec)
    taps = [tap for phases in phase_sets(problem) for kernels in phases.kernels for tap in kernels]
    offsets = np.array(taps, np.int64)[:, None] + np.arange(spec.groups) * group_step
    section = offsets.reshape(-1, 1, 1, 1, 1)  # entry tap plane window row
    transform = weights.Transform(register_tile.ELEMENTS[problem.dtype], 1, False)
    return weights.Layout(transform, 1, 1, 1, channel_step, group_step, (section,) if taps else (), 1)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer."""
    del how
    return tuple((s.phases, s.kernels) for s in phase_sets(problem))


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec, shape = problem.spec, band(problem, cropped=True)
    phases: list[tuple[int, int]] = []
    work: list[tuple[float, int, int, int, int]] = []
    at = 0
    for number, some in enumerate(phase_sets(problem)):
        columns = columns_of(problem, some)
        for place in some.phases:
            blocks = range(0, columns, how.block)
            work += [(low / columns, number, low, min(low + how.block, columns), len(phases)) for low in blocks]
            phases.append((place_of(shape, place) * spec.out_channels, at))
            at += len(some.reads) * spec.groups
    work.sort()  # phases write beside each other
    slots = {
        **positions.slots(problem), "channels": spec.groups, "table_bytes": how.table_bytes,
        "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    tables = {
        **positions.tables(problem),
        "work": positions.table([task for _, *task in work], WORK),
        "phases": positions.table(phases, PHASE),
    }
    return jobs.Bound(slots, tables, len(work))


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    return f"{kind}_f{problem.itemsize * 8}_{NAME}_{how.lanes}x{how.vectors}_{target.name}"


def _code(problem: Problem, how: Blocking) -> Code:
    return Code(register_tile.ELEMENTS[problem.dtype], how.lanes, how.vectors, problem.spec.activation, how.asks)


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(_code(problem, how))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return depthwise_last_code.emit(_code(problem, how))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return sum(ceil(columns_of(problem, s) / how.block) * len(s.phases) for s in phase_sets(problem))


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds, what meets padding included."""
    del how
    sums = sum(columns_of(problem, s) * len(s.phases) * len(s.reads) for s in phase_sets(problem))
    return sums * problem.spec.groups


LISTED, BEGIN, TAP = 5.0, 8.0, 4.0
"""Cycles of listing where a tap reads, of beginning a few vectors of channels, and of a tap of four of them. Measured."""
MOVED = 12e9
"""Bytes a second and thread, read and written."""


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the sums of each position, the tables, or the bytes moved, whichever take longer."""
    pieces = ceil(problem.spec.groups / (how.lanes * how.vectors))
    cycles = 0.0
    for s in phase_sets(problem):
        columns, taps = columns_of(problem, s) * len(s.phases), len(s.reads)
        cycles += columns * ((taps + 1) * LISTED + pieces * (BEGIN + taps * TAP * how.vectors / VECTORS))
    moved = (prod(problem.input_shape) + prod(problem.output_shape)) * problem.itemsize
    share = jobs.busiest_share([(max(1, tasks(problem, how)), 1.0)], threads)
    return max(cycles / target.hertz, moved / MOVED) * share + 5e-6


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    return f"channels last, {how.vectors} vectors of channels at a time, tasks of {how.block} positions of a phase"
