"""Winograd's minimal filtering with windows of five in both inner dimensions, where each phase's tiles begin with its own output.

The kernel is Winograd's (`winograd.py`), at the points 0, 1, -1, 1/2 and infinity: F(4, 2) for two taps a phase, F(3, 3) for three.
Tiles of four outputs fill images of 4, 8 and 16 pixels a side to the last, where a transposed layer's phases do not wait for each
other: with padding, some of them begin an element of x later, and windows that all of them share would need a position more. Each
has its input transformed by itself for that, so that it takes many output channels.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016. docs/winograd.md has the figures.
"""

from __future__ import annotations

from typing import Any

from upconv.codegen.target import Target
from upconv.kernels import winograd
from upconv.kernels.winograd_blocks import Blocking
from upconv.kernels.winograd_blocks import blocking as blocks
from upconv.kernels.winograd_depth import depths
from upconv.kernels.winograd_tiles import MIDDLE, tiling_of, too_short
from upconv.spec import Problem

NAME = "winograd_middle"


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    reason = winograd.rejects(problem, target) or too_short(problem.spec)
    if reason:
        return reason
    tiling = tiling_of(problem.spec, MIDDLE)
    if sum(way.transformed for way in tiling.ways) < 2:
        return "one dimension to transform: windows of six and eight save more"
    if any(shallow for shallow, _, _ in depths(tiling)):
        return "phases that lack a tap of the outer dimension: it would round too much beside sums so short"
    return None


def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """As Winograd's, both dimensions' windows of five."""
    return blocks(problem, target, threads, last=MIDDLE)


def __getattr__(name: str) -> Any:
    """What this module does not say itself is as Winograd has it."""
    return getattr(winograd, name)
