"""The code of overlap-add for arrays with their channels last: a block's inputs listed, their patches, rows of y from these.

Nothing but the tile and the activation is known when it is written: taps, strides and channels come in the job.
"""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import SIZES, Carry, Function, Int, Value, module
from upconv.kernels import columns, microkernel, scatter
from upconv.kernels import job as jobs
from upconv.kernels.activation import emit_activation
from upconv.kernels.register_tile import Tile
from upconv.spec import Activation

SLOTS = jobs.Slots(
    (
        "x", "weight", "bias", "y", "work", "phases", "taps", "channels", "channels_out", "size_d", "size_h", "size_w",
        "out_d", "out_h", "out_w", "step_d", "step_h", "step_w", "least_d", "least_h", "most_d", "most_h", "crop_w", "reach",
        "whole", "tail", "cut", "wide", "narrow", "pitch", "vectors", "room", "rows", "ring", "spare", "table_bytes",
        "row_bytes", "bias_bytes", "met_bytes",
    )
)  # fmt: skip
TOGETHER = 4
"""Positions whose outputs are summed together."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on: a turned tile, and what is applied as the sums are stored."""

    tile: Tile
    activation: Activation | None


@dataclass(frozen=True, slots=True)
class _Block:
    """A task's numbers: its first image, the first plane of x and how many, the lines of a plane that have cells at a time, the
    first position, and cells a line."""

    image: Value
    low_d: Value
    planes: Value
    ring: Value
    first: Value
    cells: Value

    def line(self, n: Value, d: Value, h: Value) -> Value:
        """The number of the first cell of a line of x."""
        return (((n - self.image) * self.planes + d - self.low_d) * self.ring + h % self.ring) * self.cells


def _slots(f: Function, job: Value) -> dict[str, Value]:
    return {name: SLOTS.read(f, job, name) for name in SLOTS.names[SLOTS.names.index("channels") :]}


def _block(f: Function, s: dict[str, Value], work: list[Value]) -> _Block:
    """The block of a task. Planes outside x have no cells; positions outside it have, of zeros."""
    image, _, d, end_d, _, _, w, end_w = work
    low, stop = f.maximum(d + s["least_d"], 0), f.minimum(end_d + s["most_d"], s["size_d"])
    positions = (end_w - w + (TOGETHER - 1)) // TOGETHER * TOGETHER
    return _Block(image, low, f.maximum(stop - low, 0), s["ring"], w - s["reach"] + 1, positions + s["reach"] - 1)


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    element = code.tile.element
    copy = columns.emit_copy(element, code.tile.lanes)
    do_table, do_patches, do_row = _emit_table(code), _emit_patches(code), _emit_row(code, copy)

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = _slots(f, job)
        place = SLOTS.pointer(f, job, "work", "i64")[number * scatter.WORK]
        work = scatter.emit_work(f, place)
        image, end_image, d, end_d, h, end_h, _, _ = work
        table, rest = workspace, workspace[s["table_bytes"]]
        row, rest = rest, rest[s["row_bytes"]]
        bias, rest = rest.of(element), rest[s["bias_bytes"]]
        met, patches = rest, rest[s["met_bytes"]]
        given = SLOTS.pointer(f, job, "bias", element)
        with f.loop(0, s["vectors"] * code.tile.lanes, name="bias") as i:
            f.store(f.load(element, given[i % s["channels_out"]]), bias[i])
        weight, channels = SLOTS.pointer(f, job, "weight", element), s["channels"]
        done = Carry([f.maximum(h + s["least_h"], 0)])  # lines of x up to here have their patches
        with f.loop(h, end_h, s["rows"], name="rows", carry=done) as first:
            end = f.minimum(first + s["rows"], end_h)
            (low,) = done.values
            high = f.maximum(f.minimum(end + s["most_h"], s["size_h"]), low)
            count = f.call(do_table, [job, place, table, patches, low, high])
            f.call(do_patches, [table, s["room"], count, weight, channels, s["wide"], s["narrow"]])
            with (
                f.loop(image, end_image, name="n") as n,
                scatter.emit_outputs(f, s, "d", d, end_d) as (qd, od, phase_d),
                scatter.emit_outputs(f, s, "h", first, end) as (qh, oh, phase_h),
            ):
                y = SLOTS.pointer(f, job, "y", element)
                line = y[((n * s["out_d"] + od) * s["out_h"] + oh) * s["out_w"] * s["channels_out"]]
                f.call(do_row, [job, place, phase_d * s["step_h"] + phase_h, n, qd, qh, patches, bias, met, row, line])
            done.next = [high]

    return module([copy, do_table, do_patches, do_row, jobs.emit_entry("entry", SLOTS, task)])


def _emit_table(code: Code) -> Function:
    """`table(job, work, table, patches, low, high)`: where each input of the lines low..high-1 stands, and then where each one's
    patch does; how many.

    The last ones are repeated to a whole tile, their patches in a cell that nobody reads. Cells of positions outside x are zeros.
    """
    tile, many = code.tile, code.tile.turned
    parameters = [(n, "i64" if n in ("low", "high") else "ptr") for n in ("job", "work", "table", "patches", "low", "high")]
    f = Function("table", parameters, "i64", "internal noinline nounwind")
    job, work, table, patches, low_h, high_h = f.arguments
    s = _slots(f, job)
    numbers = scatter.emit_work(f, work.of("i64"))
    b = _block(f, s, numbers)
    end_image, end_w = numbers[1], numbers[7]
    x = SLOTS.pointer(f, job, "x", tile.element)
    table, patches = table.of("i64"), patches.of(tile.element)
    sources, targets, pitch = table, table[s["room"]], s["pitch"]
    zero = Value(f, "zeroinitializer", tile.type)
    low = f.minimum(f.maximum(b.first, 0), b.first + b.cells)
    high = f.maximum(f.minimum(end_w, s["size_w"]), low)
    images, planes, lines = Carry([f.value(0)]), Carry([]), Carry([])
    with f.loop(b.image, end_image, name="n", carry=images) as n:
        planes.values = images.values
        with f.loop(b.low_d, b.low_d + b.planes, name="d", carry=planes) as d:
            lines.values = planes.values
            with f.loop(low_h, high_h, name="h", carry=lines) as h:
                cells = patches[b.line(n, d, h) * pitch]
                line = x[((n * s["size_d"] + d) * s["size_h"] + h) * s["size_w"] * s["channels"]]
                (first,) = lines.values
                with f.loop(low, high, name="w") as w:
                    at = first + w - low
                    f.store(line[w * s["channels"]], sources[at], 8)
                    f.store(cells[(w - b.first) * pitch], targets[at], 8)
                for start, stop in ((f.value(0), low - b.first), (high - b.first, b.cells)):
                    with f.loop(start * pitch, stop * pitch, tile.lanes, name="outside") as i:
                        f.store(zero, cells[i])
                lines.next = [first + high - low]
            planes.next = lines.results
        images.next = planes.results
    (count,) = images.results
    end = (count + (many - 1)) // many * many
    with f.loop(count, end, name="rest") as i:
        f.store(f.load_pointer(sources[count - 1]), sources[i], 8)
        f.store(patches[s["spare"] * pitch], targets[i], 8)
    f.do(f"ret i64 {count.text}")
    return f


def _emit_patches(code: Code) -> Function:
    """`patches(table, room, count, weight, channels, wide, narrow)`: the patches of so many inputs, each a row of sums.

    A patch has `wide` whole tiles of rows, and `narrow` ones more of a single vector each.
    """
    tile, many = code.tile, code.tile.turned
    names = ("table", "room", "count", "weight", "channels", "wide", "narrow")
    parameters = [(n, "ptr" if n in ("table", "weight") else "i64") for n in names]
    f = Function("patches", parameters, attributes="internal noinline nounwind")
    table, room, count, weight, channels, wide, narrow = f.arguments
    table, weight = table.of("i64"), weight.of(tile.element)
    zero = Value(f, "zeroinitializer", tile.type)

    def sums_of(
        chunk: Int, vectors: int, sources: list[Value], targets: list[Value], ask: Value | None = None, first: Int = 0
    ) -> None:
        left = weight[chunk * channels * tile.rows + first]
        sums = [zero] * (many * vectors)
        apart = many * SIZES[tile.element] // microkernel.lines_of(tile.type, vectors)  # that steps of all channels reach the end
        sums, _ = microkernel.rows_times_scalars(f, tile.type, sums, left, tile.rows, vectors, sources, channels, ask, apart)
        for j, target in enumerate(targets):
            for v in range(vectors):
                f.store(sums[j * vectors + v], target[chunk * tile.rows + first + v * tile.lanes])

    with f.loop(0, count, many, name="t") as t:
        sources, targets = ([f.load_pointer(start[t + j], tile.element) for j in range(many)] for start in (table, table[room]))
        following = f.load_pointer(table[t + many], tile.element)  # where the next tile's inputs begin
        with f.when(wide > 0, name="first"):
            sums_of(f.value(0), tile.rows // tile.lanes, sources, targets, following)
        with f.loop(1, wide, name="wide") as chunk:
            sums_of(chunk, tile.rows // tile.lanes, sources, targets)
        with f.loop(0, narrow, name="narrow") as rest:
            sums_of(wide, 1, sources, targets, following, rest * tile.lanes)
    return f


def _emit_row(code: Code, copy: Function) -> Function:
    """`row(job, work, phase, n, qd, qh, patches, bias, met, sums, line)`: a block's part of one row of y.

    Each position's sums are whole vectors, whose unused lanes reach over the next position's; so the last vectors go first.
    """
    tile = code.tile
    names = ("job", "work", "phase", "n", "qd", "qh", "patches", "bias", "met", "sums", "line")
    parameters = [(n, "i64" if n in ("phase", "n", "qd", "qh") else "ptr") for n in names]
    f = Function("row", parameters, attributes="internal noinline nounwind")
    job, work, phase, n, qd, qh, patches, bias, met, to, line = f.arguments
    bias, to, line, patches = (pointer.of(tile.element) for pointer in (bias, to, line, patches))
    met = met.of("i64")
    s = _slots(f, job)
    numbers = scatter.emit_work(f, work.of("i64"))
    first, end, pitch, each = numbers[6], numbers[7], s["pitch"], s["step_w"] * s["channels_out"]
    b = _block(f, s, numbers)

    def entry(tap: Value, d: Value, h: Value, back: Value) -> list[Value]:
        """Where what a row's outputs have of the patches of a row of taps begins: an input further back each."""
        line = patches[b.line(n, d, h) * pitch + tap * s["channels_out"]]
        return [line[(s["reach"] - 1 - back) * pitch + back * each]]

    count = scatter.emit_met(f, SLOTS, job, s, phase, (qd, qh), met, entry)
    cut = met[s["cut"]]
    some_cut = f.select(s["tail"].equals(0), 0, count)
    zero = Value(f, "zeroinitializer", tile.type)
    with f.loop(0, s["vectors"], name="v") as back:
        at = (s["vectors"] - 1 - back) * tile.lanes
        lit = f.lanes_between(at, 0, s["tail"], tile.lanes)
        offset = f.load(tile.type, bias[at])
        with f.loop(0, end - first, TOGETHER, name="q") as q:
            whole = Carry([offset] * TOGETHER)
            for listed, many, masked in ((met, count * s["whole"], False), (cut, some_cut, True)):
                with f.loop(0, many, name="met", carry=whole) as i:
                    start = f.load_pointer(listed[i], tile.element)[q * pitch + at]
                    values = [f.load(tile.type, start[pitch * j]) for j in range(TOGETHER)]
                    values = [f.select(lit, value, zero) for value in values] if masked else values
                    whole.next = [f.fadd(total, value) for total, value in zip(whole.values, values, strict=True)]
                whole = Carry(whole.results)
            for j, total in enumerate(whole.values):
                f.store(emit_activation(f, total, code.activation), to[(q + j) * each + at])
    low = f.maximum(s["step_w"] * first - s["crop_w"], 0)
    high = f.minimum(s["step_w"] * end - s["crop_w"], s["out_w"])
    skipped = (low + s["crop_w"] - s["step_w"] * first) * s["channels_out"]
    f.call(copy, [to[skipped], line[low * s["channels_out"]], (high - low) * s["channels_out"]])
    return f
