"""Lines of y asked for while the sums go on: exactly those that a block writes, all of them by the time that it does."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernel_runs import Plain, operands, run_kernel
from upconv import execute
from upconv.kernels import ahead, strassen, winograd, winograd_blocks, winograd_wide
from upconv.kernels.winograd_tiles import lines
from upconv.spec import ConvSpec, Problem

FLOATS = 16  # a line's


class Poisoned(Plain):
    """Keeps the workspace, the first buffer of bytes that is asked for; every number is far below zero at first."""

    def __init__(self) -> None:
        self.kept: list[NDArray[Any]] = []

    def workspace(self, size: int) -> NDArray[Any]:
        self.kept.append(super().workspace(size))
        self.kept[-1][:] = 0x80
        return self.kept[-1]


@pytest.fixture(autouse=True)
def asking(monkeypatch: pytest.MonkeyPatch) -> Any:
    """However small y is."""
    monkeypatch.setattr(winograd_blocks, "ASKED_Y", 0)
    monkeypatch.setattr(winograd_blocks, "ASKED_V", 100)
    winograd_blocks.blocking.cache_clear()
    yield
    winograd_blocks.blocking.cache_clear()


def problem_of(channels: tuple[int, int], kernel: Any, stride: Any, padding: int, size: tuple[int, ...], batch: int = 1) -> Problem:
    spec = ConvSpec.make(
        transposed=True, in_channels=channels[0], out_channels=channels[1], kernel_size=kernel, stride=stride, padding=padding,
        rank=len(size),
    )  # fmt: skip
    return Problem(spec, batch, size, spec.output_size(size))


CASES = [
    (winograd_wide, problem_of((150, 5), 4, 2, 1, (4, 160))),  # a block begins one element before its plane
    (winograd, problem_of((24, 8), 4, 2, 1, (21, 33), 2)),
    (winograd, problem_of((24, 12), 4, 2, 1, (4, 4), 70)),  # position by position
    (winograd, problem_of((16, 16), 16, 8, 4, (301,))),
    (winograd_wide, problem_of((16, 8), 24, 16, 3, (100,))),
    (strassen, problem_of((32, 32), 2, 2, 0, (19, 21), 2)),
    (strassen, problem_of((32, 32), (1, 2, 2), (1, 2, 2), 0, (3, 8, 8))),
]


def written(problem: Problem, how: Any, number: int) -> tuple[set[int], int]:
    """The places in y, from the first channel on, that block `number` writes of a channel; and the first run's, cropped or not."""
    cut, of = how.cut, lines(problem, how.ways)
    units, longer = divmod(cut.units, cut.pieces)
    part, piece = divmod(number, cut.pieces)
    low, high = ((n * units + min(n, longer)) * cut.unit for n in (piece, piece + 1))
    found, first = set(), None
    for column in range(low, min(high, cut.length)):
        rest, image = (part, column) if how.by_position else (part * cut.length + column, None)
        places = []
        for line in reversed(of):
            rest, at = divmod(rest, line.positions)
            places.append(at * line.out_step - line.crop)
        w, h, d = places
        base = (rest if image is None else image) * problem.spec.out_channels * np.prod(problem.output_size)
        for e in product(*(range(line.out_step) for line in of)):
            at = (d + e[0], h + e[1], w + e[2])
            place = int(base + (at[0] * of[1].out_size + at[1]) * of[2].out_size + at[2])
            inside = all(0 <= n < line.out_size for n, line in zip(at, of, strict=True))
            first = place + max(0, -w) if first is None else first
            if inside:
                found.add(place)
    assert first is not None
    return found, first


@pytest.mark.parametrize(("kernel", "problem"), CASES, ids=[str(problem.spec) for _, problem in CASES])
def test_each_block_asks_for_the_lines_that_it_writes(kernel: Any, problem: Problem) -> None:
    target = execute.target()
    if target is None or kernel.rejects(problem, target):
        pytest.skip("no such kernel here")
    how, given = kernel.blocking(problem, target, 1), operands(problem)
    assert how.asks
    assert how.splits == 1
    second, item = how.halves > 1, problem.itemsize
    plane = problem.spec.out_channels // 2 * int(np.prod(problem.output_size))
    for number in range(how.cut.count):
        buffers = Poisoned()
        run_kernel(kernel, problem, given, target, buffers=buffers, only=number)
        at = how.workspace_bytes - 256 - how.asked_bytes
        numbers = buffers.kept[0][at : at + how.asked_bytes].view(np.int64)
        asked = numbers[ahead.ENTRIES :][: numbers[ahead.COUNT]].tolist()
        wanted, _ = written(problem, how, number)
        wanted |= {place + plane for place in wanted} if second else set()
        reached = {entry + i for entry in asked for i in range(FLOATS * 4 // item)}
        assert wanted <= reached
        assert reached <= {place + i for place in wanted for i in range(FLOATS)}
        assert len(asked) <= len(wanted)
        assert numbers[ahead.LEFT] == 0  # the last chunk's tiles asked for all of it


def test_a_case_begins_where_no_run_has_ended() -> None:
    """One element before its plane: what an end of -1 would go on from."""
    target = execute.target()
    kernel, problem = CASES[0]
    if target is None or target.name != "avx2":
        pytest.skip("blocks of 32 tiles are this target's")
    how = kernel.blocking(problem, target, 1)
    assert -1 in {written(problem, how, number)[1] for number in range(how.cut.count)}


def test_layers_whose_lines_stay_in_the_caches_do_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    target = execute.target()
    if target is None:
        pytest.skip("no code can be made here")
    monkeypatch.setattr(winograd_blocks, "ASKED_Y", 4)
    winograd_blocks.blocking.cache_clear()
    assert not winograd.blocking(problem_of((24, 8), 4, 2, 1, (21, 33)), target, 1).asks
    assert winograd.blocking(problem_of((24, 8), 4, 2, 1, (21, 3300), 9), target, 1).asks
    assert not winograd.blocking(problem_of((512, 8), 4, 2, 1, (21, 3300), 9), target, 1).asks
