"""Strassen's product of halves for arrays with their channels last: as `strassen.py` has it channels-first.

The kernel is Winograd's (`winograd_last.py`), whose tiles need not be transformed: input channels, output channels and the tiles
of an image are halved. Vectors are of channels here, so that what is added up stands side by side in x and in y.

Source: Strassen, Gaussian Elimination is not Optimal, 1969. docs/channels_last.md has the figures.
"""

from __future__ import annotations

from typing import Any

from upconv.codegen.target import Target
from upconv.kernels import strassen, winograd_last
from upconv.kernels.winograd_last import Blocking
from upconv.kernels.winograd_tiles import NARROW, tiling_of
from upconv.spec import Problem

NAME = "strassen_last"
EXACT = False
"""Rounding differs from the direct sum's, and a NaN spreads over channels and tiles."""


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec, lanes = problem.spec, target.lanes(problem.itemsize)
    reason = winograd_last.refuses(problem, target)
    if reason:
        return reason
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    if c % 2 or m % 2:
        return f"{c} -> {m} channels a group cannot be halved"
    if min(c, m) < 2 * lanes:
        return f"{min(c, m)} channels a group: half of them are fewer than lanes"
    points = len(tiling_of(spec).points)
    if points > strassen.MOST_POINTS:
        return f"{points} points: seven products at each would leave the caches"
    return None


def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """As Winograd's, of halves."""
    return winograd_last.blocks(problem, target, threads, NARROW, 2)


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds, as Winograd's."""
    return winograd_last.cost(problem, how, target, threads) * strassen.WORTH


def __getattr__(name: str) -> Any:
    """What this module does not say itself is as Winograd has it."""
    return getattr(winograd_last, name)
