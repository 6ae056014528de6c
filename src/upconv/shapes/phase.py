"""The one idea of this library: a transposed convolution is a set of small stride-1 convolutions, interleaved.

Output `o` takes input `i` through kernel index `k` where `o + p = s*i + d*k`. Fix the phase `a = o mod s`: with
`o = a + s*q` every output of the phase reads `i = q + offset` through the same taps, `offset = (a + p - d*k) / s`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from upconv.shapes.sizes import _rank, layer


@dataclass(frozen=True, slots=True)
class Tap:
    """One kernel index and the input offset it reads at, a tuple entry a dimension."""

    kernel: tuple[int, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """The outputs `index + out_step*q`, each the sum over `taps` of `x[in_step*q + tap.offset] * w[tap.kernel]`."""

    index: tuple[int, ...]
    out_step: tuple[int, ...]
    in_step: tuple[int, ...]
    taps: tuple[Tap, ...]


def phase_taps(kernel: int, stride: int, before: int, dilation: int, phase: int) -> tuple[tuple[int, int], ...]:
    """One dimension of one phase: (kernel index, input offset) pairs, by rising kernel index.

    >>> phase_taps(4, 2, 1, 1, phase=0)
    ((1, 0), (3, -1))
    """
    return tuple(
        (k, (phase + before - dilation * k) // stride) for k in range(kernel) if (phase + before - dilation * k) % stride == 0
    )


def phases(kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *, transposed: bool = True) -> tuple[Phase, ...]:
    """Every phase of a layer, row-major over the dimensions' phases.

    >>> for phase in phases(4, stride=2, padding=1):
    ...     print(phase.index, [(tap.kernel, tap.offset) for tap in phase.taps])
    (0,) [((1,), (0,)), ((3,), (-1,))]
    (1,) [((0,), (1,)), ((2,), (0,))]

    A convolution (`transposed=False`) has one phase, whose `in_step` is the stride. Phases without taps (kernel smaller
    than stride) are listed too, with none. Raises SpecError for impossible arguments.
    """
    rank = _rank(kernel_size, stride, padding, dilation)
    spec = layer(transposed, rank, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    ones = (1,) * rank
    if not transposed:
        rows = [
            [(k, d * k - lo) for k in range(n)] for n, d, (lo, _) in zip(spec.kernel_size, spec.dilation, spec.padding, strict=True)
        ]
        return (Phase((0,) * rank, ones, spec.stride, _taps(rows)),)
    found = []
    for index in product(*(range(s) for s in spec.stride)):
        rows = [
            list(phase_taps(k, s, lo, d, a))
            for k, s, (lo, _), d, a in zip(spec.kernel_size, spec.stride, spec.padding, spec.dilation, index, strict=True)
        ]
        found.append(Phase(index, spec.stride, ones, _taps(rows)))
    return tuple(found)


def _taps(rows: list[list[tuple[int, int]]]) -> tuple[Tap, ...]:
    return tuple(Tap(tuple(k for k, _ in t), tuple(o for _, o in t)) for t in product(*rows))
