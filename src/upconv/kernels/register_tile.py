"""The register tile's shape: which tiles a target's registers hold, how many cycles they take, and which suits a layer.

Estimates only; the tile's code is `microkernel`. Every kernel's estimate of its time ends in `seconds`, so that they compare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import ceil

from upconv.codegen.ir import SIZES, vector
from upconv.codegen.target import Target

ELEMENTS = {"float32": "float", "float64": "double"}


@dataclass(frozen=True, slots=True)
class Tile:
    """A micro-kernel's shape: `rows` broadcast operands, `vectors` vector operands of `lanes` elements.

    A turned tile has one vector of columns, of which it computes the first `turned`, and whole vectors of rows. A tile that `asks`
    asks for its weights ahead.
    """

    element: str
    lanes: int
    rows: int
    vectors: int
    turned: int = 0
    asks: bool = True
    cycles: float = 0.5
    """That the multiply-add of a vector takes, of many that wait for nothing."""
    stalls: bool = False
    """Whether stores of sums hold multiply-adds back: see `target.STALLED`."""
    streams: bool = False
    """Whether vectors are whole lines that large outputs are stored in round the caches: see `store.ROUND`."""

    @property
    def width(self) -> int:
        """NR in elements."""
        return self.vectors * self.lanes

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)

    def __str__(self) -> str:
        return f"{self.rows}x{self.turned or self.width}"


def fits(rows: int, vectors: int, target: Target) -> bool:
    """Whether accumulators, one k-step's vectors and a broadcast fit, a product too where multiply and add are not fused."""
    spare = 1 if target.many_registers or not target.fma else 0
    return rows * vectors + vectors + 1 + spare <= target.registers


def tiles(element: str, target: Target) -> list[Tile]:
    """Every tile the registers hold, the widest use first."""
    most, whole = 14 if target.many_registers else 6, target.lanes(SIZES[element])
    every = (
        Tile(element, lanes, rows, vectors, cycles=cycles, stalls=target.stalls, streams=target.kind == 2 and lanes == whole)
        for lanes, cycles in target.vectors(SIZES[element])
        for rows in range(1, most + 1)
        for vectors in range(1, 9)
    )
    found = [tile for tile in every if fits(tile.rows, tile.vectors, target)]
    return sorted(found, key=lambda t: (-t.rows * t.vectors, t.vectors))


LAST_COLUMNS, LAST_VECTORS = 6, 4
"""Columns, and vectors of rows at most, of a tile for arrays with their channels last: each column is read at a place of its own,
and registers hold so many addresses."""


@lru_cache(maxsize=512)
def last_tile(dtype: str, target: Target, rows: int, piece: int | None = None) -> Tile:
    """The turned tile for arrays with their channels last, for the fewest cycles over so many rows.

    Nothing is turned back, so that there can be more columns than lanes. Where its rows are added up a `piece` at a time, vectors
    are no longer than such a piece needs.
    """
    offered = target.vectors(SIZES[ELEMENTS[dtype]])
    if piece is not None:
        offered = tuple(v for v in offered if v[0] < 2 * piece) or offered[-1:]
    found = []
    for (lanes, cycles), vectors in product(offered, range(1, LAST_VECTORS + 1)):
        most = next((n for n in range(LAST_COLUMNS, 0, -1) if fits(n, vectors, target)), 1)
        found.append(Tile(ELEMENTS[dtype], lanes, vectors * lanes, 1, most, cycles=cycles, stalls=target.stalls))
    return min(found, key=lambda tile: chunks_cycles(tile, rows) / tile.turned)


FEW_COLUMNS = (2, 4, 5, LAST_COLUMNS)
"""Columns of a tile for few of them: each number has code of its own."""
READ = 20.0
"""Bytes of weights a cycle that such tiles read at most, from the third-level cache. Measured: 512 -> 512 on one position."""


@lru_cache(maxsize=512)
def few_tile(dtype: str, target: Target, rows: int, columns: int, shares: int) -> Tile:
    """The turned tile for so few columns that weights are what is read, for the fewest cycles of the busiest thread.

    It is no higher than one of so many equal shares of the rows, two a thread, but for what fills up a vector.
    """
    found = []
    for lanes, cycles in target.vectors(SIZES[ELEMENTS[dtype]]):
        most = min(LAST_VECTORS, max(1, ceil(rows / shares / lanes)))
        for vectors, many in product(range(1, most + 1), FEW_COLUMNS):
            if fits(many, vectors, target) or many == FEW_COLUMNS[0]:
                found.append(Tile(ELEMENTS[dtype], lanes, vectors * lanes, 1, many, cycles=cycles, stalls=target.stalls))
    least, threads = rows * SIZES[ELEMENTS[dtype]] / READ, max(1, shares // 2)

    def cycles_of(tile: Tile) -> float:
        own = min(ceil(ceil(rows / tile.rows) / threads) * tile.rows, rows)
        return max(chunks_cycles(tile, own) * threads, least) * ceil(columns / tile.turned)

    return min(found, key=lambda tile: (cycles_of(tile), -tile.rows, tile.turned))


def rows_computed(tile: Tile, rows: int) -> int:
    """Of a turned tile, for at most as many as it has: those of one vector where that is enough."""
    return tile.lanes if rows <= tile.lanes else tile.rows


def chunks_cycles(tile: Tile, rows: int) -> float:
    """Cycles of a step of so many rows in a turned tile's: whole tiles, and what is computed for the rest."""
    whole, rest = divmod(rows, tile.rows)
    last = replace(tile, rows=rows_computed(tile, rest))
    return whole * step_cycles(tile) + (step_cycles(last) if rest else 0.0)


WEIGHTS = 6.0
"""Bytes of weights a cycle that tiles of one vector read from the second-level cache. Measured: 1024 -> 256 k4s2 on 16 x 16, 24
columns, takes 7.0 ms in tiles of 13 x 16 and of 13 x 8, 6.1 ms in those of 8 x 24."""


def step_cycles(tile: Tile) -> float:
    """A k-step's cycles: its FMAs, or two loads each, a whole-line vector load that is not aligned counted twice, or its weights'.

    A wide row costs a little more than a high column: it is what the first-level cache holds of the right operand.
    """
    if tile.turned:
        vectors = tile.rows // tile.lanes
        counting = 0.3 if vectors * tile.turned <= 16 else 0.5  # of three steps together, not four: see `microkernel.together`
        return max(vectors * tile.turned * tile.cycles, (vectors + tile.turned) * tile.cycles, 4.0) + counting
    crossing = 2 if tile.lanes * SIZES[tile.element] >= 64 else 1.25
    loads = tile.rows + tile.vectors * crossing
    weights = tile.rows * SIZES[tile.element] / WEIGHTS
    return max(tile.rows * tile.vectors * tile.cycles, loads / 2, weights, 4.0) + 0.3 + 0.1 * tile.vectors


def _tiles_of(tile: Tile, count: int) -> tuple[int, int]:
    """Wide tiles of so many columns, and narrow ones at the end."""
    return divmod(ceil(count / tile.lanes), tile.vectors)


def columns_cycles(tile: Tile, count: int, more: float = 0.0) -> float:
    """Cycles of a step of so many columns, of which each tile takes so many more."""
    wide, narrow = _tiles_of(tile, count)
    return wide * step_cycles(tile) + narrow * step_cycles(replace(tile, vectors=1)) + (wide + narrow) * more


END = 12.0
"""Cycles that a tile takes besides its steps and the storing of its sums. Measured."""


def ends_cycles(tile: Tile, count: int) -> float:
    """Cycles that the tiles of so many columns take besides their steps."""
    wide, narrow = _tiles_of(tile, count)
    return wide * (tile.vectors * tile.rows + END) + narrow * (tile.rows + END)


MOVED, STREAMED = 10e9, (10e9, 10e9, 13e9)
"""Bytes a second and thread: packed or stored between sums, and weights read in a row while the sums go on, by `Target.kind`.
Measured. They are compared with cycles of the nominal clock only: where the clock is slower, they stand for fewer."""


def seconds(target: Target, share: float, gemm: float, other: float, moved: float, streamed: float) -> float:
    """Estimated seconds of a kernel's call from its cycles and bytes, of which the busiest thread has a `share`.

    Weights stream past the tiles at no price of their own until there are too few columns for each.
    """
    work = max(gemm / target.hertz, streamed / STREAMED[target.kind]) + other / target.hertz + moved / MOVED
    return work * share + 5e-6


@lru_cache(maxsize=512)
def best_tile(dtype: str, target: Target, rows: int) -> Tile:
    """The tile of a plain GEMM of so many rows, for the fewest cycles over them."""
    offered = [t for t in tiles(ELEMENTS[dtype], target) if t.vectors > 1]
    return min(offered, key=lambda t: ceil(rows / t.rows) * step_cycles(t) / t.width)


NEAR = 2.0
"""Second-level caches whose worth of weights, read again for every block, is not asked for. Asking costs layers 3 to 5 % there,
on a busy machine, where it counts what tiles do besides multiplying."""


def far(weight_bytes: float, target: Target) -> bool:
    """Whether so many bytes of weights are read again from beyond the near caches."""
    return weight_bytes > NEAR * target.l2


def reading(tile: Tile, weight_bytes: float, target: Target) -> Tile:
    """The tile as it reads so many bytes of weights.

    Those of targets with many registers always ask: without, LLVM moves their loads up until there are too few.
    """
    return replace(tile, asks=target.many_registers or far(weight_bytes, target))
