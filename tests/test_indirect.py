"""The kernel for arrays with their channels last: exact, within its buffers, and chosen where it is the faster way."""

from __future__ import annotations

from dataclasses import replace
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
from upconv.kernels import indirect
from upconv.spec import Problem

LEVELS = runs.levels()


def last(x: Any) -> Any:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def check(problem: Problem, level: str = LEVELS[0], threads: int = 1, buffers: Any = None, bias: bool = True) -> None:
    """Integers come out exactly as the reference has them."""
    operands = runs.operands(problem, bias=bias)
    moved = replace(operands, x=last(operands.x))
    got = runs.run_kernel(indirect, problem, moved, runs.target_of(level), threads, buffers)
    n, c, *size = problem.output_shape
    np.testing.assert_array_equal(np.moveaxis(got.reshape(n, *size, c), -1, 1), operands.expected)


def takes(problem: Problem, level: str = LEVELS[0]) -> bool:
    return indirect.rejects(problem, runs.target_of(level)) is None


@settings(max_examples=120, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(problem=runs.problems(), bias=st.booleans(), threads=st.integers(1, 2))
def test_integers_come_out_exactly(problem: Problem, bias: bool, threads: int) -> None:
    wide = replace(problem.spec, in_channels=problem.spec.in_channels * 4, out_channels=problem.spec.out_channels * 5)
    problem = replace(problem, spec=wide)
    assume(takes(problem))
    check(problem, threads=min(threads, runs.threads_allowed()), bias=bias)


EDGES: list[dict[str, Any]] = [
    dict(size=(5, 6), in_channels=4, out_channels=16, kernel_size=2, stride=2),
    dict(size=(7, 5), in_channels=9, out_channels=17, kernel_size=4, stride=2, padding=1, batch=2),
    dict(size=(7, 5), in_channels=9, out_channels=24, kernel_size=3, stride=2, padding=1, output_padding=1),
    dict(size=(1, 1), in_channels=7, out_channels=33, kernel_size=4, stride=1, batch=3),
    dict(size=(9,), in_channels=12, out_channels=40, kernel_size=16, stride=5, padding=3, groups=2),
    dict(size=(3, 4, 5), in_channels=5, out_channels=19, kernel_size=3, stride=(1, 2, 3), padding=1, dilation=2),
    dict(size=(11, 12), in_channels=6, out_channels=16, kernel_size=3, stride=2, padding=1, transposed=False),
    dict(size=(6, 6), in_channels=8, out_channels=31, kernel_size=5, stride=3, padding=2, dilation=1, transposed=False, batch=2),
    dict(size=(60, 70), in_channels=5, out_channels=16, kernel_size=2, stride=2),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", EDGES, ids=str)
def test_both_ends_of_every_buffer_are_guarded(layer: dict[str, Any], dtype: str, level: str) -> None:
    problem = runs.make(dtype=dtype, **layer)
    if not takes(problem, level):
        pytest.skip(str(indirect.rejects(problem, runs.target_of(level))))
    for at_end in (False, True):
        check(problem, level, buffers=Fenced(at_end))


@pytest.mark.parametrize("channels", [8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33])
def test_output_channels_round_the_tile(channels: int) -> None:
    problem = runs.make(size=(7, 9), in_channels=10, out_channels=channels, kernel_size=3, stride=2, padding=1)
    if takes(problem):
        check(problem)


@pytest.mark.parametrize("positions", [1, 5, 6, 7, 11, 12, 13, 47, 48, 49, 300])
def test_positions_round_the_tile_and_the_block(positions: int) -> None:
    for transposed in (True, False):
        check(runs.make(transposed, size=(positions,), in_channels=11, out_channels=16, kernel_size=3, padding=1), threads=2)


@pytest.mark.parametrize("activation", runs.ACTIVATIONS[1:], ids=str)
def test_activations(activation: Any) -> None:
    problem = runs.make(size=(6, 7), in_channels=8, out_channels=20, kernel_size=3, stride=2, activation=activation)
    operands = runs.operands(problem, integers=False)
    got = runs.run_kernel(indirect, problem, replace(operands, x=last(operands.x)), runs.target_of(LEVELS[0]))
    n, c, *size = problem.output_shape
    np.testing.assert_allclose(np.moveaxis(got.reshape(n, *size, c), -1, 1), operands.expected, rtol=2e-5, atol=2e-5)


def test_a_nan_stays_where_the_direct_sum_has_it() -> None:
    problem = runs.make(size=(6, 7), in_channels=8, out_channels=16, kernel_size=3, stride=2)
    operands = runs.operands(problem)
    operands.x[0, 3, 2, 2] = np.nan
    expected = upconv.kernels.reference.forward(problem.spec, operands.x, operands.weight, operands.bias, problem.output_size)
    got = runs.run_kernel(indirect, problem, replace(operands, x=last(operands.x)), runs.target_of(LEVELS[0]))
    n, c, *size = problem.output_shape
    np.testing.assert_array_equal(np.moveaxis(got.reshape(n, *size, c), -1, 1), expected)


def plan_last(shape: tuple[int, ...], out: int, **layer: Any) -> planner.Plan | None:
    spec = upconv.ConvSpec.make(transposed=True, in_channels=shape[1], out_channels=out, rank=2, **layer)
    problem = Problem(spec, shape[0], shape[2:], spec.output_size(shape[2:]))
    return planner.make_last(problem, targets.host(), 2)


def test_it_is_chosen_where_reordering_costs_more() -> None:
    plan = plan_last((1, 192, 80, 80), 192, kernel_size=2, stride=2)
    assert plan is not None
    assert plan.algorithm == "indirect"
    assert "channels last" in str(plan)
    assert "reordering included" in str(plan)
    assert plan_last((1, 256, 92, 160), 64, kernel_size=4, stride=2, padding=1) is None  # Winograd saves more than that
    assert plan_last((1, 64, 32, 32), 3, kernel_size=4, stride=2, padding=1) is None  # three of eight lanes


def test_new_sizes_pack_and_compile_nothing_new() -> None:
    spec = upconv.ConvSpec.make(transposed=True, in_channels=32, out_channels=32, kernel_size=4, stride=2, padding=1, rank=2)
    found = set()
    for n in range(2, 30):
        problem = Problem(spec, 1, (n, n + 1), spec.output_size((n, n + 1)))
        how = indirect.blocking(problem, targets.host(), 2)
        found.add((indirect.code_parameters(problem, how), indirect.packing(problem, how)))
    assert len(found) == 1
