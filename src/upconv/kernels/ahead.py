"""The lines of y that a block will write, asked for while its sums go on.

Sums of a block come from the caches, one GEMM after the other, and memory has nothing to do; then all of them are stored, and
there is nothing to do but to wait for memory. So the places of a channel's lines are listed once a task, and every register tile
asks for its share of them: they are there when the sums are.
"""

from __future__ import annotations

from upconv.codegen.ir import SIZES, Function, Value
from upconv.codegen.target import LINE
from upconv.kernels import columns
from upconv.kernels.job import Slots
from upconv.kernels.microkernel import Finish, Tile

COUNT, RATE, NEXT, LEFT, PLANE, STEP, BASE, ENTRIES = range(8)
"""Numbers in front of the list: its entries, how many a tile asks for, the next one, the planes that are left, this plane's place
in y and the next one's distance, and y itself."""

NOWHERE = -(1 << 62)
"""The end of no run."""


def size(entries: int) -> int:
    """Bytes of a list with so many entries."""
    return 8 * (ENTRIES + entries)


def most_entries(room: int, rows: int, step: int, item: int, halves: int) -> int:
    """Entries that a block of `room` columns has at most: `rows` rows of y a column, `step` elements of each."""
    return halves * rows * room * (1 + -(-step * item // LINE))


def emit_list(element: str, lanes: int, slots: Slots, halves: int) -> Function:
    """`list_lines(job, table, room, vectors, list)`: the places in a plane of y of all lines that a block writes there.

    Runs that follow one another in y are taken as one. With two halves, the lines are those of two planes, `channels_out` apart.
    """
    arguments = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("vectors", "i64"), ("list", "ptr")]
    f = Function("list_lines", arguments, attributes="internal noinline nounwind")
    job, table, room, vectors, numbers = f.arguments
    p, numbers, line = columns.parts(table, room, lanes), numbers.of("i64"), LINE // SIZES[element]
    names = ("out_d", "out_h", "out_w", "out_step_d", "out_step_h", "channels_out", "y_channel")
    s = {name: slots.read(f, job, name) for name in names}
    count, end, following = (numbers[at] for at in (COUNT, PLANE, NEXT))
    f.store(f.value(0), count)
    f.store(f.value(NOWHERE), end)
    with (
        f.loop(0, halves, name="half") as half,
        f.loop(0, s["out_step_d"], name="d") as d,
        f.loop(0, s["out_step_h"], name="h") as h,
        f.loop(0, vectors, name="v") as v,
        f.loop(p.vector(f, v, columns.FIRST_RUN), p.vector(f, v, columns.LAST_RUN), name="run") as number,
    ):
        run = p.runs[number * columns.RUN]
        _, place, od, oh, low, high = (f.load("i64", run[i]) for i in range(columns.RUN))
        there = f.compare("ult", od + d, s["out_d"]) & f.compare("ult", oh + h, s["out_h"])
        first = half * s["channels_out"] * s["y_channel"] + place + (d * s["out_h"] + h) * s["out_w"]
        last = first + f.select(there, high - low, 0)
        begin = f.select(first.equals(f.load("i64", end)), f.load("i64", following), first)
        f.store(begin, following)
        with f.loop(begin, last, line, name="line") as at:
            entry = f.load("i64", count)
            f.store(at, numbers[ENTRIES + entry])
            f.store(entry + 1, count)
            f.store(at + line, following)
        f.store(last, end)
    return f


def emit_begin(f: Function, numbers: Value, y: Value, plane: Value, step: Value, planes: Value, tiles: Value) -> None:
    """Has the next `tiles` register tiles ask for the lines of `planes` planes of y, from `plane` on, `step` elements apart."""
    numbers = numbers.of("i64")
    each = f.maximum(tiles // planes, 1)
    rate = (f.load("i64", numbers[COUNT]) + (each - 1)) // each
    for at, value in ((RATE, rate), (NEXT, f.value(0)), (LEFT, planes), (PLANE, plane), (STEP, step), (BASE, y)):
        f.store(value, numbers[at])


def asking(element: str) -> Finish:
    """Tiles that ask for their share of a list's lines, and leave their sums."""

    def ask(f: Function, tile: Tile, ir: Value, given: list[Value]) -> None:
        numbers = given[0].of("i64")
        rate, first, count, left, plane = (f.load("i64", numbers[at]) for at in (RATE, NEXT, COUNT, LEFT, PLANE))
        with f.when(left > 0, name="ask"):
            y = f.load_pointer(numbers[BASE], element)[plane]
            with f.loop(first, f.minimum(first + rate, count), name="line") as entry:
                f.prefetch(y[f.load("i64", numbers[ENTRIES + entry])], write=True)
            done = first + rate >= count
            f.store(f.select(done, 0, first + rate), numbers[NEXT])
            f.store(f.select(done, left - 1, left), numbers[LEFT])
            f.store(f.select(done, plane + f.load("i64", numbers[STEP]), plane), numbers[PLANE])

    return Finish("asking", "", (("asked", "ptr"),), ask, None)
