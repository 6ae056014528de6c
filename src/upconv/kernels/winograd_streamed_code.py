"""Winograd's products for few tiles: weights as they are, transformed in registers on their way to the sums.

A strip of rows stands in the lanes, and each tile's points are broadcast. One point of h at a time, the weights of a channel are
combined along h, then along w point by point, and each of these meets all tiles of a pass: as many as there are registers for.
Passes and points of h read the same part of the channels from the near caches, where a later part is asked for meanwhile.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from numpy.typing import NDArray

from upconv.codegen.ir import SIZES, Carry, Function, Value, vector
from upconv.codegen.target import LINE
from upconv.kernels import microkernel
from upconv.kernels.store import weave
from upconv.kernels.winograd_tiles import Way
from upconv.kernels.winograd_way import Code, Short, combine

AHEAD = 2
"""Parts ahead that weights are asked for, into the second-level cache. 1024 -> 512 k4s2 on 4 x 4, which takes as long as its
weights take to come from memory, is 1.31 times as fast so as with one part into the first-level cache, 1.04 as with one into the
second. Measured."""


def _points(way: Way, lacks: int | None) -> list[tuple[int, NDArray[Any]]]:
    """The points of a window that are not all zeros, and how their weights consist of taps but for what each is multiplied by.

    Without a tap one of the window's ends has nothing: the last belongs to the last tap alone, and so does the first to the first.
    """
    assert way.points
    matrix = way.points.plain_weight(way.taps)
    if lacks is not None:
        matrix[:, lacks] = 0
    return [(n, row) for n, row in enumerate(matrix) if row.any()]


def emit(code: Code, short: Short) -> Function:
    """`streamed(left, strips, right, tiles, rows, part, w_point, v_point, m, m_point, sums)`: sums of all points of some strips.

    `left` holds [tap][strip][channel][row], taps `w_point` elements apart, and `right` [point][channel][tile], of which there are
    `tiles`. The strips' phases lack the taps `short`. The sums go over `rows` channels, `part` of them at a time; they stand in
    `sums`, [point][tile][row], until they are turned into M's rows, with whatever stands there for tiles that are none.
    """
    pointers = ("left", "right", "m", "sums")
    names = ("left", "strips", "right", "tiles", "rows", "part", "w_point", "v_point", "m", "m_point", "sums")
    arguments = [(n, "ptr" if n in pointers else "i64") for n in names]
    name = "streamed" + "".join("" if lacks is None else f"_{d}{lacks}" for d, lacks in zip("hw", short, strict=True))
    f = Function(name, arguments, attributes="internal noinline nounwind")
    left, strips, right, tiles, rows, part, w_point, v_point, m, m_point, sums = f.arguments
    tile, each = code.tile, code.tiles_a_pass
    left, right, m, sums = (pointer.of(tile.element) for pointer in (left, right, m, sums))
    first, second = (_points(way, lacks) for way, lacks in zip(code.ways[1:], short, strict=True))
    (h, w), window_w = (way.taps for way in code.ways[1:]), code.ways[2].window
    numbers = [[a * window_w + b for b, _ in second] for a, _ in first]
    read = [i * w + j for i, j in product(range(h), range(w)) if i != short[0] and j != short[1]]
    for n in set(range(len(code.points))) - {n for row in numbers for n in row}:
        with f.loop(0, _size(code), tile.rows, name="zero") as place:
            f.store(Value(f, "zeroinitializer", _rows(code)), sums[n * _size(code)][place])
    with f.loop(0, strips, name="strip") as strip:
        strip_of = [left[w_point * n + strip * rows * tile.rows] for n in range(h * w)]
        with f.loop(0, rows, part, name="part") as at, f.loop(0, tiles, each, name="pass") as column:
            some, points, taps = f.minimum(rows - at, part), right[at * tile.width + column], [t[at * tile.rows] for t in strip_of]
            for i, ((_, along), of_row) in enumerate(zip(first, numbers, strict=True)):
                later = [taps[n][part * (AHEAD * tile.rows)] for n in read[i :: len(first)]]
                met = [(row, points[v_point * n]) for (_, row), n in zip(second, of_row, strict=True)]
                found = _emit_row(f, code, taps, later, along, met, some, each)
                places = [sums[n * _size(code)][(column + t) * tile.rows] for n in of_row for t in range(each)]
                microkernel.leave(f, tile, at.equals(0), found, places)
        _emit_turn(f, code, sums, m[strip * _size(code)], m_point)
    return f


def _rows(code: Code) -> str:
    """A strip's rows as a vector; LLVM takes it apart where registers are shorter."""
    return vector(code.tile.element, code.tile.rows)


def _size(code: Code) -> int:
    """Of the sums of a strip and a point."""
    return code.tile.width * code.tile.rows


def _emit_row(
    f: Function, code: Code, taps: list[Value], later: list[Value], along: NDArray[Any], points: list[tuple[NDArray[Any], Value]],
    channels: Value, each: int,
) -> list[Value]:  # fmt: skip
    """The sums over a part of the channels of one point of h and all points of w, point by point and tile by tile.

    `taps` are where the part's weights stand, window row by window row, `later` where some of those to be asked for do. `points`
    says for each point of w how combined taps are combined again, and where the tiles' points stand.
    """
    tile, type_, width = code.tile, _rows(code), code.ways[2].taps
    sums = Carry([Value(f, "zeroinitializer", type_)] * (len(points) * each))
    used, met = along.nonzero()[0].tolist(), [j for j in range(width) if any(row[j] for row, _ in points)]
    with f.loop(0, channels, name="k", carry=sums) as k:
        for place in later:
            for line in range(0, tile.rows, LINE // SIZES[tile.element]):
                f.prefetch(place[k * tile.rows + line], nearest=False)
        columns = [combine(f, along[used], [f.load(type_, taps[i * width + j][k * tile.rows]) for i in used]) for j in met]
        for coefficients, point in points:
            weight = combine(f, coefficients[met], columns)
            for t in range(each):
                scalar = f.splat(f.load(tile.element, point[k * tile.width + t]), type_)
                sums.next.append(f.fma(weight, scalar, sums.values[len(sums.next)]))
    return sums.results


def _emit_turn(f: Function, code: Code, sums: Value, m: Value, m_point: Value) -> None:
    """A strip's sums into M: the rows of each point, a tile a lane."""
    tile = code.tile
    with f.loop(0, len(code.points), name="point") as point:
        columns = [f.load(_rows(code), sums[point * _size(code)][t * tile.rows]) for t in range(tile.width)]
        for n, value in enumerate(weave(f, columns)):
            f.store(value, m[point * m_point][n * tile.rows])
