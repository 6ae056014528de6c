"""A task's columns listed in its table (`columns`): row by row; image by image of one position; or in slices.

Slices are what Strassen's products take apart: a vector of each stands in the table in turn. These are neighbours in an image, or,
where images are small, vectors of its halves (or quarters), the images' one behind the other: then they need not be whole vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import Carry, Function, Int, Value
from upconv.kernels.columns import (
    COMPLETE,
    FIRST_RUN,
    LAST_RUN,
    NEIGHBOURS,
    NOWHERE,
    OUT,
    RUN,
    SLOTS,
    VECTOR,
    WHOLE,
    Parts,
    emit_position,
    parts,
)
from upconv.kernels.job import Slots

OF_SLICES = ("image_parts", "part_length")
"""The job's numbers for slices: parts that an image is cut in, one where neighbours are slices, and the columns of each."""


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Which vectors of the table columns stand in: every `step`-th, from the first on."""

    lanes: int
    first: Int = 0
    step: Int = 1

    def number(self, v: Value) -> Value:
        return v if self.step == 1 else v * self.step + self.first

    def column(self, column: Value) -> Value:
        return column if self.step == 1 else self.number(column // self.lanes) * self.lanes + column % self.lanes


def _begin(name: str, lanes: int, slots: Slots) -> tuple[Function, Parts, dict[str, Value], Value, Value]:
    """A function that lists columns: with the parts of its table, the job's numbers, and the first column and the one behind."""
    arguments = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("low", "i64"), ("high", "i64")]
    f = Function(name, arguments, attributes="internal noinline nounwind")
    job, table, room, low, high = f.arguments
    return f, parts(table, room, lanes), {slot: slots.read(f, job, slot) for slot in SLOTS}, low, high


def emit_place(lanes: int, slots: Slots, reads: bool = True) -> Function:
    """`place(job, table, room, low, high)`: lists columns low..high-1 in a table with room for `room` columns.

    They are filled up to whole vectors with columns that are nowhere. Without `reads`, only where outputs go is listed.
    """
    f, p, s, low, high = _begin("place", lanes, slots)
    found = Carry([f.value(0)])
    with f.loop(low // s["rows_w"], (high - 1) // s["rows_w"] + 1, name="row", carry=found) as row:
        start = row * s["rows_w"]
        from_w, to_w = f.maximum(low - start, 0), f.minimum(high - start, s["rows_w"])
        found.next = [_emit_row(f, p, s, _Vectors(lanes), found.values[0], row, start - low, from_w, to_w, reads)]
    vectors = (high - low + (lanes - 1)) // lanes
    _emit_whole(f, p, vectors, s["out_step_w"] * lanes)
    _emit_rest(f, p, lanes, high - low, vectors * lanes if reads else high - low, reads)
    return f


def emit_place_images(lanes: int, slots: Slots) -> Function:
    """`place_images(job, table, room, low, high)`: lists columns of a batch that is cut by position, one of `length` images each.

    All are of one position, so that none has a neighbour: its outputs are a run of its own.
    """
    f, p, s, low, high = _begin("place_images", lanes, slots)
    d, h, w = emit_position(s, low // s["length"])
    inside_x = [n * s[f"step_{axis}"] for n, axis in ((d, "d"), (h, "h"), (w, "w"))]
    od, oh, ow = (n * s[f"out_step_{axis}"] - s[f"crop_{axis}"] for n, axis in ((d, "d"), (h, "h"), (w, "w")))
    first = f.maximum(0 - ow, 0)
    end = f.maximum(f.minimum(s["out_w"] - ow, s["out_step_w"]), first)
    complete = _rows_inside(s, od, oh) & first.equals(0) & end.equals(s["out_step_w"])
    image = low % s["length"]
    with f.loop(0, high - low, name="column") as column:
        v, lane, n = column // lanes, column % lanes, image + column
        f.store(n * s["x_image"] + inside_x[0] * s["x_d"] + inside_x[1] * s["x_h"] + inside_x[2], p.places[column])
        for value, part in zip(inside_x, (p.d, p.h, p.w), strict=True):
            f.store(f.truncated(value), part[column])
        out = n * s["y_image"] + (od * s["out_h"] + oh) * s["out_w"] + ow
        f.store(out, p.outs[column])
        for i, value in enumerate((lane, out + first, od, oh, first, end)):
            f.store(value, p.runs[column * RUN + i])
        numbers = (f.value(0), f.value(-1), column - lane, column + 1, f.value(0), f.select(complete, lane + 1, 0))
        for entry, number in zip((NEIGHBOURS, OUT, FIRST_RUN, LAST_RUN, WHOLE, COMPLETE), numbers, strict=True):
            f.store(number, p.vectors[v * VECTOR + entry])
    vectors = (high - low + (lanes - 1)) // lanes
    _emit_rest(f, p, lanes, high - low, vectors * lanes)
    return f


def emit_place_slices(lanes: int, slots: Slots, slices: int) -> Function:
    """`place_slices(job, table, room, low, high)`: the same, a vector of each slice in turn, and as many vectors of each.

    Where images are cut in parts, column q of every slice is one image's. The last part of an image that they do not divide is
    filled up with the first part's columns over again, in the same places: so one thread stores both, and there is nothing to mask.
    """
    f, p, s, low, high = _begin("place_slices", lanes, slots)
    image_parts, length = (slots.read(f, f.arguments[0], name) for name in OF_SLICES)
    image = s["rows_d"] * s["rows_h"] * s["rows_w"]
    low, high = low // image_parts, (high + (image_parts - 1)) // image_parts
    together = f.value(slices) // image_parts
    each = (high - low + (together * lanes - 1)) // (together * lanes) * together  # vectors of a part
    of_parts = Carry([f.value(0)])
    with f.loop(0, image_parts, name="part", carry=of_parts) as part:
        to, of_images, before = _Vectors(lanes, part, image_parts), Carry([of_parts.values[0]]), part * length
        with f.loop(low // length, (high - 1) // length + 1, name="image", carry=of_images) as n:
            begin, end = f.maximum(low - n * length, 0), f.minimum(high - n * length, length)
            own, of_runs = f.maximum(f.minimum(end, image - before), begin), Carry([of_images.values[0]])
            with f.loop(0, 2, name="again", carry=of_runs) as again:
                from_, to_ = f.select(again > 0, own, begin), f.select(again > 0, end, own)
                first = f.select(again > 0, 0, before)
                positions = (n, from_ + first, to_ + first, n * length - low - first)
                of_runs.next = [_emit_positions(f, p, s, to, of_runs.values[0], *positions)]
            of_images.next = of_runs.results
        of_parts.next = [_emit_nowhere(f, p, s, to, of_images.results[0], high - low, each * lanes)]
    vectors = each * image_parts
    _emit_whole(f, p, vectors, s["out_step_w"] * lanes)
    _emit_rest(f, p, lanes, vectors * lanes, vectors * lanes)
    return f


def _emit_positions(
    f: Function, p: Parts, s: dict[str, Value], to: _Vectors, first: Value, n: Value, begin: Value, end: Value, shift: Value
) -> Value:
    """Positions begin..end-1 of an image; returns the number of runs up to here. Column = shift + position."""
    found, rows_w = Carry([first]), s["rows_w"]
    last_row = f.select(end > begin, (end - 1) // rows_w + 1, 0)
    with f.loop(begin // rows_w, last_row, name="row", carry=found) as row:
        start, of_batch = row * rows_w, n * (s["rows_d"] * s["rows_h"]) + row
        from_w, to_w = f.maximum(begin - start, 0), f.minimum(end - start, rows_w)
        found.next = [_emit_row(f, p, s, to, found.values[0], of_batch, shift + start, from_w, to_w)]
    return found.results[0]


def _emit_nowhere(f: Function, p: Parts, s: dict[str, Value], to: _Vectors, first: Value, low: Value, high: Value) -> Value:
    """Columns low..high-1 that are nowhere, behind others; returns the number of runs up to here, of which theirs are empty."""
    place = f.load("i64", p.places[to.column(low - 1)])
    with f.loop(low, high, name="nowhere") as at:
        _emit_column(f, p, to.column(at), place)
    behind, zero = s["positions_w"], f.value(0)
    low = f.select(high > low, low, low // to.lanes * to.lanes)  # no column, no run
    return _emit_runs(f, p, s, to, first, low - behind, behind, behind + f.maximum(high - low, 0), zero, zero, zero)


def _emit_column(f: Function, p: Parts, column: Value, place: Value) -> None:
    """A column that is nowhere. Its place in x is that of one that is somewhere: what may be read there may be read for it."""
    f.store(place, p.places[column])
    f.store(f.value(0), p.outs[column])
    for part in (p.d, p.h, p.w):
        f.store(Value(f, str(NOWHERE), "i32"), part[column])


def _emit_row(
    f: Function, p: Parts, s: dict[str, Value], to: _Vectors, first: Value, row: Value, shift: Value, from_w: Value, to_w: Value,
    reads: bool = True,
) -> Value:  # fmt: skip
    """Columns from_w..to_w-1 of a row of the batch; returns the number of runs up to here. Column = shift + w."""
    h, rest = row % s["rows_h"], row // s["rows_h"]
    d, n = rest % s["rows_d"], rest // s["rows_d"]
    in_d, in_h = d * s["step_d"], h * s["step_h"]
    place = n * s["x_image"] + in_d * s["x_d"] + in_h * s["x_h"]
    with f.loop(from_w, to_w if reads else from_w, name="w") as w:
        column, in_w = to.column(shift + w), w * s["step_w"]
        f.store(place + in_w, p.places[column])
        for value, part in ((in_d, p.d), (in_h, p.h), (in_w, p.w)):
            f.store(f.truncated(value), part[column])
    od, oh = d * s["out_step_d"] - s["crop_d"], h * s["out_step_h"] - s["crop_h"]
    out = n * s["y_image"] + (od * s["out_h"] + oh) * s["out_w"]
    return _emit_runs(f, p, s, to, first, shift, from_w, to_w, od, oh, out)


def _emit_rest(f: Function, p: Parts, lanes: int, first: Value, end: Value, reads: bool = True) -> None:
    """Columns up to `end` that are nowhere, and every column's distance from its vector's first."""
    with f.loop(first, end, name="nowhere") as column:
        _emit_column(f, p, column, f.load("i64", p.places[first - 1]))
    with f.loop(0, end if reads else 0, name="column") as column:
        relative = f.load("i64", p.places[column]) - f.load("i64", p.places[column // lanes * lanes])
        f.store(f.truncated(relative), p.index[column])


def _rows_inside(s: dict[str, Value], od: Value, oh: Value) -> Value:
    """Whether y has all the rows of outputs that begin at od, oh."""
    return (od >= 0) & (od + s["out_step_d"] <= s["out_d"]) & (oh >= 0) & (oh + s["out_step_h"] <= s["out_h"])


def _emit_runs(
    f: Function, p: Parts, s: dict[str, Value], to: _Vectors, first: Value, shift: Value, from_w: Value, to_w: Value,
    od: Value, oh: Value, out: Value,
) -> Value:  # fmt: skip
    """The runs of one row, cut where vectors end; returns the number of runs up to here. Column = shift + w."""
    over, lanes = Carry([first, from_w]), to.lanes
    begin = (shift + from_w) // lanes
    end = (shift + to_w + (lanes - 1)) // lanes
    rows_inside = _rows_inside(s, od, oh)
    with f.loop(begin, end, name="run", carry=over) as v:
        number, w = over.values
        stop = f.minimum((v + 1) * lanes - shift, to_w)
        column = shift + w - v * lanes
        used = f.maximum(f.minimum(stop, s["positions_w"]) - w, 0)
        ow = w * s["out_step_w"] - s["crop_w"]
        low = f.minimum(f.maximum(0 - ow, 0), used * s["out_step_w"])
        high = f.maximum(f.minimum(used * s["out_step_w"], s["out_w"] - ow), low)
        neighbours = used.equals(lanes)
        complete = rows_inside & low.equals(0) & high.equals(used * s["out_step_w"])
        whole = neighbours & complete
        run, vector_ = p.runs[number * RUN], p.vectors[to.number(v) * VECTOR]
        for i, value in enumerate((column, out + ow + low, od, oh, low, high)):
            f.store(value, run[i])
        with f.when(column.equals(0), name="first"):
            for i, value in enumerate((f.select(neighbours, 1, 0), f.select(whole, out + ow, -1), number)):
                f.store(value, vector_[i])
        f.store(number + 1, vector_[LAST_RUN])
        earlier = f.select(column.equals(0), 0, f.load("i64", vector_[COMPLETE]))
        f.store(earlier + f.select(complete, used, 0), vector_[COMPLETE])
        with f.loop(0, f.select(neighbours, 0, used), name="one") as one:
            f.store(out + ow + one * s["out_step_w"], p.outs[to.number(v) * lanes + column + one])
        over.next = [number + 1, stop]
    return over.results[0]


def _emit_whole(f: Function, p: Parts, vectors: Value, size: Value) -> None:
    """Counts, from the last vector back, the whole vectors that follow one another; each has `size` outputs."""
    later = Carry([f.value(-1), f.value(0)])
    with f.loop(0, vectors, name="back", carry=later) as i:
        v = vectors - 1 - i
        out = p.vector(f, v, OUT)
        following = (out + size).equals(later.values[0])
        whole = f.select(out >= 0, f.select(following, later.values[1], 0) + 1, 0)
        f.store(whole, p.vectors[v * VECTOR + WHOLE])
        later.next = [out, whole]
