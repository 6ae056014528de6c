"""Lines asked for while the sums go on: those that a block writes and those that the next one reads, all of them in time."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernel_runs import Kept, columns_of, operands, run_kernel
from upconv import execute
from upconv.codegen.target import LINE, Target
from upconv.kernels import ahead, strassen, strassen_twice, winograd, winograd_blocks, winograd_middle, winograd_wide
from upconv.kernels.winograd_tiles import lines, windows
from upconv.spec import ConvSpec, Problem


class Poisoned(Kept):
    """Every number is far below zero at first."""

    def workspace(self, size: int) -> NDArray[Any]:
        memory = super().workspace(size)
        memory[:] = 0x80
        return memory


@pytest.fixture(autouse=True)
def asking(monkeypatch: pytest.MonkeyPatch) -> Any:
    """However small x and y are."""
    monkeypatch.setattr(winograd_blocks, "ASKED_Y", 0)
    monkeypatch.setattr(winograd_blocks, "ASKED_STEP", (1, 1, 1))
    monkeypatch.setattr(winograd_blocks, "ASKED_X", (0, 0, 0))
    monkeypatch.setattr(winograd_blocks, "ASKED_V", 100)
    winograd_blocks.blocking.cache_clear()
    yield
    winograd_blocks.blocking.cache_clear()


def problem_of(
    channels: tuple[int, int], kernel: Any, stride: Any, padding: int, size: tuple[int, ...], batch: int = 1, **more: Any
) -> Problem:
    named = {"transposed": True, "kernel_size": kernel, "stride": stride, "padding": padding, "rank": len(size), **more}
    spec = ConvSpec.make(in_channels=channels[0], out_channels=channels[1], **named)
    return Problem(spec, batch, size, spec.output_size(size))


CASES = [
    (winograd_wide, problem_of((150, 5), 4, 2, 1, (4, 160))),  # a block begins one element before its plane
    (winograd, problem_of((24, 8), 4, 2, 1, (21, 33), 2)),
    (winograd, problem_of((24, 12), 4, 2, 1, (4, 4), 70)),  # position by position
    (winograd, problem_of((16, 16), 16, 8, 4, (301,))),
    (winograd_wide, problem_of((16, 8), 24, 16, 3, (100,))),
    (winograd, problem_of((16, 8), (4, 4, 4), 2, 1, (5, 9, 11))),
    (winograd, problem_of((16, 24), 3, 1, 1, (19, 40), 2, transposed=False)),
    (winograd_wide, problem_of((12, 24), 4, 2, 1, (18, 66), 2, transposed=False)),
    (winograd, replace(problem_of((16, 12), 4, 2, 1, (9, 30)), dtype="float64")),
    (winograd_middle, problem_of((24, 12), 4, 2, 1, (17, 30), 2)),
    (winograd_middle, problem_of((24, 12), 3, 2, 1, (17, 30), 2)),
    (strassen, problem_of((32, 32), 2, 2, 0, (19, 21), 2)),
    (strassen_twice, problem_of((32, 32), 2, 2, 0, (19, 21), 2)),
    (strassen, problem_of((32, 32), (1, 2, 2), (1, 2, 2), 0, (3, 8, 8))),
]


def places(
    image: int, first: tuple[int, ...], counts: tuple[int, ...], sizes: tuple[int, ...], size: int
) -> list[tuple[int, bool]]:
    """(place, whether it is in the array) of `counts` elements from `first` on in each dimension; an image is `size` elements."""
    found = []
    for e in product(*(range(count) for count in counts)):
        d, h, w = (a + b for a, b in zip(first, e, strict=True))
        inside = all(0 <= n < end for n, end in zip((d, h, w), sizes, strict=True))
        found.append((image * size + (d * sizes[1] + h) * sizes[2] + w, inside))
    return found


def written(problem: Problem, how: Any, number: int) -> tuple[set[int], int]:
    """The places in y, from the first channel on, that block `number` writes of a channel; and the first run's, cropped or not."""
    of, every, first = lines(problem, how.ways), set(), None
    size = problem.spec.out_channels * int(np.prod(problem.output_size))
    for image, at in filter(None, columns_of(problem, how, number)):
        start = tuple(n * line.out_step - line.crop for n, line in zip(at, of, strict=True))
        found = places(image, start, tuple(line.out_step for line in of), tuple(line.out_size for line in of), size)
        first = found[0][0] + max(0, -start[2]) if first is None else first
        every |= {place for place, inside in found if inside}
    assert first is not None
    return every, first


def read(problem: Problem, how: Any, number: int) -> set[int]:
    """The places in x, from the first channel on, that the windows of block `number` read of a channel."""
    of, reads, found = lines(problem, how.ways), [window for _, window in windows(problem, how.ways)], set()
    size = problem.spec.in_channels * int(np.prod(problem.input_size))
    for image, at in filter(None, columns_of(problem, how, number)):
        start = tuple(n * line.step + window.origin for n, line, window in zip(at, of, reads, strict=True))
        counts = tuple(window.reach * way.groups for window, way in zip(reads, how.ways, strict=True))
        found |= {place for place, inside in places(image, start, counts, tuple(line.size for line in of), size) if inside}
    return found


@pytest.mark.parametrize(("kernel", "problem"), CASES, ids=[str(problem.spec) for _, problem in CASES])
def test_each_block_asks_for_what_it_writes_and_the_next_one_reads(kernel: Any, problem: Problem) -> None:
    target = execute.target()
    if target is None or kernel.rejects(problem, target):
        pytest.skip("no such kernel here")
    how, given = kernel.blocking(problem, target, 1), operands(problem)
    assert how.written
    one_window = not any(way.apart for way in how.ways)
    assert (how.read > 0) == (how.slices == 1 and not how.by_position and how.splits == 1 and one_window)
    plane = problem.spec.out_channels // how.slices * int(np.prod(problem.output_size))
    for number in range(how.cut.count):
        buffers = Poisoned()
        run_kernel(kernel, problem, given, target, buffers=buffers, only=number)
        to_read = how.workspace_bytes - 256 - how.read_bytes
        to_write = to_read - how.written_bytes
        wanted, _ = written(problem, how, number)
        wanted = {place + plane * n for place in wanted for n in range(how.slices)}
        check(buffers.kept[0][to_write:to_read], wanted, problem)
        if how.read and number + 1 < how.cut.count:  # the next one of a single thread's
            check(buffers.kept[0][to_read : to_read + how.read_bytes], read(problem, how, number + 1), problem)


def check(memory: NDArray[Any], wanted: set[int], problem: Problem) -> None:
    """The list in memory holds every line of what is wanted, a few of its borders beside, and all of it was asked for."""
    numbers, line = memory.view(np.int64), LINE // problem.itemsize
    asked = numbers[ahead.ENTRIES :][: numbers[ahead.COUNT]].tolist()
    assert len(asked) == numbers[ahead.COUNT]
    reached = {entry + i for entry in asked for i in range(line)}
    assert wanted <= reached
    near = {place + i for place in wanted for i in range(-2 * line, 2 * line)}
    assert len(reached - near) <= len(reached) // 2  # rows beyond an image's end
    assert len(asked) <= len(wanted)
    assert numbers[ahead.LEFT] == 0


def test_a_case_begins_where_no_run_has_ended() -> None:
    """One element before its plane: what an end of -1 would go on from."""
    target = execute.target()
    kernel, problem = CASES[0]
    if target is None or target.name != "avx2" or target.l2 != 512 << 10:
        pytest.skip("blocks of 32 tiles are this target's and this cache's")
    how = kernel.blocking(problem, target, 1)
    assert -1 in {written(problem, how, number)[1] for number in range(how.cut.count)}


def test_layers_whose_lines_stay_in_the_caches_do_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    target = execute.target()
    if target is None:
        pytest.skip("no code can be made here")
    monkeypatch.setattr(winograd_blocks, "ASKED_Y", 4)
    winograd_blocks.blocking.cache_clear()
    assert not winograd.blocking(problem_of((24, 8), 4, 2, 1, (21, 33)), target, 1).written
    assert winograd.blocking(problem_of((24, 8), 4, 2, 1, (21, 3300), 9), target, 1).written
    assert not winograd.blocking(problem_of((512, 8), 4, 2, 1, (21, 3300), 9), target, 1).written


def test_short_rows_of_outputs_are_asked_for_where_there_are_many_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    winograd_blocks.blocking.cache_clear()
    for registers, asked in ((16, {2: False, 8: True}), (32, {2: True, 8: True})):
        target = Target("avx2", "x86_64-unknown-linux-gnu", "", "", 32, registers, 32 << 10, 512 << 10, masks=False)
        for stride, expected in asked.items():
            problem = problem_of((24, 8), 2 * stride, stride, stride // 2, (64, 64), 16)
            assert bool(winograd.blocking(problem, target, 1).written) == expected


def test_intels_servers_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    winograd_blocks.blocking.cache_clear()
    for fmas, asked in ((1, True), (2, False)):
        target = Target("avx512", "x86_64-unknown-linux-gnu", "", "", 64, 32, 48 << 10, 2 << 20, masks=True, fmas=fmas)
        how = winograd.blocking(problem_of((24, 8), 4, 2, 1, (800, 800), 16), target, 1)
        assert bool(how.written) == bool(how.read) == asked
