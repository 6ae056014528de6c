"""The code of the Winograd kernel: transforms of windows and of sums, a GEMM a point, and the task that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from numpy.typing import NDArray

from upconv.codegen.ir import Function, Int, Value, module
from upconv.kernels import job as jobs
from upconv.kernels import microkernel, pack, store
from upconv.kernels.microkernel import Tile
from upconv.kernels.winograd_tiles import INPUT, OUTPUT, Way
from upconv.spec import Activation

SLOTS = jobs.Slots(
    (
        *pack.SLOTS, *store.SLOTS, "out_step_w", "y", "weight", "taps", "tap_count", "reads", "length", "block",
        "block_count", "splits", "chunks_a_split", "chunks", "chunk", "tile_blocks", "channels_out", "channels_in",
        "channels_a_pack", "left", "right", "band_left", "depth", "planes_in", "weight_group", "weight_point", "x_group",
        "v_pitch", "v_point", "m_pitch", "m_point", "rows_used", "table_bytes", "scratch_bytes", "m_bytes", "v_bytes",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on."""

    tile: Tile
    ways: tuple[Way, Way, Way]
    in_step: int
    out_step: int
    activation: Activation | None


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


def _emit_at(f: Function, s: dict[str, Value], column: Value) -> Value:
    """Where a tile, numbered without halo, stands in the band."""
    w, row = column % s["rows_w"], column // s["rows_w"]
    return _emit_row_at(f, s, row) + w


def _emit_row_at(f: Function, s: dict[str, Value], row: Value) -> Value:
    h, rest = row % s["rows_h"], row // s["rows_h"]
    d, n = rest % s["rows_d"], rest // s["rows_d"]
    return ((n * s["pitch_d"] + d) * s["pitch_h"] + h) * s["pitch_w"]


def _emit_input(tile: Tile, ways: tuple[Way, Way, Way]) -> Function:
    """`input(job, band, v, channels, low, high)`: the windows of tiles low..high-1 of `channels` channels, into V.

    The band starts at tile `low`. Rows are taken in rising order and written in whole vectors, as in `pack`.
    """
    f = Function(
        "input",
        [("job", "ptr"), ("band", "ptr"), ("v", "ptr"), ("channels", "i64"), ("low", "i64"), ("high", "i64")],
        attributes="internal noinline nounwind",
    )
    job, stored, v, channels, low, high = f.arguments
    stored, v = stored.of(tile.element), v.of(tile.element)
    s = {n: SLOTS.read(f, job, n) for n in ("channel_pitch", "planes_in", "v_pitch", "v_point", *_PLACES)}
    reads = SLOTS.pointer(f, job, "reads", "i64")
    points = list(product(range(ways[1].window), range(ways[2].window)))
    matrices = (INPUT if ways[1].transformed else None, INPUT if ways[2].transformed else None)
    begin = _emit_at(f, s, low)
    with f.loop(low // s["rows_w"], (high - 1) // s["rows_w"] + 1, name="row") as row:
        start = row * s["rows_w"]
        w0, w1 = f.maximum(low - start, 0), f.minimum(high - start, s["rows_w"])
        row_source = stored[_emit_row_at(f, s, row) + w0 - begin]
        row_target = v[start + w0 - low]
        with f.loop(0, channels, name="c") as c, f.loop(0, s["planes_in"], name="b") as b:
            source = row_source[c * s["channel_pitch"]]
            target = row_target[(c * s["planes_in"] + b) * s["v_pitch"]]
            addresses = [source[f.load("i64", reads[b * len(points) + i])] for i in range(len(points))]
            with f.loop(0, w1 - w0, tile.lanes, name="t") as t:
                window = {p: f.load(tile.type, a[t]) for p, a in zip(points, addresses, strict=True)}
                done = _transform(f, window, matrices)
                for i, p in enumerate(points):
                    f.store(done[p], target[s["v_point"] * i + t])
    return f


_PLACES = ("rows_d", "rows_h", "rows_w", "pitch_d", "pitch_h", "pitch_w")


def _emit_output(tile: Tile, ways: tuple[Way, Way, Way]) -> Function:
    """`output(job, m, scratch, rows, count)`: M back to outputs, F of them a position in each transformed dimension."""
    f = Function(
        "output",
        [("job", "ptr"), ("m", "ptr"), ("scratch", "ptr"), ("rows", "i64"), ("count", "i64")],
        attributes="internal noinline nounwind",
    )
    job, m, scratch, rows, count = f.arguments
    m, scratch = m.of(tile.element), scratch.of(tile.element)
    s = {n: SLOTS.read(f, job, n) for n in ("m_pitch", "m_point", "rows_used")}
    points = list(product(range(ways[1].window), range(ways[2].window)))
    matrices = tuple(OUTPUT[way.taps] if way.transformed else None for way in ways[1:])
    line = s["rows_used"] * s["m_pitch"]
    with f.loop(0, rows, name="r") as r:
        source, target = m[r * s["m_pitch"]], scratch[r * s["m_pitch"]]
        with f.loop(0, count, tile.lanes, name="t") as t:
            sums = {p: f.load(tile.type, source[s["m_point"] * i + t]) for i, p in enumerate(points)}
            done = _transform(f, sums, (matrices[0], matrices[1]))
            for i, p in enumerate(sorted(done)):
                f.store(done[p], target[line * i + t])
    return f


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = code.tile
    do_pack = pack.emit(pack.Pack(tile.element, tile.lanes, code.in_step), SLOTS)
    do_rows = store.emit_rows(SLOTS)
    woven = code.out_step if code.out_step <= max(tile.lanes, 8) else 0
    finish = store.Store(tile.element, tile.lanes, woven, code.activation)
    do_store = store.emit(finish, SLOTS)
    do_tiles = microkernel.emit_both(tile)
    do_input, do_output = _emit_input(tile, code.ways), _emit_output(tile, code.ways)
    points = prod(way.window for way in code.ways)

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        position, rest = number % s["block_count"], number // s["block_count"]
        split, group = rest % s["splits"], rest // s["splits"]
        low = position * s["block"]
        width = f.minimum(s["length"] - low, s["block"])
        table = workspace
        scratch = workspace[s["table_bytes"]].of(tile.element)
        m = workspace[s["table_bytes"] + s["scratch_bytes"]].of(tile.element)
        v_at = s["table_bytes"] + s["scratch_bytes"] + s["m_bytes"]
        v, stored = workspace[v_at].of(tile.element), workspace[v_at + s["v_bytes"]].of(tile.element)
        x = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"]]
        y = SLOTS.pointer(f, job, "y", tile.element)
        weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"]]
        wide = (width + s["right"] + (tile.lanes - 1)) // tile.lanes * tile.lanes
        from_band, to_band = _emit_at(f, s, low), _emit_at(f, s, low + wide - 1) + 1 + s["band_left"]
        with f.loop(0, s["channels_in"], s["channels_a_pack"], name="pc") as pc:
            several = f.minimum(s["channels_in"] - pc, s["channels_a_pack"])
            f.call(do_pack, [job, table, x[pc * s["x_channel"]], stored, from_band, to_band, several])
            f.call(do_input, [job, stored, v[pc * s["planes_in"] * s["v_pitch"]], several, low, low + wide])
        count = f.call(do_rows, [job, table, low, low + width])
        first = split * s["chunks_a_split"]
        with f.loop(first, f.minimum(first + s["chunks_a_split"], s["chunks"]), name="ic") as ic:
            with f.loop(0, points, name="point") as p:
                left = weight[p * s["weight_point"]]
                _emit_gemm(f, job, s, ic, left, v[p * s["v_point"]], m[p * s["m_point"]], width, tile, do_tiles)
            f.call(do_output, [job, m, scratch, s["rows_used"], width])
            channel = ic * s["chunk"]
            number_out = group * s["channels_out"] + channel
            several = f.minimum(s["channels_out"] - channel, s["chunk"])
            f.call(do_store, [job, table, count, scratch, y[number_out * s["y_channel"]], number_out, several])

    entry = jobs.emit_entry("entry", SLOTS, task)
    return module([*do_tiles, do_pack, do_rows, do_store, do_input, do_output, entry])


_TASK_SLOTS = (
    "length", "block", "block_count", "splits", "chunks_a_split", "chunks", "chunk", "tile_blocks", "channels_out",
    "channels_in", "channels_a_pack", "x_channel", "left", "right", "band_left", "depth", "planes_in", "weight_group",
    "weight_point", "x_group", "v_pitch", "v_point", "m_pitch", "m_point", "rows_used", "y_channel", "tap_count",
    "table_bytes", "scratch_bytes", "m_bytes", "v_bytes", *_PLACES,
)  # fmt: skip


def _emit_gemm(
    f: Function,
    job: Value,
    s: dict[str, Value],
    ic: Value,
    weight: Value,
    v: Value,
    m: Value,
    width: Value,
    tile: Tile,
    do_tiles: tuple[Function, Function],
) -> None:
    """One point of one chunk: M = U V, wide tiles, then narrow ones."""
    taps = SLOTS.pointer(f, job, "taps", "i64")
    depth = s["depth"] * s["tap_count"] * tile.rows
    with f.loop(0, s["tile_blocks"], name="ir") as ir:
        left = weight[(ic * s["tile_blocks"] + ir) * depth]
        row = m[ir * tile.rows * s["m_pitch"]]
        sizes: list[Int] = [taps, s["tap_count"], s["depth"], s["v_pitch"]]
        microkernel.emit_strip(f, tile, do_tiles, left, v, sizes, row, s["m_pitch"], width)
