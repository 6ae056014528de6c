"""Lines asked for while the sums of a block go on: those of y that it will write, those of x that the next one will read.

Sums of a block come from the caches, one GEMM after the other, and memory has nothing to do; then all of them are stored, and the
next block's windows read, and there is nothing to do but to wait for memory. So the places of a channel's lines are listed once a
task, and every register tile asks for its share of them: they are there when the sums are. Those of x go to the second-level cache,
since they are read when the block's sums are done, and the first one is needed for these until then: 1.16 times as fast for 90 -> 5
k4s2, 1.14 for 64 -> 8 k8s4, 1.02 to 1.06 for vocoders of 32 to 128 channels (two threads, AVX-512).
"""

from __future__ import annotations

from upconv.codegen.ir import SIZES, Function, Int, Value
from upconv.codegen.target import LINE
from upconv.kernels import columns, panel
from upconv.kernels.job import Slots
from upconv.kernels.microkernel import Finish
from upconv.kernels.register_tile import Tile

COUNT, RATE, TIMES, NEXT, LEFT, PLANE, STEP, BASE, ENTRIES = range(9)
"""Numbers in front of a list: its entries, how many of a plane's a tile asks for and in how many planes, the next one, the planes
that are left, this plane's place and the next one's distance, and the array that they are in."""

NOWHERE = -(1 << 62)
"""The end of no run."""


def size(entries: int) -> int:
    """Bytes of a list with so many entries."""
    return 8 * (ENTRIES + entries)


def most_written(room: int, rows: int, step: int, item: int) -> int:
    """Entries of what a block of `room` columns writes, at most: `rows` rows of y a column, `step` elements of each."""
    return rows * room * (1 + -(-step * item // LINE))


def most_read(room: int, rows: int, step: int, reach: int, item: int, positions: int) -> int:
    """Entries of what a block reads, at most: `rows` rows of x a column, `step` elements apart and `reach` long."""
    parts = room // positions + 2  # rows of columns that it is in
    return rows * (parts + -(-(room * step + parts * reach) * item // LINE))


def emit_written(element: str, lanes: int, slots: Slots, slices: int) -> Function:
    """`written(job, table, room, vectors, list)`: the places in a plane of y of all lines that a block writes there.

    Runs that follow one another in y are taken as one. With `slices`, the lines are those of as many planes, `channels_out` apart.
    """
    arguments = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("vectors", "i64"), ("list", "ptr")]
    f = Function("written", arguments, attributes="internal noinline nounwind")
    job, table, room, vectors, numbers = f.arguments
    p, numbers, line = columns.parts(table, room, lanes), numbers.of("i64"), LINE // SIZES[element]
    names = ("out_d", "out_h", "out_w", "out_step_d", "out_step_h", "channels_out", "y_channel")
    s = {name: slots.read(f, job, name) for name in names}
    end, following = (numbers[at] for at in (PLANE, NEXT))
    f.store(f.value(0), numbers[COUNT])
    f.store(f.value(NOWHERE), end)
    with (
        f.loop(0, slices, name="slice") as slice_,
        f.loop(0, s["out_step_d"], name="d") as d,
        f.loop(0, s["out_step_h"], name="h") as h,
        f.loop(0, vectors, name="v") as v,
        f.loop(p.vector(f, v, columns.FIRST_RUN), p.vector(f, v, columns.LAST_RUN), name="run") as number,
    ):
        run = p.runs[number * columns.RUN]
        _, place, od, oh, low, high = (f.load("i64", run[i]) for i in range(columns.RUN))
        there = f.compare("ult", od + d, s["out_d"]) & f.compare("ult", oh + h, s["out_h"])
        first = slice_ * s["channels_out"] * s["y_channel"] + place + (d * s["out_h"] + h) * s["out_w"]
        last = first + f.select(there, high - low, 0)
        begin = f.select(first.equals(f.load("i64", end)), f.load("i64", following), first)
        _append(f, numbers, begin, last, line)
        f.store(begin + f.maximum(last - begin + (line - 1), 0) // line * line, following)
        f.store(last, end)
    return f


def _append(f: Function, numbers: Value, first: Value, last: Value, line: int) -> None:
    """Lists the places first, first + line, ... below last."""
    count = numbers[COUNT]
    with f.loop(first, last, line, name="line") as at:
        entry = f.load("i64", count)
        f.store(at, numbers[ENTRIES + entry])
        f.store(entry + 1, count)


def emit_read(element: str, slots: Slots, reach: tuple[int, int]) -> Function:
    """`read(job, low, high, list)`: the places in a plane of x of all lines that windows of columns low..high-1 read there.

    `reach` is a window's rows, and the elements of each.
    """
    arguments = [("job", "ptr"), ("low", "i64"), ("high", "i64"), ("list", "ptr")]
    f = Function("read", arguments, attributes="internal noinline nounwind")
    job, low, high, numbers = f.arguments
    numbers = numbers.of("i64")
    names = ("rows_d", "rows_h", "rows_w", "step_d", "step_h", "step_w", "x_d", "x_h", "x_image", "outer_count")
    s = {name: slots.read(f, job, name) for name in names}
    outer = slots.pointer(f, job, "outer", "i64")
    f.store(f.value(0), numbers[COUNT])
    with (
        f.loop(low // s["rows_w"], (high - 1) // s["rows_w"] + 1, name="row") as row,
        f.loop(0, s["outer_count"], name="outer") as o,
        f.loop(0, reach[0], name="e") as e,
    ):
        start, h, rest = row * s["rows_w"], row % s["rows_h"], row // s["rows_h"]
        d, n = rest % s["rows_d"], rest // s["rows_d"]
        origin = f.load("i64", outer[o * panel.READ + 3])
        place = origin + n * s["x_image"] + d * s["step_d"] * s["x_d"] + (h * s["step_h"] + e) * s["x_h"]
        first, last = f.maximum(low - start, 0) * s["step_w"], (f.minimum(high - start, s["rows_w"]) - 1) * s["step_w"]
        _append(f, numbers, place + first, place + last + reach[1], LINE // SIZES[element])
    return f


def emit_begin(f: Function, numbers: Value, array: Value, plane: Int, step: Value, planes: Value, tiles: Value) -> None:
    """Has the next `tiles` register tiles ask for a list's lines in `planes` planes, from `plane` on, `step` elements apart."""
    numbers = numbers.of("i64")
    each, several = f.maximum(tiles // planes, 1), f.maximum(tiles, 1)
    rate = (f.load("i64", numbers[COUNT]) + (each - 1)) // each
    times = (planes + (several - 1)) // several
    values = ((RATE, rate), (TIMES, times), (NEXT, 0), (LEFT, planes), (PLANE, plane), (STEP, step), (BASE, array))
    for at, value in values:
        f.store(f.value(value), numbers[at])


def emit_nothing(f: Function, numbers: Value) -> None:
    """A list that no tile asks for."""
    f.store(f.value(0), numbers.of("i64")[LEFT])


def asking(element: str) -> Finish:
    """Tiles that ask for their share of both lists, and leave their sums."""

    def ask(f: Function, tile: Tile, ir: Value, given: list[Value]) -> None:
        for numbers, write in zip((n.of("i64") for n in given), (True, False), strict=True):
            times = f.minimum(f.load("i64", numbers[TIMES]), f.load("i64", numbers[LEFT]))
            with f.loop(0, times, name="ask"):
                rate, first, count, plane, left = (f.load("i64", numbers[at]) for at in (RATE, NEXT, COUNT, PLANE, LEFT))
                array = f.load_pointer(numbers[BASE], element)[plane]
                with f.loop(first, f.minimum(first + rate, count), name="line") as entry:
                    f.prefetch(array[f.load("i64", numbers[ENTRIES + entry])], write=write, nearest=write)
                done = first + rate >= count
                f.store(f.select(done, 0, first + rate), numbers[NEXT])
                f.store(f.select(done, left - 1, left), numbers[LEFT])
                f.store(f.select(done, plane + f.load("i64", numbers[STEP]), plane), numbers[PLANE])

    return Finish("asking", "", (("to_write", "ptr"), ("to_read", "ptr")), ask, None)
