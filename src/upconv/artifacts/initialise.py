"""First weights for transposed layers: without a checkerboard, and of the right variance."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from upconv import shapes
from upconv.artifacts.layers import spec_of, transposed_of
from upconv.spec import SpecError, times

Seed = int | np.random.Generator | None


def fans(layer: Any) -> tuple[float, float]:
    """(fan_in, fan_out): how many products make an output, and how many outputs an input feeds, far from the borders.

    >>> from upconv import ConvSpec
    >>> spec = ConvSpec.make(transposed=True, in_channels=64, out_channels=32, kernel_size=(4, 4), stride=2)
    >>> fans(spec)
    (256.0, 512.0)

    A transposed layer's outputs share its taps among `prod(stride)` phases: fan_in is `in_channels / groups *
    prod(kernel) / prod(stride)` (their mean, where the kernel is not divisible by the stride), fan_out `out_channels /
    groups * prod(kernel)`. torch.nn.init reads dimension 1 of the weight as the inputs, which for a transposed layer
    counts the outputs, and knows no stride (pytorch#7865): here 32 * 16 = 512 for fan_in, twice the truth. A convolution's
    fans are the same with the directions swapped. The idea of the fan: He et al., "Delving Deep into Rectifiers", 2015.
    """
    spec = spec_of(layer)
    many, stride = prod(spec.kernel_size), prod(spec.stride)
    into, out = spec.in_channels // spec.groups * many, spec.out_channels // spec.groups * many
    return (into / stride, float(out)) if spec.transposed else (float(into), out / stride)


def kaiming(
    layer: Any,
    seed: Seed = None,
    *,
    gain: float = sqrt(2),
    mode: str = "fan_in",
    distribution: str = "normal",
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Random weights of variance `gain**2 / fan`, with the fan that transposed layers have.

    >>> from upconv import ConvSpec
    >>> spec = ConvSpec.make(transposed=True, in_channels=64, out_channels=32, kernel_size=(4, 4), stride=2)
    >>> print(kaiming(spec, seed=0).std().round(3))
    0.088

    `gain` is sqrt(2) for ReLU and 1 for a linear layer. `mode` "fan_in" keeps the activations' variance, "fan_out" the
    gradients'. `distribution` is "normal" or "uniform". Raises SpecError for another mode or distribution. Source: He et
    al., "Delving Deep into Rectifiers", 2015; the fan is that of `fans`.
    """
    spec = spec_of(layer)
    if mode not in ("fan_in", "fan_out"):
        raise SpecError(f"mode is {mode!r}: use 'fan_in' or 'fan_out'")
    return _draw(spec.weight_shape, gain / sqrt(fans(spec)[mode == "fan_out"]), distribution, seed, dtype)


def _draw(shape: tuple[int, ...], std: float, distribution: str, seed: Seed, dtype: DTypeLike) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if distribution == "normal":
        return rng.normal(0, std, shape).astype(dtype)
    if distribution == "uniform":
        return rng.uniform(-sqrt(3) * std, sqrt(3) * std, shape).astype(dtype)
    raise SpecError(f"distribution is {distribution!r}: use 'normal' or 'uniform'")


def icnr(
    layer: Any,
    seed: Seed = None,
    *,
    gain: float = sqrt(2),
    distribution: str = "normal",
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Random weights with which every phase starts the same: no checkerboard on any input.

    >>> from upconv import ConvSpec
    >>> spec = ConvSpec.make(transposed=True, in_channels=64, out_channels=32, kernel_size=(4, 4), stride=2, padding=1)
    >>> w = icnr(spec, seed=0)
    >>> bool((w[:, :, 0::2, 0::2] == w[:, :, 1::2, 1::2]).all())
    True

    A small kernel of `kernel / stride` is drawn as `kaiming` draws, and each of its taps is repeated `stride` times, so
    the layer starts as a small convolution followed by a nearest-neighbour enlargement. The kernel must be a multiple
    of the stride in every dimension, and the dilation 1; SpecError says which is not. Source: Aitken et al.,
    "Checkerboard artifact free sub-pixel convolution", 2017, who do this for a convolution followed by a pixel shuffle.
    """
    spec = transposed_of(layer)
    if any(k % s for k, s in zip(spec.kernel_size, spec.stride, strict=True)):
        above = tuple(-(-k // s) * s for k, s in zip(spec.kernel_size, spec.stride, strict=True))
        raise SpecError(
            f"kernel {times(spec.kernel_size)} is not a multiple of stride {times(spec.stride)}: icnr gives every phase "
            f"the same taps; use kernel {times(above)}"
        )
    if any(d != 1 for d in spec.dilation):
        raise SpecError(f"dilation {times(spec.dilation)}: icnr needs dilation 1, so that a phase's taps lie side by side")
    small = [k // s for k, s in zip(spec.kernel_size, spec.stride, strict=True)]
    std = gain / sqrt(fans(spec)[0])
    weight = _draw((*spec.weight_shape[:2], *small), std, distribution, seed, dtype)
    for axis, s in enumerate(spec.stride, start=2):
        weight = np.repeat(weight, s, axis)
    return weight


def bilinear(layer: Any, mix: ArrayLike | None = None, *, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Weights that enlarge by linear interpolation (bilinear in two dimensions, trilinear in three).

    >>> from upconv import ConvSpec
    >>> spec = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=4, stride=2, padding=1)
    >>> bilinear(spec)
    array([[[0.25, 0.75, 0.75, 0.25]]], dtype=float32)

    Each channel is enlarged for itself; `mix`, an array (in_channels, out_channels // groups), says how much of each
    input channel goes to each output channel otherwise, and is needed where their numbers differ. A triangle of width
    twice the stride about the kernel's middle, then scaled so that every phase's taps sum to 1: exact interpolation from
    kernel `2*stride - 1` up, the nearest that a smaller kernel can do. Raises SpecError for a `mix` of another shape, or
    a kernel smaller than the stride, which leaves outputs without any tap.

    Source: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", 2015.
    """
    spec = transposed_of(layer)
    shape = spec.weight_shape[:2]
    if mix is None:
        if spec.in_channels != spec.out_channels:
            raise SpecError(
                f"{spec.in_channels} input and {spec.out_channels} output channels: give mix, an array {shape} that says "
                f"how much of each goes where"
            )
        channels = np.arange(spec.in_channels)[:, None] % shape[1] == np.arange(shape[1])
    else:
        channels = np.asarray(mix)
        if channels.shape != shape:
            raise SpecError(f"mix has shape {channels.shape}: it must be {shape}, (in_channels, out_channels // groups)")
    weight = channels.astype(np.float64)
    for row in zip(spec.kernel_size, spec.stride, spec.dilation, strict=True):
        weight = np.multiply.outer(weight, _triangle(*row))
    return weight.astype(dtype)


def _triangle(kernel: int, stride: int, dilation: int) -> NDArray[np.float64]:
    """One dimension's interpolation kernel, each phase of it summing to 1."""
    middle = dilation * (kernel - 1) / 2
    taps = np.maximum(0, 1 - np.abs(dilation * np.arange(kernel) - middle) / stride)
    for phase in shapes.phases(kernel, stride, 0, dilation):
        index = [tap.kernel[0] for tap in phase.taps]
        total = taps[index].sum()
        if not total:
            raise SpecError(
                f"kernel {kernel}, stride {stride}, dilation {dilation} leaves outputs without a tap to interpolate with: "
                f"use a kernel of at least {2 * stride - 1}, and dilation 1"
            )
        taps[index] /= total
    return taps
