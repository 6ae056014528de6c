"""Panels: what a GEMM's tile reads of x, one row for each read and channel, copied side by side in whole, aligned vectors.

A tile's columns then stand in one piece of memory of the first-level cache, whatever the layer: neither rows of images nor
strides nor borders are left. How each vector of each read is found in x is worked out once a task (`emit_masks`); the copy
itself (`emit_panels`) only follows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import SIZES, Function, Value, vector
from upconv.codegen.target import LINE
from upconv.kernels import columns, pack
from upconv.kernels.job import Slots

SLOTS = ("x", "x_channel", "reads", "read_count", "panel_size", "panel_channels")
READ = 4  # i64 a read: e in each dimension, and its place in x
_APART, _NEIGHBOURS, _WHOLE, _STRAIGHT = range(4)
"""Lanes that are no neighbours (or strided, with some outside); neighbours, some outside x; all inside; and so throughout the panel
that begins here. Neighbours stand `step` apart: the end of a row and the beginning of the next too, where there is no halo."""


@dataclass(frozen=True, slots=True)
class Panel:
    """What changes the code: the element, the lanes, the vectors of a panel, and the innermost step of x."""

    element: str
    lanes: int
    vectors: int
    step: int

    @property
    def entry(self) -> int:
        """Bytes of what is known of one vector of one read: place in x, kind, mask."""
        return 16 + 4 * self.lanes

    @property
    def mask(self) -> str:
        return vector("i32", self.lanes)


def emit_masks(panel: Panel, slots: Slots) -> Function:
    """`masks(job, table, room, found, vectors)`: how each read's vectors are found, [read][vector] entries."""
    f = Function(
        "masks",
        [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("found", "ptr"), ("vectors", "i64")],
        attributes="internal noinline nounwind",
    )
    job, table, room, found, vectors = f.arguments
    p, lanes = columns.parts(table, room, panel.lanes), panel.lanes
    s = {name: slots.read(f, job, name) for name in ("read_count", "size_d", "size_h", "size_w")}
    reads = slots.pointer(f, job, "reads", "i64")
    with f.loop(0, s["read_count"], name="read") as r:
        ed, eh, ew, place = (f.load("i64", reads[r * READ + i]) for i in range(READ))
        entries = found.of("i8")[r * vectors * panel.entry]
        with f.loop(0, vectors, name="v") as v:
            mask = columns.inside(f, s, p, v * lanes, lanes, (ed, eh, ew))
            index, along = f.load(panel.mask, p.index[v * lanes]), f.iota(lanes, panel.step, "i32")
            outside = f._op("xor", mask, f.splat_int(1, mask.type))
            near = f._op("or", f.compare("eq", index, along), outside)  # what lies outside is not read, wherever it is
            neighbours, whole = columns.full(f, near, lanes), columns.full(f, mask, lanes)
            inexact = f.select(neighbours, _NEIGHBOURS, _APART) if panel.step == 1 else f.value(_APART)
            entry = entries[v * panel.entry]
            f.store(f.load("i64", p.places[v * lanes]) + place, entry)
            f.store(f.select(neighbours & whole, f.value(_WHOLE), inexact), entry[8])
            f.store(columns.widened(f, mask), entry[16])
        with f.loop(0, vectors - (panel.vectors - 1), panel.vectors, name="panel") as v:
            several = [entries[(v + i) * panel.entry] for i in range(panel.vectors)]
            begin, good = f.load("i64", several[0]), f.load("i64", several[0][8]).equals(_WHOLE)
            for i, entry in enumerate(several[1:], 1):
                follows = f.load("i64", entry).equals(begin + i * lanes * panel.step)
                good = good & follows & f.load("i64", entry[8]).equals(_WHOLE)
            with f.when(good, name="straight"):
                f.store(f.value(_STRAIGHT), several[0][8])
    return f


def emit_panels(panel: Panel, slots: Slots) -> Function:
    """`panels(job, table, room, found, vectors, x, out, channels)`: `channels` channels, the first at x, into panels.

    [panel][read][channel][column]; a panel has `panel_size` elements, a read's channels stand `panel_channels` apart. Most of
    them are straight: nothing is looked up vector by vector there.
    """
    pointers = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("found", "ptr"), ("vectors", "i64")]
    arguments = [*pointers, ("x", "ptr"), ("out", "ptr"), ("channels", "i64")]
    f = Function("panels", arguments, attributes="internal noinline nounwind")
    job, table, room, found, vectors, x, out, channels = f.arguments
    p, lanes = columns.parts(table, room, panel.lanes), panel.lanes
    x, out, width = x.of(panel.element), out.of(panel.element), panel.vectors * panel.lanes
    s = {name: slots.read(f, job, name) for name in ("x_channel", "read_count", "panel_size", "panel_channels")}
    how, count = pack.Pack(panel.element, lanes, panel.step), (vectors + (panel.vectors - 1)) // panel.vectors
    with f.loop(0, channels, name="c") as c:
        source = x[c * s["x_channel"]]
        with f.loop(0, vectors, panel.vectors, name="ahead") as v:
            later = source[f.load("i64", found.of("i8")[v * panel.entry]) + s["x_channel"] * pack.AHEAD]
            for at in range(0, width * panel.step, max(LINE // SIZES[panel.element], lanes * panel.step // 2)):
                f.prefetch(later[at])
        with f.loop(0, s["read_count"], name="read") as r, f.loop(0, count, name="panel") as number:
            v = number * panel.vectors
            target = out[(r * s["panel_channels"] + c) * width + number * s["panel_size"]]
            entry = found.of("i8")[(r * vectors + v) * panel.entry]
            straight = f.load("i64", entry[8]).equals(_STRAIGHT)
            with f.when(straight, name="straight"):
                place = source[f.load("i64", entry)]
                for at in range(0, width, lanes):
                    f.store(pack.load(f, how, place[at * panel.step], None), target[at])
            with (
                f.otherwise(straight, name="apart"),
                f.loop(0, f.minimum(vectors - v, panel.vectors), name="v") as i,
            ):
                emit_fetch(f, panel, p, source, entry[i * panel.entry], v + i, target[i * lanes])
    return f


def emit_fetch(f: Function, panel: Panel, p: columns.Parts, source: Value, entry: Value, v: Value, target: Value) -> None:
    """Copies one vector of one read, found as its entry says, from a channel of x."""
    how, type_ = pack.Pack(panel.element, panel.lanes, panel.step), vector(panel.element, panel.lanes)
    at, kind = source[f.load("i64", entry)], f.load("i64", entry[8])
    whole = kind >= _WHOLE
    with f.when(whole, name="whole"):
        f.store(pack.load(f, how, at, None), target)
    with f.otherwise(whole, name="partly"):
        mask = columns.kept(f, panel.lanes, entry[16])
        near = kind.equals(_NEIGHBOURS)  # never where steps lie between
        if panel.step == 1:
            with f.when(near, name="near"):
                f.store(f.masked_load(type_, at, mask), target)
        with f.otherwise(near, name="apart"):
            f.store(f.gather(type_, at, f.load(panel.mask, p.index[v * panel.lanes]), mask), target)
