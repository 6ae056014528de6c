"""The code of the direct sum row by row: all phases of a row's positions summed in registers, from x where it lies, and stored.

Besides the tile and the store only the taps of the innermost dimension are known when it is written: channels and the taps of the
outer dimensions come in the job.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from upconv.codegen.ir import Carry, Function, Value, module, vector
from upconv.kernels import columns, scatter, store
from upconv.kernels import job as jobs
from upconv.kernels.geometry import PhaseTaps
from upconv.kernels.store import Store

SLOTS = jobs.Slots(
    (
        "x", "y", "y_channel", "bias", "weight", "work", "phases", "taps", "zeros", "channels", "channels_out", "groups", "size_d",
        "size_h", "size_w", "out_d", "out_h", "out_w", "step_d", "step_h", "chunks", "tap_rows", "met_bytes",
    )
)  # fmt: skip
MET = 3
"""Numbers a row of taps that an output meets: where its row of x begins, how far on the next channel's does, and where its weights
are in a chunk's."""
TOGETHER = 48
"""Products that are written out, at least: counting takes as long as a few of them."""
AHEAD = 2
"""Tiles ahead that lines of x are asked for, into the second-level cache. Measured against one tile, into the first: 1.08 over six
layers of vocoders, 1.11 over fifteen others, up to 1.85 for many channels of few products; one, into the second, 0.96 and 0.98. For
images a row ahead, of y too, 0.96 to 0.98 over sixteen."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Sums in registers: `channels` of y, all phases of a row, `vectors` vectors of its positions."""

    element: str
    lanes: int
    channels: int
    vectors: int

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)

    @property
    def width(self) -> int:
        """Positions."""
        return self.vectors * self.lanes

    def __str__(self) -> str:
        return f"{self.channels}x{self.width}"


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on. `reads` are places in a row of x, from a position's own on.

    A convolution's rows of taps that meet padding count (`padded`): zero times a weight that is not finite is not zero.
    """

    tile: Tile
    reads: tuple[int, ...]
    taps: PhaseTaps
    padded: bool
    store: Store

    @property
    def kernel(self) -> int:
        """Taps of a row."""
        return sum(len(phase) for phase in self.taps)


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    element, tile, step = code.tile.element, code.tile, len(code.taps)
    copy = columns.emit_copy(element, tile.lanes)
    rest = _emit_rest(code, copy)
    inner, edge = _emit_tile(code, rest, False), _emit_tile(code, rest, True)

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        names = ("y_channel", *SLOTS.names[SLOTS.names.index("channels") :])
        s = {name: SLOTS.read(f, job, name) for name in names}
        image, _, d0, d1, h0, h1, w0, w1 = scatter.emit_work(f, SLOTS.pointer(f, job, "work", "i64")[number * scatter.WORK])
        met, left, group = workspace.of("i64"), workspace[s["met_bytes"]], image % s["groups"]
        x = SLOTS.pointer(f, job, "x", element)[image * s["channels"] * (s["size_d"] * s["size_h"] * s["size_w"])]
        size = s["chunks"] * s["tap_rows"] * s["channels"] * (code.kernel * tile.channels)
        weight = SLOTS.pointer(f, job, "weight", element)[group * size]
        bias = SLOTS.pointer(f, job, "bias", element)[group * s["channels_out"]]
        y = SLOTS.pointer(f, job, "y", element)[image * s["channels_out"] * s["y_channel"]]
        low, high = -code.reads[0], s["size_w"] - (code.reads[-1] + tile.width)
        with (
            scatter.emit_outputs(f, s, "d", d0, d1) as (qd, od, phase_d),
            scatter.emit_outputs(f, s, "h", h0, h1) as (qh, oh, phase_h),
        ):
            count = _emit_met(f, code, job, s, phase_d * s["step_h"] + phase_h, (qd, qh), x, met)
            row = y[(od * s["out_h"] + oh) * s["out_w"]]
            with f.loop(w0, w1, tile.width, name="jr") as jr:
                at = f.minimum(jr, w1 - tile.width)  # the last one overlaps the one before
                inside = (at >= low) & (at <= high)
                end = f.minimum(s["out_w"] - at * step, tile.width * step)
                arguments = [job, met, count, weight, bias, at, end, row[at * step], left]
                with f.when(inside, name="inner"):
                    f.call(inner, arguments)
                with f.otherwise(inside, name="edge"):
                    f.call(edge, arguments)

    return module([copy, rest, inner, edge, jobs.emit_entry("entry", SLOTS, task)])


def _emit_met(
    f: Function, code: Code, job: Value, s: dict[str, Value], phase: Value, at: tuple[Value, Value], x: Value, met: Value
) -> Value:
    """Lists the rows of taps that a row's outputs, at these positions in d and h, meet; returns how many."""
    start = SLOTS.pointer(f, job, "phases", "i64")[phase * scatter.PHASE]
    first, taps = f.load("i64", start), f.load("i64", start[1])
    zeros = SLOTS.pointer(f, job, "zeros", code.tile.element)[max(0, -code.reads[0])]
    plane = s["size_d"] * s["size_h"] * s["size_w"]
    found = Carry([f.value(0)])
    with f.loop(first, first + taps, name="tap", carry=found) as tap:
        (number,) = found.values
        row, entry = SLOTS.pointer(f, job, "taps", "i64")[tap * scatter.TAP], met[number * MET]
        kernel, off_d, off_h = (f.load("i64", row[i]) for i in range(scatter.TAP))
        d, h = at[0] + off_d, at[1] + off_h
        there = f.compare("ult", d, s["size_d"]) & f.compare("ult", h, s["size_h"])
        begin = x[(d * s["size_h"] + h) * s["size_w"]]
        f.store(f.select(there, begin, zeros) if code.padded else begin, entry, 8)
        f.store(f.select(there, plane, 0) if code.padded else plane, entry[1], 8)
        f.store(kernel * s["channels"] * code.tile.channels, entry[2], 8)
        found.next = [number + 1 if code.padded else number + f.select(there, 1, 0)]
    return found.results[0]


def _emit_tile(code: Code, rest: Function, edge: bool) -> Function:
    """`tile(job, met, count, weight, bias, at, end, out, left)`: the tile of a row that begins at position `at`, all channels.

    `end` is how many outputs of a row it has. Where these are fewer than it sums, or its channels are, the sums are `left` for
    `rest`. An `edge` reads x under masks.
    """
    tile, step = code.tile, len(code.taps)
    names = ("job", "met", "count", "weight", "bias", "at", "end", "out", "left")
    parameters = [(n, "i64" if n in ("count", "at", "end") else "ptr") for n in names]
    f = Function("edge" if edge else "tile", parameters, attributes="internal noinline nounwind")
    job, met, count, weight, bias, at, end, out, left = f.arguments
    met = met.of("i64")
    weight, bias, out, left = (p.of(tile.element) for p in (weight, bias, out, left))
    slots = ("channels", "channels_out", "chunks", "tap_rows", "y_channel", "size_w")
    s = {name: SLOTS.read(f, job, name) for name in slots}
    masks = _masks(f, code, at, s["size_w"]) if edge else {}
    chunk_size = s["tap_rows"] * s["channels"] * (code.kernel * tile.channels)
    with f.loop(0, s["chunks"], name="ic") as chunk:
        channel = chunk * tile.channels
        sums = _sums(f, code, met, count, weight[chunk * chunk_size], at, s, masks)
        here = f.minimum(s["channels_out"] - channel, tile.channels)
        offsets, to = bias[channel], out[s["y_channel"] * channel]
        whole = (here + end).equals(tile.channels + tile.width * step)
        with f.when(whole, name="whole"):
            _emit_whole(f, code, sums, offsets, to, s)
        with f.otherwise(whole, name="rest"):
            for i, value in enumerate(sums):
                f.store(value, left[i * tile.lanes])
            f.call(rest, [left, offsets, to, s["y_channel"], here, end])
    return f


def _masks(f: Function, code: Code, at: Value, size: Value) -> dict[tuple[int, int], Value]:
    """What of a row's vectors lies in x, by (read, vector), of those that may not: the first and the last."""
    tile = code.tile
    return {
        (read, v): f.lanes_between(at + (read + v * tile.lanes), 0, size, tile.lanes)
        for read in code.reads
        for v in range(tile.vectors)
        if (v == 0 and read < 0) or v == tile.vectors - 1
    }


def _emit_whole(f: Function, code: Code, sums: list[Value], offsets: Value, out: Value, s: dict[str, Value]) -> None:
    """Stores all of a tile's sums. Where the next ones will go is asked for."""
    each = len(code.taps) * code.tile.vectors
    for c in range(code.tile.channels):
        row, offset = out[s["y_channel"] * c], f.load(code.tile.element, offsets[c])
        for v in range(each):
            f.prefetch(row[(each + v) * code.tile.lanes], write=True)
        store.emit_sums(f, code.store, sums[c * each : (c + 1) * each], offset, row)


def _emit_rest(code: Code, copy: Function) -> Function:
    """`rest(left, offsets, out, y_channel, here, end)`: sums that were left, of so many channels and outputs of a row."""
    tile, step = code.tile, len(code.taps)
    names = ("left", "offsets", "out", "y_channel", "here", "end")
    f = Function("rest", [(n, "ptr" if n in names[:3] else "i64") for n in names], attributes="internal noinline nounwind")
    left, offsets, out, y_channel, here, end = f.arguments
    left, offsets, out = (p.of(tile.element) for p in (left, offsets, out))
    line, each = left[tile.channels * step * tile.width], step * tile.vectors
    with f.loop(0, here, name="c") as c:
        offset, of_channel = f.load(tile.element, offsets[c]), left[c * (each * tile.lanes)]
        with f.loop(0, tile.vectors, name="v") as v:
            sums = [f.load(tile.type, of_channel[(v + a * tile.vectors) * tile.lanes]) for a in range(step)]
            store.emit_sums(f, code.store, sums, offset, line[v * (tile.lanes * step)])
        f.call(copy, [line, out[y_channel * c], end])
    return f


def _sums(
    f: Function, code: Code, met: Value, count: Value, weight: Value, at: Value, s: dict[str, Value],
    masks: dict[tuple[int, int], Value],
) -> list[Value]:  # fmt: skip
    """A tile's sums, [channel][phase][vector]. What tiles further on read is asked for."""
    tile, each = code.tile, code.kernel * code.tile.channels
    over_taps = Carry([Value(f, "zeroinitializer", tile.type)] * (tile.channels * len(code.taps) * tile.vectors))
    several = max(1, ceil(TOGETHER / (each * tile.vectors)))
    with f.loop(0, count, name="tap", carry=over_taps) as t:
        x, pitch = f.load_pointer(met[t * MET], tile.element)[at], f.load("i64", met[t * MET + 1])
        steps = Carry([*over_taps.values, x, weight[f.load("i64", met[t * MET + 2])]])
        whole = s["channels"] // several * several
        for low, high, size in ((f.value(0), whole, several), (whole, s["channels"], 1))[: 1 if several == 1 else 2]:
            with f.loop(low, high, size, name="k", carry=steps):
                *sums, x, w = steps.values
                for _ in range(size):
                    for v in range(tile.vectors):
                        f.prefetch(x[AHEAD * tile.width + v * tile.lanes], nearest=False)
                    sums = _products(f, code, sums, x, w, masks)
                    x, w = x[pitch], w[each]
                steps.next = [*sums, x, w]
            steps = Carry(steps.results)
        over_taps.next = steps.values[:-2]
    return over_taps.results


def _products(
    f: Function, code: Code, sums: list[Value], x: Value, w: Value, masks: dict[tuple[int, int], Value]
) -> list[Value]:  # fmt: skip
    """The sums with a channel of x added: each vector that is read meets all taps that read it."""
    tile, step, done = code.tile, len(code.taps), list(sums)
    for number, read in enumerate(code.reads):
        values = []
        for v in range(tile.vectors):
            place, mask = x[read + v * tile.lanes], masks.get((read, v))
            values.append(f.load(tile.type, place) if mask is None else f.masked_load(tile.type, place, mask))
        for a, phase in enumerate(code.taps):
            for k in (k for r, k in phase if r == number):
                for c in range(tile.channels):
                    scalar = f.splat(f.load(tile.element, w[k * tile.channels + c]), tile.type)
                    for v, value in enumerate(values):
                        i = (c * step + a) * tile.vectors + v
                        done[i] = f.fma(value, scalar, done[i])
    return done
