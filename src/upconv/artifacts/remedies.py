"""What to change in a layer that draws a checkerboard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.artifacts.gains import VISIBLE, Score
from upconv.artifacts.layers import transposed_of, weight_in, weight_of
from upconv.shapes import Geometry, overlap_range
from upconv.spec import ConvSpec, SpecError, times


def blurred(layer: Any, weight: Any = None) -> tuple[ConvSpec, NDArray[Any]]:
    """The layer with a fixed blur folded in: a box as long as the stride, which makes all phase gains equal.

    >>> from upconv import artifacts
    >>> spec = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=3, stride=2, padding=1)
    >>> smooth, w = blurred(spec, [[[1.0, 2.0, 1.0]]])
    >>> print(smooth, w[0, 0])
    ConvTranspose1d 1 -> 1, kernel 4, stride 2, padding ((1, 2),) [0.5 1.5 1.5 0.5]
    >>> print(artifacts.score(smooth, w).verdict)
    clean

    Returns the spec and the weight (in the dtype given; float64 for lists). The output size stays, the kernel grows by
    `stride - 1`, and each output is the mean of `stride` neighbours of the old ones: a running mean over one period of
    the checkerboard removes it from a constant input whatever the weights, for one extra blur. A dilated kernel is
    written out with its zeros. Raises SpecError for a convolution or a weight of another shape.
    """
    spec = transposed_of(layer)
    given = weight_in(layer) if weight is None and not isinstance(layer, ConvSpec) else weight
    dtype = getattr(given, "dtype", None)
    array = weight_of(spec, given)
    for axis, (s, d) in enumerate(zip(spec.stride, spec.dilation, strict=True), start=2):
        array = _smoothed(array, axis, s, d)
    pairs = tuple((lo + (s - 1) // 2, hi + s // 2) for (lo, hi), s in zip(spec.padding, spec.stride, strict=True))
    ones = (1,) * spec.rank
    if any(e >= s for e, s in zip(spec.output_padding, spec.stride, strict=True)):
        raise SpecError(f"{spec}: the blurred layer has dilation 1, which allows no output_padding of a stride or more")
    changed = replace(spec, kernel_size=array.shape[2:], padding=pairs, dilation=ones)
    return changed, array.astype(dtype if isinstance(dtype, np.dtype) else np.float64)


def _smoothed(array: NDArray[np.float64], axis: int, stride: int, dilation: int) -> NDArray[np.float64]:
    """The mean of `stride` copies along the axis, each shifted by one more, of the kernel written out densely."""
    moved = np.moveaxis(array, axis, -1)
    span = dilation * (moved.shape[-1] - 1) + 1
    result = np.zeros((*moved.shape[:-1], span + stride - 1))
    for shift in range(stride):
        result[..., shift : shift + span : dilation] += moved / stride
    return np.moveaxis(result, -1, axis)


def divisible(spec: ConvSpec) -> Geometry:
    """The layer with its kernel raised to a multiple of its stride, and the same output size.

    The added taps are cropped again: by more padding, equal on both sides where output_padding below the stride allows.
    """
    kernel, padding, extra = [], [], []
    for k, s, (lo, hi), e in zip(spec.kernel_size, spec.stride, spec.padding, spec.output_padding, strict=True):
        larger = -(-k // s) * s
        crop = lo + hi - e + larger - k  # padding less output_padding that keeps the size
        add = max(0, -crop)
        add += (crop + add) % 2 if add + 1 < s else 0
        kernel.append(larger)
        extra.append(add)
        padding.append(((crop + add) // 2, crop + add - (crop + add) // 2))
    return Geometry.make(kernel_size=kernel, stride=spec.stride, padding=padding, output_padding=extra, rank=spec.rank)


def advice(spec: ConvSpec, found: Score) -> tuple[str, ...]:
    """What to change, best first; empty where the layer is clean."""
    if np.isnan(found.constant):
        return ("the weights hold NaN or infinity: load a sound checkpoint",)
    if found.constant < VISIBLE:
        return ()
    least, most = overlap_range(spec)
    first = (
        _even_overlap(spec, least, most)
        if least != most
        else ("when training anew, start from artifacts.icnr(spec): every phase then begins the same")
    )
    return (
        first,
        f"or enlarge by {times(spec.stride)} (nearest or bilinear) and use an ordinary convolution of stride 1",
        "or, for these weights as they are, artifacts.blurred(spec, weight): a fixed blur over one period",
    )


def _even_overlap(spec: ConvSpec, least: int, most: int) -> str:
    uneven = f"outputs take {least} to {most} taps"
    if any(d != 1 for d in spec.dilation):
        shape = f"kernel {times(spec.kernel_size)}, stride {times(spec.stride)}, dilation {times(spec.dilation)}"
        return f"{uneven} with {shape}: use dilation 1 and a kernel divisible by the stride"
    shape = f"kernel {times(spec.kernel_size)} is not divisible by stride {times(spec.stride)}"
    return f"{shape}, so {uneven}: use {divisible(spec)}, of the same output size"
