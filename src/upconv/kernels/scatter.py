"""A layer seen as it scatters: each input writes its patch. The dimensions, what outputs meet, and blocks of output positions.

A transposed convolution is one as it stands, a convolution with stride 1 is one with its taps reversed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.ir import Carry, Function, Value
from upconv.kernels.job import Slots
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


# -- the job -----------------------------------------------------------------------------------------------------------

WORK, PHASE, TAP = 8, 2, 3
"""Numbers a task: first image and end, first position and end in d, h and w; a phase of rows (d and h): first tap, taps; a row of
taps: its first tap, and how far from the output's position its input is in d and h."""


def rest(spec: ConvSpec) -> int:
    """Phases that a row's last taps serve, where these are not all."""
    kernel, step, *_ = as_transposed(spec, spec.rank - 1)
    return kernel % step


def slots(problem: Problem) -> dict[str, int]:
    """Sizes and steps, what outputs meet in d and h, in w how many inputs in a row (`reach`), `whole` of them in all phases."""
    spec, dims = problem.spec, axes(problem)
    d, h, w = dims
    reach = 1 - w.least
    whole = reach - (rest(spec) > 0)
    return {
        **{f"size_{n}": a.size for n, a in zip("dhw", dims, strict=True)},
        **{f"out_{n}": a.out_size for n, a in zip("dhw", dims, strict=True)},
        **{f"step_{n}": a.step for n, a in zip("dhw", dims, strict=True)},
        "least_d": d.least, "least_h": h.least, "most_d": d.most, "most_h": h.most,
        "crop_w": as_transposed(spec, spec.rank - 1)[2], "reach": reach, "whole": whole,
        "cut": max(len(taps) for taps in row_taps(spec)) * whole,
    }  # fmt: skip


def tables(problem: Problem, lengths: Sizes, sizes: Sizes) -> dict[str, NDArray[np.int64]]:
    """The tasks, and the phases of rows with their taps."""
    d, h, w = axes(problem)
    rows = row_taps(problem.spec)
    starts = np.cumsum([0] + [len(taps) for taps in rows])
    return {
        "work": np.array(work_of(lengths, (0, d.first, h.first, w.first), sizes), np.int64),
        "phases": np.array([(int(start), len(taps)) for start, taps in zip(starts, rows, strict=False)], np.int64),
        "taps": np.array([tap for taps in rows for tap in taps], np.int64),
    }


# -- code --------------------------------------------------------------------------------------------------------------


def emit_work(f: Function, work: Value) -> list[Value]:
    """A task's numbers."""
    return [f.load("i64", work[i]) for i in range(WORK)]


def emit_met(
    f: Function, slots: Slots, job: Value, s: dict[str, Value], phase: Value, at: tuple[Value, Value], met: Value,
    entry: Callable[[Value, Value, Value, Value], list[Value]],
) -> Value:  # fmt: skip
    """Lists the patches that a row's outputs, at these positions in d and h, add up; returns how many rows of taps there are.

    Each has `reach` of them, an input further back each; if the taps end within the last ones, these are listed from `cut` on.
    `entry` gives what is listed of (first tap of the row, d and h of the input, inputs back).
    """
    qd, qh = at
    start = slots.pointer(f, job, "phases", "i64")[phase * PHASE]
    first, taps = f.load("i64", start), f.load("i64", start[1])
    found = Carry([f.value(0)])
    with f.loop(first, first + taps, name="tap", carry=found) as tap:
        (number,) = found.values
        row = slots.pointer(f, job, "taps", "i64")[tap * TAP]
        tap_w, off_d, off_h = (f.load("i64", row[i]) for i in range(TAP))
        d, h = qd + off_d, qh + off_h
        there = f.compare("ult", d, s["size_d"]) & f.compare("ult", h, s["size_h"])
        with f.when(there, name="there"), f.loop(0, s["reach"], name="back") as back:
            place, listed = f.select(back < s["whole"], number * s["whole"] + back, s["cut"] + number), entry(tap_w, d, h, back)
            for i, value in enumerate(listed):
                f.store(value, met[place * len(listed) + i], 8)
        found.next = [number + f.select(there, 1, 0)]
    return found.results[0]


@contextmanager
def emit_outputs(f: Function, s: dict[str, Value], axis: str, low: Value, high: Value) -> Iterator[tuple[Value, Value, Value]]:
    """(position, output, phase) of each output of the positions low..high-1 of an axis."""
    step = s[f"step_{axis}"]
    with f.loop(low, high, name=f"q{axis}") as q, f.loop(0, step, name=f"a{axis}") as a:
        out = q * step + a
        with f.when(out < s[f"out_{axis}"], name="there"):
            yield q, out, a
