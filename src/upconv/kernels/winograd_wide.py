"""Winograd's minimal filtering with windows of six in the last dimension: a tenth to a quarter fewer products.

The kernel is Winograd's (`winograd.py`), at the points 0, 1, -1, 1/2, -2 and infinity: F(5, 2) for two taps a phase, F(4, 3) for
three. The other dimension keeps its windows of four, since two of six would round too much; sums in short parts keep this one
as exact as it is. Transformed weights are half as large again, so that layers with few tiles are better off without.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016; the points are those of Barabasz et al., Error
Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks, 2020. docs/winograd.md has the figures.
"""

from __future__ import annotations

from typing import Any

from upconv.codegen.target import Target
from upconv.kernels import winograd
from upconv.kernels.winograd_blocks import Blocking
from upconv.kernels.winograd_blocks import blocking as blocks
from upconv.kernels.winograd_tiles import WIDE, too_short
from upconv.spec import Problem

NAME = "winograd_wide"


def rejects(problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot run the problem, or None."""
    return winograd.rejects(problem, target) or too_short(problem.spec)


def blocking(problem: Problem, target: Target, threads: int) -> Blocking:
    """As Winograd's, the last dimension's windows of six."""
    return blocks(problem, target, threads, last=WIDE)


def __getattr__(name: str) -> Any:
    """What this module does not say itself is as Winograd has it."""
    return getattr(winograd, name)
