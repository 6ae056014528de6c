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

from upconv.codegen.ir import SIZES, Function, Value, element_of, lanes_of, vector
from upconv.kernels.geometry import round_up
from upconv.spec import Problem

CUT = ("length", "unit", "units", "longer", "pieces", "block_count")
SLOTS = (
    "rows_d", "rows_h", "rows_w", "positions_w", "x_image", "x_d", "x_h", "step_d", "step_h", "step_w",
    "size_d", "size_h", "size_w", "out_d", "out_h", "out_w", "out_step_d", "out_step_h", "out_step_w",
    "crop_d", "crop_h", "crop_w", "y_image", *CUT,
)  # fmt: skip
PAGE, ALIASED = 4096, 70.0
"""Bytes of a page; cycles that a vector takes longer each of whose columns is another image's, whole pages apart. Measured."""
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


def gathering_cycles(problem: Problem, lanes: int, length: float) -> float:
    """What a vector of a channel takes longer whose columns are several images', `length` of each at a time.

    Images that are whole pages apart are in the same sets of the caches.
    """
    if prod(problem.input_shape[1:]) * problem.itemsize % PAGE or lanes == 1:
        return 0.0
    return ALIASED * max(0.0, min(lanes, lanes / length) - 1) / (lanes - 1)


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


def emit_position(s: dict[str, Value], number: Value) -> tuple[Value, Value, Value]:
    """(d, h, w) of a position by its number in an image."""
    rest = number // s["rows_w"]
    return rest // s["rows_h"], rest % s["rows_h"], number % s["rows_w"]


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
