"""The code of the Winograd kernel: windows of x transformed into V, a GEMM a point, sums transformed back and stored.

In slices (Strassen), each point takes a GEMM for each of the products, of output channels that are sliced as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from upconv.codegen.ir import SIZES, Function, Int, Value, module
from upconv.kernels import ahead, columns, helping, listing, microkernel, panel, store, winograd_streamed_code
from upconv.kernels import job as jobs
from upconv.kernels.strassen_products import PRODUCTS, places, row_and_column
from upconv.kernels.strassen_sums import Place, Sums
from upconv.kernels.winograd_input import emit_input, emit_windows
from upconv.kernels.winograd_way import POINT, SLOTS, Code, Short, divisors, transform


def _emit_output(code: Code, writer: store.Writer) -> Function:
    """`output(job, table, room, vectors, m, lines, line, y, channel, channels)`: M back to outputs, and these stored.

    The tile's outputs of one phase of h stand in `lines`, [output row][output column by phase][tile], before they are woven; of
    few phases and one row they stay in registers.
    """
    pointers = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("vectors", "i64"), ("m", "ptr"), ("lines", "ptr")]
    arguments = [*pointers, ("line", "ptr"), ("y", "ptr"), ("channel", "i64"), ("channels", "i64")]
    f = Function("output", arguments, attributes="internal noinline nounwind")
    job, table, room, vectors, m, lines, line, y, channel, channels = f.arguments
    tile, lanes, (_, way_h, way_w), (step_h, step_w) = code.tile, code.tile.lanes, code.ways, code.layer_steps
    m, lines, line, y = (pointer.of(tile.element) for pointer in (m, lines, line, y))
    names = (
        "asks_written", "m_pitch", "m_point", "y_channel", "phases_h", "phases_w", "out_step_d", "out_step_w", "out_h", "out_w",
        "channels_out", "y_round",
    )  # fmt: skip
    s = {name: SLOTS.read(f, job, name) for name in names}
    bias, phase_rows = SLOTS.pointer(f, job, "bias", tile.element), SLOTS.pointer(f, job, "phase_rows", "i64")
    p = columns.parts(table, room, lanes)
    matrices = tuple(way.points.output(way.taps) if way.points else None for way in (way_h, way_w))
    odd = divisors((way_h, way_w), tile.element)
    every = places(code.slices)
    together = [every[at : at + code.together] for at in range(0, len(every), code.together)]

    def sums(source: Value, slices: list[Place]) -> list[dict[tuple[int, int], Value]]:
        """The points of each of these slices, from the products that they consist of."""
        count, found = len(code.points), [dict[tuple[int, int], Value]() for _ in slices]
        for i, point in enumerate(code.points):

            def load(n: int, i: int = i) -> Value:
                return f.load(tile.type, source[s["m_point"] * (n * count + i)])

            added = Sums(f, load)
            for points, place in zip(found, slices, strict=True):
                points[point] = added.emit(place)
        return found

    with f.loop(0, channels, name="m") as number, f.loop(0, s["out_step_d"], name="ad") as ad:
        channel_of = [number + s["channels_out"] * n for n in range(code.slices)]
        offsets = [f.load(tile.element, bias[channel + n]) for n in channel_of]
        planes = [y[n * s["y_channel"]] for n in channel_of]
        with f.loop(0, s["phases_h"], name="ah") as ah, f.loop(0, vectors // code.slices, name="column") as column:
            first, size = (ad * s["phases_h"] + ah) * s["phases_w"], s["out_step_w"] * (way_h.outputs * lanes)
            for slices in together:

                def phase(aw: Int, slices: list[Place] = slices, first: Value = first) -> Iterator[tuple[int, int, Int, Value]]:
                    """(which of the slices, output row, place among the woven, sums) of a phase of w."""
                    at = phase_rows[(first + aw) * 2]
                    own = column * code.interleaved + ah * step_h + aw * step_w if code.interleaved > 1 else column
                    source = m[(f.load("i64", at) + number * f.load("i64", at[1])) * s["m_pitch"] + own * lanes]
                    for n, points in enumerate(sums(source, slices)):
                        for (i, j), value in transform(f, points, (matrices[0], matrices[1])).items():
                            for factor in odd:
                                value = f.fmul(value, f.splat(1 / factor, tile.type))
                            yield n, i, (code.phases_w or s["phases_w"]) * j + aw, value

                held: dict[tuple[int, Int], Value] = {}
                if code.phases_w:
                    held = {(n, place): value for aw in range(code.phases_w) for n, _, place, value in phase(aw)}
                else:
                    with f.loop(0, s["phases_w"], name="aw") as aw:
                        for n, i, place, value in phase(aw):
                            f.store(value, lines[size * n + (s["out_step_w"] * i + place) * lanes])
                for n, (of_channels, of_tiles) in enumerate(map(row_and_column, slices)):
                    plane, number_v = planes[of_channels], column * code.slices + of_tiles
                    with f.loop(0, way_h.outputs, name="ih") as ih:
                        row, h = lines[size * n + ih * s["out_step_w"] * lanes], ih * s["phases_h"] + ah
                        place = (ad * s["out_h"] + h) * s["out_w"]
                        to = store.Destination(job, table, room, line, plane, ad, h, place, s["y_round"])

                        def stream(a: Int, row: Value = row, n: int = n, held: dict[tuple[int, Int], Value] = held) -> Value:
                            return held[n, a] if held else f.load(tile.type, row[a * lanes])

                        _emit_ahead(f, code, s, p, number_v, plane[s["y_channel"] + to.row])
                        store.emit_vector(f, writer, to, p, number_v, stream, offsets[of_channels], s["out_step_w"])
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
        store.emit_ask(f, code.store, plane[out], f.select(s["asks_written"] > 0, 0, s["out_step_w"]), s["y_round"])


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = code.tile
    streamed = {short: winograd_streamed_code.emit(code, short) for short in code.short}
    do_tiles = () if streamed else microkernel.emit_both(tile, ahead.asking(tile.element), parts=True)
    writer = store.writer(code.store, SLOTS)
    if code.slices == 1:
        do_place = [listing.emit_place(tile.lanes, SLOTS), listing.emit_place_images(tile.lanes, SLOTS)]
    else:
        do_place = [listing.emit_place_slices(tile.lanes, SLOTS, code.slices)]
    do_find = emit_windows(code) if code.piece > 1 else panel.emit_masks(code.panel, SLOTS)
    do_input, do_output = emit_input(code), _emit_output(code, writer)
    do_written = ahead.emit_written(tile.element, tile.lanes, SLOTS, code.slices)
    do_read = ahead.emit_read(tile.element, SLOTS, code.window)

    def prepare(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        position, _, group = jobs.place_of(number, s)
        low, width, vectors, _ = _emit_sizes(f, code, s, position)
        table, found, line, _, sliced, _, v, *_ = _rooms(code, s, workspace)
        x = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"]]
        for by_position, do in enumerate(do_place):
            with f.when(s["by_position"].equals(by_position), name="place"):
                f.call(do, [job, table, s["room"], low, low + width])
        f.call(do_find, [job, table, s["room"], found, vectors])
        f.call(do_input, [job, table, s["room"], found, vectors, x, v, line, sliced])

    def work(f: Function, job: Value, number: Value, rooms: helping.Rooms, helps: Value, word: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        position, split, group = jobs.place_of(number, s)
        _, width, vectors, wide = _emit_sizes(f, code, s, position)
        table, *_, v, _, _ = _rooms(code, s, rooms.prepared)
        _, _, line, lines, sliced, m, _, to_write, to_read = _rooms(code, s, rooms.own)
        x = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"]]
        y = SLOTS.pointer(f, job, "y", tile.element)
        weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"]]
        _, at_h, at_w = columns.emit_position(s, position // s["pieces"])
        last = at_h.equals(s["last_h"]), at_w.equals(s["last_w"])
        ahead.emit_nothing(f, to_write)
        ahead.emit_nothing(f, to_read)
        first, many = jobs.share_of(split, s["chunks_a_split"], s["chunks"])
        register_tiles = s["strips"] * (wide // tile.width + wide % tile.width // tile.lanes)
        with f.when(s["asks_written"] > 0, name="written"):
            f.call(do_written, [job, table, s["room"], vectors, to_write])
        following = jobs.following(position, s)
        reads = (s["asks_read"] > 0) & (following >= 0) & (following < s["block_count"]) & helps.equals(0)
        with f.when(reads, name="read"):
            next_low, next_width = columns.emit_cut(f, s, following)
            f.call(do_read, [job, next_low, next_low + next_width, to_read])
            ahead.emit_begin(f, to_read, x, 0, s["x_channel"], s["channels_in"] * code.slices, register_tiles * many)
        taps, points = SLOTS.pointer(f, job, "taps", "i64"), SLOTS.pointer(f, job, "points", "i64")
        with f.loop(0, s["m_bytes"] // SIZES[tile.element] if code.uneven and not streamed else 0, tile.lanes, name="zero") as i:
            f.store(Value(f, "zeroinitializer", tile.type), m[i])  # rows that no GEMM writes, at the points where they are dead
        with helping.emit_pieces(f, word, many) as piece:
            ic = first + piece
            channel = ic * s["chunk"]
            number_out = group * s["group_out"] + channel
            several = f.minimum(s["channels_out"] - channel, s["chunk"])
            with f.when(s["asks_written"] > 0, name="begin"):
                ahead.emit_begin(f, to_write, y, number_out * s["y_channel"], s["y_channel"], several, register_tiles)

            left = weight[ic * s["weight_chunk"]]
            if streamed:
                _emit_streamed(f, code, s, streamed, left, v, m, width, points, sliced)
            else:
                _emit_points(f, code, s, do_tiles, left, v, m, wide, (points, taps), last, [to_write, to_read])
            plane = y[number_out * s["y_channel"]]
            f.call(do_output, [job, table, s["room"], vectors, m, lines, line, plane, number_out, several])
        store.emit_done(f, code.store, s["y_round"])

    entries = helping.emit_entry("entry", SLOTS, helping.Pieces(prepare, helping.chunks_of(SLOTS), work))
    return module(
        [*streamed.values(), *do_tiles, *do_place, do_find, do_input, do_written, do_read, *writer.functions, do_output, *entries]
    )


def _emit_sizes(f: Function, code: Code, s: dict[str, Value], position: Value) -> tuple[Value, Value, Value, Value]:
    """(first tile of a block, its tiles, their vectors, columns of the GEMMs)."""
    low, width = columns.emit_cut(f, s, position)
    each = (width + (code.tile.lanes * code.slices - 1)) // (code.tile.lanes * code.slices)
    return low, width, each * code.slices, each * (code.tile.lanes * code.interleaved)


def _rooms(code: Code, s: dict[str, Value], workspace: Value) -> tuple[Value, ...]:
    """The workspace's parts: table, found, line, lines, slices, M, V, and the lists of lines to write and to read."""
    rooms, at = [workspace], s["table_bytes"]
    for name in ("found_bytes", "line_bytes", "lines_bytes", "slices_bytes", "m_bytes", "v_bytes", "written_bytes"):
        rooms.append(workspace[at].of(code.tile.element))
        at = at + s[name]
    *rooms, to_write = rooms
    return (*rooms, to_write.of("i8"), workspace[at])


def _emit_streamed(
    f: Function, code: Code, s: dict[str, Value], streamed: dict[Short, Function], left: Value, v: Value, m: Value, tiles: Value,
    points: Value, sums: Value,
) -> None:  # fmt: skip
    """All points of a chunk's rows and a block's tiles, class by class of phases: M from V and the weights as they are."""
    tile = code.tile
    for number, short in enumerate(code.short):
        entry = points[number * POINT]
        first_strip, strips, first_row, rows, *_ = (f.load("i64", entry[i]) for i in range(POINT))
        operands = [left[first_strip * (s["sum_depth"] * tile.rows)], strips, v[first_row * tile.width], tiles, rows]
        target = m[first_strip * tile.rows * s["m_pitch"]]
        f.call(streamed[short], [*operands, s["depth_part"], s["weight_point"], s["v_point"], target, s["m_point"], sums])


def _emit_points(
    f: Function, code: Code, s: dict[str, Value], do_tiles: tuple[Function, ...], left: Value, v: Value, m: Value, wide: Value,
    tables: tuple[Value, Value], last: tuple[Value, Value], lists: list[Int],
) -> None:  # fmt: skip
    """A GEMM a product, point and part of the depth, of a chunk's rows and a block's tiles: M from V and transformed weights."""
    tile, (points, taps) = code.tile, tables
    strip = s["sum_depth"] * tile.rows
    every_point = len(code.points) * PRODUCTS[code.slices]
    with f.loop(0, every_point, name="point") as point, f.loop(0, s["depths"], name="depth") as depth:
        entry = points[(point * s["depths"] + depth) * POINT]
        first_strip, strips, first_row, rows, first_weight, *only_last = (f.load("i64", entry[i]) for i in range(POINT))
        for here, only in zip(last, only_last, strict=True):
            rows = f.select(here & only.equals(1), 0, rows)
        a = left[point * s["weight_point"] + first_strip * strip + first_weight * tile.rows]
        b = v[point * s["v_point"] + first_row * tile.width]
        sums = m[point * s["m_point"] + first_strip * tile.rows * s["m_pitch"]]
        sizes: list[Int] = [taps, s["depth_part"], rows, tile.width]
        both = do_tiles[0], do_tiles[1]
        block = (a, strips, strip, b, s["depth"], sizes, sums, s["m_pitch"], wide)
        microkernel.emit_block(f, tile, both, *block, finishing=lambda jr: lists)


_TASK_SLOTS = (
    *columns.CUT, "room", "splits", "abreast", "chunks_a_split", "chunks", "chunk", "channels_out", "group_out", "depth",
    "sum_depth", "depth_part", "weight_group", "weight_chunk", "weight_point", "x_group", "v_point", "m_pitch", "m_point",
    "y_channel", "table_bytes", "found_bytes", "line_bytes", "lines_bytes", "slices_bytes", "m_bytes", "by_position", "last_h",
    "last_w", "rows_h", "rows_w", "v_bytes", "written_bytes", "asks_written", "asks_read", "strips", "depths", "x_channel",
    "channels_in", "y_round", )  # fmt: skip
