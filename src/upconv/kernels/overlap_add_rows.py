"""Overlap-add row by row, for few output channels: patches of a few lines of x by one GEMM, rows of y added up from these.

With few output channels a phase has few rows of products for each input that it reads, and most of the time goes into reading. But
every input of a transposed convolution is multiplied with all taps, whatever the phase: patches, (output channel, tap) pairs of
each input, are as high a matrix as registers ask for, and no product is computed in vain. Where `overlap_add.py` takes whole
images, a block goes down an image a few rows at a time here, and keeps the patches that the next ones need too. A row of y adds up,
for each tap, a row of patches as far back as the tap reaches, all phases at once, and weaves them.

A convolution with stride 1 is the same with its taps reversed.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod

import numpy as np

from upconv.codegen.target import Target
from upconv.kernels import job as jobs
from upconv.kernels import overlap_add_rows_code, register_tile, scatter, store, weights
from upconv.kernels.geometry import folded
from upconv.kernels.overlap_add_rows_blocks import Blocking, lengths, offers
from upconv.kernels.overlap_add_rows_code import Code
from upconv.kernels.scatter import axes, inputs_met, refuses, tasks_of
from upconv.spec import Problem

NAME = "overlap_add_rows"
SLOTS = overlap_add_rows_code.SLOTS
EXACT = True
LEAST = 4
"""Input channels: with fewer, patches end before they have begun."""
FEWEST, MOST = 4, 256
"""Rows of patches: with fewer, inputs are copied for too few products; with more, few inputs' patches fit into the cache."""


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec, lanes = problem.spec, target.lanes(problem.itemsize)
    if folded(spec):
        return folded(spec)
    if refuses(spec):
        return refuses(spec)
    if lanes < 2:
        return "no vectors"
    if axes(problem)[2].step > lanes:
        return f"{axes(problem)[2].step} phases, more than lanes"
    if all(k <= s for k, s in zip(spec.kernel_size, spec.stride, strict=True)):
        return "one tap a phase: the direct sum multiplies the same, and leaves nothing to add up"
    if spec.in_channels // spec.groups < LEAST:
        return f"{spec.in_channels // spec.groups} input channels a group: too few for a sum"
    rows = spec.out_channels // spec.groups * prod(spec.kernel_size)
    if rows < FEWEST:
        return f"patches of {rows} rows: too few products for each input to copy it"
    if rows > MOST:
        return f"patches of {rows} rows: they would leave the cache"
    return None


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """The block that is estimated to take the least time."""
    return min(offers(problem, target), key=lambda how: cost(problem, how, target, threads))


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """Per group [tile of rows][input channel][row]; a row is an (output channel, tap) pair, taps reversed for a convolution."""
    spec, rows, taps = problem.spec, how.tile.rows, prod(problem.spec.kernel_size)
    step, channel_step, group_step = weights.strides(spec)
    pair = np.arange(how.tile_blocks * rows)
    channel, tap = pair // taps, pair % taps
    place = channel * step + (tap if spec.transposed else taps - 1 - tap)
    offsets = np.where(pair < how.patch_rows, place, -1).reshape(-1, 1, 1, 1, rows)
    transform = weights.Transform(how.tile.element, rows, spec.transposed)
    return weights.Layout(transform, spec.groups, how.channels, 1, channel_step, group_step, (offsets,), how.channels)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer."""
    return (how.tile.rows,)


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec = problem.spec
    slots = {
        **scatter.slots(problem), "channels": how.channels, "channels_out": spec.out_channels // spec.groups, "groups": spec.groups,
        "tile_blocks": how.tile_blocks, "tap_count": prod(spec.kernel_size), "rows": how.rows, "ring": how.ring, "lines": how.lines,
        "cells": how.cells, "panel_pitch": how.panel_pitch, "plane_pitch": how.plane_pitch, "pitch": how.pitch,
        "line_bytes": how.line_bytes, "met_bytes": how.met_bytes, "panel_bytes": how.panel_bytes,
        "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    tables = {**scatter.tables(problem, lengths(problem), how.sizes), "all": np.array([(0, 0, 1)], np.int64)}
    return jobs.Bound(slots, tables, tasks(problem, how))


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    return f"{kind}_f{problem.itemsize * 8}_{NAME}_{how.tile}_{target.name}"


def _code(problem: Problem, how: Blocking) -> Code:
    finish = store.store_of(how.tile.element, how.tile.lanes, how.step, problem.spec.activation)
    return Code(how.tile, finish, scatter.rest(problem.spec))


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(_code(problem, how))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return overlap_add_rows_code.emit(_code(problem, how))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return tasks_of(lengths(problem), how.sizes)


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds, padding of tiles and what two blocks compute included."""
    return inputs_met(problem, how.sizes) * problem.spec.groups * how.tile_blocks * how.tile.rows * how.channels


NEAR, FAR, STORED, LISTED, ROW, END, RUN = 0.8, 4.0, 3.0, 6.0, 20.0, 10.0, 20.0
"""Cycles of adding a vector of patches from the first-level cache and from beyond, of weaving and storing one of outputs, of
listing a row of taps, of a channel's part of a row, of a vector at an end of it, and of beginning to copy elsewhere. Measured."""


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the patches, the rows added up and stored, the bytes moved."""
    spec, tile, (d, h, w) = problem.spec, how.tile, axes(problem)
    inputs, count = inputs_met(problem, how.sizes) * spec.groups, tasks(problem, how)
    lines = min(how.lines, how.rows)
    gemms, columns = inputs / (lines * how.cells), lines * how.cells
    strip = how.channels * register_tile.columns_cycles(tile, columns) + register_tile.ends_cycles(tile, columns)
    runs = gemms * how.channels * (1 if how.cells == w.size else lines)
    pieces = problem.batch * spec.out_channels * d.out_size * h.out_size * ceil(w.positions / how.block)
    met = prod(spec.kernel_size[:-1]) / (d.step * h.step)
    taps, vectors = met * spec.kernel_size[-1], ceil(how.block / tile.lanes)
    added = NEAR if how.patch_bytes <= target.l1 else FAR
    sums = vectors * (taps * added + w.step * STORED) + 2 * (END + taps * 3)
    rows = pieces * (ROW + sums) + pieces / (spec.out_channels / spec.groups) * met * (1 - w.least) * LISTED
    moved = (inputs * how.channels + prod(problem.output_shape)) * problem.itemsize
    weight = how.tile_blocks * tile.rows * how.channels * problem.itemsize
    share = jobs.busiest_share([(count, 1.0)], threads)
    return register_tile.seconds(target, share, gemms * how.tile_blocks * strip, rows + runs * RUN, moved, gemms * weight)


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    shape = " x ".join(str(n) for n in how.sizes[4 - problem.spec.rank :])
    walked = f", {how.rows} rows at a time" if how.rows < how.sizes[2] else ""
    return f"patches of {how.patch_rows} rows, blocks of {shape} positions{walked}"
