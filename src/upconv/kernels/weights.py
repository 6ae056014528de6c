"""Packing weights in emitted code, on all threads: a training step packs its weights every time.

A kernel describes its order of weights by a table: for each entry (the rows of one tile), each depth tap and input plane, and
each tap of the window that a transform takes together, the place in the parameter that each row reads for channel 0, or -1 for
a zero. Channels are a fixed stride apart. The packed order is
[group][chunk][point][part][entry][depth tap][channel][plane][row], the order in which a kernel reads: a part is the channels
that it takes at a time, the last one filled up with zeros, a chunk the entries that it takes each part of before the next.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen.ir import Function, Int, Value, element_of, literal, module, vector
from upconv.kernels import job as jobs
from upconv.spec import ConvSpec

Matrix = tuple[tuple[float, ...], ...]
SLOTS = jobs.Slots(
    (
        "x", "y", "batches", "offsets", "batch_count", "channels", "part", "planes", "channel_step", "source_group", "target_group",
        "target_point",
    )
)  # fmt: skip
BATCH = 5
"""Numbers a batch of entries of one chunk: depth taps, first offset, place in the packed order, entries, those of the chunk."""
TOGETHER = 96
"""Rows that a task packs together: what they read of a channel is then one piece of memory, where it is for an entry alone a
part of a line in a page of its own."""


@dataclass(frozen=True, slots=True)
class Transform:
    """What changes the code: the rows of a tile and the matrices applied along the window's two dimensions.

    Where `channels_first`, the parameter holds all that belongs to an input channel side by side (a transposed layer's does),
    and a task packs channel by channel; else tap by tap.
    """

    element: str
    rows: int
    channels_first: bool
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
    """The order that a kernel wants its weights in. `sections` holds the offsets of runs of entries, of the shape
    (entries, depth taps, planes, window, rows): one of them where there are several points. `chunks` says in how many chunks each
    run stands."""

    transform: Transform
    groups: int
    channels: int
    planes: int
    channel_step: int
    source_group: int
    sections: tuple[NDArray[np.int64], ...]
    part: int
    chunks: int = 1

    @property
    def parts(self) -> int:
        return -(-self.channels // self.part)

    @property
    def point_size(self) -> int:
        rows = self.transform.rows
        return sum(s.shape[0] * s.shape[1] for s in self.sections) * self.parts * self.part * self.planes * rows

    @property
    def size(self) -> int:
        return max(16, self.groups * self.transform.points * self.point_size)

    def bind(self) -> jobs.Bound:
        """The job's numbers and tables."""
        batches: list[tuple[int, ...]] = []
        at = place = 0
        points = self.transform.points
        assert points == 1 or len(self.sections) == 1
        rows, total = self.transform.rows, sum(len(section) for section in self.sections)
        together = max(1, min(TOGETHER // rows, total * self.groups // 8)) if self.transform.channels_first else 1
        for section in self.sections:
            taps, size, entries = section.shape[1], section[0].size, len(section) // self.chunks
            step = taps * self.part * self.planes * rows  # of an entry in a part
            for _ in range(self.chunks):
                for first in range(0, entries, together):
                    count = min(together, entries - first)
                    batches.append((taps, at + first * size, place + first * step, count, entries))
                at += entries * size
                place += entries * step * self.parts * points
        slots = {
            "batch_count": len(batches), "channels": self.channels, "part": self.part, "planes": self.planes,
            "channel_step": self.channel_step, "source_group": self.source_group,
            "target_group": self.point_size * self.transform.points, "target_point": self.point_size // self.chunks,
            "workspace_bytes": 0,
        }  # fmt: skip
        offsets = np.concatenate([s.reshape(-1) for s in self.sections] or [np.zeros(1, np.int64)])
        tables = {"batches": np.array(batches or [(0,) * BATCH], np.int64), "offsets": offsets}
        return jobs.Bound(slots, tables, len(batches) * self.groups)


def strides(spec: ConvSpec) -> tuple[int, int, int]:
    """(output channel, input channel, group) steps in torch's weight, in elements."""
    c, m, k = spec.in_channels // spec.groups, spec.out_channels // spec.groups, prod(spec.kernel_size)
    return (k, m * k, c * m * k) if spec.transposed else (c * k, k, c * m * k)


def rows_of(matrix: NDArray[Any] | None) -> Matrix | None:
    """A transform's matrix as a value."""
    return None if matrix is None else tuple(tuple(float(v) for v in row) for row in matrix)


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
    """The module's IR text; its entry is `entry(job)`, a task packs one batch of entries of one group."""
    element, rows = transform.element, transform.rows
    lanes = 1 << (rows - 1).bit_length()
    type_, index_type = vector(element, lanes), vector("i64", lanes)
    window = list(product(*(range(n) for n in transform.window)))
    some = vector("i1", lanes)
    mask_text = "<" + ", ".join(f"i1 {'true' if i < rows else 'false'}" for i in range(lanes)) + ">" if lanes > 1 else "true"

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        del workspace
        s = {n: SLOTS.read(f, job, n) for n in SLOTS.names[len(jobs.COMMON) + 4 :]}
        group, at = number // s["batch_count"], number % s["batch_count"]
        batch = SLOTS.pointer(f, job, "batches", "i64")[at * BATCH]
        taps, first, place, entries, entries_a_chunk = (f.load("i64", batch[i]) for i in range(BATCH))
        offsets = SLOTS.pointer(f, job, "offsets", "i64")[first]
        source = SLOTS.pointer(f, job, "x", element)[group * s["source_group"]]
        target = SLOTS.pointer(f, job, "y", element)[group * s["target_group"] + place]
        used = Value(f, mask_text, some)
        zero = f.splat(0.0, type_) if lanes == 1 else Value(f, "zeroinitializer", type_)
        window_rows = len(window) * rows
        tap_size = s["part"] * s["planes"] * rows  # of an entry, in the packed order

        def put(address: Value, i: int, value: Value) -> None:
            """Stores the rows of a channel at a point, in pieces without masks, which some processors store very slowly."""
            out, done = address[s["target_point"] * i], 0
            while done < rows:
                size = 1 << ((rows - done).bit_length() - 1)
                f.store(f.part(value, done, size), out[done])
                done += size

        def walk(part: Value, low: Int, high: Int, given: bool) -> None:
            """Packs channels low..high-1 of a part (zeros where none is given), in the order that suits the parameter."""
            with ExitStack() as loops:
                channels = f.loop(low, high, name="c")
                c = loops.enter_context(channels) if transform.channels_first else None
                counts = (("t", taps), ("b", s["planes"]), ("entry", entries))
                t, b, entry = [loops.enter_context(f.loop(0, count, name=name)) for name, count in counts]
                table = offsets[(t * s["planes"] + b + entry * (taps * s["planes"])) * window_rows]
                where = [_places(f, table[i * rows], rows, lanes, used, index_type) for i in range(len(window))] if given else []
                if c is None:
                    c = loops.enter_context(channels)
                values = [zero] * transform.points
                if given:
                    values = transformed(source[(part + c) * s["channel_step"]], where)
                start = part * entries_a_chunk * taps * s["planes"] * rows + t * tap_size + (c * s["planes"] + b) * rows
                for i, value in enumerate(values):
                    put(target[start + entry * taps * tap_size], i, value)

        def transformed(channel: Value, where: list[tuple[list[Value], Value]]) -> list[Value]:
            """The points of a channel's rows."""
            columns = dict(zip(window, [_take(f, channel, found, type_) for found in where], strict=True))
            for d, matrix in enumerate((transform.first, transform.second)):
                if matrix is not None:
                    columns = _along(f, d, matrix, columns)
            return [columns[point] for point in sorted(columns)]

        with f.loop(0, s["channels"], s["part"], name="part") as part:
            here = f.minimum(s["channels"] - part, s["part"])
            walk(part, 0, here, True)
            walk(part, here, s["part"], False)

    return module([jobs.emit_entry("entry", SLOTS, task)])


def _along(f: Function, d: int, matrix: Matrix, columns: dict[tuple[int, ...], Value]) -> dict[tuple[int, ...], Value]:
    """The matrix along one of the window's dimensions."""
    turned: dict[tuple[int, ...], Value] = {}
    for other in sorted({key[1 - d] for key in columns}):
        line = [columns[(i, other) if d == 0 else (other, i)] for i in range(len(matrix[0]))]
        for i, value in enumerate(_apply(f, matrix, line)):
            turned[(i, other) if d == 0 else (other, i)] = value
    return turned


def _places(f: Function, table: Value, rows: int, lanes: int, used: Value, type_: str) -> tuple[list[Value], Value]:
    """(offsets, mask of those that are not zeros) of one tap's rows."""
    offsets = [f.maximum(f.load("i64", table[r]), 0) for r in range(rows)]
    if lanes == 1:
        return offsets, f.compare("sge", f.load("i64", table), 0)
    found = f.compare("sge", f.masked_load(type_, table, used), f.splat(f.value(0), type_))
    return offsets, f._op("and", found, used)


def _take(f: Function, base: Value, where: tuple[list[Value], Value], type_: str) -> Value:
    """A vector of the elements at the offsets, zero where the mask is off."""
    offsets, mask = where
    element = element_of(type_)
    if mask.type == "i1":
        return f.select(mask, f.load(element, base[offsets[0]]), Value(f, literal(0.0, element), element))
    taken = f.emit(f"insertelement {type_} zeroinitializer, {element} {f.load(element, base[offsets[0]]).text}, i64 0", type_)
    for r, offset in enumerate(offsets[1:], 1):
        taken = f.emit(f"insertelement {type_} {taken.text}, {element} {f.load(element, base[offset]).text}, i64 {r}", type_)
    return f.select(mask, taken, Value(f, "zeroinitializer", type_))


def reference(layout: Layout, weight: NDArray[Any]) -> NDArray[Any]:
    """The same by NumPy, for the tests and where no code can be made."""
    flat, t = weight.reshape(-1), layout.transform
    groups = np.arange(layout.groups).reshape(-1, *(1,) * 6) * layout.source_group
    number = np.arange(layout.parts * layout.part).reshape(1, 1, 1, -1, 1, 1, 1)
    channels, there = np.minimum(number, layout.channels - 1) * layout.channel_step, number < layout.channels
    parts = []
    for section in layout.sections:
        offsets = section[None, :, :, None]  # group entry tap channel plane window row
        taken = np.where((offsets >= 0) & there, flat[np.maximum(offsets, 0) + groups + channels], 0)
        shape = taken.shape
        taken = taken.reshape(*shape[:5], *t.window, shape[-1])
        for axis, matrix in ((5, t.first), (6, t.second)):
            if matrix is not None:
                taken = np.moveaxis(np.tensordot(taken, np.array(matrix, weight.dtype), axes=([axis], [1])), -1, axis)
        points = taken.reshape(
            shape[0], layout.chunks, -1, shape[2], layout.parts, layout.part, shape[4], t.points, shape[-1]
        )  # group chunk entry tap part channel plane point row
        parts.append(points.transpose(0, 1, 7, 4, 2, 3, 5, 6, 8).reshape(layout.groups, -1))
    if not parts:
        return np.zeros(16, weight.dtype)
    return np.ascontiguousarray(np.concatenate(parts, axis=1))
