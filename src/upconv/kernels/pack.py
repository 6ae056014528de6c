"""Packing the input: one block of the band (see `geometry`), zeros and all, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import Carry, Function, Int, Value, vector
from upconv.kernels.job import Slots

SLOTS = (
    "x", "channels", "x_image", "x_channel", "x_d", "x_h",
    "size_d", "size_h", "size_w", "step_d", "step_h", "base_d", "base_h", "base_w",
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
    """`pack(job, x, band, low, high)`: fills band positions low..high-1 of every channel of one group.

    `x` is the group's first channel. Rows are visited in rising order and written in whole vectors, each overwriting the
    overhang of the one before; a channel's region ends with a vector of slack.
    """
    f = Function(
        "pack",
        [("job", "ptr"), ("x", "ptr"), ("band", "ptr"), ("low", "i64"), ("high", "i64")],
        attributes="internal noinline nounwind",
    )
    job, x, band, low, high = f.arguments
    x, band = x.of(pack.element), band.of(pack.element)
    s = {name: slots.read(f, job, name) for name in SLOTS if name != "x"}
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
            id_ = (d + s["base_d"]) * s["step_d"] + pd
            ih = (h + s["base_h"]) * s["step_h"] + ph
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
    origin = s["base_w"] * step + plane  # x index of position 0
    count = f.maximum(size + (step - 1 - plane), 0) // step  # elements of the plane in a row of x
    v0 = f.minimum(f.maximum(0 - s["base_w"], w0), w1)
    v1 = f.minimum(f.maximum(count - s["base_w"], v0), w1)
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
    if mask is None and pack.step == 2:
        # the second vector starts one element early, so that nothing beyond the last wanted element is read
        low, high = f.load(pack.type, address), f.load(pack.type, address[pack.lanes - 1])
        half = pack.lanes // 2
        return f.shuffle(low, high, [*range(0, pack.lanes, 2), *range(pack.lanes + 1, 2 * pack.lanes, 2)][: 2 * half])
    every = Value(f, "splat (i1 true)", vector("i1", pack.lanes)) if mask is None else mask
    return f.strided_load(pack.type, address, pack.step, every)


def padded(count: Int) -> Int:
    """Elements rounded up to whole 64-byte lines of float32."""
    return (count + 15) // 16 * 16
