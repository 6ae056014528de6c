"""The register tile: rows x vectors of accumulators, fed one broadcast and one vector row at a time.

Every dense kernel is this loop with other addresses. For each tap in a run-time table and each channel, `vectors` vectors
are read from the right operand, each of `rows` scalars of the left operand is broadcast, and all products are added up in
registers. Names follow BLIS: the tile's height is MR (`rows`), its width NR (`vectors` times the lanes).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

from upconv.codegen.ir import SIZES, Carry, Function, Int, Value, vector
from upconv.codegen.target import Target

ELEMENTS = {"float32": "float", "float64": "double"}


@dataclass(frozen=True, slots=True)
class Tile:
    """A micro-kernel's shape: `rows` broadcast operands, `vectors` vector operands of `lanes` elements."""

    element: str
    lanes: int
    rows: int
    vectors: int

    @property
    def width(self) -> int:
        """NR in elements."""
        return self.vectors * self.lanes

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)

    def __str__(self) -> str:
        return f"{self.rows}x{self.width}"


def fits(rows: int, vectors: int, target: Target) -> bool:
    """Whether accumulators, one k-step's vectors and a broadcast fit, a product too where multiply and add are not fused."""
    spare = 1 if target.registers > 16 or not target.fma else 0
    return rows * vectors + vectors + 1 + spare <= target.registers


def tiles(element: str, target: Target) -> list[Tile]:
    """Every tile the registers hold, the widest use first."""
    lanes = target.lanes(SIZES[element])
    most = 14 if target.registers > 16 else 6
    found = [
        Tile(element, lanes, rows, vectors) for rows in range(1, most + 1) for vectors in range(1, 9) if fits(rows, vectors, target)
    ]
    return sorted(found, key=lambda t: (-t.rows * t.vectors, t.vectors))


def step_cycles(tile: Tile) -> float:
    """A k-step's cycles: two FMAs or two loads each, a whole-line vector load that is not aligned counted twice."""
    crossing = 2 if tile.lanes * SIZES[tile.element] >= 64 else 1.25
    loads = tile.rows + tile.vectors * crossing
    return max(tile.rows * tile.vectors / 2, loads / 2, 4.0) + 0.5


@lru_cache(maxsize=512)
def best_tile(dtype: str, target: Target, rows: int) -> Tile:
    """The tile of a plain GEMM of so many rows, for the fewest cycles over them."""
    offered = [t for t in tiles(ELEMENTS[dtype], target) if t.vectors > 1]
    return min(offered, key=lambda t: ceil(rows / t.rows) * step_cycles(t) / t.width)


def emit_both(tile: Tile) -> tuple[Function, Function]:
    """The tile, and the narrow one of a single vector that finishes its rows."""
    return emit(tile), emit(replace(tile, vectors=1), "narrow")


def emit_strip(
    f: Function, tile: Tile, both: tuple[Function, Function], left: Value, right: Value, sizes: list[Int], out: Value, pitch: Int,
    width: Value,
) -> None:  # fmt: skip
    """Calls for `width` columns of one strip of rows: wide tiles, then narrow ones.

    `sizes` holds the tap table, the number of taps, the channels and the right operand's pitch; `pitch` is the output's.
    """
    whole = width // tile.width * tile.width
    for start, stop, step, do in ((f.value(0), whole, tile.width, both[0]), (whole, width, tile.lanes, both[1])):
        with f.loop(start, stop, step, name="jr") as jr:
            f.call(do, [left, right[jr], *sizes, out[jr], pitch])


def emit(tile: Tile, name: str = "tile") -> Function:
    """`tile(left, right, taps, tap_count, channels, pitch, out, out_pitch)`: out = sum over taps and channels.

    `taps` is a table of (right offset, left offset) pairs in elements; the left operand is packed `rows` per channel, the
    right operand's next channel is `pitch` elements on. `out` gets `rows` rows, `out_pitch` elements apart.
    """
    f = Function(
        name,
        [
            ("left", "ptr"),
            ("right", "ptr"),
            ("taps", "ptr"),
            ("tap_count", "i64"),
            ("channels", "i64"),
            ("pitch", "i64"),
            ("out", "ptr"),
            ("out_pitch", "i64"),
        ],
        attributes="internal noinline nounwind",
    )
    left, right, taps, tap_count, channels, pitch, out, out_pitch = f.arguments
    left, right, out, taps = left.of(tile.element), right.of(tile.element), out.of(tile.element), taps.of("i64")
    zero = Value(f, "zeroinitializer", tile.type) if tile.lanes > 1 else f.splat(0.0, tile.type)
    over_taps = Carry([zero] * (tile.rows * tile.vectors))
    with f.loop(0, tap_count, name="tap", carry=over_taps) as t:
        from_right = right[f.load("i64", taps[t * 2])]
        from_left = left[f.load("i64", taps[t * 2 + 1])]
        over_channels = Carry([*over_taps.values, from_left, from_right])
        with f.loop(0, channels, name="k", carry=over_channels):
            *sums, a, b = over_channels.values
            over_channels.next = [*_step(f, tile, sums, a, b), a[tile.rows], b[pitch]]
        over_taps.next = over_channels.results[:-2]
    for r in range(tile.rows):
        row = out[out_pitch * r]
        for v in range(tile.vectors):
            f.store(over_taps.results[r * tile.vectors + v], row[v * tile.lanes])
    return f


def _step(f: Function, tile: Tile, sums: list[Value], a: Value, b: Value) -> list[Value]:
    """One channel: broadcast then FMA, row by row, the order that keeps LLVM from spilling."""
    vectors = [f.load(tile.type, b[v * tile.lanes]) for v in range(tile.vectors)]
    done = []
    for r in range(tile.rows):
        scalar = f.splat(f.load(tile.element, a[r]), tile.type)
        for v in range(tile.vectors):
            done.append(f.fma(vectors[v], scalar, sums[r * tile.vectors + v]))
    return done
