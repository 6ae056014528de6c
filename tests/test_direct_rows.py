"""The direct sum row by row: exact at every width round its vectors and tiles, however its tasks are cut, and where it is taken."""

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
from upconv.codegen.target import Target
from upconv.kernels import direct_rows, reference
from upconv.kernels import direct_rows_blocks as blocks
from upconv.spec import Problem, SpecError

LEVELS = runs.levels()
SERVER = Target("avx512", "x86_64-unknown-linux-gnu", "sapphirerapids", "", 64, 32, 48 << 10, 2 << 20, masks=True)
LAYERS: list[dict[str, Any]] = [
    dict(kernel_size=4, stride=2, padding=1),
    dict(kernel_size=2, stride=2),
    dict(kernel_size=5, stride=3, padding=2, output_padding=1),
    dict(kernel_size=3, stride=4, padding=1, output_padding=3),  # phases without a tap
    dict(kernel_size=9, stride=1, padding=2),
    dict(kernel_size=3, stride=2, dilation=3, padding=((1, 4),)),
    dict(kernel_size=7, padding=3, transposed=False),
    dict(kernel_size=3, padding=((0, 3),), dilation=2, transposed=False),
]


def check(problem: Problem, level: str = LEVELS[0], threads: int = 1, buffers: Any = None) -> None:
    operands = runs.operands(problem)
    got = runs.run_kernel(direct_rows, problem, operands, runs.target_of(level), threads, buffers)
    np.testing.assert_array_equal(got, operands.expected)


def takes(problem: Problem, level: str = LEVELS[0]) -> bool:
    return direct_rows.rejects(problem, runs.target_of(level)) is None


@settings(max_examples=120, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(problem=runs.problems(), width=st.integers(1, 140), threads=st.integers(1, 2))
def test_integers_come_out_exactly(problem: Problem, width: int, threads: int) -> None:
    size = (*problem.input_size[:-1], width)
    try:
        problem = replace(problem, input_size=size, output_size=problem.spec.output_size(size))
    except SpecError:
        assume(False)
    assume(takes(problem))
    check(problem, threads=min(threads, runs.threads_allowed()))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_rows_at_the_edges_of_tiles(layer: dict[str, Any], dtype: str, level: str) -> None:
    """Between guard pages, of one tile, of some that overlap, and of so many that the widest suit them."""
    lanes = runs.target_of(level).lanes(4 if dtype == "float32" else 8)
    ran = 0
    for width in sorted({max(1, n * lanes + d) for n in (1, 2, 3, 7, 24) for d in (-1, 0, 1, 5)}):
        if not layer.get("transposed", True) and width < layer["kernel_size"] * layer.get("dilation", 1):
            continue
        problem = runs.make(size=(width,), in_channels=3, out_channels=5, dtype=dtype, batch=2, **layer)
        if takes(problem, level):
            fenced = Fenced(width % 2 > 0)
            check(problem, level, buffers=fenced)
            assert fenced.untouched()
            ran += 1
    if not ran:
        pytest.skip(str(direct_rows.rejects(problem, runs.target_of(level))))


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize(("channels", "vectors"), [(1, 1), (2, 3), (3, 2), (7, 1)])
def test_tasks_cut_rows_and_tiles_cut_channels(
    channels: int, vectors: int, tiles: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of channels that the last one does not fill, and parts of rows of which the last is longer."""
    target = runs.target_of(LEVELS[0])
    for size, layer in (
        ((7, 131), dict(kernel_size=4, stride=2, padding=1)),
        ((2, 5, 100), dict(kernel_size=3, stride=1, padding=1)),
        ((5, 99), dict(kernel_size=3, padding=1, transposed=False)),
    ):
        problem = runs.make(size=size, in_channels=10, out_channels=14, groups=2, batch=2, **layer)
        how = direct_rows.blocking(problem, target, 1)
        tile = replace(how.tile, channels=channels, vectors=vectors)
        how = replace(how, tile=tile, sizes=(1, 1, rows, tiles * tile.width))
        monkeypatch.setattr(direct_rows, "blocking", lambda *_, how=how: how)
        check(problem, threads=runs.threads_allowed())
        monkeypatch.undo()


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_weights_that_are_not_finite_meet_the_padding_of_a_convolution(special: float) -> None:
    problem = runs.make(False, size=(5, 6, 19), in_channels=3, out_channels=2, kernel_size=3, padding=1)
    plain = runs.operands(problem)
    x, weight = np.abs(plain.x) + 1, plain.weight.copy()
    weight[1, 0, 0, 1, 2] = special
    with np.errstate(invalid="ignore"):
        expected = reference.forward(problem.spec, x, weight, plain.bias, problem.output_size)
    given_ = runs.Operands(x, weight, plain.bias, expected)
    got = runs.run_kernel(direct_rows, problem, given_, runs.target_of(LEVELS[0]))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kernel_size", [(1, 5), (3, 1)])
def test_rows_of_padding_are_rows_of_zeros(kernel_size: tuple[int, int]) -> None:
    """Of a convolution, whatever its taps beside them."""
    fenced = Fenced(True)
    check(
        runs.make(False, size=(2, 70), in_channels=5, out_channels=4, kernel_size=kernel_size, padding=((2, 1), (2, 1))),
        buffers=fenced,
    )
    assert fenced.untouched()


def test_rows_are_cut_where_each_part_has_a_tile() -> None:
    """And no part is much longer than the others: the thread that draws the last would have the others wait."""
    assert blocks.cuts(131, 32, 32) == [(0, 32), (32, 64), (64, 96), (96, 131)]
    assert blocks.cuts(31, 32, 32) == [(0, 31)]
    assert blocks.cuts(96, 32, 32) == [(0, 32), (32, 64), (64, 96)]
    problem = runs.make(size=(55040,), in_channels=16, out_channels=8, kernel_size=4, stride=2, padding=1)
    how = direct_rows.blocking(problem, SERVER, 2)
    parts = [end - first for first, end in blocks.cuts(55040, how.sizes[3], how.tile.width)]
    assert max(parts) < how.sizes[3] + how.tile.width
    assert len(parts) == direct_rows.tasks(problem, how) == 2 * blocks.TASKS


@pytest.mark.parametrize("length", [384, 5000, 55040])
def test_every_length_runs_the_same_code_on_all_threads(length: int) -> None:
    """And packs the weight alike."""
    problem, other = (
        runs.make(size=(n,), in_channels=16, out_channels=8, kernel_size=4, stride=2, padding=1) for n in (length, 7777)
    )
    hows = [direct_rows.blocking(p, SERVER, 2) for p in (problem, other)]
    assert direct_rows.code_parameters(problem, hows[0]) == direct_rows.code_parameters(other, hows[1])
    assert direct_rows.packing(problem, hows[0]) == direct_rows.packing(other, hows[1])
    assert direct_rows.tasks(problem, hows[0]) >= 2


def test_plans_take_it_for_few_channels_and_say_why_not_elsewhere() -> None:
    target = runs.target_of(LEVELS[0])
    plan = upconv.plan((1, 16, 55040), (16, 8, 4), stride=2, padding=1)
    if target.vector_bytes >= 32:
        assert plan.algorithm == "direct_rows"
        assert plan.note.startswith("2 phases of a row and ")
    layer: dict[str, Any] = dict(size=(40, 50), in_channels=64, kernel_size=4, stride=2, padding=1)
    lanes = target.lanes(4)
    whys = {
        "one input channel a group: no sum over channels": runs.make(out_channels=64, groups=64, **layer),
        "65 output channels a group: tiles would go over x too often": runs.make(out_channels=65, **layer),
        "stride 2 x 2 of x: every read would be a gather": runs.make(False, out_channels=64, **layer),
        "193 taps in a row: too many to write out": runs.make(size=(9,), in_channels=2, out_channels=2, kernel_size=193),
        "99 phases, more than lanes": runs.make(size=(9,), in_channels=2, out_channels=2, kernel_size=99, stride=99),
        "rows of 3 positions, fewer than lanes": runs.make(size=(9, 3), in_channels=2, out_channels=2, kernel_size=1),
        f"reads of {lanes + 1} places beside a row, more than lanes": runs.make(
            size=(99,), in_channels=2, out_channels=2, kernel_size=lanes + 2
        ),
    }
    for why, problem in whys.items():
        assert direct_rows.rejects(problem, target) == why
