"""Storing the output: the phases of a row woven together, bias and activation applied, cropped to the result.

The sums of each phase stand in rows of their own, a vector of columns (see `columns`) after the other. A vector whose outputs
lie side by side in y is woven straight into it. Where it goes on in another row, each column is stored by itself; where y is
cropped, the vector is woven into a line of workspace, from which each run is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from math import prod

from upconv.codegen.ir import SIZES, Function, Int, Value, lanes_of, vector
from upconv.codegen.target import LINE
from upconv.kernels import columns
from upconv.kernels.activation import emit_activation
from upconv.kernels.job import Slots
from upconv.spec import Activation, Problem

SLOTS = ("y", "y_channel", "y_round", "bias")
ROW_SLOTS = ("phase_rows", "scratch_pitch")
ROUND = 16 << 20
"""Bytes of an output from which on whole lines of it are stored round the caches by Intel's servers (`Tile.streams`). Before they
store a line, these read it from memory, 7 GB/s a thread; past the caches they write 20. Measured: see `numbers`."""
Streams = Callable[[Int], Value]
"""A vector of phase a's sums."""


@dataclass(frozen=True, slots=True)
class Store:
    """What changes the code. `step` is the innermost out_step; one beyond twice the lanes is woven in squares (step 0).

    One that `streams` stores vectors that are whole lines of y round the caches where the job's `y_round` says so.
    """

    element: str
    lanes: int
    step: int
    activation: Activation | None
    streams: bool = False

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)


def store_of(element: str, lanes: int, step: int, activation: Activation | None, streams: bool = False) -> Store:
    """The store of a layer whose innermost out_step is `step`."""
    return Store(element, lanes, step if step <= 2 * lanes else 0, activation, streams and 0 < step <= lanes)


def numbers(problem: Problem) -> dict[str, int]:
    """The job's number of how y is stored: whether round the caches, where rows are whole vectors, and these whole lines.

    Measured over seven layers of 17 to 55 MB: 1.01 to 1.30 times as fast, 1.10 in the mean, with what reads the output next 0.99 to
    1.19. Outputs of 8 MB, which stay in the caches, 1.07, and 1.00 with their reader; where only some rows begin with a line 0.87.
    """
    spec, line = problem.spec, LINE // problem.itemsize
    plain = all(n == 1 for n in (*spec.kernel_size, *spec.stride))  # rows follow one another
    row = prod(problem.output_size) if plain else problem.output_size[-1]
    lines = row % (line * spec.stride[-1]) == 0 and spec.padding[-1][0] % line == 0
    return {"y_round": int(lines and prod(problem.output_shape) * problem.itemsize >= ROUND)}


def weave(f: Function, streams: list[Value]) -> list[Value]:
    """Vectors whose concatenation is streams[0][0], streams[1][0], ..., streams[0][1], ...

    >>> from upconv.codegen.ir import Function, Value
    >>> f = Function("w", [])
    >>> [v.type for v in weave(f, [Value(f, "%a", "<4 x float>"), Value(f, "%b", "<4 x float>")])]
    ['<4 x float>', '<4 x float>']
    """
    n = len(streams)
    lanes = lanes_of(streams[0].type)
    if n == 1:
        return streams
    if n % 2 == 0:
        evens, odds = weave(f, streams[0::2]), weave(f, streams[1::2])
        half = lanes // 2
        low = [i // 2 + (i % 2) * lanes for i in range(lanes)]
        pairs = zip(evens, odds, strict=True)
        return [v for a, b in pairs for v in (f.shuffle(a, b, low), f.shuffle(a, b, [i + half for i in low]))]
    return [_gathered(f, streams, [divmod(j * lanes + i, n)[::-1] for i in range(lanes)]) for j in range(n)]


def _gathered(f: Function, vectors: list[Value], source: list[tuple[int, int]]) -> Value:
    """A vector of elements of others: for each lane, which vector's and which lane's."""
    value, lanes = vectors[0], len(source)
    for v in range(1, len(vectors)):
        here = [lane if v == 1 else i for i, (_, lane) in enumerate(source)]
        value = f.shuffle(value, vectors[v], [lanes + lane if s == v else here[i] for i, (s, lane) in enumerate(source)])
    return value


def unweave(f: Function, vectors: list[Value]) -> list[Value]:
    """The streams whose woven vectors these are: elements 0, n, 2n, ..., then 1, n + 1, ... of n vectors."""
    n, lanes = len(vectors), lanes_of(vectors[0].type)
    if n == 1:
        return vectors
    if n % 2 == 0:
        pairs = list(zip(vectors[0::2], vectors[1::2], strict=True))
        halves = [unweave(f, [f.shuffle(a, b, range(first, 2 * lanes, 2)) for a, b in pairs]) for first in (0, 1)]
        return [stream for both in zip(*halves, strict=True) for stream in both]
    return [_gathered(f, vectors, [divmod(q * n + a, lanes) for q in range(lanes)]) for a in range(n)]


def cycles(rows: float, step: int, lanes: int, mixed: float) -> float:
    """Estimated cycles of storing `rows` rows of one vector of columns each, of which so many do not go straight into y."""
    squares = 2.5 * step * min(max(1.0, step / lanes), 2.0)
    return rows * (4.0 + squares + mixed * (12.0 + step))


def _woven(f: Function, store: Store, streams: Streams, offset: Value) -> list[Value]:
    """Vectors of `lanes` columns' outputs, all phases side by side."""
    return weave(f, [_finished(f, store, streams(a), offset) for a in range(store.step)])


def _columns(f: Function, store: Store, streams: Streams, offset: Value) -> list[list[tuple[int, Value]]]:
    """For each column of a vector (place, outputs) in pieces, where a column has more outputs than a vector has lanes.

    Each piece is a column of a square; what is left over is one as well, and overlaps, unless it fills parts of whole vectors.
    """
    lanes, step = store.lanes, store.step
    finished = [_finished(f, store, streams(a), offset) for a in range(step)]
    rest = step - lanes
    first = weave(f, finished[:lanes])
    if lanes % rest:
        return [[(0, a), (rest, b)] for a, b in zip(first, weave(f, finished[rest:]), strict=True)]
    woven = weave(f, finished[lanes:])
    parts = [f.part(woven[t * rest // lanes], t * rest % lanes, rest) for t in range(lanes)]
    return [[(0, a), (lanes, b)] for a, b in zip(first, parts, strict=True)]


def _emit_columns(
    f: Function, writer: Writer, to: Destination, p: columns.Parts, v: Value, found: list[list[tuple[int, Value]]]
) -> None:
    """Stores columns of more outputs than lanes one by one; where y is cropped, through a line."""
    lanes, step = writer.store.lanes, writer.store.step
    out = p.vector(f, v, columns.OUT)
    straight, complete = out >= 0, p.vector(f, v, columns.COMPLETE).equals(lanes)
    y = to.plane[to.row]

    def put(t: int, base: Value) -> None:
        for at, value in found[t]:
            f.store(value, base[at])

    with f.when(straight, name="straight"):
        for t in range(lanes):
            put(t, y[out + t * step])
    with f.otherwise(straight, name="apart"):
        with f.when(complete, name="complete"):
            for t in range(lanes):
                put(t, y[f.load("i64", p.outs[v * lanes + t])])
        with f.otherwise(complete, name="rare"):
            for t in range(lanes):
                put(t, to.line[t * step])
            f.call(writer.pieces, [to.job, to.table, to.room, v, to.line, to.plane, to.d, to.h])


def _finished(f: Function, store: Store, sums: Value, offset: Value) -> Value:
    return emit_activation(f, f.fadd(sums, f.splat(offset, store.type)), store.activation)


def emit_weave(
    f: Function, store: Store, streams: Streams, offset: Value, step: Value, out: Value, around: Int = 0
) -> None:  # fmt: skip
    """Writes `lanes` columns of all phases, side by side, at `out`; `offset` is the channel's bias, `around` is `y_round`."""
    lanes = store.lanes
    if 0 < store.step <= lanes:
        _store_straight(f, store, _woven(f, store, streams, offset), out, around)
        return
    with f.loop(0, step, lanes, name="a") as block:  # squares of phases x columns; the last overlaps the one before
        first = f.minimum(block, step - lanes)
        for i, column in enumerate(weave(f, [_finished(f, store, streams(first + a), offset) for a in range(lanes)])):
            f.store(column, out[step * i + first])


def emit_sums(f: Function, store: Store, sums: list[Value], offset: Value, out: Value) -> None:
    """The same for sums of several vectors of columns side by side, [phase][vector]; at most as many phases as lanes."""
    vectors = len(sums) // store.step
    for v in range(vectors):

        def phase(a: Int, v: int = v) -> Value:
            assert isinstance(a, int)
            return sums[a * vectors + v]

        emit_weave(f, store, phase, offset, f.value(store.step), out[v * store.lanes * store.step])


def emit_ends(f: Function, lanes: int, inner: tuple[Value, Value], q0: Value, q1: Value) -> tuple[Value, Value, Value, Value]:
    """(vectors at the head, those at the tail as well, where the inner part begins, where it ends) of positions q0 to q1.

    `inner` is from where to where a vector's reads and outputs may lie.
    """
    heads = (f.minimum(f.maximum(inner[0], q0), q1) - q0 + (lanes - 1)) // lanes
    low = f.minimum(q0 + heads * lanes, q1)
    high = f.maximum(f.minimum(inner[1], q1), low)
    high = f.select(high - low >= lanes, high, low)
    return heads, heads + (q1 - high + (lanes - 1)) // lanes, low, high


@dataclass(frozen=True, slots=True)
class Writer:
    """Emitted helpers that finish a vector's outputs."""

    store: Store
    copy: Function
    pieces: Function
    scatter: Function | None
    """None for phases that are woven in squares, or column by column."""

    @property
    def functions(self) -> list[Function]:
        return [self.copy, self.pieces, *([self.scatter] if self.scatter else [])]


def writer(store: Store, slots: Slots) -> Writer:
    """`pieces(job, table, room, v, line, plane, d, h)` copies the runs of a vector that is not whole from its line.

    They go to the rows of y that are d, h past those of phase 0; it is rare, so that it stands by itself. `scatter` does
    without it where it can.
    """
    copy = columns.emit_copy(store.element, store.lanes)
    pointers = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("v", "i64"), ("line", "ptr"), ("plane", "ptr")]
    f = Function("pieces", [*pointers, ("d", "i64"), ("h", "i64")], attributes="internal noinline cold nounwind")
    job, table, room, v, line, plane, d, h = f.arguments
    line, plane, p = line.of(store.element), plane.of(store.element), columns.parts(table, room, store.lanes)
    s = {name: slots.read(f, job, name) for name in ("out_d", "out_h", "out_w", "out_step_w")}
    row = (d * s["out_h"] + h) * s["out_w"]
    with f.loop(p.vector(f, v, columns.FIRST_RUN), p.vector(f, v, columns.LAST_RUN), name="run") as number:
        run = p.runs[number * columns.RUN]
        column, at, od, oh, low, high = (f.load("i64", run[i]) for i in range(columns.RUN))
        there = f.compare("ult", od + d, s["out_d"]) & f.compare("ult", oh + h, s["out_h"])
        with f.when(there, name="there"):
            f.call(copy, [line[column * s["out_step_w"] + low], plane[at + row], high - low])
    return Writer(store, copy, f, _scatter(store, f) if 0 < store.step <= store.lanes else None)


def _scatter(store: Store, pieces: Function) -> Function:
    """`scatter(job, table, room, v, line, plane, d, h, row, woven...)`: the outputs of a vector that is not whole."""
    pointers, names = ("job", "table", "line", "plane"), ("job", "table", "room", "v", "line", "plane", "d", "h", "row")
    arguments = [(n, "ptr" if n in pointers else "i64") for n in names]
    woven = [(f"w{j}", store.type) for j in range(store.step)]
    f = Function("scatter", [*arguments, *woven], attributes="internal noinline nounwind")
    job, table, room, v, line, plane, d, h, row, *values = f.arguments
    to = Destination(job, table, room, line.of(store.element), plane.of(store.element), d, h, row)
    _emit_apart(f, store, pieces, to, columns.parts(table, room, store.lanes), v, values)
    return f


def _emit_apart(
    f: Function, store: Store, pieces: Function, to: Destination, p: columns.Parts, v: Value, woven: list[Value]
) -> None:
    """The outputs of a vector that is not whole.

    Where all of its columns' outputs lie in y, as at the end of a row, each column is stored where it belongs, without a
    branch; elsewhere pieces are copied.
    """
    lanes, step = store.lanes, store.step
    complete = p.vector(f, v, columns.COMPLETE).equals(lanes)
    whole_columns = lanes % step == 0
    if not whole_columns:
        _store_all(f, woven, to.line, lanes)
    with f.when(complete, name="complete"):
        for i in range(lanes):
            if whole_columns:
                value = f.part(woven[i * step // lanes], i * step % lanes, step)
            else:
                value = f.load(vector(store.element, step), to.line[i * step])
            f.store(value, to.plane[to.row + f.load("i64", p.outs[v * lanes + i])])
    with f.otherwise(complete, name="rare"):
        if whole_columns:
            _store_all(f, woven, to.line, lanes)
        f.call(pieces, [to.job, to.table, to.room, v, to.line, to.plane, to.d, to.h])


def _store_all(f: Function, vectors: list[Value], to: Value, lanes: int) -> None:
    for j, value in enumerate(vectors):
        f.store(value, to[j * lanes])


def _store_straight(f: Function, store: Store, vectors: list[Value], to: Value, around: Int) -> None:
    """Stores vectors side by side: whole lines of y round the caches, where that is wanted."""
    if not store.streams:
        _store_all(f, vectors, to, store.lanes)
        return
    place = f.emit(f"ptrtoint ptr {to.text} to i64", "i64")
    lines = (f.value(around) > 0) & (place & f.value(LINE - 1)).equals(0)
    with f.when(lines, name="around"):
        for j, value in enumerate(vectors):
            f.stream(value, to[j * store.lanes])
    with f.otherwise(lines, name="cached"):
        _store_all(f, vectors, to, store.lanes)


def cached(f: Function, store: Store, around: Value) -> AbstractContextManager[None]:
    """What is done only where y is stored in the caches."""
    return f.when(around.equals(0), name="ask") if store.streams else nullcontext()


def emit_done(f: Function, store: Store, around: Value) -> None:
    """Waits until what went round the caches is there for other threads."""
    if store.streams:
        with f.when(around > 0, name="drained"):
            f.intrinsic("llvm.x86.sse", "void", [], suffix="sfence")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a vector's outputs go: rows of a channel's plane in y, d and h past those of phase 0, `row` elements on; and whether
    `around` the caches."""

    job: Value
    table: Value
    room: Value
    line: Value
    plane: Value
    d: Value
    h: Value
    row: Value
    around: Int = 0


def emit_vector(
    f: Function, writer: Writer, to: Destination, p: columns.Parts, v: Value, streams: Streams, offset: Value, step: Value,
    inline: bool = False,
) -> None:  # fmt: skip
    """Finishes one vector of columns, whose phases `streams` gives, in one row of y.

    `inline` spares the call where the columns lie apart: worth it where nothing else is done for them.
    """
    if writer.store.step > writer.store.lanes:
        _emit_columns(f, writer, to, p, v, _columns(f, writer.store, streams, offset))
        return
    out = p.vector(f, v, columns.OUT)
    straight = out >= 0
    y, line = to.plane[out + to.row], to.line
    if writer.scatter:
        woven = _woven(f, writer.store, streams, offset)
        with f.when(straight, name="straight"):
            _store_straight(f, writer.store, woven, y, to.around)
        with f.otherwise(straight, name="apart"):
            if inline:
                _emit_apart(f, writer.store, writer.pieces, to, p, v, woven)
            else:
                f.call(writer.scatter, [to.job, to.table, to.room, v, line, to.plane, to.d, to.h, to.row, *woven])
        return
    emit_weave(f, writer.store, streams, offset, step, f.select(straight, y, line))
    with f.otherwise(straight, name="rare"):
        f.call(writer.pieces, [to.job, to.table, to.room, v, line, to.plane, to.d, to.h])


def emit_rows(writer: Writer, slots: Slots, sums: int = 1) -> Function:
    """`store(job, table, room, first, last, scratch, line, y, channel, channels)`: finishes vectors first..last-1.

    They stand side by side in the scratch block, `channels` channels of them. `channel` is the first one's number among all
    output channels (for the bias), `y` its plane of image 0. Phase a of channel m is what stands in row
    `phase_rows[a][i][0] + m * phase_rows[a][i][1]`, added up over i below `sums`.
    """
    pointers = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("first", "i64"), ("last", "i64")]
    arguments = [*pointers, ("scratch", "ptr"), ("line", "ptr"), ("y", "ptr"), ("channel", "i64"), ("channels", "i64")]
    f = Function("store", arguments, attributes="internal noinline nounwind")
    job, table, room, first, last, scratch, line, y, channel, channels = f.arguments
    element, lanes = writer.store.element, writer.store.lanes
    scratch, line, y = scratch.of(element), line.of(element), y.of(element)
    bias, phase_rows = slots.pointer(f, job, "bias", element), slots.pointer(f, job, "phase_rows", "i64")
    names = ("y_channel", "scratch_pitch", "out_h", "out_w", "out_step_d", "out_step_h", "out_step_w", "y_round")
    s = {name: slots.read(f, job, name) for name in names}
    parts = columns.parts(table, room, lanes)
    with f.loop(0, channels, name="m") as m:
        offset, plane = f.load(element, bias[channel + m]), y[m * s["y_channel"]]
        with f.loop(0, s["out_step_d"], name="ad") as ad, f.loop(0, s["out_step_h"], name="ah") as ah:
            phase = (ad * s["out_step_h"] + ah) * s["out_step_w"]
            row = (ad * s["out_h"] + ah) * s["out_w"]
            to = Destination(job, table, room, line, plane, ad, ah, row, s["y_round"])

            def rows_of(a: Int, m: Value = m, phase: Value = phase) -> list[Value]:
                """Where the sums of phase a of channel m start in the scratch block."""
                places = [phase_rows[((phase + a) * sums + i) * 2] for i in range(sums)]
                return [scratch[(f.load("i64", at) + m * f.load("i64", at[1])) * s["scratch_pitch"]] for at in places]

            rows = [rows_of(a) for a in range(writer.store.step)]
            with f.loop(first, last, name="v") as v:

                def stream(a: Int, v: Value = v, rows: list[list[Value]] = rows) -> Value:
                    of = rows[a] if isinstance(a, int) else rows_of(a)
                    return reduce(f.fadd, [f.load(writer.store.type, row[(v - first) * lanes]) for row in of])

                place = plane[s["y_channel"] + to.row + parts.vector(f, v, columns.OUT)]
                emit_ask(f, writer.store, place, s["out_step_w"], s["y_round"])
                emit_vector(f, writer, to, parts, v, stream, offset, s["out_step_w"])
    return f


def emit_ask(f: Function, store: Store, place: Value, step: Int, around: Value) -> None:
    """Asks for the lines of a vector's outputs at a place, one channel on: sums come from the cache, only these from memory.

    Not where they go `around` the caches.
    """
    line = LINE // SIZES[store.element]
    if store.step:
        with cached(f, store, around):
            for at in range(0, store.lanes * store.step, line):
                f.prefetch(place[at], write=True)
    else:
        with f.loop(0, f.value(step) * store.lanes, line, name="ask") as at_:
            f.prefetch(place[at_], write=True)
