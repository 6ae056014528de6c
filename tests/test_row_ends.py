"""Windows that reach beyond the ends of rows: read whole where that is some other element of x, and set to zero then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import kernel_runs as runs
from upconv.codegen.target import Target
from upconv.kernels import columns, strassen, winograd, winograd_middle, winograd_wide
from upconv.kernels.winograd_blocks import code_of
from upconv.kernels.winograd_input import INSIDE, MASKED, ROWS_INSIDE
from upconv.kernels.winograd_tiles import lines
from upconv.spec import Problem

HOST = runs.target_of(runs.levels()[0])


def layer(size: tuple[int, ...], kernel: Any = 4, stride: Any = 2, padding: Any = 1, batch: int = 1, **more: Any) -> Problem:
    named = {"in_channels": 9, "out_channels": 8, "kernel_size": kernel, "stride": stride, "padding": padding}
    return runs.make(batch=batch, size=size, **{**named, **more})


CASES = [
    (winograd, layer((40, 40), batch=2)),
    (winograd, layer((13, 9), batch=3)),
    (winograd, layer((6, 3), batch=9)),
    (winograd, layer((33, 70), padding=0)),  # rows begin outside x at its very first element
    (winograd, layer((33, 30), kernel=3, stride=1, padding=0, transposed=False)),  # no halo, but tiles that go on too far
    (winograd, layer((30, 33), kernel=3, stride=1, padding=(0, 1), transposed=False)),  # rows are never outside, columns are
    (winograd, layer((50,), batch=5)),
    (winograd, layer((50,), batch=1)),
    (winograd, layer((21, 28), kernel=4, groups=2, in_channels=18, out_channels=16)),
    (winograd, layer((9, 20, 21), kernel=(2, 4, 4), stride=(2, 2, 2), padding=(0, 1, 1))),
    (winograd, layer((64, 66), kernel=4, stride=2, padding=1, transposed=False)),  # x in planes by the stride
    (winograd, replace(layer((29, 30)), dtype="float64")),
    (winograd_wide, layer((29, 45), batch=2)),
    (winograd_wide, layer((17, 41), kernel=6, padding=2)),
    (winograd_middle, layer((29, 45), batch=2)),
    (winograd_middle, layer((8, 8), batch=9)),
    (winograd_middle, layer((20, 23), kernel=6, stride=3, padding=(2, 0))),
    (winograd_middle, layer((30, 33), kernel=3, stride=1, padding=1, transposed=False)),
    (strassen, layer((90,), in_channels=8, out_channels=8, batch=2)),
    (strassen, layer((2000,), in_channels=8, out_channels=8, batch=2)),
]


def kinds(module: Any, problem: Problem, number: int) -> list[int]:
    """How the vectors of windows of a block are read, as its code has found."""
    how, buffers = module.blocking(problem, HOST, 1), runs.Kept()
    runs.run_kernel(module, problem, runs.operands(problem), HOST, buffers=buffers, only=number * how.splits)
    count, room = len(runs.columns_of(problem, how, number)), how.room // how.tile.lanes
    table = buffers.kept[0][: room * columns.VECTOR * 8].view(np.int64).reshape(room, columns.VECTOR)
    return table[: -(-count // how.tile.lanes), columns.READER].tolist()


def expected(module: Any, problem: Problem, number: int) -> list[int]:
    """The same, element by element of every window."""
    how = module.blocking(problem, HOST, 1)
    of, outer = lines(problem, how.ways), module.bind(problem, how).tables["outer"]
    code = code_of(problem, how.ways, how.tile, how.slices)
    d, h, w = np.meshgrid(0, np.arange(code.reach[0]), np.arange(code.reach[1]), indexing="ij")
    sizes, image = [line.size for line in of], problem.spec.in_channels * int(np.prod(problem.input_size))
    last = (problem.batch - 1) * image + int(np.prod(sizes))  # behind the first channel of the last image
    tiles, n, at = [], 0, (0, 0, 0)
    for column in runs.columns_of(problem, how, number):
        n, at = column or (n, at)  # where there is none, the one before may be read
        start = [i * line.step for i, line in zip(at, of, strict=True)]
        read = [np.stack([s + e[i] + j.ravel() for e in outer]) for i, (s, j) in enumerate(zip(start, (d, h, w), strict=True))]
        inside = [(at_ >= 0) & (at_ < size) for at_, size in zip(read, sizes, strict=True)]
        place = n * image + (read[0] * sizes[1] + read[1]) * sizes[2] + read[2]
        rows = column is None or (inside[0].all() and inside[1].all())
        whole = column is not None and rows and inside[2].all()
        tiles.append((whole, rows, place.min() >= 0 and place.max() < last))
    found = []
    for first in range(0, len(tiles), how.tile.lanes):
        part = tiles[first : first + how.tile.lanes]
        safe = all(safe for _, _, safe in part) and all(rows for _, rows, _ in part)
        whole = len(part) == how.tile.lanes and all(whole for whole, _, _ in part)
        found.append(INSIDE if whole else ROWS_INSIDE if safe else MASKED)
    return found


def names(case: Any) -> str:
    return f"{case[0].NAME} {case[1].spec} {case[1].input_shape} {case[1].dtype}"


def possible(module: Any, problem: Problem, target: Target = HOST) -> None:
    if module.rejects(problem, target):
        pytest.skip("no such kernel here")


@pytest.mark.parametrize("case", CASES, ids=names)
def test_what_is_read_without_a_mask_lies_in_x(case: Any) -> None:
    module, problem = case
    possible(module, problem)
    for number in range(module.blocking(problem, HOST, 1).cut.count):
        assert kinds(module, problem, number) == expected(module, problem, number)


def test_every_way_to_read_is_met() -> None:
    met: set[int] = set()
    for module, problem in CASES:
        if module.rejects(problem, HOST) is None:
            met |= {
                kind for number in range(module.blocking(problem, HOST, 1).cut.count) for kind in kinds(module, problem, number)
            }
    assert met == {MASKED, INSIDE, ROWS_INSIDE}


@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("case", CASES, ids=names)
def test_sums_are_exact_whatever_a_window_reaches_over(case: Any, level: str) -> None:
    module, problem = case
    target = runs.target_of(level)
    possible(module, problem, target)
    given = runs.operands(problem)
    got = runs.run_kernel(module, problem, given, target, runs.threads_allowed())
    if module in (winograd_middle, winograd_wide):
        np.testing.assert_allclose(got, given.expected, 1e-4, 1e-3)
    else:
        np.testing.assert_array_equal(got, given.expected)


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize(("module", "problem"), [CASES[0], CASES[12]], ids=["winograd", "winograd_wide"])
def test_what_stands_in_the_next_row_stays_there(module: Any, problem: Problem, special: float) -> None:
    """NaN and infinity at the beginning of every row, which the end of the one before reads, are not met by it."""
    possible(module, problem)
    given = runs.operands(problem)
    x = given.x.copy()
    x[..., 0] = special
    with np.errstate(invalid="ignore"):
        got = runs.run_kernel(module, problem, runs.Operands(x, given.weight, given.bias, given.expected), HOST)
    half = problem.output_size[-1] // 2
    np.testing.assert_allclose(got[..., half:], given.expected[..., half:], 1e-4, 1e-3)
    assert not np.isfinite(got[..., 0]).any()
