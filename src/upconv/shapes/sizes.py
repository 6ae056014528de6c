"""Output sizes, and the output_padding that a wanted size needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from upconv.spec import ConvSpec, per_dimension, required_output_padding


def _rank(*values: Any) -> int:
    """The rank that the arguments speak of: the length of the first that is a sequence, else 1."""
    return next((len(tuple(v)) for v in values if isinstance(v, Iterable) and not isinstance(v, str)), 1)


def layer(transposed: bool, rank: int, **arguments: Any) -> ConvSpec:
    """A one-channel layer, for questions in which channels play no part."""
    return ConvSpec.make(transposed=transposed, in_channels=1, out_channels=1, rank=rank, **arguments)


def conv_transpose_size(
    input_size: Any,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
) -> tuple[int, ...]:
    """Spatial output size of a transposed convolution: `(n - 1)*s - before - after + d*(k - 1) + output_padding + 1`.

    >>> conv_transpose_size((50, 100), (3, 5), (2, 1), (4, 2))
    (93, 100)
    >>> conv_transpose_size(10, 4, stride=2, padding="same")
    (20,)

    Sizes and arguments are ints or tuples, one entry a dimension; `padding` also takes (before, after) pairs, "same"
    and "valid". Raises SpecError for an impossible argument or an empty output.
    """
    rank = _rank(input_size, kernel_size, stride, padding, output_padding, dilation)
    spec = layer(
        True,
        rank,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
    )
    return spec.output_size(per_dimension("input_size", input_size, rank, 1))


def conv_size(input_size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> tuple[int, ...]:
    """Spatial output size of a convolution: `floor((n + before + after - d*(k - 1) - 1) / s) + 1`.

    >>> conv_size((12, 12), 3, stride=2, padding=1)
    (6, 6)

    Raises SpecError for an impossible argument or an empty output.
    """
    rank = _rank(input_size, kernel_size, stride, padding, dilation)
    spec = layer(False, rank, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    return spec.output_size(per_dimension("input_size", input_size, rank, 1))


def output_padding_for(
    input_size: Any, output_size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> tuple[int, ...]:
    """The output_padding with which a transposed convolution makes `output_size` of `input_size`.

    >>> output_padding_for((6, 6), (12, 12), 3, stride=2, padding=1)
    (1, 1)

    Raises SpecError, naming the reachable sizes, where there is none.
    """
    rank = _rank(input_size, output_size, kernel_size, stride, padding, dilation)
    spec = layer(True, rank, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    return required_output_padding(
        per_dimension("input_size", input_size, rank, 1),
        per_dimension("output_size", output_size, rank, 1),
        spec.kernel_size,
        spec.stride,
        spec.padding,
        spec.dilation,
    )
