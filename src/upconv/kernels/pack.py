"""Packing the input: one block of the band (see `geometry`), zeros and all, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import Carry, Function, Value, vector
from upconv.kernels.job import Slots

SLOTS = (
    "x", "x_image", "x_channel", "x_d", "x_h",
    "size_d", "size_h", "size_w", "step_d", "step_h", "origin_d", "origin_h", "origin_w",
    "pitch_d", "pitch_h", "pitch_w", "batch", "planes_d", "planes_h",
    "lead", "plane_pitch", "channel_pitch",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pack:
    """What changes the code: the element, the lanes, and the innermost step and number of planes of the input."""

    element: str
    lanes: int
    step: int
    planes: int

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)


def emit(pack: Pack, slots: Slots) -> Function:
    """`pack(job, x, band, low, high, channels)`: fills band positions low..high-1 of `channels` channels, the first at `x`.

    Rows are visited in rising order and written in whole vectors, each overwriting the
    overhang of the one before; a channel's region ends with a vector of slack.
    """
    f = Function(
        "pack",
        [("job", "ptr"), ("x", "ptr"), ("band", "ptr"), ("low", "i64"), ("high", "i64"), ("channels", "i64")],
        attributes="internal noinline nounwind",
    )
    job, x, band, low, high, channels = f.arguments
    x, band = x.of(pack.element), band.of(pack.element)
    s = {name: slots.read(f, job, name) for name in SLOTS if name != "x"} | {"channels": channels}
    lead = s["lead"]  # whole images in front, so that no division sees a negative number
    shift = lead * s["pitch_d"] * s["pitch_h"] * s["pitch_w"]
    first, last = low + shift, high + shift
    with f.loop(first // s["pitch_w"], (last - 1) // s["pitch_w"] + 1, name="row") as row:
        h, rest = row % s["pitch_h"], row // s["pitch_h"]
        d, n = rest % s["pitch_d"], rest // s["pitch_d"] - lead
        start = row * s["pitch_w"]
        w0, w1 = f.maximum(first - start, 0), f.minimum(last - start, s["pitch_w"])
        there = band[start - first]
        with f.loop(0, s["planes_d"], name="pd") as pd, f.loop(0, s["planes_h"], name="ph") as ph:
            id_ = d * s["step_d"] + pd + s["origin_d"]
            ih = h * s["step_h"] + ph + s["origin_h"]
            inside = _within(f, n, s["batch"]) & _within(f, id_, s["size_d"]) & _within(f, ih, s["size_h"])
            source = x[n * s["x_image"] + id_ * s["x_d"] + ih * s["x_h"]]
            size = f.select(inside, s["size_w"], 0)
            for pw in range(pack.planes):
                plane = ((pd * s["planes_h"] + ph) * pack.planes + pw) * s["plane_pitch"]
                _emit_rows(f, pack, s, source, there[plane], size, pw, w0, w1)
    return f


def _within(f: Function, index: Value, size: Value) -> Value:
    return f.compare("ult", index, size)


def _emit_rows(
    f: Function,
    pack: Pack,
    s: dict[str, Value],
    source: Value,
    target: Value,
    size: Value,
    plane: int,
    w0: Value,
    w1: Value,
) -> None:
    """One row of one plane, for every channel: zeros, the row's elements, zeros."""
    step, lanes = pack.step, pack.lanes
    origin = s["origin_w"] + plane  # x index of position 0

    def position(index: Value) -> Value:
        """The first position at or after an index of x, within the row."""
        return f.minimum(f.maximum((f.maximum(index - origin, 0) + (step - 1)) // step, w0), w1)

    v0 = position(f.value(0))
    v1 = f.maximum(position(size), v0)
    zero = f.splat(0.0, pack.type) if lanes == 1 else Value(f, "zeroinitializer", pack.type)
    channels = Carry([source, target])
    with f.loop(0, s["channels"], name="c", carry=channels):
        src, dst = channels.values
        with f.loop(w0, v0, lanes, name="before") as w:
            f.store(zero, dst[w])
        whole = v1 - (lanes - 1)
        body = Carry([v0])
        with f.loop(v0, whole, lanes, name="copy", carry=body) as w:
            f.store(_load(f, pack, src[w * step + origin], None), dst[w])
            body.next = [w + lanes]
        tail = body.results[0]
        with f.when(tail < v1, name="tail"):
            mask = f.lanes_between(0, 0, v1 - tail, lanes)
            f.store(_load(f, pack, src[tail * step + origin], mask), dst[tail])
        with f.loop(v1, w1, lanes, name="after") as w:
            f.store(zero, dst[w])
        channels.next = [src[s["x_channel"]], dst[s["channel_pitch"]]]


def _load(f: Function, pack: Pack, address: Value, mask: Value | None) -> Value:
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
