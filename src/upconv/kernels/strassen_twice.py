"""Strassen's product of quarters: 49 multiplications where the direct sum has 64, for kernels that are their stride.

The kernel is Strassen's of halves (`strassen.py`), each of whose seven products is taken so again. It saves another eighth of the
products for three times as many additions, which takes many channels.

Source: Strassen, Gaussian Elimination is not Optimal, 1969. docs/strassen.md has the figures.
"""

from __future__ import annotations

from typing import Any

from upconv.codegen.target import Target
from upconv.kernels import strassen
from upconv.kernels.winograd_blocks import Blocking
from upconv.kernels.winograd_blocks import blocking as blocks
from upconv.kernels.winograd_tiles import tiling_of
from upconv.spec import Problem

NAME = "strassen_twice"
WORTH = (0.96, 1.04, 1.04)
"""What twice the rounding, and packed weights that are 49/16 of the layer's, should be worth, as a share of the time, with 16
registers, where products cost less than estimated, and with 32. Measured: of direct, strassen and this kernel what is chosen
takes 1.007 of the fastest one's time over 42 layers with AVX-512, and 1.019 without this one; of all kernels 1.003 over 108 layers
with AVX2, and 1.006 with 1.04; over 173 others 1.0070 with 0.96 and 1.0074 with 0.98. Beside a busy neighbour, who takes the
third-level cache, 256 channels gain nothing."""


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    spec = problem.spec
    c, m = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    reason = strassen.rejects(problem, target)
    if not reason and (c % 4 or m % 4):
        return f"{c} -> {m} channels a group cannot be quartered"
    if not reason and (points := len(tiling_of(spec).points)) > 1:
        return f"{points} points: 49 products at each would leave the caches"
    return reason


def cost(problem: Problem, how: Blocking, target: Target, threads: int) -> float:
    """Estimated seconds, as those of halves."""
    return strassen.cost(problem, how, target, threads) * WORTH[target.kind]


def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """As Winograd's, of quarters."""
    return blocks(problem, target, threads, 4)


def __getattr__(name: str) -> Any:
    """What this module does not say itself is as Strassen's of halves has it."""
    return getattr(strassen, name)
