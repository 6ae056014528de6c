"""The code of Winograd for arrays with their channels last: windows to V, products to M, M to rows of y.

Vectors are of channels throughout, so that nothing is transposed or woven: a window's elements are vectors where x has them, and an
output's are stored side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

from upconv.codegen.ir import Function, Int, Value, module
from upconv.kernels import columns, microkernel
from upconv.kernels import job as jobs
from upconv.kernels.activation import emit_activation
from upconv.kernels.register_tile import Tile
from upconv.kernels.winograd_tiles import Way
from upconv.kernels.winograd_way import divisors, transform
from upconv.spec import Activation

_SIZES = ("rows", "size", "step", "plane", "out", "out_step", "crop", "stride")
"""Of each dimension: tiles; elements of x, from tile to tile and from one of a window to the next; elements of y, from tile to
tile, cropped, and from one of a tile's outputs to the next."""
SLOTS = jobs.Slots(
    (
        "x", "weight", "bias", "y", "zeros", "reads", "chunks", "live", "channels", "channels_out", "x_channels", "y_channels",
        "tiles", "block", "block_count", "splits", "chunks_a_split", "chunk_count", "depth_taps", "depth_part", "room",
        "v_pitch", "m_pitch", "weight_chunk", "weight_point", "weight_group", "v_bytes", "m_bytes",
        *(f"{name}_{d}" for name in _SIZES for d in "dhw"),
    )
)  # fmt: skip
READ, CHUNK, LIVE = 3, 7, 3
"""Numbers a depth tap: a window's first element from where the tile begins, in d, h and w; a chunk: its phase in d, h and w, first
channel, channels, class, and how far on in y the next one is; a class and point: the first row of the depth that is not all
zeros, rows, and the next point that has some."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on."""

    tile: Tile
    ways: tuple[Way, Way, Way]
    activation: Activation | None

    @property
    def points(self) -> list[tuple[int, int]]:
        return list(product(range(self.ways[1].window), range(self.ways[2].window)))


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile, points = code.tile, len(code.points)
    copy, do_windows = columns.emit_copy(tile.element, tile.lanes), _emit_windows(code)
    do_outputs = _emit_outputs(code, copy)
    do_tiles = [_emit_tile(code, tile.rows // tile.lanes, "wide"), _emit_tile(code, 1, "narrow")]
    do_products = [_emit_products(code, do_tile) for do_tile in do_tiles]

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        names = SLOTS.names[SLOTS.names.index("channels") : SLOTS.names.index("m_bytes") + 1]
        s = {name: SLOTS.read(f, job, name) for name in names}
        block, split, group = jobs.place_of(number, s)
        low = block * s["block"]
        width = f.minimum(s["tiles"] - low, s["block"])
        v, rest = workspace.of(tile.element), workspace[s["v_bytes"]]
        m, line = rest.of(tile.element), rest[s["m_bytes"]]
        f.call(do_windows, [job, low, width, group * s["channels"], v])
        first = split * s["chunks_a_split"]
        with f.loop(first, f.minimum(first + s["chunks_a_split"], s["chunk_count"]), name="chunk") as chunk:
            entry = SLOTS.pointer(f, job, "chunks", "i64")[chunk * CHUNK]
            channel, channels, class_ = (f.load("i64", entry[i]) for i in range(3, 6))
            live = SLOTS.pointer(f, job, "live", "i64")[class_ * (points * LIVE)]
            weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"] + chunk * s["weight_chunk"]]
            at_weight = (weight, s["weight_point"], s["depth_part"])
            arguments = [v, s["v_pitch"], s["room"], width, live, *at_weight, m, s["m_pitch"]]
            narrow = channels <= tile.lanes
            with f.when(narrow, name="narrow"):
                f.call(do_products[1], arguments)
            with f.otherwise(narrow, name="wide"):
                f.call(do_products[0], arguments)
            f.call(do_outputs, [job, low, width, entry, group * s["channels_out"] + channel, channels, m, line])

    return module([copy, do_windows, *do_tiles, *do_products, do_outputs, jobs.emit_entry("entry", SLOTS, task)])


@contextmanager
def _tiles(f: Function, s: dict[str, Value], low: Value, width: Value) -> Iterator[tuple[Value, Value, Value, Value, Value]]:
    """(number in the block, image, d, h, w) of each of `width` tiles from tile `low` on."""
    rows, high = s["rows_w"], low + width
    with f.loop(low // rows, (high - 1) // rows + 1, name="row") as row:
        start, h, rest = row * rows, row % s["rows_h"], row // s["rows_h"]
        d, n = rest % s["rows_d"], rest // s["rows_d"]
        with f.loop(f.maximum(low - start, 0), f.minimum(high - start, rows), name="tile") as w:
            yield start + w - low, n, d, h, w


def _numbers(f: Function, job: Value) -> dict[str, Value]:
    return {name: SLOTS.read(f, job, name) for name in SLOTS.names[SLOTS.names.index("channels") :]}


def _emit_windows(code: Code) -> Function:
    """`windows(job, low, width, x_at, v)`: V of the tiles: [point][tile][depth tap][channel].

    The last vector of a depth tap's channels ends in zeros, which the next one's first vector is written over. The columns that a
    register tile has beyond the last tile are zeros: multiplying what memory happens to hold may take long.
    """
    tile, (_, way_h, way_w) = code.tile, code.ways
    arguments = [("job", "ptr"), ("low", "i64"), ("width", "i64"), ("x_at", "i64"), ("v", "ptr")]
    f = Function("windows", arguments, attributes="internal noinline nounwind")
    job, low, width, x_at, v = f.arguments
    v, s = v.of(tile.element), _numbers(f, job)
    x, zeros = (SLOTS.pointer(f, job, name, tile.element)[x_at] for name in ("x", "zeros"))
    reads, whole = SLOTS.pointer(f, job, "reads", "i64"), s["channels"] // tile.lanes * tile.lanes
    matrices = [way.points.input if way.points else None for way in (way_h, way_w)]

    def go(places: dict[tuple[int, int], Value], to: Value, c: Value, mask: Value | None) -> None:
        """One vector of channels of a window."""
        window = {
            at: f.load(tile.type, place[c]) if mask is None else f.masked_load(tile.type, place[c], mask)
            for at, place in places.items()
        }
        done = transform(f, window, (matrices[0], matrices[1]))
        for i, point in enumerate(code.points):
            f.store(done[point], to[s["room"] * s["v_pitch"] * i + c])

    zero, end = Value(f, "zeroinitializer", tile.type), (width + (tile.turned - 1)) // tile.turned * tile.turned
    with f.loop(width, end, name="none") as number, f.loop(0, len(code.points), name="point") as point:
        row = v[(point * s["room"] + number) * s["v_pitch"]]
        with f.loop(0, s["v_pitch"], tile.lanes, name="c") as c:
            f.store(zero, row[c])
    with _tiles(f, s, low, width) as (number, n, d, h, w), f.loop(0, s["depth_taps"], name="tap") as tap:
        read = reads[tap * READ]
        at_d, at_h, at_w = (
            q * s[f"step_{name}"] + f.load("i64", read[i]) for i, (q, name) in enumerate(zip((d, h, w), "dhw", strict=True))
        )
        in_d = f.compare("ult", at_d, s["size_d"])
        lines = []
        for i in range(way_h.window):
            in_h = at_h + s["plane_h"] * i
            line = (n * s["size_d"] + at_d) * s["size_h"] + in_h
            lines.append((in_d & f.compare("ult", in_h, s["size_h"]), line * s["size_w"]))
        places = {}
        for j in range(way_w.window):
            in_w = at_w + s["plane_w"] * j
            there = f.compare("ult", in_w, s["size_w"])
            for i, (inside, line) in enumerate(lines):
                places[i, j] = f.select(inside & there, x[(line + in_w) * s["x_channels"]], zeros)
        to = v[number * s["v_pitch"] + tap * s["channels"]]
        with f.loop(0, whole, tile.lanes, name="c") as c:
            go(places, to, c, None)
        with f.when(whole < s["channels"], name="rest"):
            go(places, to, whole, f.lanes_between(whole, 0, s["channels"], tile.lanes))
    return f


def _emit_tile(code: Code, vectors: int, name: str) -> Function:
    """`wide(left, right, pitch, rows, part, ask, out)`: a register tile's sums, [column][channel]; zeros for no rows.

    They go over `rows` of the depth, `part` at a time, so that they round less; the parts are added up in `out`. What stands at
    `ask`, as the weights do at `left`, is asked for.
    """
    tile, many = code.tile, code.tile.turned
    names = ("left", "right", "pitch", "rows", "part", "ask", "out")
    numbers = ("pitch", "rows", "part")
    f = Function(name, [(n, "i64" if n in numbers else "ptr") for n in names], attributes="internal noinline nounwind")
    left, right, pitch, rows, part, ask, out = f.arguments
    left, right, ask, out = (pointer.of(tile.element) for pointer in (left, right, ask, out))
    zero = Value(f, "zeroinitializer", tile.type)
    places = [out[j * tile.rows + v * tile.lanes] for j in range(many) for v in range(vectors)]
    with f.when(rows.equals(0), name="none"):
        for place in places:
            f.store(zero, place)
    with f.loop(0, rows, part, name="part") as at:
        sources = [right[pitch * j + at] for j in range(many)]
        here, there, count = left[at * tile.rows], ask[at * tile.rows], f.minimum(rows - at, part)
        nothing = [zero] * len(places)
        sums, _ = microkernel.rows_times_scalars(f, tile.type, nothing, here, tile.rows, vectors, sources, count, there)
        microkernel.leave(f, tile.type, at.equals(0), sums, places)
    return f


def _emit_products(code: Code, do_tile: Function) -> Function:
    """`products_wide(v, v_pitch, room, width, live, weight, weight_point, part, m, m_pitch)`: M of a chunk.

    M is [register tile][point][column][channel]. The weights of the next point are asked for while this one's are used first.
    """
    tile, points = code.tile, len(code.points)
    pointers = ("v", "live", "weight", "m")
    names = ("v", "v_pitch", "room", "width", "live", "weight", "weight_point", "part", "m", "m_pitch")
    parameters = [(n, "ptr" if n in pointers else "i64") for n in names]
    f = Function(f"products_{do_tile.name}", parameters, attributes="internal noinline nounwind")
    v, v_pitch, room, width, live, weight, weight_point, part, m, m_pitch = f.arguments
    v, live, weight, m = v.of(tile.element), live.of("i64"), weight.of(tile.element), m.of(tile.element)
    with f.loop(0, points, name="point") as point:
        first, rows, then = (f.load("i64", live[point * LIVE + i]) for i in range(LIVE))
        left, right = weight[point * weight_point + first * tile.rows], v[point * room * v_pitch + first]
        following = weight[then * weight_point]
        with f.loop(0, (width + (tile.turned - 1)) // tile.turned, name="t") as t:
            ask, out = f.select(t.equals(0), following, left), m[t * m_pitch + point * (tile.turned * tile.rows)]
            f.call(do_tile, [left, right[t * tile.turned * v_pitch], v_pitch, rows, part, ask, out])
    return f


def _emit_outputs(code: Code, copy: Function) -> Function:
    """`outputs(job, low, width, chunk, channel, channels, m, line)`: the outputs of a chunk's phase, from M."""
    tile, (_, way_h, way_w) = code.tile, code.ways
    pointers = ("job", "chunk", "m", "line")
    names = ("job", "low", "width", "chunk", "channel", "channels", "m", "line")
    f = Function("outputs", [(n, "ptr" if n in pointers else "i64") for n in names], attributes="internal noinline nounwind")
    job, low, width, chunk, channel, channels, m, line = f.arguments
    s, m, line, type_ = _numbers(f, job), m.of(tile.element), line.of(tile.element), tile.type
    y, bias = (SLOTS.pointer(f, job, name, tile.element)[channel] for name in ("y", "bias"))
    matrices = [way.points.output(way.taps) if way.points else None for way in (way_h, way_w)]
    odd = divisors((way_h, way_w), tile.element)
    following = f.load("i64", chunk.of("i64")[CHUNK - 1])
    # where a phase begins in y, seen from where a tile does
    ahead = {name: f.load("i64", chunk.of("i64")[i]) - s[f"crop_{name}"] for i, name in enumerate("dhw")}
    with f.loop(0, channels, tile.lanes, name="v") as at:
        left = channels - at
        whole = left >= tile.lanes
        offset = f.masked_load(type_, bias[at], f.lanes_between(at, 0, channels, tile.lanes))

        def put(value: Value, to: Value) -> None:
            with f.when(whole, name="whole"):
                f.store(value, to)
            with f.otherwise(whole, name="part"):
                f.store(value, line)
                f.call(copy, [line, to, left])

        with _tiles(f, s, low, width) as (number, n, *tile_at):
            from_m = m[number // tile.turned * s["m_pitch"] + number % tile.turned * tile.rows + at]
            sums = {point: f.load(type_, from_m[i * (tile.turned * tile.rows)]) for i, point in enumerate(code.points)}
            od, oh, ow = (q * s[f"out_step_{name}"] + ahead[name] for q, name in zip(tile_at, "dhw", strict=True))
            there = f.compare("ult", od, s["out_d"])
            plane: Int = (n * s["out_d"] + od) * s["out_h"]
            for (i, j), value in transform(f, sums, (matrices[0], matrices[1])).items():
                for factor in odd:
                    value = f.fmul(value, f.splat(1 / factor, type_))
                done = emit_activation(f, f.fadd(value, offset), code.activation)
                row, column = oh + s["stride_h"] * i, ow + s["stride_w"] * j
                with f.when(there & f.compare("ult", row, s["out_h"]) & f.compare("ult", column, s["out_w"]), name="there"):
                    to = y[((plane + row) * s["out_w"] + column) * s["y_channels"] + at]
                    f.prefetch(to[following], write=True)
                    put(done, to)
    return f
