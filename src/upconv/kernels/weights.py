"""Packing weights in emitted code, on all threads: a training step packs its weights every time.

A kernel describes its order of weights by a table: for each entry (the rows of one tile), each depth tap and input plane, and
each tap of the window that a transform takes together, the place in the parameter that each row reads for channel 0, or -1 for
a zero. Channels are a fixed stride apart. The packed order is [group][point][entry][depth tap][channel][plane][row].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.ir import Function, Value, literal, module, vector
from upconv.kernels import job as jobs
from upconv.spec import ConvSpec

Matrix = tuple[tuple[float, ...], ...]
SLOTS = jobs.Slots(
    (
        "x", "y", "entries", "offsets", "entry_count", "channels", "planes", "channel_step", "source_group", "target_group",
        "target_point",
    )
)  # fmt: skip
ENTRY = 3  # i64 an entry: depth taps, first offset, place in the packed order


@dataclass(frozen=True, slots=True)
class Transform:
    """What changes the code: the rows of a tile and the matrices applied along the window's two dimensions."""

    element: str
    rows: int
    first: Matrix | None = None
    second: Matrix | None = None

    @property
    def window(self) -> tuple[int, int]:
        return (len(self.first[0]) if self.first else 1, len(self.second[0]) if self.second else 1)

    @property
    def points(self) -> int:
        return (len(self.first) if self.first else 1) * (len(self.second) if self.second else 1)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The order that a kernel wants its weights in. `sections` holds (depth taps, offsets) of each run of entries;
    offsets have the shape (entries, depth taps, planes, window, rows)."""

    transform: Transform
    groups: int
    channels: int
    planes: int
    channel_step: int
    source_group: int
    sections: tuple[NDArray[np.int64], ...]

    @property
    def point_size(self) -> int:
        rows = self.transform.rows
        return sum(s.shape[0] * s.shape[1] for s in self.sections) * self.channels * self.planes * rows

    @property
    def size(self) -> int:
        return max(16, self.groups * self.transform.points * self.point_size)

    def bind(self) -> jobs.Bound:
        """The job's numbers and tables."""
        entries, at, place = [], 0, 0
        rows = self.transform.rows
        for section in self.sections:
            count, taps = section.shape[:2]
            for _ in range(count):
                entries.append((taps, at, place))
                at += section[0].size
                place += taps * self.channels * self.planes * rows
        slots = {
            "entry_count": len(entries), "channels": self.channels, "planes": self.planes,
            "channel_step": self.channel_step, "source_group": self.source_group,
            "target_group": self.point_size * self.transform.points, "target_point": self.point_size,
            "workspace_bytes": 0,
        }  # fmt: skip
        offsets = np.concatenate([s.reshape(-1) for s in self.sections] or [np.zeros(1, np.int64)])
        tables = {"entries": np.array(entries or [(0, 0, 0)], np.int64), "offsets": offsets}
        return jobs.Bound(slots, tables, len(entries) * self.groups)


def strides(spec: ConvSpec) -> tuple[int, int, int]:
    """(output channel, input channel, group) steps in torch's weight, in elements."""
    c, m, k = spec.in_channels // spec.groups, spec.out_channels // spec.groups, prod(spec.kernel_size)
    return (k, m * k, c * m * k) if spec.transposed else (c * k, k, c * m * k)


def row_channels(chunks: int, chunk: int, blocks: int, rows: int, per: int, channels: int) -> NDArray[np.int64]:
    """The output channel of every row of every tile, (chunks * blocks, rows), `per` rows a channel; -1 for padding."""
    row = np.arange(blocks * rows)
    local = row // per
    channel = np.arange(chunks)[:, None] * chunk + local
    good = (local < chunk) & (channel < channels)
    return np.where(good, channel, -1).reshape(chunks * blocks, rows)


def code_parameters(transform: Transform) -> str:
    """Everything that the emitted code depends on."""
    return repr(transform)


def _apply(f: Function, matrix: Matrix, line: list[Value]) -> list[Value]:
    """A matrix times a column of vectors; terms in order, coefficients of 1 and -1 without a product."""
    done = []
    for row in matrix:
        total: Value | None = None
        for coefficient, value in zip(row, line, strict=True):
            if coefficient == 0:
                continue
            term = value if coefficient == 1 else f.fmul(value, f.splat(coefficient, value.type))
            total = term if total is None else f.fadd(total, term)
        assert total is not None
        done.append(total)
    return done


def emit(transform: Transform) -> str:
    """The module's IR text; its entry is `entry(job)`, a task packs one entry of one group."""
    element, rows = transform.element, transform.rows
    lanes = 1 << (rows - 1).bit_length()
    type_, index_type = vector(element, lanes), vector("i64", lanes)
    window = list(product(*(range(n) for n in transform.window)))
    some = vector("i1", lanes)
    mask_text = "<" + ", ".join(f"i1 {'true' if i < rows else 'false'}" for i in range(lanes)) + ">" if lanes > 1 else "true"

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        s = {n: SLOTS.read(f, job, n) for n in SLOTS.names[len(jobs.COMMON) + 4 :]}
        group, at = number // s["entry_count"], number % s["entry_count"]
        entry = SLOTS.pointer(f, job, "entries", "i64")[at * ENTRY]
        taps, first, place = (f.load("i64", entry[i]) for i in range(ENTRY))
        offsets = SLOTS.pointer(f, job, "offsets", "i64")[first]
        source = SLOTS.pointer(f, job, "x", element)[group * s["source_group"]]
        target = SLOTS.pointer(f, job, "y", element)[group * s["target_group"] + place]
        used = Value(f, mask_text, some)
        with f.loop(0, taps, name="t") as t, f.loop(0, s["planes"], name="b") as b:
            table = offsets[(t * s["planes"] + b) * (len(window) * rows)]
            where = [_indices(f, table[i * rows], rows, lanes, used, index_type) for i in range(len(window))]
            with f.loop(0, s["channels"], name="c") as c:
                channel = source[c * s["channel_step"]]
                taken = [_gather(f, channel, index, type_, element) for index in where]
                columns = dict(zip(window, taken, strict=True))
                for d, matrix in enumerate((transform.first, transform.second)):
                    if matrix is not None:
                        columns = _along(f, d, matrix, columns)
                out = target[((t * s["channels"] + c) * s["planes"] + b) * rows]
                for i, point in enumerate(sorted(columns)):
                    address = out[s["target_point"] * i]
                    if rows == lanes:
                        f.store(columns[point], address)
                    else:
                        f.masked_store(columns[point], address, used)
        del workspace

    return module([jobs.emit_entry("entry", SLOTS, task)])


def _along(f: Function, d: int, matrix: Matrix, columns: dict[tuple[int, ...], Value]) -> dict[tuple[int, ...], Value]:
    """The matrix along one of the window's dimensions."""
    turned: dict[tuple[int, ...], Value] = {}
    for other in sorted({key[1 - d] for key in columns}):
        line = [columns[(i, other) if d == 0 else (other, i)] for i in range(len(matrix[0]))]
        for i, value in enumerate(_apply(f, matrix, line)):
            turned[(i, other) if d == 0 else (other, i)] = value
    return turned


def _indices(f: Function, table: Value, rows: int, lanes: int, used: Value, type_: str) -> tuple[Value, Value]:
    """(offsets, mask of those that are not zeros) of one tap's rows."""
    if lanes == 1:
        index = f.load("i64", table)
        return index, f.compare("sge", index, 0)
    index = f.masked_load(type_, table, used)
    found = f.compare("sge", index, f.splat(f.value(0), type_))
    return index, f._op("and", found, used)


def _gather(f: Function, base: Value, where: tuple[Value, Value], type_: str, element: str) -> Value:
    index, mask = where
    if mask.type == "i1":
        zero = Value(f, literal(0.0, element), element)
        return f.select(mask, f.load(element, base[f.maximum(index, 0)]), zero)
    return f.gather(type_, base, index, mask)


def reference(layout: Layout, weight: NDArray[Any]) -> NDArray[Any]:
    """The same by NumPy, for the tests and where no code can be made."""
    flat, t = weight.reshape(-1), layout.transform
    groups = np.arange(layout.groups).reshape(-1, *(1,) * 6) * layout.source_group
    channels = np.arange(layout.channels).reshape(1, 1, 1, -1, 1, 1, 1) * layout.channel_step
    parts = []
    for section in layout.sections:
        offsets = section[None, :, :, None]  # group entry tap channel plane window row
        taken = np.where(offsets >= 0, flat[np.maximum(offsets, 0) + groups + channels], 0)
        shape = taken.shape
        taken = taken.reshape(*shape[:5], *t.window, shape[-1])
        for axis, matrix in ((5, t.first), (6, t.second)):
            if matrix is not None:
                taken = np.moveaxis(np.tensordot(taken, np.array(matrix, weight.dtype), axes=([axis], [1])), -1, axis)
        points = taken.reshape(*shape[:5], t.points, shape[-1])
        parts.append(np.moveaxis(points, 5, 1).reshape(layout.groups, t.points, -1))
    if not parts:
        return np.zeros(16, weight.dtype)
    return np.ascontiguousarray(np.concatenate(parts, axis=2))
