"""Overlap-add row by row: exact whatever its blocks, within its buffers, bounded, and chosen for few output channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import kernel_runs as runs
import upconv
from fences import Fenced
from upconv import planner
from upconv.codegen import target as targets
from upconv.kernels import overlap_add_rows as rows
from upconv.kernels import overlap_add_rows_blocks as blocks
from upconv.spec import Problem

LEVELS = runs.levels()
SIZES = ((0.5, 0.3), (0.02, 0.01), (0.001, 0.0005))
"""Parts of the second-level cache for patches and panel: blocks as they are, of a few rows, and of a position or two."""


@contextmanager
def blocks_of(patches: float, panel: float) -> Iterator[None]:
    """Blocks whose patches and panel take these parts of the second-level cache, the panel one vector of columns at least."""
    before = blocks.PATCHES, blocks.PANEL, blocks.RUN, blocks.FEWEST
    blocks.PATCHES, blocks.PANEL, blocks.RUN, blocks.FEWEST = patches, panel, 1, 1
    rows.blocking.cache_clear()
    try:
        yield
    finally:
        blocks.PATCHES, blocks.PANEL, blocks.RUN, blocks.FEWEST = before
        rows.blocking.cache_clear()


def check(problem: Problem, level: str = LEVELS[0], threads: int = 1, buffers: Any = None) -> None:
    """Integers come out exactly as the reference has them."""
    operands = runs.operands(problem)
    got = runs.run_kernel(rows, problem, operands, runs.target_of(level), threads, buffers)
    np.testing.assert_array_equal(got, operands.expected)


def takes(problem: Problem, level: str = LEVELS[0]) -> bool:
    return rows.rejects(problem, runs.target_of(level)) is None


@settings(max_examples=200, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(problem=runs.problems(), sizes=st.sampled_from(SIZES), threads=st.integers(1, 2))
def test_integers_come_out_exactly_whatever_the_block(problem: Problem, sizes: tuple[float, float], threads: int) -> None:
    problem = replace(problem, spec=replace(problem.spec, in_channels=problem.spec.in_channels * 4))
    assume(takes(problem))
    with blocks_of(*sizes):
        check(problem, threads=min(threads, runs.threads_allowed()))


LAYERS: list[dict[str, Any]] = [
    dict(size=(9, 14), out_channels=3, kernel_size=4, stride=2, padding=1, batch=3),
    dict(size=(19, 37), out_channels=1, kernel_size=(3, 2), stride=2),
    dict(size=(17, 39), out_channels=1, kernel_size=9, stride=2, padding=4, output_padding=1),
    dict(size=(7, 21), out_channels=2, kernel_size=3, stride=4, padding=1, output_padding=3),
    dict(size=(140,), out_channels=2, kernel_size=11, stride=5, padding=3),
    dict(size=(3, 4, 25), out_channels=1, kernel_size=4, stride=2, padding=1, batch=2),
    dict(size=(4, 3, 17), out_channels=1, kernel_size=(3, 5, 3), padding=(1, 2, 1)),
    dict(size=(7, 26), out_channels=5, kernel_size=3, padding=2, dilation=(2, 1)),
    dict(size=(8, 33), out_channels=4, kernel_size=5, stride=2, padding=1, groups=2, in_channels=12),
    dict(size=(18, 29), out_channels=3, kernel_size=3, padding=1, transposed=False),
    dict(size=(8, 9), out_channels=1, kernel_size=2, padding=3, transposed=False, batch=2),
    dict(size=(5, 6, 18), out_channels=2, kernel_size=3, padding=1, transposed=False),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_it_stays_within_its_buffers_in_blocks_of_any_size(layer: dict[str, Any], dtype: str, level: str) -> None:
    problem = runs.make(**{"dtype": dtype, "in_channels": 5, **layer})
    if not takes(problem, level):
        pytest.skip(str(rows.rejects(problem, runs.target_of(level))))
    for sizes in SIZES:
        for at_end in (False, True):
            with blocks_of(*sizes):
                check(problem, level, buffers=Fenced(at_end))


@pytest.mark.parametrize("positions", [1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 40, 41, 64, 65])
def test_rows_round_the_vectors_that_are_summed_together(positions: int) -> None:
    layers: list[dict[str, Any]] = [dict(kernel_size=4, stride=2, padding=1), dict(kernel_size=5), dict(kernel_size=5, stride=3)]
    for layer in layers:
        check(runs.make(size=(3, positions), in_channels=6, out_channels=2, **layer))


def test_the_ring_of_lines_is_as_short_as_it_may_be_and_turns() -> None:
    """Many more lines than have their patches at a time, in steps that meet the ring's end anywhere."""
    seen = set()
    for kernel, stride in ((3, 1), (4, 2), (5, 1), (6, 3), (9, 2)):
        problem = runs.make(size=(53, 11), in_channels=5, out_channels=2, kernel_size=kernel, stride=stride, padding=1)
        for part in (0.2, 0.1, 0.05, 0.03):
            with blocks_of(part, 0.02):
                how = rows.blocking(problem, targets.host(), 1)
                seen.add((how.ring, how.rows, how.lines))
                check(problem)
    assert len({ring for ring, *_ in seen if ring < 30}) >= 4, seen


def test_patches_and_panel_are_bounded_and_blocks_cut_no_more_than_they_must() -> None:
    size = targets.host().l2
    for shape, channels, out in (((320, 320), 64, 1), ((128, 128), 128, 3), ((540, 960), 56, 1), ((9, 100_000), 16, 2)):
        problem = runs.make(size=shape, in_channels=channels, out_channels=out, kernel_size=5, stride=2, padding=2)
        how = rows.blocking(problem, targets.host(), 2)
        assert how.patch_bytes <= size * blocks.PATCHES * 1.3
        assert how.panel_bytes <= max(size * blocks.PANEL, 4 * blocks.RUN * channels) * 1.3
        once = prod(shape) * how.tile_blocks * how.tile.rows * channels
        assert 1 <= rows.macs(problem, how) / once < 1.25, (shape, how)  # what two blocks both compute


@pytest.mark.parametrize("place", [(0, 3, 2, 2), (0, 0, 0, 0), (0, 7, 5, 16)])
def test_a_nan_stays_where_the_direct_sum_has_it(place: tuple[int, ...]) -> None:
    problem = runs.make(size=(6, 17), in_channels=8, out_channels=2, kernel_size=5, stride=2, padding=1)
    operands = runs.operands(problem)
    operands.x[place] = np.nan
    expected = upconv.kernels.reference.forward(problem.spec, operands.x, operands.weight, operands.bias, problem.output_size)
    for sizes in SIZES:
        with blocks_of(*sizes):
            np.testing.assert_array_equal(runs.run_kernel(rows, problem, operands, runs.target_of(LEVELS[0])), expected)


def plan_of(shape: tuple[int, ...], out: int, **layer: Any) -> planner.Plan:
    spec = upconv.ConvSpec.make(transposed=True, in_channels=shape[1], out_channels=out, rank=len(shape) - 2, **layer)
    return planner.make(Problem(spec, shape[0], shape[2:], spec.output_size(shape[2:])), targets.host(), 2)


def test_the_plan_says_what_it_does() -> None:
    plan = plan_of((1, 64, 96, 96), 1, kernel_size=9, padding=4)
    how = rows.blocking(plan.problem, plan.target, 2)
    assert rows.describe(plan.problem, how).startswith("patches of 81 rows, blocks of ")
    if plan.target.name == "avx2" and plan.target.l2 == 512 << 10:  # elsewhere caches and registers may say otherwise
        assert plan.algorithm == "overlap_add_rows"
        assert "patches of 81 rows" in str(plan)


def test_layers_that_it_does_not_take_say_why() -> None:
    def reason(**layer: Any) -> str | None:
        return rows.rejects(runs.make(**{"size": (9, 9), "in_channels": 8, "out_channels": 2, **layer}), targets.host())

    assert reason(kernel_size=4, stride=2) is None
    assert reason(kernel_size=3, stride=2, transposed=False) == "a convolution with a stride gathers, it does not scatter"
    assert reason(kernel_size=3, dilation=2) == "dilated in its last dimension: a patch's outputs are not neighbours"
    assert reason(kernel_size=40, stride=39) == "39 phases, more than lanes"
    assert reason(kernel_size=3, stride=3) == "one tap a phase: the direct sum multiplies the same, and leaves nothing to add up"
    assert reason(kernel_size=4, stride=2, in_channels=3) == "3 input channels a group: too few for a sum"
    assert reason(size=(9,), kernel_size=3, out_channels=1) == "patches of 3 rows: too few products for each input to copy it"
    assert reason(kernel_size=5, out_channels=20) == "patches of 500 rows: they would leave the cache"
