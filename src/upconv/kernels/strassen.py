"""Strassen's product of halves: seven multiplications where the direct sum has eight, alone or at each point of Winograd's.

The kernel is Winograd's (`winograd.py`), whose tiles need not be transformed: input channels, output channels and the tiles of
an image are halved, and the GEMMs are those of `strassen_products.py`. Weights are added up while they are packed, quadrants of
x while they are copied into panels, and the results while they are stored.

Source: Strassen, Gaussian Elimination is not Optimal, 1969. docs/strassen.md has the figures.
"""

from __future__ import annotations

from typing import Any

from upconv.codegen.target import Target
from upconv.kernels import columns, winograd
from upconv.kernels import job as jobs
from upconv.kernels.winograd_blocks import Blocking
from upconv.kernels.winograd_blocks import blocking as blocks
from upconv.kernels.winograd_tiles import dilated, slice_channels, tiling_of
from upconv.spec import ConvSpec, Problem

NAME = "strassen"
WORTH, SPILT = 1.02, 0.025
"""What the additional rounding should be worth, as a share of the time; and what a second-level cache's worth of V beyond two of
them costs. Measured."""
GATHERED = 25.0
"""Cycles that a vector of a channel takes longer whose columns are several images'. Measured."""
MOST_POINTS = 4
"""Winograd's in one dimension. In two, 16, 27 layers of 64 to 1024 channels ran at 0.48 to 1.10 times the speed without, 0.88 in
geometric mean, and erred up to 4.2 times as much as the direct sum. Measured."""
EXACT = False
"""Rounding differs from the direct sum's, and a NaN spreads over channels and tiles."""


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec = problem.spec
    return winograd.refuses(problem, target) or dilated(spec) or not_halved(spec) or too_many_points(spec)


def not_halved(spec: ConvSpec) -> str | None:
    """Why channels cannot be halved, or None."""
    c, m = slice_channels(spec, 1)
    return f"{c} -> {m} channels a group cannot be halved" if c % 2 or m % 2 else None


def too_many_points(spec: ConvSpec) -> str | None:
    """Why seven products at each of Winograd's points are too many, or None."""
    points = len(tiling_of(spec).points)
    return f"{points} points: seven products at each would leave the caches" if points > MOST_POINTS else None


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds, as Winograd's; more where the seven V of a block are too much for the second-level cache."""
    spilt = max(0.0, how.v_bytes / target.l2 - 2.0)
    seconds = winograd.cost(problem, how, target, threads) * (WORTH + SPILT * spilt)
    return seconds + _gathering(problem, how, threads) / threads / target.hertz


def _gathering(problem: Problem, how: Blocking, threads: int) -> float:
    """Cycles of reading vectors whose columns are several images', as often as blocks are."""
    often = jobs.prepared(how.cut.count, how.splits, threads)
    vectors = problem.spec.in_channels * often * how.cut.length * how.cut.parts / how.tile.lanes
    lanes, (parts, length) = how.tile.lanes, winograd.image_parts(problem, how)
    several = min(1.0, (lanes - 1) / length) if parts > 1 else 0.0  # vectors that are several images'
    return vectors * (GATHERED * several + columns.gathering_cycles(problem, lanes, length))


def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """As Winograd's, of halves."""
    return blocks(problem, target, threads, 2)


def __getattr__(name: str) -> Any:
    """What this module does not say itself is as Winograd has it."""
    return getattr(winograd, name)
