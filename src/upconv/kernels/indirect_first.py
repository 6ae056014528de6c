"""The direct sum of few positions, on arrays with their channels first: as `indirect.py` has it for channels last.

Where there are a handful of positions, weights are what a call is about. With output channels in the lanes each vector of them is
read once, in the order of memory, and meets as many positions as a tile has columns. What x has is little, so that each task copies
all of it to channels-last; sums are scattered over the channels of y, all those of a channel by one task: lines that two threads
write at the same time go back and forth between them.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod
from typing import Any

from upconv.codegen.target import Target
from upconv.kernels import indirect, register_tile
from upconv.kernels import job as jobs
from upconv.kernels.geometry import round_up
from upconv.kernels.indirect import LISTED, Blocking
from upconv.kernels.positions import columns_of, phase_sets
from upconv.spec import Problem

NAME = "indirect_first"
MOST, ROOM = 64, 0.25
"""Positions of a phase, and the part of the second-level cache that x takes, at most."""
COPIED, SCATTERED = 1.0, (2.0, 2.0, 6.0)
"""Cycles of an element of x that a task copies to channels-last, and of one of y that is scattered over its channels,
by `Target.kind`."""


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    reason = indirect.rejects(problem, target)
    if reason:
        return reason
    if indirect.most_columns(problem) > MOST:
        return f"{indirect.most_columns(problem)} positions: weights are met often enough"
    if prod(problem.input_shape) * problem.itemsize > ROOM * target.l2:
        return "x is too large for every task to copy it"
    return None


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """One block of all columns, and output channels shared out: as many rows a tile as leave every thread two tasks."""
    spec, columns = problem.spec, indirect.most_columns(problem)
    m, least = spec.out_channels // spec.groups, 2 * threads if threads > 1 else 1
    tile = register_tile.few_tile(problem.dtype, target, m, columns, least)
    block, x_bytes = round_up(columns, tile.turned), round_up(prod(problem.input_shape) * problem.itemsize, 64)
    (tile, ahead), table_bytes = indirect.asking(tile, problem, target, block), indirect.table_bytes(phase_sets(problem), block)
    shares = _shares(ceil(m / tile.rows), threads)
    return Blocking(tile, block, shares, table_bytes, x_bytes, indirect.streams(problem, target), ahead)


def _shares(chunks: int, threads: int) -> int:
    """Tasks that so many chunks are cut into, for the least of the busiest thread."""

    def busiest(shares: int) -> float:
        loads = jobs.tasks_of([(1, 1.0)], chunks, shares, 0.0)
        return jobs.busiest(loads, threads) * jobs.held_up(shares, threads)

    offered = {ceil(chunks / each) for each in range(1, chunks + 1)} if threads > 1 else {1}
    return min(sorted(offered), key=busiest)


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return how.shares if phase_sets(problem) else 0


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the steps and the ends of tiles, the tables, x copied by every task, y scattered, and the weights."""
    count, chunks = tasks(problem, how), ceil(problem.spec.out_channels // problem.spec.groups / how.tile.rows)
    other = COPIED * prod(problem.input_shape) * count + SCATTERED[target.kind] * prod(problem.output_shape)
    other += sum(columns_of(problem, s) * (len(s.reads) + 1) for s in phase_sets(problem)) * LISTED * count
    share = jobs.busiest_share(jobs.tasks_of([(1, 1.0)], chunks, how.shares, 0.0), threads)
    return indirect.few_seconds(problem, how, target, share, other)


def __getattr__(name: str) -> Any:
    """What this module does not say itself is as the kernel for channels last has it."""
    return getattr(indirect, name)
