"""Columns: output positions (or tiles of them) numbered densely through the batch, and what a task knows of each.

Column q of a row reads x at `step*q + e` for every read e, and writes y at `out_step*q + a - crop` for every phase a, in each
dimension. A task lists its columns once, in whole vectors, so that its inner loops neither divide nor look at borders:

- a column: the place in x of `step*q`, and `step*q` in each dimension, against which reads are checked;
- a vector: whether its columns lie side by side in one row, whether all of its outputs lie in y, side by side, and where;
- a run: neighbouring columns of one row and vector, whose outputs are copied piece by piece where the vector is not whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from upconv.codegen.ir import SIZES, Carry, Function, Value, element_of, lanes_of, vector
from upconv.kernels.geometry import round_up
from upconv.kernels.job import Slots
from upconv.spec import Problem

CUT = ("length", "unit", "units", "longer", "pieces", "block_count")
SLOTS = (
    "rows_d", "rows_h", "rows_w", "positions_w", "x_image", "x_d", "x_h", "step_d", "step_h", "step_w",
    "size_d", "size_h", "size_w", "out_d", "out_h", "out_w", "out_step_d", "out_step_h", "out_step_w",
    "crop_d", "crop_h", "crop_w", "y_image", *CUT,
)  # fmt: skip
NOWHERE = -(1 << 30)
"""The coordinate of a column that is none: every read of it is outside."""
VECTOR = 7
"""Numbers a vector: are its columns neighbours; place of its outputs in y, or -1 where they are not whole; first run, last
run + 1; a reader's own; how many whole vectors, itself among them, follow one another in y from here on; how many of its columns
have all their outputs in y."""
RUN = 6
"""Numbers a run: first column in its vector, place in y, d and h there, first and end of the outputs that are in the row."""
NEIGHBOURS, OUT, FIRST_RUN, LAST_RUN, READER, WHOLE, COMPLETE = range(VECTOR)


@dataclass(frozen=True, slots=True)
class Line:
    """One dimension: sizes of x and y, steps through both from column to column, what y is cropped by, and the columns."""

    size: int
    out_size: int
    step: int
    out_step: int
    crop: int
    positions: int


LINE_OF_ONE = Line(1, 1, 1, 1, 0, 1)
"""A dimension that a layer does not have."""


def count(batch: int, lines: tuple[Line, ...]) -> int:
    """The columns of the whole batch."""
    return batch * prod(line.positions for line in lines)


@dataclass(frozen=True, slots=True)
class Cut:
    """Columns cut into `pieces` blocks of whole units (the last unit may be short), as equal as can be, the longer ones first.

    So every thread has as much to do: eight blocks of 80 of 576 columns are 320 for one of two threads, and 256 for the other.
    `length` columns are cut so, those of the whole batch or of each of so many `parts` of it (its images, or the positions that
    all images have), which then share no block.
    """

    length: int
    unit: int
    pieces: int
    parts: int = 1

    @property
    def count(self) -> int:
        """Blocks."""
        return self.pieces * self.parts

    @property
    def units(self) -> int:
        return max(1, ceil(self.length / self.unit))

    @property
    def block(self) -> int:
        """Columns of the largest block."""
        return ceil(self.units / self.pieces) * self.unit

    def sizes(self) -> list[tuple[int, int]]:
        """(blocks, columns of each) of the batch: longer ones, shorter ones, and those that end a part.

        >>> cut(1369, 16, 30).sizes()
        [(26, 48), (3, 32), (1, 25)]
        """
        units, longer = divmod(self.units, self.pieces)
        last = self.length - (self.units - units) * self.unit
        sizes = [(longer, (units + 1) * self.unit), (self.pieces - 1 - longer, units * self.unit), (1, last)]
        return [(count * self.parts, size) for count, size in sizes if count > 0]

    def slots(self) -> dict[str, int]:
        """The job's numbers."""
        units, longer = divmod(self.units, self.pieces)
        return {
            "length": self.length, "unit": self.unit, "units": units, "longer": longer, "pieces": self.pieces,
            "block_count": self.count,
        }  # fmt: skip


def cut(length: int, unit: int, pieces: int, parts: int = 1) -> Cut:
    """So many pieces (of each part, where there are several), fewer where there are not enough units.

    >>> cut(1369, 16, 30), cut(1369, 16, 30).block
    (Cut(length=1369, unit=16, pieces=30, parts=1), 48)
    """
    return Cut(length, unit, max(1, min(pieces, ceil(length / unit))), parts)


def emit_cut(f: Function, s: dict[str, Value], number: Value) -> tuple[Value, Value]:
    """The first column of a block, and its columns."""
    part, piece = number // s["pieces"], number % s["pieces"]
    low, high = ((n * s["units"] + f.minimum(n, s["longer"])) * s["unit"] for n in (piece, piece + 1))
    return part * s["length"] + low, f.minimum(high, s["length"]) - low


TOO_FAR = "images too large: columns of a vector may lie further apart than 32 bits count"


def too_far(problem: Problem, lanes: int) -> bool:
    """Whether neighbouring columns, the last of an image and the first of the next, may be 2**31 elements of x apart."""
    return problem.spec.in_channels * prod(problem.input_size) * lanes >= 1 << 31


def slots(lines: tuple[Line, Line, Line], channels_in: int, channels_out: int) -> dict[str, int]:
    """The job's numbers: sizes, and steps in x and y."""
    d, h, w = lines
    image_in, image_out = prod(line.size for line in lines), prod(line.out_size for line in lines)
    return {
        "rows_d": d.positions, "rows_h": h.positions, "rows_w": w.positions, "positions_w": w.positions,
        "x_image": channels_in * image_in, "x_d": h.size * w.size, "x_h": w.size,
        "step_d": d.step, "step_h": h.step, "step_w": w.step, "size_d": d.size, "size_h": h.size, "size_w": w.size,
        "out_d": d.out_size, "out_h": h.out_size, "out_w": w.out_size,
        "out_step_d": d.out_step, "out_step_h": h.out_step, "out_step_w": w.out_step,
        "crop_d": d.crop, "crop_h": h.crop, "crop_w": w.crop, "y_image": channels_out * image_out,
    }  # fmt: skip


def table_bytes(room: int, lanes: int) -> int:
    """Bytes of a task's table with room for so many columns, a multiple of the lanes."""
    return round_up(8 * VECTOR * (room // lanes) + (8 * RUN + 2 * 8 + 4 * 4) * room, 64)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a table in emitted code: arrays over vectors, runs and columns."""

    vectors: Value
    runs: Value
    places: Value
    outs: Value
    """For each column of a vector that is not whole, the place in y of its outputs, where all lie there."""
    d: Value
    h: Value
    w: Value
    index: Value
    """For each column, its place in x less that of its vector's first column (32 bits)."""

    def vector(self, f: Function, v: Value, entry: int) -> Value:
        return f.load("i64", self.vectors[v * VECTOR + entry])


def parts(table: Value, columns: Value, lanes: int) -> Parts:
    """The parts of the table at an address, made for at most `columns` columns."""
    vectors = table.of("i64")
    runs = vectors[columns // lanes * VECTOR]
    places = runs[columns * RUN]
    outs = places[columns]
    d = outs[columns].of("i32")
    return Parts(vectors, runs, places, outs, d, d[columns], d[columns * 2], d[columns * 3])


def _begin(name: str, lanes: int, slots: Slots) -> tuple[Function, Parts, dict[str, Value], Value, Value]:
    """A function that lists columns: with the parts of its table, the job's numbers, and the first column and the one behind."""
    arguments = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("low", "i64"), ("high", "i64")]
    f = Function(name, arguments, attributes="internal noinline nounwind")
    job, table, room, low, high = f.arguments
    return f, parts(table, room, lanes), {slot: slots.read(f, job, slot) for slot in SLOTS}, low, high


def emit_place(lanes: int, slots: Slots, reads: bool = True, together: int = 1) -> Function:
    """`place(job, table, room, low, high)`: lists columns low..high-1 in a table with room for `room` columns.

    They are filled up to whole vectors, `together` of them at a time, with columns that are nowhere. Without `reads`, only
    where outputs go is listed.
    """
    f, p, s, low, high = _begin("place", lanes, slots)
    found = Carry([f.value(0)])
    with f.loop(low // s["rows_w"], (high - 1) // s["rows_w"] + 1, name="row", carry=found) as row:
        h, rest = row % s["rows_h"], row // s["rows_h"]
        d, n = rest % s["rows_d"], rest // s["rows_d"]
        start = row * s["rows_w"]
        from_w, to_w = f.maximum(low - start, 0), f.minimum(high - start, s["rows_w"])
        in_d, in_h = d * s["step_d"], h * s["step_h"]
        place = n * s["x_image"] + in_d * s["x_d"] + in_h * s["x_h"]
        with f.loop(from_w, to_w if reads else from_w, name="w") as w:
            column = start + w - low
            in_w = w * s["step_w"]
            f.store(place + in_w, p.places[column])
            for value, part in ((in_d, p.d), (in_h, p.h), (in_w, p.w)):
                f.store(f.truncated(value), part[column])
        od, oh = d * s["out_step_d"] - s["crop_d"], h * s["out_step_h"] - s["crop_h"]
        out = n * s["y_image"] + (od * s["out_h"] + oh) * s["out_w"]
        found.next = [_emit_runs(f, p, s, lanes, found.values[0], start - low, from_w, to_w, od, oh, out)]
    vectors = (high - low + (lanes - 1)) // lanes
    _emit_whole(f, p, vectors, s["out_step_w"] * lanes)
    every = vectors
    if together > 1:
        every = (vectors + (together - 1)) // together * together
        with f.loop(vectors, every, name="empty") as v:
            for entry, number in ((NEIGHBOURS, 0), (OUT, -1), (FIRST_RUN, 0), (LAST_RUN, 0), (COMPLETE, 0)):
                f.store(f.value(number), p.vectors[v * VECTOR + entry])
    _emit_rest(f, p, lanes, high - low, every * lanes if reads else high - low, reads)
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


def emit_position(s: dict[str, Value], number: Value) -> tuple[Value, Value, Value]:
    """(d, h, w) of a position by its number in an image."""
    rest = number // s["rows_w"]
    return rest // s["rows_h"], rest % s["rows_h"], number % s["rows_w"]


def _emit_rest(f: Function, p: Parts, lanes: int, first: Value, end: Value, reads: bool = True) -> None:
    """Columns up to `end` that are nowhere, and every column's distance from its vector's first.

    Their place in x is that of the last column that is somewhere: what may be read there may be read for them.
    """
    with f.loop(first, end, name="nowhere") as column:
        f.store(f.load("i64", p.places[first - 1]), p.places[column])
        f.store(f.value(0), p.outs[column])
        for part in (p.d, p.h, p.w):
            f.store(Value(f, str(NOWHERE), "i32"), part[column])
    with f.loop(0, end if reads else 0, name="column") as column:
        relative = f.load("i64", p.places[column]) - f.load("i64", p.places[column // lanes * lanes])
        f.store(f.truncated(relative), p.index[column])


def _rows_inside(s: dict[str, Value], od: Value, oh: Value) -> Value:
    """Whether y has all the rows of outputs that begin at od, oh."""
    return (od >= 0) & (od + s["out_step_d"] <= s["out_d"]) & (oh >= 0) & (oh + s["out_step_h"] <= s["out_h"])


def _emit_runs(
    f: Function, p: Parts, s: dict[str, Value], lanes: int, first: Value, shift: Value, from_w: Value, to_w: Value,
    od: Value, oh: Value, out: Value,
) -> Value:  # fmt: skip
    """The runs of one row, cut where vectors end; returns the number of runs up to here. Column = shift + w."""
    over = Carry([first, from_w])
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
        run, vector_ = p.runs[number * RUN], p.vectors[v * VECTOR]
        for i, value in enumerate((column, out + ow + low, od, oh, low, high)):
            f.store(value, run[i])
        with f.when(column.equals(0), name="first"):
            for i, value in enumerate((f.select(neighbours, 1, 0), f.select(whole, out + ow, -1), number)):
                f.store(value, vector_[i])
        f.store(number + 1, vector_[LAST_RUN])
        earlier = f.select(column.equals(0), 0, f.load("i64", vector_[COMPLETE]))
        f.store(earlier + f.select(complete, used, 0), vector_[COMPLETE])
        with f.loop(0, f.select(neighbours, 0, used), name="one") as one:
            f.store(out + ow + one * s["out_step_w"], p.outs[v * lanes + column + one])
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


def inside(
    f: Function, s: dict[str, Value], p: Parts, column: Value, lanes: int, e: tuple[Value, Value, Value], axes: str = "dhw"
) -> Value:
    """The mask of the lanes whose read at e lies in x, in the axes named, for the vector of columns from `column` on."""
    type_ = vector("i32", lanes)
    mask: Value | None = None
    for axis, part, offset in zip("dhw", (p.d, p.h, p.w), e, strict=True):
        if axis in axes:
            at = f._op("add", f.load(type_, part[column]), f.splat(f.truncated(offset), type_))
            good = f.compare("ult", at, f.splat(f.truncated(s[f"size_{axis}"]), type_))
            mask = good if mask is None else f._op("and", mask, good)
    assert mask is not None
    return mask


def full(f: Function, mask: Value, lanes: int) -> Value:
    """Whether every lane of a mask is set."""
    if lanes == 1:
        return mask
    bits = f.emit(f"bitcast {mask.type} {mask.text} to i{lanes}", f"i{lanes}")
    return f.emit(f"icmp eq i{lanes} {bits.text}, -1", "i1")


def widened(f: Function, mask: Value) -> Value:
    """A mask as it is kept in memory: 32 bits a lane, all of them set where it is."""
    type_ = vector("i32", lanes_of(mask.type))
    return f.emit(f"sext {mask.type} {mask.text} to {type_}", type_)


def kept(f: Function, lanes: int, address: Value) -> Value:
    """A mask that is kept in memory."""
    type_ = vector("i32", lanes)
    return f.compare("slt", f.load(type_, address, 4), f.splat_int(0, type_))


def masked(f: Function, value: Value, address: Value) -> Value:
    """A vector with zeros where the mask that is kept at an address is not set."""
    lanes, bits = lanes_of(value.type), vector(f"i{8 * SIZES[element_of(value.type)]}", lanes_of(value.type))
    mask = f.load(vector("i32", lanes), address, 4)
    wide = mask if mask.type == bits else f.emit(f"sext {mask.type} {mask.text} to {bits}", bits)
    kept_ = f._op("and", f.emit(f"bitcast {value.type} {value.text} to {bits}", bits), wide)
    return f.emit(f"bitcast {bits} {kept_.text} to {value.type}", value.type)


def emit_copy(element: str, lanes: int) -> Function:
    """`copy(from, to, count)`: few elements, without masks: the last vector, or the last half, overlaps the one before."""
    f = Function("copy", [("from", "ptr"), ("to", "ptr"), ("count", "i64")], attributes="internal noinline nounwind")
    source, target, count_ = f.arguments
    source, target = source.of(element), target.of(element)

    def piece(size: int, at: Value) -> None:
        f.store(f.load(vector(element, size), source[at]), target[at])

    def shorter(size: int) -> None:
        """Fewer than 2 * size elements."""
        enough = count_ >= size
        with f.when(enough, name="some"):
            piece(size, f.value(0))
            piece(size, count_ - size)
        if size > 1:
            with f.otherwise(enough, name="fewer"):
                shorter(size // 2)

    many = count_ >= 2 * lanes
    with f.when(many, name="many"):
        with f.loop(0, count_ - lanes, lanes, name="i") as i:
            piece(lanes, i)
        piece(lanes, count_ - lanes)
    with f.otherwise(many, name="few"):
        shorter(lanes)
    return f
