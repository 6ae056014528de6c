"""The band: a layer's input laid out so that every tap is one fixed offset, whatever the rank.

Each dimension is padded with the zeros that its taps can meet (shared between neighbouring rows where both ends are zero),
a strided input is split into `planes` by its index modulo the step, and the whole is numbered row-major, the batch
outermost. Output position q then stands at flat index f(q), and a tap reads f(q) + its flat offset: rank is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from upconv.shapes.phase import phase_taps
from upconv.spec import ConvSpec, Problem, effective_kernel


def round_up(value: int, unit: int) -> int:
    """The least multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def folded(spec: ConvSpec) -> str | None:
    """Why no kernel runs a layer of another padding mode than zeros, or None for one of zeros."""
    return None if spec.padding_mode == "zeros" else f"padding_mode {spec.padding_mode} is folded outside the kernel"


Taps = tuple[tuple[int, int, int], ...]
"""One dimension of a phase: (kernel index, offset, plane) of each tap."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension. `phases[a]` is None for a phase without any output; `first` is the offset of row position 0."""

    size: int
    out_size: int
    out_step: int
    in_step: int
    crop: int
    positions: int
    pitch: int
    base: int
    first: int
    planes: int
    phases: tuple[Taps | None, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """Where a tap reads: flat offset and plane in the band; and its index in x, in each dimension, at position 0."""

    flat: int
    plane: int
    at: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap's kernel indices and what it reads."""

    kernel: tuple[int, ...]
    read: Read


@dataclass(frozen=True, slots=True)
class Band:
    """Three axes (missing ones have size 1) and what follows from them."""

    batch: int
    axes: tuple[Axis, Axis, Axis]

    @property
    def volume(self) -> int:
        """Positions of one image."""
        return self.axes[0].pitch * self.axes[1].pitch * self.axes[2].pitch

    @property
    def length(self) -> int:
        """Positions of the whole batch, the unused tail of the last image left off."""
        d, h, w = self.axes
        last = ((d.positions - 1) * h.pitch + h.positions - 1) * w.pitch + w.positions
        return (self.batch - 1) * self.volume + last if self.batch else 0

    @property
    def planes(self) -> int:
        return self.axes[0].planes * self.axes[1].planes * self.axes[2].planes

    def taps(self) -> list[list[Tap] | None]:
        """For each phase, row-major: its taps, or None where it has no output."""
        _, h, w = self.axes
        strides = (h.pitch * w.pitch, w.pitch, 1)
        table: list[list[Tap] | None] = []
        for rows in product(*(axis.phases for axis in self.axes)):
            if any(row is None for row in rows):
                table.append(None)
                continue
            taps = []
            for combo in product(*(row or () for row in rows)):
                flat = sum((c[1] - axis.first) * s for c, axis, s in zip(combo, self.axes, strides, strict=True))
                plane = (combo[0][2] * h.planes + combo[1][2]) * w.planes + combo[2][2]
                d, e, g = (a.in_step * (c[1] + a.base - a.first) + c[2] for c, a in zip(combo, self.axes, strict=True))
                taps.append(Tap(tuple(c[0] for c in combo), Read(flat, plane, (d, e, g))))
            table.append(taps)
        return table


def _transposed_phases(
    size: int, out_size: int, kernel: int, stride: int, before: int, dilation: int, crop: int, low: int
) -> tuple[Taps | None, ...]:
    """Each phase's taps, without those that meet only padding; None where the phase has no output.

    `before` is the padding that the taps see: none in the uncropped numbering, whose first position is `low`.
    """
    phases: list[Taps | None] = []
    for a in range(stride):
        first, last = -((a - crop) // stride), (out_size - 1 + crop - a) // stride
        if first > last:
            phases.append(None)
            continue
        taps = phase_taps(kernel, stride, before, dilation, a)
        phases.append(tuple((k, o, 0) for k, o in taps if low + last + o >= 0 and low + first + o < size))
    return tuple(phases)


PhaseTaps = tuple[tuple[tuple[int, int], ...], ...]
"""For each phase of the innermost dimension: (number of the read, kernel index) of its taps."""


@lru_cache(maxsize=512)
def inner_taps(spec: ConvSpec) -> tuple[tuple[int, ...], PhaseTaps]:
    """(places read in a row from position 0 on, each phase's taps) of the innermost dimension, phases by the output's index."""
    k, s, l, before = spec.kernel_size[-1], spec.stride[-1], spec.dilation[-1], spec.padding[-1][0]
    if spec.transposed:
        phases = [phase_taps(k, s, before, l, a) for a in range(s)]
    else:
        phases = [tuple((i, l * i - before) for i in range(k))]
    reads = sorted({at for phase in phases for _, at in phase})
    return tuple(reads), tuple(tuple((reads.index(at), i) for i, at in phase) for phase in phases)


def _conv_taps(size: int, out_size: int, kernel: int, stride: int, before: int, dilation: int) -> Taps:
    """A convolution's taps, without those that meet only padding."""
    taps = []
    for k in range(kernel):
        offset, plane = divmod(dilation * k - before, stride)
        first = max(0, -(plane // stride) - offset)
        if first < out_size and stride * (first + offset) + plane < size:
            taps.append((k, offset, plane))
    return tuple(taps)


def axis(
    transposed: bool,
    size: int,
    out_size: int,
    kernel: int,
    stride: int,
    before: int,
    dilation: int,
    cropped: bool = False,
    planes: bool = True,
) -> Axis:
    """One dimension's geometry; `before` is the padding before. Without `planes` a convolution keeps the stride it is given.

    A transposed layer may be numbered `cropped` (phases by the output index: fewest positions) or not (phases by the index
    before cropping: where the kernel is a multiple of the stride, all phases then read the same inputs).
    """
    if transposed:
        if size == 1:  # every stride gives the same; this one leaves one tap a phase
            stride = effective_kernel(kernel, dilation)
        low = 0 if cropped else before // stride
        crop = 0 if cropped else before - stride * low
        positions = (out_size - 1 + crop) // stride + 1
        seen = before if cropped else 0
        phases = _transposed_phases(size, out_size, kernel, stride, seen, dilation, crop, low)
        in_step, out_step = 1, stride
    else:
        if out_size == 1 and planes:  # every stride gives the same; this one reads each input once, without neighbours
            stride = effective_kernel(kernel, dilation)
        low, crop, positions = 0, 0, out_size
        phases = (_conv_taps(size, out_size, kernel, stride, before, dilation),)
        in_step, out_step = stride, 1
    taps = [tap for row in phases for tap in row or ()] or [(0, 0, 0)]
    offsets, split = [offset for _, offset, _ in taps], [plane for _, _, plane in taps]
    least, span = min(offsets), max(offsets) - min(offsets)
    start, stop = low + least, low + least + positions + span
    zeros_before = max(0, -start)
    zeros_after = max(0, stop - -((min(split) - size) // in_step))
    shared = min(zeros_before, zeros_after, span)
    return Axis(
        size=size,
        out_size=out_size,
        out_step=out_step,
        in_step=in_step,
        crop=crop,
        positions=positions,
        pitch=positions + span - shared,
        base=start + shared,
        first=least + shared,
        planes=max(split) + 1,
        phases=phases,
    )


@lru_cache(maxsize=512)
def band(problem: Problem, cropped: bool = False) -> Band:
    """The band of a problem of zero padding mode."""
    spec = problem.spec
    sizes = zip(
        problem.input_size,
        problem.output_size,
        spec.kernel_size,
        spec.stride,
        (lo for lo, _ in spec.padding),
        spec.dilation,
        strict=True,
    )
    axes = [axis(spec.transposed, n, o, k, s, before, l, cropped) for n, o, k, s, before, l in sizes]
    missing = [axis(spec.transposed, 1, 1, 1, 1, 0, 1)] * (3 - spec.rank)
    d, h, w = [*missing, *axes]
    return Band(problem.batch, (d, h, w))
