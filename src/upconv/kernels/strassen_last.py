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
from upconv.kernels.winograd_tiles import NARROW, slice_channels
from upconv.spec import Problem

NAME = "strassen_last"
EXACT = False
"""Rounding differs from the direct sum's, and a NaN spreads over channels and tiles."""


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    reason = winograd_last.refuses(problem, target) or strassen.not_halved(problem.spec)
    least = min(slice_channels(problem.spec, 1))
    if not reason and least < 2 * target.lanes(problem.itemsize):
        return f"{least} channels a group: half of them are fewer than lanes"
    return reason or strassen.too_many_points(problem.spec)


def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """As Winograd's, of halves."""
    return winograd_last.blocks(problem, target, threads, NARROW, 2)


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds, as Winograd's."""
    return winograd_last.cost(problem, how, target, threads) * strassen.WORTH


def __getattr__(name: str) -> Any:
    """What this module does not say itself is as Winograd has it."""
    return getattr(winograd_last, name)
