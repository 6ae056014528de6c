"""Blocks of a dask array put together are the whole, wherever it is cut."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import upconv
from drawing import problems, spec_error

da = pytest.importorskip("dask.array")
import upconv.dask as ours  # noqa: E402
from upconv import execute  # noqa: E402


@st.composite
def cuts(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """A dimension cut into chunks."""
    found = []
    while sum(found) < size:
        found.append(draw(st.integers(1, size - sum(found))))
    return tuple(found) or (0,)


@settings(max_examples=60)
@given(st.data(), problems(asymmetric=True))
def test_blocks_make_the_whole(data: Any, problem: Any) -> None:
    spec = problem.spec
    x, weight, bias = problem.arrays()
    whole = execute.forward(spec, x, weight, bias)
    chunks = tuple(data.draw(cuts(size)) for size in x.shape)
    options: dict[str, Any] = dict(stride=spec.stride, padding=spec.padding, dilation=spec.dilation, groups=spec.groups)
    if spec.transposed:
        options["output_padding"] = spec.output_padding
    function = ours.conv_transpose if spec.transposed else ours.conv
    y = function(da.from_array(x, chunks=chunks), weight, bias, **options)
    assert (y.shape, y.dtype) == (whole.shape, whole.dtype)
    found = y.compute(scheduler="synchronous")
    assert found.shape == y.shape
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unbatched_activation_and_output_size(rank: int) -> None:
    rng = np.random.default_rng(rank)
    x, weight = (
        rng.integers(-4, 5, (4, *(7,) * rank)).astype(np.float64),
        rng.integers(-4, 5, (4, 3, *(3,) * rank)).astype(np.float64),
    )
    options: Any = dict(stride=2, padding=1, output_size=(14,) * rank, activation="relu")
    y = ours.conv_transpose(da.from_array(x, chunks=(2, *(3,) * rank)), weight, **options)
    assert y.chunks[1:] == ((5, 6, 3),) * rank
    np.testing.assert_array_equal(y.compute(scheduler="synchronous"), upconv.conv_transpose(x, weight, **options))


@pytest.mark.parametrize("padding", ["same", "valid", 3])
def test_ordinary_convolutions(padding: Any) -> None:
    rng = np.random.default_rng(7)
    x, weight = rng.integers(-4, 5, (2, 3, 20, 11)).astype(np.float32), rng.integers(-4, 5, (5, 3, 3, 4)).astype(np.float32)
    y = ours.conv(da.from_array(x, chunks=(1, 3, 6, 4)), weight, padding=padding)
    np.testing.assert_array_equal(y.compute(scheduler="synchronous"), upconv.conv(x, weight, padding=padding))


def test_threads_of_dask_and_ours_together() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.integers(-4, 5, (1, 16, 96, 96)).astype(np.float32), rng.integers(-4, 5, (16, 16, 4, 4)).astype(np.float32)
    y = ours.conv_transpose(da.from_array(x, chunks=(1, 16, 24, 24)), weight, stride=2, padding=1)
    whole = upconv.conv_transpose(x, weight, stride=2, padding=1)
    np.testing.assert_array_equal(y.compute(scheduler="threads", num_workers=2), whole)


def test_only_the_blocks_asked_for_are_read() -> None:
    """One pixel of the result reads its own block of the input and the neighbours' rims, nothing else."""
    read: list[int] = []

    def load(block_info: Any) -> np.ndarray:
        read.append(block_info[None]["chunk-location"][-1])
        return np.ones((1, 10), np.float32)

    x = da.map_blocks(load, chunks=((1,), (10,) * 9), dtype=np.float32, meta=np.empty((0, 0), np.float32))
    y = ours.conv_transpose(x, np.ones((1, 1, 4), np.float32), stride=2, padding=1)
    read.clear()
    assert float(y[0, 95].compute(scheduler="synchronous")) == 2
    assert sorted(set(read)) == [3, 4]


def test_later_changes_of_the_weight_do_not_reach_the_result() -> None:
    weight = np.ones((1, 1, 2), np.float32)
    y = ours.conv_transpose(da.ones((1, 6), chunks=(1, 2), dtype=np.float32), weight, stride=2)
    weight[...] = 9
    np.testing.assert_array_equal(y.compute(), np.ones((1, 12)))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda x, w: ours.conv_transpose(x[:1], w),
            "x has 1 channels (shape (1, 5)) and weight of shape (2, 3, 4) takes 2",
        ),
        (
            lambda x, w: ours.conv(x, w[0]),
            "x has shape (2, 5) and weight (3, 4): give (N, C, *spatial) or (C, *spatial) and a weight of (channels, channels, "
            "*kernel) with 1, 2 or 3 kernel sizes",
        ),
        (
            lambda x, w: ours.conv_transpose(x, w, np.ones(2, np.float32)),
            "bias has shape (2,): it must be (3,), one value an output channel",
        ),
        (
            lambda x, w: ours.conv_transpose(x[:, x.sum(0) > 0], w),
            "x has unknown sizes (shape (2, nan)): call x.compute_chunk_sizes() first",
        ),
    ],
)
def test_errors_come_at_once(call: Any, text: str) -> None:
    x, weight = da.ones((2, 5), chunks=(1, 2), dtype=np.float32), np.ones((2, 3, 4), np.float32)
    assert spec_error(lambda: call(x, weight)) == text


def test_types() -> None:
    x, weight = np.ones((2, 5), np.float32), np.ones((2, 3, 4), np.float32)
    with pytest.raises(TypeError) as caught:
        ours.conv_transpose(x, weight)
    assert str(caught.value) == "x is a ndarray: give a dask array, da.from_array(x, chunks=...), or call upconv itself"
    with pytest.raises(TypeError) as caught:
        ours.conv(da.from_array(x), weight.astype(np.float64))
    assert str(caught.value) == "x is float32 and weight is float64: give both the same dtype"


def test_without_dask_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['dask'] = None\nimport upconv.dask"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.splitlines()[-1] == "ImportError: upconv.dask needs dask, which is not installed: pip install 'upconv[dask]'"
