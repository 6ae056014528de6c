"""The code of overlap-add row by row: inputs copied, a GEMM of their patches, rows of y added up from these.

Besides the tile and the store only the phases of the innermost dimension are known when it is written: taps and channels come in
the job.
"""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import SIZES, Carry, Function, Int, Value, module
from upconv.codegen.target import LINE
from upconv.kernels import columns, microkernel, pack, scatter, store
from upconv.kernels import job as jobs
from upconv.kernels.register_tile import Tile
from upconv.kernels.store import Store

SLOTS = jobs.Slots(
    (
        "x", "weight", "bias", "y", "work", "phases", "taps", "all", "channels", "channels_out", "groups", "size_d", "size_h",
        "size_w", "out_d", "out_h", "out_w", "step_d", "step_h", "step_w", "least_d", "least_h", "most_d", "most_h", "crop_w",
        "reach", "whole", "cut", "tile_blocks", "tap_count", "rows", "ring", "lines", "cells", "panel_pitch", "plane_pitch",
        "pitch", "line_bytes", "met_bytes", "panel_bytes",
    )
)  # fmt: skip
MET = 2
"""Numbers a row of patches that an output meets."""
SUMS = 8
"""Sums at a time: as many as the latency of an addition asks for, and half of the registers hold."""
PLACES = 4
"""Channels that are copied in turn: memory gives more to several readers. 1.02 over 56 layers, up to 1.18."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on. A row's last taps serve `rest` phases, where these are not all."""

    tile: Tile
    store: Store
    rest: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """Vectors of positions whose phases are summed at a time: as many as there are sums for, then fewer."""
        most = max(1, SUMS // self.store.step)
        return tuple(sorted({most, max(1, most // 2), 1}, reverse=True))


@dataclass(frozen=True, slots=True)
class _Block:
    """A task's numbers: its first plane of x and how many, the first column of x and how many."""

    low_d: Value
    planes: Value
    first: Value
    cells: Value


def _slots(f: Function, job: Value) -> dict[str, Value]:
    return {name: SLOTS.read(f, job, name) for name in SLOTS.names[SLOTS.names.index("channels") :]}


def _block(f: Function, s: dict[str, Value], work: list[Value]) -> _Block:
    """The block of a task: planes and columns outside x have no cells."""
    d, end_d, w, end_w = work[2], work[3], work[6], work[7]
    low, stop = f.maximum(d + s["least_d"], 0), f.minimum(end_d + s["most_d"], s["size_d"])
    first, last = f.maximum(w - s["reach"] + 1, 0), f.minimum(end_w, s["size_w"])
    return _Block(low, f.maximum(stop - low, 0), first, f.maximum(last - first, 0))


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = code.tile
    copy = columns.emit_copy(tile.element, tile.lanes)
    do_tiles = microkernel.emit_both(tile)
    do_lines, do_row = _emit_lines(code, copy, do_tiles), _emit_row(code, copy)

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = _slots(f, job)
        place = SLOTS.pointer(f, job, "work", "i64")[number * scatter.WORK]
        image, _, d, end_d, h, end_h, _, _ = scatter.emit_work(f, place)
        line, rest = workspace.of(tile.element), workspace[s["line_bytes"]]
        met, rest = rest, rest[s["met_bytes"]]
        panel, patches = rest.of(tile.element), rest[s["panel_bytes"]].of(tile.element)
        group, plane = image % s["groups"], s["out_d"] * s["out_h"] * s["out_w"]
        y = SLOTS.pointer(f, job, "y", tile.element)[image * s["channels_out"] * plane]
        bias = SLOTS.pointer(f, job, "bias", tile.element)[group * s["channels_out"]]
        done = Carry([f.maximum(h + s["least_h"], 0)])  # lines of x up to here have their patches
        with f.loop(h, end_h, s["rows"], name="rows", carry=done) as first:
            end = f.minimum(first + s["rows"], end_h)
            (low,) = done.values
            high = f.maximum(f.minimum(end + s["most_h"], s["size_h"]), low)
            f.call(do_lines, [job, place, panel, patches, low, high])
            with (
                scatter.emit_outputs(f, s, "d", d, end_d) as (qd, od, phase_d),
                scatter.emit_outputs(f, s, "h", first, end) as (qh, oh, phase_h),
            ):
                row = y[(od * s["out_h"] + oh) * s["out_w"]]
                f.call(do_row, [job, place, phase_d * s["step_h"] + phase_h, qd, qh, patches, met, line, bias, row])
            done.next = [high]

    return module([copy, *do_tiles, do_lines, do_row, jobs.emit_entry("entry", SLOTS, task)])


def _emit_lines(code: Code, copy: Function, do_tiles: tuple[Function, Function]) -> Function:
    """`lines(job, work, panel, patches, low, high)`: the patches of the lines low..high-1 of x, of every plane of the block.

    They stand in a ring of lines. Some lines at a time that follow each other there are copied to the panel, channel by channel,
    and are the columns of one GEMM, which may write over the beginning of the line behind them: its patches nobody needs.
    """
    tile = code.tile
    names = ("job", "work", "panel", "patches", "low", "high")
    parameters = [(n, "i64" if n in ("low", "high") else "ptr") for n in names]
    f = Function("lines", parameters, attributes="internal noinline nounwind")
    job, work, panel, patches, low, high = f.arguments
    panel, patches = panel.of(tile.element), patches.of(tile.element)
    s = _slots(f, job)
    numbers = scatter.emit_work(f, work.of("i64"))
    b, image = _block(f, s, numbers), numbers[0]
    image_size = s["size_d"] * s["size_h"] * s["size_w"]
    x = SLOTS.pointer(f, job, "x", tile.element)[image * s["channels"] * image_size]
    depth = s["channels"] * tile.rows
    left = SLOTS.pointer(f, job, "weight", tile.element)[image % s["groups"] * (s["tile_blocks"] * depth)]
    sizes: list[Int] = [SLOTS.pointer(f, job, "all", "i64"), 1, s["channels"], s["panel_pitch"]]
    turn = f.minimum((low // s["ring"] + 1) * s["ring"], high)
    ends = ((low, turn), (turn, high))
    with f.loop(0, b.planes, name="d") as d, f.loop(0, 2, name="part") as part:
        first, last = (f.select(part.equals(0), a, z) for a, z in zip(*ends, strict=True))
        with f.loop(first, last, s["lines"], name="h") as h:
            lines = f.minimum(last - h, s["lines"])
            source = x[((b.low_d + d) * s["size_h"] + h) * s["size_w"] + b.first]
            _emit_copied(f, code, s, b, copy, source, panel, lines, image_size)
            out, pitch = patches[d * s["plane_pitch"] + h % s["ring"] * s["cells"]], s["pitch"]
            width = ((lines - 1) * s["cells"] + b.cells + (tile.lanes - 1)) // tile.lanes * tile.lanes
            microkernel.emit_block(f, tile, do_tiles, left, s["tile_blocks"], depth, panel, 1, sizes, out, pitch, width)
    return f


def _emit_copied(
    f: Function, code: Code, s: dict[str, Value], b: _Block, copy: Function, source: Value, panel: Value, lines: Value,
    image_size: Value,
) -> None:  # fmt: skip
    """Some lines of every channel side by side: in one piece where the block is as wide as x. Those of later ones are asked for.

    Of odd numbers of channels the last is copied more than once.
    """
    lanes, type_ = code.tile.lanes, code.tile.type
    whole, apart = b.cells.equals(s["size_w"]), (s["channels"] + (PLACES - 1)) // PLACES
    runs, length = f.select(whole, 1, lines), f.select(whole, lines * b.cells, b.cells)
    span = max(lanes, LINE // SIZES[source.element])
    many = length >= lanes
    with f.loop(0, apart, name="c") as c, f.loop(0, runs, name="run") as run:
        channels = [f.minimum(c + apart * i, s["channels"] - 1) for i in range(PLACES)]
        places = [(source[n * image_size + run * s["size_w"]], panel[n * s["panel_pitch"] + run * s["cells"]]) for n in channels]
        with f.when(many, name="many"), f.loop(0, length, span, name="at") as at:
            for there, to in places:
                f.prefetch(there[image_size * pack.AHEAD + at])
                for v in range(0, span, lanes):
                    i = f.minimum(at + v, length - lanes)
                    f.store(f.load(type_, there[i]), to[i])
        with f.otherwise(many, name="few"):
            for there, to in places:
                f.call(copy, [there, to, length])


def _emit_row(code: Code, copy: Function) -> Function:
    """`row(job, work, phase, qd, qh, patches, met, line, bias, y)`: a block's part of one row of y, of all channels.

    Where inputs or outputs end, sums are masked and go through a line.
    """
    tile, step = code.tile, code.store.step
    names = ("job", "work", "phase", "qd", "qh", "patches", "met", "line", "bias", "y")
    parameters = [(n, "i64" if n in ("phase", "qd", "qh") else "ptr") for n in names]
    f = Function("row", parameters, attributes="internal noinline nounwind")
    job, work, phase, qd, qh, patches, met, line, bias, y = f.arguments
    patches, line, bias, y = (pointer.of(tile.element) for pointer in (patches, line, bias, y))
    met = met.of("i64")
    s = _slots(f, job)
    numbers = scatter.emit_work(f, work.of("i64"))
    q0, q1, crop, plane = numbers[6], numbers[7], s["crop_w"], s["out_d"] * s["out_h"] * s["out_w"]
    b = _block(f, s, numbers)

    def entry(tap: Value, d: Value, h: Value, back: Value) -> list[Value]:
        """Where the patches of a row's tap begin for column 0 of x, and how many inputs back it reaches."""
        line = (d - b.low_d) * s["plane_pitch"] + h % s["ring"] * s["cells"] + tap * s["pitch"] - b.first
        return [patches[line][back * (s["step_w"] * s["pitch"] - 1)], back]

    count = scatter.emit_met(f, SLOTS, job, s, phase, (qd, qh), met, entry)
    lists = [(met, count * s["whole"], step)]
    if code.rest:
        lists.append((met[s["cut"] * MET], count, code.rest))
    inner = f.maximum(s["reach"] - 1, (crop + (step - 1)) // step), f.minimum(s["size_w"], (s["out_w"] + crop) // step)
    heads, ends, low, high = store.emit_ends(f, tile.lanes, inner, q0, q1)
    with f.loop(0, s["channels_out"], name="m") as m:
        offset, row, patch = f.load(tile.element, bias[m]), y[m * plane], m * s["tap_count"] * s["pitch"]
        begin = low
        for vectors in code.blocks:
            span = vectors * tile.lanes
            end = begin + (high - begin) // span * span if vectors > 1 else high
            with f.loop(begin, end, span, name="q") as at:
                q = f.minimum(at, high - span)
                store.emit_sums(f, code.store, _sums(f, code, s, lists, patch + q, vectors), offset, row[q * step - crop])
            begin = end
        with f.loop(0, ends, name="end") as i:
            q = f.select(i < heads, q0 + i * tile.lanes, high + (i - heads) * tile.lanes)
            store.emit_sums(f, code.store, _sums(f, code, s, lists, patch + q, 1, q), offset, line)
            first = f.maximum(q * step - crop, 0)
            last = f.minimum(f.minimum(q + tile.lanes, q1) * step - crop, s["out_w"])
            f.call(copy, [line[first + crop - q * step], row[first], last - first])
    return f


def _sums(
    f: Function, code: Code, s: dict[str, Value], lists: list[tuple[Value, Value, int]], at: Value, vectors: int,
    edge: Value | None = None,
) -> list[Value]:  # fmt: skip
    """Sums of all phases of `vectors` vectors of positions, [phase][vector]; of one at an `edge`, the position, what lies in x."""
    tile, step = code.tile, code.store.step
    sums = [Value(f, "zeroinitializer", tile.type)] * (step * vectors)
    for listed, many, phases in lists:
        over = Carry(sums)
        with f.loop(0, many, name="met", carry=over) as i:
            entry = listed[i * MET]
            start, total = f.load_pointer(entry, tile.element)[at], list(over.values)
            mask = None
            if edge is not None:
                mask = f.lanes_between(edge - f.load("i64", entry[1]), 0, s["size_w"], tile.lanes)
            for a in range(phases):
                for v in range(vectors):
                    place = start[s["pitch"] * a + v * tile.lanes]
                    value = f.load(tile.type, place) if mask is None else f.masked_load(tile.type, place, mask)
                    total[a * vectors + v] = f.fadd(total[a * vectors + v], value)
            over.next = total
        sums = over.results
    return sums
