"""The code of the Winograd kernel: windows of x transformed into V, a GEMM a point, sums transformed back and stored.

With two halves (Strassen), each point takes seven GEMMs: of sums of quadrants of V, whose channels and whose vectors of tiles,
every other one, are halved. Output channels are halved likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.ir import SIZES, Function, Int, Value, module, vector
from upconv.kernels import columns, microkernel, panel, store
from upconv.kernels import job as jobs
from upconv.kernels.microkernel import Tile
from upconv.kernels.store import Store
from upconv.kernels.strassen_products import PRODUCTS, RIGHT, SUM
from upconv.kernels.winograd_tiles import INPUT, OUTPUT, Way

SLOTS = jobs.Slots(
    tuple(
        dict.fromkeys(
            (
                *columns.SLOTS, *panel.SLOTS, *store.SLOTS, "weight", "taps", "outer", "outer_count", "points", "phase_rows",
                "plane_rows", "room", "splits", "chunks_a_split", "chunks", "chunk", "tile_blocks",
                "channels_out", "channels_in", "depth", "depth_part", "phases_h", "phases_w", "weight_group", "weight_point",
                "x_group", "x_half", "group_out", "v_point", "m_pitch", "m_point", "table_bytes", "found_bytes", "m_bytes",
                "line_bytes", "lines_bytes", "quads_bytes",
            )
        )
    )
)  # fmt: skip


POINT = 4
"""Numbers a point: first strip of rows, strips, first row of the depth, rows."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on; `planes` are the strides of x in the two inner dimensions.

    `uneven` layers have rows that are dead at some points.
    """

    tile: Tile
    halves: int
    ways: tuple[Way, Way, Way]
    planes: tuple[int, int]
    uneven: bool
    store: Store

    @property
    def reach(self) -> tuple[int, int]:
        """Elements of x that a window spans in the two inner dimensions."""
        h, w = (p * way.window for p, way in zip(self.planes, self.ways[1:], strict=True))
        return h, w

    @property
    def points(self) -> list[tuple[int, int]]:
        return list(product(range(self.ways[1].window), range(self.ways[2].window)))

    @property
    def piece(self) -> int:
        """Neighbouring elements of x that a tile takes at once, transposed in registers; 1 where w is not transformed."""
        if not self.ways[2].transformed:
            return 1
        return next(n for n in (16, 8, 4) if n <= self.tile.lanes and self.reach[1] % n == 0)

    @property
    def panel(self) -> panel.Panel:
        """How vectors are found where w is not transformed: each element of the window is a read of its own."""
        return panel.Panel(self.tile.element, self.tile.lanes, self.tile.vectors, self.planes[1])

    def found_bytes(self, outer: int, room: int) -> int:
        """Bytes of what is known of a task's windows: masks of each row of each tile, or an entry a vector and read."""
        if self.piece > 1:
            return outer * self.reach[0] * self.reach[1] * room * 4
        return outer * self.reach[0] * self.reach[1] * room // self.tile.lanes * self.panel.entry


def _combine(f: Function, row: NDArray[Any], values: list[Value]) -> Value:
    """The sum of values with coefficients 0, 1 and -1, the first of them 1."""
    total: Value | None = None
    negative: list[Value] = []
    for coefficient, value in zip(row, values, strict=True):
        if coefficient == 1:
            total = value if total is None else f.fadd(total, value)
        elif coefficient == -1:
            negative.append(value)
    assert total is not None
    for value in negative:
        total = f.fsub(total, value)
    return total


def _transform(f: Function, values: dict[tuple[int, int], Value], matrices: tuple[Any, Any]) -> dict[tuple[int, int], Value]:
    """A matrix applied along each of the two inner dimensions; None leaves a dimension alone."""
    for d, matrix in enumerate(matrices):
        if matrix is None:
            continue
        others = sorted({key[1 - d] for key in values})
        turned = {}
        for other in others:
            line = [values[(i, other) if d == 0 else (other, i)] for i in range(matrix.shape[1])]
            for i, row in enumerate(matrix):
                turned[(i, other) if d == 0 else (other, i)] = _combine(f, row, line)
        values = turned
    return values


# -- windows -----------------------------------------------------------------------------------------------------------


def _emit_windows(code: Code) -> Function:
    """`windows(job, table, room, found, vectors)`: which vectors of tiles lie within x, and masks for those that do not.

    Masks are [outer][row of the window][tile][column of the window].
    """
    f = Function(
        "windows",
        [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("found", "ptr"), ("vectors", "i64")],
        attributes="internal noinline nounwind",
    )
    job, table, room, found, vectors = f.arguments
    lanes, (reach_h, reach_w) = code.tile.lanes, code.reach
    p = columns.parts(table, room, lanes)
    s = {name: SLOTS.read(f, job, name) for name in ("outer_count", "size_d", "size_h", "size_w")}
    outer = SLOTS.pointer(f, job, "outer", "i64")
    first, final = (tuple(f.load("i64", outer[at * panel.READ + i]) for i in range(3)) for at in (f.value(0), s["outer_count"] - 1))
    last = (final[0], final[1] + (reach_h - 1), final[2] + (reach_w - 1))
    with f.loop(0, vectors, name="v") as v:
        low, high = (columns.inside(f, s, p, v * lanes, lanes, (e[0], e[1], e[2])) for e in (first, last))
        interior = f.select(columns.full(f, f._op("and", low, high), lanes), 1, 0)
        f.store(interior, p.vectors[v * columns.VECTOR + columns.READER])
    type_, i32 = vector("i32", reach_w), "i32"
    along = Value(f, "<" + ", ".join(f"i32 {i}" for i in range(reach_w)) + ">", type_)
    size_w = f.splat(f.truncated(s["size_w"]), type_)
    with f.loop(0, s["outer_count"], name="outer") as o, f.loop(0, reach_h, name="row") as e:
        ed, eh, ew = (f.load("i64", outer[o * panel.READ + i]) for i in range(3))
        with f.loop(0, vectors * lanes, name="tile") as t:
            d, h, w = (f.load(i32, part[t]) for part in (p.d, p.h, p.w))
            d = f._op("add", d, f.truncated(ed))
            h, w = f._op("add", h, f.truncated(eh + e)), f._op("add", w, f.truncated(ew))
            there = f._op(
                "and",
                f.compare("ult", d, f.truncated(s["size_d"])),
                f.compare("ult", h, f.truncated(s["size_h"])),
            )
            mask = f.compare("ult", f._op("add", f.splat(w, type_), along), size_w)
            wide = f.emit(f"sext {mask.type} {mask.text} to {type_}", type_)
            kept = f.emit(f"select i1 {there.text}, {type_} {wide.text}, {type_} zeroinitializer", type_)
            f.store(kept, found.of("i32")[((o * reach_h + e) * room + t) * reach_w], align=4)
    return f


def _transpose(f: Function, tiles: list[Value]) -> list[Value]:
    """The vectors of tiles (each n elements long) turned into n vectors, one lane a tile; n is at most the lanes."""
    lanes = len(tiles)
    n = int(tiles[0].type[1:].split(" x ")[0])
    rows = []
    for j in range(n):  # tiles j, j + n, j + 2n ... side by side
        parts = tiles[j::n]
        while len(parts) > 1:
            joined = range(2 * int(parts[0].type[1:].split(" x ")[0]))
            parts = [f.shuffle(a, b, list(joined)) for a, b in zip(parts[0::2], parts[1::2], strict=True)]
        rows.append(parts[0])
    step = 1
    while step < n:  # exchange element bit by element bit between rows that differ in it, within blocks of n lanes
        turned = list(rows)
        for i in range(n):
            if i & step == 0:
                a, b = rows[i], rows[i + step]
                keep = [lane if lane & step == 0 else lanes + (lane ^ step) for lane in range(lanes)]
                move = [(lane ^ step) if lane & step == 0 else lanes + lane for lane in range(lanes)]
                turned[i], turned[i + step] = f.shuffle(a, b, keep), f.shuffle(a, b, move)
        rows, step = turned, step * 2
    return rows


def _emit_input(code: Code) -> Function:
    """`input(job, table, room, found, vectors, x, v, line, quads)`: the windows of a block's tiles, all channels, into V.

    V is [product][point][panel][outer][channel][plane][tile]. The quadrants of a product of halves stand in `quads` first.
    """
    pointers = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("found", "ptr"), ("vectors", "i64")]
    arguments = [*pointers, ("x", "ptr"), ("v", "ptr"), ("line", "ptr"), ("quads", "ptr")]
    f = Function("input", arguments, attributes="internal noinline nounwind")
    job, table, room, found, vectors, x, v, line, quads = f.arguments
    tile, lanes, halves = code.tile, code.tile.lanes, code.halves
    x, v, line, quads = (pointer.of(tile.element) for pointer in (x, v, line, quads))
    names = ("x_channel", "x_h", "x_half", "channels_in", "outer_count", "panel_size", "v_point")
    s = {name: SLOTS.read(f, job, name) for name in names}
    p = columns.parts(table, room, lanes)
    planes = prod(code.planes)
    outer, plane_rows = SLOTS.pointer(f, job, "outer", "i64"), SLOTS.pointer(f, job, "plane_rows", "i64")
    with f.loop(0, s["channels_in"], name="c") as c, f.loop(0, s["outer_count"], name="outer") as o:
        taps = [f.load("i64", plane_rows[o * planes + i]) for i in range(planes)]
        rows = [(tap * s["channels_in"] + c) * tile.width for tap in taps]
        with f.loop(0, vectors // halves, name="column") as column:
            panel_ = v[column // tile.vectors * s["panel_size"] + column % tile.vectors * lanes]
            target = [panel_[row] for row in rows]

            def put(plane: int, point: Int, value: Value, target: list[Value] = target) -> None:
                f.store(value, target[plane][s["v_point"] * point])

            if halves == 1:
                _emit_window(f, code, s, p, x[c * s["x_channel"]], outer, found, (o, column, vectors, room), line, put)
            else:
                _emit_quadrants(f, code, s, p, x[c * s["x_channel"]], outer, found, (o, column, vectors, room), line, quads, put)
    return f


Put = Callable[[int, Int, Value], None]
"""What becomes of a plane's point."""


def _emit_quadrants(
    f: Function, code: Code, s: dict[str, Value], p: columns.Parts, source: Value, outer: Value, found: Value,
    at: tuple[Value, Value, Value, Value], line: Value, quads: Value, put: Put,
) -> None:  # fmt: skip
    """The points of two vectors of tiles of two channels, one of each half, and of these what the seven products multiply."""
    o, column, vectors, room = at
    tile, planes, points = code.tile, prod(code.planes), len(code.points)
    size = points * tile.lanes
    with f.loop(0, code.halves**2, name="quad") as quad:
        to, number = quads[quad * (planes * size)], column * code.halves + quad % code.halves

        def keep(plane: int, point: Int, value: Value) -> None:
            f.store(value, to[point * tile.lanes + plane * size])

        channel = source[quad // code.halves * s["x_half"]]
        _emit_window(f, code, s, p, channel, outer, found, (o, number, vectors, room), line, keep)
    for plane in range(planes):
        with f.loop(0, points, name="point") as point:
            quadrants = [f.load(tile.type, quads[point * tile.lanes + (i * planes + plane) * size]) for i in range(code.halves**2)]
            for i, row in enumerate(RIGHT):
                put(plane, point + i * points, _combine(f, row, quadrants))


def _emit_window(
    f: Function, code: Code, s: dict[str, Value], p: columns.Parts, source: Value, outer: Value, found: Value,
    at: tuple[Value, Value, Value, Value], line: Value, put: Put,
) -> None:  # fmt: skip
    """The points of one vector of tiles of one channel; `at` is (outer, vector, vectors, room)."""
    o, number, vectors, room = at
    if code.piece == 1:
        _emit_vectors(f, code, s, p, source, found, o, vectors, number, line, put)
        return
    lanes = code.tile.lanes
    start = source[f.load("i64", outer[o * panel.READ + 3])]
    _emit_ahead(f, code, s, start[f.load("i64", p.places[number * lanes])])
    interior = p.vector(f, number, columns.READER).equals(1)
    with f.when(interior, name="interior"):
        _emit_tiles(f, code, s, p, start, number, None, put)
    with f.otherwise(interior, name="border"):
        masks = found.of("i32")[(o * code.reach[0] * room + number * lanes) * code.reach[1]]
        _emit_tiles(f, code, s, p, start, number, (masks, room), put)


def _emit_ahead(f: Function, code: Code, s: dict[str, Value], place: Value) -> None:
    """Asks for what a vector of tiles reads of a later channel."""
    span = code.tile.lanes * code.ways[2].outputs * code.planes[1]
    for e in range(code.reach[0]):
        for at in range(0, span, 64 // SIZES[code.tile.element]):
            f.prefetch(place[s["x_channel"] * panel.AHEAD + s["x_h"] * e + at])


def _emit_tiles(
    f: Function, code: Code, s: dict[str, Value], p: columns.Parts, start: Value, number: Value,
    masks: tuple[Value, Value] | None, put: Put,
) -> None:  # fmt: skip
    """The windows of one vector of tiles, each tile's rows read as they lie in x and transposed in registers."""
    lanes, (_, reach_w), size = code.tile.lanes, code.reach, code.piece
    places = [start[f.load("i64", p.places[number * lanes + i])] for i in range(lanes)]
    type_, mask_type = vector(code.tile.element, size), vector("i32", size)

    def row(e: int) -> list[Value]:
        """Row e of the window: a vector for each of its columns."""
        found = []
        for at in range(0, reach_w, size):
            tiles = []
            for i, place in enumerate(places):
                address = place[s["x_h"] * e + at]
                if masks is None:
                    tiles.append(f.load(type_, address))
                else:
                    table, room = masks
                    mask = f.load(mask_type, table[(room * e + i) * reach_w + at], 4)
                    tiles.append(f.masked_load(type_, address, f.compare("slt", mask, f.splat_int(0, mask_type))))
            found += _transpose(f, tiles)
        return found

    _emit_points(f, code, row, put)


def _emit_vectors(
    f: Function, code: Code, s: dict[str, Value], p: columns.Parts, source: Value, found: Value, o: Value, vectors: Value,
    number: Value, line: Value, put: Put,
) -> None:  # fmt: skip
    """The windows of one vector of tiles where w is not transformed: each element of the window is a vector of x."""
    lanes, (reach_h, reach_w) = code.tile.lanes, code.reach
    with f.loop(0, reach_h * reach_w, name="element") as e:
        entry = found.of("i8")[((o * (reach_h * reach_w) + e) * vectors + number) * code.panel.entry]
        f.prefetch(source[f.load("i64", entry) + s["x_channel"] * panel.AHEAD])
        panel.emit_fetch(f, code.panel, p, source, entry, number, line[e * lanes])
    _emit_points(f, code, lambda e: [f.load(code.tile.type, line[(e * reach_w + i) * lanes]) for i in range(reach_w)], put)


def _emit_points(f: Function, code: Code, row: Callable[[int], list[Value]], put: Put) -> None:
    """Transforms the windows whose rows `row` gives, one of each plane of x."""
    ph, pw = code.planes
    matrices = (INPUT if code.ways[1].transformed else None, INPUT if code.ways[2].transformed else None)
    for bh in range(ph):
        rows = [row(ph * u + bh) for u in range(code.ways[1].window)]
        for bw in range(pw):
            window = {(u, t): rows[u][pw * t + bw] for u, t in code.points}
            done = _transform(f, window, matrices)
            for i, point in enumerate(code.points):
                put(bh * pw + bw, i, done[point])


# -- outputs -----------------------------------------------------------------------------------------------------------


def _emit_output(code: Code, writer: store.Writer) -> Function:
    """`output(job, table, room, vectors, m, lines, line, y, channel, channels)`: M back to outputs, and these stored.

    The tile's outputs of one phase of h stand in `lines`, [output row][output column by phase][tile], before they are woven.
    """
    pointers = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("vectors", "i64"), ("m", "ptr"), ("lines", "ptr")]
    arguments = [*pointers, ("line", "ptr"), ("y", "ptr"), ("channel", "i64"), ("channels", "i64")]
    f = Function("output", arguments, attributes="internal noinline nounwind")
    job, table, room, vectors, m, lines, line, y, channel, channels = f.arguments
    tile, lanes, (_, way_h, way_w) = code.tile, code.tile.lanes, code.ways
    m, lines, line, y = (pointer.of(tile.element) for pointer in (m, lines, line, y))
    names = (
        "m_pitch", "m_point", "y_channel", "phases_h", "phases_w", "out_step_d", "out_step_w", "out_h", "out_w", "channels_out",
    )  # fmt: skip
    s = {name: SLOTS.read(f, job, name) for name in names}
    bias, phase_rows = SLOTS.pointer(f, job, "bias", tile.element), SLOTS.pointer(f, job, "phase_rows", "i64")
    p = columns.parts(table, room, lanes)
    matrices = tuple(OUTPUT[way.taps] if way.transformed else None for way in (way_h, way_w))
    quadrants = list(product(range(code.halves), repeat=2))

    def sums(source: Value, quadrant: int) -> dict[tuple[int, int], Value]:
        """A quadrant's points, from the products that it consists of."""
        used = [i for i, sign in enumerate(SUM[quadrant]) if sign] if code.halves > 1 else [0]
        signs = SUM[quadrant][used] if code.halves > 1 else np.ones(1)
        return {
            point: _combine(f, signs, [f.load(tile.type, source[s["m_point"] * (n * len(code.points) + i)]) for n in used])
            for i, point in enumerate(code.points)
        }

    with f.loop(0, channels, name="m") as number, f.loop(0, s["out_step_d"], name="ad") as ad:
        channel_of = [number + s["channels_out"] * half for half in range(code.halves)]
        offsets = [f.load(tile.element, bias[channel + n]) for n in channel_of]
        planes = [y[n * s["y_channel"]] for n in channel_of]
        with f.loop(0, s["phases_h"], name="ah") as ah, f.loop(0, vectors // code.halves, name="column") as column:
            first = (ad * s["phases_h"] + ah) * s["phases_w"]
            for quadrant, (half, other) in enumerate(quadrants):
                with f.loop(0, s["phases_w"], name="aw") as aw:
                    at = phase_rows[(first + aw) * 2]
                    source = m[(f.load("i64", at) + number * f.load("i64", at[1])) * s["m_pitch"] + column * lanes]
                    for (i, j), value in _transform(f, sums(source, quadrant), (matrices[0], matrices[1])).items():
                        f.store(value, lines[((s["phases_w"] * (i * way_w.outputs + j)) + aw) * lanes])
                with f.loop(0, way_h.outputs, name="ih") as ih:
                    row, h = lines[ih * s["out_step_w"] * lanes], ih * s["phases_h"] + ah
                    to = store.Destination(job, table, room, line, planes[half], ad, h, (ad * s["out_h"] + h) * s["out_w"])

                    def stream(a: Int, row: Value = row) -> Value:
                        return f.load(tile.type, row[a * lanes])

                    vector_ = column * code.halves + other
                    ahead = planes[half][s["y_channel"] + p.vector(f, vector_, columns.OUT) + to.row]
                    for line_at in range(0, lanes * (code.store.step or 1), 16):
                        f.prefetch(ahead[line_at], write=True)
                    store.emit_vector(f, writer, to, p, vector_, stream, offsets[half], s["out_step_w"])
    return f


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = code.tile
    do_tiles = microkernel.emit_both(tile)
    do_place, writer = columns.emit_place(tile.lanes, SLOTS, together=code.halves), store.writer(code.store, SLOTS)
    do_find = _emit_windows(code) if code.piece > 1 else panel.emit_masks(code.panel, SLOTS)
    do_input, do_output = _emit_input(code), _emit_output(code, writer)

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
        x = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"]]
        y = SLOTS.pointer(f, job, "y", tile.element)
        weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"]]
        f.call(do_place, [job, table, s["room"], low, low + width])
        f.call(do_find, [job, table, s["room"], found, vectors])
        f.call(do_input, [job, table, s["room"], found, vectors, x, v, line, quads])
        taps, points = SLOTS.pointer(f, job, "taps", "i64"), SLOTS.pointer(f, job, "points", "i64")
        strip = s["depth"] * tile.rows
        with f.loop(0, s["m_bytes"] // SIZES[tile.element] if code.uneven else 0, tile.lanes, name="zero") as i:
            f.store(Value(f, "zeroinitializer", tile.type), m[i])  # rows that no GEMM writes, at the points where they are dead
        first = split * s["chunks_a_split"]
        with f.loop(first, f.minimum(first + s["chunks_a_split"], s["chunks"]), name="ic") as ic:
            with f.loop(0, len(code.points) * PRODUCTS[code.halves], name="point") as point:
                first_strip, strips, first_row, rows = (f.load("i64", points[point * POINT + i]) for i in range(POINT))
                left = weight[point * s["weight_point"] + (ic * s["tile_blocks"] + first_strip) * strip]
                right = v[point * s["v_point"]]
                sums = m[point * s["m_point"] + first_strip * tile.rows * s["m_pitch"]]
                with f.loop(0, rows, s["depth_part"], name="pc") as pc:
                    sizes: list[Int] = [taps, 1, f.minimum(rows - pc, s["depth_part"]), tile.width]
                    at, more = first_row + pc, f.select(pc > 0, 1, 0)
                    a, b = left[at * tile.rows], right[at * tile.width]
                    microkernel.emit_block(
                        f, tile, do_tiles, a, strips, strip, b, s["depth"], sizes, sums, s["m_pitch"], wide, more
                    )
            channel = ic * s["chunk"]
            number_out = group * s["group_out"] + channel
            several = f.minimum(s["channels_out"] - channel, s["chunk"])
            plane = y[number_out * s["y_channel"]]
            f.call(do_output, [job, table, s["room"], vectors, m, lines, line, plane, number_out, several])

    entry = jobs.emit_entry("entry", SLOTS, task)
    return module([*do_tiles, do_place, do_find, do_input, *writer.functions, do_output, entry])


_TASK_SLOTS = (
    *columns.CUT, "room", "splits", "chunks_a_split", "chunks", "chunk", "tile_blocks",
    "channels_out", "group_out", "depth", "depth_part", "weight_group", "weight_point", "x_group", "v_point", "m_pitch", "m_point",
    "y_channel", "table_bytes", "found_bytes", "line_bytes", "lines_bytes", "quads_bytes", "m_bytes",
)  # fmt: skip
