"""The code of the indirect kernel: a table of what each column reads and writes, and the tile that goes by it."""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import Carry, Function, Value, lanes_of, module, vector
from upconv.kernels import columns, microkernel, positions
from upconv.kernels import job as jobs
from upconv.kernels.activation import emit_activation
from upconv.kernels.register_tile import Tile
from upconv.spec import Activation

SLOTS = jobs.Slots(
    (
        *positions.SLOTS, "weight", "bias", "work", "chunks", "channels", "channels_out", "groups", "weight_group", "table_bytes",
    )
)  # fmt: skip
WORK, CHUNK = 5, 4
"""Numbers a task: set, first column, end, first chunk, end; a chunk: place in y, first channel, channels, place in the weights."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on: a turned tile, and what is applied as the sums are stored."""

    tile: Tile
    activation: Activation | None


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = code.tile
    copy, do_table = columns.emit_copy(tile.element, tile.lanes), positions.emit_table(SLOTS, tile.element, tile.turned)
    do_tiles = [_emit_tile(code, tile.rows // tile.lanes, copy, "wide"), _emit_tile(code, 1, copy, "narrow")]

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in ("channels", "channels_out", "groups", "weight_group", "table_bytes")}
        work = SLOTS.pointer(f, job, "work", "i64")[number * WORK]
        set_, low, high, first_chunk, end_chunk = (f.load("i64", work[i]) for i in range(WORK))
        row = SLOTS.pointer(f, job, "sets", "i64")[set_ * positions.SET]
        taps, width = f.load("i64", row[1]), high - low
        table, line = workspace, workspace[s["table_bytes"]].of(tile.element)
        f.call(do_table, [job, row, table, low, high])
        with f.loop(0, s["groups"], name="group") as group, f.loop(first_chunk, end_chunk, name="chunk") as chunk:
            entry = SLOTS.pointer(f, job, "chunks", "i64")[chunk * CHUNK]
            place, channel, channels, at = (f.load("i64", entry[i]) for i in range(CHUNK))
            weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"] + at]
            first = group * s["channels_out"]
            bias = SLOTS.pointer(f, job, "bias", tile.element)[first + channel]
            arguments = [table, width, taps, group * s["channels"], weight, s["channels"], first + place, bias, channels, line]
            narrow = channels <= tile.lanes
            with f.when(narrow, name="narrow"):
                f.call(do_tiles[1], arguments)
            with f.otherwise(narrow, name="wide"):
                f.call(do_tiles[0], arguments)

    return module([copy, do_table, *do_tiles, jobs.emit_entry("entry", SLOTS, task)])


def _emit_tile(code: Code, vectors: int, copy: Function, name: str) -> Function:
    """`tile(table, width, taps, x_at, weight, channels, y_at, bias, valid, line)`: the sums of all columns of a table.

    A tile has `vectors` of output channels, of which `valid` are stored; `x_at` and `y_at` are added to the table's pointers.
    """
    tile, many, element = code.tile, code.tile.turned, code.tile.element
    pointers = ("table", "weight", "bias", "line")
    names = ("table", "width", "taps", "x_at", "weight", "channels", "y_at", "bias", "valid", "line")
    f = Function(name, [(n, "ptr" if n in pointers else "i64") for n in names], attributes="internal noinline nounwind")
    table, width, taps, x_at, weight, channels, y_at, bias, valid, line = f.arguments
    table, weight, bias, line = table.of("i64"), weight.of(element), bias.of(element), line.of(element)
    type_ = vector(element, tile.lanes)
    zero = Value(f, "zeroinitializer", type_)
    offsets = [
        f.masked_load(type_, bias[v * tile.lanes], f.lanes_between(v * tile.lanes, 0, valid, tile.lanes)) for v in range(vectors)
    ]
    full = valid.equals(vectors * tile.lanes)
    # what the next chunk multiplies is asked for, by each register tile as large a share
    tiles, lines = (width + (many - 1)) // many, microkernel.lines_of(type_, vectors)
    apart, following = microkernel.apart_for(tiles), weight[taps * channels * tile.rows].of("i8")
    with f.loop(0, tiles, name="t") as t:
        row = table[t * (taps + 1) * many]
        over_taps = Carry([*[zero] * (many * vectors), weight])
        share = following[t * taps * channels * (lines * apart)]
        with f.loop(0, taps, name="tap", carry=over_taps) as tap:
            sources = [f.load_pointer(row[tap * many + j], element)[x_at] for j in range(many)]
            *sums, left = over_taps.values
            ask = share[tap * channels * (lines * apart)] if tile.asks else None
            sums, left = microkernel.rows_times_scalars(f, type_, sums, left, tile.rows, vectors, sources, channels, ask, apart)
            over_taps.next = [*sums, left]
        sums = over_taps.results[:-1]
        here = width - t * many
        for j in range(many):
            with f.when(here > j, name="column"):
                to = f.load_pointer(row[taps * many + j], element)[y_at]
                done = [emit_activation(f, f.fadd(sums[j * vectors + v], offsets[v]), code.activation) for v in range(vectors)]
                with f.when(full, name="full"):
                    for v, value in enumerate(done):
                        f.store(value, to[v * tile.lanes])
                with f.otherwise(full, name="part"):
                    _store_part(f, done, to, valid, line, copy)
    return f


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
