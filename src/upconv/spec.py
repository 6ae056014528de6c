"""What a layer is: frozen, validated values, and every error message about them.

This module is the ground floor. It imports only the standard library, so that sizes can be asked for without NumPy.

>>> spec = ConvSpec.make(transposed=True, in_channels=16, out_channels=33, kernel_size=3, stride=2, rank=2)
>>> spec.output_size((50, 100))
(101, 201)
>>> print(spec)
ConvTranspose2d 16 -> 33, kernel 3x3, stride 2x2
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")
ACTIVATIONS = {  # name -> its parameter's default, None where it takes none
    "relu": None,
    "leaky_relu": 0.01,
    "elu": 1.0,
    "sigmoid": None,
    "tanh": None,
    "silu": None,
}


class SpecError(ValueError, RuntimeError):
    """An argument that no layer can have, or that does not fit the arrays it came with.

    A ValueError, as NumPy raises it, and a RuntimeError, as PyTorch's layers do, so that either's callers catch it.
    The text says what was given, what is allowed, and what to change.
    """


def times(values: Sequence[int]) -> str:
    """Sizes as people write them.

    >>> times((3, 5))
    '3x5'
    """
    return "x".join(str(v) for v in values)


def integer(name: str, value: Any, least: int) -> int:
    """`value` as an int that is at least `least`; anything with `__index__` counts, a bool does not."""
    if isinstance(value, bool):
        raise SpecError(f"{name} is {value!r}: give a whole number of at least {least}")
    try:
        number = operator.index(value)
    except TypeError:
        raise SpecError(f"{name} is {value!r}: give a whole number of at least {least}") from None
    if number < least:
        raise SpecError(f"{name} is {number}: it must be at least {least}")
    return number


def per_dimension(name: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    """An int for every dimension, or a sequence of `rank` ints, as a tuple.

    >>> per_dimension("stride", 2, 3, 1)
    (2, 2, 2)
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return (integer(name, value, least),) * rank
    values = tuple(value)
    if len(values) == 1:
        values *= rank
    if len(values) != rank:
        raise SpecError(f"{name} {values} has {len(values)} values: give one int, or {rank} ints for {rank} dimensions")
    return tuple(integer(f"{name}[{d}]", v, least) for d, v in enumerate(values))


def effective_kernel(kernel: int, dilation: int) -> int:
    """How many positions a dilated kernel spans: `dilation * (kernel - 1) + 1`."""
    return dilation * (kernel - 1) + 1


def transposed_extent(size: int, kernel: int, stride: int, crop: int, output_padding: int, dilation: int) -> int:
    """One dimension's output length of a transposed convolution; `crop` is padding before plus padding after."""
    return (size - 1) * stride + effective_kernel(kernel, dilation) - crop + output_padding


def conv_extent(size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    """One dimension's output length of a convolution (0 or less: the kernel does not fit)."""
    return (size + pad - effective_kernel(kernel, dilation)) // stride + 1


def _pairs(value: Any, rank: int) -> tuple[tuple[int, int], ...]:
    """`padding` as given (an int, a tuple of ints or of (before, after) pairs) as `rank` pairs."""
    allowed = f"give an int, {rank} ints, {rank} (before, after) pairs, 'same' or 'valid'"
    if isinstance(value, str):
        raise SpecError(f"padding is {value!r}: {allowed}")
    if not isinstance(value, Iterable):
        p = integer("padding", value, 0)
        return ((p, p),) * rank
    values = tuple(value)
    if len(values) == 1 and rank > 1 and not isinstance(values[0], Iterable):
        values *= rank
    if len(values) != rank:
        raise SpecError(f"padding {values} has {len(values)} values: {allowed}")
    pairs = []
    for d, v in enumerate(values):
        if isinstance(v, Iterable) and not isinstance(v, str):
            pair = tuple(v)
            if len(pair) != 2:
                raise SpecError(f"padding[{d}] is {pair}: a pair is (before, after)")
            pairs.append((integer(f"padding[{d}][0]", pair[0], 0), integer(f"padding[{d}][1]", pair[1], 0)))
        else:
            p = integer(f"padding[{d}]", v, 0)
            pairs.append((p, p))
    return tuple(pairs)


def _same(
    transposed: bool, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Padding and output_padding of "same": output = input * stride (transposed), output = input (convolution).

    The odd element goes after, as in torch.nn.Conv2d, TensorFlow and Keras.
    """
    if not transposed and any(s != 1 for s in stride):
        raise SpecError(
            f"padding 'same' with stride {tuple(stride)}: a convolution keeps its size only at stride 1; "
            f"use stride 1, or give the padding in numbers"
        )
    pairs, extra = [], []
    for k, s, d in zip(kernel, stride, dilation, strict=True):
        total = effective_kernel(k, d) - (s if transposed else 1)
        pairs.append((max(total, 0) // 2, max(total, 0) - max(total, 0) // 2))
        extra.append(max(-total, 0))
    return tuple(pairs), tuple(extra)


@dataclass(frozen=True, slots=True)
class Activation:
    """What is applied to an output as it is stored: a name in ACTIVATIONS and its parameter (0.0 where it has none)."""

    name: str
    parameter: float = 0.0

    @staticmethod
    def make(value: Any) -> Activation | None:
        """From None, a name, a (name, parameter) pair or an Activation.

        >>> Activation.make(("leaky_relu", 0.1))
        Activation(name='leaky_relu', parameter=0.1)
        """
        if value is None or isinstance(value, Activation):
            return value
        name, parameter = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise SpecError(f"activation is {value!r}: use one of {', '.join(ACTIVATIONS)}, or None")
        default = ACTIVATIONS[name]
        if default is None:
            if parameter is not None:
                raise SpecError(f"activation {name!r} takes no parameter, {parameter!r} was given")
            return Activation(name)
        return Activation(name, float(default if parameter is None else parameter))

    def __str__(self) -> str:
        return self.name if ACTIVATIONS[self.name] is None else f"{self.name}({self.parameter:g})"


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """One layer: everything but the sizes and the numbers. Make it with `ConvSpec.make`, which validates.

    Per-dimension fields are tuples of `rank` entries, outermost dimension first. `padding` holds (before, after) pairs
    in the sense of torch.nn.ConvTranspose2d: a transposed layer crops that much from the full output.
    """

    transposed: bool
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    padding_mode: str = "zeros"
    activation: Activation | None = None

    @classmethod
    def make(
        cls,
        *,
        transposed: bool,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        activation: Any = None,
        rank: int | None = None,
    ) -> ConvSpec:
        """Validate arguments given as torch takes them (ints or tuples) and return the layer.

        `rank` is needed only where `kernel_size` is a single int. Raises SpecError.
        """
        if rank is None:
            rank = len(tuple(kernel_size)) if isinstance(kernel_size, Iterable) else 1
        if rank not in (1, 2, 3):
            raise SpecError(f"{rank} spatial dimensions: layers have 1, 2 or 3")
        cin, cout = integer("in_channels", in_channels, 1), integer("out_channels", out_channels, 1)
        groups = integer("groups", groups, 1)
        for name, channels in (("in_channels", cin), ("out_channels", cout)):
            if channels % groups:
                raise SpecError(f"{name} {channels} is not divisible by groups {groups}")
        kernel = per_dimension("kernel_size", kernel_size, rank, 1)
        stride = per_dimension("stride", stride, rank, 1)
        dilation = per_dimension("dilation", dilation, rank, 1)
        extra = per_dimension("output_padding", output_padding, rank, 0)
        if padding == "same":
            pairs, same_extra = _same(transposed, kernel, stride, dilation)
            if any(extra):
                raise SpecError(f"padding 'same' fixes the size, so output_padding {extra} cannot be given with it")
            extra = same_extra
        else:
            pairs = ((0, 0),) * rank if padding == "valid" else _pairs(padding, rank)
        if any(extra) and not transposed:
            raise SpecError(f"output_padding {extra} belongs to transposed layers; a convolution has none")
        for d, (e, s, l) in enumerate(zip(extra, stride, dilation, strict=True)):
            if e >= max(s, l) and padding != "same":
                raise SpecError(
                    f"output_padding[{d}] is {e}: it must be smaller than stride {s} or dilation {l}; "
                    f"use at most {max(s, l) - 1}, or a larger kernel"
                )
        if padding_mode not in PADDING_MODES:
            raise SpecError(f"padding_mode is {padding_mode!r}: use one of {', '.join(PADDING_MODES)}")
        return cls(
            bool(transposed),
            cin,
            cout,
            kernel,
            stride,
            pairs,
            extra,
            dilation,
            groups,
            padding_mode,
            Activation.make(activation),
        )

    @property
    def rank(self) -> int:
        return len(self.kernel_size)

    @property
    def name(self) -> str:
        return f"Conv{'Transpose' if self.transposed else ''}{self.rank}d"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """torch's layout: (in, out // groups, *kernel) transposed, (out, in // groups, *kernel) otherwise."""
        if self.transposed:
            return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial output size for a spatial input size. Raises SpecError where nothing would be left."""
        sizes = per_dimension("input_size", input_size, self.rank, 1)
        out = []
        for d, n in enumerate(sizes):
            k, s, (lo, hi), l = self.kernel_size[d], self.stride[d], self.padding[d], self.dilation[d]
            if self.transposed:
                out.append(transposed_extent(n, k, s, lo + hi, self.output_padding[d], l))
            else:
                out.append(conv_extent(n, k, s, lo + hi, l))
        if min(out) < 1:
            advice = (
                "use less padding, a larger kernel or a larger input"
                if self.transposed
                else "use a smaller kernel or dilation, more padding or a larger input"
            )
            raise SpecError(f"{self} on input {times(sizes)} gives output {tuple(out)}: every size must be at least 1; {advice}")
        return tuple(out)

    def with_output_size(self, input_size: Sequence[int], output_size: Any) -> ConvSpec:
        """This transposed layer with the output_padding that gives `output_size` (spatial, or the whole shape).

        Raises SpecError where no output_padding reaches it.
        """
        if not self.transposed:
            raise SpecError("output_size belongs to transposed layers; a convolution's output size follows from its input")
        target = tuple(output_size) if isinstance(output_size, Iterable) else (output_size,) * self.rank
        if len(target) in (self.rank + 1, self.rank + 2):
            target = target[-self.rank :]
        wanted = per_dimension("output_size", target, self.rank, 1)
        sizes = per_dimension("input_size", input_size, self.rank, 1)
        extra = required_output_padding(sizes, wanted, self.kernel_size, self.stride, self.padding, self.dilation)
        return replace(self, output_padding=extra)

    def macs(self, input_size: Sequence[int], batch: int = 1) -> int:
        """Multiply-adds of the direct sum as counters usually give it: borders are not subtracted."""
        sites = prod(input_size) if self.transposed else prod(self.output_size(input_size))
        return batch * sites * prod(self.kernel_size) * self.in_channels * self.out_channels // self.groups

    def __str__(self) -> str:
        parts = [f"{self.name} {self.in_channels} -> {self.out_channels}", f"kernel {times(self.kernel_size)}"]
        if any(s != 1 for s in self.stride):
            parts.append(f"stride {times(self.stride)}")
        if any(p != (0, 0) for p in self.padding):
            even = all(lo == hi for lo, hi in self.padding)
            parts.append(f"padding {times([lo for lo, _ in self.padding]) if even else self.padding}")
        if any(self.output_padding):
            parts.append(f"output_padding {times(self.output_padding)}")
        if any(l != 1 for l in self.dilation):
            parts.append(f"dilation {times(self.dilation)}")
        if self.groups != 1:
            parts.append(f"groups {self.groups}")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode {self.padding_mode}")
        if self.activation:
            parts.append(str(self.activation))
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Problem:
    """A layer with its sizes: all that a plan needs to know. `dtype` is "float32" or "float64"."""

    spec: ConvSpec
    batch: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    dtype: str = "float32"

    @property
    def itemsize(self) -> int:
        return 4 if self.dtype == "float32" else 8

    @property
    def flops(self) -> int:
        """Two for each multiply-add of the direct sum, borders not subtracted."""
        return 2 * self.spec.macs(self.input_size, self.batch)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.spec.in_channels, *self.input_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.spec.out_channels, *self.output_size)

    @property
    def bytes(self) -> int:
        """What any algorithm must move: input, output and weights once."""
        numbers = prod(self.input_shape) + prod(self.output_shape) + prod(self.spec.weight_shape)
        return numbers * self.itemsize


def required_output_padding(
    input_size: tuple[int, ...],
    output_size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    """The output_padding that makes `output_size` of `input_size`, every argument already normalised. Raises SpecError."""
    least = tuple(
        transposed_extent(n, k, s, lo + hi, 0, l)
        for n, k, s, (lo, hi), l in zip(input_size, kernel, stride, padding, dilation, strict=True)
    )
    most = tuple(m + max(s, l) - 1 for m, s, l in zip(least, stride, dilation, strict=True))
    if all(a <= o <= b for a, o, b in zip(least, output_size, most, strict=True)):
        return tuple(o - a for o, a in zip(output_size, least, strict=True))
    near = tuple(min(max(o, a), b) for o, a, b in zip(output_size, least, most, strict=True))
    shape = f"kernel {times(kernel)}, stride {times(stride)}, padding {times([lo for lo, _ in padding])}"
    if any(lo != hi for lo, hi in padding):
        shape = f"kernel {times(kernel)}, stride {times(stride)}, padding {padding}"
    if any(l != 1 for l in dilation):
        shape += f", dilation {times(dilation)}"
    reach = f"{least} to {most}" if least != most else f"only {least}"
    advice = ""
    if min(near) >= 1:
        extra = tuple(n - a for n, a in zip(near, least, strict=True))
        advice = f"; use output_padding {extra} for {near}, or another kernel or padding for {output_size}"
    raise SpecError(f"output_size {output_size} is not reachable: {shape} on input {input_size} gives {reach}{advice}")
