"""The pieces of the weight gradient's code: copying x, the transposed pack of g, the register tile, the finish.

With positions as the depth of a GEMM, its columns are the channels of the gradient (in the lanes, so they are packed
transposed) and its rows the (input channel, tap) pairs, broadcast. A row is any pointer into the band: rank, stride and
dilation are numbers in tables, so one tile serves every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import SIZES, Carry, Function, Value, vector
from upconv.codegen.target import Target
from upconv.kernels.job import Slots
from upconv.kernels.store import weave

_INTERNAL = "internal noinline nounwind"
INDEX_LANES = 8
POSITION_SLOTS = (
    "out_d", "out_h", "out_w", "stride_d", "stride_h", "stride_w", "pitch_d", "pitch_h", "pitch_w",
)  # fmt: skip


RUN_SLOTS = (
    "x_image", "size_d", "size_h", "size_w", "base_d", "base_h", "base_w",
    "pitch_d", "pitch_h", "pitch_w", "batch", "lead",
)  # fmt: skip
RUN = 3  # i64 an entry


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows` broadcast (channel, tap) pairs by `vectors` of `lanes` gradient channels."""

    element: str
    lanes: int
    rows: int
    vectors: int
    multiply_add: float = 0.5
    """Cycles of one of a vector."""

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)

    @property
    def width(self) -> int:
        return self.vectors * self.lanes

    @property
    def cycles(self) -> float:
        """Of one position: its multiply-adds, or two loads each, but no fewer than the latency of an addition allows."""
        return max(self.rows * self.vectors * self.multiply_add, (self.rows + self.vectors + 1) / 2, 4.0) + 0.5

    def __str__(self) -> str:
        return f"{self.rows}x{self.width}"


def tiles(element: str, target: Target) -> list[Tile]:
    """Every tile whose accumulators, vectors and broadcast the registers hold; a row takes an address register too."""
    (lanes, cycles), *_ = target.vectors(SIZES[element])
    most = target.registers - (2 if target.many_registers else 0)
    return [
        Tile(element, lanes, rows, vectors, cycles)
        for rows in range(1, 9)
        for vectors in range(1, 7)
        if rows * vectors + vectors + 1 <= most
    ]


def flat(s: dict[str, Value], row: Value) -> Value:
    """The band index of the first output of an output row, rows counted through the batch."""
    h, rest = row % s["out_h"], row // s["out_h"]
    d, n = rest % s["out_d"], rest // s["out_d"]
    return ((n * s["pitch_d"] + d * s["stride_d"]) * s["pitch_h"] + h * s["stride_h"]) * s["pitch_w"]


def emit_runs(slots: Slots) -> Function:
    """`runs(job, table, low, high) -> count`: what band positions low..high-1 take from x, all else being zeros.

    An entry is (first element of x, first position less `low`, elements); rows that follow each other in both are one run.
    The table starts with an entry of scratch.
    """
    f = Function(
        "runs",
        [("job", "ptr"), ("table", "ptr"), ("low", "i64"), ("high", "i64")],
        returns="i64",
        attributes=_INTERNAL,
    )
    job, table, low, high = f.arguments
    table = table.of("i64")
    s = {name: slots.read(f, job, name) for name in RUN_SLOTS}
    shift = s["lead"] * s["pitch_d"] * s["pitch_h"] * s["pitch_w"]  # no division sees a negative number
    first, last = low + shift, high + shift
    carry = Carry([f.value(0), f.value(-1), f.value(0), f.value(0)])
    with f.loop(first // s["pitch_w"], (last - 1) // s["pitch_w"] + 1, name="row", carry=carry) as row:
        count, source, target, length = carry.values
        h, rest = row % s["pitch_h"] + s["base_h"], row // s["pitch_h"]
        d, n = rest % s["pitch_d"] + s["base_d"], rest // s["pitch_d"] - s["lead"]
        start = row * s["pitch_w"]
        w0 = f.maximum(f.maximum(first - start, 0), 0 - s["base_w"])
        w1 = f.minimum(f.minimum(last - start, s["pitch_w"]), s["size_w"] - s["base_w"])
        inside = (w0 < w1) & _within(f, n, s["batch"]) & _within(f, d, s["size_d"]) & _within(f, h, s["size_h"])
        here = n * s["x_image"] + (d * s["size_h"] + h) * s["size_w"] + w0 + s["base_w"]
        there = start + w0 - first
        more = f.select(inside, w1 - w0, 0)
        follows = (source + length).equals(here) & (target + length).equals(there)
        new = f.select(follows, 0, f.select(inside, 1, 0))
        fresh = new.equals(1)
        entry = (
            f.select(fresh, here, source),
            f.select(fresh, there, target),
            f.select(fresh, more, length + f.select(follows, more, 0)),
        )
        for i, value in enumerate(entry):
            f.store(value, table[(count + new) * RUN + i])
        carry.next = [count + new, *entry]
    f.do(f"ret i64 {carry.results[0].text}")
    return f


def _within(f: Function, index: Value, size: Value) -> Value:
    return f.compare("ult", index, size)


def emit_copy(tile: Tile, slots: Slots) -> Function:
    """`copy(job, x, band, table, count, channels, length)`: the runs of each channel, and zeros between them.

    Everything is written in whole vectors, in rising order, each overwriting the overhang of the one before.
    """
    f = Function(
        "copy",
        [
            ("job", "ptr"),
            ("x", "ptr"),
            ("band", "ptr"),
            ("table", "ptr"),
            ("count", "i64"),
            ("channels", "i64"),
            ("length", "i64"),
        ],
        attributes=_INTERNAL,
    )
    job, x, band, table, count, channels, length = f.arguments
    x, band, table, lanes = x.of(tile.element), band.of(tile.element), table.of("i64"), tile.lanes
    x_channel, pitch = slots.read(f, job, "x_channel"), slots.read(f, job, "channel_pitch")
    gaps = f.select(slots.read(f, job, "gaps").equals(1), length, 0)
    with f.loop(0, channels, name="c") as c:
        source, target = x[c * x_channel], band[c * pitch]
        with f.loop(0, gaps, lanes, name="zero") as i:
            f.store(f.splat(0.0, tile.type), target[i])
        with f.loop(1, count + 1, name="run") as r:
            here, there, size = (f.load("i64", table[r * RUN + i]) for i in range(RUN))
            src, dst = source[here], target[there]
            whole = Carry([f.value(0)])
            with f.loop(0, size - (lanes - 1), lanes, name="whole", carry=whole) as i:
                f.store(f.load(tile.type, src[i]), dst[i])
                whole.next = [i + lanes]
            done = whole.results[0]
            with f.when(done < size, name="tail"):
                f.store(f.masked_load(tile.type, src[done], f.lanes_between(done, 0, size, lanes)), dst[done])
    return f


def emit_positions(slots: Slots) -> Function:
    """`positions(job, table, low, high, origin)`: the band indices, less `origin`, of outputs low..high-1."""
    f = Function(
        "positions",
        [("job", "ptr"), ("table", "ptr"), ("low", "i64"), ("high", "i64"), ("origin", "i64")],
        attributes=_INTERNAL,
    )
    job, table, low, high, origin = f.arguments
    table = table.of("i64")
    s = {name: slots.read(f, job, name) for name in POSITION_SLOTS}
    type_ = vector("i64", INDEX_LANES)
    steps = f._op("mul", f.iota(INDEX_LANES), f.splat(s["stride_w"], type_))
    with f.loop(low // s["out_w"], (high - 1) // s["out_w"] + 1, name="row") as row:
        start = row * s["out_w"]
        base = flat(s, row) - origin
        with f.loop(f.maximum(low - start, 0), f.minimum(high - start, s["out_w"]), INDEX_LANES, name="w") as w:
            index = f._op("add", steps, f.splat(base + w * s["stride_w"], type_))
            f.store(index, table[start + w - low])
    return f


def emit_transpose(tile: Tile, slots: Slots) -> Function:
    """`transpose(job, g, channels, out, low, high)`: outputs low..high-1 of `channels` channels, [panel][output][width].

    Lanes beyond the channels repeat the last one. Each panel ends with slack for `lanes` outputs.
    """
    f = Function(
        "transpose",
        [("job", "ptr"), ("g", "ptr"), ("channels", "i64"), ("out", "ptr"), ("low", "i64"), ("high", "i64")],
        attributes=_INTERNAL,
    )
    job, g, channels, out, low, high = f.arguments
    g, out, lanes = g.of(tile.element), out.of(tile.element), tile.lanes
    image, channel, pitch = (slots.read(f, job, name) for name in ("g_image", "g_channel", "panel_pitch"))

    def square(rows: list[Value], o: Value, target: Value, mask: Value | None) -> None:
        loaded = [f.load(tile.type, p[o]) if mask is None else f.masked_load(tile.type, p[o], mask) for p in rows]
        for i, column in enumerate(weave(f, loaded)):
            f.store(column, target[i * tile.width])

    with f.loop(low // channel, (high - 1) // channel + 1, name="n") as n:
        start = n * channel
        first, last = f.maximum(low - start, 0), f.minimum(high - start, channel)
        with f.loop(0, channels, lanes, name="m") as m:
            rows = [g[n * image + f.minimum(m + i, channels - 1) * channel] for i in range(lanes)]
            place = out[m // tile.width * pitch + m % tile.width]
            after = Carry([first])
            with f.loop(first, last - (lanes - 1), lanes, name="whole", carry=after) as o:
                square(rows, o, place[(start + o - low) * tile.width], None)
                after.next = [o + lanes]
            tail = after.results[0]
            with f.when(tail < last, name="tail"):
                mask = f.lanes_between(0, 0, last - tail, lanes)
                square(rows, tail, place[(start + tail - low) * tile.width], mask)
    return f


def emit_tile(tile: Tile) -> Function:
    """`tile(panel, band, index, count, offsets, sums, fresh)`: adds `count` outputs to rows x width sums.

    Row r reads `band[offsets[r] + index[i]]`; where `fresh`, the sums are set instead.
    """
    f = Function(
        "tile",
        [
            ("panel", "ptr"),
            ("band", "ptr"),
            ("index", "ptr"),
            ("count", "i64"),
            ("offsets", "ptr"),
            ("sums", "ptr"),
            ("fresh", "i64"),
        ],
        attributes=_INTERNAL,
    )
    panel, band, index, count, offsets, sums, fresh = f.arguments
    panel, band, sums = panel.of(tile.element), band.of(tile.element), sums.of(tile.element)
    index, offsets = index.of("i64"), offsets.of("i64")
    rows = [band[f.load("i64", offsets[r])] for r in range(tile.rows)]
    zero = f.splat(0.0, tile.type)
    over = Carry([*[zero] * (tile.rows * tile.vectors), panel])
    with f.loop(0, count, name="f", carry=over) as i:
        *found, at = over.values
        position = f.load("i64", index[i])
        right = [f.load(tile.type, at[v * tile.lanes]) for v in range(tile.vectors)]
        done = []
        for r, row in enumerate(rows):
            left = f.splat(f.load(tile.element, row[position]), tile.type)
            done += [f.fma(right[v], left, found[r * tile.vectors + v]) for v in range(tile.vectors)]
        over.next = [*done, at[tile.width]]
    results = over.results[:-1]
    new = fresh.equals(1)
    with f.when(new, name="fresh"):
        for v, total in enumerate(results):
            f.store(total, sums[v * tile.lanes])
    with f.otherwise(new, name="more"):
        for v, total in enumerate(results):
            f.store(f.fadd(total, f.load(tile.type, sums[v * tile.lanes])), sums[v * tile.lanes])
    return f


def emit_finish(tile: Tile, slots: Slots) -> Function:
    """`finish(job, sums, rows, channels, out)`: adds up the splits' sums, in order, and lays them out as the weight."""
    f = Function(
        "finish",
        [("job", "ptr"), ("sums", "ptr"), ("rows", "i64"), ("channels", "i64"), ("out", "ptr")],
        attributes=_INTERNAL,
    )
    job, sums, rows, channels, out = f.arguments
    sums, out, lanes = sums.of(tile.element), out.of(tile.element), tile.lanes
    splits, sums_size, sums_pitch, out_pitch = (slots.read(f, job, n) for n in ("splits", "sums_size", "sums_pitch", "w_channel"))
    with f.loop(0, channels, lanes, name="m") as m, f.loop(0, rows, lanes, name="row") as row:
        first = sums[m // tile.width * sums_pitch + m % tile.width]
        places = [first[f.minimum(row + i, rows - 1) * tile.width] for i in range(lanes)]
        totals = Carry([f.load(tile.type, p) for p in places])
        with f.loop(1, splits, name="split", carry=totals) as split:
            totals.next = [f.fadd(t, f.load(tile.type, p[split * sums_size])) for t, p in zip(totals.values, places, strict=True)]
        target = out[m * out_pitch + row]
        whole = row + lanes <= rows
        for i, column in enumerate(weave(f, totals.results)):
            with f.when(m + i < channels, name="channel"):
                with f.when(whole, name="whole"):
                    f.store(column, target[out_pitch * i])
                with f.otherwise(whole, name="edge"):
                    f.masked_store(column, target[out_pitch * i], f.lanes_between(row, 0, rows, lanes))
    return f
