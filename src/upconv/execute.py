"""Binds a plan to memory and threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from upconv.kernels import reference
from upconv.spec import ConvSpec


def forward(
    spec: ConvSpec,
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The layer's output for a batched x, into `out` where it is given."""
    y = reference.forward(spec, x, weight, bias, spec.output_size(x.shape[2:]))
    if out is None:
        return y
    out[...] = y
    return out


def input_gradient(
    spec: ConvSpec, grad_output: NDArray[Any], weight: NDArray[Any], input_size: Sequence[int]
) -> NDArray[Any]:
    """The gradient for a batched x of spatial size `input_size`; grad_output is taken before the activation."""
    return reference.input_gradient(spec, grad_output, weight, input_size)


def weight_gradient(spec: ConvSpec, x: NDArray[Any], grad_output: NDArray[Any]) -> NDArray[Any]:
    """The gradient for the weight, in the weight's shape."""
    return reference.weight_gradient(spec, x, grad_output)
