"""Positions of an x with its channels last: what each column of a phase reads, and writes, found through a table.

A row of x, all channels of one position, is read where it stands: for every column and every tap the table holds where the row
begins, or a row of zeros where the tap meets padding. Phases that read the same inputs share a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.ir import Function, Value
from upconv.kernels.geometry import Band, Read, band
from upconv.kernels.job import Slots
from upconv.spec import Problem

SLOTS = (
    "x", "y", "zeros", "sets", "taps", "x_channels", "y_image", "y_place", "size_d", "size_h", "size_w", "in_step_d", "in_step_h",
    "in_step_w", "out_d", "out_h", "out_w", "out_step_d", "out_step_h", "out_step_w",
)  # fmt: skip
SET, TAP = 5, 3
"""Numbers a set of phases that read alike: first tap, taps, positions in d, h and w; and a tap: what it reads in d, h and w at
position 0."""


@dataclass(frozen=True, slots=True)
class PhaseSet:
    """Phases that read the same inputs at as many positions: their place in y, and the kernel index of each tap, by phase."""

    reads: tuple[Read, ...]
    positions: tuple[int, int, int]
    phases: tuple[tuple[int, int, int], ...]
    kernels: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=512)
def phase_sets(problem: Problem) -> tuple[PhaseSet, ...]:
    """The sets of a problem's phases, none for those without outputs."""
    shape = band(problem, cropped=True)
    kernel = (1,) * (3 - problem.spec.rank) + problem.spec.kernel_size
    steps = [axis.out_step for axis in shape.axes]
    found: dict[tuple[tuple[Read, ...], tuple[int, int, int]], list[tuple[tuple[int, int, int], tuple[int, ...]]]] = {}
    for number, taps in enumerate(shape.taps()):
        if taps is None:
            continue
        place = (number // (steps[1] * steps[2]), number // steps[2] % steps[1], number % steps[2])
        d, h, w = (-(-(axis.out_size - a) // axis.out_step) for axis, a in zip(shape.axes, place, strict=True))
        inorder = sorted(taps, key=lambda tap: tap.read.at)
        indices = tuple((t.kernel[0] * kernel[1] + t.kernel[1]) * kernel[2] + t.kernel[2] for t in inorder)
        found.setdefault((tuple(t.read for t in inorder), (d, h, w)), []).append((place, indices))
    return tuple(
        PhaseSet(reads, positions, tuple(p for p, _ in members), tuple(k for _, k in members))
        for (reads, positions), members in found.items()
    )


def columns_of(problem: Problem, phases: PhaseSet) -> int:
    """Columns of each phase of a set."""
    return problem.batch * prod(phases.positions)


def place_of(shape: Band, phase: tuple[int, int, int]) -> int:
    """A phase's first position in y."""
    _, h, w = shape.axes
    return (phase[0] * h.out_size + phase[1]) * w.out_size + phase[2]


def slots(problem: Problem, first: bool = False) -> dict[str, int]:
    """The numbers of SLOTS that are no addresses, for a y with its channels last, or `first`."""
    channels = problem.spec.out_channels
    axes = dict(zip("dhw", band(problem, cropped=True).axes, strict=True))
    return {
        **{f"size_{n}": a.size for n, a in axes.items()}, **{f"in_step_{n}": a.in_step for n, a in axes.items()},
        **{f"out_{n}": a.out_size for n, a in axes.items()}, **{f"out_step_{n}": a.out_step for n, a in axes.items()},
        "x_channels": problem.spec.in_channels,
        "y_image": channels * prod(problem.output_size), "y_place": 1 if first else channels,
    }  # fmt: skip


def tables(problem: Problem) -> dict[str, NDArray[np.int64]]:
    """The sets of phases and what their taps read, and a row of zeros."""
    rows: list[tuple[int, ...]] = []
    taps: list[tuple[int, ...]] = []
    for phases in phase_sets(problem):
        rows.append((len(taps), len(phases.reads), *phases.positions))
        taps.extend(read.at for read in phases.reads)
    zeros = np.zeros(ceil(problem.spec.in_channels * problem.itemsize / 8), np.int64)
    return {"sets": table(rows, SET), "taps": table(taps, TAP), "zeros": zeros}


def table(rows: Sequence[Sequence[int]], width: int) -> NDArray[np.int64]:
    """A table of the job's, of so many numbers a row; never empty."""
    return np.array(rows or [(0,) * width], np.int64)


def emit_table(slots: Slots, element: str, many: int) -> Function:
    """`table(job, set, table, low, high, x)`: for each tile of `many` columns of low..high-1, what every tap reads for each, and
    where each goes in y; columns that are none, and reads outside x, point to zeros."""
    f = Function("table", [("job", "ptr"), ("set", "ptr"), ("table", "ptr"), ("low", "i64"), ("high", "i64"), ("x", "ptr")],
                 attributes="internal noinline nounwind")  # fmt: skip
    job, row_of_set, table, low, high, x = f.arguments
    table, x = table.of("i64"), x.of(element)
    s = {name: slots.read(f, job, name) for name in SLOTS[SLOTS.index("x_channels") :]}
    first_tap, taps, rows_d, rows_h, rows_w = (f.load("i64", row_of_set.of("i64")[i]) for i in range(SET))
    y, zeros = (slots.pointer(f, job, name, element) for name in ("y", "zeros"))
    reads = slots.pointer(f, job, "taps", "i64")[first_tap * TAP]
    size = (taps + 1) * many  # pointers a tile

    def put(pointer: Value, column: Value, tap: Value) -> None:
        f.store(pointer, table[column // many * size + tap * many + column % many], 8)

    with f.loop(low // rows_w, (high - 1) // rows_w + 1, name="row") as row:
        h, rest = row % rows_h, row // rows_h
        d, n = rest % rows_d, rest // rows_d
        start = row * rows_w
        from_w, to_w = f.maximum(low - start, 0), f.minimum(high - start, rows_w)
        with f.loop(0, taps, name="tap") as tap:
            at_d, at_h, at_w = (f.load("i64", reads[tap * TAP + i]) for i in range(TAP))
            in_d, in_h = d * s["in_step_d"] + at_d, h * s["in_step_h"] + at_h
            there = f.compare("ult", in_d, s["size_d"]) & f.compare("ult", in_h, s["size_h"])
            line = ((n * s["size_d"] + in_d) * s["size_h"] + in_h) * s["size_w"]
            with f.loop(from_w, to_w, name="w") as w:
                in_w = w * s["in_step_w"] + at_w
                inside = there & f.compare("ult", in_w, s["size_w"])
                found = x[(line + in_w) * s["x_channels"]]
                pointer = f.select(inside, found, zeros)
                put(pointer, start + w - low, tap)
        image, line = y[n * s["y_image"]], (d * s["out_step_d"] * s["out_h"] + h * s["out_step_h"]) * s["out_w"]
        with f.loop(from_w, to_w, name="w") as w:
            put(image[(line + w * s["out_step_w"]) * s["y_place"]], start + w - low, taps)
    end = (high - low + (many - 1)) // many * many
    with f.loop(high - low, end, name="none") as column, f.loop(0, taps + 1, name="tap") as tap:
        put(zeros, column, tap)
    return f
