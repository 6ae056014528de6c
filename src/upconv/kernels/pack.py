"""Packing the input: one block of the band (see `geometry`), zeros and all, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import SIZES, Carry, Function, Value, vector
from upconv.codegen.target import LINE
from upconv.kernels.geometry import Band, round_up
from upconv.kernels.job import Slots

SLOTS = (
    "x", "x_image", "x_channel", "x_d", "x_h",
    "size_d", "size_h", "size_w", "step_d", "step_h", "origin_d", "origin_h", "origin_w",
    "pitch_d", "pitch_h", "pitch_w", "batch", "planes_d", "planes_h", "planes_w",
    "lead", "plane_pitch", "channel_pitch",
)  # fmt: skip


AHEAD = 2
"""Channels ahead that x is asked for: a block has few rows of each, which stand in pages of their own."""
ENTRY = 6  # i64 a row of a plane: place in x, place in the band, and the positions where it starts, has elements, ends


@dataclass(frozen=True, slots=True)
class Pack:
    """What changes the code: the element, the lanes, and the innermost step of the input."""

    element: str
    lanes: int
    step: int

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)


def table_bytes(positions: int, shape: Band) -> int:
    """Room for the table of a block of so many band positions."""
    return round_up((positions // shape.axes[2].pitch + 3) * shape.planes * ENTRY * 8, 64)


def emit(pack: Pack, slots: Slots) -> Function:
    """`pack(job, table, x, band, low, high, channels)`: band positions low..high-1 of `channels` channels, the first at x.

    The rows are listed once in `table`, then written channel by channel, in rising order and in whole vectors, each
    overwriting the overhang of the one before; every plane of a channel ends with a vector of slack.
    """
    pointers = [(name, "ptr") for name in ("job", "table", "x", "band")]
    numbers = [(name, "i64") for name in ("low", "high", "channels")]
    f = Function("pack", [*pointers, *numbers], attributes="internal noinline nounwind")
    job, table, x, band, low, high, channels = f.arguments
    table, x, band = table.of("i64"), x.of(pack.element), band.of(pack.element)
    s = {name: slots.read(f, job, name) for name in SLOTS if name != "x"}
    count = _emit_table(f, pack, s, table, low, high)
    carried = Carry([x, band])
    with f.loop(0, channels, name="c", carry=carried):
        source, target = carried.values
        with f.loop(0, count, name="run") as run:
            entry = [f.load("i64", table[run * ENTRY + i]) for i in range(ENTRY)]
            _emit_run(f, pack, source, target, entry, s["x_channel"] * AHEAD)
        carried.next = [source[s["x_channel"]], target[s["channel_pitch"]]]
    return f


def _emit_table(f: Function, pack: Pack, s: dict[str, Value], table: Value, low: Value, high: Value) -> Value:
    """Lists the rows of all planes; returns their number."""
    lead, step = s["lead"], pack.step  # whole images in front, so that no division sees a negative number
    shift = lead * s["pitch_d"] * s["pitch_h"] * s["pitch_w"]
    first, last = low + shift, high + shift
    planes = s["planes_d"] * s["planes_h"] * s["planes_w"]
    from_row, to_row = first // s["pitch_w"], (last - 1) // s["pitch_w"] + 1
    with f.loop(from_row, to_row, name="row") as row:
        h, rest = row % s["pitch_h"], row // s["pitch_h"]
        d, n = rest % s["pitch_d"], rest // s["pitch_d"] - lead
        start = row * s["pitch_w"]
        w0, w1 = f.maximum(first - start, 0), f.minimum(last - start, s["pitch_w"])
        with f.loop(0, planes, name="plane") as plane:
            pw, outer = plane % s["planes_w"], plane // s["planes_w"]
            ph, pd = outer % s["planes_h"], outer // s["planes_h"]
            id_ = d * s["step_d"] + pd + s["origin_d"]
            ih = h * s["step_h"] + ph + s["origin_h"]
            inside = _within(f, n, s["batch"]) & _within(f, id_, s["size_d"]) & _within(f, ih, s["size_h"])
            size = f.select(inside, s["size_w"], 0)
            origin = s["origin_w"] + pw  # index in the row of x of position 0
            v0, v1 = (_position(f, index, origin, step, w0, w1) for index in (f.value(0), size))
            place = n * s["x_image"] + id_ * s["x_d"] + ih * s["x_h"] + origin
            there = start - first + plane * s["plane_pitch"]
            entry = table[((row - from_row) * planes + plane) * ENTRY]
            for i, value in enumerate((place, there, w0, v0, f.maximum(v1, v0), w1)):
                f.store(value, entry[i])
    return f.maximum(to_row - from_row, 0) * planes


def _within(f: Function, index: Value, size: Value) -> Value:
    return f.compare("ult", index, size)


def _position(f: Function, index: Value, origin: Value, step: int, w0: Value, w1: Value) -> Value:
    """The first position at or after an index of x, within the row."""
    return f.minimum(f.maximum((f.maximum(index - origin, 0) + (step - 1)) // step, w0), w1)


def _emit_run(f: Function, pack: Pack, source: Value, target: Value, entry: list[Value], ahead: Value) -> None:
    """One row of one plane: zeros, the row's elements, zeros. Those of the channel `ahead` elements on are asked for."""
    step, lanes = pack.step, pack.lanes
    place, there, w0, v0, v1, w1 = entry
    src, dst = source[place], target[there]
    zero = f.splat(0.0, pack.type) if lanes == 1 else Value(f, "zeroinitializer", pack.type)
    with f.loop(w0, v0, lanes, name="before") as w:
        f.store(zero, dst[w])
    whole = v1 - (lanes - 1)
    body = Carry([v0])
    with f.loop(v0, whole, lanes, name="copy", carry=body) as w:
        for at in range(0, lanes * step, LINE // SIZES[pack.element]):
            f.prefetch(src[w * step + ahead + at])
        f.store(load(f, pack, src[w * step], None), dst[w])
        body.next = [w + lanes]
    tail = body.results[0]
    with f.when(tail < v1, name="tail"):
        mask = f.lanes_between(0, 0, v1 - tail, lanes)
        f.store(load(f, pack, src[tail * step], mask), dst[tail])
    with f.loop(v1, w1, lanes, name="after") as w:
        f.store(zero, dst[w])


def load(f: Function, pack: Pack, address: Value, mask: Value | None) -> Value:
    """`lanes` elements, `step` apart; all of them, or those under the mask."""
    if pack.step == 1:
        return f.load(pack.type, address) if mask is None else f.masked_load(pack.type, address, mask)
    if mask is None and pack.step <= 8:
        return _strided(f, pack, address)
    every = Value(f, "splat (i1 true)", vector("i1", pack.lanes)) if mask is None else mask
    return f.strided_load(pack.type, address, pack.step, every)


def _strided(f: Function, pack: Pack, address: Value) -> Value:
    """Whole vectors and shuffles in place of a gather. The last vector starts early, so that nothing beyond the last
    wanted element is read."""
    lanes, step = pack.lanes, pack.step
    starts = [v * lanes for v in range(step - 1)] + [(lanes - 1) * (step - 1)]
    vectors = [f.load(pack.type, address[start]) for start in starts]
    source = [min(i * step // lanes, step - 1) for i in range(lanes)]  # the vector that holds lane i's element
    value = vectors[0]
    for v in range(1, step):
        held = [i if v > 1 else i * step for i in range(lanes)]
        mask = [lanes + i * step - starts[v] if source[i] == v else min(held[i], lanes - 1) for i in range(lanes)]
        value = f.shuffle(value, vectors[v], mask)
    return value
