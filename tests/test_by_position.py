"""Winograd's tiles numbered position by position: the last ones of an image leave out a point, and no image touches another."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import pytest

import kernel_runs as runs
import upconv
from upconv.codegen import target as targets
from upconv.kernels import winograd, winograd_cuts, winograd_middle, winograd_wide
from upconv.kernels.winograd_tiles import MIDDLE, NARROW, WIDE, lines, spare, tiling_of

HOST = targets.host()
WORTH = winograd_cuts.BY_POSITION
POINTS = {winograd: NARROW, winograd_middle: MIDDLE, winograd_wide: WIDE}
pytestmark = pytest.mark.skipif(HOST.lanes(4) < 4, reason="vectors too short on this machine")


@pytest.fixture
def everywhere() -> Iterator[None]:
    """Wherever it is possible, not only where it is worth it."""
    runs.number_by_position()
    yield
    runs.number_by_position(WORTH)


LAYERS: dict[str, dict[str, Any]] = {
    "k4s2": dict(size=(4, 4), kernel_size=4, stride=2, padding=1),
    "k4s2 uncropped": dict(size=(3, 6), kernel_size=4, stride=2),
    "k3s2": dict(size=(4, 3), kernel_size=3, stride=2, padding=1, output_padding=1),
    "k3s1": dict(size=(7, 5), kernel_size=3, stride=1, padding=1),
    "k8s2": dict(size=(4, 5), kernel_size=8, stride=2, padding=3),
    "one dimension": dict(size=(4,), kernel_size=16, stride=8, padding=4),
    "asymmetric": dict(size=(4, 4), kernel_size=4, stride=2, padding=((0, 3), (2, 1))),
    "rows": dict(size=(4, 3), kernel_size=(4, 2), stride=2, padding=(1, 0)),
    "columns": dict(size=(3, 4), kernel_size=(2, 4), stride=2, padding=(0, 1)),
    "volume": dict(size=(2, 4, 3), kernel_size=4, stride=2, padding=1),
    "convolution": dict(size=(7, 7), kernel_size=3, padding=1, transposed=False),
    "strided convolution": dict(size=(8, 7), kernel_size=4, stride=2, padding=1, transposed=False),
}


def problem_of(name: str, batch: int, dtype: str = "float32") -> Any:
    return runs.make(batch=batch, dtype=dtype, **{"in_channels": 12, "out_channels": 10, **LAYERS[name]})


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("level", runs.best())
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kernel", POINTS, ids=lambda module: module.NAME)
def test_results_are_exact_for_any_batch(kernel: Any, name: str, level: str) -> None:
    target, points = runs.target_of(level), POINTS[kernel]
    for batch in (2, 7, 8, 9, 33):
        for dtype in ("float32", "float64"):
            problem = problem_of(name, batch, dtype)
            if kernel.rejects(problem, target):
                continue
            ways = tiling_of(problem.spec, points).ways
            several = prod(line.positions for line in lines(problem, ways)) > 1  # a single tile leaves it out in any order
            assert kernel.blocking(problem, target, 1).by_position == (several and any(spare(problem, ways)))
            given = runs.operands(problem)
            got = runs.run_kernel(kernel, problem, given, target, runs.threads_allowed())
            np.testing.assert_array_equal(got, given.expected)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_no_image_touches_another_though_they_share_vectors(special: float) -> None:
    problem = problem_of("k4s2", 11)
    given = runs.operands(problem)
    x = given.x.copy()
    x[3] = special
    with np.errstate(invalid="ignore"):
        got = runs.run_kernel(winograd, problem, runs.Operands(x, given.weight, given.bias, given.expected), HOST)
    others = [n for n in range(11) if n != 3]
    np.testing.assert_array_equal(got[others], given.expected[others])


def test_most_layers_have_a_size_in_three_that_leaves_something_out() -> None:
    """k4s2p1 on n elements: n + 1 outputs a phase, in tiles of three or, the wide ones in w, of five."""
    for n in range(1, 30):
        problem = runs.make(size=(n, n), in_channels=8, out_channels=8, kernel_size=4, stride=2, padding=1)
        assert spare(problem, tiling_of(problem.spec).ways) == ((n + 1) % 3 > 0, (n + 1) % 3 > 0)
        assert spare(problem, tiling_of(problem.spec, WIDE).ways) == ((n + 1) % 3 > 0, (n + 1) % 5 > 0)


def test_a_single_row_of_tiles_leaves_it_out_in_any_order() -> None:
    problem = runs.make(size=(1, 50), in_channels=16, out_channels=16, kernel_size=4, stride=2, padding=1)
    how = winograd.blocking(problem, HOST, 1)
    assert not how.by_position
    assert how.useless == (True, False)
    given = runs.operands(problem)
    np.testing.assert_array_equal(runs.run_kernel(winograd, problem, given, HOST), given.expected)
    whole = runs.make(size=(2, 50), in_channels=16, out_channels=16, kernel_size=4, stride=2, padding=1)
    assert winograd.macs(problem, how) == winograd.macs(whole, winograd.blocking(whole, HOST, 1)) * 3 // 4


@pytest.mark.skipif(HOST.name != "avx2", reason="what the estimates choose on other processors is theirs")
def test_a_generators_first_layer_takes_it_with_a_quarter_less_products_and_the_same_code() -> None:
    layer: dict[str, Any] = dict(in_channels=512, out_channels=256, kernel_size=4, stride=2, padding=1)
    small, large = (runs.make(size=(n, n), batch=64, **layer) for n in (4, 5))
    how, plain = (winograd.blocking(problem, HOST, 1) for problem in (small, large))
    assert (how.by_position, plain.by_position) == (True, False)
    assert winograd.code_parameters(small, how) == winograd.code_parameters(large, plain)
    assert winograd.packing(small, how) == winograd.packing(large, plain)
    assert winograd.macs(small, how) / winograd.macs(large, plain) == pytest.approx(49 / 64, rel=0.02)
    assert "tiles of one position" in winograd.describe(small, how)


@pytest.mark.skipif(HOST.name != "avx2", reason="what the estimates choose on other processors is theirs")
def test_plans_take_it() -> None:
    plan = upconv.plan((64, 192, 6, 6), (192, 96, 4, 4), stride=2, padding=1)
    assert plan.algorithm == "winograd_middle"
    assert "of one position" in str(plan)


def test_an_image_that_is_one_tile_of_windows_of_five_takes_25_products_where_the_direct_sum_takes_64() -> None:
    layer: dict[str, Any] = dict(in_channels=512, out_channels=256, kernel_size=4, stride=2, padding=1)
    problem = runs.make(size=(4, 4), batch=64, **layer)
    how = winograd_middle.blocking(problem, HOST, 1)
    assert how.cut.length == 64
    assert 2 * winograd_middle.macs(problem, how) / problem.flops == pytest.approx(25 / 64, rel=0.1)
    assert "phases in tiles of their own, 25 points" in winograd_middle.describe(problem, how)
