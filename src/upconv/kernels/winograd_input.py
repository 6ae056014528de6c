"""The Winograd kernel's input: windows of x found, transformed, and stood in the panels that its GEMMs read.

In slices (Strassen), what stands there are sums of slices: of halves or quarters of the channels, and of every other or every
fourth vector of tiles, which stand in turn as they are listed (`listing`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from upconv.codegen.ir import SIZES, Function, Int, Value, lanes_of, vector
from upconv.codegen.target import LINE
from upconv.kernels import columns, pack, panel
from upconv.kernels.strassen_sums import emit_right
from upconv.kernels.winograd_way import SLOTS, Code, combine

MASKED, INSIDE, ROWS_INSIDE = range(3)
"""How a vector of windows is read: row by row of each tile, masked; whole; or whole, with what lies beyond the ends of rows, which
is some other element of x, then set to zero, a column of all tiles at a time."""


def emit_windows(code: Code) -> Function:
    """`windows(job, table, room, found, vectors)`: how each vector of windows is read, and the masks that it takes.

    Masks are [outer][row of the window][tile][column of the window], or in place of the first row [column of the window][tile].
    """
    f = Function(
        "windows",
        [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("found", "ptr"), ("vectors", "i64")],
        attributes="internal noinline nounwind",
    )
    job, table, room, found, vectors = f.arguments
    lanes, (reach_h, reach_w) = code.tile.lanes, code.reach
    p = columns.parts(table, room, lanes)
    s = {name: SLOTS.read(f, job, name) for name in ("outer_count", "size_d", "size_h", "size_w", "x_h", "x_end")}
    outer = SLOTS.pointer(f, job, "outer", "i64")
    ends = outer, outer[(s["outer_count"] - 1) * panel.READ]
    first, final = ([f.load("i64", end[i]) for i in range(panel.READ)] for end in ends)
    last = [final[0], final[1] + (reach_h - 1), final[2] + (reach_w - 1), final[3] + (reach_h - 1) * s["x_h"] + (reach_w - 1)]
    with f.loop(0, vectors, name="v") as v:
        interior, ends_only = _emit_kind(f, s, p, v * lanes, lanes, first, last)
        kind = f.select(interior, INSIDE, f.select(ends_only, f.value(ROWS_INSIDE), MASKED))
        f.store(kind, p.vectors[v * columns.VECTOR + columns.READER])
        with f.loop(0, f.select(interior, 0, s["outer_count"]), name="outer") as o:
            e = [f.load("i64", outer[o * panel.READ + i]) for i in range(3)]
            masks = found.of("i32")[(o * reach_h * room + v * lanes) * reach_w]
            with f.when(ends_only, name="ends"):
                for t in range(reach_w):
                    along = columns.inside(f, s, p, v * lanes, lanes, (e[0], e[1], e[2] + t), "w")
                    f.store(columns.widened(f, along), masks[t * lanes], align=4)
            with f.otherwise(ends_only, name="border"):
                _emit_masks(f, code, s, p, v * lanes, e, masks, room)
    return f


def _emit_kind(
    f: Function, s: dict[str, Value], p: columns.Parts, column: Value, lanes: int, first: list[Value], last: list[Value]
) -> tuple[Value, Value]:
    """Whether a vector's windows lie within x; and whether their rows do, and all that stands where they are read is x's.

    That is so for every channel of every group if the windows do not begin before x's first element, nor end behind the first
    channel of the last image. Tiles that are nowhere are masked with the ends, and read where a tile stands that is somewhere.
    """
    rows, along = (
        f._op("and", *(columns.inside(f, s, p, column, lanes, (e[0], e[1], e[2]), axes) for e in (first, last)))
        for axes in ("dh", "w")
    )
    places, numbers = f.load(vector("i64", lanes), p.places[column]), vector("i32", lanes)
    begin, end = (f._op("add", places, f.splat(e[3], places.type)) for e in (first, last))
    from_start = f.compare("sge", begin, f.splat_int(0, begin.type))
    safe = f._op("and", from_start, f.compare("slt", end, f.splat(s["x_end"], end.type)))
    nowhere = f.compare("eq", f.load(numbers, p.d[column]), f.splat_int(columns.NOWHERE, numbers))
    ends_only = f._op("and", f._op("or", rows, nowhere), safe)
    return columns.full(f, f._op("and", rows, along), lanes), columns.full(f, ends_only, lanes)


def _emit_masks(
    f: Function, code: Code, s: dict[str, Value], p: columns.Parts, first: Value, e: list[Value], masks: Value, room: Value
) -> None:
    """Masks of each row of each window of a vector of tiles."""
    lanes, (reach_h, reach_w), i32 = code.tile.lanes, code.reach, "i32"
    type_ = vector(i32, reach_w)
    along, size_w = f.iota(reach_w, 1, i32), f.splat(f.truncated(s["size_w"]), type_)
    with f.loop(0, reach_h, name="row") as row, f.loop(0, lanes, name="tile") as t:
        d, h, w = (
            f._op("add", f.load(i32, part[first + t]), f.truncated(at))
            for part, at in zip((p.d, p.h, p.w), (e[0], e[1] + row, e[2]), strict=True)
        )
        there = f._op("and", f.compare("ult", d, f.truncated(s["size_d"])), f.compare("ult", h, f.truncated(s["size_h"])))
        mask = f.compare("ult", f._op("add", f.splat(w, type_), along), size_w)
        wide = columns.widened(f, mask)
        kept = f.emit(f"select i1 {there.text}, {type_} {wide.text}, {type_} zeroinitializer", type_)
        f.store(kept, masks[(row * room + t) * reach_w], align=4)


def _side_by_side(f: Function, tiles: list[Value]) -> list[Value]:
    """The tiles' elements (n of each, at most as many as there are tiles) in n whole vectors, tiles j, j + n, ... in the j-th."""
    n = lanes_of(tiles[0].type)
    rows = []
    for j in range(n):
        parts = tiles[j::n]
        while len(parts) > 1:
            joined = range(2 * lanes_of(parts[0].type))
            parts = [f.shuffle(a, b, list(joined)) for a, b in zip(parts[0::2], parts[1::2], strict=True)]
        rows.append(f.fence(parts[0]) if len(tiles) > n else parts[0])  # or else LLVM adds up parts, and joins the sums
    return rows


def _transpose(f: Function, rows: list[Value]) -> list[Value]:
    """The rows that `_side_by_side` made turned into as many vectors of one element of every tile, one lane a tile."""
    n, lanes = len(rows), lanes_of(rows[0].type)
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
Turn = Callable[[list[Value]], list[Value]]
"""Makes vectors of one element of every tile of what was read of a row."""


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
    """`input(job, table, room, found, vectors, x, v, line, sliced)`: the windows of a block's tiles, all channels, into V.

    V is [product][point][panel][outer][channel][plane][tile]. The slices that are added up stand in `sliced` first.
    """
    pointers = [("job", "ptr"), ("table", "ptr"), ("room", "i64"), ("found", "ptr"), ("vectors", "i64")]
    arguments = [*pointers, ("x", "ptr"), ("v", "ptr"), ("line", "ptr"), ("sliced", "ptr")]
    f = Function("input", arguments, attributes="internal noinline nounwind")
    job, table, room, found, vectors, x, v, line, sliced = f.arguments
    tile, lanes, slices = code.tile, code.tile.lanes, code.slices
    x, v, line, sliced = (pointer.of(tile.element) for pointer in (x, v, line, sliced))
    names = ("x_channel", "x_h", "x_slice", "channels_in", "outer_count", "panel_size", "v_point")
    s = {name: SLOTS.read(f, job, name) for name in names}
    p = columns.parts(table, room, lanes)
    planes = prod(code.planes) * code.side_by_side
    outer, plane_rows = SLOTS.pointer(f, job, "outer", "i64"), SLOTS.pointer(f, job, "plane_rows", "i64")
    reader = Reader(code, s, p, outer, found, vectors, room, line)
    with f.loop(0, s["channels_in"], name="c") as c, f.loop(0, s["outer_count"], name="outer") as o:
        taps = [f.load("i64", plane_rows[o * planes + i]) for i in range(planes)]
        rows = [(tap * s["channels_in"] + c) * tile.width for tap in taps]
        with f.loop(0, vectors // slices, name="column") as column:
            numbers = [column * code.interleaved + n for n in range(code.interleaved)] if code.interleaved > 1 else [column]
            panels = [v[n // tile.vectors * s["panel_size"] + n % tile.vectors * lanes] for n in numbers]
            target = [panels[of][row] for of, row in zip(code.layers, rows, strict=True)]

            def put(plane: int, point: Int, value: Value, target: list[Value] = target) -> None:
                f.store(value, target[plane][s["v_point"] * point])

            if slices == 1:
                _emit_window(f, reader, x[c * s["x_channel"]], o, column, put)
            else:
                _emit_slices(f, reader, x[c * s["x_channel"]], o, column, sliced, put)
    return f


def _emit_slices(f: Function, reader: Reader, source: Value, o: Value, column: Value, sliced: Value, put: Put) -> None:
    """The points of a vector of tiles and a channel of each slice, and of these what the products multiply."""
    code = reader.code
    tile, planes, points = code.tile, prod(code.planes), len(code.points)
    size = points * tile.lanes
    with f.loop(0, code.slices**2, name="slice") as n:
        to, number = sliced[n * (planes * size)], column * code.slices + n % code.slices

        def keep(plane: int, point: Int, value: Value) -> None:
            f.store(value, to[point * tile.lanes + plane * size])

        _emit_window(f, reader, source[n // code.slices * reader.s["x_slice"]], o, number, keep)
    for plane in range(planes):
        with f.loop(0, points, name="point") as point:
            slices = [f.load(tile.type, sliced[point * tile.lanes + (i * planes + plane) * size]) for i in range(code.slices**2)]
            for i, value in enumerate(emit_right(f, slices)):
                put(plane, point + i * points, value)


def _emit_window(f: Function, reader: Reader, source: Value, o: Value, number: Value, put: Put) -> None:
    """The points of vector `number` of tiles, of the channel at `source` and the group of taps and outer plane `o`."""
    code, lanes = reader.code, reader.code.tile.lanes
    if code.piece == 1:
        _emit_vectors(f, reader, source, o, number, put)
        return
    start = source[f.load("i64", reader.outer[o * panel.READ + 3])]
    _emit_ahead(f, code, reader.s, start[f.load("i64", reader.parts.places[number * lanes])])
    masks = reader.found.of("i32")[(o * code.reach[0] * reader.room + number * lanes) * code.reach[1]]
    how = reader.parts.vector(f, number, columns.READER)
    for kind, name in ((INSIDE, "interior"), (ROWS_INSIDE, "ends"), (MASKED, "border")):
        with f.when(how.equals(kind), name=name):
            read, turn = _rows_of_tiles(f, reader, start, number, kind, masks)
            if code.row_by_row:
                _emit_row_by_row(f, reader, read, turn)
            else:
                _emit_points(f, code, read, turn, put)
    if code.row_by_row:
        _emit_points(f, code, lambda e: _row_of_line(f, reader, e), list, put)


def _emit_ahead(f: Function, code: Code, s: dict[str, Value], place: Value) -> None:
    """Asks for what a vector of tiles reads of a later channel."""
    span = code.tile.lanes * code.ways[2].outputs * code.planes[1]
    for e in range(code.reach[0]):
        for at in range(0, span, LINE // SIZES[code.tile.element]):
            f.prefetch(place[s["x_channel"] * pack.AHEAD + s["x_h"] * e + at])


def _rows_of_tiles(
    f: Function, reader: Reader, start: Value, number: Value, kind: int, masks: Value
) -> tuple[Callable[[Int], list[Value]], Turn]:
    """How the windows of one vector of tiles are read: each tile's row as it lies in x; and transposed in registers."""
    code = reader.code
    lanes, (_, reach_w), size = code.tile.lanes, code.reach, code.piece
    places = [start[f.load("i64", reader.parts.places[number * lanes + i])] for i in range(lanes)]
    type_ = vector(code.tile.element, size)

    def read(e: Int) -> list[Value]:
        """Row e of the window, piece by piece, each with those of all tiles side by side."""
        found = []
        for at in range(0, reach_w, size):
            tiles = []
            for i, place in enumerate(places):
                address = place[reader.s["x_h"] * e + at]
                if kind == MASKED:
                    mask = columns.kept(f, size, masks[(reader.room * e + i) * reach_w + at])
                    tiles.append(f.masked_load(type_, address, mask))
                else:
                    tiles.append(f.load(type_, address))
            found += _side_by_side(f, tiles)
        return found

    def turn(row: list[Value]) -> list[Value]:
        turned = [column for at in range(0, reach_w, size) for column in _transpose(f, row[at : at + size])]
        if kind == ROWS_INSIDE:
            turned = [columns.masked(f, column, masks[t * lanes]) for t, column in enumerate(turned)]
        return turned

    return read, turn


def _emit_row_by_row(f: Function, reader: Reader, read: Callable[[Int], list[Value]], turn: Turn) -> None:
    """Turns one row after the other, and leaves them in the line: windows that registers do not hold are read there."""
    reach_h, reach_w = reader.code.reach
    with f.loop(0, reach_h, name="row") as e:
        for i, value in enumerate(turn(read(e))[: reader.code.window[1]]):
            f.store(value, reader.line[(e * reach_w + i) * reader.code.tile.lanes])


def _row_of_line(f: Function, reader: Reader, e: int) -> list[Value]:
    """Row e of the windows that stand in the line."""
    tile, reach_w = reader.code.tile, reader.code.reach[1]
    return [f.load(tile.type, reader.line[(e * reach_w + i) * tile.lanes]) for i in range(reader.code.window[1])]


def _emit_vectors(f: Function, reader: Reader, source: Value, o: Value, number: Value, put: Put) -> None:
    """The windows of one vector of tiles where w is not transformed: each element of the window is a vector of x."""
    code, line = reader.code, reader.line
    lanes, (reach_h, reach_w) = code.tile.lanes, code.reach
    with f.loop(0, reach_h * reach_w, name="element") as e:
        entry = reader.found.of("i8")[((o * (reach_h * reach_w) + e) * reader.vectors + number) * code.panel.entry]
        f.prefetch(source[f.load("i64", entry) + reader.s["x_channel"] * pack.AHEAD])
        panel.emit_fetch(f, code.panel, reader.parts, source, entry, number, line[e * lanes])

    _emit_points(f, code, lambda e: _row_of_line(f, reader, e), list, put)


def _emit_points(f: Function, code: Code, read: Callable[[int], list[Value]], turn: Turn, put: Put) -> None:
    """Transforms the windows whose rows `read` reads, one of each plane of x; `turn` makes vectors of tiles of them.

    Rows are combined as they are read, point by point of h, before they are turned: each point takes few of them, so that they
    are read again rather than kept in registers that there are not.
    """
    (ph, pw), way_w, two = code.planes, code.ways[2], code.side_by_side
    first, second = code.inputs
    for bh, (i, row) in product(range(ph), enumerate(first)):
        used = np.flatnonzero(row).tolist()
        elements = zip(*(read(ph * u + bh) for u in used), strict=True)
        line = turn([combine(f, row[used], list(values)) for values in elements])
        for bw, (j, column) in product(range(pw * two), enumerate(second)):
            put(bh * pw * two + bw, i * way_w.window + j, combine(f, column, [line[pw * t + bw] for t in range(way_w.window)]))
