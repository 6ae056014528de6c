"""One dimension of a layer as integers: which positions meet through which taps. Every picture starts here.

A layer's connections are the product of its dimensions' connections, so one dimension is all there is to know. The
sparse side `j` (a transposed layer's input, a convolution's output) and the dense side `p` (the other one) meet through
kernel index `k` where `p + before = stride*j + dilation*k`; both directions and both questions ("what makes this
output", "what does this input reach") solve that one equation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import gcd

from upconv.spec import ConvSpec, effective_kernel


@dataclass(frozen=True, slots=True)
class Link:
    """One input position, one tap, one output position, that the layer multiplies and adds."""

    input: int
    tap: int
    output: int


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of a layer on one input size. Sizes are in positions; nothing here is ever enumerated whole."""

    transposed: bool
    input: int
    output: int
    kernel: int
    stride: int
    before: int
    after: int
    output_padding: int
    dilation: int
    padding_mode: str = "zeros"

    @classmethod
    def of(cls, spec: ConvSpec, dimension: int, input_size: int, output_size: int) -> Axis:
        before, after = spec.padding[dimension]
        return cls(
            spec.transposed,
            input_size,
            output_size,
            spec.kernel_size[dimension],
            spec.stride[dimension],
            before,
            after,
            spec.output_padding[dimension],
            spec.dilation[dimension],
            spec.padding_mode,
        )

    @property
    def span(self) -> int:
        """How many positions the dilated kernel covers."""
        return effective_kernel(self.kernel, self.dilation)

    @property
    def dense(self) -> int:
        """Positions on the side that the kernel walks over: a transposed layer's output, a convolution's input."""
        return self.output if self.transposed else self.input

    @property
    def sparse(self) -> int:
        return self.input if self.transposed else self.output

    def _images(self, position: int) -> Iterator[int]:
        """Every position of the padded dense side that `padding_mode` identifies with `position`, itself first."""
        yield position
        if self.padding_mode == "zeros":
            return
        first, last, size = -self.before, self.dense + self.after - 1, self.dense
        if self.padding_mode == "replicate" or size == 1:
            if position == 0:
                yield from range(first, 0)
            if position == size - 1:
                yield from range(size, last + 1)
            return
        period = size if self.padding_mode == "circular" else 2 * (size - 1)
        mirrored = {position} if self.padding_mode == "circular" else {position, -position}
        for start in sorted({m % period for m in mirrored}):
            lowest = start - (start - first) // period * period
            yield from (p for p in range(lowest, last + 1, period) if p != position)

    def _meets(self, position: int) -> range:
        """The taps through which a (possibly padded) dense position meets a sparse one: always an arithmetic series."""
        s, d, reach = self.stride, self.dilation, position + self.before
        least = max(0, -((s * (self.sparse - 1) - reach) // d))
        most = min(self.kernel - 1, reach // d)
        g = gcd(s, d)
        if reach % g:
            return range(0)
        step = s // g
        first = (reach // g) * pow(d // g, -1, step) % step if step > 1 else 0
        return range(least + (first - least) % step, most + 1, step)

    def _at_dense(self, position: int) -> Iterator[tuple[int, int]]:
        """(sparse position, tap) pairs that a dense position meets."""
        for p in self._images(position):
            for k in self._meets(p):
                yield (p + self.before - self.dilation * k) // self.stride, k

    def fold(self, position: int) -> int | None:
        """The dense position that a padded one stands for, None where padding is zeros (cropped, or zero)."""
        size = self.dense
        if 0 <= position < size:
            return position
        if self.padding_mode == "zeros":
            return None
        if self.padding_mode == "replicate" or size == 1:
            return 0 if position < 0 else size - 1
        if self.padding_mode == "circular":
            return position % size
        position %= 2 * (size - 1)
        return position if position < size else 2 * (size - 1) - position

    def _at_sparse(self, position: int) -> Iterator[tuple[int, int]]:
        """(dense position, tap) pairs that a sparse position meets."""
        for k in range(self.kernel):
            p = self.fold(self.stride * position + self.dilation * k - self.before)
            if p is not None:
                yield p, k

    def sources(self, output: int, limit: int | None = None) -> tuple[Link, ...]:
        """What makes one output: its inputs and taps, at most `limit` of them, by rising input position.

        >>> from upconv import ConvSpec
        >>> axis = Axis(True, 3, 6, kernel=4, stride=2, before=1, after=1, output_padding=0, dilation=1)
        >>> axis.sources(2)
        (Link(input=0, tap=3, output=2), Link(input=1, tap=1, output=2))
        """
        pairs = self._at_dense(output) if self.transposed else self._at_sparse(output)
        return tuple(sorted((Link(i, k, output) for i, k in islice(pairs, limit)), key=lambda link: link.input))

    def reached(self, input: int, limit: int | None = None) -> tuple[Link, ...]:
        """What one input reaches: outputs and taps, at most `limit` of them, by rising output position."""
        pairs = self._at_sparse(input) if self.transposed else self._at_dense(input)
        return tuple(sorted((Link(input, k, o) for o, k in islice(pairs, limit)), key=lambda link: link.output))

    def writes(self, output: int) -> int:
        """How many taps write one output position, the borders seen."""
        if self.transposed:
            return sum(len(self._meets(p)) for p in self._images(output))
        if self.padding_mode != "zeros":
            return self.kernel
        first = self.stride * output - self.before
        least = max(0, -(first // self.dilation))
        most = min(self.kernel - 1, (self.input - 1 - first) // self.dilation)
        return max(0, most - least + 1)

    def writes_by_phase(self, limit: int) -> tuple[int, ...]:
        """Taps of each phase away from the borders, at most `limit` phases; a convolution has one."""
        if not self.transposed:
            return (self.kernel,)
        s, d, g = self.stride, self.dilation, gcd(self.stride, self.dilation)
        counts = []
        for a in range(min(s, limit)):
            reach, step = a + self.before, s // g
            if reach % g:
                counts.append(0)
                continue
            first = (reach // g) * pow(d // g, -1, step) % step if step > 1 else 0
            counts.append(len(range(first, self.kernel, step)))
        return tuple(counts)

    @property
    def even(self) -> bool:
        """True where every output away from the borders is the sum of equally many taps (no checkerboard built in).

        The phases share the taps out equally where stride/gcd divides the kernel and no phase is skipped by dilation.
        """
        if not self.transposed:
            return True
        return gcd(self.stride, self.dilation) == 1 and self.kernel % self.stride == 0

    def formula(self) -> str:
        """The output size, the numbers filled in.

        >>> Axis(True, 6, 12, 3, 2, 1, 1, 1, 1).formula()
        '(6 - 1)*2 - 1 - 1 + 1*(3 - 1) + 1 + 1 = 12'
        """
        n, k, s, lo, hi, d = self.input, self.kernel, self.stride, self.before, self.after, self.dilation
        if self.transposed:
            return f"({n} - 1)*{s} - {lo} - {hi} + {d}*({k} - 1) + {self.output_padding} + 1 = {self.output}"
        return f"floor(({n} + {lo} + {hi} - {d}*({k} - 1) - 1) / {s}) + 1 = {self.output}"


def formula_in_words(transposed: bool) -> str:
    """The size formula with names, as `Axis.formula` fills it in."""
    if transposed:
        return "output = (input - 1)*stride - padding - padding + dilation*(kernel - 1) + output_padding + 1"
    return "output = floor((input + padding + padding - dilation*(kernel - 1) - 1) / stride) + 1"
