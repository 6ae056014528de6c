"""How many products a layer keeps: taps per output position, and multiply-adds with the borders counted exactly.

A product of an input element and a tap is kept where it lands inside the output (transposed), or where it reads inside
the input (convolution). Dimensions are independent, so a count is a product of one-dimensional counts.
"""

from __future__ import annotations

from collections import Counter
from math import gcd, prod
from typing import Any

from upconv.shapes.geometry import Geometry
from upconv.spec import ConvSpec, per_dimension


def multiply_adds(layer: Any, input_size: Any, batch: int = 1) -> int:
    """The multiply-adds of a layer's direct sum, only products that are kept, borders counted exactly.

    >>> spec = ConvSpec.make(transposed=True, in_channels=8, out_channels=4, kernel_size=4, stride=2, padding=1)
    >>> multiply_adds(spec, 3), spec.macs((3,))
    (320, 384)

    `layer` is a ConvSpec, a layer of upconv.nn or torch.nn, or a Geometry (counted for one channel pair);
    `input_size` is spatial. The usual counters multiply sizes and so count products that padding throws away
    (fvcore#80, thop#92, ptflops#57 differ from each other besides). Bias and activation are not multiply-adds. Where
    `padding_mode` is not "zeros" nothing is thrown away. Raises SpecError where the layer has no output.
    """
    geometry = Geometry.of(layer)
    whole = _whole(layer)
    cin, cout, groups = (getattr(whole, name, 1) for name in ("in_channels", "out_channels", "groups"))
    mode = getattr(whole, "padding_mode", "zeros")
    sizes = per_dimension("input_size", input_size, geometry.rank, 1)
    out = geometry.output_size(sizes)
    few, many = (sizes, out) if geometry.transposed else (out, sizes)
    pairs = prod(
        kept(f, m, k, s, lo, d) if mode == "zeros" else f * k
        for f, m, k, s, (lo, _), d in zip(
            few, many, geometry.kernel_size, geometry.stride, geometry.pairs, geometry.dilation, strict=True
        )
    )
    return batch * pairs * cin * cout // groups


def kept(few: int, many: int, kernel: int, stride: int, before: int, dilation: int) -> int:
    """How many (i, k) with i in range(few), k in range(kernel) have `stride*i + dilation*k - before` in range(many).

    >>> kept(3, 6, 4, 2, 1, 1)
    10
    """
    if few < kernel:  # the same count, summed over the shorter side
        return sum(_within(kernel, many, dilation, stride * i - before) for i in range(few))
    return sum(_within(few, many, stride, dilation * k - before) for k in range(kernel))


def _within(count: int, size: int, step: int, shift: int) -> int:
    """How many i in range(count) have `step*i + shift` in range(size)."""
    first = max(0, -(shift // step))
    last = min(count - 1, (size - 1 - shift) // step)
    return max(0, last - first + 1)


def taps_by_phase(kernel: int, stride: int, dilation: int = 1, before: int = 0) -> tuple[int, ...]:
    """One dimension's taps for each phase of a transposed layer, far from the borders.

    >>> taps_by_phase(3, 2), taps_by_phase(4, 2)
    ((2, 1), (2, 2))
    """
    found = Counter((dilation * k - before) % stride for k in range(kernel))
    return tuple(found[a] for a in range(stride))


def overlap_range(layer: Any) -> tuple[int, int]:
    """The fewest and the most taps that an output takes, far from the borders; equal where the overlap is uniform.

    >>> overlap_range(Geometry.make(kernel_size=3, stride=2, rank=2))
    (1, 4)

    A convolution's outputs all take every tap. Uneven overlap is what draws checkerboards: Odena, Dumoulin and Olah,
    "Deconvolution and Checkerboard Artifacts", Distill, 2016.
    """
    geometry = Geometry.of(layer)
    if not geometry.transposed:
        return (prod(geometry.kernel_size),) * 2
    ranges = [phase_range(*row) for row in zip(geometry.kernel_size, geometry.stride, geometry.dilation, strict=True)]
    return prod(least for least, _ in ranges), prod(most for _, most in ranges)


def phase_range(kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """The fewest and the most of `taps_by_phase`, without listing them."""
    cycle = stride // gcd(stride, dilation)  # how many residues dilation*k runs through, one after the other
    return (kernel // cycle if cycle == stride else 0), -(-kernel // cycle)


def taps_per_output(layer: Any, input_size: Any) -> tuple[tuple[int, ...], ...]:
    """For each dimension, how many taps each output position takes on an input of `input_size`.

    >>> taps_per_output(Geometry.make(kernel_size=3, stride=2), 3)
    ((1, 1, 2, 1, 2, 1, 1),)

    The count at a position is the product over the dimensions. A tap of a padded convolution counts where it reads the
    input; one of a transposed layer with another `padding_mode` counts where its product is folded back to.
    """
    geometry = Geometry.of(layer)
    mode = getattr(_whole(layer), "padding_mode", "zeros")
    sizes = per_dimension("input_size", input_size, geometry.rank, 1)
    out = geometry.output_size(sizes)
    rows = []
    for n, o, k, s, (lo, _), d in zip(
        sizes, out, geometry.kernel_size, geometry.stride, geometry.pairs, geometry.dilation, strict=True
    ):
        if geometry.transposed:
            rows.append(_written(n, o, k, s, lo, d, mode))
        else:
            starts = range(-lo, -lo + s * o, s)
            rows.append(tuple(sum(source(p + d * j, n, mode) is not None for j in range(k)) for p in starts))
    return tuple(rows)


def _written(n: int, o: int, k: int, s: int, lo: int, d: int, mode: str) -> tuple[int, ...]:
    full = [0] * (s * (n - 1) + d * (k - 1) + 1)
    for j in range(k):
        reached = slice(d * j, d * j + s * (n - 1) + 1, s)
        full[reached] = [count + 1 for count in full[reached]]
    counts = [0] * o
    for position, count in enumerate(full, start=-lo):
        target = source(position, o, mode)
        if target is not None:
            counts[target] += count
    return tuple(counts)


def _whole(layer: Any) -> Any:
    """The object that holds a layer's channels and padding_mode."""
    spec = getattr(layer, "spec", None)
    return spec if isinstance(spec, ConvSpec) else layer


def source(position: int, size: int, mode: str) -> int | None:
    """Which element of an axis a padded position repeats, None for one of zeros.

    >>> [source(-1, 4, mode) for mode in ("zeros", "circular", "replicate", "reflect")]
    [None, 3, 0, 1]
    """
    if 0 <= position < size:
        return position
    match mode:
        case "circular":
            return position % size
        case "replicate":
            return min(max(position, 0), size - 1)
        case "reflect":
            turn = position % max(2 * size - 2, 1)
            return min(turn, 2 * size - 2 - turn)
    return None
