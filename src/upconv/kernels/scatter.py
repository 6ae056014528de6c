"""A layer seen as it scatters: each input writes its patch. The dimensions, what outputs meet, and blocks of output positions.

A transposed convolution is one as it stands, a convolution with stride 1 is one with its taps reversed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, prod

import numpy as np

from upconv.codegen.ir import Function, Value
from upconv.shapes.phase import phase_taps
from upconv.spec import ConvSpec, Problem

Sizes = tuple[int, int, int, int]
"""Images, and positions of the output in d, h and w."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension: output position q, of `positions` from `first` on, adds up the inputs q + least to q + most."""

    size: int
    out_size: int
    step: int
    first: int
    positions: int
    least: int
    most: int


@lru_cache(maxsize=512)
def axes(problem: Problem) -> tuple[Axis, Axis, Axis]:
    """The dimensions. In d and h position q has the outputs step * q + phase, in w those before cropping."""
    spec = problem.spec
    found = [Axis(1, 1, 1, 0, 1, 0, 0)] * (3 - spec.rank)
    for i, (size, out) in enumerate(zip(problem.input_size, problem.output_size, strict=True)):
        kernel, step, crop, dilation = as_transposed(spec, i)
        if i == spec.rank - 1:
            first, last = crop // step, (out - 1 + crop) // step
            found.append(Axis(size, out, step, first, last - first + 1, -((kernel - 1) // step), 0))
        else:
            offsets = [offset for a in range(step) for _, offset in phase_taps(kernel, step, crop, dilation, a)]
            found.append(Axis(size, out, step, 0, ceil(out / step), min(offsets), max(offsets)))
    d, h, w = found
    return d, h, w


def as_transposed(spec: ConvSpec, i: int) -> tuple[int, int, int, int]:
    """(taps, stride, outputs cropped before, dilation) of a dimension, seen as a transposed convolution's."""
    kernel, dilation, (before, _) = spec.kernel_size[i], spec.dilation[i], spec.padding[i]
    if spec.transposed:
        return kernel, spec.stride[i], before, dilation
    return kernel, 1, dilation * (kernel - 1) - before, dilation


def refuses(spec: ConvSpec) -> str | None:
    """Why a layer does not scatter rows of neighbouring outputs, or None."""
    if not spec.transposed and any(step > 1 for step in spec.stride):
        return "a convolution with a stride gathers, it does not scatter"
    if spec.dilation[-1] > 1 and spec.kernel_size[-1] > 1:
        return "dilated in its last dimension: a patch's outputs are not neighbours"
    return None


def row_taps(spec: ConvSpec) -> list[list[tuple[int, int, int]]]:
    """For each phase in d and h, its rows of taps: (first tap, offset in d, in h)."""
    lists = [[[(0, 0)]]] * (3 - spec.rank)
    kernels = [1] * (3 - spec.rank)
    for i in range(spec.rank - 1):
        kernel, step, crop, dilation = as_transposed(spec, i)
        lists.append([list(phase_taps(kernel, step, crop, dilation, a)) for a in range(step)])
        kernels.append(kernel)
    each = spec.kernel_size[-1]
    return [
        [((kd * kernels[1] + kh) * each, od, oh) for kd, od in taps_d for kh, oh in taps_h]
        for taps_d, taps_h in product(lists[0], lists[1])
    ]


# -- blocks of output positions ----------------------------------------------------------------------------------------


def parts(length: int) -> Iterator[int]:
    """The lengths of equal parts, each about half as long as the one before, down to one."""
    count = 1
    while count < 2 * length:
        yield ceil(length / count)
        count *= 2


def tasks_of(lengths: Sizes, sizes: Sizes) -> int:
    """Blocks of these sizes."""
    return prod(ceil(length / size) for length, size in zip(lengths, sizes, strict=True))


def work_of(lengths: Sizes, firsts: Sizes, sizes: Sizes) -> list[tuple[int, ...]]:
    """First and end in each dimension of every block."""
    cuts = [
        [(first + low, first + min(low + size, length)) for low in range(0, length, size)]
        for first, length, size in zip(firsts, lengths, sizes, strict=True)
    ]
    return [tuple(end for ends in block for end in ends) for block in product(*cuts)]


def inputs_met(problem: Problem, sizes: Sizes) -> int:
    """Inputs that all blocks meet together, where they have one image each or whole ones."""
    return problem.batch * prod(_met(axis, size) for axis, size in zip(axes(problem), sizes[1:], strict=True))


@lru_cache(maxsize=4096)
def _met(axis: Axis, size: int) -> int:
    """The inputs that parts of so many positions meet, one after the other."""
    end = axis.first + axis.positions
    low = np.arange(axis.first, end, size)
    first, last = np.maximum(low + axis.least, 0), np.minimum(np.minimum(low + size, end) + axis.most, axis.size)
    return int(np.maximum(last - first, 0).sum())


# -- code --------------------------------------------------------------------------------------------------------------


@contextmanager
def emit_outputs(f: Function, s: dict[str, Value], axis: str, low: Value, high: Value) -> Iterator[tuple[Value, Value, Value]]:
    """(position, output, phase) of each output of the positions low..high-1 of an axis."""
    step = s[f"step_{axis}"]
    with f.loop(low, high, name=f"q{axis}") as q, f.loop(0, step, name=f"a{axis}") as a:
        out = q * step + a
        with f.when(out < s[f"out_{axis}"], name="there"):
            yield q, out, a
