"""Winograd's minimal filtering on the phases: all phases of a transposed layer share one input transform.

In uncropped coordinates every phase of a layer with kernel r*s reads the same r inputs, so a tile of F outputs a phase needs
one window of F + r - 1 inputs, whatever the phase. With the points 0, 1, -1 and infinity the window has four inputs: F(3, 2)
for two taps a phase, F(2, 3) for three; two dimensions then need 16 multiplications where the direct sum needs 36
(`winograd_wide.py` has six points in one of them). A strided convolution is the same read from the other side: its input planes
are summed in the transformed domain.

A block of tiles is transformed (V), multiplied by the transformed weights (U), one small GEMM a point, and transformed back,
a vector of tiles at a time, to be stored as the direct kernel stores its own, the step F times as wide.

Source: Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks, 2016, for the use on layers. Sharing the transform between phases is described in docs/winograd.md.
"""

from __future__ import annotations

from itertools import product
from math import ceil, gcd, prod

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.target import Target
from upconv.kernels import columns, listing, register_tile, store, weights, winograd_code
from upconv.kernels import job as jobs
from upconv.kernels.columns import TOO_FAR, too_far
from upconv.kernels.geometry import folded, round_up
from upconv.kernels.strassen_products import PRODUCTS, SLICES, sliced, with_left
from upconv.kernels.winograd_blocks import Blocking, code_of
from upconv.kernels.winograd_blocks import blocking as blocking  # offered with the rest
from upconv.kernels.winograd_cuts import ALONE, positions
from upconv.kernels.winograd_depth import class_taps, classes, depth_of, depth_taps, depths, live, phases_of, weight_places
from upconv.kernels.winograd_tiles import (
    NARROW,
    Tiling,
    Way,
    between_planes,
    dilations,
    lines,
    nothing_to_save,
    slice_channels,
    steps,
    ways_of,
    windows,
)
from upconv.kernels.winograd_way import SLOTS as SLOTS  # offered with the rest
from upconv.kernels.winograd_work import back_cycles, far_sums, too_deep, transform_cycles
from upconv.spec import ConvSpec, Problem

NAME = "winograd"
EXACT = False
"""Rounding differs from the direct sum's, and a NaN spreads over its tile."""
CROSSING = 1.2
"""How many times as dear as a vector whose outputs are not whole one is that goes on in another row, read in two pieces as well."""


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    return refuses(problem, target) or nothing_to_save(problem.spec)


def refuses(problem: Problem, target: Target) -> str | None:
    """Why a problem has no tiles that are worth their transforms, or None."""
    spec = problem.spec
    if folded(spec):
        return folded(spec)
    if target.lanes(problem.itemsize) < 4:
        return "vectors too short to be worth the transforms"
    if too_far(problem, target.lanes(problem.itemsize)):
        return TOO_FAR
    ways = ways_of(spec, NARROW)
    if isinstance(ways, str):
        return ways
    least = min(spec.in_channels, spec.out_channels * prod(steps(spec)[0])) // spec.groups
    if least < 8:
        return f"{least} channels (times phases) a group: the transforms would cost more"
    return too_deep(spec)


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """U in the order the tiles read it: [group][chunk][product][point][block][group of taps and plane][channel][row].

    Where phases stand apart, a row has those of its own window alone.
    """
    spec, rows, tiling = problem.spec, how.tile.rows, how.tiling
    c, m = slice_channels(problem.spec, how.slices)
    step, channel_step, group_step = weights.strides(spec)
    channels, phases = [], []
    for blocks, residues in zip(how.tile_blocks, phases_of(tiling), strict=True):
        found = weights.row_channels(how.chunks, how.chunk, blocks, rows, len(residues), m)
        channels.append(found.reshape(how.chunks, blocks, rows))
        phases.append(np.array(residues)[np.arange(blocks * rows) % len(residues)].reshape(blocks, rows, 3))
    channel, phase = np.concatenate(channels, axis=1), np.concatenate(phases)  # chunk block row; block row dimension
    place = weight_places(tiling, phase)
    place = place.reshape(*place.shape[:2], 1, -1, rows)
    good = (channel[:, :, None, None, None] >= 0) & (place >= 0)
    where = np.where(good, channel[:, :, None, None, None] * step + place, -1)
    where = sliced(where, how.slices, m * step, c * channel_step)
    where = where.reshape(-1, *where.shape[2:])  # entry, depth tap, plane, slice and window, row
    first, second = (_transform(way, how) for way in tiling.ways[1:])
    matrices = weights.rows_of(with_left(how.slices, first)), weights.rows_of(second)
    transform = weights.Transform(how.tile.element, rows, False, *matrices)  # windows fill lines
    return weights.Layout(transform, spec.groups, c, 1, channel_step, group_step, (where,), c, how.chunks)


def _transform(way: Way, how: Blocking) -> NDArray[np.float64] | None:
    """What is done to a dimension's taps as they are packed: nothing where they are transformed as they are read."""
    if way.points is None:
        return None
    return np.eye(way.taps) if how.streamed else way.points.weight(way.taps)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer."""
    return (how.tile.rows, how.chunk)


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec = problem.spec
    c, m = slice_channels(problem.spec, how.slices)
    _, ph, pw = _phases(spec)
    image_in, image_out = prod(problem.input_size), prod(problem.output_size)
    chunk_size = how.rows * how.sum_depth
    outer, reads = _reads(problem, how)
    last_h, last_w = (n - 1 if useless else -1 for n, useless in zip(positions(problem, how.ways), how.useless, strict=True))
    slots = {
        **columns.slots(lines(problem, how.ways), spec.in_channels, spec.out_channels),
        "x_channel": image_in, "y_channel": image_out, **store.numbers(problem),
        "read_count": len(reads), "outer_count": len(outer),
        "panel_size": how.depth * how.tile.width, **how.cut.slots(), "room": how.room, "splits": how.splits, "abreast": how.abreast,
        "chunks_a_split": ceil(how.chunks / how.splits), "chunks": how.chunks, "chunk": how.chunk,
        "channels_out": m, "channels_in": c,
        "depth": how.depth, "sum_depth": how.sum_depth, "depth_part": how.depth_part,
        "x_slice": c * image_in, "x_end": ((problem.batch - 1) * spec.in_channels + 1) * image_in,
        "group_out": spec.out_channels // spec.groups,
        "phases_h": ph, "phases_w": pw, "weight_point": chunk_size, "weight_chunk": _packed_points(how) * chunk_size,
        "weight_group": _packed_points(how) * how.chunks * chunk_size,
        "x_group": spec.in_channels // spec.groups * image_in,
        "v_point": how.v_point, "m_pitch": how.m_pitch, "m_point": how.m_point,
        "table_bytes": how.table_bytes, "found_bytes": how.found_bytes, "line_bytes": how.line_bytes,
        "lines_bytes": how.lines_bytes, "slices_bytes": how.slices_bytes, "m_bytes": how.m_bytes,
        "v_bytes": how.v_bytes, "written_bytes": how.written_bytes, "asks_written": int(how.written > 0),
        "asks_read": int(how.read > 0), "depths": len(depths(how.tiling)), "strips": int(_point_table(problem, how)[:, 1].sum()),
        "workspace_bytes": how.workspace_bytes, "by_position": int(how.by_position), "last_h": last_h, "last_w": last_w,
        **dict(zip(listing.OF_SLICES, image_parts(problem, how), strict=True)),
    }  # fmt: skip
    tables = {
        "taps": np.array([(0, 0, 1)]), "outer": outer, "reads": reads,
        "points": _class_table(how) if how.streamed else _point_table(problem, how),
        "phase_rows": _phase_rows(problem, how), "plane_rows": _plane_rows(how.tiling),
    }  # fmt: skip
    return jobs.Bound(slots, tables, tasks(problem, how))


def image_parts(problem: Problem, how: Blocking) -> tuple[int, int]:
    """Parts that an image's tiles are cut in where slices are parts of it, and tiles of each; else one of all."""
    tiles, in_parts = how.cut.length * how.cut.parts // problem.batch, problem.batch > 1 and how.cut.parts == 1
    return (how.slices, tiles // how.slices) if in_parts else (1, tiles)


def _packed_points(how: Blocking) -> int:
    """Of the packed weights, products and all; of weights that are transformed as they are read, taps of a window."""
    return prod(way.taps for way in how.ways[1:]) if how.streamed else how.points * PRODUCTS[how.slices]


def _point_table(problem: Problem, how: Blocking) -> NDArray[np.int64]:
    """For each product, point and part of the depth, what is live there: see `winograd_way.POINT`."""
    spec, tiling = problem.spec, how.tiling
    c, _ = slice_channels(spec, how.slices)
    sizes = how.tile_blocks if spec.transposed else tuple(len(class_taps(tiling, k)) * c for k in classes(tiling))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found = []
    for point, of in product(tiling.points, depths(tiling)):
        kept = live(tiling, point, of)
        part = (int(starts[kept.start]), int(starts[kept.stop] - starts[kept.start]))
        first, rows = (n // how.slices for n in depth_of(tiling, of))
        ends = (int(way.transformed and u == way.window - 1) for way, u in zip(how.ways[1:], point, strict=True))
        numbers = (*part, first, rows) if spec.transposed else (0, sum(how.tile_blocks), *part)
        found.append((*numbers, numbers[2] % how.sum_depth, *ends))
    return np.array(found * PRODUCTS[how.slices], np.int64)


def _class_table(how: Blocking) -> NDArray[np.int64]:
    """The same for each class of phases, where all points of a strip are done at once."""
    found, first = [], 0
    for c, blocks in zip(classes(how.tiling), how.tile_blocks, strict=False):  # a convolution's are of planes: it has one
        row, rows = depth_of(how.tiling, c.part)
        found.append((first, blocks, row, rows, row % how.sum_depth, 0, 0))
        first += blocks
    return np.array(found, np.int64)


def _phase_rows(problem: Problem, how: Blocking) -> NDArray[np.int64]:
    """For each phase, row-major: its row of a chunk's first channel, and the rows a channel."""
    table, first = np.zeros((*steps(problem.spec)[0], 2), np.int64), 0
    for residues, blocks in zip(phases_of(how.tiling), how.tile_blocks, strict=True):
        for i, residue in enumerate(residues):
            table[residue] = (first + i, len(residues))
        first += blocks * how.tile.rows
    return np.tile(table, (*dilations(problem.spec), 1)).reshape(-1, 2)  # interleaved layers have the same weights


def _phases(spec: ConvSpec) -> tuple[int, ...]:
    """Phases of the output in each dimension, or layers that a dilation interleaves there."""
    return tuple(a * b for a, b in zip(steps(spec)[0], dilations(spec), strict=True))


def _plane_rows(tiling: Tiling) -> NDArray[np.int64]:
    """For each group of taps and plane (as `outer` lists them) and each inner plane: its place among the depth's taps."""
    (pd, ph, pw), (_, dh, dw) = steps(tiling.spec)[1], dilations(tiling.spec)
    number = {tap: i for i, tap in enumerate(depth_taps(tiling))}
    _, gh, gw = (range(way.groups) for way in tiling.ways)
    beside = tiling.ways[2].beside
    outer = product(range(tiling.planes), gh, range(len(gw) // beside), range(ph * dh), range(pw * dw), range(beside))
    found = [number[(d // pd, th, beside * tw + i), (d % pd, h // dh, w // dw)] for d, th, tw, h, w, i in outer]
    return np.array(found, np.int64)


def _reads(problem: Problem, how: Blocking) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first element of the window of each group of taps and outer plane, every element of it), as `panel` reads."""
    (_, d), (line_h, h), (line_w, w) = windows(problem, how.ways)
    ways = how.ways

    def at(ed: int, eh: int, ew: int) -> tuple[int, ...]:
        return ed, eh, ew, (ed * line_h.size + eh) * line_w.size + ew

    outer_h, outer_w = (
        range(window.origin, window.origin + window.step * groups, window.step)
        for window, groups in ((h, ways[1].groups), (w, ways[2].groups // ways[2].beside))
    )
    apart = between_planes(problem.spec)
    outer_d = range(d.origin, d.origin + how.tiling.planes * apart, apart)
    outer = list(product(outer_d, outer_h, outer_w))
    every = [at(e, eh + i, ew + j) for e, eh, ew in outer for i, j in product(range(h.reach), range(w.reach))]
    return np.array([at(*e) for e in outer], np.int64), np.array(every, np.int64)


# -- code --------------------------------------------------------------------------------------------------------------


_NAMES = {1: NAME, 2: "strassen", 4: "strassen_twice"}


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    algorithm = "winograd_streamed" if how.streamed else _NAMES[how.slices]
    of = zip(how.ways, dilations(problem.spec), strict=True)
    names = [algorithm, *(f"f{way.outputs}x{way.taps}" + f"d{d}" * (d > 1) for way, d in of if way.transformed)]
    return f"{kind}_f{problem.itemsize * 8}_{'_'.join(names)}_{how.tile}_{target.name}"


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(code_of(problem, how.ways, how.tile, how.slices, how.streamed))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return winograd_code.emit(code_of(problem, how.ways, how.tile, how.slices, how.streamed))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    return how.cut.count * problem.spec.groups * how.splits


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds of the GEMMs, padding of tiles included; none where transformed weights are zero."""
    return round(_streamed(problem, how) * _length(how))


def _streamed(problem: Problem, how: Blocking) -> float:
    """Transformed weights that the columns of a block meet: those that are live, at points that it does not leave out."""
    return how.chunks * how.tile.rows * _steps(problem, how) * problem.spec.groups


def _steps(problem: Problem, how: Blocking) -> float:
    """Steps of a chunk's strips for a column of tiles, all points of a block together, in the mean of the blocks."""
    table = _point_table(problem, how)
    return float((table[:, 1] * table[:, 3] * _shares(problem, how, table)).sum())


def _length(how: Blocking) -> int:
    """Columns of the GEMMs: tiles, or pairs of them, in whole vectors, of each layer that a dilation interleaves."""
    return how.cut.parts * round_up(how.cut.length, how.tile.lanes * how.slices) // how.slices * how.tiling.interleaved


def _shares(problem: Problem, how: Blocking, table: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of the blocks that do not leave out each point."""
    ends = zip(table.T[5:], positions(problem, how.ways), how.useless, strict=True)
    h, w = (1 - last / n if out else 1.0 for last, n, out in ends)
    return np.asarray(h * w, np.float64)


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the GEMMs, the transforms, the bytes stored and the weights streamed, on the threads' share."""
    spec, tile = problem.spec, how.tile
    _, _, w = lines(problem, how.ways)
    vectors = _length(how) // tile.lanes
    rows = how.chunks * how.rows * spec.groups
    to, back = transform_cycles(how.tiling, how.slices, how.v_bytes, target), back_cycles(how.tiling, how.slices, target)
    often = jobs.prepared(how.cut.count, how.splits, threads)
    transforms = vectors * how.points * (to * how.depth * spec.groups * often + back * rows)
    outputs = prod(way.outputs for way in how.ways[:2])
    tile_rows = vectors * rows * how.slices**2 / (prod(spec.stride[-1:]) * dilations(spec)[2])
    stored = store.cycles(tile_rows * outputs, w.out_step, tile.lanes, _mixed(w.positions, how))
    stored += ALONE * tile.lanes * tile_rows * how.by_position
    moved = (prod(problem.input_shape) * often + prod(problem.output_shape)) * problem.itemsize
    moved += far_sums(vectors * how.points * rows * tile.lanes * problem.itemsize, how.m_bytes, target)
    streamed = how.cut.count * _streamed(problem, how) * problem.itemsize
    pieces = ceil(how.chunks / how.splits)
    share = jobs.helped_share([(count * spec.groups, time) for count, time in how.tasks], pieces, threads)
    seconds = register_tile.seconds(target, share, _gemm_cycles(problem, how), transforms + stored, moved, streamed)
    return seconds * jobs.held_up(tasks(problem, how) * pieces, threads)


def _mixed(positions: int, how: Blocking) -> float:
    """Vectors of tiles whose outputs are not whole, of so many tiles a row: those that go on in another row, CROSSING times.

    For slices as the direct sum counts, which they compete with.
    """
    if how.by_position:
        return 1.0
    if how.slices > 1:
        return float(positions <= 2 * how.tile.lanes)
    return CROSSING * min(1.0, (how.tile.lanes - gcd(positions, how.tile.lanes)) / positions)


def _gemm_cycles(problem: Problem, how: Blocking) -> float:
    """Estimated cycles of the products: steps of wide tiles and of the narrow ones that blocks end in, and their ends."""
    tile, table = how.tile, _point_table(problem, how)
    shares = _shares(problem, how, table)
    steps_ = _steps(problem, how)
    ends = float((table[:, 1] * np.ceil(table[:, 3] / how.depth_part) * shares).sum())
    cycles = 0.0
    for count, size in how.cut.sizes():
        columns_ = how.tiling.columns(ceil(size / how.slices), tile.lanes)
        cycles += count * (steps_ * register_tile.columns_cycles(tile, columns_) + ends * register_tile.ends_cycles(tile, columns_))
    return cycles * how.chunks * problem.spec.groups


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    phases = prod(steps(problem.spec)[0])
    shared = f"{how.tiling.interleaved} interleaved layers, " if how.tiling.interleaved > 1 else ""
    if phases > 1 and how.points > 1:
        apart = any(way.apart for way in how.ways)
        shared = "phases in tiles of their own, " if apart else f"the {phases} phases share one input transform, "
    points = f"{how.points} points, " if how.points > 1 else ""
    slices = SLICES[how.slices]
    tiles = "tiles" if how.points > 1 else "columns"
    tiles += " of one position" if how.by_position else ""
    return f"{shared}{points}{slices}blocks of {how.block} {tiles} x {how.chunk * how.slices} channels"
