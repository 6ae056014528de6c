"""Hypothesis strategies for layers, and arrays of whole numbers on which float sums are exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from upconv.spec import ConvSpec, SpecError, effective_kernel


@dataclass(frozen=True)
class Problem:
    """A layer, and the shape of an input for it."""

    spec: ConvSpec
    x_shape: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        return self.x_shape[2:]

    def arrays(self, dtype: Any = np.float32, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, weight and bias of small whole numbers: every order of summation gives the same float."""
        rng = np.random.default_rng(seed)
        shapes = (self.x_shape, self.spec.weight_shape, (self.spec.out_channels,))
        x, weight, bias = (rng.integers(-4, 5, shape).astype(dtype) for shape in shapes)
        return x, weight, bias


@st.composite
def problems(
    draw: st.DrawFn,
    transposed: bool | None = None,
    modes: tuple[str, ...] = ("zeros",),
    asymmetric: bool = False,
    max_batch: int = 2,
) -> Problem:
    """Any layer of rank 1 to 3 with an output that is not empty."""
    rank = draw(st.integers(1, 3))
    up = draw(st.booleans()) if transposed is None else transposed
    groups, mode = draw(st.integers(1, 3)), draw(st.sampled_from(modes))
    per_axis = [_axis(draw, up, mode, asymmetric, longest=(9, 5, 3)[rank - 1]) for _ in range(rank)]
    size, kernel, stride, dilation, padding, extra = zip(*per_axis, strict=True)
    spec = ConvSpec.make(
        transposed=up,
        in_channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 3)),
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        output_padding=extra,
        dilation=dilation,
        groups=groups,
        padding_mode=mode,
    )
    channels = spec.in_channels
    return Problem(spec, (draw(st.integers(0, max_batch)), channels, *size))


def _axis(draw: st.DrawFn, up: bool, mode: str, asymmetric: bool, longest: int) -> tuple[Any, ...]:
    """One dimension's size, kernel, stride, dilation, padding and output padding, with something left of the output."""
    kernel, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    size, span = draw(st.integers(1, longest)), effective_kernel(kernel, dilation)
    extra = draw(st.integers(0, max(stride, dilation) - 1)) if up else 0
    # the most that one side may take: half of the full output, and, for reflection, less than the input
    most = min(((size - 1) * stride + span + extra - 1) // 2 if up else 3, size - 1 if mode != "zeros" else 9)
    before = draw(st.integers(0, most))
    after = draw(st.integers(0, most)) if asymmetric else before
    if not up:
        size = max(size, span - before - after)
    return size, kernel, stride, dilation, (before, after), extra


def spec_error(call: Any) -> str:
    """The text of the SpecError that `call` raises."""
    try:
        result = call()
    except SpecError as error:
        return str(error)
    raise AssertionError(f"no SpecError, but {result!r}")
