"""Winograd's minimal filtering with windows of eight, for layers of one dimension to transform: the fewest products of all windows.

The kernel is Winograd's (`winograd.py`), at the points 0, 1, -1, 1/2, -1/2, 2, -2 and infinity: F(5, 4) and F(4, 5) take two fifths
of the direct sum's products, F(6, 3) four ninths, F(7, 2) four sevenths. Sums in short parts keep it as exact as it is, where sums
are not too short to begin with; beside another dimension's windows it would round too much.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016; the points are those of Barabasz et al., Error
Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks, 2020. docs/winograd.md has the figures.
"""

from __future__ import annotations

from typing import Any

from upconv.codegen.target import Target
from upconv.kernels import winograd
from upconv.kernels.winograd_blocks import Blocking
from upconv.kernels.winograd_blocks import blocking as blocks
from upconv.kernels.winograd_tiles import WIDEST, tiling_of, too_short
from upconv.spec import ConvSpec, Problem

NAME = "winograd_widest"
LEAST = {2: 96, 3: 24, 4: 8, 5: 8}
"""Products of a point, at least, by the taps that are transformed together: the direct sum of fewer rounds so little that this
kernel errs up to 5.7 times as much (two taps of 8 channels). Measured: 3.5 times at most with so many."""


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    return winograd.rejects(problem, target) or _too_short(problem.spec)


def _too_short(spec: ConvSpec) -> str | None:
    """Why the direct sum is too short for these windows' rounding, or None."""
    tiling = tiling_of(spec, WIDEST)
    transformed = [way for way in tiling.ways if way.transformed]
    if len(transformed) > 1:
        return "two dimensions to transform: it would round too much"
    taps = transformed[0].taps
    reason = too_short(spec, 1)
    if not reason and tiling.sum_depth < LEAST[taps]:
        return f"sums of {tiling.sum_depth} products of {taps} taps: it would round too much beside sums so short"
    return reason


def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """As Winograd's, windows of eight."""
    return blocks(problem, target, threads, last=WIDEST)


def __getattr__(name: str) -> Any:
    """What this module does not say itself is as Winograd has it."""
    return getattr(winograd, name)
