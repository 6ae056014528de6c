"""What the Winograd kernel's code depends on, its job's slots, and transforms in registers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.ir import SIZES, Function, Value
from upconv.codegen.target import LINE
from upconv.kernels import columns, helping, listing, panel, store
from upconv.kernels import job as jobs
from upconv.kernels.geometry import round_up
from upconv.kernels.register_tile import Tile
from upconv.kernels.store import Store
from upconv.kernels.winograd_tiles import Way

SLOTS = jobs.Slots(
    tuple(
        dict.fromkeys(
            (
                *helping.OPEN, *columns.SLOTS, *panel.SLOTS, *store.SLOTS, "weight", "taps", "outer", "outer_count", "points",
                "phase_rows", "plane_rows", "room", "splits", "abreast", "chunks_a_split", "chunks", "chunk", "channels_out",
                "channels_in", "depth", "sum_depth", "depth_part", "phases_h", "phases_w", "weight_group", "weight_chunk",
                "weight_point", "x_group", "x_slice", "x_end", "group_out", "v_point", "m_pitch", "m_point", "table_bytes",
                "found_bytes", "m_bytes", "line_bytes", "lines_bytes", "slices_bytes", "v_bytes", "by_position", "last_h",
                "last_w", *listing.OF_SLICES, "asks_written", "asks_read", "written_bytes", "strips", "depths",
            )
        )
    )
)  # fmt: skip


MOST_HELD = 24
"""Elements of a plane's window, a vector each, that 32 registers hold well enough."""

Short = tuple[int | None, int | None]
"""The tap that phases lack in each of the two inner dimensions, in the order of transforms."""

POINT = 7
"""Numbers a point and part of the depth: first strip of rows, strips, first row of the depth, rows, first row of the weights;
whether it serves a tile's last output alone, in each of the two inner dimensions."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on; `planes` are the strides of x in the two inner dimensions.

    Windows that are an element apart in w are read at once, as planes of x are. `uneven` layers have rows that are dead at some
    points. Where `dilations` interleave layers, planes of x are theirs. Where weights are `streamed`, transformed as they are read,
    that is for how many tiles at a time, of several, and `short` is which taps the classes of phases lack.
    """

    tile: Tile
    slices: int
    ways: tuple[Way, Way, Way]
    planes: tuple[int, int]
    uneven: bool
    store: Store
    dilations: tuple[int, int] = (1, 1)
    streamed: int = 0
    short: tuple[Short, ...] = ()

    @property
    def reach(self) -> tuple[int, int]:
        """Elements of x that are read for a window in the two inner dimensions: in w as whole pieces hold."""
        h, w = self.window
        return h, round_up(w, 4) if self.ways[2].transformed else w

    @property
    def window(self) -> tuple[int, int]:
        """Elements of x that the points of a window, or of two side by side, need in the two inner dimensions."""
        h, w = (p * way.window for p, way in zip(self.planes, self.ways[1:], strict=True))
        return h, w + self.side_by_side - 1

    @property
    def side_by_side(self) -> int:
        """Windows in w, an element apart, that are read together: those of phases that stand apart there."""
        return self.ways[2].beside

    @property
    def points(self) -> list[tuple[int, int]]:
        return list(product(range(self.ways[1].window), range(self.ways[2].window)))

    @property
    def interleaved(self) -> int:
        """Vectors of V and M that a vector of tiles has: one of each layer that a dilation interleaves."""
        return prod(self.dilations)

    @property
    def layer_steps(self) -> tuple[int, int]:
        """From a plane of x, or a phase of the output, to the next in each dimension: how many of these layers further on."""
        h, w = self.dilations
        return (w if h > 1 else 0), int(w > 1)

    @property
    def layers(self) -> list[int]:
        """The layer that every plane of a window belongs to."""
        (h, w), (step_h, step_w) = self.planes, self.layer_steps
        return [i * step_h + j * step_w for i, j in product(range(h), range(w)) for _ in range(self.side_by_side)]

    @property
    def tiles_a_pass(self) -> int:
        """Tiles that meet streamed weights together."""
        return 1 if self.tile.turned == 1 else self.streamed

    @property
    def inputs(self) -> list[NDArray[np.float64]]:
        """The transforms of x along the two inner dimensions; where weights are streamed, with the scale that these are without."""
        found = []
        for points in (way.points for way in self.ways[1:]):
            scale = points.scale[:, None] if points and self.streamed else 1.0
            found.append(points.input * scale if points else np.eye(1))
        return found

    @property
    def together(self) -> int:
        """Slices of the result that are added up at once: of quarters, the four that have products of halves in common."""
        return 4 if self.slices > 2 else 1

    @property
    def phases_w(self) -> int:
        """Phases of w where the sums of all of them stay in registers until they are woven, else 0."""
        return self.store.step // self.ways[2].outputs if self.ways[1].outputs == 1 else 0

    @property
    def piece(self) -> int:
        """Neighbouring elements of x that a tile takes at once, transposed in registers; 1 where w is not transformed."""
        if not self.ways[2].transformed:
            return 1
        return next(n for n in (16, 8, 4) if n <= self.tile.lanes and self.reach[1] % n == 0)

    @property
    def row_by_row(self) -> bool:
        """Whether rows of a window are turned one by one, and wait in a line for the others, in place of registers.

        LLVM spills up to 260 vectors of 64 bytes of a window of five by five. Measured: 1.06 times as fast so over 40 layers,
        1.05 to 1.26 for strided ones; smaller windows take 0.96 to 1.0 of the speed, those of shorter vectors 0.95.
        """
        return self.tile.lanes * SIZES[self.tile.element] == LINE and len(self.points) > MOST_HELD

    @property
    def panel(self) -> panel.Panel:
        """How vectors are found where w is not transformed: each element of the window is a read of its own."""
        return panel.Panel(self.tile.element, self.tile.lanes, self.tile.vectors, self.planes[1])

    def found_bytes(self, outer: int, room: int) -> int:
        """Bytes of what is known of a task's windows: masks of each row of each tile, or an entry a vector and read."""
        if self.piece > 1:
            return outer * self.reach[0] * self.reach[1] * room * 4
        return outer * self.reach[0] * self.reach[1] * room // self.tile.lanes * self.panel.entry


def divisors(ways: tuple[Way, ...], element: str) -> list[int]:
    """What outputs are divided by: the odd factors of all dimensions, as few as an inverse each divides integers by exactly.

    >>> from upconv.kernels.winograd_tiles import MIDDLE, WIDE
    >>> divisors((Way(2, 1, MIDDLE), Way(2, 1, MIDDLE)), "float"), divisors((Way(2, 1, WIDE),), "float")
    ([81], [3, 5])
    """
    found: list[int] = []
    for n in (n for way in ways if way.points for n in way.points.odd):
        if found and _divides(found[-1] * n, element):
            found[-1] *= n
        else:
            found.append(n)
    return found


def _divides(n: int, element: str) -> bool:
    """Whether the rounded inverse is off by less than half of the last place of any quotient."""
    inverse, bits = (np.float32(1 / n), 24) if element == "float" else (np.float64(1 / n), 53)
    return abs(Fraction(float(inverse)) * n - 1) * 2**bits <= Fraction(1, 2)


def combine(f: Function, row: NDArray[Any], values: list[Value]) -> Value:
    """The sum of values with coefficients, those of 1 and -1 first.

    Of these the first and the last come late: they are in few sums, while others begin alike and are added up once.
    """
    last = len(values) - 1
    terms = [(float(c), value, i in (0, last)) for i, (c, value) in enumerate(zip(row, values, strict=True)) if c]
    terms.sort(key=lambda term: (abs(term[0]) != 1, term[2], term[0] < 0))
    total: Value | None = None
    for coefficient, value, _ in terms:
        if total is None:
            total = value if coefficient == 1 else f.fmul(value, f.splat(coefficient, value.type))
        elif coefficient == 1:
            total = f.fadd(total, value)
        elif coefficient == -1:
            total = f.fsub(total, value)
        else:
            total = f.fma(value, f.splat(coefficient, value.type), total)
    assert total is not None
    return total


def transform(f: Function, values: dict[tuple[int, int], Value], matrices: tuple[Any, Any]) -> dict[tuple[int, int], Value]:
    """A matrix applied along each of the two inner dimensions; None leaves a dimension alone."""
    for d, matrix in enumerate(matrices):
        if matrix is None:
            continue
        others = sorted({key[1 - d] for key in values})
        turned = {}
        for other in others:
            line = [values[(i, other) if d == 0 else (other, i)] for i in range(matrix.shape[1])]
            for i, row in enumerate(matrix):
                turned[(i, other) if d == 0 else (other, i)] = combine(f, row, line)
        values = turned
    return values
