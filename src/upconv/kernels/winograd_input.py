"""The Winograd kernel's input: windows of x found, transformed, and stood in the panels that its GEMMs read.

With two halves (Strassen), what stands there are sums of quadrants: of the two halves of the channels, and of every other vector
of tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from upconv.codegen.ir import SIZES, Function, Int, Value, vector
from upconv.codegen.target import LINE
from upconv.kernels import columns, panel
from upconv.kernels.strassen_products import RIGHT
from upconv.kernels.winograd_way import SLOTS, Code, combine


def emit_windows(code: Code) -> Function:
    """`windows(job, table, room, found, vectors)`: which vectors of tiles lie within x, and masks for the others.

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
    type_, i32 = vector("i32", reach_w), "i32"
    along = f.iota(reach_w, 1, i32)
    size_w = f.splat(f.truncated(s["size_w"]), type_)
    with f.loop(0, vectors, name="v") as v:
        low, high = (columns.inside(f, s, p, v * lanes, lanes, (e[0], e[1], e[2])) for e in (first, last))
        interior = columns.full(f, f._op("and", low, high), lanes)
        f.store(f.select(interior, 1, 0), p.vectors[v * columns.VECTOR + columns.READER])
        with (
            f.otherwise(interior, name="border"),
            f.loop(0, s["outer_count"], name="outer") as o,
            f.loop(0, reach_h, name="row") as e,
            f.loop(v * lanes, (v + 1) * lanes, name="tile") as t,
        ):
            ed, eh, ew = (f.load("i64", outer[o * panel.READ + i]) for i in range(3))
            d, h, w = (f.load(i32, part[t]) for part in (p.d, p.h, p.w))
            d = f._op("add", d, f.truncated(ed))
            h, w = f._op("add", h, f.truncated(eh + e)), f._op("add", w, f.truncated(ew))
            there = f._op(
                "and",
                f.compare("ult", d, f.truncated(s["size_d"])),
                f.compare("ult", h, f.truncated(s["size_h"])),
            )
            mask = f.compare("ult", f._op("add", f.splat(w, type_), along), size_w)
            wide = columns.widened(f, mask)
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


Put = Callable[[int, Int, Value], None]
"""What becomes of a plane's point."""


@dataclass(frozen=True, slots=True)
class Reader:
    """What reading a block's windows takes besides a channel of x: the job's numbers and tables, and a line to gather in."""

    code: Code
    s: dict[str, Value]
    parts: columns.Parts
    outer: Value
    found: Value
    vectors: Value
    room: Value
    line: Value


def emit_input(code: Code) -> Function:
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
    reader = Reader(code, s, p, outer, found, vectors, room, line)
    with f.loop(0, s["channels_in"], name="c") as c, f.loop(0, s["outer_count"], name="outer") as o:
        taps = [f.load("i64", plane_rows[o * planes + i]) for i in range(planes)]
        rows = [(tap * s["channels_in"] + c) * tile.width for tap in taps]
        with f.loop(0, vectors // halves, name="column") as column:
            panel_ = v[column // tile.vectors * s["panel_size"] + column % tile.vectors * lanes]
            target = [panel_[row] for row in rows]

            def put(plane: int, point: Int, value: Value, target: list[Value] = target) -> None:
                f.store(value, target[plane][s["v_point"] * point])

            if halves == 1:
                _emit_window(f, reader, x[c * s["x_channel"]], o, column, put)
            else:
                _emit_quadrants(f, reader, x[c * s["x_channel"]], o, column, quads, put)
    return f


def _emit_quadrants(f: Function, reader: Reader, source: Value, o: Value, column: Value, quads: Value, put: Put) -> None:
    """The points of two vectors of tiles of two channels, one of each half, and of these what the seven products multiply."""
    code = reader.code
    tile, planes, points = code.tile, prod(code.planes), len(code.points)
    size = points * tile.lanes
    with f.loop(0, code.halves**2, name="quad") as quad:
        to, number = quads[quad * (planes * size)], column * code.halves + quad % code.halves

        def keep(plane: int, point: Int, value: Value) -> None:
            f.store(value, to[point * tile.lanes + plane * size])

        _emit_window(f, reader, source[quad // code.halves * reader.s["x_half"]], o, number, keep)
    for plane in range(planes):
        with f.loop(0, points, name="point") as point:
            quadrants = [f.load(tile.type, quads[point * tile.lanes + (i * planes + plane) * size]) for i in range(code.halves**2)]
            for i, row in enumerate(RIGHT):
                put(plane, point + i * points, combine(f, row, quadrants))


def _emit_window(f: Function, reader: Reader, source: Value, o: Value, number: Value, put: Put) -> None:
    """The points of vector `number` of tiles, of the channel at `source` and the group of taps and outer plane `o`."""
    code, lanes = reader.code, reader.code.tile.lanes
    if code.piece == 1:
        _emit_vectors(f, reader, source, o, number, put)
        return
    start = source[f.load("i64", reader.outer[o * panel.READ + 3])]
    _emit_ahead(f, code, reader.s, start[f.load("i64", reader.parts.places[number * lanes])])
    interior = reader.parts.vector(f, number, columns.READER).equals(1)
    with f.when(interior, name="interior"):
        _emit_tiles(f, reader, start, number, None, put)
    with f.otherwise(interior, name="border"):
        masks = reader.found.of("i32")[(o * code.reach[0] * reader.room + number * lanes) * code.reach[1]]
        _emit_tiles(f, reader, start, number, masks, put)


def _emit_ahead(f: Function, code: Code, s: dict[str, Value], place: Value) -> None:
    """Asks for what a vector of tiles reads of a later channel."""
    span = code.tile.lanes * code.ways[2].outputs * code.planes[1]
    for e in range(code.reach[0]):
        for at in range(0, span, LINE // SIZES[code.tile.element]):
            f.prefetch(place[s["x_channel"] * panel.AHEAD + s["x_h"] * e + at])


def _emit_tiles(f: Function, reader: Reader, start: Value, number: Value, masks: Value | None, put: Put) -> None:
    """The windows of one vector of tiles, each tile's rows read as they lie in x and transposed in registers."""
    code = reader.code
    lanes, (_, reach_w), size = code.tile.lanes, code.reach, code.piece
    places = [start[f.load("i64", reader.parts.places[number * lanes + i])] for i in range(lanes)]
    type_ = vector(code.tile.element, size)

    def read(e: int) -> list[Value]:
        """Row e of the window, piece by piece of every tile."""
        found = []
        for at, (i, place) in product(range(0, reach_w, size), enumerate(places)):
            address = place[reader.s["x_h"] * e + at]
            if masks is None:
                found.append(f.load(type_, address))
            else:
                mask = columns.kept(f, size, masks[(reader.room * e + i) * reach_w + at])
                found.append(f.masked_load(type_, address, mask))
        return found

    def turn(row: list[Value]) -> list[Value]:
        return [column for at in range(0, len(row), lanes) for column in _transpose(f, row[at : at + lanes])]

    _emit_points(f, code, read, turn, put)


def _emit_vectors(f: Function, reader: Reader, source: Value, o: Value, number: Value, put: Put) -> None:
    """The windows of one vector of tiles where w is not transformed: each element of the window is a vector of x."""
    code, line = reader.code, reader.line
    lanes, (reach_h, reach_w) = code.tile.lanes, code.reach
    with f.loop(0, reach_h * reach_w, name="element") as e:
        entry = reader.found.of("i8")[((o * (reach_h * reach_w) + e) * reader.vectors + number) * code.panel.entry]
        f.prefetch(source[f.load("i64", entry) + reader.s["x_channel"] * panel.AHEAD])
        panel.emit_fetch(f, code.panel, reader.parts, source, entry, number, line[e * lanes])

    def read(e: int) -> list[Value]:
        return [f.load(code.tile.type, line[(e * reach_w + i) * lanes]) for i in range(reach_w)]

    _emit_points(f, code, read, list, put)


def _emit_points(
    f: Function, code: Code, read: Callable[[int], list[Value]], turn: Callable[[list[Value]], list[Value]], put: Put
) -> None:
    """Transforms the windows whose rows `read` reads, one of each plane of x; `turn` makes vectors of tiles of them.

    Rows are combined as they are read, point by point of h, before they are turned: each point takes few of them, so that they
    are read again rather than kept in registers that there are not.
    """
    (ph, pw), (_, way_h, way_w) = code.planes, code.ways
    first, second = (way.points.input if way.points else np.eye(1) for way in (way_h, way_w))
    for bh, (i, row) in product(range(ph), enumerate(first)):
        used = np.flatnonzero(row).tolist()
        elements = zip(*(read(ph * u + bh) for u in used), strict=True)
        line = turn([combine(f, row[used], list(values)) for values in elements])
        for bw, (j, column) in product(range(pw), enumerate(second)):
            put(bh * pw + bw, i * way_w.window + j, combine(f, column, [line[pw * t + bw] for t in range(way_w.window)]))
