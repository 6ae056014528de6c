"""The code of overlap-add: a block of images copied, a GEMM of its patches, these folded, and the rows stored."""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import Carry, Function, Int, Value, module
from upconv.kernels import columns, helping, listing, microkernel, pack, store
from upconv.kernels import job as jobs
from upconv.kernels.geometry import round_up
from upconv.kernels.register_tile import Tile
from upconv.kernels.store import Store

SLOTS = jobs.Slots(
    tuple(
        dict.fromkeys(
            (
                *helping.OPEN, *pack.SLOTS, *columns.SLOTS, *store.SLOTS, *store.ROW_SLOTS, "weight", "taps", "fold_phases",
                "fold_taps", "phase_count", "images_a_block", "block_count", "room", "splits", "abreast", "chunks_a_split",
                "chunks", "chunk", "tile_blocks", "channels_in", "channels_out", "weight_group", "x_group", "tap_count",
                "positions", "image_positions", "x_pitch", "patch_pitch", "table_bytes", "line_bytes", "scratch_bytes",
                "patch_bytes", "found_bytes",
            )
        )
    )
)  # fmt: skip
FOLD = 4  # i64 a tap: its number, and its offset in each of the three dimensions


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on."""

    tile: Tile
    store: Store


def _emit_fold(tile: Tile) -> Function:
    """`fold(job, patches, scratch, found, channels, images)`: each phase's sum over its taps, for every output position.

    Which taps meet a vector of positions, where and with which of its lanes, is the same for every channel: it is listed in
    `found` first.
    """
    f = Function(
        "fold",
        [("job", "ptr"), ("patches", "ptr"), ("scratch", "ptr"), ("found", "ptr"), ("channels", "i64"), ("images", "i64")],
        attributes="internal noinline nounwind",
    )
    job, patches, scratch, found, channels, images = f.arguments
    patches, scratch, found = patches.of(tile.element), scratch.of(tile.element), found.of("i8")
    names = (
        "phase_count", "tap_count", "patch_pitch", "scratch_pitch", "chunk", "rows_d", "rows_h", "rows_w", "image_positions",
        "size_d", "size_h", "size_w",
    )  # fmt: skip
    s = {n: SLOTS.read(f, job, n) for n in names}
    phases = SLOTS.pointer(f, job, "fold_phases", "i64")
    zero = f.splat(0.0, tile.type) if tile.lanes == 1 else Value(f, "zeroinitializer", tile.type)
    size = found_size(tile)
    with (
        f.loop(0, s["phase_count"], name="phase") as phase,
        f.loop(0, images, name="n") as n,
        f.loop(0, s["rows_d"], name="d") as d,
        f.loop(0, s["rows_h"], name="h") as h,
        f.loop(0, s["rows_w"], tile.lanes, name="w") as w,
    ):
        count, first = f.load("i64", phases[phase * 2]), f.load("i64", phases[phase * 2 + 1])
        meeting = _emit_meeting(f, job, s, tile, found, (first, first + count), (n, d, h, w))
        out = scratch[phase * s["chunk"] * s["scratch_pitch"] + n * s["image_positions"] + (d * s["rows_h"] + h) * s["rows_w"] + w]
        with f.loop(0, channels, name="m") as m:
            patch, sums = patches[m * s["tap_count"] * s["patch_pitch"]], Carry([zero])
            with f.loop(0, meeting, name="t", carry=sums) as t:
                entry = found[t * size]
                lit = columns.kept(f, tile.lanes, entry[8])
                sums.next = [f.fadd(sums.values[0], f.masked_load(tile.type, patch[f.load("i64", entry)], lit))]
            f.store(sums.results[0], out[m * s["scratch_pitch"]])
    return f


def found_size(tile: Tile) -> int:
    """Bytes of what `fold` lists of a tap: its place among a channel's patches, and its lanes."""
    return round_up(8 + 4 * tile.lanes, 8)


def _emit_meeting(
    f: Function, job: Value, s: dict[str, Value], tile: Tile, found: Value, taps: tuple[Value, Value],
    at: tuple[Value, Value, Value, Value],
) -> Value:  # fmt: skip
    """Lists the taps that meet the vector of output positions at (image, d, h, w); returns how many do."""
    entries, meeting, (n, d, h, w) = SLOTS.pointer(f, job, "fold_taps", "i64"), Carry([f.value(0)]), at
    with f.loop(*taps, name="t", carry=meeting) as t:
        number, od, oh, ow = (f.load("i64", entries[t * FOLD + i]) for i in range(FOLD))
        there = f.compare("ult", d + od, s["size_d"]) & f.compare("ult", h + oh, s["size_h"])
        there = there & (w + ow < s["size_w"]) & (w + ow > -tile.lanes)
        row = ((n * s["size_d"] + d + od) * s["size_h"] + h + oh) * s["size_w"]
        lit = f.lanes_between(w + ow, 0, s["size_w"], tile.lanes)
        entry = found[meeting.values[0] * found_size(tile)]
        f.store(number * s["patch_pitch"] + row + w + ow, entry)
        f.store(columns.widened(f, lit), entry[8])
        meeting.next = [meeting.values[0] + f.select(there, 1, 0)]
    return meeting.results[0]


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    tile = code.tile
    do_pack = pack.emit(pack.Pack(tile.element, tile.lanes, 1), SLOTS)
    do_place = listing.emit_place(tile.lanes, SLOTS, reads=False)
    writer = store.writer(code.store, SLOTS)
    do_store = store.emit_rows(writer, SLOTS)
    do_tiles = microkernel.emit_both(tile)
    do_fold = _emit_fold(tile)

    def prepare(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        position, _, group = jobs.place_of(number, s)
        image, images = _emit_images(f, s, position)
        table, *_, stored = _rooms(tile, s, workspace)
        x = SLOTS.pointer(f, job, "x", tile.element)[group * s["x_group"]]
        low, width = image * s["positions"], images * s["positions"]
        f.call(do_pack, [job, table, x, stored, low, low + width, s["channels_in"]])
        low, width = image * s["image_positions"], images * s["image_positions"]
        f.call(do_place, [job, table, s["room"], low, low + width])

    def work(f: Function, job: Value, number: Value, rooms: helping.Rooms, _helps: Value, word: Value) -> None:
        s = {name: SLOTS.read(f, job, name) for name in _TASK_SLOTS}
        position, split, group = jobs.place_of(number, s)
        _, images = _emit_images(f, s, position)
        (table, *_, stored), (_, line, scratch, patches, found, _) = _rooms(tile, s, rooms.prepared), _rooms(tile, s, rooms.own)
        y = SLOTS.pointer(f, job, "y", tile.element)
        weight = SLOTS.pointer(f, job, "weight", tile.element)[group * s["weight_group"]]
        width, vectors = images * s["positions"], (images * s["image_positions"] + (tile.lanes - 1)) // tile.lanes
        first, many = jobs.share_of(split, s["chunks_a_split"], s["chunks"])
        with helping.emit_pieces(f, word, many) as piece:
            ic = first + piece
            _emit_gemm(f, job, s, ic, weight, stored, patches, width, tile, do_tiles)
            channel = ic * s["chunk"]
            number_out = group * s["channels_out"] + channel
            several = f.minimum(s["channels_out"] - channel, s["chunk"])
            f.call(do_fold, [job, patches, scratch, found, several, images])
            plane = y[number_out * s["y_channel"]]
            f.call(do_store, [job, table, s["room"], 0, vectors, scratch, line, plane, number_out, several])
        store.emit_done(f, code.store, s["y_round"])

    entries = helping.emit_entry("entry", SLOTS, helping.Pieces(prepare, helping.chunks_of(SLOTS), work))
    return module([*do_tiles, do_pack, do_place, *writer.functions, do_store, do_fold, *entries])


def _emit_images(f: Function, s: dict[str, Value], position: Value) -> tuple[Value, Value]:
    """(first image of a block, its images)."""
    image = position * s["images_a_block"]
    return image, f.minimum(s["batch"] - image, s["images_a_block"])


def _rooms(tile: Tile, s: dict[str, Value], workspace: Value) -> tuple[Value, ...]:
    """The workspace's parts: table, line, scratch, patches, what is found of taps, and the stored images."""
    rooms, at = [workspace], s["table_bytes"]
    for name in ("line_bytes", "scratch_bytes", "patch_bytes", "found_bytes"):
        rooms.append(workspace[at])
        at = at + s[name]
    rooms.append(workspace[at])
    table, line, scratch, patches, found, stored = rooms
    return table, *(room.of(tile.element) for room in (line, scratch, patches)), found, stored.of(tile.element)


_TASK_SLOTS = (
    "block_count", "splits", "abreast", "images_a_block", "batch", "room", "table_bytes", "line_bytes", "scratch_bytes",
    "patch_bytes", "found_bytes", "x_group", "weight_group", "positions", "image_positions", "channels_in", "chunks_a_split",
    "chunks", "chunk", "channels_out", "y_channel", "tile_blocks", "x_pitch", "patch_pitch", "y_round",
)  # fmt: skip


def _emit_gemm(
    f: Function,
    job: Value,
    s: dict[str, Value],
    ic: Value,
    weight: Value,
    stored: Value,
    patches: Value,
    width: Value,
    tile: Tile,
    do_tiles: tuple[Function, Function],
) -> None:
    """The patches of one chunk of output channels: wide tiles, then narrow ones."""
    taps = SLOTS.pointer(f, job, "taps", "i64")
    depth = s["channels_in"] * tile.rows
    left = weight[ic * s["tile_blocks"] * depth]
    sizes: list[Int] = [taps, 1, s["channels_in"], s["x_pitch"]]
    pitch, whole = s["patch_pitch"], (width + (tile.lanes - 1)) // tile.lanes * tile.lanes  # one tile for 9 of 16 columns
    microkernel.emit_block(f, tile, do_tiles, left, s["tile_blocks"], depth, stored, 1, sizes, patches, pitch, whole)
