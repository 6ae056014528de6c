"""Both gradients: exact on integers against the adjoint identity, and equal to torch's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upconv import execute
from upconv.gradients import conv_backward, conv_transpose_backward
from upconv.kernels import reference
from upconv.shapes.dual import dual
from upconv.spec import ConvSpec, SpecError, effective_kernel

MODES = ("zeros", "circular", "reflect", "replicate")


@st.composite
def layers(draw: st.DrawFn, modes: tuple[str, ...] = MODES) -> tuple[ConvSpec, tuple[int, ...]]:
    """A small layer of any rank, direction and grouping with an input size that leaves some output."""
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    mode = draw(st.sampled_from(modes))
    transposed = draw(st.booleans())
    dims = []
    for _ in range(rank):
        k, s, d = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3 if rank == 1 else 2))
        n = draw(st.integers(1, 5 if rank == 1 else 3))
        lo, hi = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        extra = draw(st.integers(0, max(s, d) - 1)) if transposed else 0
        if transposed:
            room = (n - 1) * s + effective_kernel(k, d) + extra - 1
            lo, hi = min(lo, room), min(hi, max(room - lo, 0))
        else:
            n = max(n, effective_kernel(k, d) - lo - hi)
        dims.append((k, s, d, n, (lo, hi), extra))
    kernel, stride, dilation, size, padding, extra_padding = zip(*dims, strict=True)
    spec = ConvSpec.make(
        transposed=transposed,
        in_channels=groups * draw(st.integers(1, 2)),
        out_channels=groups * draw(st.integers(1, 3)),
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        output_padding=extra_padding,
        dilation=dilation,
        groups=groups,
        padding_mode=mode,
    )
    return spec, size


def whole_numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float32)


@settings(max_examples=120, deadline=None)
@given(layers())
def test_gradients_are_the_adjoints_exactly(case: tuple[ConvSpec, tuple[int, ...]]) -> None:
    spec, size = case
    rng = np.random.default_rng(0)
    x = whole_numbers(rng, (2, spec.in_channels, *size))
    w = whole_numbers(rng, spec.weight_shape)
    y = execute.forward(spec, x, w, None)
    g = whole_numbers(rng, y.shape)
    along = np.vdot(y, g)
    grad_x = execute.input_gradient(spec, g, w, size)
    grad_w = execute.weight_gradient(spec, x, g)
    assert grad_x.shape == x.shape
    assert grad_w.shape == w.shape
    assert np.vdot(x, grad_x) == along
    assert np.vdot(w, grad_w) == along


@settings(max_examples=60, deadline=None)
@given(layers())
def test_the_dual_of_the_dual_is_the_layer(case: tuple[ConvSpec, tuple[int, ...]]) -> None:
    spec, size = case
    back = dual(dual(spec, size), spec.output_size(size))
    assert replace(back, output_padding=spec.output_padding) == spec
    if all(e < s for e, s in zip(spec.output_padding, spec.stride, strict=True)):
        assert back == spec


@settings(max_examples=60, deadline=None)
@given(layers(modes=("zeros",)))
def test_equal_to_torch(case: tuple[ConvSpec, tuple[int, ...]]) -> None:
    torch = pytest.importorskip("torch")
    spec, size = case
    spec = replace(spec, padding=tuple((lo, lo) for lo, _ in spec.padding))
    try:
        spec.output_size(size)
    except SpecError:
        return
    rng = np.random.default_rng(1)
    x = torch.tensor(whole_numbers(rng, (2, spec.in_channels, *size)), requires_grad=True)
    w = torch.tensor(whole_numbers(rng, spec.weight_shape), requires_grad=True)
    b = torch.zeros(spec.out_channels, requires_grad=True)
    pads = tuple(lo for lo, _ in spec.padding)
    name = f"conv_transpose{spec.rank}d" if spec.transposed else f"conv{spec.rank}d"
    extra = {"output_padding": spec.output_padding} if spec.transposed else {}
    y = getattr(torch.nn.functional, name)(
        x, w, b, stride=spec.stride, padding=pads, dilation=spec.dilation, groups=spec.groups, **extra
    )
    g = torch.tensor(whole_numbers(rng, tuple(y.shape)))
    expected = torch.autograd.grad(y, (x, w, b), g)
    backward = conv_transpose_backward if spec.transposed else conv_backward
    ours = backward(
        g.numpy(),
        x.detach().numpy(),
        w.detach().numpy(),
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
    )
    for a, e in zip(ours, expected, strict=True):
        assert a is not None
        np.testing.assert_array_equal(a, e.numpy())


def test_unbatched_float64_and_only_what_is_needed() -> None:
    rng = np.random.default_rng(2)
    x, w, g = rng.standard_normal((3, 5)), rng.standard_normal((3, 2, 4)), rng.standard_normal((2, 10))
    grad_x, grad_w, grad_b = conv_transpose_backward(g, x, w, stride=2, padding=1)
    assert grad_x is not None
    assert grad_w is not None
    assert grad_b is not None
    assert (grad_x.shape, grad_w.shape, grad_b.shape) == (x.shape, w.shape, (2,))
    assert grad_x.dtype == np.float64
    batched = conv_transpose_backward(g[None], x[None], w, stride=2, padding=1, needs=(True, False, False))
    assert batched[0] is not None
    np.testing.assert_array_equal(batched[0][0], grad_x)
    assert batched[1:] == (None, None)


def test_strided_and_read_only_arrays_are_taken() -> None:
    rng = np.random.default_rng(3)
    x, w = whole_numbers(rng, (2, 6, 3)).transpose(0, 2, 1), whole_numbers(rng, (4, 3, 3))
    g = whole_numbers(rng, (2, 4, 12))[..., ::2]
    for a in (x, w, g):
        a.flags.writeable = False
    ours = conv_backward(g, x, w, padding=1)
    copies = conv_backward(g.copy(), x.copy(), w.copy(), padding=1)
    for a, b in zip(ours, copies, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_position_in_or_out(rank: int, stride: int, transposed: bool) -> None:
    """Every tap of the weight has an x of its own, though a single position needs no neighbours."""
    spec = ConvSpec.make(
        transposed=transposed, in_channels=2, out_channels=3, kernel_size=(3,) * rank, stride=stride, padding=(0,) * rank
    )
    rng = np.random.default_rng(rank)
    small, large = (2, 2 if transposed else 3, *(1,) * rank), (2, 3 if transposed else 2, *(3,) * rank)
    x, g = (whole_numbers(rng, shape) for shape in ((small, large) if transposed else (large, small)))
    np.testing.assert_array_equal(execute.weight_gradient(spec, x, g), reference.weight_gradient(spec, x, g))


def test_empty_batch_has_zero_weight_gradient() -> None:
    x, w = np.zeros((0, 2, 4), np.float32), np.zeros((2, 3, 3), np.float32)
    grad_x, grad_w, grad_b = conv_transpose_backward(np.zeros((0, 3, 6), np.float32), x, w)
    assert grad_x is not None
    assert grad_x.shape == (0, 2, 4)
    np.testing.assert_array_equal(grad_w, np.zeros_like(w))
    np.testing.assert_array_equal(grad_b, np.zeros(3, np.float32))


def test_errors_teach() -> None:
    x, w = np.zeros((1, 2, 4), np.float32), np.zeros((2, 3, 3), np.float32)
    with pytest.raises(SpecError) as error:
        conv_transpose_backward(np.zeros((1, 4, 6), np.float32), x, w)
    assert str(error.value) == (
        "grad_output has shape (1, 4, 6): ConvTranspose1d 2 -> 3, kernel 3 on x of shape (1, 2, 4) gives (1, 3, 6), "
        "and the gradient has the shape of the output"
    )
    with pytest.raises(SpecError) as error:
        conv_transpose_backward(np.zeros((1, 3, 9), np.float32), x, w)
    assert str(error.value) == (
        "output_size (9,) is not reachable: kernel 3, stride 1, padding 0 on input (4,) gives only (6,); "
        "use output_padding (0,) for (6,), or another kernel or padding for (9,)"
    )
    with pytest.raises(TypeError) as type_error:
        conv_backward(np.zeros((1, 2, 4)), x, np.zeros((2, 2, 1), np.float32))
    assert str(type_error.value) == "x is float32 and grad_output is float64: give both the same dtype"
