"""The code of the depthwise kernel: rows of y summed from rows of x where they lie, a few vectors of positions at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

from upconv.codegen.ir import SIZES, Carry, Function, Value, module, vector
from upconv.kernels import columns, store
from upconv.kernels import job as jobs
from upconv.kernels.geometry import PhaseTaps, round_up
from upconv.kernels.store import Store

SLOTS = jobs.Slots(
    (
        "x", *store.SLOTS, "weight", "x_plane", "size_w", "out_h", "out_w", "multiplier", "channels", "weight_channel",
        "starts_d", "starts_h", "taps_d", "taps_h", "inner_low", "inner_high", "positions", "planes", "rows",
        "positions_a_task", "planes_a_task", "rows_a_task", "parts_w", "parts_h",
    )
)  # fmt: skip
START, TAP = 3, 2
"""Numbers an output index (first of its taps, how many, how many with those behind them that meet padding) and a tap (place in
x, place in the weight) of an outer dimension."""

PARTS = 4
"""Sums that are under way at once, at least: each FMA waits four cycles for the one before. Taps are summed in parts for that."""

AHEAD = 256
"""Positions ahead that lines of y are asked for; from 64 to 512 the same within what runs differ by."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on. `reads` are places in a row of x, from position 0 on.

    A convolution's taps that meet padding count (`padded`): zero times a weight that is not finite is not zero. So many planes
    are taken `together`. One that `asks` asks for the lines of y that it will write.
    """

    element: str
    lanes: int
    vectors: int
    reads: tuple[int, ...]
    taps: PhaseTaps
    padded: bool
    together: int
    asks: bool
    store: Store

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Vectors at a time: as many as there are, then half as many, then one."""
        return tuple(sorted({self.vectors, max(1, self.vectors // 2), 1}, reverse=True))

    @property
    def line_bytes(self) -> int:
        """Bytes of a vector's outputs."""
        return round_up(self.lanes * len(self.taps) * SIZES[self.element], 64)


Taken = tuple[Value, Value, Value]
"""The first entry of an output index's taps, how many lie in x, and how many there are with those in padding."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of y and what it is made of: a plane of x, its channel's weight and bias, and taps of the outer dimensions."""

    x: Value
    weight: Value
    offset: Value
    d: Taken
    h: Taken
    y: Value


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    copy = columns.emit_copy(code.element, code.lanes)

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in SLOTS.names[len(jobs.COMMON) :] if name not in _POINTERS}
        x, weight, bias, y = (SLOTS.pointer(f, job, name, code.element) for name in ("x", "weight", "bias", "y"))
        part_w, rest = number % s["parts_w"], number // s["parts_w"]
        q0, q1 = _share(f, s, part_w, "positions")
        ends = store.emit_ends(f, code.lanes, (s["inner_low"], s["inner_high"]), q0, q1)
        (first, last), rows = _share(f, s, rest // s["parts_h"], "planes"), _share(f, s, rest % s["parts_h"], "rows")
        apart = (last - first + (code.together - 1)) // code.together
        with f.loop(first, first + apart, name="plane") as plane, f.loop(*rows, name="row") as r:
            d, h = (_taps(f, job, name, index) for name, index in (("d", r // s["out_h"]), ("h", r % s["out_h"])))
            found = []
            for number in [plane, *(f.minimum(plane + apart * i, last - 1) for i in range(1, code.together))]:
                source, channel = x[number // s["multiplier"] * s["x_plane"]], number % s["channels"]
                weights, offset = weight[channel * s["weight_channel"]], f.load(code.element, bias[channel])
                row = Row(source, weights, offset, d, h, y[number * s["y_channel"] + r * s["out_w"]])
                found.append(replace(row, offset=f.fadd(offset, _of_padding(f, code, row))) if code.padded else row)
            _emit_rows(f, code, copy, s, found, ends, q0, q1, workspace.of(code.element))

    return module([copy, jobs.emit_entry("entry", SLOTS, task)])


_POINTERS = ("x", "y", "bias", "weight", "starts_d", "starts_h", "taps_d", "taps_h")


def _share(f: Function, s: dict[str, Value], part: Value, what: str) -> tuple[Value, Value]:
    """From where to where a task's part of the positions, rows or planes goes."""
    first = part * s[f"{what}_a_task"]
    return first, f.minimum(first + s[f"{what}_a_task"], s[what])


def _taps(f: Function, job: Value, name: str, index: Value) -> Taken:
    """The taps of an output index in an outer dimension."""
    start = SLOTS.pointer(f, job, f"starts_{name}", "i64")[index * START]
    first, there, every = (f.load("i64", start[i]) for i in range(START))
    return SLOTS.pointer(f, job, f"taps_{name}", "i64")[first * TAP], there, every


def _of_padding(f: Function, code: Code, row: Row) -> Value:
    """The sum of zero times each weight whose row of x is padding."""
    (first_d, there_d, every_d), (first_h, there_h, every_h) = row.d, row.h
    over_d = Carry([f.splat(0.0, code.element)])
    with f.loop(0, every_d, name="pd", carry=over_d) as d:
        over_h = Carry(over_d.values)
        with f.loop(f.select(d < there_d, there_h, 0), every_h, name="ph", carry=over_h) as h:
            weight = row.weight[f.load("i64", first_d[d * TAP + 1]) + f.load("i64", first_h[h * TAP + 1])]
            places = sorted(at for taps in code.taps for _, at in taps)
            products = [f.fmul(f.load(code.element, weight[at]), f.splat(0.0, code.element)) for at in places]
            over_h.next = [reduce(f.fadd, products, over_h.values[0])]
        over_d.next = over_h.results
    return over_d.results[0]


def _emit_rows(
    f: Function, code: Code, copy: Function, s: dict[str, Value], rows: list[Row], ends: tuple[Value, Value, Value, Value],
    q0: Value, q1: Value, line: Value,
) -> None:  # fmt: skip
    """Positions q0 to q1 of rows in turn; the last vector of a part overlaps the one before."""
    lanes, step = code.lanes, len(code.taps)
    heads, both, low, high = ends
    begin = low
    for vectors in code.blocks:
        span = vectors * lanes
        end = begin + (high - begin) // span * span if vectors > 1 else high
        with f.loop(begin, end, span, name="q") as q:
            q = f.minimum(q, high - span)
            for row in rows:
                for v in range(vectors * step if code.asks else 0):
                    f.prefetch(row.y[(q + AHEAD) * step + v * lanes], write=True)
                store.emit_sums(f, code.store, _sums(f, code, row, q, vectors), row.offset, row.y[q * step])
        begin = end
    last = f.maximum(q1 - lanes, q0)
    with f.loop(0, both, name="end") as i:
        q = f.select(i < heads, q0 + i * lanes, f.minimum(high + (i - heads) * lanes, last))
        count = f.minimum(s["out_w"] - q * step, f.minimum(q1 - q, lanes) * step)
        straight = count.equals(lanes * step)
        for row in rows:
            target = f.select(straight, row.y[q * step], line)
            store.emit_sums(f, code.store, _sums(f, code, row, q, 1, s["size_w"]), row.offset, target)
            with f.otherwise(straight, name="rare"):
                f.call(copy, [line, row.y[q * step], count])


def _sums(f: Function, code: Code, row: Row, q: Value, vectors: int, size: Value | None = None) -> list[Value]:
    """Sums of positions q and after, [phase][vector]; with a `size`, what lies outside the row of x is zero."""
    zero, phases = Value(f, "zeroinitializer", code.type), len(code.taps)
    parts = max(1, min(PARTS // (phases * vectors), max(len(taps) for taps in code.taps)))
    over_d = Carry([zero] * (phases * vectors * parts))
    (first_d, count_d, _), (first_h, count_h, _) = row.d, row.h
    with f.loop(0, count_d, name="d", carry=over_d) as d:
        over_h = Carry(over_d.values)
        plane, weights = (f.load("i64", first_d[d * TAP + i]) for i in range(TAP))
        with f.loop(0, count_h, name="h", carry=over_h) as h:
            line, more = (f.load("i64", first_h[h * TAP + i]) for i in range(TAP))
            source, weight = row.x[plane + line + q], row.weight[weights + more]
            sums = list(over_h.values)
            for number, read in enumerate(code.reads):
                values = [_read(f, code, source, q, read + v * code.lanes, size) for v in range(vectors)]
                for a, taps in enumerate(code.taps):
                    for i, at in ((i, at) for i, (r, at) in enumerate(taps) if r == number):
                        scalar = f.splat(f.load(code.element, weight[at]), code.type)
                        for v, value in enumerate(values, (i % parts * phases + a) * vectors):
                            sums[v] = f.fma(value, scalar, sums[v])
            over_h.next = sums
        over_d.next = over_h.results
    size_of_part = phases * vectors
    return [reduce(f.fadd, over_d.results[i::size_of_part]) for i in range(size_of_part)]


def _read(f: Function, code: Code, source: Value, q: Value, at: int, size: Value | None) -> Value:
    if size is None:
        return f.load(code.type, source[at])
    return f.masked_load(code.type, source[at], f.lanes_between(q + at, 0, size, code.lanes))
