"""Gradients of transposed and ordinary convolution of NumPy arrays.

>>> import numpy as np
>>> x, w = np.ones((1, 2, 3), np.float32), np.ones((2, 1, 4), np.float32)
>>> grad_x, grad_weight, grad_bias = conv_transpose_backward(np.ones((1, 1, 6), np.float32), x, w, stride=2, padding=1)
>>> grad_x
array([[[3., 4., 3.],
        [3., 4., 3.]]], dtype=float32)
>>> grad_weight[0], grad_bias
(array([[2., 3., 3., 2.]], dtype=float32), array([6.], dtype=float32))
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upconv import execute
from upconv.functional import _array, _check_sizes, _operands
from upconv.spec import ConvSpec, SpecError

Gradients: TypeAlias = tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]


def _backward(
    spec: ConvSpec, grad_output: NDArray[Any], x: NDArray[Any], weight: NDArray[Any], needs: tuple[bool, bool, bool]
) -> Gradients:
    """The wanted gradients of a checked call, None in place of the others."""
    if x.ndim == spec.rank + 1:
        grad_x, grad_weight, grad_bias = _backward(spec, grad_output[None], x[None], weight, needs)
        return None if grad_x is None else grad_x[0], grad_weight, grad_bias
    x, weight, grad_output = (np.ascontiguousarray(a) for a in (x, weight, grad_output))
    spatial = tuple(range(2, spec.rank + 2))
    return (
        execute.input_gradient(spec, grad_output, weight, x.shape[2:]) if needs[0] else None,
        execute.weight_gradient(spec, x, grad_output) if needs[1] else None,
        grad_output.sum(axis=(0, *spatial)) if needs[2] else None,
    )


def _check_grad_output(spec: ConvSpec, grad_output: ArrayLike, x: NDArray[Any]) -> NDArray[Any]:
    grad = _array("grad_output", grad_output)
    if grad.dtype != x.dtype:
        raise TypeError(f"x is {x.dtype} and grad_output is {grad.dtype}: give both the same dtype")
    expected = (*x.shape[: -spec.rank - 1], spec.out_channels, *spec.output_size(x.shape[-spec.rank :]))
    if grad.shape != expected:
        raise SpecError(
            f"grad_output has shape {grad.shape}: {spec} on x of shape {x.shape} gives {expected}, and the gradient "
            f"has the shape of the output"
        )
    return grad


def conv_transpose_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = None,
    groups: int = 1,
    dilation: Any = 1,
    *,
    padding_mode: str = "zeros",
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Gradients:
    """(grad_x, grad_weight, grad_bias) of `conv_transpose`, for the gradient of its output before any activation.

    >>> x, w = np.zeros((20, 16, 12), np.float32), np.zeros((16, 33, 3), np.float32)
    >>> grads = conv_transpose_backward(np.zeros((20, 33, 25), np.float32), x, w, stride=2)
    >>> [g.shape for g in grads]
    [(20, 16, 12), (16, 33, 3), (33,)]

    The arguments are those of the forward call. `output_padding` may be left out: the size of `grad_output` tells it.
    `needs` says which of the three to compute; the others are None. Raises SpecError (a ValueError) where the shapes do
    not fit, TypeError for a dtype other than float32 and float64 or a mix of the two.
    """
    xa, wa, _, rank = _operands(x, weight, None, None)
    spec = ConvSpec.make(
        transposed=True,
        in_channels=wa.shape[0],
        out_channels=wa.shape[1] * groups if isinstance(groups, int) and groups >= 1 else wa.shape[1],
        kernel_size=wa.shape[2:],
        stride=stride,
        padding=padding,
        output_padding=0 if output_padding is None else output_padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
        rank=rank,
    )
    _check_sizes(spec, xa, wa, None)
    if output_padding is None and np.ndim(grad_output) == xa.ndim:
        spec = spec.with_output_size(xa.shape[-rank:], np.shape(grad_output)[-rank:])
    return _backward(spec, _check_grad_output(spec, grad_output, xa), xa, wa, needs)


def conv_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Gradients:
    """(grad_x, grad_weight, grad_bias) of `conv`, for the gradient of its output before any activation.

    >>> x, w = np.zeros((1, 3, 12, 12), np.float32), np.zeros((8, 3, 3, 3), np.float32)
    >>> grads = conv_backward(np.zeros((1, 8, 6, 6), np.float32), x, w, stride=2, padding=1, needs=(True, False, True))
    >>> grads[0].shape, grads[1], grads[2].shape
    ((1, 3, 12, 12), None, (8,))

    The arguments are those of the forward call, and the errors raised those of `conv_transpose_backward`.
    """
    xa, wa, _, rank = _operands(x, weight, None, None)
    spec = ConvSpec.make(
        transposed=False,
        in_channels=wa.shape[1] * groups if isinstance(groups, int) and groups >= 1 else wa.shape[1],
        out_channels=wa.shape[0],
        kernel_size=wa.shape[2:],
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
        rank=rank,
    )
    _check_sizes(spec, xa, wa, None)
    return _backward(spec, _check_grad_output(spec, grad_output, xa), xa, wa, needs)
