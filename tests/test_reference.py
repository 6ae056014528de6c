"""The oracle itself: against the definition in plain loops, and against torch. Whole numbers, so equality is exact."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawing import Problem, problems
from upconv.kernels import reference
from upconv.spec import ACTIVATIONS, ConvSpec


def run(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return reference.forward(problem.spec, x, weight, bias, problem.spec.output_size(problem.size))


def links(problem: Problem) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """(output, input, kernel index) of every product in the sum, from `large + before = stride*small + dilation*k`."""
    spec = problem.spec
    out = spec.output_size(problem.size)
    small, large = (problem.size, out) if spec.transposed else (out, problem.size)
    per_axis = []
    for d, (lo, _) in enumerate(spec.padding):
        axis = []
        for i, k in product(range(small[d]), range(spec.kernel_size[d])):
            o = spec.stride[d] * i + spec.dilation[d] * k - lo
            if 0 <= o < large[d]:
                axis.append((o, i, k) if spec.transposed else (i, o, k))
        per_axis.append(axis)
    return [tuple(zip(*combination, strict=True)) for combination in product(*per_axis)]  # type: ignore[misc]


@given(problems(asymmetric=True, max_batch=1))
@settings(max_examples=40)
def test_equals_the_definition(problem: Problem) -> None:
    x, weight, bias = problem.arrays()
    spec, g = problem.spec, problem.spec.groups
    wg = weight.reshape(g, -1, *weight.shape[1:])
    xg = x.reshape(x.shape[0], g, spec.in_channels // g, *problem.size)
    y = np.zeros((x.shape[0], g, spec.out_channels // g, *spec.output_size(problem.size)))
    for o, i, k in links(problem):
        tap = wg[(..., *k)] if spec.transposed else wg[(..., *k)].transpose(0, 2, 1)
        y[(..., *o)] += np.einsum("ngc,gcm->ngm", xg[(..., *i)], tap)
    expected = y.reshape(x.shape[0], spec.out_channels, *y.shape[3:]) + bias.reshape(-1, *(1,) * spec.rank)
    np.testing.assert_array_equal(run(problem, x, weight, bias), expected.astype(np.float32))


@given(problems(asymmetric=True, max_batch=1), st.sampled_from([math.nan, math.inf]), st.data())
@settings(max_examples=40)
def test_what_is_not_finite_goes_where_the_definition_sends_it(problem: Problem, value: float, data: Any) -> None:
    """One such input reaches exactly the outputs that a tap links it to: no zero of padding or stride touches it."""
    spec = problem.spec
    x, weight = np.ones((1, *problem.x_shape[1:]), np.float32), np.ones(spec.weight_shape, np.float32)
    site = tuple(data.draw(st.integers(0, n - 1)) for n in problem.size)
    x[(0, 0, *site)] = value
    y = run(problem, x, weight, None)
    expected = np.zeros(y.shape, bool)
    for o, i, _ in links(problem):
        if i == site:
            expected[(0, slice(0, spec.out_channels // spec.groups), *o)] = True
    np.testing.assert_array_equal(~np.isfinite(y), expected)
    if value == math.inf:
        assert not np.isnan(y).any()


@given(problems(asymmetric=True), st.sampled_from([np.float32, np.float64]))
def test_equals_torch(problem: Problem, dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    spec = problem.spec
    arrays = problem.arrays(dtype)
    x, weight, bias = map(torch.from_numpy, arrays)
    shared = {"stride": spec.stride, "groups": spec.groups, "dilation": spec.dilation}
    sides = [side for pair in reversed(spec.padding) for side in pair]
    if spec.transposed:
        # torch crops both sides alike and refuses some output_padding; so: nothing cropped, more at the end, then cut
        call = getattr(functional, f"conv_transpose{spec.rank}d")
        full = functional.pad(call(x, weight, bias, **shared), [n for e in reversed(spec.output_padding) for n in (0, e)])
        out = spec.output_size(problem.size)
        cut = tuple(slice(lo, lo + n) for (lo, _), n in zip(spec.padding, out, strict=True))
        theirs = full[(..., *cut)].numpy().copy()
        for d, (extra, (_, hi)) in enumerate(zip(spec.output_padding, spec.padding, strict=True)):
            filled = max(extra - hi, 0)  # output_padding beyond the full sum holds only the bias
            if filled:
                tail = (..., slice(out[d] - filled, out[d]), *(slice(None),) * (spec.rank - d - 1))
                theirs[tail] = arrays[2].reshape(-1, *(1,) * spec.rank)
    else:
        theirs = getattr(functional, f"conv{spec.rank}d")(functional.pad(x, sides), weight, bias, **shared).numpy()
    y = run(problem, *arrays)
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(y, theirs)


@given(problems(transposed=True))
def test_equals_torch_with_its_own_padding(problem: Problem) -> None:
    torch = pytest.importorskip("torch")
    spec, arrays = problem.spec, problem.arrays()
    theirs = getattr(torch.nn.functional, f"conv_transpose{spec.rank}d")(
        *map(torch.from_numpy, arrays),
        stride=spec.stride,
        padding=[lo for lo, _ in spec.padding],
        output_padding=spec.output_padding,
        groups=spec.groups,
        dilation=spec.dilation,
    )
    np.testing.assert_array_equal(run(problem, *arrays), theirs.numpy())


@given(problems(transposed=False, modes=("circular", "reflect", "replicate"), asymmetric=True))
def test_padding_modes_equal_torch_s(problem: Problem) -> None:
    torch = pytest.importorskip("torch")
    spec, arrays = problem.spec, problem.arrays()
    x, weight, bias = map(torch.from_numpy, arrays)
    if x.shape[0] == 0:
        x = torch.zeros((1, *x.shape[1:]))
    sides = [side for pair in reversed(spec.padding) for side in pair]
    padded = torch.nn.functional.pad(x, sides, mode=spec.padding_mode)
    theirs = getattr(torch.nn.functional, f"conv{spec.rank}d")(
        padded, weight, bias, stride=spec.stride, dilation=spec.dilation, groups=spec.groups
    )
    np.testing.assert_array_equal(run(problem, x.numpy(), weight.numpy(), bias.numpy()), theirs.numpy())


@given(problems(modes=("zeros", "circular", "reflect", "replicate"), asymmetric=True, max_batch=1))
def test_a_transposed_layer_is_the_adjoint_of_its_convolution(problem: Problem) -> None:
    """<conv_transpose(x), y> = <x, conv(y)>, with the same weight, for every padding mode."""
    spec = problem.spec
    if not spec.transposed or any(spec.output_padding):
        spec = ConvSpec.make(
            transposed=True,
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            kernel_size=spec.kernel_size,
            stride=spec.stride,
            padding=(0,) * spec.rank,
            dilation=spec.dilation,
            groups=spec.groups,
        )
    problem = Problem(spec, problem.x_shape)
    x, weight, _ = problem.arrays(np.float64)
    out = spec.output_size(problem.size)
    y = np.random.default_rng(1).integers(-4, 5, (x.shape[0], spec.out_channels, *out)).astype(np.float64)
    conv = ConvSpec.make(
        transposed=False,
        in_channels=spec.out_channels,
        out_channels=spec.in_channels,
        kernel_size=spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
        padding_mode=spec.padding_mode,
    )
    back = reference.forward(conv, y, weight, None, problem.size)
    assert np.vdot(run(problem, x, weight, None), y) == np.vdot(x, back)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_equal_torch_s(name: str, dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    x = np.concatenate([np.linspace(-30, 30, 241), [-1e4, 1e4, -0.0, np.inf, -np.inf, np.nan]]).astype(dtype)
    activation = None if ACTIVATIONS[name] is None else (name, 0.3)
    spec = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=1, activation=activation or name, rank=1)
    y = reference.forward(spec, x[None, None], np.ones((1, 1, 1), dtype), None, (x.size,))
    function = getattr(torch.nn.functional, name)
    theirs = function(torch.from_numpy(x), *([0.3] if activation else [])).numpy()
    # torch's vectorised silu gives NaN at -inf where the limit is 0: compare the finite inputs, and what is NaN
    finite = np.isfinite(x)
    np.testing.assert_allclose(y[0, 0, finite], theirs[finite], rtol=20 * np.finfo(dtype).eps, atol=1e-37)
    assert np.isnan(y[0, 0, -1])


def test_inputs_are_left_alone() -> None:
    spec = ConvSpec.make(transposed=True, in_channels=2, out_channels=2, kernel_size=1, activation="relu", rank=1)
    x, weight = np.full((1, 2, 3), -1.0), np.eye(2)[:, :, None]
    for array in (x, weight):
        array.flags.writeable = False
    assert (reference.forward(spec, x, weight, np.zeros(2), (3,)) == 0).all()
