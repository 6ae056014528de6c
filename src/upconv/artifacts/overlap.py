"""How many taps make each output."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv import shapes
from upconv.artifacts.layers import spec_of


def overlap(layer: Any, input_size: Any = None) -> NDArray[np.int64]:
    """How many taps make each output position, as an array of the output's spatial shape.

    >>> from upconv import ConvSpec
    >>> spec = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=3, stride=2)
    >>> overlap(spec, 4)
    array([1, 1, 2, 1, 2, 1, 2, 1, 1])
    >>> overlap(spec)
    array([2, 1])

    `layer` is a ConvSpec, or a layer of upconv.nn or torch.nn. Without an `input_size`: one period of the pattern far
    from the borders, an entry a phase, of shape `stride` (ones for a convolution's single phase times its taps). The map
    is a product over the dimensions: an unevenness of 2 in one dimension is one of 4 in two. Source: Odena, Dumoulin and
    Olah, "Deconvolution and Checkerboard Artifacts", Distill, 2016. Raises SpecError where the layer has no output.
    """
    spec = spec_of(layer)
    if input_size is not None:
        rows = shapes.taps_per_output(spec, input_size)
        return reduce(np.multiply.outer, (np.array(row, np.int64) for row in rows))  # type: ignore[no-any-return]
    found = shapes.phases(spec.kernel_size, spec.stride, spec.padding, spec.dilation, transposed=spec.transposed)
    return np.array([len(phase.taps) for phase in found], np.int64).reshape(spec.stride if spec.transposed else 1)
