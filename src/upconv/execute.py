"""Binds a plan to memory and threads."""

from __future__ import annotations

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
