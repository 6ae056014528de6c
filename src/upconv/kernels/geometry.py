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
from upconv.spec import Problem


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension. `phases[a]` lists (kernel index, offset, plane); `first` is the offset of row position 0."""

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
    phases: tuple[tuple[tuple[int, int, int], ...], ...]


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

    def taps(self) -> list[list[tuple[tuple[int, ...], int, int]]]:
        """For each phase, row-major: its taps as (kernel indices, flat offset, plane)."""
        d, h, w = self.axes
        strides = (h.pitch * w.pitch, w.pitch, 1)
        table = []
        for choice in product(*(range(len(axis.phases)) for axis in self.axes)):
            rows = [axis.phases[a] for axis, a in zip(self.axes, choice, strict=True)]
            taps = []
            for combo in product(*rows):
                flat = sum((c[1] - axis.first) * s for c, axis, s in zip(combo, self.axes, strides, strict=True))
                plane = (combo[0][2] * h.planes + combo[1][2]) * w.planes + combo[2][2]
                taps.append((tuple(c[0] for c in combo), flat, plane))
            table.append(taps)
        return table


def axis(transposed: bool, size: int, out_size: int, kernel: int, stride: int, before: int, dilation: int) -> Axis:
    """One dimension's geometry; `before` is the padding before."""
    if transposed:
        low, high = before // stride, (out_size - 1 + before) // stride
        phases = tuple(tuple((k, offset, 0) for k, offset in phase_taps(kernel, stride, 0, dilation, a)) for a in range(stride))
        lowest, planes, in_step, out_step = 0, 1, 1, stride
    else:
        low, high = 0, out_size - 1
        reads = [(k, divmod(dilation * k - before, stride)) for k in range(kernel)]
        lowest, planes = min(plane for _, (_, plane) in reads), 1 + max(plane for _, (_, plane) in reads)
        phases = (tuple((k, offset, plane) for k, (offset, plane) in reads),)
        in_step, out_step = stride, 1
    offsets = [offset for taps in phases for _, offset, _ in taps]
    least, span = min(offsets), max(offsets) - min(offsets)
    positions = high - low + 1
    start, stop = low + least, low + least + positions + span
    zeros_before = max(0, -start)
    zeros_after = max(0, stop - -((lowest - size) // in_step))
    shared = min(zeros_before, zeros_after, span)
    return Axis(
        size=size,
        out_size=out_size,
        out_step=out_step,
        in_step=in_step,
        crop=before - stride * low if transposed else 0,
        positions=positions,
        pitch=positions + span - shared,
        base=start + shared,
        first=least + shared,
        planes=planes,
        phases=phases,
    )


@lru_cache(maxsize=512)
def band(problem: Problem) -> Band:
    """The band of a problem of zero padding mode."""
    spec = problem.spec
    axes = [
        axis(spec.transposed, n, o, k, s, lo, d)
        for n, o, k, s, (lo, _), d in zip(
            problem.input_size,
            problem.output_size,
            spec.kernel_size,
            spec.stride,
            spec.padding,
            spec.dilation,
            strict=True,
        )
    ]
    missing = [axis(spec.transposed, 1, 1, 1, 1, 0, 1)] * (3 - spec.rank)
    d, h, w = [*missing, *axes]
    return Band(problem.batch, (d, h, w))
