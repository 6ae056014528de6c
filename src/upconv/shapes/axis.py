"""One dimension of the question which layers map one size to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from upconv.shapes.sizes import layer
from upconv.spec import conv_extent, effective_kernel, transposed_extent

SMALL = 8  # every kernel and every stride up to this is tried
REPEATS = 4  # and kernels within one of 1 to 4 times the stride
EXTRA = 7  # the largest output_padding tried, unless kernel and stride are both given
BORDERS = 4096  # the most paddings listed for one kernel and stride


class Setting(NamedTuple):
    """One dimension of a layer."""

    kernel: int
    stride: int
    before: int
    after: int
    extra: int
    dilation: int


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of a question; None where an argument is free."""

    transposed: bool
    input: int
    output: int
    kernel: int | None
    stride: int | None
    padding: tuple[int, int] | str | None
    extra: int | None
    dilation: int

    def solutions(self, output: int) -> Iterator[Setting]:
        """Every setting within bounds that makes `output`."""
        for s in self._strides(output):
            for k in self._kernels(s, output):
                base = transposed_extent(self.input, k, s, 0, 0, self.dilation)
                for (lo, hi), extra in self._borders(k, s, output, base):
                    yield Setting(k, s, lo, hi, extra, self.dilation)

    def near(self) -> list[int]:
        """`output` if it can be reached, else the nearest sizes below and above that can."""
        found = {1, self.output}
        for s in self._nearby_strides():
            for k in self._kernels(s, self.output):
                least, most = self._reach(k, s)
                if least <= most:
                    found.add(min(max(self.output, least), most))
        by_distance = sorted(found, key=lambda size: abs(size - self.output))
        if self._reached(self.output):
            return [self.output]
        below = next((size for size in by_distance if size < self.output and self._reached(size)), None)
        above = next((size for size in by_distance if size > self.output and self._reached(size)), None)
        return [size for size in (below, above) if size is not None]

    def _reached(self, output: int) -> bool:
        return next(self.solutions(output), None) is not None

    def ends(self, output: int) -> tuple[int, int]:
        """The strided side's size and the other one's."""
        return (self.input, output) if self.transposed else (output, self.input)

    def _strides(self, output: int) -> Sequence[int]:
        if self.stride is not None:
            return (self.stride,)
        few, many = self.ends(output)
        about = range(max(1, -((few - many) // few)), many // few + 2)  # stride*few within few of many
        return sorted({*range(1, SMALL + 1), *about})

    def _nearby_strides(self) -> Sequence[int]:
        """Every stride that `_strides` could name for the outputs nearest to `output`."""
        if self.stride is not None:
            return (self.stride,)
        strides = set(self._strides(self.output))
        strides |= {s + c for s in strides for c in (-1, 1)} - {0}
        if self.kernel is not None:  # past the last of these, a fixed kernel cannot keep to the ratio of the sizes
            last = self.input + effective_kernel(self.kernel, self.dilation) + max(EXTRA, self.dilation)
            strides.update(range(max(last - 2 * EXTRA, 1), last + 1))
        return sorted(strides)

    def _kernels(self, stride: int, output: int) -> Sequence[int]:
        if self.kernel is not None:
            return (self.kernel,)
        few, many = self.ends(output)
        near = {r * stride + c for r in range(1, REPEATS + 1) for c in (-1, 0, 1)} - {0}
        return sorted({*range(1, SMALL + 1), *near, *((many,) if few == 1 else ())})

    def _extras(self, kernel_and_stride_given: bool, stride: int) -> range:
        top = max(stride, self.dilation) - 1 if self.transposed else 0
        if self.extra is not None:
            return range(self.extra, min(self.extra, top) + 1)
        return range((top if kernel_and_stride_given else min(top, EXTRA)) + 1)

    def _padding(self, kernel: int, stride: int) -> tuple[range, range, tuple[int, int] | None]:
        """The totals of padding and the output_paddings to try, and the one (before, after) where it is given."""
        extras = self._extras(self.kernel is not None and self.stride is not None, stride)
        if self.padding is None:
            return range(2 * (effective_kernel(kernel, self.dilation) - 1) + 1), extras, None
        if not isinstance(self.padding, str):
            return range(sum(self.padding), sum(self.padding) + 1), extras, self.padding
        if not self.transposed and stride != 1:
            return range(0), range(0), None
        same = layer(self.transposed, 1, kernel_size=kernel, stride=stride, dilation=self.dilation, padding="same")
        (pair,), (extra,) = same.padding, same.output_padding
        given = self.extra in (None, extra)
        return range(sum(pair), sum(pair) + 1), range(extra, extra + 1) if given else range(0), pair

    def _borders(self, kernel: int, stride: int, output: int, base: int) -> Iterator[tuple[tuple[int, int], int]]:
        """The first BORDERS ((before, after), output_padding) that make `output`, by rising padding."""
        totals, extras, pair = self._padding(kernel, stride)
        if not totals or not extras:
            return
        if self.transposed:
            surplus = base - output  # what padding less output_padding must be
            first = max(extras[0], totals[0] - surplus)
            fitting = range(first, min(extras[-1], totals[-1] - surplus, first + BORDERS - 1) + 1)
            for extra in fitting:
                yield pair or _split(surplus + extra), extra
        else:
            least = (output - 1) * stride + effective_kernel(kernel, self.dilation) - self.input
            first = max(least, totals[0])
            for total in range(first, min(least + stride - 1, totals[-1], first + BORDERS - 1) + 1):
                yield pair or _split(total), 0

    def _reach(self, kernel: int, stride: int) -> tuple[int, int]:
        """The least and the largest output of this kernel and stride; every size between is reached too."""
        totals, extras, _ = self._padding(kernel, stride)
        if not totals or not extras:
            return 1, 0
        ends = []
        for pad, extra in ((totals[-1], extras[0]), (totals[0], extras[-1])):
            ends.append(transposed_extent(self.input, kernel, stride, pad, extra, self.dilation))
        if not self.transposed:
            ends = [conv_extent(self.input, kernel, stride, pad, self.dilation) for pad in (totals[0], totals[-1])]
        least, most = max(ends[0], 1), ends[1]
        if self.stride is None and stride > SMALL:  # where `_strides` would name this stride
            if self.transposed:
                return max(least, self.input * (stride - 1)), min(most, self.input * (stride + 1))
            return max(least, -(-self.input // (stride + 1))), min(most, self.input // (stride - 1))
        return least, most


def _split(total: int) -> tuple[int, int]:
    """Padding on both sides, one more after where it is odd."""
    return total // 2, total - total // 2
