"""Blocks of the direct sum row by row: rows of y and parts of them; and the innermost dimension as its code knows it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from upconv.codegen.ir import SIZES
from upconv.codegen.target import LINE
from upconv.kernels.direct_rows_code import MET, Tile
from upconv.kernels.geometry import PhaseTaps, inner_taps, round_up
from upconv.kernels.scatter import Sizes, axes, row_taps
from upconv.spec import ConvSpec, Problem

TASKS, LEAST = 6, 4
"""Tasks a thread, and tiles of a part of a row at least."""


@dataclass(frozen=True, slots=True)
class Inner:
    """The innermost dimension: position q has the outputs step * q + phase, and reads x at q + each of the reads."""

    reads: tuple[int, ...]
    taps: PhaseTaps

    @property
    def kernel(self) -> int:
        """Taps of all phases."""
        return sum(len(phase) for phase in self.taps)

    def positions(self, problem: Problem) -> int:
        """Positions of a row."""
        return ceil(problem.output_size[-1] / len(self.taps))


@lru_cache(maxsize=512)
def inner(spec: ConvSpec) -> Inner:
    """The innermost dimension of a layer."""
    return Inner(*inner_taps(spec))


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops. `sizes` counts images (of one group each) and positions of the output in d, h and w; the last block of a
    row is longer where there would be too few positions for a tile."""

    tile: Tile
    sizes: Sizes
    channels: int
    channels_out: int
    step: int
    met: int

    @property
    def chunks(self) -> int:
        return ceil(self.channels_out / self.tile.channels)

    @property
    def met_bytes(self) -> int:
        return round_up(self.met * MET * 8, LINE)

    @property
    def workspace_bytes(self) -> int:
        """The rows of taps; a tile's sums that are left, and its outputs of a channel."""
        left = (self.tile.channels + 1) * self.step * self.tile.width
        return self.met_bytes + round_up(left * SIZES[self.tile.element], LINE)


def lengths(problem: Problem) -> Sizes:
    """All there is; an image has one group."""
    d, h, _ = axes(problem)
    return problem.batch * problem.spec.groups, d.positions, h.positions, inner(problem.spec).positions(problem)


def cuts(positions: int, size: int, least: int) -> list[tuple[int, int]]:
    """The parts of a row, of so many positions each; the last may have fewer, but `least`, or else goes with the one before.

    >>> cuts(104, 48, 8), cuts(100, 48, 8), cuts(4, 48, 8)
    ([(0, 48), (48, 96), (96, 104)], [(0, 48), (48, 100)], [(0, 4)])
    """
    firsts = list(range(0, max(1, positions - least + 1), size))
    return list(zip(firsts, [*firsts[1:], positions], strict=True))


def block(problem: Problem, tile: Tile, threads: int) -> Blocking:
    """Six tasks a thread and more, of images where there are enough, else of rows, else of parts of rows."""
    spec, row, (images, d, h, w) = problem.spec, inner(problem.spec), lengths(problem)
    wanted = 1 if threads == 1 else TASKS * threads
    d_size = ceil(d / min(d, ceil(wanted / images)))
    h_size = ceil(h / min(h, ceil(wanted / (images * ceil(d / d_size)))))
    pieces = ceil(wanted / (images * ceil(d / d_size) * ceil(h / h_size)))
    w_size = max(round_up(ceil(w / pieces), tile.width), LEAST * tile.width)
    return Blocking(
        tile=tile, sizes=(1, d_size, h_size, min(w_size, w)), channels=spec.in_channels // spec.groups,
        channels_out=spec.out_channels // spec.groups, step=len(row.taps), met=max(len(taps) for taps in row_taps(spec)),
    )  # fmt: skip
