"""The kernel of depthwise layers: exact at every width round its vectors, however its tasks are cut, and where it is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import kernel_runs as runs
import upconv
from upconv.kernels import depthwise, reference
from upconv.spec import Problem

LEVELS = runs.levels()
LAYERS: list[dict[str, Any]] = [
    dict(kernel_size=4, stride=2, padding=1),
    dict(kernel_size=2, stride=2),
    dict(kernel_size=5, stride=3, padding=2, output_padding=1),
    dict(kernel_size=3, stride=5, padding=1, output_padding=4),  # phases without a tap
    dict(kernel_size=12, stride=1, padding=3),
    dict(kernel_size=3, stride=2, dilation=3, padding=((1, 4),)),
    dict(kernel_size=7, padding=3, transposed=False),
    dict(kernel_size=3, padding=((0, 5),), dilation=2, transposed=False),
]


def check(problem: Problem, level: str = LEVELS[0], threads: int = 1) -> None:
    operands = runs.operands(problem)
    got = runs.run_kernel(depthwise, problem, operands, runs.target_of(level), threads)
    np.testing.assert_array_equal(got, operands.expected)


def takes(problem: Problem, level: str = LEVELS[0]) -> bool:
    return depthwise.rejects(problem, runs.target_of(level)) is None


@settings(max_examples=120, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(problem=runs.problems(), multiplier=st.integers(1, 3), threads=st.integers(1, 2))
def test_integers_come_out_exactly(problem: Problem, multiplier: int, threads: int) -> None:
    channels = problem.spec.in_channels
    spec = replace(problem.spec, groups=channels, out_channels=channels * multiplier)
    problem = replace(problem, spec=spec)
    assume(takes(problem))
    check(problem, threads=min(threads, runs.threads_allowed()))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_rows_at_the_edges_of_vectors(layer: dict[str, Any], dtype: str, level: str) -> None:
    lanes = runs.target_of(level).lanes(4 if dtype == "float32" else 8)
    ran = 0
    for width in sorted({max(1, n + d) for n in (1, lanes, 2 * lanes, 8 * lanes) for d in (-1, 0, 1, 5)}):
        if not layer.get("transposed", True) and width + 2 < layer["kernel_size"]:
            continue
        problem = runs.make(size=(width,), in_channels=2, out_channels=2, groups=2, dtype=dtype, batch=2, **layer)
        if takes(problem, level):
            check(problem, level)
            ran += 1
    if not ran:
        pytest.skip(str(depthwise.rejects(problem, runs.target_of(level))))


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("planes", [1, 3, 4])
@pytest.mark.parametrize("vectors", [1, 3])
def test_tasks_cut_planes_rows_and_positions(planes: int, rows: int, vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target = runs.target_of(LEVELS[0])
    for size, layer in (
        ((7, 61), dict(kernel_size=4, stride=2, padding=1)),
        ((2, 5, 40), dict(kernel_size=3, stride=1, padding=1)),
    ):
        problem = runs.make(size=size, in_channels=3, out_channels=6, groups=3, batch=2, **layer)
        how = replace(depthwise.blocking(problem, target, 1), planes=planes, rows=rows, positions=vectors * target.lanes(4))
        monkeypatch.setattr(depthwise, "blocking", lambda *_, how=how: how)
        check(problem, threads=runs.threads_allowed())
        monkeypatch.undo()


@pytest.mark.parametrize(("channels", "together"), [(2, (2, 1)), (3, (1, 1)), (24, (2, 2)), (31, (1, 1)), (33, (2, 2))])
@pytest.mark.parametrize("batch", [1, 3])
def test_channels_are_summed_in_turn_whatever_the_batch(channels: int, together: tuple[int, int], batch: int) -> None:
    """Unless they are few for the threads, or few and odd; the last of an odd number, of which there is but one, stands twice."""
    target = runs.target_of(LEVELS[0])
    problem = runs.make(
        size=(21,), in_channels=channels, out_channels=channels, groups=channels, batch=batch, kernel_size=4, stride=2, padding=1
    )
    assert tuple(depthwise.blocking(problem, target, threads).together for threads in (1, 2)) == together
    for threads in {1, runs.threads_allowed()}:
        check(problem, threads=threads)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_weights_that_are_not_finite_meet_the_padding_of_a_convolution(special: float) -> None:
    problem = runs.make(False, size=(5, 6, 19), in_channels=2, out_channels=2, groups=2, kernel_size=3, padding=1)
    plain = runs.operands(problem)
    x, weight = np.abs(plain.x) + 1, plain.weight.copy()
    weight[1, 0, 0, 1, 2] = special
    with np.errstate(invalid="ignore"):
        expected = reference.forward(problem.spec, x, weight, plain.bias, problem.output_size)
    given_ = runs.Operands(x, weight, plain.bias, expected)
    got = runs.run_kernel(depthwise, problem, given_, runs.target_of(LEVELS[0]))
    np.testing.assert_array_equal(got, expected)


def test_plans_take_it_for_depthwise_layers_and_say_why_not_elsewhere() -> None:
    target = runs.target_of(LEVELS[0])
    layer: dict[str, Any] = dict(size=(40, 50), in_channels=64, kernel_size=4, stride=2, padding=1)
    wide = runs.make(out_channels=64, groups=64, **layer)
    assert upconv.plan(wide.input_shape, wide.spec.weight_shape, stride=2, padding=1, groups=64).algorithm == "depthwise"
    whys = {
        "32 input channels a group": runs.make(out_channels=64, groups=2, **layer),
        "stride 2 of x: every read would be a gather": runs.make(False, out_channels=64, groups=64, **layer),
        "99 taps in a row: too many to write out": runs.make(size=(9,), in_channels=2, out_channels=2, groups=2, kernel_size=99),
        "99 phases, more than lanes": runs.make(size=(9,), in_channels=2, out_channels=2, groups=2, kernel_size=99, stride=99),
    }
    for why, problem in whys.items():
        assert depthwise.rejects(problem, target) == why
