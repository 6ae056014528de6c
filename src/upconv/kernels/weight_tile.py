"""The pieces of the weight gradient's code: output positions, the transposed pack, the register tile, the finish.

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


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows` broadcast (channel, tap) pairs by `vectors` of `lanes` gradient channels."""

    element: str
    lanes: int
    rows: int
    vectors: int

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)

    @property
    def width(self) -> int:
        return self.vectors * self.lanes

    @property
    def cycles(self) -> float:
        """Of one position: two multiply-adds or two loads each, but no fewer than the latency of an addition allows."""
        return max(self.rows * self.vectors / 2, (self.rows + self.vectors + 1) / 2, 4.0) + 0.5

    def __str__(self) -> str:
        return f"{self.rows}x{self.width}"


def tiles(element: str, target: Target) -> list[Tile]:
    """Every tile whose accumulators, vectors and broadcast the registers hold; a row takes an address register too."""
    lanes, most = target.lanes(SIZES[element]), target.registers - (2 if target.registers > 16 else 0)
    return [
        Tile(element, lanes, rows, vectors)
        for rows in range(1, 9)
        for vectors in range(1, 7)
        if rows * vectors + vectors + 1 <= most
    ]


def flat(s: dict[str, Value], row: Value) -> Value:
    """The band index of the first output of an output row, rows counted through the batch."""
    h, rest = row % s["out_h"], row // s["out_h"]
    d, n = rest % s["out_d"], rest // s["out_d"]
    return ((n * s["pitch_d"] + d * s["stride_d"]) * s["pitch_h"] + h * s["stride_h"]) * s["pitch_w"]


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
        for i, total in enumerate(results):
            f.store(total, sums[i * tile.lanes])
    with f.otherwise(new, name="more"):
        for i, total in enumerate(results):
            f.store(f.fadd(total, f.load(tile.type, sums[i * tile.lanes])), sums[i * tile.lanes])
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
