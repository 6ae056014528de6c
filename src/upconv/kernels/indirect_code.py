"""The code of the indirect kernel: a table of what each column reads and writes, and the tile that goes by it.

Where arrays have their channels `first`, each task copies x to channels-last before, and scatters its sums over the channels of y.
"""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import SIZES, Carry, Function, Value, lanes_of, module, vector
from upconv.codegen.target import LINE
from upconv.kernels import columns, microkernel, positions, reorder
from upconv.kernels import job as jobs
from upconv.kernels.activation import emit_activation
from upconv.kernels.register_tile import Tile
from upconv.spec import Activation

SLOTS = jobs.Slots(
    (
        *positions.SLOTS, "weight", "bias", "work", "chunks", "channels", "channels_out", "groups", "weight_group", "table_bytes",
        "x_bytes", "batch", "y_channel", "entries",
    )
)  # fmt: skip
WORK, CHUNK = 5, 4
"""Numbers of each of a task's entries: set, first column, end, first chunk, end; and of a chunk: place in y, first channel,
channels, place in the weights."""

SHORT = 320
"""Products a sum, of tiles that ask for the lines of y that they will write, on Intel's servers. Measured: 1.055 over 35 layers,
most of them with as few; 1.015 over 88 if all of them do, 0.9 for some long sums."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on: a turned tile, what is applied as the sums are stored, and the arrays' order."""

    tile: Tile
    activation: Activation | None
    first: bool = False
    streams: int = 1
    ahead: int = 0
    writes: bool = False


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = code.tile
    store = _emit_scatter(tile.element) if code.first else columns.emit_copy(tile.element, tile.lanes)
    do_table = positions.emit_table(SLOTS, tile.element, tile.turned)
    do_tiles = [_emit_tile(code, tile.rows // tile.lanes, store, "wide"), _emit_tile(code, 1, store, "narrow")]
    copies = [reorder.emit_part(tile.element, SQUARE // SIZES[tile.element], to_last=True)] if code.first else []

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        table, x = workspace, SLOTS.pointer(f, job, "x", tile.element)
        copy, line = (workspace[at].of(tile.element) for at in (s["table_bytes"], s["table_bytes"] + s["x_bytes"]))
        if code.first:
            x = _emit_copied(f, s, copies[0], x, copy)
        with f.loop(0, s["entries"], name="entry") as entry:
            work = SLOTS.pointer(f, job, "work", "i64")[(number * s["entries"] + entry) * WORK]
            set_, low, high, first_chunk, end_chunk = (f.load("i64", work[i]) for i in range(WORK))
            row = SLOTS.pointer(f, job, "sets", "i64")[set_ * positions.SET]
            taps, width = f.load("i64", row[1]), high - low
            f.call(do_table, [job, row, table, low, high, x])
            with f.loop(0, s["groups"], name="group") as group, f.loop(first_chunk, end_chunk, name="chunk") as chunk:
                here = SLOTS.pointer(f, job, "chunks", "i64")[chunk * CHUNK]
                place, channel, channels, at = (f.load("i64", here[i]) for i in range(CHUNK))
                weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"] + at]
                first = group * s["channels_out"]
                bias, to = SLOTS.pointer(f, job, "bias", tile.element)[first + channel], first * s["y_channel"] + place
                reading = [table, width, taps, group * s["channels"], weight, s["channels"]]
                arguments = [*reading, to, s["y_channel"], bias, channels, line]
                narrow = channels <= tile.lanes
                with f.when(narrow, name="narrow"):
                    f.call(do_tiles[1], arguments)
                with f.otherwise(narrow, name="wide"):
                    f.call(do_tiles[0], arguments)

    return module([store, *copies, do_table, *do_tiles, jobs.emit_entry("entry", SLOTS, task)])


_TASK_SLOTS = (
    "channels", "channels_out", "groups", "weight_group", "table_bytes", "x_bytes", "batch", "y_channel", "entries", "x_channels",
    "size_d", "size_h", "size_w",
)  # fmt: skip
SQUARE = 16
"""Bytes of a vector that x is copied in: images are of few positions, and a vector of them must fit."""


def _emit_copied(f: Function, s: dict[str, Value], copy: Function, x: Value, to: Value) -> Value:
    """All of x, its channels last, in the workspace."""
    places = s["size_d"] * s["size_h"] * s["size_w"]
    image = places * s["x_channels"]
    with f.loop(0, s["batch"], name="image") as n:
        f.call(copy, [x[n * image], to[n * image], places, s["x_channels"], places, 0, places])
    return to


def _emit_scatter(element: str) -> Function:
    """`scatter(from, to, count, apart)`: elements that follow one another, to places so many `apart`."""
    f = Function("scatter", [("from", "ptr"), ("to", "ptr"), ("count", "i64"), ("apart", "i64")],
                 attributes="internal noinline nounwind")  # fmt: skip
    source, to, count, apart = f.arguments
    source, to = source.of(element), to.of(element)
    with f.loop(0, count, name="i") as i:
        f.store(f.load(element, source[i]), to[i * apart])
    return f


def _emit_tile(code: Code, vectors: int, store: Function, name: str) -> Function:
    """`tile(table, width, taps, x_at, weight, channels, y_at, y_channel, bias, valid, line)`: the sums of all columns of a table.

    A tile has `vectors` of output channels, of which `valid` are stored, `y_channel` elements apart; `x_at` and `y_at` are added to
    the table's pointers.
    """
    tile, many, element = code.tile, code.tile.turned, code.tile.element
    pointers = ("table", "weight", "bias", "line")
    names = ("table", "width", "taps", "x_at", "weight", "channels", "y_at", "y_channel", "bias", "valid", "line")
    f = Function(name, [(n, "ptr" if n in pointers else "i64") for n in names], attributes="internal noinline nounwind")
    table, width, taps, x_at, weight, channels, y_at, y_channel, bias, valid, line = f.arguments
    table, weight, bias, line = table.of("i64"), weight.of(element), bias.of(element), line.of(element)
    type_ = vector(element, tile.lanes)
    zero = Value(f, "zeroinitializer", type_)
    offsets = [
        f.masked_load(type_, bias[v * tile.lanes], f.lanes_between(v * tile.lanes, 0, valid, tile.lanes)) for v in range(vectors)
    ]
    full = valid.equals(vectors * tile.lanes)
    # what the next chunk multiplies is asked for, by each register tile as large a share; or what this one soon will
    tiles, lines = (width + (many - 1)) // many, microkernel.lines_of(type_, vectors)
    apart, following = microkernel.apart_for(tiles), weight[taps * channels * tile.rows].of("i8")
    with f.loop(0, tiles, name="t") as t:
        row = table[t * (taps + 1) * many]
        over_taps = Carry([*[zero] * (many * vectors), weight])
        if code.writes:
            _ask_written(f, code, row, taps, channels, y_at, vectors)
        share = following[t * taps * channels * (lines * apart)]
        with f.loop(0, taps, name="tap", carry=over_taps) as tap:
            sources = [f.load_pointer(row[tap * many + j], element)[x_at] for j in range(many)]
            *sums, left = over_taps.values
            ask = share[tap * channels * (lines * apart)] if tile.asks else None
            if code.ahead:
                ask = left.of("i8")[code.ahead]
            sums, left = microkernel.rows_times_scalars(
                f, type_, sums, left, tile.rows, vectors, sources, channels, ask, LINE if code.ahead else apart, code.streams
            )
            over_taps.next = [*sums, left]
        sums = over_taps.results[:-1]
        here = width - t * many
        for j in range(many):
            with f.when(here > j, name="column"):
                to = f.load_pointer(row[taps * many + j], element)[y_at]
                done = [emit_activation(f, f.fadd(sums[j * vectors + v], offsets[v]), code.activation) for v in range(vectors)]
                if code.first:
                    for v, value in enumerate(done):
                        f.store(value, line[v * tile.lanes])
                    f.call(store, [line, to, valid, y_channel])
                    continue
                with f.when(full, name="full"):
                    for v, value in enumerate(done):
                        f.store(value, to[v * tile.lanes])
                with f.otherwise(full, name="part"):
                    _store_part(f, done, to, valid, line, store)
    return f


def _ask_written(f: Function, code: Code, row: Value, taps: Value, channels: Value, y_at: Value, vectors: int) -> None:
    """Asks for the lines that a tile will write, where its sums are short."""
    with f.when(taps * channels <= SHORT, name="ask"):
        for j in range(code.tile.turned):
            to = f.load_pointer(row[taps * code.tile.turned + j], code.tile.element)[y_at]
            for v in range(vectors):
                f.prefetch(to[v * code.tile.lanes], write=True)


def _store_part(f: Function, values: list[Value], to: Value, valid: Value, line: Value, copy: Function) -> None:
    """Stores the first `valid` elements of values that follow one another."""
    lanes = lanes_of(values[0].type)
    for v, value in enumerate(values):
        left = valid - v * lanes
        with f.when(left >= lanes, name="whole"):
            f.store(value, to[v * lanes])
        with f.when((left > 0) & (left < lanes), name="rest"):
            f.store(value, line)
            f.call(copy, [line, to[v * lanes], left])
