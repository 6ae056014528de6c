"""How the direct kernel takes a layer: which phases make one product, and which tile, chunk, block and reading suit it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, inf, prod

from upconv.codegen.ir import SIZES
from upconv.codegen.target import LINE, Target
from upconv.kernels import columns, microkernel, register_tile
from upconv.kernels.columns import Cut, Line, cut
from upconv.kernels.geometry import Band, Read, band, round_up
from upconv.kernels.register_tile import Tile
from upconv.spec import ConvSpec, Problem


@dataclass(frozen=True, slots=True)
class PhaseGroup:
    """Phases that read the same inputs: (kernel indices of each tap, one entry a phase), and what the taps read."""

    phases: tuple[int, ...]
    reads: tuple[Read, ...]
    kernels: tuple[tuple[tuple[int, ...], ...], ...]


@lru_cache(maxsize=512)
def phase_groups(shape: Band, shared: bool = False) -> tuple[PhaseGroup, ...]:
    """The phases that have outputs, those with equal reads together.

    `shared` takes the reads apart instead: a group for each set of phases, with what just these read. A phase is then the sum
    of all the groups that it is in. With one output channel and a 9x9 kernel of stride 2, 16 of the 25 reads serve all four
    phases at once, where each phase alone would leave most of a tile's rows empty.
    """
    phases = [(number, {tap.read: tap.kernel for tap in taps}) for number, taps in enumerate(shape.taps()) if taps is not None]
    found: dict[tuple[Read, ...], list[int]] = {}
    if shared:
        sets: dict[tuple[int, ...], list[Read]] = {(number,): [] for number, taps in phases if not taps}
        for read in sorted({read for _, taps in phases for read in taps}, key=lambda read: read.at):
            sets.setdefault(tuple(number for number, taps in phases if read in taps), []).append(read)
        members = [(numbers, tuple(reads)) for numbers, reads in sets.items()]
    else:
        for number, taps in phases:
            found.setdefault(tuple(sorted(taps, key=lambda read: read.at)), []).append(number)  # in order: see `_tap_runs`
        members = [(tuple(numbers), reads) for reads, numbers in found.items()]
    kernels = dict(phases)
    return tuple(PhaseGroup(n, reads, tuple(tuple(kernels[a][read] for a in n) for read in reads)) for n, reads in members)


def most_sums(groups: tuple[PhaseGroup, ...]) -> int:
    """How many groups a phase is the sum of, at most."""
    return max(Counter(phase for group in groups for phase in group.phases).values(), default=1)


def distinct_reads(groups: tuple[PhaseGroup, ...]) -> tuple[Read, ...]:
    """What any phase reads, each once, in rising order."""
    return tuple(sorted({read for group in groups for read in group.reads}, key=lambda read: read.at))


def lines(shape: Band) -> tuple[Line, Line, Line]:
    """The band's axes as columns."""
    d, h, w = (Line(a.size, a.out_size, a.in_step, a.out_step, a.crop, a.positions) for a in shape.axes)
    return d, h, w


# -- the choice ------------------------------------------------------------------------------------------------------------

TILE = 6
"""Steps that a tile takes to begin and to end."""


def _steps(tile: Tile, spec: ConvSpec, chunk: int, groups: tuple[tuple[int, int], ...], more: float = 0.0) -> float:
    """Tile steps of one column of tiles for a group's output channels in chunks; `groups` holds (phases, taps).

    Each tile takes `more` steps than one that is not interrupted.
    """
    channels_in, channels_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    steps = sum((t * channels_in + TILE + more) * ceil(chunk * p / tile.rows) for p, t in groups)
    return ceil(channels_out / chunk) * steps


def more_cycles(tile: Tile) -> float:
    """Cycles of a tile that goes on where another left off: to begin and end, to read the sums and add to them."""
    return TILE * register_tile.step_cycles(tile) + 2.0 * tile.rows * tile.vectors


def pack_channels(tile: Tile, target: Target, channels: int, groups: tuple[tuple[int, int], ...]) -> int:
    """Input channels that panels hold at a time: what a tile reads of them stays in the first-level cache.

    A number of parts that divides the channels is taken where there is one near.
    """
    deepest = max((taps for _, taps in groups), default=1) * channels
    least = max(1, min(channels, ceil(deepest * tile.width * SIZES[tile.element] / (0.65 * target.l1))))
    parts = next((n for n in range(least, least * 3 // 2 + 1) if channels % n == 0), least)
    return ceil(channels / parts)


STORED_ROWS, STORED_TILES = 96, 8
"""Rows and tiles of columns that are computed before they are stored: they wait in the nearest caches, and rows of y are long
enough to be written at the memory's pace. Measured: one tile at a time costs 5 % of k2s2 192 -> 192 on 80 x 80."""


OVERLAPPED = 0.6
"""The part of `more_cycles` that tells tiles apart: the rest goes on beside other tiles' sums. Measured: 256 channels in two parts
take 2 % longer than in one, 576 in three parts of a wide tile less than in two of a narrow one."""
STORED_APART = 1.05
"""What a layer costs whose tiles could store their sums themselves, had they other rows. Measured: 1.05 to 1.2."""


def _choose_chunk(tile: Tile, target: Target, spec: ConvSpec, groups: tuple[tuple[int, int], ...], again: bool) -> int:
    """The number of output channels that a scratch block holds, for the least padding of tiles.

    It is small, so that sums are stored before they leave the nearest caches; but where panels would be copied again
    for every chunk (`again`), a block of many columns takes a large part of the second-level cache.
    """
    phases = sum(p for p, _ in groups)
    most = target.l2 * 0.4 / (3 * tile.width * SIZES[tile.element]) if again else STORED_ROWS
    channels, best = spec.out_channels // spec.groups, (inf, 1)
    for parts in range(1, min(channels, 512) + 1):
        chunk = ceil(channels / parts)
        if chunk * phases > most and chunk > 1:
            continue
        best = min(best, (_steps(tile, spec, chunk, groups) * (1 + 0.002 * parts), chunk))
        if chunk * phases < tile.rows:
            break
    return best[1]


BAND = 0.45
"""Of the second-level cache, for a block's panels or band."""
KEPT = 4
"""Tile widths of columns, at least, for which panels of all channels should have that room: then they are copied once a block, and
are there for all its chunks."""


def keeps(channels: int, reads: int, tile: Tile, target: Target) -> bool:
    """Whether a block's panels of all its channels are kept, where tiles go over them in parts."""
    return KEPT * tile.width * channels * reads * SIZES[tile.element] <= BAND * target.l2


def repeats(channels: int, groups: tuple[tuple[int, int], ...], reads: int, tile: Tile, target: Target) -> bool:
    """Whether panels are copied again for every chunk: of some channels at a time, too many in all to be kept."""
    return pack_channels(tile, target, channels, groups) < channels and not keeps(channels, reads, tile, target)


def shape_groups(shape: Band, shared: bool = False) -> tuple[tuple[int, int], ...]:
    """(phases, taps) of each phase group."""
    return tuple((len(g.phases), len(g.reads)) for g in phase_groups(shape, shared))


def _typical(problem: Problem) -> Problem:
    """The layer on a size that stands for all: what changes the code is chosen for it, so that every length runs the same."""
    spec = problem.spec
    size = tuple(8 * (k * d + s) for k, s, d in zip(spec.kernel_size, spec.stride, spec.dilation, strict=True))
    return replace(problem, batch=1, input_size=size, output_size=spec.output_size(size))


@lru_cache(maxsize=1024)
def choose_tile(problem: Problem, target: Target) -> Tile:
    """The tile of a layer."""
    return _usual_tile(_typical(problem), band(problem).axes[2].out_step, target)


@lru_cache(maxsize=512)
def _usual_tile(typical: Problem, step: int, target: Target) -> Tile:
    """The tile of fewest steps for a layer, whatever its sizes, whose outputs stand `step` apart in rows of y."""
    spec, element = typical.spec, register_tile.ELEMENTS[typical.dtype]
    shape, channels_in = band(typical), spec.in_channels // spec.groups
    offered = [t for t in register_tile.tiles(element, target) if t.vectors > 1]
    best = (inf, 0)
    for i, tile in enumerate(offered):
        for shared in (False, True):
            groups, reads = shape_groups(shape, shared), len(distinct_reads(phase_groups(shape, shared)))
            again = ceil(channels_in / pack_channels(tile, target, channels_in, groups)) - 1
            chunk = _choose_chunk(tile, target, spec, groups, repeats(channels_in, groups, reads, tile, target))
            more = OVERLAPPED * again * more_cycles(tile) / register_tile.step_cycles(tile)
            stored = 1.0 if _fuses(typical, step, tile) or not is_whole(shape) else STORED_APART
            steps = _steps(tile, spec, chunk, groups, more)
            best = min(best, (steps * stored * register_tile.step_cycles(tile) / tile.width, i))
    return offered[best[1]]


COPIED = 3.5
"""Cycles of copying a vector into a panel; twice as many where steps lie between its elements."""
UNALIGNED = 1.2
"""What a tile's step costs more where it reads the band: vectors across cache lines, rows in many pages. Measured."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to number and to read the columns, with its estimated cycles a group of channels."""

    cycles: float
    panels: bool
    cropped: bool
    shared: bool
    chunk: int


def _ways(problem: Problem, target: Target, tile: Tile) -> list[Way]:
    """Cropped or not (fewer columns against more reads), from panels or the band (a copy against slower steps)."""
    spec = problem.spec
    channels_in, found = spec.in_channels // spec.groups, []
    crops = (False, True) if spec.transposed and any(lo for lo, _ in spec.padding) else (False,)
    for cropped, shared in [*((cropped, False) for cropped in crops), (False, True)]:
        shape = band(problem, cropped)
        groups, reads = shape_groups(shape, shared), len(distinct_reads(phase_groups(shape, shared)))
        chunk = _choose_chunk(tile, target, spec, groups, repeats(channels_in, groups, reads, tile, target))
        step = _steps(tile, spec, chunk, groups)
        dense = columns.count(problem.batch, lines(shape))
        vector = COPIED if shape.axes[2].in_step == 1 else 2 * COPIED
        copied = reads * channels_in * ceil(dense / tile.lanes) * vector
        found.append(Way(step * register_tile.columns_cycles(tile, dense) + copied, True, cropped, shared, chunk))
        found.append(Way(step * UNALIGNED * register_tile.columns_cycles(tile, shape.length), False, cropped, shared, chunk))
    return found


@lru_cache(maxsize=1024)
def choose_way(problem: Problem, target: Target) -> Way:
    """The way of least cycles; whether it reads panels and shares reads is settled by the layer, not by its sizes."""
    tile = choose_tile(problem, target)
    typical = min(_ways(_typical(problem), target, tile), key=lambda way: way.cycles)  # of equals the one that does not share
    kind = (typical.panels and not columns.too_far(problem, tile.lanes), typical.shared)
    return min((way for way in _ways(problem, target, tile) if (way.panels, way.shared) == kind), key=lambda way: way.cycles)


def typical_sums(problem: Problem, shared: bool) -> int:
    """How many sums the store adds up, for every size of the layer."""
    return most_sums(phase_groups(band(_typical(problem)), True)) if shared else 1


def fuses(problem: Problem, tile: Tile) -> bool:
    """Whether tiles can store their sums themselves: each holds whole rows of y, with all phases of each.

    That is settled by the layer: sizes that are numbered cropped, whose phases read apart, run the same code without it.
    """
    return _fuses(_typical(problem), band(problem).axes[2].out_step, tile)


def _fuses(typical: Problem, step: int, tile: Tile) -> bool:
    """The same for outputs that stand `step` apart in rows of y, where those of a single input may stand otherwise than others."""
    return step <= tile.lanes and tile.rows % step == 0 and is_whole(band(typical))


def is_whole(shape: Band, shared: bool = False) -> bool:
    """Whether one group holds every phase, in order."""
    groups = phase_groups(shape, shared)
    return len(groups) == 1 and groups[0].phases == tuple(range(prod(axis.out_step for axis in shape.axes)))


PASSES, ALIASED_PASSES, ALIASED_SIZE = 8, 2, 16
"""Times that tiles may go over x where it stands, for each tap and strip of rows. Where its channels are whole pages apart, and so
all in the same sets of the caches, fewer times, and only over an x of so many second-level caches. Measured over 60 layers: packing
it takes 1.0 to 2 times as long, beyond these limits 0.5 to 1.1."""


def outermost(shape: Band) -> int:
    """The number of the first axis that a layer has."""
    return next((i for i, axis in enumerate(shape.axes) if axis.size > 1), 2)


def _is_linear(shape: Band) -> bool:
    """Whether an image's band is a piece of x, or x a piece of it: only the outermost dimension may have a halo."""
    inner = shape.axes[outermost(shape) + 1 :]
    return all(axis.in_step == 1 for axis in shape.axes) and all(axis.pitch == axis.size and axis.base == 0 for axis in inner)


def _passes(problem: Problem, tile: Tile) -> int:
    """How many times tiles go over what they read."""
    spec, groups = problem.spec, shape_groups(band(_typical(problem)))
    return sum(taps * ceil(spec.out_channels // spec.groups * phases / tile.rows) for phases, taps in groups)


def scatters(problem: Problem, tile: Tile) -> bool:
    """Whether a layer's blocks are mostly read where they stand in x, whose channels are in pages of their own."""
    return _is_linear(band(_typical(problem))) and _passes(problem, tile) <= PASSES


def reads_x(problem: Problem, target: Target, tile: Tile, cropped: bool) -> bool:
    """Whether blocks are read where they stand in x, as far as they lie there, at these sizes."""
    most = PASSES
    if prod(problem.input_size) * problem.itemsize % 4096 < LINE:
        most = ALIASED_PASSES if prod(problem.input_shape) * problem.itemsize <= ALIASED_SIZE * target.l2 else 0
    return _is_linear(band(problem, cropped)) and _passes(problem, tile) <= most


READ_AGAIN = 0.8
"""Cycles that an element takes which is copied to the band once more, for the next block's taps."""
BLOCK = 4096
"""Columns of a block at most."""


def band_channels(channels: int, halo: int, column_bytes: int, more: float, target: Target) -> int:
    """Channels of the band at a time: few leave room for long blocks, many interrupt the sums less.

    `halo` columns of `column_bytes` a channel are copied again for every block; each part's sums cost `more` cycles a column to
    go on with. Measured: 1024 -> 1 k3 on 149 x 149, 128 channels at a time in blocks of 192, where the halo has 302, 25 ms.
    """
    best = (inf, channels)
    for parts in [n * k // 2 for n in (1 << i for i in range(channels.bit_length())) for k in (2, 3)]:
        size = in_parts(channels, ceil(channels / parts))
        block = min(target.l2 * BAND / (size * column_bytes) - halo, BLOCK)
        if block > 0:
            again = channels * READ_AGAIN * halo * column_bytes / SIZES["float"] / block
            best = min(best, (again + ceil(channels / size) * more, size))
    return best[1] if best[0] < inf else min(channels, microkernel.together(1))


def scattered_channels(tile: Tile, target: Target) -> int:
    """Channels that tiles go over at a time where each stands in pages of its own.

    The lines of a tile's columns and of the next one's, which are asked for meanwhile, take half of the first-level cache.
    Measured: 1.2 to 1.3 times as fast as all 512 channels at once, for decoders of 16 and 20 taps.
    """
    lines_ = ceil(tile.width * SIZES[tile.element] / LINE) + 1
    return int(target.l1 * 0.5 / (2 * lines_ * LINE))


def in_parts(channels: int, most: int) -> int:
    """Channels of the largest of as few equal parts as have at most so many, which a tile takes several at a time.

    >>> in_parts(56, 60), in_parts(56, 10), in_parts(100, 40), in_parts(7, 2)
    (56, 8, 36, 2)
    """
    several, equal = microkernel.together(1), ceil(channels / ceil(channels / max(1, most)))
    if equal == channels or equal < several:
        return equal
    return min(round_up(equal, several), most // several * several)


TASKS = ((4, 2), (12, 8))
"""Tasks a thread, and how many times its halo a block of them is at least. Measured: twelve in place of four, of which threads
share the last, 1.02 to 1.03 times as fast over 28 layers, Winograd's among them (Emerald Rapids)."""


def offered_cuts(
    length: int, tile: Tile, target: Target, threads: int, groups: int, right_row: int, scratch_row: int, halo: int
) -> list[Cut]:
    """Columns a task takes, the usual cut first: as many as the cache holds, fewer where threads would stand idle.

    Others are of blocks more alike, that end in narrow tiles, and of so few that threads share their channels. `right_row` and
    `scratch_row` are the bytes that one column needs in the panels (or the band) and in the scratch block.
    """
    most = min(target.l2 * BAND / max(right_row, 1) - halo, target.l2 * 0.4 / max(scratch_row, 1), BLOCK)
    most = max(2 * tile.width, int(most) // tile.width * tile.width, halo // 2)
    pieces = max(1, ceil(length / most))
    for tasks, halos in TASKS:  # even out the threads' shares, in blocks that are worth their halo
        pieces = max(pieces, min(ceil(tasks * threads / groups), length // max(4 * tile.width, halos * halo)))
    if pieces > 1 and groups < threads:
        pieces = round_up(pieces, threads)
    usual = cut(length, tile.lanes if length < 4 * tile.width else tile.width, pieces)
    few = [cut(length, usual.unit, n) for n in sorted({1, threads}) if n < pieces and ceil(length / n) <= most]
    return list(dict.fromkeys([usual, *few, cut(length, tile.lanes, pieces)]))
