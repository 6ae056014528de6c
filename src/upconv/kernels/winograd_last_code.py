"""The code of Winograd for arrays with their channels last: windows to V, products to M, M to rows of y.

Vectors are of channels throughout, so that nothing is transposed or woven: a window's elements are vectors where x has them, and an
output's are stored side by side. Where there are slices (`strassen_products.py`), a column is a tile of each, and what they add up
to stands at each point.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from upconv.codegen.ir import Carry, Function, Value, module
from upconv.kernels import columns, helping, microkernel
from upconv.kernels import job as jobs
from upconv.kernels.activation import emit_activation
from upconv.kernels.register_tile import Tile
from upconv.kernels.strassen_products import PRODUCTS, places, row_and_column
from upconv.kernels.strassen_sums import Sums, emit_right
from upconv.kernels.winograd_tiles import Way
from upconv.kernels.winograd_way import divisors, transform
from upconv.spec import Activation

_SIZES = ("rows", "size", "step", "plane", "out", "out_step", "crop", "stride")
"""Of each dimension: tiles; elements of x, from tile to tile and from one of a window to the next; elements of y, from tile to
tile, cropped, and from one of a tile's outputs to the next."""
SLOTS = jobs.Slots(
    (
        *helping.OPEN, "x", "weight", "bias", "y", "zeros", "reads", "chunks", "live",
        "channels", "channels_out", "x_channels", "y_channels",
        "x_group", "y_group", "image", "part", "columns", "block", "block_count", "splits", "abreast", "chunks_a_split",
        "chunk_count", "depth_taps", "depth_part", "room", "v_pitch", "m_pitch", "weight_chunk", "weight_point", "weight_group",
        "table_bytes", "v_bytes", "m_bytes",
        *(f"{name}_{d}" for name in _SIZES for d in "dhw"),
    )
)  # fmt: skip
READ, CHUNK, LIVE, TILE = 3, 7, 3, 8
"""Numbers a depth tap: a window's first element from where the tile begins, in d, h and w; a chunk: its phase in d, h and w, first
channel, channels, class, and how far on in y the next one is; a class and point: the first row of the depth that is not all
zeros, rows, and the next point that has some; a tile: where it begins in x, and there in d, h and w, and the same in y."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on."""

    tile: Tile
    slices: int
    ways: tuple[Way, Way, Way]
    activation: Activation | None

    @property
    def points(self) -> list[tuple[int, int]]:
        return list(product(range(self.ways[1].window), range(self.ways[2].window)))

    @property
    def products(self) -> int:
        """Of the slices, at all points: product by product."""
        return PRODUCTS[self.slices] * len(self.points)

    @property
    def lines(self) -> int:
        """Of a row of weights."""
        return microkernel.lines_of(self.tile.type, self.tile.rows // self.tile.lanes)


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = code.tile
    copy, do_table, do_windows = columns.emit_copy(tile.element, tile.lanes), _emit_table(code), _emit_windows(code)
    do_outputs = _emit_outputs(code, copy)
    do_tiles = [_emit_tile(code, tile.rows // tile.lanes, "wide"), _emit_tile(code, 1, "narrow")]
    do_products = [_emit_products(code, do_tile) for do_tile in do_tiles]

    def block_of(f: Function, job: Value, number: Value) -> tuple[dict[str, Value], Value, Value, Value, Value]:
        """(numbers, first column of a task's block, its columns, the task's share of the chunks, group)."""
        names = SLOTS.names[SLOTS.names.index("channels") : SLOTS.names.index("m_bytes") + 1]
        s = {name: SLOTS.read(f, job, name) for name in names}
        block, split, group = jobs.place_of(number, s)
        low = block * s["block"]
        return s, low, f.minimum(s["columns"] - low, s["block"]), split, group

    def prepare(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s, low, width, _, group = block_of(f, job, number)
        table, v, _, _ = _rooms(tile, s, workspace)
        f.call(do_table, [job, low, width, table])
        f.call(do_windows, [job, table, width, group * s["x_group"], v])

    def work(f: Function, job: Value, number: Value, rooms: helping.Rooms, _helps: Value, word: Value) -> None:
        s, _, width, split, group = block_of(f, job, number)
        (table, v, *_), (_, _, m, line) = _rooms(tile, s, rooms.prepared), _rooms(tile, s, rooms.own)
        first, many = jobs.share_of(split, s["chunks_a_split"], s["chunk_count"])
        with helping.emit_pieces(f, word, many) as piece:
            chunk = first + piece
            entry = SLOTS.pointer(f, job, "chunks", "i64")[chunk * CHUNK]
            channel, channels, class_ = (f.load("i64", entry[i]) for i in range(3, 6))
            live = SLOTS.pointer(f, job, "live", "i64")[class_ * (code.products * LIVE)]
            weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"] + chunk * s["weight_chunk"]]
            at_weight = (weight, s["weight_point"], s["depth_part"])
            arguments = [v, s["v_pitch"], s["room"], width, live, *at_weight, m, s["m_pitch"]]
            narrow = channels <= tile.lanes
            with f.when(narrow, name="narrow"):
                f.call(do_products[1], arguments)
            with f.otherwise(narrow, name="wide"):
                f.call(do_products[0], arguments)
            f.call(do_outputs, [job, table, width, entry, group * s["y_group"] + channel, channels, m, line])

    entries = helping.emit_entry("entry", SLOTS, helping.Pieces(prepare, helping.chunks_of(SLOTS, "chunk_count"), work))
    return module([copy, do_table, do_windows, *do_tiles, *do_products, do_outputs, *entries])


def _rooms(tile: Tile, s: dict[str, Value], workspace: Value) -> tuple[Value, ...]:
    """The workspace's parts: table, V, M, and a line."""
    v = workspace[s["table_bytes"]]
    m = v[s["v_bytes"]]
    return workspace, *(room.of(tile.element) for room in (v, m, m[s["m_bytes"]]))


def _numbers(f: Function, job: Value) -> dict[str, Value]:
    return {name: SLOTS.read(f, job, name) for name in SLOTS.names[SLOTS.names.index("channels") :]}


def _emit_table(code: Code) -> Function:
    """`table(job, low, width, table)`: the tiles of `width` columns from column `low` on: [column][slice].

    Slices are parts of an image's tiles, so that images stay apart. Where an image has no more, a tile is nowhere.
    """
    f = Function("table", [("job", "ptr"), ("low", "i64"), ("width", "i64"), ("table", "ptr")],
                 attributes="internal noinline nounwind")  # fmt: skip
    job, low, width, table = f.arguments
    s, table = _numbers(f, job), table.of("i64")
    image, first = low // s["part"], low % s["part"]
    for j in range(code.slices):
        start = s["part"] * j
        begin, left = _place(f, s, start), s["image"] - start
        at = Carry([image, first, *_place(f, s, start + first)])
        with f.loop(0, width, name="column", carry=at) as number:
            n, i, *place = at.values
            entry, there = table[(number * code.slices + j) * TILE], i < left
            numbers = [*_begin(f, s, n, place, ("x", "size", "step")), *_begin(f, s, n, place, ("y", "out", "out_step"))]
            for k, value in enumerate(numbers):
                f.store(f.select(there, value, columns.NOWHERE), entry[k])
            ended = (i + 1).equals(s["part"])
            following = zip((n + 1, f.value(0), *begin), (n, i + 1, *_next(f, s, place)), strict=True)
            at.next = [f.select(ended, first_of_image, next_one) for first_of_image, next_one in following]
    return f


def _begin(f: Function, s: dict[str, Value], image: Value, place: list[Value], names: tuple[str, str, str]) -> list[Value]:
    """(first element, and where that is in d, h and w) of a tile in x or y."""
    name, size, step = names
    d, h, w = (q * s[f"{step}_{axis}"] for q, axis in zip(place, "dhw", strict=True))
    position = ((image * s[f"{size}_d"] + d) * s[f"{size}_h"] + h) * s[f"{size}_w"] + w
    return [position * s[f"{name}_channels"], d, h, w]


def _next(f: Function, s: dict[str, Value], place: list[Value]) -> tuple[Value, Value, Value]:
    """The place of the next tile of an image."""
    d, h, w = place
    beside = (w + 1).equals(s["rows_w"])
    below = f.select(beside, h + 1, h)
    behind = below.equals(s["rows_h"])
    return f.select(behind, d + 1, d), f.select(behind, 0, below), f.select(beside, 0, w + 1)


def _place(f: Function, s: dict[str, Value], tile: Value) -> tuple[Value, Value, Value]:
    """A tile's place in an image, in d, h and w."""
    row = tile // s["rows_w"]
    return row // s["rows_h"], row % s["rows_h"], tile % s["rows_w"]


def _emit_windows(code: Code) -> Function:
    """`windows(job, table, width, x_at, v)`: V of the columns: [product and point][column][depth tap][channel].

    The last vector of a depth tap's channels ends in zeros, which the next one's first vector is written over. The columns that a
    register tile has beyond the last tile are zeros: multiplying what memory happens to hold may take long.
    """
    tile, (_, way_h, way_w) = code.tile, code.ways
    arguments = [("job", "ptr"), ("table", "ptr"), ("width", "i64"), ("x_at", "i64"), ("v", "ptr")]
    f = Function("windows", arguments, attributes="internal noinline nounwind")
    job, table, width, x_at, v = f.arguments
    v, table, s = v.of(tile.element), table.of("i64"), _numbers(f, job)
    x, zeros = (SLOTS.pointer(f, job, name, tile.element)[x_at] for name in ("x", "zeros"))
    reads, whole = SLOTS.pointer(f, job, "reads", "i64"), s["channels"] // tile.lanes * tile.lanes
    matrices = [way.points.input if way.points else None for way in (way_h, way_w)]

    def go(every: list[dict[tuple[int, int], Value]], to: Value, c: Value, mask: Value | None) -> None:
        """One vector of channels of a slice: of the windows of each slice's tile, and of all slices of channels."""
        slices = []
        for i, windows in product(range(code.slices), every):
            at = c + s["channels"] * i if i else c
            window = {
                key: f.load(tile.type, place[at]) if mask is None else f.masked_load(tile.type, place[at], mask)
                for key, place in windows.items()
            }
            slices.append(transform(f, window, (matrices[0], matrices[1])))
        for i, point in enumerate(code.points):
            for n, value in enumerate(emit_right(f, [slice_[point] for slice_ in slices])):
                f.store(value, to[s["room"] * s["v_pitch"] * (n * len(code.points) + i) + c])

    zero, end = Value(f, "zeroinitializer", tile.type), (width + (tile.turned - 1)) // tile.turned * tile.turned
    with f.loop(width, end, name="none") as number, f.loop(0, code.products, name="point") as point:
        row = v[(point * s["room"] + number) * s["v_pitch"]]
        with f.loop(0, s["v_pitch"], tile.lanes, name="c") as c:
            f.store(zero, row[c])
    with f.loop(0, width, name="column") as number, f.loop(0, s["depth_taps"], name="tap") as tap:
        tiles = [table[(number * code.slices + j) * TILE] for j in range(code.slices)]
        every = [_window(f, code, s, entry, reads[tap * READ], x, zeros) for entry in tiles]
        to = v[number * s["v_pitch"] + tap * s["channels"]]
        with f.loop(0, whole, tile.lanes, name="c") as c:
            go(every, to, c, None)
        with f.when(whole < s["channels"], name="rest"):
            go(every, to, whole, f.lanes_between(whole, 0, s["channels"], tile.lanes))
    return f


def _window(
    f: Function, code: Code, s: dict[str, Value], entry: Value, read: Value, x: Value, zeros: Value
) -> dict[tuple[int, int], Value]:
    """Where the elements of a tile's window stand, zeros for those that are outside."""
    _, way_h, way_w = code.ways
    first, *tile_at = (f.load("i64", entry[i]) for i in range(4))
    from_d, from_h, from_w = (f.load("i64", read[i]) for i in range(3))
    at_d, at_h, at_w = (at + by for at, by in zip(tile_at, (from_d, from_h, from_w), strict=True))
    start = x[first + ((from_d * s["size_h"] + from_h) * s["size_w"] + from_w) * s["x_channels"]]
    in_d, found = f.compare("ult", at_d, s["size_d"]), {}
    for i, j in product(range(way_h.window), range(way_w.window)):
        in_h, in_w = (f.compare("ult", at + s[f"plane_{d}"] * k, s[f"size_{d}"]) for at, d, k in ((at_h, "h", i), (at_w, "w", j)))
        there = start[(s["plane_h"] * s["size_w"] * i + s["plane_w"] * j) * s["x_channels"]]
        found[i, j] = f.select(in_d & in_h & in_w, there, zeros)
    return found


def _emit_tile(code: Code, vectors: int, name: str) -> Function:
    """`wide(left, right, pitch, rows, part, ask, apart, out)`: a register tile's sums, [column][channel]; zeros for no rows.

    They go over `rows` of the depth, `part` at a time, so that they round less; the parts are added up in `out`. What stands at
    `ask` is asked for, at as many places as the weights have lines, so many bytes `apart`.
    """
    tile, many = code.tile, code.tile.turned
    names = ("left", "right", "pitch", "rows", "part", "ask", "apart", "out")
    numbers = ("pitch", "rows", "part", "apart")
    f = Function(name, [(n, "i64" if n in numbers else "ptr") for n in names], attributes="internal noinline nounwind")
    left, right, pitch, rows, part, ask, apart, out = f.arguments
    left, right, ask, out = left.of(tile.element), right.of(tile.element), ask.of("i8"), out.of(tile.element)
    zero = Value(f, "zeroinitializer", tile.type)
    places = [out[j * tile.rows + v * tile.lanes] for j in range(many) for v in range(vectors)]
    with f.when(rows.equals(0), name="none"):
        for place in places:
            f.store(zero, place)
    with f.loop(0, rows, part, name="part") as at:
        sources = [right[pitch * j + at] for j in range(many)]
        here, there, count = left[at * tile.rows], ask[at * code.lines * apart], f.minimum(rows - at, part)
        nothing = [zero] * len(places)
        sums, _ = microkernel.rows_times_scalars(f, tile.type, nothing, here, tile.rows, vectors, sources, count, there, apart)
        microkernel.leave(f, tile, at.equals(0), sums, places)
    return f


def _emit_products(code: Code, do_tile: Function) -> Function:
    """`products_wide(v, v_pitch, room, width, live, weight, weight_point, part, m, m_pitch)`: M of a chunk.

    M is [register tile][product and point][column][channel]. The weights of the next point are asked for while this one's are
    used, by each register tile as large a share: memory is never idle so, and gives more than to the first alone.
    """
    tile, points = code.tile, code.products
    pointers = ("v", "live", "weight", "m")
    names = ("v", "v_pitch", "room", "width", "live", "weight", "weight_point", "part", "m", "m_pitch")
    parameters = [(n, "ptr" if n in pointers else "i64") for n in names]
    f = Function(f"products_{do_tile.name}", parameters, attributes="internal noinline nounwind")
    v, v_pitch, room, width, live, weight, weight_point, part, m, m_pitch = f.arguments
    v, live, weight, m = v.of(tile.element), live.of("i64"), weight.of(tile.element), m.of(tile.element)
    tiles = (width + (tile.turned - 1)) // tile.turned
    apart = microkernel.apart_for(tiles)
    with f.loop(0, points, name="point") as point:
        first, rows, then = (f.load("i64", live[point * LIVE + i]) for i in range(LIVE))
        left, right = weight[point * weight_point + first * tile.rows], v[point * room * v_pitch + first]
        following, share = weight[then * weight_point].of("i8"), rows * code.lines * apart
        with f.loop(0, tiles, name="t") as t:
            to = m[t * m_pitch + point * (tile.turned * tile.rows)]
            f.call(do_tile, [left, right[t * tile.turned * v_pitch], v_pitch, rows, part, following[t * share], apart, to])
    return f


def _emit_outputs(code: Code, copy: Function) -> Function:
    """`outputs(job, table, width, chunk, channel, channels, m, line)`: the outputs of a chunk's phase, from M."""
    tile, (_, way_h, way_w) = code.tile, code.ways
    pointers = ("job", "table", "chunk", "m", "line")
    names = ("job", "table", "width", "chunk", "channel", "channels", "m", "line")
    f = Function("outputs", [(n, "ptr" if n in pointers else "i64") for n in names], attributes="internal noinline nounwind")
    job, table, width, chunk, channel, channels, m, line = f.arguments
    s, m, line, type_ = _numbers(f, job), m.of(tile.element), line.of(tile.element), tile.type
    table = table.of("i64")
    y, bias = (SLOTS.pointer(f, job, name, tile.element)[channel] for name in ("y", "bias"))
    matrices = [way.points.output(way.taps) if way.points else None for way in (way_h, way_w)]
    odd = divisors((way_h, way_w), tile.element)
    following = f.load("i64", chunk.of("i64")[CHUNK - 1])
    # where a phase begins in y, seen from where a tile does
    ahead = {name: f.load("i64", chunk.of("i64")[i]) - s[f"crop_{name}"] for i, name in enumerate("dhw")}
    phase = ((ahead["d"] * s["out_h"] + ahead["h"]) * s["out_w"] + ahead["w"]) * s["y_channels"]
    with f.loop(0, channels, tile.lanes, name="v") as at:
        left = channels - at
        whole = left >= tile.lanes
        mask = f.lanes_between(at, 0, channels, tile.lanes)
        offsets = [f.masked_load(type_, bias[s["channels_out"] * i + at], mask) for i in range(code.slices)]

        def put(value: Value, to: Value) -> None:
            with f.when(whole, name="whole"):
                f.store(value, to)
            with f.otherwise(whole, name="part"):
                f.store(value, line)
                f.call(copy, [line, to, left])

        with f.loop(0, width, name="column") as number:
            from_m = m[number // tile.turned * s["m_pitch"] + number % tile.turned * tile.rows + at]
            sums = [
                Sums(f, lambda n, i=i: f.load(type_, from_m[(n * len(code.points) + i) * (tile.turned * tile.rows)]))  # type: ignore[misc]
                for i in range(len(code.points))
            ]
            tiles = [table[(number * code.slices + j) * TILE + 4] for j in range(code.slices)]
            places_y = [[f.load("i64", entry[i]) for i in range(4)] for entry in tiles]
            for place in places(code.slices):
                of_channels, of_tiles = row_and_column(place)
                first, d, h, w = places_y[of_tiles]
                in_d, start = f.compare("ult", d + ahead["d"], s["out_d"]), y[first + phase + s["channels_out"] * of_channels + at]
                values = {point: at_point.emit(place) for point, at_point in zip(code.points, sums, strict=True)}
                for (i, j), value in transform(f, values, (matrices[0], matrices[1])).items():
                    for factor in odd:
                        value = f.fmul(value, f.splat(1 / factor, type_))
                    done = emit_activation(f, f.fadd(value, offsets[of_channels]), code.activation)
                    in_h = f.compare("ult", h + ahead["h"] + s["stride_h"] * i, s["out_h"])
                    in_w = f.compare("ult", w + ahead["w"] + s["stride_w"] * j, s["out_w"])
                    with f.when(in_d & in_h & in_w, name="there"):
                        to = start[(s["stride_h"] * s["out_w"] * i + s["stride_w"] * j) * s["y_channels"]]
                        f.prefetch(to[following], write=True)
                        put(done, to)
    return f
