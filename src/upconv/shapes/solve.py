"""Which layers map one size to another: every one within bounds, best first, or the nearest sizes that can be reached.

Dimensions are independent, so each is solved alone and the answers are multiplied. Within a dimension the padding
follows from everything else, so nothing is tried in vain, however large the sizes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from upconv.shapes.axis import Axis, Setting
from upconv.shapes.counts import kept, overlap_range, phase_range
from upconv.shapes.geometry import Geometry
from upconv.shapes.sizes import _rank, layer
from upconv.spec import SpecError, integer, per_dimension

COMBINED = 50_000  # the most combinations of dimensions that are weighed against each other


@dataclass(frozen=True, slots=True)
class Solution(Geometry):
    """A layer that maps `input_size` to the size asked for, with its verdict and its cost.

    `taps` are the fewest and the most taps that an output takes far from the borders: unequal ones draw checkerboards.
    `multiply_adds` counts one pair of an input and an output channel, the borders exactly.
    """

    input_size: tuple[int, ...] = ()
    taps: tuple[int, int] = (0, 0)
    multiply_adds: int = 0

    @property
    def uniform(self) -> bool:
        """Whether every output takes equally many taps, far from the borders."""
        return self.taps[0] == self.taps[1]

    @property
    def verdict(self) -> str:
        """The overlap in words."""
        least, most = self.taps
        taps = f"{most} tap{'s' if most != 1 else ''}"
        return f"uniform, {taps}" if self.uniform else f"uneven, {least} to {taps}"


def solve(
    input_size: Any,
    output_size: Any,
    *,
    kernel_size: Any = None,
    stride: Any = None,
    padding: Any = None,
    output_padding: Any = None,
    dilation: Any = None,
    transposed: bool | None = None,
    limit: int | None = 1000,
) -> list[Solution]:
    """Every layer that maps `input_size` to `output_size`, best first.

    >>> for found in solve(6, 12, stride=2)[:3]:
    ...     print(found, "", found.verdict)
    ConvTranspose1d(kernel_size=2, stride=2)  uniform, 1 tap
    ConvTranspose1d(kernel_size=4, stride=2, padding=1)  uniform, 2 taps
    ConvTranspose1d(kernel_size=6, stride=2, padding=2)  uniform, 3 taps
    >>> solve((6, 6), (12, 12), kernel_size=3, stride=2)[0].arguments()["output_padding"]
    (1, 1)

    Sizes and arguments are ints or tuples, one entry a dimension; an argument given is kept to. `transposed` chooses
    the kind of layer: by default a transposed one, unless the output is nowhere larger than the input and somewhere
    smaller.

    What is tried where an argument is not given, for each dimension:
    stride 1 to 8, and within one of the ratio of the sizes;
    kernel 1 to 8, and within one of 1, 2, 3 and 4 times the stride (from or to a single position also the larger size);
    padding up to `dilation * (kernel - 1)` a side, equal on both sides or one more after;
    output_padding below the larger of stride and dilation, and at most 7 unless kernel and stride are given
    (at most 4096 paddings for one kernel and stride);
    dilation 1.

    The order: fewest dimensions with uneven overlap, with unequal padding, with output_padding, with dilation; then the
    same kernel, stride and dilation in every dimension; then the smallest kernel, the least padding, the smallest
    stride. At most `limit` solutions are returned (None: all). In more than one dimension at most 50,000 combinations
    are weighed, of each dimension's best (all, with `limit=None`).

    An empty list: no layer within these bounds does it, and `nearest` names the sizes that can be reached. Raises
    SpecError for arguments that no layer can have.
    """
    pins = (kernel_size, stride, padding, output_padding, dilation)
    question = _Question.make(input_size, output_size, pins, transposed)
    limit = None if limit is None else integer("limit", limit, 1)
    rows = [sorted(axis.solutions(axis.output), key=_axis_rank) for axis in question.axes]
    if limit is None:
        chosen = sorted(product(*rows), key=_combined_rank)
    else:
        share = len(rows[0]) if len(rows) == 1 else int(COMBINED ** (1 / len(rows)))
        chosen = heapq.nsmallest(limit, product(*(row[:share] for row in rows)), key=_combined_rank)
    return [_solution(settings, question) for settings in chosen]


def nearest(
    input_size: Any,
    output_size: Any,
    *,
    kernel_size: Any = None,
    stride: Any = None,
    padding: Any = None,
    output_padding: Any = None,
    dilation: Any = None,
    transposed: bool | None = None,
) -> list[tuple[int, ...]]:
    """The output sizes nearest to `output_size` for which `solve` has a layer, nearest first.

    >>> nearest((6, 6), (20, 12), kernel_size=3, stride=2, padding=1)
    [(12, 12)]
    >>> nearest(10, 40, kernel_size=4, stride=3)
    [(33,)]
    >>> nearest(1000, 1500)
    [(1991,), (1007,)]

    For each dimension that cannot be reached: the next size below and the next above, where there are such. The
    arguments are those of `solve`. Empty where the arguments given leave no output at all.
    """
    pins = (kernel_size, stride, padding, output_padding, dilation)
    question = _Question.make(input_size, output_size, pins, transposed)
    options = [axis.near() for axis in question.axes]
    wanted = [axis.output for axis in question.axes]

    def distance(size: tuple[int, ...]) -> int:
        return sum(abs(a - b) for a, b in zip(size, wanted, strict=True))

    return sorted(product(*options), key=lambda size: (distance(size), size))


@dataclass(frozen=True, slots=True)
class _Question:
    """What `solve` and `nearest` are asked, validated."""

    transposed: bool
    axes: tuple[Axis, ...]

    @classmethod
    def make(
        cls,
        input_size: Any,
        output_size: Any,
        pins: tuple[Any, Any, Any, Any, Any],
        transposed: bool | None,
    ) -> _Question:
        kernel, stride, padding, extra, dilation = pins
        rank = _rank(input_size, output_size, kernel, stride, padding, extra, dilation)
        if rank not in (1, 2, 3):
            raise SpecError(f"{rank} spatial dimensions: layers have 1, 2 or 3")
        sizes = per_dimension("input_size", input_size, rank, 1)
        wanted = per_dimension("output_size", output_size, rank, 1)
        if transposed is None:
            smaller = all(o <= n for n, o in zip(sizes, wanted, strict=True)) and sizes != wanted
            transposed = not smaller or extra is not None
        free = (None,) * rank
        pads: Sequence[Any] = free
        if padding is not None:
            pads = ("same",) * rank if padding == "same" else layer(True, rank, kernel_size=1, padding=padding).padding
        if not transposed and extra is not None and any(per_dimension("output_padding", extra, rank, 0)):
            raise SpecError(f"output_padding {extra} belongs to transposed layers; a convolution has none")
        columns = (
            sizes,
            wanted,
            free if kernel is None else per_dimension("kernel_size", kernel, rank, 1),
            free if stride is None else per_dimension("stride", stride, rank, 1),
            pads,
            free if extra is None else per_dimension("output_padding", extra, rank, 0),
            per_dimension("dilation", 1 if dilation is None else dilation, rank, 1),
        )
        return cls(transposed, tuple(Axis(transposed, *row) for row in zip(*columns, strict=True)))


def _uneven(a: Setting) -> bool:
    least, most = phase_range(a.kernel, a.stride, a.dilation)
    return least != most


def _axis_rank(a: Setting) -> tuple[Any, ...]:
    return (_uneven(a), a.before != a.after, a.extra > 0, a.dilation > 1, a.kernel, a.before + a.after, a)


def _combined_rank(settings: tuple[Setting, ...]) -> tuple[Any, ...]:
    return (
        sum(_uneven(a) for a in settings),
        sum(a.before != a.after for a in settings),
        sum(a.extra > 0 for a in settings),
        sum(a.dilation > 1 for a in settings),
        len({(a.kernel, a.stride, a.dilation) for a in settings}),
        prod(a.kernel for a in settings),
        sum(a.before + a.after for a in settings),
        sum(a.stride for a in settings),
        settings,
    )


def _solution(settings: tuple[Setting, ...], question: _Question) -> Solution:
    """The settings of every dimension as one layer."""
    pairs = tuple((a.before, a.after) for a in settings)
    ends = [axis.ends(axis.output) for axis in question.axes]
    found = Geometry(
        kernel_size=tuple(a.kernel for a in settings),
        stride=tuple(a.stride for a in settings),
        padding=tuple(lo for lo, _ in pairs) if all(lo == hi for lo, hi in pairs) else pairs,
        output_padding=tuple(a.extra for a in settings),
        dilation=tuple(a.dilation for a in settings),
        transposed=question.transposed,
    )
    return Solution(
        found.kernel_size,
        found.stride,
        found.padding,
        found.output_padding,
        found.dilation,
        found.transposed,
        tuple(axis.input for axis in question.axes),
        overlap_range(found),
        prod(kept(few, many, a.kernel, a.stride, a.before, a.dilation) for a, (few, many) in zip(settings, ends, strict=True)),
    )


def table(solutions: Sequence[Solution]) -> str:
    """Solutions as aligned lines under a heading: the layer, its overlap and its multiply-adds a channel pair.

    >>> print(table(solve(6, 12, kernel_size=3, stride=2)))
    layer                                                                  overlap              multiply-adds
    ConvTranspose1d(kernel_size=3, stride=2, padding=1, output_padding=1)  uneven, 1 to 2 taps             17
    ConvTranspose1d(kernel_size=3, stride=2, padding=((0, 1),))            uneven, 1 to 2 taps             17
    """
    heading = ("layer", "overlap", "multiply-adds")
    rows = [heading, *((str(s), s.verdict, f"{s.multiply_adds:,}") for s in solutions)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)
