"""The code of the Winograd kernel: windows of x transformed into V, a GEMM a point, sums transformed back and stored.

With two halves (Strassen), each point takes seven GEMMs, of output channels that are halved as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from upconv.codegen.ir import SIZES, Function, Int, Value, module
from upconv.kernels import ahead, columns, microkernel, panel, store
from upconv.kernels import job as jobs
from upconv.kernels.strassen_products import PRODUCTS, SUM
from upconv.kernels.winograd_input import emit_input, emit_windows
from upconv.kernels.winograd_way import POINT, SLOTS, Code, combine, transform


def _emit_output(code: Code, writer: store.Writer) -> Function:
    """`output(job, table, room, vectors, m, lines, line, y, channel, channels)`: M back to outputs, and these stored.

    The tile's outputs of one phase of h stand in `lines`, [output row][output column by phase][tile], before they are woven; of
    few phases and one row they stay in registers.
    """
    pointers = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("vectors", "i64"), ("m", "ptr"), ("lines", "ptr")]
    arguments = [*pointers, ("line", "ptr"), ("y", "ptr"), ("channel", "i64"), ("channels", "i64")]
    f = Function("output", arguments, attributes="internal noinline nounwind")
    job, table, room, vectors, m, lines, line, y, channel, channels = f.arguments
    tile, lanes, (_, way_h, way_w) = code.tile, code.tile.lanes, code.ways
    m, lines, line, y = (pointer.of(tile.element) for pointer in (m, lines, line, y))
    names = (
        "asks_written", "m_pitch", "m_point", "y_channel", "phases_h", "phases_w", "out_step_d", "out_step_w", "out_h", "out_w",
        "channels_out",
    )  # fmt: skip
    s = {name: SLOTS.read(f, job, name) for name in names}
    bias, phase_rows = SLOTS.pointer(f, job, "bias", tile.element), SLOTS.pointer(f, job, "phase_rows", "i64")
    p = columns.parts(table, room, lanes)
    matrices = tuple(way.points.output(way.taps) if way.points else None for way in (way_h, way_w))
    odd = [n for way in (way_h, way_w) if way.points for n in way.points.odd]
    quadrants = list(product(range(code.halves), repeat=2))

    def sums(source: Value, quadrant: int) -> dict[tuple[int, int], Value]:
        """A quadrant's points, from the products that it consists of."""
        signs = SUM[quadrant] if code.halves > 1 else np.ones(1)
        used = np.flatnonzero(signs).tolist()
        return {
            point: combine(f, signs[used], [f.load(tile.type, source[s["m_point"] * (n * len(code.points) + i)]) for n in used])
            for i, point in enumerate(code.points)
        }

    with f.loop(0, channels, name="m") as number, f.loop(0, s["out_step_d"], name="ad") as ad:
        channel_of = [number + s["channels_out"] * half for half in range(code.halves)]
        offsets = [f.load(tile.element, bias[channel + n]) for n in channel_of]
        planes = [y[n * s["y_channel"]] for n in channel_of]
        with f.loop(0, s["phases_h"], name="ah") as ah, f.loop(0, vectors // code.halves, name="column") as column:
            first = (ad * s["phases_h"] + ah) * s["phases_w"]
            for quadrant, (half, other) in enumerate(quadrants):
                number_v, held = column * code.halves + other, {}

                def phase(aw: Int, quadrant: int = quadrant, first: Value = first) -> Iterator[tuple[int, Int, Value]]:
                    """(output row, place among the woven, sums) of a phase of w."""
                    at = phase_rows[(first + aw) * 2]
                    source = m[(f.load("i64", at) + number * f.load("i64", at[1])) * s["m_pitch"] + column * lanes]
                    for (i, j), value in transform(f, sums(source, quadrant), (matrices[0], matrices[1])).items():
                        for n in odd:
                            value = f.fmul(value, f.splat(1 / n, tile.type))
                        yield i, (code.phases_w or s["phases_w"]) * j + aw, value

                if code.phases_w:
                    held = {place: value for aw in range(code.phases_w) for _, place, value in phase(aw)}
                else:
                    with f.loop(0, s["phases_w"], name="aw") as aw:
                        for i, place, value in phase(aw):
                            f.store(value, lines[(s["out_step_w"] * i + place) * lanes])
                with f.loop(0, way_h.outputs, name="ih") as ih:
                    row, h = lines[ih * s["out_step_w"] * lanes], ih * s["phases_h"] + ah
                    to = store.Destination(job, table, room, line, planes[half], ad, h, (ad * s["out_h"] + h) * s["out_w"])

                    def stream(a: Int, row: Value = row, held: dict[Int, Value] = held) -> Value:
                        return held[a] if held else f.load(tile.type, row[a * lanes])

                    _emit_ahead(f, code, s, p, number_v, planes[half][s["y_channel"] + to.row])
                    store.emit_vector(f, writer, to, p, number_v, stream, offsets[half], s["out_step_w"])
    return f


def _emit_ahead(f: Function, code: Code, s: dict[str, Value], p: columns.Parts, v: Value, plane: Value) -> None:
    """Asks for the lines of a vector's outputs in the next channel.

    M comes from the cache and y goes to memory, so that there is nothing to do but to wait for its lines. Where they were asked
    for before (`ahead`), long ones are not again: 0.93 to 0.98, where short ones, come nearer, gain 1.00 to 1.07.
    """
    lanes = code.tile.lanes
    out, alone = p.vector(f, v, columns.OUT), p.vector(f, v, columns.NEIGHBOURS).equals(0)
    with f.when(alone, name="alone"):
        for i in range(lanes):
            f.prefetch(plane[f.load("i64", p.outs[v * lanes + i])], write=True)
    with f.otherwise(alone, name="along"):
        store.emit_ask(f, code.store, plane[out], f.select(s["asks_written"] > 0, 0, s["out_step_w"]))


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = code.tile
    do_tiles = microkernel.emit_both(tile, ahead.asking(tile.element), parts=True)
    do_place, writer = [columns.emit_place(tile.lanes, SLOTS, together=code.halves)], store.writer(code.store, SLOTS)
    if code.halves == 1:
        do_place.append(columns.emit_place_images(tile.lanes, SLOTS))
    do_find = emit_windows(code) if code.piece > 1 else panel.emit_masks(code.panel, SLOTS)
    do_input, do_output = emit_input(code), _emit_output(code, writer)
    do_written = ahead.emit_written(tile.element, tile.lanes, SLOTS, code.halves)
    do_read = ahead.emit_read(tile.element, SLOTS, code.window)

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        position, split, group = jobs.place_of(number, s)
        low, width = columns.emit_cut(f, s, position)
        wide = (width + (tile.lanes * code.halves - 1)) // (tile.lanes * code.halves)
        vectors, wide = wide * code.halves, wide * tile.lanes
        table, at, parts = workspace, s["table_bytes"], []
        for name in ("found_bytes", "line_bytes", "lines_bytes", "quads_bytes", "m_bytes"):
            parts.append(workspace[at].of(tile.element))
            at = at + s[name]
        (found, line, lines, quads, m), v = parts, workspace[at].of(tile.element)
        to_write = workspace[at + s["v_bytes"]]
        to_read = to_write[s["written_bytes"]]
        x = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"]]
        y = SLOTS.pointer(f, job, "y", tile.element)
        weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"]]
        for by_position, do in enumerate(do_place):
            with f.when(s["by_position"].equals(by_position), name="place"):
                f.call(do, [job, table, s["room"], low, low + width])
        _, at_h, at_w = columns.emit_position(s, position // s["pieces"])
        last = at_h.equals(s["last_h"]), at_w.equals(s["last_w"])
        f.call(do_find, [job, table, s["room"], found, vectors])
        f.call(do_input, [job, table, s["room"], found, vectors, x, v, line, quads])
        ahead.emit_nothing(f, to_write)
        ahead.emit_nothing(f, to_read)
        first = split * s["chunks_a_split"]
        last_chunk = f.minimum(first + s["chunks_a_split"], s["chunks"])
        register_tiles = s["strips"] * (wide // tile.width + wide % tile.width // tile.lanes)
        with f.when(s["asks_written"] > 0, name="written"):
            f.call(do_written, [job, table, s["room"], vectors, to_write])
        following = position + SLOTS.read(f, job, "ticket")  # this thread's next block, if all threads are as fast
        with f.when((s["asks_read"] > 0) & (following < s["block_count"]), name="read"):
            next_low, next_width = columns.emit_cut(f, s, following)
            f.call(do_read, [job, next_low, next_low + next_width, to_read])
            every = register_tiles * (last_chunk - first)
            ahead.emit_begin(f, to_read, x, 0, s["x_channel"], s["channels_in"] * code.halves, every)
        taps, points = SLOTS.pointer(f, job, "taps", "i64"), SLOTS.pointer(f, job, "points", "i64")
        strip = s["depth"] * tile.rows
        with f.loop(0, s["m_bytes"] // SIZES[tile.element] if code.uneven else 0, tile.lanes, name="zero") as i:
            f.store(Value(f, "zeroinitializer", tile.type), m[i])  # rows that no GEMM writes, at the points where they are dead
        with f.loop(first, last_chunk, name="ic") as ic:
            channel = ic * s["chunk"]
            number_out = group * s["group_out"] + channel
            several = f.minimum(s["channels_out"] - channel, s["chunk"])
            with f.when(s["asks_written"] > 0, name="begin"):
                ahead.emit_begin(f, to_write, y, number_out * s["y_channel"], s["y_channel"], several, register_tiles)
            every_point = len(code.points) * PRODUCTS[code.halves]
            with f.loop(0, every_point, name="point") as point, f.loop(0, s["depths"], name="depth") as depth:
                entry = points[(point * s["depths"] + depth) * POINT]
                first_strip, strips, first_row, rows, *only_last = (f.load("i64", entry[i]) for i in range(POINT))
                for here, only in zip(last, only_last, strict=True):
                    rows = f.select(here & only.equals(1), 0, rows)
                left = weight[point * s["weight_point"] + (ic * s["tile_blocks"] + first_strip) * strip]
                right = v[point * s["v_point"]]
                sums = m[point * s["m_point"] + first_strip * tile.rows * s["m_pitch"]]
                sizes: list[Int] = [taps, s["depth_part"], rows, tile.width]
                a, b = left[first_row * tile.rows], right[first_row * tile.width]
                block = (a, strips, strip, b, s["depth"], sizes, sums, s["m_pitch"], wide)
                microkernel.emit_block(f, tile, do_tiles, *block, finishing=lambda jr: [to_write, to_read])
            plane = y[number_out * s["y_channel"]]
            f.call(do_output, [job, table, s["room"], vectors, m, lines, line, plane, number_out, several])

    entry = jobs.emit_entry("entry", SLOTS, task)
    return module([*do_tiles, *do_place, do_find, do_input, do_written, do_read, *writer.functions, do_output, entry])


_TASK_SLOTS = (
    *columns.CUT, "room", "splits", "chunks_a_split", "chunks", "chunk", "tile_blocks",
    "channels_out", "group_out", "depth", "depth_part", "weight_group", "weight_point", "x_group", "v_point", "m_pitch", "m_point",
    "y_channel", "table_bytes", "found_bytes", "line_bytes", "lines_bytes", "quads_bytes", "m_bytes", "by_position", "last_h",
    "last_w", "rows_h", "rows_w", "v_bytes", "written_bytes", "asks_written", "asks_read", "strips",
    "depths",
    "x_channel", "channels_in",
)  # fmt: skip
