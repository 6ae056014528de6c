"""Overlap-add for arrays with their channels last and few output channels: (tap, channel) pairs in the lanes, rows of y from them.

With fewer output channels than lanes a vector of them is mostly empty. But every input of a transposed convolution is multiplied
with all taps, whatever the phase, so the lanes hold a whole patch: taps x output channels, of which none is computed in vain but
those that the last vector lacks. The row of x is the broadcast operand and is read where it stands. An output row then adds up
pieces of patches as they lie: stride x output channels of one patch, of its neighbours' next ones, and so on. A block goes down the
image a few rows at a time and keeps the patches that the next ones need too.

A convolution with stride 1 is the same with its taps reversed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, inf, prod

import numpy as np

from upconv.codegen.ir import SIZES
from upconv.codegen.target import LINE, Target
from upconv.kernels import job as jobs
from upconv.kernels import overlap_add_last_code, register_tile, weights
from upconv.kernels.geometry import folded, round_up
from upconv.kernels.overlap_add_last_code import TOGETHER, Code
from upconv.kernels.register_tile import Tile
from upconv.shapes.phase import phase_taps
from upconv.spec import ConvSpec, Problem

NAME = "overlap_add_last"
SLOTS = overlap_add_last_code.SLOTS
EXACT = True
LEAST = 4
"""Input channels: with fewer, patches end before they have begun."""
PATCHES = 0.5
"""Of the second-level cache, for the patches that a block has at a time."""
ROW, STEP = 6, 16
"""What a row of positions and a step of a block cost besides, in inputs."""

Sizes = tuple[int, int, int, int]
"""Images, and positions of the output in d, h and w."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension: output position q, of `positions` from `first` on, adds up the inputs q + least to q + most."""

    size: int
    out_size: int
    step: int
    first: int
    positions: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `block` counts images and positions of the output in d, h and w, of which `rows` in h are taken at a time
    while `ring` lines of x have their patches."""

    tile: Tile
    patch: int
    block: Sizes
    rows: int
    ring: int
    inputs: int
    cells: int
    vectors: int
    row: int
    met: int

    @property
    def lanes(self) -> int:
        """Of a patch: whole vectors."""
        return round_up(self.patch, self.tile.lanes)

    @property
    def pitch(self) -> int:
        """Elements from patch to patch: a line more where many would meet in the same sets of the caches."""
        line = LINE // SIZES[self.tile.element]
        return self.lanes + line * (self.lanes % (8 * line) == 0)

    @property
    def wide(self) -> int:
        return (self.lanes // self.tile.lanes) // (self.tile.rows // self.tile.lanes)

    @property
    def room(self) -> int:
        """Entries of each half of the table: the inputs of a block, rounded up to whole tiles."""
        return round_up(self.inputs, self.tile.turned)

    def _bytes(self, elements: int) -> int:
        return round_up(elements * SIZES[self.tile.element], LINE)

    @property
    def table_bytes(self) -> int:
        return round_up(2 * self.room * 8, LINE)

    @property
    def row_bytes(self) -> int:
        return self._bytes(self.row)

    @property
    def bias_bytes(self) -> int:
        return self._bytes(self.vectors * self.tile.lanes)

    @property
    def met_bytes(self) -> int:
        return round_up(self.met * 8, LINE)

    @property
    def patch_bytes(self) -> int:
        """Every cell's patch, one that nobody reads, and what the last vector of an output reaches over it."""
        return self._bytes((self.cells + 1) * self.pitch + (self.vectors + 1) * self.tile.lanes)

    @property
    def workspace_bytes(self) -> int:
        return self.table_bytes + self.row_bytes + self.bias_bytes + self.met_bytes + self.patch_bytes


# -- geometry ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def axes(problem: Problem) -> tuple[Axis, Axis, Axis]:
    """The dimensions. In d and h position q has the outputs step * q + phase, in w those before cropping."""
    spec = problem.spec
    found = [Axis(1, 1, 1, 0, 1, 0, 0)] * (3 - spec.rank)
    for i, (size, out) in enumerate(zip(problem.input_size, problem.output_size, strict=True)):
        kernel, step, crop, dilation = _scatter(spec, i)
        if i == spec.rank - 1:
            first, last = crop // step, (out - 1 + crop) // step
            found.append(Axis(size, out, step, first, last - first + 1, -((kernel - 1) // step), 0))
        else:
            offsets = [offset for a in range(step) for _, offset in phase_taps(kernel, step, crop, dilation, a)]
            found.append(Axis(size, out, step, 0, ceil(out / step), min(offsets), max(offsets)))
    d, h, w = found
    return d, h, w


def _scatter(spec: ConvSpec, i: int) -> tuple[int, int, int, int]:
    """(taps, stride, outputs cropped before, dilation) of a dimension, seen as a transposed convolution's."""
    kernel, dilation, (before, _) = spec.kernel_size[i], spec.dilation[i], spec.padding[i]
    if spec.transposed:
        return kernel, spec.stride[i], before, dilation
    return kernel, 1, dilation * (kernel - 1) - before, dilation


def _rows(spec: ConvSpec) -> list[list[tuple[int, int, int]]]:
    """For each phase in d and h: (first column in a patch, offset in d, in h) of its taps."""
    lists = [[[(0, 0)]]] * (3 - spec.rank)
    kernels = [1] * (3 - spec.rank)
    for i in range(spec.rank - 1):
        kernel, step, crop, dilation = _scatter(spec, i)
        lists.append([list(phase_taps(kernel, step, crop, dilation, a)) for a in range(step)])
        kernels.append(kernel)
    each = spec.kernel_size[-1] * spec.out_channels
    return [
        [((kd * kernels[1] + kh) * each, od, oh) for kd, od in taps_d for kh, oh in taps_h]
        for taps_d, taps_h in product(lists[0], lists[1])
    ]


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec = problem.spec
    if folded(spec):
        return folded(spec)
    if target.lanes(problem.itemsize) < 2:
        return "no vectors"
    if spec.groups > 1:
        return "groups: their outputs are not neighbours"
    if not spec.transposed and any(step > 1 for step in spec.stride):
        return "a convolution with a stride gathers, it does not scatter"
    if spec.dilation[-1] > 1 and spec.kernel_size[-1] > 1:
        return "dilated in its last dimension: a patch's outputs are not neighbours"
    if spec.in_channels < LEAST:
        return f"{spec.in_channels} input channels: too few for a sum"
    return None


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """The block with the fewest inputs on the busiest thread, those that neighbours compute too included."""
    spec = problem.spec
    tile = register_tile.turned_tile(register_tile.ELEMENTS[problem.dtype], target, inf)
    patch = prod(spec.kernel_size) * spec.out_channels
    most = int(target.l2 * PATCHES / (round_up(patch, tile.lanes) * problem.itemsize))
    offers = _offers(problem, most)
    block, rows = min(offers, key=lambda offer: _work(problem, *offer) * _share(problem, offer[0], threads))
    _, h, w = axes(problem)
    each = w.step * spec.out_channels
    vectors, reach = ceil(each / tile.lanes), 1 - w.least
    return Blocking(
        tile=tile, patch=patch, block=block, rows=rows, ring=min(rows + h.most - h.least, h.size),
        inputs=_cells(problem, block, rows, 1), cells=_cells(problem, block, rows, TOGETHER),
        vectors=vectors, row=(round_up(block[3], TOGETHER) + 1) * each + (vectors + 1) * tile.lanes,
        met=max(len(taps) for taps in _rows(spec)) * reach + 1,
    )  # fmt: skip


def _lengths(problem: Problem) -> Sizes:
    d, h, w = axes(problem)
    return problem.batch, d.positions, h.positions, w.positions


def _parts(length: int) -> Iterator[int]:
    """The lengths of equal parts, each about half as long as the one before, down to one."""
    count = 1
    while count < 2 * length:
        yield ceil(length / count)
        count *= 2


def _offers(problem: Problem, most: int) -> Iterator[tuple[Sizes, int]]:
    """Blocks, parts of an image or whole images, and rows at a time for at most so many patches."""
    images, *lengths = _lengths(problem)
    line, found = axes(problem)[1], False
    for d, h, w in product(*(_parts(n) for n in lengths)):
        for several in _parts(images) if [d, h, w] == lengths else (1,):
            lines = most // _a_line(problem, (several, d, h, w), TOGETHER)
            rows = h if lines >= line.size else min(lines - (line.most - line.least), h)
            if rows == h or (rows > 0 and several == 1):
                found = True
                yield (several, d, h, w), ceil(h / ceil(h / rows))
                break  # fewer images are no better
    if not found:
        yield (1, 1, 1, 1), 1


def _cells(problem: Problem, sizes: Sizes, rows: int, unit: int) -> int:
    """Inputs that have their patches at a time, at most, with positions rounded up to a unit."""
    line = axes(problem)[1]
    return min(rows + line.most - line.least, line.size) * _a_line(problem, sizes, unit)


def _a_line(problem: Problem, sizes: Sizes, unit: int) -> int:
    """Those for every line in h of a block."""
    images, d, _, w = sizes
    planes, _, columns = axes(problem)
    each = round_up(w, unit) - columns.least if unit > 1 else min(w - columns.least, columns.size)
    return images * min(d + planes.most - planes.least, planes.size) * each


def _work(problem: Problem, sizes: Sizes, rows: int) -> int:
    """What all blocks cost together, in inputs."""
    images, d, h, w = _lengths(problem)
    pieces = images * d * h * ceil(w / sizes[3])
    return _inputs(problem, sizes) + ROW * pieces + STEP * _tasks(problem, sizes) * ceil(sizes[2] / rows)


def _tasks(problem: Problem, sizes: Sizes) -> int:
    return prod(ceil(length / size) for length, size in zip(_lengths(problem), sizes, strict=True))


def _inputs(problem: Problem, sizes: Sizes) -> int:
    """Inputs that all blocks meet together."""
    return problem.batch * prod(_met(axis, size) for axis, size in zip(axes(problem), sizes[1:], strict=True))


@lru_cache(maxsize=4096)
def _met(axis: Axis, size: int) -> int:
    """The inputs that parts of so many positions meet, one after the other."""
    end = axis.first + axis.positions
    low = np.arange(axis.first, end, size)
    first, last = np.maximum(low + axis.least, 0), np.minimum(np.minimum(low + size, end) + axis.most, axis.size)
    return int(np.maximum(last - first, 0).sum())


def _share(problem: Problem, sizes: Sizes, threads: int) -> float:
    """The busiest thread's share; a quarter of a task is what threads wait for each other."""
    tasks = _tasks(problem, sizes)
    return (ceil(tasks / threads) + 0.25) / tasks if threads > 1 else 1.0


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
    dims = axes(problem)
    rows = _rows(spec)
    starts = np.cumsum([0] + [len(taps) for taps in rows])
    kernel, step, crop, _ = _scatter(spec, spec.rank - 1)
    reach, rest = 1 - dims[2].least, kernel % step
    whole = reach - (rest > 0)
    slots = {
        **{f"size_{n}": a.size for n, a in zip("dhw", dims, strict=True)},
        **{f"out_{n}": a.out_size for n, a in zip("dhw", dims, strict=True)},
        **{f"step_{n}": a.step for n, a in zip("dhw", dims, strict=True)},
        "least_d": dims[0].least, "least_h": dims[1].least, "most_d": dims[0].most, "most_h": dims[1].most,
        "channels": spec.in_channels, "channels_out": spec.out_channels, "crop_w": crop, "reach": reach, "whole": whole,
        "tail": rest * spec.out_channels, "cut": max(len(taps) for taps in rows) * whole, "wide": how.wide,
        "narrow": int(how.lanes > how.wide * how.tile.rows), "pitch": how.pitch, "vectors": how.vectors, "room": how.room,
        "rows": how.rows, "ring": how.ring, "spare": how.cells, "table_bytes": how.table_bytes,
        "row_bytes": how.row_bytes, "bias_bytes": how.bias_bytes, "met_bytes": how.met_bytes,
        "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    firsts = (0, *(axis.first for axis in dims))
    cuts = [
        [(first + low, first + min(low + size, length)) for low in range(0, length, size)]
        for first, length, size in zip(firsts, _lengths(problem), how.block, strict=True)
    ]
    work = [tuple(end for ends in task for end in ends) for task in product(*cuts)]
    tables = {
        "work": np.array(work, np.int64),
        "phases": np.array([(int(start), len(taps)) for start, taps in zip(starts, rows, strict=False)], np.int64),
        "taps": np.array([tap for taps in rows for tap in taps], np.int64),
    }
    return jobs.Bound(slots, tables, len(work))


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
    return _tasks(problem, how.block)


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds, the unused lanes and what two blocks compute included."""
    return _inputs(problem, how.block) * how.lanes * problem.spec.in_channels


END, ADDED, LISTED = 70.0, 5.0, 60.0
"""Cycles that a tile of patches takes besides its steps, that adding up one vector for TOGETHER positions takes, and a row besides.
Measured."""


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the patches, the rows added up and copied, the bytes moved."""
    spec, tile = problem.spec, how.tile
    d, h, w = axes(problem)
    inputs, count = _inputs(problem, how.block), tasks(problem, how)
    tiles = ceil(inputs / count / tile.turned) * count
    narrow = how.lanes > how.wide * tile.rows
    step = how.wide * register_tile.step_cycles(tile) + narrow * NARROW
    gemm = tiles * (spec.in_channels * step + (how.wide + narrow) * END)
    rows = problem.batch * d.out_size * h.out_size * ceil(w.positions / how.block[3])
    met = prod(spec.kernel_size[:-1]) / (d.step * h.step) * (1 - w.least)
    added = ceil(how.block[3] / TOGETHER) * how.vectors * (met * ADDED + 2 * TOGETHER)
    copied = how.block[3] * w.step * spec.out_channels / tile.lanes
    moved = (inputs * spec.in_channels + prod(problem.output_shape)) * problem.itemsize
    weight = how.lanes * spec.in_channels * problem.itemsize
    streamed = UNASKED * tiles * weight * (weight > target.l2 / 2)
    share = jobs.busiest_share([(count, 1.0)], threads)
    return register_tile.seconds(target, share, gemm, rows * (added + copied + met * 8 + LISTED), moved, streamed)


UNASKED = 1.0
"""How much more slowly weights come that are not asked for ahead, where they are more than half of the second-level cache."""
NARROW = 4.3
"""Cycles of a step of a tile of one vector, whose products wait for each other."""


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    images, *sizes = how.block
    shape = " x ".join(str(n) for n in (images, *sizes[3 - problem.spec.rank :]))
    walked = f", {how.rows} rows at a time" if how.rows < how.block[2] else ""
    patches = f"patches of {prod(problem.spec.kernel_size)} taps in {how.patch} of {how.lanes} lanes"
    return f"channels last, {patches}, blocks of {shape} positions{walked}"
