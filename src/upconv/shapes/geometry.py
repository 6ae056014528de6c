"""The arguments that decide a layer's sizes, without its channels: what solver, inverse and chain speak of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from upconv.shapes.sizes import _rank, layer
from upconv.spec import ConvSpec, SpecError

_FIELDS = ("kernel_size", "stride", "padding", "output_padding", "dilation")
_PLAIN = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}


@dataclass(frozen=True, slots=True)
class Geometry:
    """A layer's sizes as a value.

    >>> up = Geometry.make(kernel_size=3, stride=2, padding=1, output_padding=1, rank=2)
    >>> print(up)
    ConvTranspose2d(kernel_size=3, stride=2, padding=1, output_padding=1)
    >>> up.output_size((6, 6))
    (12, 12)
    >>> up.arguments()["padding"]
    (1, 1)

    `padding` holds one int a dimension, or (before, after) pairs where some dimension needs two different ones.
    `arguments()` goes to a layer's constructor: `torch.nn.ConvTranspose2d(16, 33, **up.arguments())`.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[Any, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = True

    @classmethod
    def make(cls, *, transposed: bool = True, rank: int | None = None, **arguments: Any) -> Geometry:
        """From arguments as a layer takes them (ints, tuples, pairs, "same"). Raises SpecError."""
        rank = rank or _rank(*arguments.values())
        return cls.of(layer(transposed, rank, **arguments))

    @classmethod
    def of(cls, source: Any) -> Geometry:
        """Of anything with a layer's attributes: a ConvSpec, a Geometry, a layer of upconv.nn or torch.nn, or a pooling
        layer (which sizes as a convolution does). Raises TypeError for anything else.
        """
        if isinstance(source, Geometry):
            return source
        spec = source if isinstance(source, ConvSpec) else getattr(source, "spec", None)
        if not isinstance(spec, ConvSpec):
            spec = _read(source)
        even = all(lo == hi for lo, hi in spec.padding)
        padding = tuple(lo for lo, _ in spec.padding) if even else spec.padding
        return cls(spec.kernel_size, spec.stride, padding, spec.output_padding, spec.dilation, spec.transposed)

    @property
    def rank(self) -> int:
        return len(self.kernel_size)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """`padding` as (before, after) pairs, whatever form it is held in."""
        return tuple(p if isinstance(p, tuple) else (p, p) for p in self.padding)

    def spec(self, in_channels: int = 1, out_channels: int = 1, groups: int = 1) -> ConvSpec:
        """The whole layer, with channels."""
        return ConvSpec.make(
            transposed=self.transposed,
            in_channels=in_channels,
            out_channels=out_channels,
            groups=groups,
            rank=self.rank,
            **self.arguments(),
        )

    def arguments(self) -> dict[str, Any]:
        """The constructor's keyword arguments; output_padding only for a transposed layer."""
        names = _FIELDS if self.transposed else [n for n in _FIELDS if n != "output_padding"]
        return {name: getattr(self, name) for name in names}

    def output_size(self, input_size: Any) -> tuple[int, ...]:
        """The spatial output size. Raises SpecError where nothing would be left."""
        return self.spec().output_size(input_size)

    def __str__(self) -> str:
        shown = {name: _short(value) for name, value in self.arguments().items()}
        parts = [f"{name}={value}" for name, value in shown.items() if value != _PLAIN.get(name)]
        return f"Conv{'Transpose' if self.transposed else ''}{self.rank}d({', '.join(parts)})"


def _short(values: tuple[Any, ...]) -> Any:
    """One int where every dimension has the same: (2, 2) as 2."""
    return values[0] if len(set(values)) == 1 and isinstance(values[0], int) else values


def _read(source: Any) -> ConvSpec:
    """The layer that an object's attributes describe, those of torch.nn's convolutions and pooling layers."""
    kernel = getattr(source, "kernel_size", None)
    if kernel is None:
        raise TypeError(
            f"{type(source).__name__} is not a layer that changes sizes: give a ConvSpec, or a convolution, transposed "
            f"convolution or pooling layer with kernel_size, stride, padding and dilation"
        )
    if getattr(source, "ceil_mode", False):
        raise SpecError(f"{type(source).__name__} has ceil_mode=True: sizes here round down; use ceil_mode=False")
    given = {name: getattr(source, name) for name in _FIELDS if hasattr(source, name)}
    transposed = bool(getattr(source, "transposed", False))
    digits = [int(c) for c in type(source).__name__ if c in "123"]
    rank = len(tuple(kernel)) if isinstance(kernel, Iterable) else (digits or [1])[-1]
    if not transposed:
        given.pop("output_padding", None)
    return layer(transposed, rank, **given)
