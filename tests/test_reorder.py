"""Channels-first to channels-last and back: every element once and in its place, and not a byte outside."""

from __future__ import annotations

import numpy as np
import pytest

import kernel_runs as runs
import upconv
from fences import Fenced
from upconv import execute, execute_reorder
from upconv.codegen import memory

SHAPES = [
    (1, 1, 1), (1, 3, 4, 5), (2, 8, 3, 3), (1, 7, 40), (1, 9, 1, 70), (2, 16, 5, 6, 7), (3, 20, 17, 13), (1, 31, 8, 4),
    (2, 33, 300), (1, 4, 257), (5, 16, 16), (1, 33, 16001), *((2, few, 9, 37) for few in range(1, 17)),
]  # fmt: skip


@pytest.mark.parametrize("level", runs.levels())
@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_orders_between_guard_pages(shape: tuple[int, ...], dtype: str, at_end: bool, level: str) -> None:
    first = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    last = np.ascontiguousarray(np.moveaxis(first, 1, -1))
    target, fenced = runs.target_of(level), Fenced(at_end)
    for source, wanted, to_last in ((first, last, True), (last, first, False)):
        x, y = fenced.hold(source), fenced.room(wanted.shape, dtype)
        execute_reorder.fill(x.ctypes.data, y.ctypes.data, shape, y.dtype, to_last, target)
        np.testing.assert_array_equal(y, wanted)


def test_large_arrays_on_all_threads() -> None:
    x = np.random.default_rng(0).standard_normal((2, 70, 33, 65), np.float32)
    last = execute_reorder.reordered(memory.address(x), x.shape, x.dtype, True, execute.target())
    np.testing.assert_array_equal(last, np.moveaxis(x, 1, -1))


def test_arrays_of_any_strides_become_contiguous() -> None:
    whole = np.random.default_rng(0).standard_normal((2, 6, 9, 11))
    for x in (whole, whole.transpose(0, 3, 1, 2), whole[:, ::2], whole.T, whole[..., ::-1], whole[:0].transpose(0, 3, 1, 2)):
        for dtype in (np.float32, np.float64):
            got = execute_reorder.channels_first(x.astype(dtype, order="K"), execute.target())
            assert got.flags.c_contiguous
            np.testing.assert_array_equal(got, x.astype(dtype))
    assert execute_reorder.channels_first(whole, None) is whole
    np.testing.assert_array_equal(execute_reorder.channels_first(whole.transpose(0, 3, 1, 2), None), whole.transpose(0, 3, 1, 2))


def test_a_numpy_array_with_its_channels_last_gives_the_same_result() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 9, 11, 12), np.float32), rng.standard_normal((12, 5, 3, 3), np.float32)
    view = x.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(
        upconv.conv_transpose(view, weight, stride=2), upconv.conv_transpose(np.ascontiguousarray(view), weight, stride=2)
    )
