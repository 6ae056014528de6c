"""The layer that undoes another layer's size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from upconv.shapes.geometry import Geometry
from upconv.shapes.sizes import _rank, layer
from upconv.spec import ConvSpec, SpecError, effective_kernel, per_dimension, times


def inverse(
    input_size: Any,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    transposed: bool = False,
    output_padding: Any = 0,
) -> Geometry:
    """The transposed layer that takes a convolution's output back to `input_size` exactly.

    >>> up = inverse((13, 12), kernel_size=3, stride=2, padding=1)
    >>> print(up)
    ConvTranspose2d(kernel_size=3, stride=2, padding=1, output_padding=(0, 1))
    >>> up.output_size((7, 6))
    (13, 12)

    The arguments describe the convolution. With `transposed=True` they describe a transposed layer that reads
    `input_size`, and the convolution that takes its output back is returned.

    A convolution of an input of length n drops the last `(n + before + after - d*(k - 1) - 1) mod s` positions that its
    stride does not reach: that remainder is the output_padding, so it is always smaller than the stride. The way back
    from a transposed layer keeps its arguments, unless its output_padding reaches a whole stride (which a dilation
    larger than the stride allows): then that much less padding, taken off after the data first.

    Raises SpecError where the first layer has no output on `input_size`, or where no convolution with this kernel,
    stride and dilation can lead back.
    """
    rank = _rank(input_size, kernel_size, stride, padding, output_padding, dilation)
    given = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    if transposed:
        given["output_padding"] = output_padding
    elif output_padding != 0:
        raise SpecError(f"output_padding {output_padding} belongs to transposed layers: add transposed=True, or leave it out")
    there = layer(transposed, rank, **given)
    sizes = per_dimension("input_size", input_size, rank, 1)
    between = there.output_size(sizes)
    back = _conv_back(there, sizes) if transposed else _transposed_back(there, sizes)
    assert back.output_size(between) == sizes, (there, sizes)
    return Geometry.of(back)


def _transposed_back(conv: ConvSpec, sizes: tuple[int, ...]) -> ConvSpec:
    left = tuple(
        (n + lo + hi - effective_kernel(k, d)) % s
        for n, k, s, (lo, hi), d in zip(sizes, conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    )
    return replace(conv, transposed=True, output_padding=left)


def _conv_back(up: ConvSpec, sizes: tuple[int, ...]) -> ConvSpec:
    padding = []
    for d, ((lo, hi), extra, s) in enumerate(zip(up.padding, up.output_padding, up.stride, strict=True)):
        surplus = max(0, extra - s + 1)  # so much of the padding must go, or the convolution makes too many outputs
        if surplus > lo + hi:
            raise SpecError(
                f"no convolution with kernel {times(up.kernel_size)}, stride {times(up.stride)} and dilation "
                f"{times(up.dilation)} takes {times(up.output_size(sizes))} back to {times(sizes)}: "
                f"output_padding[{d}] is {extra}; use at most {s - 1 + lo + hi}, or more padding"
            )
        off = min(surplus, hi)
        padding.append((lo - (surplus - off), hi - off))
    return replace(up, transposed=False, output_padding=(0,) * up.rank, padding=tuple(padding))
