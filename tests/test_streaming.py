"""Streams: pieces put together are the whole, whatever the layer and wherever it is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import upconv
from drawing import spec_error
from upconv.spec import SpecError, effective_kernel
from upconv.streaming import ConvTranspose1d


def cut(x: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(x, np.cumsum(sizes), axis=-1)


def streamed(layer: ConvTranspose1d, chunks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([*(layer(chunk) for chunk in chunks), layer.flush()], axis=-1)


def whole_numbers(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any], list[int]]:
    """x, weight, bias, arguments and the chunks' sizes; something is left of the whole."""
    kernel, stride, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    groups, frames = draw(st.integers(1, 2)), draw(st.integers(1, 12))
    extra = draw(st.integers(0, max(stride, dilation) - 1))
    most = (frames - 1) * stride + effective_kernel(kernel, dilation) + extra - 1
    before = draw(st.integers(0, most))
    after = draw(st.integers(0, most - before))
    lead = draw(st.sampled_from([(), (1,), (2,)]))
    cin, cout = groups * draw(st.integers(1, 3)), draw(st.integers(1, 3))
    arguments = dict(
        stride=stride, dilation=dilation, groups=groups, output_padding=extra, padding=((before, after),),
        activation=draw(st.sampled_from([None, "relu"])),
    )  # fmt: skip
    sizes = draw(st.lists(st.integers(0, 5), max_size=5))
    return (
        whole_numbers((*lead, cin, frames)),
        whole_numbers((cin, cout, kernel), 1),
        whole_numbers((cout * groups,), 2),
        arguments,
        sizes,
    )


@given(streams())
def test_pieces_make_the_whole(drawn: Any) -> None:
    x, weight, bias, arguments, sizes = drawn
    whole = upconv.conv_transpose(x, weight, bias, **arguments)
    layer = ConvTranspose1d(weight, bias, **arguments)
    for _ in range(2):  # flush leaves a layer for the next stream
        y = streamed(layer, cut(x, sizes))
        assert y.dtype == whole.dtype
        np.testing.assert_array_equal(y, whole)


@settings(max_examples=20)
@given(streams())
def test_nothing_waits_that_could_be_known(drawn: Any) -> None:
    """After each chunk there is every output that no further input changes, and that the end would not crop."""
    x, weight, bias, arguments, sizes = drawn
    layer = ConvTranspose1d(weight, bias, **arguments)
    before, after = arguments["padding"][0]
    span = effective_kernel(weight.shape[2], arguments["dilation"])
    frames = given_out = 0
    for chunk in cut(x, sizes):
        frames, given_out = frames + chunk.shape[-1], given_out + layer(chunk).shape[-1]
        end = (frames - 1) * arguments["stride"] + span + arguments["output_padding"] - after
        known = min(arguments["stride"] * frames, end) if frames else 0
        assert given_out == max(known - before, 0)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(16, 8, 1), (10, 5, 1), (4, 4, 1), (3, 5, 1), (5, 2, 3), (1, 1, 1)])
def test_causal_gives_stride_outputs_a_frame_at_once(kernel: int, stride: int, dilation: int) -> None:
    weight, x = whole_numbers((3, 2, kernel)), whole_numbers((1, 3, 9), 1)
    layer = ConvTranspose1d(weight, stride=stride, dilation=dilation, causal=True)
    assert layer.delay == 0
    pieces = [layer(chunk) for chunk in cut(x, [1, 3, 0, 2])]
    assert [piece.shape for piece in pieces] == [(1, 2, n * stride) for n in (1, 3, 0, 2, 3)]
    assert layer.flush().shape == (1, 2, 0)
    full = upconv.conv_transpose(x, weight, stride=stride, dilation=dilation)
    full = np.concatenate([full, np.zeros((1, 2, stride), np.float32)], axis=-1)[..., : 9 * stride]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=-1), full)


def test_floats_agree_to_rounding_and_float64_stays() -> None:
    rng = np.random.default_rng(5)
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-13)):
        x, weight = rng.standard_normal((1, 16, 50)).astype(dtype), rng.standard_normal((16, 8, 11)).astype(dtype)
        bias = rng.standard_normal(8).astype(dtype)
        arguments: Any = dict(stride=4, padding=3, output_padding=1, activation="tanh")
        y = streamed(ConvTranspose1d(weight, bias, **arguments), cut(x, [7, 1, 20]))
        assert y.dtype == dtype
        np.testing.assert_allclose(y, upconv.conv_transpose(x, weight, bias, **arguments), atol=tolerance)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding: str) -> None:
    x, weight = whole_numbers((2, 6)), whole_numbers((2, 3, 5), 1)
    y = streamed(ConvTranspose1d(weight, stride=2, padding=padding), cut(x, [1, 2]))
    np.testing.assert_array_equal(y, upconv.conv_transpose(x, weight, stride=2, padding=padding))


def test_the_state_does_not_grow() -> None:
    layer = ConvTranspose1d(np.ones((1, 1, 16), np.float32), stride=8)
    sizes = set()
    for _ in range(5):
        layer(np.ones((1, 3), np.float32))
        sizes.add(layer.state_dict()["tail"].size)
    assert sizes == {8}


def test_results_are_the_callers() -> None:
    """Writing to a result changes neither the stream nor the chunk."""
    x, weight = whole_numbers((1, 2, 6)), whole_numbers((2, 3, 2), 1)
    weight[...] = 1
    layer, chunk = ConvTranspose1d(weight, stride=2), x[..., :3].copy()
    first = layer(chunk)
    kept = first.copy()
    first[...] = 99
    weight[...] = 99
    np.testing.assert_array_equal(chunk, x[..., :3])
    rest = np.concatenate([kept, layer(x[..., 3:]), layer.flush()], axis=-1)
    np.testing.assert_array_equal(rest, upconv.conv_transpose(x, np.ones_like(weight), stride=2))


def test_state_moves_between_layers_and_through_files(tmp_path: Any) -> None:
    x, weight, bias = whole_numbers((2, 3, 10)), whole_numbers((3, 2, 7), 1), whole_numbers((2,), 2)
    arguments: Any = dict(stride=3, padding=2)
    one = ConvTranspose1d(weight, bias, **arguments)
    first = one(x[..., :4])
    np.savez(tmp_path / "stream.npz", **one.state_dict())
    one(x[..., :1])  # what one does now does not reach the state that was taken
    other = ConvTranspose1d(np.zeros_like(weight), np.zeros_like(bias), **arguments)
    with np.load(tmp_path / "stream.npz") as state:
        other.load_state_dict(state)
    y = np.concatenate([first, other(x[..., 4:]), other.flush()], axis=-1)
    np.testing.assert_array_equal(y, upconv.conv_transpose(x, weight, bias, **arguments))


def test_a_torch_layers_parameters_fit() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.ConvTranspose1d(3, 4, 5, stride=2)
    layer = ConvTranspose1d(np.zeros((3, 4, 5), np.float32), np.zeros(4, np.float32), stride=2)
    layer(np.ones((3, 2), np.float32))
    layer.load_state_dict({name: value.numpy() for name, value in module.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    expected = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(streamed(layer, cut(x, [3])), expected, atol=1e-6)


def test_reset_forgets() -> None:
    layer, x = ConvTranspose1d(whole_numbers((2, 2, 5)), stride=2), whole_numbers((2, 4), 1)
    expected = streamed(layer, [x])
    layer(np.full((3, 2, 7), 9, np.float32))
    layer.reset()
    np.testing.assert_array_equal(streamed(layer, [x]), expected)


def test_infinity_and_nan_stay_where_they_belong() -> None:
    x, weight = np.ones((1, 6), np.float32), np.ones((1, 1, 3), np.float32)
    x[0, 2] = np.nan
    y = streamed(ConvTranspose1d(weight, stride=2), cut(x, [3, 1]))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(upconv.conv_transpose(x, weight, stride=2)))


ONES = np.ones((2, 3, 4), np.float32)


def test_errors_of_construction() -> None:
    assert spec_error(lambda: ConvTranspose1d(ONES[0])) == (
        "weight has shape (3, 4): streams have rank 1, (in_channels, out_channels // groups, kernel)"
    )
    assert spec_error(lambda: ConvTranspose1d(ONES, np.ones(4, np.float32))) == (
        "bias has shape (4,): it must be (3,), one value an output channel"
    )
    assert spec_error(lambda: ConvTranspose1d(ONES, causal=True, padding=1)) == (
        "causal fixes the crop, so padding 1 and output_padding 0 cannot be given with it"
    )
    with pytest.raises(TypeError) as caught:
        ConvTranspose1d(ONES, np.ones(3))
    assert str(caught.value) == "weight is float32 and bias is float64: give both the same dtype"


def test_errors_of_a_stream_leave_it_as_it_was() -> None:
    x = whole_numbers((1, 2, 8))
    layer = ConvTranspose1d(ONES, stride=2)
    assert spec_error(layer.flush) == ("flush() before any chunk: the output of an empty stream has no size; call the layer first")
    pieces = [layer(x[..., :5])]
    assert spec_error(lambda: layer(x[0])) == (
        "x has shape (2, 8): this stream's chunks are (1, 2, frames); call flush() or reset() before another stream"
    )
    assert spec_error(lambda: layer(x[:, :1])) == "x has shape (1, 1, 8): a chunk is (N, 2, frames) or (2, frames)"
    with pytest.raises(TypeError) as caught:
        layer(x.astype(np.float64))
    assert str(caught.value) == "x is float64 and weight is float32: give both the same dtype"
    with pytest.raises(TypeError, match="dtype int64"):
        layer(x.astype(np.int64))
    pieces += [layer(x[..., 5:]), layer.flush()]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=-1), upconv.conv_transpose(x, ONES, stride=2))


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    x = whole_numbers((2, 4))
    layer = ConvTranspose1d(ONES, stride=2)
    first = layer(x)
    good = layer.state_dict()
    assert spec_error(lambda: layer.load_state_dict({"tail": good["tail"]})) == (
        "state has ['tail']: this layer has ['weight'], and of a stream frames, lead and tail"
    )
    assert spec_error(lambda: layer.load_state_dict(good | {"weight": ONES[..., 1:]})) == (
        "weight has shape (2, 3, 3): this layer has (2, 3, 4)"
    )
    assert spec_error(lambda: layer.load_state_dict(good | {"tail": np.zeros((3, 1)), "weight": 0 * ONES})) == (
        "tail has shape (3, 1) after 4 frames: this layer's is (3, 2)"
    )
    with pytest.raises(SpecError):
        layer.load_state_dict(good | {"frames": -1})
    np.testing.assert_array_equal(np.concatenate([first, layer.flush()], -1), upconv.conv_transpose(x, ONES, stride=2))


def test_repr_and_delay() -> None:
    assert repr(ConvTranspose1d(ONES, stride=2)) == "ConvTranspose1d(ConvTranspose1d 2 -> 3, kernel 4, stride 2, no bias)"
    assert [ConvTranspose1d(ONES, stride=2, padding=((0, hi),)).delay for hi in (1, 2, 3, 4)] == [0, 0, 1, 2]


def test_an_empty_stream() -> None:
    layer = ConvTranspose1d(ONES, stride=2)
    assert layer(np.ones((5, 2, 0), np.float32)).shape == (5, 3, 0)
    assert layer.flush().shape == (5, 3, 0)
