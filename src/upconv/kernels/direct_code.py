"""The code of the direct kernel: a block's columns copied into panels (or packed as a band), tiles, and the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from upconv.codegen.ir import SIZES, Function, Int, Value, module
from upconv.codegen.target import LINE
from upconv.kernels import columns, helping, listing, microkernel, pack, panel, store
from upconv.kernels import job as jobs
from upconv.kernels.register_tile import Tile
from upconv.kernels.store import Store

SLOTS = jobs.Slots(
    tuple(
        dict.fromkeys(
            (
                *helping.OPEN, *columns.SLOTS, *panel.SLOTS, *pack.SLOTS, *store.SLOTS, *store.ROW_SLOTS, "weight",
                "phase_groups", "group_count", "taps", "channels", "channels_filled", "channels_a_pack", "room", "groups",
                "groups_a_task", "splits", "abreast", "chunks_a_split", "chunks_a_round", "columns_a_store", "chunks", "chunk",
                "channels_out", "left", "right", "right_pitch", "weight_group", "x_group", "table_bytes", "found_bytes",
                "scratch_bytes", "line_bytes", "zero_row", "fused", "y_rows", "y_rows_a_chunk", "x_pitch", "x_shift", "in_place",
                "volume", "prepared", "part_pitch",
            )
        )
    )
)  # fmt: skip
Y_ROW = 4
"""Numbers a row of y, in the order of a tile's rows: output channel (-1 for none), d and h past those of phase 0, and the place of
that row of the channel in y."""
GROUP = 6
"""Numbers a phase group: runs of taps, the first in the tap table, tile blocks, weight offset, first scratch row, all taps."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on. With panels, a tile reads aligned vectors; else it reads the band."""

    tile: Tile
    panels: bool
    in_step: int
    store: Store
    sums: int
    """Rows of sums that are added up as they are stored."""
    fuses: bool
    """Whether a tile's rows are whole rows of y, all phases of each, so that it can store them itself."""
    scattered: bool
    """Whether most blocks are read where they stand in x, each channel in pages of its own."""
    asks: bool
    """Whether a tile that stores its sums itself asks for the lines first."""

    @property
    def panel(self) -> panel.Panel:
        return panel.Panel(self.tile.element, self.tile.lanes, self.tile.vectors, self.in_step)


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = code.tile
    do_place = listing.emit_place(tile.lanes, SLOTS, reads=code.panels)
    writer = store.writer(code.store, SLOTS)
    do_store = store.emit_rows(writer, SLOTS, code.sums)
    do_tiles = [microkernel.emit_both(tile, scattered=code.scattered)]
    if code.fuses:
        do_tiles.append(microkernel.emit_both(tile, _finish(writer, code.asks), scattered=code.scattered))
    if code.panels:
        readers = [panel.emit_masks(code.panel, SLOTS), panel.emit_panels(code.panel, SLOTS)]
    else:
        readers = [pack.emit(pack.Pack(tile.element, tile.lanes, code.in_step), SLOTS)]

    def prepare(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        position, _, group = jobs.place_of(number, s)
        low, width = columns.emit_cut(f, s, position)
        vectors = (width + (tile.lanes - 1)) // tile.lanes
        table, found, _, _, right = _rooms(tile, s, workspace)
        f.call(do_place, [job, table, s["room"], low, low + width])
        if code.panels:
            f.call(readers[0], [job, table, s["room"], found, vectors])
        with (
            f.when(s["prepared"].equals(1) & _emit_in_place(f, s, low, vectors * tile.lanes)[0].equals(0), name="prepared"),
            f.loop(0, s["channels"], s["channels_a_pack"], name="pc") as pc,
        ):
            source = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"] + pc * s["x_channel"]]
            to, several = right[pc // s["channels_a_pack"] * s["part_pitch"]], f.minimum(s["channels"] - pc, s["channels_a_pack"])
            _emit_copied(f, code, job, s, readers, (table, found), source, to, (low, vectors), several)

    def rounds(f: Function, s: dict[str, Value], split: Value) -> tuple[Value, Value, Value, Value]:
        """(first chunk of a block's share, its chunks, how many a piece has, pieces): one piece where a task has several groups."""
        first, many = jobs.share_of(split, s["chunks_a_split"], s["chunks"])
        each = f.select(s["groups_a_task"].equals(1), s["chunks_a_round"], s["chunks_a_split"])
        return first, many, each, (many + (each - 1)) // each

    def count(f: Function, job: Value, number: Value) -> Value:
        names = (*jobs.PLACE, "chunks_a_split", "chunks_a_round", "chunks", "groups_a_task")
        s = {name: SLOTS.read(f, job, name) for name in names}
        return rounds(f, s, jobs.place_of(number, s)[1])[3]

    def work(f: Function, job: Value, number: Value, rooms: helping.Rooms, _helps: Value, word: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        position, split, part = jobs.place_of(number, s)
        low, width = columns.emit_cut(f, s, position)
        vectors = (width + (tile.lanes - 1)) // tile.lanes
        table, found, _, _, prepared = _rooms(tile, s, rooms.prepared)
        _, _, scratch, line, right = _rooms(tile, s, rooms.own)
        ready = s["prepared"].equals(1)
        right = f.select(ready, prepared, right).of(tile.element)
        if code.sums > 1:
            zeros = scratch[s["zero_row"] * s["scratch_pitch"]]
            with f.loop(0, s["columns_a_store"], tile.lanes, name="zeros") as at:
                f.store(Value(f, "zeroinitializer", tile.type) if tile.lanes > 1 else f.splat(0.0, tile.type), zeros[at])
        first, many, each, pieces = rounds(f, s, split)
        last = first + many
        there, at = _emit_in_place(f, s, low, vectors * tile.lanes)
        pitch: Int = tile.width if code.panels else f.select(there, s["x_pitch"], s["right_pitch"])
        first_group = part * s["groups_a_task"]
        last_group = f.minimum(first_group + s["groups_a_task"], s["groups"])
        with (
            helping.emit_pieces(f, word, pieces) as piece,
            f.loop(first_group, last_group, name="group") as group,
            f.loop(first + piece * each, f.minimum(first + (piece + 1) * each, last), s["chunks_a_round"], name="round") as round_,
            f.loop(0, vectors * tile.lanes, s["columns_a_store"], name="jb") as jb,
            f.loop(round_, f.minimum(round_ + s["chunks_a_round"], last), name="ic") as ic,
        ):
            x = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"]]
            y = SLOTS.pointer(f, job, "y", tile.element)
            weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"]]
            here = f.minimum(vectors * tile.lanes - jb, s["columns_a_store"])
            with f.loop(0, s["channels"], s["channels_a_pack"], name="pc") as pc:
                several = f.minimum(s["channels"] - pc, s["channels_a_pack"])
                fresh = ic.equals(first) & jb.equals(0) | (s["channels_a_pack"] < s["channels"])
                source, from_ = x[pc * s["x_channel"]], right[pc // s["channels_a_pack"] * s["part_pitch"]]
                with f.when(fresh & there.equals(0) & ready.equals(0), name="copy"):
                    _emit_copied(f, code, job, s, readers, (table, found), source, right, (low, vectors), several)
                if not code.panels:
                    from_ = f.select(there, source[at], from_)[s["left"]]
                chunk = (ic, pc, several, from_, pitch, jb, weight, scratch, here)
                last_part = (pc + s["channels_a_pack"] >= s["channels"]) & s["fused"].equals(1)
                if code.fuses:
                    rows = SLOTS.pointer(f, job, "y_rows", "i64")[ic * s["y_rows_a_chunk"] * Y_ROW]
                    own: list[Int] = [line, y[group * s["channels_out"] * s["y_channel"]], group * s["channels_out"], rows]

                    def finishing(v: Value, own: list[Int] = own) -> list[Int]:
                        return [job, table, s["room"], v, *own]

                    with f.when(last_part, name="fused"):
                        _emit_chunk(f, job, s, code, *chunk, do_tiles[1], finishing)
                    with f.otherwise(last_part, name="apart"):
                        _emit_chunk(f, job, s, code, *chunk, do_tiles[0])
                else:
                    _emit_chunk(f, job, s, code, *chunk, do_tiles[0])
            with f.when(s["fused"].equals(0), name="store"):
                channel = ic * s["chunk"]
                number_out = group * s["channels_out"] + channel
                several = f.minimum(s["channels_out"] - channel, s["chunk"])
                plane = y[number_out * s["y_channel"]]
                from_v = jb // tile.lanes
                to_v = from_v + here // tile.lanes
                f.call(do_store, [job, table, s["room"], from_v, to_v, scratch, line, plane, number_out, several])
        store.emit_done(f, code.store, s["y_round"])

    entries = helping.emit_entry("entry", SLOTS, helping.Pieces(prepare, count, work))
    tiles = [function for both in do_tiles for function in both]
    return module([*writer.functions, *tiles, do_place, *readers, do_store, *entries])


def _rooms(tile: Tile, s: dict[str, Value], workspace: Value) -> tuple[Value, ...]:
    """The workspace's parts: table, found, scratch, line, and what is copied of x."""
    table, found = workspace, workspace[s["table_bytes"]]
    scratch = found[s["found_bytes"]]
    line = scratch[s["scratch_bytes"]]
    return table, found, *(room.of(tile.element) for room in (scratch, line, line[s["line_bytes"]]))


def _emit_copied(
    f: Function, code: Code, job: Value, s: dict[str, Value], readers: list[Function], listed: tuple[Value, Value], source: Value,
    to: Value, block: tuple[Value, Value], channels: Value,
) -> None:  # fmt: skip
    """Some channels of a block, (first column, vectors), copied into panels, or packed as a band."""
    (table, found), (low, vectors) = listed, block
    if code.panels:
        f.call(readers[1], [job, table, s["room"], found, vectors, source, to, channels])
    else:
        ends = (low - s["left"], low + vectors * code.tile.lanes + s["right"])
        f.call(readers[0], [job, found, source, to, *ends, channels])


def _finish(writer: store.Writer, asks: bool) -> microkernel.Finish:
    """Tiles that store their sums: each group of out_step_w rows is woven into a row of y, as `y_rows` tells."""
    step = writer.store.step
    numbers, names = ("y_room", "v", "first"), ("job", "table", "y_room", "v", "line", "y", "first", "y_rows")
    arguments = tuple((name, "i64" if name in numbers else "ptr") for name in names)

    def rows(f: Function, tile: Tile, ir: Value, y_rows: Value) -> list[list[Value]]:
        """Channel, d, h and place of each row of y that a strip of tile rows holds."""
        first, entries = ir * (tile.rows // step), y_rows.of("i64")
        return [[f.load("i64", entries[(first + q) * Y_ROW + i]) for i in range(Y_ROW)] for q in range(tile.rows // step)]

    def ask(f: Function, tile: Tile, ir: Value, given: list[Value]) -> None:
        """Asks for the lines that will be written: they are there when the sums are."""
        if not asks:
            return
        job, table, room, v, _, y, _, y_rows = given
        y, p = y.of(tile.element), columns.parts(table, room, tile.lanes)
        out, size = p.vector(f, v, columns.OUT), tile.width * step
        with store.cached(f, writer.store, SLOTS.read(f, job, "y_round")):
            for *_, place in rows(f, tile, ir, y_rows):
                row = y[place + out]
                for at in (*range(0, size, LINE // SIZES[tile.element]), size - 1):
                    f.prefetch(row[at], write=True)

    def emit_rows(f: Function, tile: Tile, ir: Value, sums: list[Value], given: list[Value]) -> None:
        job, table, room, v, line, y, first, y_rows = given
        line, y = line.of(tile.element), y.of(tile.element)
        bias, p = SLOTS.pointer(f, job, "bias", tile.element)[first], columns.parts(table, room, tile.lanes)
        s = {name: SLOTS.read(f, job, name) for name in ("y_channel", "out_h", "out_w", "out_step_w")}
        out, whole = p.vector(f, v, columns.OUT), p.vector(f, v, columns.WHOLE) >= tile.vectors
        found, around = rows(f, tile, ir, y_rows), SLOTS.read(f, job, "y_round")

        def stream(q: int, i: int) -> store.Streams:
            def phase(a: Int) -> Value:
                assert isinstance(a, int)
                return sums[(q * step + a) * tile.vectors + i]

            return phase

        with f.when(whole, name="whole"):
            for q, (channel, _, _, place) in enumerate(found):
                with f.when(channel >= 0, name="y_row"):
                    offset = f.load(tile.element, bias[channel])
                    for i in range(tile.vectors):
                        at = y[place + out + i * tile.lanes * step]
                        store.emit_weave(f, writer.store, stream(q, i), offset, s["out_step_w"], at, around)
        with f.otherwise(whole, name="mixed"):
            for q, (channel, d, h, _) in enumerate(found):
                with f.when(channel >= 0, name="y_row"):
                    offset, row = f.load(tile.element, bias[channel]), (d * s["out_h"] + h) * s["out_w"]
                    to = store.Destination(job, table, room, line, y[channel * s["y_channel"]], d, h, row, around)
                    for i in range(tile.vectors):
                        store.emit_vector(f, writer, to, p, v + i, stream(q, i), offset, s["out_step_w"], inline=True)

    return microkernel.Finish("fused", "v", arguments, ask, emit_rows)


_TASK_SLOTS = (
    "channels", "channels_filled", "channels_a_pack", "x_channel", "right_pitch", "panel_size", "scratch_pitch",
    "y_channel", "group_count", *columns.CUT, "room", "groups", "groups_a_task", "splits", "abreast", "chunks_a_split",
    "chunks_a_round", "columns_a_store", "chunks", "chunk", "channels_out", "left", "right", "weight_group", "prepared",
    "part_pitch", "x_group", "table_bytes", "found_bytes", "scratch_bytes", "line_bytes", "zero_row", "fused",
    "y_rows_a_chunk", "x_pitch", "x_shift", "x_image", "in_place", "volume", "y_round",
)  # fmt: skip


def _emit_in_place(f: Function, s: dict[str, Value], low: Value, size: Value) -> tuple[Value, Value]:
    """Whether a block's part of the band, `size` columns and what taps reach beyond, is a piece of x; and where it begins there."""
    first = low - s["left"]
    image = f.maximum(first, 0) // s["volume"]
    at = first - image * s["volume"] + s["x_shift"]
    inside = (first >= 0) & (at >= 0) & (at + s["left"] + size + s["right"] <= s["x_channel"])
    return inside & s["in_place"].equals(1), image * s["x_image"] + at


def _emit_chunk(
    f: Function, job: Value, s: dict[str, Value], code: Code, ic: Value, pc: Value, channels: Value, right: Value,
    pitch: Int, jb: Value, weight: Value, scratch: Value, width: Value, do_tiles: tuple[Function, Function],
    finishing: Callable[[Value], list[Int]] | None = None,
) -> None:  # fmt: skip
    """Every phase group of one chunk of output channels, for some input channels, into (or onto) the scratch block."""
    tile = code.tile
    taps, table = SLOTS.pointer(f, job, "taps", "i64"), SLOTS.pointer(f, job, "phase_groups", "i64")
    column = s["panel_size"] // tile.width if code.panels else f.value(1)
    right = right[jb * column]
    with f.loop(0, s["group_count"], name="pg") as pg:
        runs, first_run, blocks, weight_at, first_row, all_taps = (f.load("i64", table[pg * GROUP + i]) for i in range(GROUP))
        before = ic * s["channels_filled"] + pc  # channels of this group's chunks and parts that lie in front
        left = weight[weight_at + before * blocks * all_taps * tile.rows]
        depth = all_taps * s["channels_a_pack"] * tile.rows
        rows = scratch[first_row * s["scratch_pitch"]]
        sizes: list[Int] = [taps[first_run * microkernel.TAP], runs, channels, pitch]
        more = f.select(pc > 0, 1, 0)
        block = (left, blocks, depth, right, column, sizes, rows, s["scratch_pitch"], width, more)
        if finishing is None:
            microkernel.emit_block(f, tile, do_tiles, *block)
        else:
            microkernel.emit_block(f, tile, do_tiles, *block, lambda jr: finishing((jb + jr) // tile.lanes))
