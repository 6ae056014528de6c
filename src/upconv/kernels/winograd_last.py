"""Winograd's minimal filtering for arrays with their channels last: vectors of channels, from x to y.

The tiles, transforms and products are those of `winograd.py`. Here the columns of a GEMM are tiles that are broadcast, and
output channels stand in the lanes: x is read where it stands, its vectors transformed as they are, and sums are stored as rows
of y. A chunk holds output channels of one phase, and leaves out the points at which the phase has no taps.

Strassen's products (`strassen_last.py`) are taken here as well: channels and the tiles of an image are cut into slices then, and
a column is a tile of each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.ir import SIZES
from upconv.codegen.target import LINE, Target
from upconv.kernels import columns, register_tile, weights, winograd_last_code
from upconv.kernels import job as jobs
from upconv.kernels.geometry import folded, round_up
from upconv.kernels.register_tile import Tile
from upconv.kernels.strassen_products import PRODUCTS, SLICES, sliced, with_left
from upconv.kernels.winograd_depth import Residue, class_taps, classes, depth_of, depth_taps, live, weight_places
from upconv.kernels.winograd_last_code import Code
from upconv.kernels.winograd_tiles import (
    NARROW,
    WIDE,
    Points,
    Tiling,
    dilated,
    lines,
    nothing_to_save,
    slice_channels,
    steps,
    tiling_of,
    too_short,
    ways_of,
    windows,
)
from upconv.kernels.winograd_work import part_of, too_deep
from upconv.spec import Problem

NAME = "winograd_last"
SLOTS = winograd_last_code.SLOTS
EXACT = False
"""Rounding differs from the direct sum's, and a NaN spreads over its tile."""

FEW, MANY = 24, 48
"""Columns a block, and where the transformed weights are more than LARGE bytes, which then stream past less often. Measured: 512 ->
512 k3s2 on 32 x 32 takes 33 ms with 72 tiles and 52 with 24, 256 -> 64 k4s2 on 64 x 64 9.4 and 8.6 (two threads, AVX2). With 48
in place of 72 what had the most is 1.01 times as fast over 27 layers, 0.95 to 1.1, and Strassen 1.00 over 100."""
LARGE = 4 << 20
WORKSPACE = 16 << 20
"""Bytes of V and M a thread, at most, unless one register tile needs more."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `block` counts columns, `splits` into how many shares the chunks of a block are cut."""

    tile: Tile
    tiling: Tiling
    slices: int
    block: int
    count: int
    splits: int
    abreast: int
    chunks: int

    @property
    def depth_part(self) -> int:
        return part_of(self.tiling, self.slices, False)

    @property
    def points(self) -> int:
        """Products at all points of the tiles."""
        return len(self.tiling.points) * PRODUCTS[self.slices]

    @property
    def depth(self) -> int:
        """Of V, for a column and point."""
        return self.tiling.depth // self.slices

    @property
    def room(self) -> int:
        """Columns that there is room for: those of whole register tiles."""
        return round_up(self.block, self.tile.turned)

    @property
    def v_pitch(self) -> int:
        return _v_pitch(self.depth, self.tile)

    @property
    def m_pitch(self) -> int:
        """Elements of M a register tile, a line more so that they do not meet in the same sets of the cache."""
        return self.points * self.tile.turned * self.tile.rows + LINE // SIZES[self.tile.element]

    @property
    def table_bytes(self) -> int:
        return round_up(self.block * self.slices * winograd_last_code.TILE * 8, LINE)

    @property
    def v_bytes(self) -> int:
        return round_up(self.points * self.room * self.v_pitch * SIZES[self.tile.element], LINE)

    @property
    def m_bytes(self) -> int:
        return round_up(self.room // self.tile.turned * self.m_pitch * SIZES[self.tile.element], LINE)

    @property
    def workspace_bytes(self) -> int:
        return self.table_bytes + self.v_bytes + self.m_bytes + round_up(self.tile.lanes * SIZES[self.tile.element], LINE)


def _v_pitch(depth: int, tile: Tile) -> int:
    """Elements of V a column and point: the depth, room for the last vector, and a line more, as for M."""
    line = LINE // SIZES[tile.element]
    return round_up(depth + tile.lanes, line) + line


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    return refuses(problem, target) or nothing_to_save(problem.spec)


def refuses(problem: Problem, target: Target) -> str | None:
    """Why a problem has no tiles that are worth their transforms, or None."""
    spec, lanes = problem.spec, target.lanes(problem.itemsize)
    if folded(spec):
        return folded(spec)
    if lanes < 4:
        return "vectors too short to be worth the transforms"
    ways = ways_of(spec, NARROW)
    if isinstance(ways, str):
        return ways
    if dilated(spec):
        return dilated(spec)
    least = min(spec.in_channels, spec.out_channels) // spec.groups
    if least < lanes:
        return f"{least} channels a group: fewer than lanes"
    return too_deep(spec)


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """The windows, of four or of six in the last dimension, that are estimated to take less time."""
    offers = [blocks(problem, target, threads, NARROW)]
    if not too_short(problem.spec):
        offers.append(blocks(problem, target, threads, WIDE))
    return min(offers, key=lambda how: cost(problem, how, target, threads))


def blocks(problem: Problem, target: Target, threads: int, last: Points, slices: int = 1) -> Blocking:
    """Equal blocks, whose chunks are shared by threads where they are few."""
    tile = register_tile.last_tile(problem.dtype, target, slice_channels(problem.spec, slices)[1])
    tiling, many = tiling_of(problem.spec, last), tile.turned
    chunks = len(_chunks(problem, tiling, tile, slices))
    points, depth = len(tiling.points) * PRODUCTS[slices], tiling.depth // slices
    size = points * chunks * tile.rows * depth * problem.itemsize
    per_column = points * (_v_pitch(depth, tile) + tile.rows) * problem.itemsize
    most = min(MANY if size > LARGE else FEW, max(WORKSPACE // per_column // many, 1) * many)
    total = problem.batch * ceil(_image(problem, tiling) / slices)
    block = round_up(ceil(total / ceil(total / most)), many)
    count = ceil(total / block)
    splits = jobs.shares(chunks, count * problem.spec.groups, threads, 3) if threads > 1 else 1
    return Blocking(tile, tiling, slices, block, count, splits, threads, chunks)


def _image(problem: Problem, tiling: Tiling) -> int:
    """Tiles of an image."""
    return columns.count(1, lines(problem, tiling.ways))


def _phases(tiling: Tiling) -> list[tuple[Residue, int]]:
    """The phases of the output, and the class of each; a convolution has one."""
    if not tiling.spec.transposed:
        return [((0, 0, 0), 0)]
    return [(residue, number) for number, c in enumerate(classes(tiling)) for residue in c.residues]


def _chunks(problem: Problem, tiling: Tiling, tile: Tile, slices: int) -> list[tuple[int, ...]]:
    """(phase in three dimensions, first output channel, channels, class) of each chunk."""
    _, m = slice_channels(problem.spec, slices)
    firsts = range(0, m, tile.rows)
    return [(*phase, c, min(tile.rows, m - c), number) for phase, number in _phases(tiling) for c in firsts]


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """U in the order the tiles read it: [group][chunk][product][point][depth tap][channel][row]."""
    spec, rows, tiling = problem.spec, how.tile.rows, how.tiling
    c, m = slice_channels(problem.spec, how.slices)
    step, channel_step, group_step = weights.strides(spec)
    chunks = np.array(_chunks(problem, tiling, how.tile, how.slices))
    place = weight_places(tiling, np.repeat(chunks[:, None, :3], rows, axis=1))
    place = place.reshape(*place.shape[:2], 1, -1, rows)
    channel = (chunks[:, 3, None] + np.arange(rows))[:, None, None, None]
    where = np.where((channel < m) & (place >= 0), channel * step + place, -1)
    where = sliced(where, how.slices, m * step, c * channel_step)
    first, second = (way.points.weight(way.taps) if way.points else None for way in tiling.ways[1:])
    matrices = weights.rows_of(with_left(how.slices, first)), weights.rows_of(second)
    transform = weights.Transform(how.tile.element, rows, False, *matrices)
    return weights.Layout(transform, spec.groups, c, 1, channel_step, group_step, (where,), c, how.chunks)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer."""
    return (how.tile.rows, how.tiling.wide, how.slices)


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec, tiling, image = problem.spec, how.tiling, _image(problem, how.tiling)
    c, m = slice_channels(problem.spec, how.slices)
    chunk, part = how.depth * how.tile.rows, ceil(image / how.slices)
    slots = {
        "channels": c, "channels_out": m, "x_channels": spec.in_channels, "y_channels": spec.out_channels,
        "x_group": spec.in_channels // spec.groups, "y_group": spec.out_channels // spec.groups,
        "image": image, "part": part, "columns": problem.batch * part, "block": how.block, "block_count": how.count,
        "splits": how.splits, "abreast": how.abreast, "chunks_a_split": ceil(how.chunks / how.splits), "chunk_count": how.chunks,
        "depth_taps": len(depth_taps(tiling)), "depth_part": how.depth_part, "room": how.room,
        "v_pitch": how.v_pitch, "m_pitch": how.m_pitch, "weight_chunk": how.points * chunk, "weight_point": chunk,
        "weight_group": how.points * how.chunks * chunk, "table_bytes": how.table_bytes, "v_bytes": how.v_bytes,
        "m_bytes": how.m_bytes, "workspace_bytes": how.workspace_bytes,
    }  # fmt: skip
    out_steps, planes = steps(spec)
    origins = []
    for i, ((line, window), name) in enumerate(zip(windows(problem, tiling.ways), "dhw", strict=True)):
        numbers = {
            "rows": line.positions, "size": line.size, "step": line.step, "plane": planes[i], "out": line.out_size,
            "out_step": line.out_step, "crop": line.crop, "stride": out_steps[i],
        }  # fmt: skip
        slots |= {f"{key}_{name}": number for key, number in numbers.items()}
        origins.append(window)
    reads = [tuple(w.origin + w.step * g + p for w, g, p in zip(origins, *tap, strict=True)) for tap in depth_taps(tiling)]
    tables = {
        "reads": np.array(reads, np.int64), "chunks": _chunk_table(problem, how),
        "live": _live(tiling, how.slices), "zeros": np.zeros(ceil(spec.in_channels * problem.itemsize / 8), np.int64),
    }  # fmt: skip
    return jobs.Bound(slots, tables, tasks(problem, how))


def _chunk_table(problem: Problem, how: Blocking) -> NDArray[np.int64]:
    """The chunks, and how far on in y the next one's outputs are."""
    chunks = np.array(_chunks(problem, how.tiling, how.tile, how.slices), np.int64)
    _, h, w = lines(problem, how.tiling.ways)
    place = ((chunks[:, 0] * h.out_size + chunks[:, 1]) * w.out_size + chunks[:, 2]) * problem.spec.out_channels + chunks[:, 3]
    return np.column_stack([chunks, np.append(np.diff(place), 0)])


@lru_cache(maxsize=512)
def _live(tiling: Tiling, slices: int) -> NDArray[np.int64]:
    """For each class of phases, product and point, what is not all zeros: (first row of the depth, rows), and the next point."""
    spec, every = tiling.spec, classes(tiling)
    if spec.transposed:
        found = [
            [depth_of(tiling, c.part) if number in live(tiling, point, c.part) else (0, 0) for point in tiling.points]
            for number, c in enumerate(every)
        ]
    else:
        kept = [live(tiling, point) for point in tiling.points]
        channels = spec.in_channels // spec.groups
        starts = [0, *accumulate(len(class_taps(tiling, c)) * channels for c in every)]
        found = [[(starts[k.start], starts[k.stop] - starts[k.start]) for k in kept]]
    found = [[(first // slices, rows // slices) for first, rows in row] * PRODUCTS[slices] for row in found]
    following = [[next((i for i in range(at + 1, len(row)) if row[i][1]), len(row)) for at in range(len(row))] for row in found]
    return np.concatenate([np.array(found, np.int64), np.array(following, np.int64)[:, :, None]], axis=2)


# -- code --------------------------------------------------------------------------------------------------------------


def _code(problem: Problem, how: Blocking) -> Code:
    return Code(how.tile, how.slices, how.tiling.ways, problem.spec.activation)


_NAMES = {1: NAME, 2: "strassen_last"}


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    names = [_NAMES[how.slices], *(f"f{way.outputs}x{way.taps}" for way in how.tiling.ways if way.transformed)]
    return f"{kind}_f{problem.itemsize * 8}_{'_'.join(names)}_{how.tile}_{target.name}"


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(_code(problem, how))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return winograd_last_code.emit(_code(problem, how))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return how.count * how.splits * problem.spec.groups


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds of the GEMMs, padding of tiles included; none where transformed weights are zero."""
    steps_ = sum(n * chunks * register_tile.rows_computed(how.tile, last) for n, chunks, last in _steps(problem, how))
    return round(steps_ * how.count * how.room * problem.spec.groups)


def _steps(problem: Problem, how: Blocking) -> list[tuple[int, int, int]]:
    """(steps of a column of register tiles, chunks, channels) of chunks that are alike, all points together."""
    rows = _live(how.tiling, how.slices)[:, :, 1].sum(axis=1)
    alike = Counter((int(rows[number]), channels) for *_, channels, number in _chunks(problem, how.tiling, how.tile, how.slices))
    return [(n, chunks, channels) for (n, channels), chunks in alike.items()]


TO, BACK, END = 12.0, 8.0, 50.0
"""Cycles that a vector of channels takes a point, from x to V and from M to y, and that a register tile takes besides its steps.
Measured over 79 layers."""


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the GEMMs, the transforms, the bytes moved and the weights streamed, on the threads' share."""
    spec, tile, item = problem.spec, how.tile, problem.itemsize
    tiles, steps_ = how.count * how.room, _steps(problem, how)
    cycles = sum(n * chunks * register_tile.chunks_cycles(tile, channels) for n, chunks, channels in steps_) * spec.groups
    ends = how.chunks * spec.groups * how.points * ceil(how.depth / how.depth_part)
    gemm = tiles / tile.turned * (cycles + ends * END)
    often = jobs.prepared(how.count, how.splits, threads)
    to = TO * ceil(how.depth / tile.lanes) * spec.groups * often
    back = BACK * how.chunks * spec.groups * tile.rows / tile.lanes
    moved = (prod(problem.input_shape) * often + prod(problem.output_shape)) * item
    streamed = how.count * spec.groups * sum(n * chunks for n, chunks, _ in steps_) * tile.rows * item
    share = jobs.helped_share([(tasks(problem, how), 1.0)], ceil(how.chunks / how.splits), threads)
    return register_tile.seconds(target, share, gemm, (to + back) * tiles * how.points, moved, streamed)


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    phases = prod(steps(problem.spec)[0])
    several = len(how.tiling.points)
    shared = f"the {phases} phases share one input transform, " if phases > 1 and several > 1 else ""
    points = f"{several} points, " if several > 1 else ""
    tiles = "tiles" if how.slices == 1 else "columns"
    return f"channels last, {shared}{points}{SLICES[how.slices]}blocks of {how.block} {tiles}"
