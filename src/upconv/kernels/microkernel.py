"""The register tile: rows x vectors of accumulators, fed one broadcast and one vector row at a time.

Every dense kernel is this loop with other addresses. For each tap in a run-time table and each channel, `vectors` vectors
are read from the right operand, each of `rows` scalars of the left operand is broadcast, and all products are added up in
registers. Names follow BLIS: the tile's height is MR (`rows`), its width NR (`vectors` times the lanes).

A turned tile has the left operand's rows in the lanes, and scalars of its columns are broadcast, each from a place of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil

from upconv.codegen import system
from upconv.codegen.ir import SIZES, Carry, Function, Int, Value, element_of, lanes_of
from upconv.codegen.target import LINE
from upconv.kernels.register_tile import Tile


@dataclass(frozen=True, slots=True)
class Finish:
    """What becomes of a tile's sums in place of being left in `out`: `emit(f, tile, ir, sums, more arguments)` uses them up.

    `prepare(f, tile, ir, more arguments)` comes before they are computed; an `emit` of None leaves them in `out`. `vector` is the
    argument that counts the vectors of columns in front of a tile.
    """

    name: str
    vector: str
    arguments: tuple[tuple[str, str], ...]
    prepare: Callable[[Function, Tile, Value, list[Value]], None]
    emit: Callable[[Function, Tile, Value, list[Value], list[Value]], None] | None


def emit_both(tile: Tile, finish: Finish | None = None, parts: bool = False, scattered: bool = False) -> tuple[Function, Function]:
    """The tile, and the narrow one of a single vector that finishes its rows."""
    name, narrow = "" if finish is None else f"_{finish.name}", replace(tile, vectors=1)
    return emit(tile, f"tile{name}", finish, parts, scattered), emit(narrow, f"narrow{name}", finish, parts)


def emit_block(
    f: Function, tile: Tile, both: tuple[Function, Function], left: Value, blocks: Value, depth: Value, right: Value,
    column: Int, sizes: list[Int], out: Value, pitch: Int, width: Value, more: Int = 0,
    finishing: Callable[[Value], list[Int]] = lambda jr: [],
) -> None:  # fmt: skip
    """Calls for `blocks` strips of tile rows (`depth` elements of `left` each) times `width` columns.

    jr runs outside ir: a tile's columns stay in the first-level cache while the weights stream past them. Wide tiles come
    first, then narrow ones. `column` is the elements of `right` a column: 1 where its rows are `width` long or longer, the
    rows of a panel where it consists of panels, each as wide as a tile. `sizes` holds the tap table, the number of taps, the
    channels and the pitch of the right operand's rows; `pitch` is the output's. Where `more` is not 0, the sums are added to
    what stands there. `finishing` gives the arguments of tiles with a `Finish`, from the first column.
    """
    whole = width // tile.width * tile.width
    for first, last, step, wide, do in (
        (f.value(0), whole, column * tile.width, tile.width, both[0]),
        (whole, width, f.value(tile.lanes), tile.lanes, both[1]),
    ):
        count = (last - first + (wide - 1)) // wide
        f.call(do, [left, blocks, depth, right[first * column], *sizes, out[first], pitch, more, count, step, *finishing(first)])


TAP = 3
"""Numbers a tap: see `emit`."""


FEW_SUMS = 16


def together(sums: int) -> int:
    """Steps of the inner loop at a time: its counting takes as long as a fortieth of its work.

    Most depths are whole multiples of four; of more sums, which fill 32 registers, LLVM keeps some on the stack then.
    """
    return 4 if sums <= FEW_SUMS else 3


AHEAD = 4096
"""Bytes ahead that weights are asked for. They stand in the order that they are read in, but processors look no further ahead than
to the end of a page. Where weights come from memory, tiles are 10 to 25 % faster so."""


def emit(tile: Tile, name: str = "tile", finish: Finish | None = None, parts: bool = False, scattered: bool = False) -> Function:
    """`tile(left, blocks, depth, right, taps, tap_count, channels, pitch, out, out_pitch, more, tiles, step)`: out (+)= sums.

    `tiles` tiles of columns stand `step` elements apart in the right operand and side by side in `out`. For each, `blocks`
    strips of rows, `depth` elements of `left` each, meet the same columns: the sums go over taps and channels. `taps` is a
    table of right offset and left offset in elements, and of how many times the channels follow there; the left operand is
    packed `rows` per channel, the right operand's next channel is `pitch` elements on. `out` gets `rows` rows a strip,
    `out_pitch` elements apart; where `more` is not 0, they are added to what it holds. With a `finish`, what `out` holds is
    added to the sums, which go where it says. With `parts` there is one tap, and `tap_count` is how many channels are added up
    at a time: the parts' sums are added up in `out`, which stays in the first-level cache. Where the right operand's rows are
    `scattered` in memory, what the next tile reads of them is asked for.
    """
    pointers = ("left", "right", "taps", "out")
    names = (
        "left", "blocks", "depth", "right", "taps", "tap_count", "channels", "pitch", "out", "out_pitch", "more", "tiles", "step",
    )  # fmt: skip
    parameters = [(n, "ptr" if n in pointers else "i64") for n in names]
    further = finish.arguments if finish else ()
    f = Function(name, [*parameters, *further], attributes="internal noinline nounwind")
    left, blocks, depth, right, taps, tap_count, channels, pitch, out, out_pitch, more, count, step, *given = f.arguments
    left, right, out, taps = left.of(tile.element), right.of(tile.element), out.of(tile.element), taps.of("i64")
    with f.loop(0, count, name="jr") as jr, f.loop(0, blocks, name="ir") as ir:
        here = given
        if finish is not None:
            here = [g + jr * tile.vectors if n == finish.vector else g for (n, _), g in zip(further, given, strict=True)]
            finish.prepare(f, tile, ir, here)
        a, b = left[ir * depth], right[jr * step]
        if parts:
            with f.loop(0, channels, tap_count, name="part") as at:
                some = f.minimum(channels - at, tap_count)
                sums = _sums(f, tile, a[at * tile.rows], b[at * pitch], taps, f.value(1), some, pitch)
                leave(f, tile, (more + at).equals(0), sums, _places(tile, out, out_pitch, jr, ir))
        else:
            sums = _sums(f, tile, a, b, taps, tap_count, channels, pitch, scattered)
            places, fresh = _places(tile, out, out_pitch, jr, ir), more.equals(0)
            if finish is None or finish.emit is None:
                leave(f, tile, fresh, sums, places)
            else:
                finish.emit(f, tile, ir, _with_more(f, tile, fresh, sums, places), here)
    return f


def _places(tile: Tile, out: Value, pitch: Value, jr: Value, ir: Value) -> list[Value]:
    """Where a tile's sums are left, vector by vector."""
    rows = out[jr * tile.width + ir * tile.rows * pitch]
    return [rows[pitch * r][v * tile.lanes] for r in range(tile.rows) for v in range(tile.vectors)]


def _sums(
    f: Function, tile: Tile, left: Value, right: Value, taps: Value, tap_count: Value, channels: Value, pitch: Value,
    scattered: bool = False,
) -> list[Value]:  # fmt: skip
    """The sums of a tile over all taps and channels, row by row."""
    zero = Value(f, "zeroinitializer", tile.type) if tile.lanes > 1 else f.splat(0.0, tile.type)
    over_taps = Carry([zero] * (tile.rows * tile.vectors))
    with f.loop(0, tap_count, name="tap", carry=over_taps) as t:
        entry = taps[t * TAP]
        from_right, from_left = right[f.load("i64", entry)], left[f.load("i64", entry[1])]
        count = channels * f.load("i64", entry[2])
        over_taps.next = _over_channels(f, tile, over_taps.values, from_left, from_right, count, pitch, scattered)
    return over_taps.results


def _over_channels(
    f: Function, tile: Tile, sums: list[Value], left: Value, right: Value, count: Value, pitch: Value, scattered: bool
) -> list[Value]:
    """The sums, with those over `count` channels added."""
    steps = Carry([*sums, left, right])
    for low, high, step, k in unrolled(f, count, len(sums)):
        with f.loop(low, high, step, name=k, carry=steps):
            *sums, a, b = steps.values
            if tile.asks and step > 1:
                _ask_ahead(f, tile, a, step)
            for _ in range(step):
                if scattered:
                    _ask_beside(f, tile, b)
                sums, a, b = _step(f, tile, sums, a, b), a[tile.rows], b[pitch]
            steps.next = [*sums, a, b]
        steps = Carry(steps.results)
    return steps.values[:-2]


def leave(f: Function, tile: Tile, fresh: Value, sums: list[Value], places: list[Value]) -> None:
    """Stores the sums, or adds them to what is there."""
    with f.when(fresh, name="fresh"):
        for value, place in zip(sums, places, strict=True):
            f.store(_stored(f, tile, value), place)
    with f.otherwise(fresh, name="more"):
        for value, place in zip(sums, places, strict=True):
            f.store(_stored(f, tile, f.fadd(value, f.load(value.type, place))), place)


def _stored(f: Function, tile: Tile, value: Value) -> Value:
    """A sum as it is stored."""
    return system.shuffled(f, value) if tile.stalls else value


def _with_more(f: Function, tile: Tile, fresh: Value, sums: list[Value], places: list[Value]) -> list[Value]:
    """The sums, with what is there added unless they are `fresh`."""
    total = Carry(sums)
    with f.loop(0, f.select(fresh, 0, 1), name="earlier", carry=total):
        total.next = [f.fadd(value, f.load(tile.type, place)) for value, place in zip(total.values, places, strict=True)]
    return total.results


def _ask_ahead(f: Function, tile: Tile, left: Value, steps: int) -> None:
    """Asks for what the left operand will be, in so many steps, AHEAD bytes on."""
    item = SIZES[tile.element]
    for line in range(ceil(tile.rows * steps * item / LINE)):
        f.prefetch(left[(AHEAD + line * LINE) // item])


def _ask_beside(f: Function, tile: Tile, right: Value) -> None:
    """Asks for what the next tile's columns will be: from their end back, wherever lines begin."""
    for at in range(2 * tile.width - 1, tile.width - 1, -(LINE // SIZES[tile.element])):
        f.prefetch(right[at])


def unrolled(f: Function, count: Value, sums: int) -> tuple[tuple[Value, Value, int, str], ...]:
    """(low, high, step, name) of the two loops over so many channels: several together, then the rest one by one."""
    several = together(sums)
    whole = count // several * several
    return (f.value(0), whole, several, "k"), (whole, count, 1, "rest")


def _step(f: Function, tile: Tile, sums: list[Value], a: Value, b: Value) -> list[Value]:
    """One channel of a tile."""
    return products(f, tile.type, sums, b, tile.vectors, (a[r] for r in range(tile.rows)))


def rows_times_scalars(
    f: Function, type_: str, sums: list[Value], left: Value, rows: int, vectors: int, sources: list[Value], count: Value,
    ask: Value | None, apart: Int, streams: int = 1,
) -> tuple[list[Value], Value]:  # fmt: skip
    """(sums, left) after `count` steps: `vectors` vectors of a row of `left` times a scalar of each of the sources.

    Where there is something to `ask` for, each step asks at as many places as a row has lines, so many bytes `apart`. `left` stands
    in so many `streams`, one behind the other: step i is in stream i % streams. The count is a multiple of them.
    """
    lines = lines_of(type_, vectors)
    asked = [] if ask is None else [ask.of("i8")]
    steps = Carry([*sums, left, *asked])
    part: Int = rows if streams == 1 else count // streams * rows  # elements from one step of a round to the next
    loops = unrolled(f, count, len(sums)) if streams == 1 else ((f.value(0), count, streams, "k"),)
    for low, high, step, name in loops:
        with f.loop(low, high, step, name=name, carry=steps) as k:
            (*sums, a), asked = steps.values[: len(sums) + 1], steps.values[len(sums) + 1 :]
            for u in range(step):
                for i, there in enumerate(asked):
                    for _ in range(lines):
                        f.prefetch(there)
                        there = there[apart]
                    asked[i] = there
                sums = products(f, type_, sums, a[part * u], vectors, [source[k + u] for source in sources])
            steps.next = [*sums, a[step // streams * rows], *asked]
        steps = Carry(steps.results)
    return steps.values[: len(sums)], steps.values[len(sums)][part * (streams - 1)]


def apart_for(tiles: Value) -> Value:
    """How many bytes apart each of so many tiles asks for lines, so that all of them together ask for each line once."""
    return (tiles + (LINE - 1)) // tiles


def lines_of(type_: str, vectors: int) -> int:
    """Lines of the cache that so many vectors fill."""
    return ceil(vectors * lanes_of(type_) * SIZES[element_of(type_)] / LINE)


def products(f: Function, type_: str, sums: list[Value], several: Value, vectors: int, scalars: Iterable[Value]) -> list[Value]:
    """The sums with `vectors` vectors times each scalar added, the scalars given by their addresses.

    Broadcast then FMA, scalar by scalar, is the order that keeps LLVM from spilling.
    """
    values = [f.load(type_, several[v * lanes_of(type_)]) for v in range(vectors)]
    done: list[Value] = []
    for address in scalars:
        scalar = f.splat(f.load(element_of(type_), address), type_)
        for value in values:
            done.append(f.fma(value, scalar, sums[len(done)]))
    return done
