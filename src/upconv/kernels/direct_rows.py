"""The direct sum row by row, for few channels: all phases of a row's positions in registers at once, x where it lies.

A row of y is the sum over the taps of the outer dimensions of rows of x, each met by all taps of the innermost dimension: several
vectors of neighbouring positions, each read for all phases and for all of a tile's channels of y. The direct sum of `direct` takes
a phase after the other, through panels and a scratch block; here nothing is left in memory, phases are woven as they leave the
registers, and x comes and y goes while the sums go on. What lies beside a row is read under masks; the last tile of a row overlaps
the one before.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import ceil, gcd, inf, prod

import numpy as np

from upconv.codegen.ir import SIZES
from upconv.codegen.target import LINE, Target
from upconv.kernels import direct_rows_code, register_tile, scatter, store, weights
from upconv.kernels import job as jobs
from upconv.kernels.columns import PAGE
from upconv.kernels.direct_rows_blocks import Blocking, Inner, block, cuts, inner, lengths
from upconv.kernels.direct_rows_code import Code, Tile
from upconv.kernels.geometry import folded
from upconv.kernels.scatter import axes
from upconv.spec import Problem

NAME = "direct_rows"
SLOTS = direct_rows_code.SLOTS
EXACT = True
WIDEST, LONG = 8, 24
"""Vectors of positions of a tile at most; those of a row from which on one tile suits every length."""
MOST = 192
"""Products of a channel of x that are written out at most: more would take a second to compile."""
CHANNELS = 64
"""Output channels at most: 64 -> 128 k1 on 248 x 216 takes 1.6 times the time of `direct`."""


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec, lanes = problem.spec, target.lanes(problem.itemsize)
    if folded(spec):
        return folded(spec)
    if not spec.transposed and any(step > 1 for step in spec.stride):
        return f"stride {' x '.join(map(str, spec.stride))} of x: every read would be a gather"
    if lanes < 2:
        return "no vectors"
    if spec.in_channels == spec.groups:
        return "one input channel a group: no sum over channels"
    if spec.out_channels // spec.groups > CHANNELS:
        return f"{spec.out_channels // spec.groups} output channels a group: tiles would go over x too often"
    row = inner(spec)
    if len(row.taps) > lanes:
        return f"{len(row.taps)} phases, more than lanes"
    if row.kernel > MOST:
        return f"{row.kernel} taps in a row: too many to write out"
    positions = row.positions(problem)
    if positions < lanes:
        return f"rows of {positions} positions, fewer than lanes"
    beyond = max(-row.reads[0], positions + row.reads[-1] - problem.input_size[-1])
    if beyond > lanes:
        return f"reads of {beyond} places beside a row, more than lanes"
    return None


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """The tile that suits the layer, and blocks for so many threads."""
    return block(problem, choose_tile(problem, target), threads)


def choose_tile(problem: Problem, target: Target) -> Tile:
    """The tile of least cycles for a layer; short rows are as many tiles as fit them best."""
    vectors = inner(problem.spec).positions(problem) // target.lanes(problem.itemsize)
    positions = inner(problem.spec).positions(problem) if vectors < LONG else 0
    return _tile(problem.dtype, target, problem.spec.out_channels // problem.spec.groups, inner(problem.spec), positions)


@lru_cache(maxsize=512)
def _tile(dtype: str, target: Target, channels: int, row: Inner, positions: int) -> Tile:
    """The tile of least cycles for so many output channels, and positions of a row where these are few."""
    element, step = register_tile.ELEMENTS[dtype], len(row.taps)
    lanes = target.lanes(SIZES[element])
    best = (inf, Tile(element, lanes, 1, 1))
    widest = min(WIDEST, positions // lanes) if positions else WIDEST
    for chunk, vectors in product(sorted({ceil(channels / n) for n in range(1, channels + 1)}), range(1, widest + 1)):
        tile = Tile(element, lanes, chunk, vectors)
        if chunk * vectors > 1 and not (register_tile.fits(chunk * step, vectors, target) and row.kernel * chunk * vectors <= MOST):
            continue
        columns = ceil(positions / tile.width) if positions else 1 / tile.width
        best = min(best, (ceil(channels / chunk) * step_cycles(tile, row, target) * columns, tile), key=lambda pair: pair[0])
    return best[1]


def step_cycles(tile: Tile, row: Inner, target: Target) -> float:
    """A channel of x: its products, or what they load, whichever take longer."""
    products, crossing = row.kernel * tile.channels, 1.9 if tile.lanes * SIZES[tile.element] >= 64 else 1.5
    loads = products + tile.vectors * (2 + (len(row.reads) - 1) * crossing)
    return max(products * tile.vectors / target.fmas, loads / 2, 4.0 * row.kernel / len(row.taps)) + 0.5 + 0.5 * tile.vectors


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """Per group [chunk][row of taps][input channel][tap][output channel]; rows of taps reversed for a convolution."""
    spec, chunk, each = problem.spec, how.tile.channels, problem.spec.kernel_size[-1]
    step, channel_step, group_step = weights.strides(spec)
    rows = prod(spec.kernel_size) // each
    row, tap = np.arange(rows), np.arange(each)
    channel = np.arange(how.chunks * chunk).reshape(-1, 1, 1, 1, chunk)
    place = (row if spec.transposed else rows - 1 - row)[:, None, None, None] * each + tap[:, None, None]
    offsets = np.where(channel < spec.out_channels // spec.groups, channel * step + place, -1)
    transform = weights.Transform(how.tile.element, chunk, spec.transposed)
    chunks, c = how.chunks, how.channels
    return weights.Layout(transform, spec.groups, c, each, channel_step, group_step, (offsets,), c, chunks)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer."""
    return (how.tile.channels,)


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec, dims = problem.spec, dict(zip("dhw", axes(problem), strict=True))
    d, h, _ = dims.values()
    slots = {
        **{f"size_{n}": a.size for n, a in dims.items()}, **{f"out_{n}": a.out_size for n, a in dims.items()},
        "step_d": d.step, "step_h": h.step, "channels": how.channels, "channels_out": how.channels_out, "groups": spec.groups,
        "chunks": how.chunks, "tap_rows": prod(spec.kernel_size[:-1]), "y_channel": prod(problem.output_size),
        "met_bytes": how.met_bytes, "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    rows = scatter.row_taps(spec)
    starts = np.cumsum([0] + [len(taps) for taps in rows])
    row, padded = inner(spec), not spec.transposed and any(sum(ends) for ends in spec.padding[:-1])
    line = max(0, -row.reads[0]) + row.positions(problem) + how.tile.width + max(0, row.reads[-1]) if padded else 1
    tables = {
        "work": np.array(_work(problem, how), np.int64),
        "phases": np.array([(int(start), len(taps)) for start, taps in zip(starts, rows, strict=False)], np.int64),
        "taps": np.array([tap for taps in rows for tap in taps] or [(0, 0, 0)], np.int64),
        "zeros": np.zeros(ceil(line * problem.itemsize / 8), np.int64),
    }
    return jobs.Bound(slots, tables, tasks(problem, how))


def _work(problem: Problem, how: Blocking) -> list[tuple[int, ...]]:
    """First and end in each dimension of every block."""
    images, d, h, w = lengths(problem)
    ends = [[(low, min(low + size, n)) for low in range(0, n, size)] for n, size in zip((images, d, h), how.sizes, strict=False)]
    return [tuple(end for pair in block for end in pair) for block in product(*ends, cuts(w, how.sizes[3], how.tile.width))]


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    return f"{kind}_f{problem.itemsize * 8}_{NAME}_{how.tile}_{target.name}"


def _code(problem: Problem, how: Blocking) -> Code:
    row = inner(problem.spec)
    finish = store.store_of(how.tile.element, how.tile.lanes, len(row.taps), problem.spec.activation)
    return Code(how.tile, row.reads, row.taps, not problem.spec.transposed, finish)


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(_code(problem, how))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return direct_rows_code.emit(_code(problem, how))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    images, d, h, w = lengths(problem)
    return images * ceil(d / how.sizes[1]) * ceil(h / how.sizes[2]) * len(cuts(w, how.sizes[3], how.tile.width))


def _tiles(problem: Problem, how: Blocking) -> int:
    """Tiles of a row."""
    parts = cuts(lengths(problem)[3], how.sizes[3], how.tile.width)
    return sum(ceil((end - first) / how.tile.width) for first, end in parts)


def _met(problem: Problem) -> float:
    """Rows of taps that a row of y meets, in the mean, those in padding included."""
    d, h, _ = axes(problem)
    return prod(problem.spec.kernel_size[:-1]) / (d.step * h.step)


def _rows(problem: Problem) -> int:
    """Rows of y, of a channel of every group."""
    d, h, _ = axes(problem)
    return problem.batch * problem.spec.groups * d.out_size * h.out_size


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds, what tiles of a row overlap and padding of channels included."""
    products = inner(problem.spec).kernel * how.tile.channels * how.chunks * how.channels * how.tile.width
    return round(_rows(problem) * _met(problem) * _tiles(problem, how)) * products


SUMS, CHANNEL, ALIASED, STORED, READ = 1.28, 2.2, 1.1, 8.5, 6.3
"""What sums take of the cycles that their products and loads add up to; cycles of a channel's row besides; of each of its lines
where these meet in few sets of the first-level cache; of storing a vector; and of a line of x. Measured over 108 layers of 3 to 128
channels with rows of 16 to 50000 positions: what is chosen takes 1.05 of the fastest kernel's time, and 1.04 with AVX2."""


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: tiles, the stores, and x, which is asked for while they go on."""
    tile = how.tile
    lines = ALIASED * (tile.vectors + 1) if _aliased(problem, how, target) else 0.0
    row = step_cycles(tile, inner(problem.spec), target) * SUMS + CHANNEL + lines
    sums = _met(problem) * how.channels * row + tile.channels * tile.vectors * how.step * STORED
    read = prod(problem.input_shape) * problem.itemsize / LINE * READ
    cycles = _rows(problem) * _tiles(problem, how) * how.chunks * sums + read
    share = jobs.busiest_share([(tasks(problem, how), 1.0)], threads)
    return cycles / target.hertz * share + 6e-6


def _aliased(problem: Problem, how: Blocking, target: Target) -> bool:
    """Whether the rows that a tile reads, of all channels, meet in fewer sets of the first-level cache than hold them."""
    apart = gcd(prod(problem.input_size) * problem.itemsize, PAGE)  # sets repeat after a page
    return how.channels * max(1.0, _met(problem)) * apart / PAGE > target.l1 / PAGE


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    shape = " x ".join(str(n) for n in how.sizes[4 - problem.spec.rank :])
    phases = len(inner(problem.spec).taps)
    return f"{phases} phases of a row and {how.tile.channels} channels at once, blocks of {shape} positions"
