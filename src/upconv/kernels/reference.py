"""The reference kernel: the sum of section "phases" in a few NumPy lines, for every problem.

It is the oracle of the tests, and what runs where no machine code can be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.shapes.dual import dual
from upconv.spec import Activation, ConvSpec

_PAD_MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


def _last(index: Sequence[Any]) -> Any:
    """The index of the last dimensions, all of the ones before."""
    return (..., *index)


def activate(y: NDArray, activation: Activation | None) -> NDArray:
    """The activation, in place where it can be."""
    if activation is None:
        return y
    a = y.dtype.type(activation.parameter)
    with np.errstate(over="ignore", invalid="ignore"):
        match activation.name:
            case "relu":
                return np.maximum(y, 0, out=y)
            case "leaky_relu":
                return np.where(y > 0, y, a * y)
            case "elu":
                return np.where(y > 0, y, a * np.expm1(np.minimum(y, 0)))
            case "sigmoid":
                return 1 / (1 + np.exp(-y))
            case "tanh":
                return np.tanh(y, out=y)
            case "silu":
                return y / (1 + np.exp(-y))
    raise AssertionError(activation)


def _source_index(size: int, before: int, after: int, mode: str) -> NDArray[np.intp]:
    """For each position of a padded axis, the input position that it repeats."""
    return np.pad(np.arange(size), (before, after), mode=_PAD_MODES[mode])  # type: ignore[no-any-return, call-overload]


def pad(x: NDArray, padding: Sequence[tuple[int, int]], mode: str) -> NDArray:
    """(N, C, *spatial) padded as torch's `padding_mode` says."""
    return np.pad(x, ((0, 0), (0, 0), *padding), mode=_PAD_MODES[mode])  # type: ignore[no-any-return, call-overload]


def unpad_adjoint(full: NDArray, padding: Sequence[tuple[int, int]], mode: str) -> NDArray:
    """The adjoint of `pad`: crops, and adds each cropped element to the one that `pad` would have repeated there."""
    for axis, (lo, hi) in enumerate(padding, start=2):
        size = full.shape[axis] - lo - hi
        if mode == "zeros" or (lo, hi) == (0, 0):
            full = full[(*(slice(None),) * axis, slice(lo, lo + size))]
            continue
        folded = np.zeros((*full.shape[:axis], size, *full.shape[axis + 1 :]), full.dtype)
        where: Any = (*(slice(None),) * axis, _source_index(size, lo, hi, mode))
        np.add.at(folded, where, full)
        full = folded
    return full


def forward(spec: ConvSpec, x: NDArray, weight: NDArray, bias: NDArray | None, output_size: Sequence[int]) -> NDArray:
    """The layer's output, (N, out_channels, *output_size), of a batched x of its own dtype."""
    y = (_transposed if spec.transposed else _conv)(spec, x, weight, tuple(output_size))
    if bias is not None:
        y = y + bias.reshape(-1, *(1,) * spec.rank)
    return np.ascontiguousarray(activate(y, spec.activation))


def _products(left: NDArray, right: NDArray) -> NDArray:
    """(n, g, m, ...): the matrices of each group, (g, m, c), times the columns of each image, (n, g, c, ...)."""
    n, g, c, *positions = right.shape
    with np.errstate(over="ignore", invalid="ignore"):
        return np.matmul(left, right.reshape(n, g, c, prod(positions))).reshape(n, g, left.shape[1], *positions)


def _transposed(spec: ConvSpec, x: NDArray, weight: NDArray, output_size: tuple[int, ...]) -> NDArray:
    n, g = x.shape[0], spec.groups
    xg = x.reshape(n, g, spec.in_channels // g, *x.shape[2:])
    wg = weight.reshape(g, spec.in_channels // g, *weight.shape[1:])
    full_size = [o + lo + hi for o, (lo, hi) in zip(output_size, spec.padding, strict=True)]
    full = np.zeros((n, g, spec.out_channels // g, *full_size), x.dtype)
    for tap in product(*(range(k) for k in spec.kernel_size)):
        where = tuple(
            slice(d * k, d * k + s * (i - 1) + 1, s)
            for k, d, s, i in zip(tap, spec.dilation, spec.stride, x.shape[2:], strict=True)
        )
        window = full[_last(where)]
        term = _products(wg[_last(tap)].swapaxes(1, 2), xg)
        window += term[_last([slice(0, size) for size in window.shape[3:]])]
    full = full.reshape(n, spec.out_channels, *full_size)
    return unpad_adjoint(full, spec.padding, spec.padding_mode)


def _conv(spec: ConvSpec, x: NDArray, weight: NDArray, output_size: tuple[int, ...]) -> NDArray:
    n, g = x.shape[0], spec.groups
    x = pad(x, spec.padding, spec.padding_mode)
    xg = x.reshape(n, g, spec.in_channels // g, *x.shape[2:])
    wg = weight.reshape(g, spec.out_channels // g, *weight.shape[1:])
    y = np.zeros((n, g, spec.out_channels // g, *output_size), x.dtype)
    for tap in product(*(range(k) for k in spec.kernel_size)):
        where = tuple(
            slice(d * k, d * k + s * (o - 1) + 1, s)
            for k, d, s, o in zip(tap, spec.dilation, spec.stride, output_size, strict=True)
        )
        y += _products(wg[_last(tap)], xg[_last(where)])
    return y.reshape(n, spec.out_channels, *output_size)


def input_gradient(spec: ConvSpec, grad_output: NDArray, weight: NDArray, input_size: Sequence[int]) -> NDArray:
    """The gradient for x, (N, in_channels, *input_size), of grad_output (taken before the activation)."""
    other = dual(spec, input_size)
    grad_x = forward(other, grad_output, weight, None, other.output_size(grad_output.shape[2:]))
    return np.ascontiguousarray(grad_x[_last([slice(0, n) for n in input_size])])


def weight_gradient(spec: ConvSpec, x: NDArray, grad_output: NDArray) -> NDArray:
    """The gradient for the weight, in its shape: the same triples (x, y, tap), summed over batch and positions."""
    if spec.transposed:  # the dual convolution has this weight, reads grad_output and is answered by x
        return weight_gradient(dual(spec, x.shape[2:]), grad_output, x)
    n, g = x.shape[0], spec.groups
    xg = pad(x, spec.padding, spec.padding_mode)
    c, m, count = spec.in_channels // g, spec.out_channels // g, prod(grad_output.shape[2:]) * n
    xg = np.moveaxis(xg.reshape(n, g, c, *xg.shape[2:]), 0, -1)
    yg = np.moveaxis(grad_output, 0, -1).reshape(g, m, count)
    grad = np.zeros((g, m, c, *spec.kernel_size), x.dtype)
    for tap in product(*(range(k) for k in spec.kernel_size)):
        where = tuple(
            slice(d * k, d * k + s * (o - 1) + 1, s)
            for k, d, s, o in zip(tap, spec.dilation, spec.stride, grad_output.shape[2:], strict=True)
        )
        seen = xg[_last((*where, slice(None)))].reshape(g, c, count)
        with np.errstate(over="ignore", invalid="ignore"):
            grad[_last(tap)] = np.matmul(yg, seen.swapaxes(1, 2))
    return grad.reshape(spec.weight_shape)
