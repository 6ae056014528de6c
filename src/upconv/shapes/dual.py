"""The layer on the other side of the adjoint: it carries a layer's output gradient back to its input."""

from __future__ import annotations

from collections.abc import Sequence

from upconv.spec import ConvSpec, effective_kernel


def dual(spec: ConvSpec, input_size: Sequence[int]) -> ConvSpec:
    """The input gradient of `spec` on a spatial `input_size`, itself a layer with the very same weight.

    >>> layer = ConvSpec.make(
    ...     transposed=False, in_channels=16, out_channels=32, kernel_size=3, stride=2, padding=1, rank=2
    ... )
    >>> print(dual(layer, (12, 12)))
    ConvTranspose2d 32 -> 16, kernel 3x3, stride 2x2, padding 1x1, output_padding 1x1

    Forward is `full[s*i + d*k] += x[i] * w[k]` for one and `y[i] = sum full[s*i + d*k] * w[k]` for the other, so the
    taps are the same and only the side that is summed changes. A convolution's dual gets the output_padding that
    restores the columns its stride skipped. A transposed layer whose output_padding reaches its stride (possible where
    the dilation is larger) has a dual whose output is longer than `input_size` by `output_padding // stride`: the
    caller keeps the first `input_size` positions.
    """
    extra = (0,) * spec.rank
    if not spec.transposed:
        extra = tuple(
            (n + lo + hi - effective_kernel(k, d)) % s
            for n, (lo, hi), k, d, s in zip(input_size, spec.padding, spec.kernel_size, spec.dilation, spec.stride, strict=True)
        )
    return ConvSpec(
        transposed=not spec.transposed,
        in_channels=spec.out_channels,
        out_channels=spec.in_channels,
        kernel_size=spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        output_padding=extra,
        dilation=spec.dilation,
        groups=spec.groups,
        padding_mode=spec.padding_mode,
    )
