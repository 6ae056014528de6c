"""What the NumPy functions accept, and what they refuse in which words; a refused call changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import upconv
from drawing import Problem, problems, spec_error


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


X, W, B = ones(2, 4, 6, 6), ones(4, 3, 3, 3), ones(3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: upconv.conv_transpose(ones(2, 5, 6, 6), W),
            "x has 5 channels (shape (2, 5, 6, 6)) and weight of shape (4, 3, 3, 3) with groups 1 takes 4",
        ),
        (
            lambda: upconv.conv(ones(2, 4, 6, 6), ones(6, 3, 3, 3), groups=2),
            "x has 4 channels (shape (2, 4, 6, 6)) and weight of shape (6, 3, 3, 3) with groups 2 takes 6",
        ),
        (
            lambda: upconv.conv_transpose(X, ones(4, 3)),
            "weight has shape (4, 3): it must be 3-D, 4-D or 5-D for rank 1, 2 or 3, (channels, channels // groups, *kernel)",
        ),
        (
            lambda: upconv.conv_transpose2d(X, ones(4, 3, 3)),
            "weight has shape (4, 3, 3): it must be 4-D for rank 2, (channels, channels // groups, *kernel)",
        ),
        (
            lambda: upconv.conv3d(X, W),
            "weight has shape (4, 3, 3, 3): it must be 5-D for rank 3, (channels, channels // groups, *kernel)",
        ),
        (
            lambda: upconv.conv_transpose(ones(4, 6), W),
            "x has shape (4, 6): a rank-2 layer takes (N, C, *spatial) with 4 dimensions or (C, *spatial) with 3",
        ),
        (
            lambda: upconv.conv_transpose(ones(2, 4, 0, 6), W),
            "x has shape (2, 4, 0, 6): every spatial size must be at least 1 (an empty batch is allowed)",
        ),
        (
            lambda: upconv.conv_transpose(X, W, ones(4)),
            "bias has shape (4,): it must be (3,), one value an output channel",
        ),
        (
            lambda: upconv.conv_transpose(X, W, output_size=(13, 12), stride=2, padding=1),
            "output_size (13, 12) is not reachable: kernel 3x3, stride 2x2, padding 1x1 on input (6, 6) gives (11, 11) "
            "to (12, 12); use output_padding (1, 1) for (12, 12), or another kernel or padding for (13, 12)",
        ),
        (
            lambda: upconv.conv_transpose(X, W, stride=2, output_padding=2),
            "output_padding[0] is 2: it must be smaller than stride 2 or dilation 1; use at most 1, or a larger kernel",
        ),
        (
            lambda: upconv.conv_transpose(X, W, padding=4),
            "ConvTranspose2d 4 -> 3, kernel 3x3, padding 4x4 on input 6x6 gives output (0, 0): every size must be at "
            "least 1; use less padding, a larger kernel or a larger input",
        ),
        (
            lambda: upconv.conv(X, ones(3, 4, 7, 7)),
            "Conv2d 4 -> 3, kernel 7x7 on input 6x6 gives output (0, 0): every size must be at least 1; use a smaller "
            "kernel or dilation, more padding or a larger input",
        ),
        (lambda: upconv.conv_transpose(X, W, stride=-1), "stride is -1: it must be at least 1"),
        (lambda: upconv.conv_transpose(X, W, groups=3), "in_channels 4 is not divisible by groups 3"),
        (lambda: upconv.conv_transpose(X, W, groups="2"), "groups is '2': give a whole number of at least 1"),
        (
            lambda: upconv.conv_transpose(X, W, out=ones(2, 3, 8, 9)),
            "out has shape (2, 3, 8, 9), dtype float32: the result has shape (2, 3, 8, 8), dtype float32; use "
            "np.empty((2, 3, 8, 8), np.float32)",
        ),
        (
            lambda: upconv.conv_transpose(X, W, out=ones(2, 3, 8, 8, dtype=np.float64)),
            "out has shape (2, 3, 8, 8), dtype float64: the result has shape (2, 3, 8, 8), dtype float32; use "
            "np.empty((2, 3, 8, 8), np.float32)",
        ),
        (
            lambda: upconv.conv_transpose(X, W, out=ones(2, 3, 8, 16)[..., ::2]),
            "out must be C-contiguous, aligned and writeable; use np.empty, and copy the result to its place",
        ),
    ],
)
def test_arguments_that_do_not_fit(call: Any, text: str) -> None:
    assert spec_error(call) == text


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: upconv.conv_transpose(X.astype(np.int64), W),
            "x has dtype int64: float32 and float64 are supported; convert it with x.astype(np.float32)",
        ),
        (
            lambda: upconv.conv(X, np.ones((3, 4, 3, 3), np.float16)),
            "weight has dtype float16: float32 and float64 are supported; convert it with weight.astype(np.float32)",
        ),
        (
            lambda: upconv.conv_transpose(X, W, np.array(["a"] * 3)),
            "bias has dtype <U1: float32 and float64 are supported; convert it with bias.astype(np.float32)",
        ),
        (
            lambda: upconv.conv_transpose(X, W.astype(np.float64)),
            "x is float32 and weight is float64: give both the same dtype",
        ),
        (
            lambda: upconv.conv_transpose(X, W, B.astype(np.float64)),
            "x is float32 and bias is float64: give both the same dtype",
        ),
        (
            lambda: upconv.conv_transpose(X, W, out=[]),
            "out is a list: it must be a NumPy array of shape (2, 3, 8, 8), dtype float32",
        ),
    ],
)
def test_wrong_types(call: Any, text: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == text


def test_out_may_not_overlap_what_is_read() -> None:
    memory = ones(2 * 4 * 64)
    x, out = memory[:128].reshape(1, 2, 8, 8), memory[64:192].reshape(1, 2, 8, 8)
    before = memory.copy()
    assert spec_error(lambda: upconv.conv_transpose(x, ones(2, 2, 3, 3), padding=1, out=out)) == (
        "out overlaps x, weight or bias: the result is written while they are read; give memory of its own"
    )
    np.testing.assert_array_equal(memory, before)


def test_a_refused_call_leaves_out_alone() -> None:
    out = np.full((2, 3, 8, 8), 7, np.float32)
    for changes in ({"stride": 0}, {"padding": 9}, {"output_size": (3, 3)}, {"activation": "gelu"}):
        assert spec_error(lambda changes=changes: upconv.conv_transpose(X, W, out=out, **changes))
    assert (out == 7).all()


def test_out_is_returned_and_filled() -> None:
    out = np.full((2, 3, 8, 8), np.nan, np.float32)
    assert upconv.conv_transpose(X, W, out=out) is out
    np.testing.assert_array_equal(out, upconv.conv_transpose(X, W))
    unbatched = np.full((3, 8, 8), np.nan, np.float32)
    assert upconv.conv_transpose(X[0], W, out=unbatched) is unbatched
    np.testing.assert_array_equal(unbatched, out[0])


def test_a_call_that_is_known_looks_at_out_all_the_same() -> None:
    out = np.empty((2, 3, 8, 8), np.float32)
    for _ in range(2):
        assert upconv.conv_transpose(X, W, out=out) is out
    assert spec_error(lambda: upconv.conv_transpose(X, W, out=ones(2, 3, 8, 9))).startswith("out has shape (2, 3, 8, 9)")
    assert spec_error(lambda: upconv.conv_transpose(X, W, out=ones(2, 3, 8, 16)[..., ::2])).startswith("out must be C-contig")
    memory = ones(2 * 4 * 64)
    x, over = memory[:128].reshape(1, 2, 8, 8), memory[64:192].reshape(1, 2, 8, 8)
    upconv.conv_transpose(x, ones(2, 2, 3, 3), padding=1)
    assert spec_error(lambda: upconv.conv_transpose(x, ones(2, 2, 3, 3), padding=1, out=over)).startswith("out overlaps x")
    with pytest.raises(TypeError, match="out is a list"):
        upconv.conv_transpose(X, W, out=[])
    frozen = out.copy()
    frozen.flags.writeable = False
    assert spec_error(lambda: upconv.conv_transpose(X, W, out=frozen)).startswith("out must be C-contiguous, aligned and writ")


class Tagged(np.ndarray):
    """A subclass, whose type must not leak into results."""


def unaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


FORMS = {
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "transposed": lambda a: np.asfortranarray(a),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "channels_last": lambda a: np.ascontiguousarray(np.moveaxis(a, 1, -1)).swapaxes(-1, 1).swapaxes(-1, -2) if a.ndim == 4 else a,
    "read_only": read_only,
    "big_endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "unaligned": unaligned,
    "subclass": lambda a: a.view(Tagged),
    "list": lambda a: a if a.dtype == np.float32 else a.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_any_form_are_accepted(form: str, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    x, w, b = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((2, 4, 6, 5), (4, 3, 3, 3), (3,)))
    expected = upconv.conv_transpose(x, w, b, stride=2)
    change = FORMS[form]
    changed = change(x), change(w), change(b)
    kept = [np.array(a) for a in changed]
    y = upconv.conv_transpose(*changed, stride=2)
    assert type(y) is np.ndarray
    assert y.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(y, expected)
    for a, before in zip(changed, kept, strict=True):
        np.testing.assert_array_equal(a, before)


@given(problems(modes=("zeros", "circular", "reflect", "replicate"), asymmetric=True))
@settings(max_examples=40)
def test_unbatched_is_a_batch_of_one(problem: Problem) -> None:
    spec = problem.spec
    x, weight, bias = Problem(spec, (1, *problem.x_shape[1:])).arrays()
    arguments: dict[str, Any] = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "padding_mode": spec.padding_mode,
    }
    call: Any = upconv.conv
    if spec.transposed:
        call = upconv.conv_transpose
        arguments["output_padding"] = spec.output_padding
    np.testing.assert_array_equal(call(x[0], weight, bias, **arguments), call(x, weight, bias, **arguments)[0])
    if spec.transposed:
        del arguments["output_padding"]
        sized = call(x[0], weight, bias, output_size=spec.output_size(problem.size), **arguments)
        np.testing.assert_array_equal(sized, call(x, weight, bias, output_padding=spec.output_padding, **arguments)[0])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_an_empty_batch_gives_an_empty_result(rank: int) -> None:
    x, w = ones(0, 4, *[5] * rank), ones(4, 3, *[3] * rank)
    assert upconv.conv_transpose(x, w, stride=2).shape == (0, 3, *[11] * rank)
    assert upconv.conv(x, ones(3, 4, *[3] * rank)).shape == (0, 3, *[3] * rank)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", ["conv_transpose", "conv"])
def test_functions_of_one_rank(name: str, rank: int) -> None:
    import inspect

    general, ranked = getattr(upconv, name), getattr(upconv, f"{name}{rank}d")
    assert ranked.__name__ == ranked.__qualname__ == f"{name}{rank}d"
    shown = inspect.signature(general).parameters
    assert list(inspect.signature(ranked).parameters) == [p for p in shown if not p.startswith("_")]
    x, w = ones(2, 3, *[4] * rank), ones(3, 3, *[2] * rank)
    np.testing.assert_array_equal(ranked(x, w, stride=2), general(x, w, stride=2))


def test_one_pixel() -> None:
    y = upconv.conv_transpose(ones(1, 1, 1, 1), np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3), stride=2)
    np.testing.assert_array_equal(y[0, 0], np.arange(9).reshape(3, 3))
