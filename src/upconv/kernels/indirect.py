"""The direct sum for arrays with their channels last: output channels in the lanes, columns found through a table.

No input is packed, whatever the stride, dilation or padding (`positions.py`), and a column's sums are a row of y.

Source: Dukhan, The Indirect Convolution Algorithm, 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, prod

import numpy as np

from upconv.codegen.ir import SIZES
from upconv.codegen.target import Target
from upconv.kernels import indirect_code, positions, register_tile, weights
from upconv.kernels import job as jobs
from upconv.kernels.geometry import band, folded, round_up
from upconv.kernels.positions import PhaseSet, columns_of, phase_sets, place_of
from upconv.kernels.register_tile import Tile
from upconv.spec import ConvSpec, Problem

NAME = "indirect"
SLOTS = indirect_code.SLOTS
EXACT = True
FEW = 12
"""Columns up to which tiles are for as many."""
LEAST = 4
"""Input channels a group: with fewer, a tile's taps end before they have begun."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `block` counts columns, `shares` into how many the chunks of a block, or of all sets, are cut."""

    tile: Tile
    block: int
    shares: int
    table_bytes: int
    x_bytes: int = 0
    """Of x copied to channels-last, where arrays have their channels first."""
    streams: int = 1
    """Pieces of memory that a tap's weights are read in at a time: piece i holds input channels i, i + streams, ..."""
    ahead: int = 0
    """Bytes on from where a tile reads that it asks for weights, or 0."""
    writes: bool = False
    """Whether a tile asks for the lines of y that it will write."""

    @property
    def first(self) -> bool:
        """Whether arrays have their channels first."""
        return self.x_bytes > 0

    @property
    def workspace_bytes(self) -> int:
        return self.table_bytes + self.x_bytes + round_up(self.tile.rows * SIZES[self.tile.element], 64) + 64


# -- the choice ------------------------------------------------------------------------------------------------------------


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec = problem.spec
    if folded(spec):
        return folded(spec)
    if target.lanes(problem.itemsize) < 2:
        return "no vectors"
    if spec.out_channels // spec.groups < target.lanes(problem.itemsize):
        return f"{spec.out_channels // spec.groups} output channels a group: fewer than lanes"
    if spec.in_channels // spec.groups < LEAST:
        return f"{spec.in_channels // spec.groups} input channels a group: too few for a sum"
    return None


@lru_cache(maxsize=512)
def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """Columns a task: what it reads stays in the second-level cache while the weights stream past; fewer for idle threads."""
    sets, tile = phase_sets(problem), _tile(problem, target, threads)
    most = int(target.l2 * 0.4 / (problem.spec.in_channels * problem.itemsize)) // tile.turned * tile.turned
    most = min(max(most, 8 * tile.turned), 64 * tile.turned)
    columns = [columns_of(problem, s) for s in sets] or [1]
    total = sum(columns)
    block = min(most, round_up(ceil(total / (4 * threads)), tile.turned), round_up(max(columns), tile.turned))
    block = max(block, min(8 * tile.turned, round_up(max(columns), tile.turned)))
    tasks = sum(ceil(n / block) for n in columns)
    chunks = min((len(_chunks(problem.spec, tile, s)) for s in sets), default=1)
    shares = max(1, min(chunks, ceil(3 * threads / tasks))) if threads > 1 else 1
    tile, ahead = asking(tile, problem, target, block)
    table, many = table_bytes(sets, block), streams(problem, target)
    return Blocking(tile, block, shares, table, streams=many, ahead=ahead, writes=target.kind == 2)


def _tile(problem: Problem, target: Target, threads: int) -> Tile:
    """The tile: of as many columns as there are where they are few, no higher then than leaves every thread something to do."""
    m, columns = problem.spec.out_channels // problem.spec.groups, most_columns(problem)
    if columns > FEW:
        return register_tile.last_tile(problem.dtype, target, m)
    phases = sum(len(s.phases) for s in phase_sets(problem))
    return register_tile.few_tile(problem.dtype, target, m, columns, max(1, ceil(2 * threads / max(1, phases))))


def most_columns(problem: Problem) -> int:
    """Columns of the set that has most."""
    return max((columns_of(problem, s) for s in phase_sets(problem)), default=1)


AHEAD = (0, 0, 8192)
"""Bytes ahead that far weights which meet one register tile are asked for, by `Target.kind`. Measured: 10 layers with 8 to 67 MB
are 1.26 times as fast so on Intel's servers, up to 1.7 (two threads)."""


def asking(tile: Tile, problem: Problem, target: Target, block: int) -> tuple[Tile, int]:
    """The tile, which asks for the next chunk's weights where they are far, and meets each of them several times; else AHEAD.

    For one register tile the next chunk's would be asked for too early: 0.75 to 0.97 of the speed of not asking. Measured.
    """
    several, far = block > tile.turned, register_tile.far(prod(problem.spec.weight_shape) * problem.itemsize, target)
    return replace(tile, asks=several and far), AHEAD[target.kind] if far and not several else 0


STREAMS, FROM = 4, 8.0
"""Pieces of memory that weights are read in at a time where few positions meet more than so many second-level caches of them, and
there are few registers. Processors ask for what follows in a page, and begin anew in the next: 1.14 to 1.75 times as fast for 10 MB
and more that meet up to five positions (Zen 3, two threads), 0.93 to 1.05 for less; two pieces are 0.85 to 0.95 times as fast as
four, eight at most as fast."""


def streams(problem: Problem, target: Target) -> int:
    """See STREAMS."""
    even = problem.spec.in_channels // problem.spec.groups % STREAMS == 0
    many = read_bytes(problem) > FROM * target.l2 and most_columns(problem) <= FEW
    return STREAMS if even and many and target.registers <= 16 else 1


def read_bytes(problem: Problem) -> int:
    """Of weights that any position meets."""
    spec, taps = problem.spec, sum(len(s.phases) * len(s.reads) for s in phase_sets(problem))
    return taps * spec.in_channels // spec.groups * spec.out_channels * problem.itemsize


def table_bytes(sets: tuple[PhaseSet, ...], block: int) -> int:
    """Of the table of so many columns' reads."""
    taps = max((len(s.reads) for s in sets), default=0)
    return round_up((taps + 1) * block * 8, 64)


def _chunks(spec: ConvSpec, tile: Tile, phases: PhaseSet) -> list[tuple[int, int, int]]:
    """(phase, first output channel, channels) of each chunk of a set, those of the same channels one after the other."""
    m = spec.out_channels // spec.groups
    return [(i, c, min(tile.rows, m - c)) for c in range(0, m, tile.rows) for i in range(len(phases.phases))]


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_layout(problem: Problem, how: Blocking) -> weights.Layout:
    """Weights in the order the tiles read them: [group][set][chunk][tap][stream][channel][row]."""
    spec, rows = problem.spec, how.tile.rows
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    step, channel_step, group_step = weights.strides(spec)
    sections = []
    for phases in phase_sets(problem):
        if not phases.reads:
            continue
        places = np.array([phases.kernels[i] for i, _, _ in _chunks(spec, how.tile, phases)])  # chunk tap
        places = (places[:, :, None] + np.arange(how.streams) * channel_step).reshape(len(places), -1)  # chunk tap*stream
        channel = np.array([first for _, first, _ in _chunks(spec, how.tile, phases)])[:, None] + np.arange(rows)
        offsets = np.where(channel[:, None] < m, channel[:, None] * step + places[:, :, None], -1)
        sections.append(offsets[:, :, None, None, :])
    transform, each = weights.Transform(how.tile.element, rows, spec.transposed), c // how.streams
    return weights.Layout(transform, spec.groups, each, 1, channel_step * how.streams, group_step, tuple(sections), each)


def packing(problem: Problem, how: Blocking) -> object:
    """What the packed weight's layout depends on besides the layer."""
    return (how.tile.rows, how.streams, tuple((s.phases, s.kernels) for s in phase_sets(problem)))


# -- run-time numbers --------------------------------------------------------------------------------------------------


def bind(problem: Problem, how: Blocking) -> jobs.Bound:
    """The job's numbers and tables for these sizes."""
    spec, shape, sets = problem.spec, band(problem, cropped=True), phase_sets(problem)
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    place_step, channel_step = (1, prod(problem.output_size)) if how.first else (spec.out_channels, 1)
    chunks: list[tuple[int, ...]] = []
    parts: list[list[tuple[int, ...]]] = []
    at = 0
    for number, phases in enumerate(sets):
        first = len(chunks)
        for i, channel, channels in _chunks(spec, how.tile, phases):
            place = place_of(shape, phases.phases[i]) * place_step + channel * channel_step
            chunks.append((place, channel, channels, at))
            at += len(phases.reads) * c * how.tile.rows
        share = ceil((len(chunks) - first) / how.shares)
        share = round_up(share, len(phases.phases)) if how.first else share
        for low in range(0, columns_of(problem, phases), how.block):
            high = min(low + how.block, columns_of(problem, phases))
            parts.append([(number, low, high, i, min(i + share, len(chunks))) for i in range(first, len(chunks), share)])
    # of arrays with their channels first a task takes its channels of all sets: no other writes near its outputs
    work = list(zip(*parts, strict=True)) if how.first else [(entry,) for part in parts for entry in part]
    slots = {
        **positions.slots(problem, how.first), "channels": c, "channels_out": m, "groups": spec.groups, "weight_group": at,
        "table_bytes": how.table_bytes, "x_bytes": how.x_bytes, "workspace_bytes": how.workspace_bytes,
        "batch": problem.batch, "y_channel": channel_step, "entries": len(sets) if how.first else 1,
    }  # fmt: skip
    tables = {
        **positions.tables(problem),
        "work": positions.table([entry for task in work for entry in task], indirect_code.WORK),
        "chunks": positions.table(chunks, indirect_code.CHUNK),
    }
    return jobs.Bound(slots, tables, len(work))


# -- code --------------------------------------------------------------------------------------------------------------


def code_name(problem: Problem, how: Blocking, target: Target) -> str:
    """The kernel's symbol, which decodes itself."""
    kind = "convt" if problem.spec.transposed else "conv"
    name = f"{NAME}{'_first' if how.first else ''}_{how.tile}{'_streams' if how.streams > 1 else ''}{'_ahead' if how.ahead else ''}"
    return f"{kind}_f{problem.itemsize * 8}_{name}_{target.name}"


def _code(problem: Problem, how: Blocking) -> indirect_code.Code:
    return indirect_code.Code(how.tile, problem.spec.activation, how.first, how.streams, how.ahead, how.writes)


def code_parameters(problem: Problem, how: Blocking) -> str:
    """Everything that the emitted code depends on."""
    return repr(_code(problem, how))


def emit(problem: Problem, how: Blocking) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    return indirect_code.emit(_code(problem, how))


# -- what a plan says ----------------------------------------------------------------------------------------------------


def tasks(problem: Problem, how: Blocking) -> int:
    """Independent pieces of work."""
    sets = phase_sets(problem)
    return sum(ceil(columns_of(problem, s) / how.block) * min(how.shares, len(_chunks(problem.spec, how.tile, s))) for s in sets)


def macs(problem: Problem, how: Blocking) -> int:
    """Multiply-adds, padding of tiles included."""
    spec, tile = problem.spec, how.tile
    c = spec.in_channels // spec.groups
    done = sum(
        round_up(columns_of(problem, s), tile.turned)
        * len(s.reads)
        * sum(register_tile.rows_computed(tile, channels) for _, _, channels in _chunks(spec, tile, s))
        for s in phase_sets(problem)
    )
    return done * c * spec.groups


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds: the steps and the ends of tiles, the tables, the bytes moved and the weights streamed."""
    spec, tile, item = problem.spec, how.tile, problem.itemsize
    c, m, gemm, tables, streamed = spec.in_channels // spec.groups, spec.out_channels // spec.groups, 0.0, 0.0, 0.0
    for s in phase_sets(problem):
        columns, tiles = columns_of(problem, s), len(s.phases) * spec.groups * ceil(columns_of(problem, s) / tile.turned)
        gemm += tiles * (len(s.reads) * (c + 2) + END) * register_tile.chunks_cycles(tile, m) * 1.05
        tables += columns * (len(s.reads) + 1) * LISTED * how.shares
        streamed += ceil(columns / how.block) * len(_chunks(spec, tile, s)) * spec.groups * len(s.reads) * c * tile.rows * item
    moved = (prod(problem.input_shape) + prod(problem.output_shape)) * item
    share = jobs.busiest_share([(max(1, tasks(problem, how)), 1.0)], threads)
    if most_columns(problem) <= FEW:
        return few_seconds(problem, how, target, share, tables)
    return register_tile.seconds(target, share, gemm, tables, moved, streamed)


def few_seconds(problem: Problem, how: Blocking, target: Target, share: float, other: float) -> float:
    """Estimated seconds where few columns meet all weights: the steps and the ends of tiles, and the weights."""
    spec, tile, gemm = problem.spec, how.tile, 0.0
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    step = max(register_tile.chunks_cycles(tile, m), m * problem.itemsize / register_tile.READ)
    for s in phase_sets(problem):
        passes = len(s.phases) * spec.groups * ceil(columns_of(problem, s) / tile.turned)
        gemm += passes * (len(s.reads) * (c + 2) + END) * step
    weights = read_bytes(problem)
    waited = weights / AGAIN[target.kind] * target.hertz if tile.asks else 0.0
    return register_tile.seconds(target, share, gemm * SLOWER[target.kind], other + waited, 0.0, weights / FASTER[target.kind])


END = 6
"""Steps that a tile takes to begin and to end."""
LISTED = 4.0
"""Cycles of a place in a table."""
FASTER = (3.0, 3.0, 1.5)
"""How many times as fast weights come, where few columns meet them, as those of other tiles, by `Target.kind`."""
SLOWER, AGAIN = (1.0, 1.1, 1.2), (40e9, 40e9, 20e9)
"""What sums of few columns cost more than those of other kernels, with 16 registers and with 32; and, where tiles of columns follow
one another and weights are far, bytes of them a second and thread that the first one waits for. Fitted to 114 layers with channels
first and 32 registers (what is chosen takes 1.007 of the fastest kernel's time), and to 110 with 16 (1.004). With the third of
`Target.kind` and STREAMED's, where weights come slowly and scattered outputs cost more, it takes 1.031 over 228 layers, 54 of them
of up to 64 positions, and 1.070 with the second."""


def describe(problem: Problem, how: Blocking) -> str:
    """The kernel's way with the problem, in a few words."""
    sets = len(phase_sets(problem))
    order = "x copied to channels-last" if how.first else "channels last"
    return f"{order}, {sets} table{'s' if sets > 1 else ''} of reads, blocks of {how.block} columns"
