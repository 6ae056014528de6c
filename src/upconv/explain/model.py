"""What there is to know about a layer on one input size, as a frozen value that text and pictures are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice, product
from math import prod
from os import PathLike
from typing import TYPE_CHECKING, Any

from upconv.explain.axis import Axis, Link, formula_in_words
from upconv.shapes import Phase, phases
from upconv.spec import ConvSpec, SpecError, per_dimension

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

PHASES_SHOWN = 16


@dataclass(frozen=True, slots=True)
class Term:
    """One product of the sum that makes an output: x at `input` times w at `tap`, added to y at `output`."""

    input: tuple[int, ...]
    tap: tuple[int, ...]
    output: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """The layer of the other direction with the same arguments, and the size it makes of this layer's output."""

    partner: ConvSpec
    size: tuple[int, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """A layer on one input size. `print` it, look at it in a notebook, or `save` it as a picture.

    >>> from upconv.explain import explain
    >>> e = explain(dict(kernel_size=4, stride=2, padding=1), 3)
    >>> e.output_size, e.even
    ((6,), True)
    >>> [(term.input, term.tap) for term in e.sources((2,))]
    [((0,), (3,)), ((1,), (1,))]
    """

    spec: ConvSpec
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    axes: tuple[Axis, ...]
    phases: tuple[Phase, ...]  # the first PHASES_SHOWN of `phase_count`
    phase_count: int
    round_trip: RoundTrip | None
    example: tuple[int, ...]  # the output cell that text and still pictures single out
    view: tuple[int, ...]  # the output cell around which large layers are shown

    @property
    def even(self) -> bool:
        """True where every output away from the borders sums equally many taps, so that no checkerboard is built in."""
        return all(axis.even for axis in self.axes)

    @property
    def formula(self) -> tuple[str, ...]:
        """The size formula in words, then one line a dimension with its numbers."""
        return (formula_in_words(self.spec.transposed), *(axis.formula() for axis in self.axes))

    def sources(self, output: Any, limit: int = 4096) -> tuple[Term, ...]:
        """The products that make one output cell, at most `limit`. Raises SpecError for a cell outside."""
        cell = self._cell("output", output, self.output_size)
        return _terms([axis.sources(o, limit) for axis, o in zip(self.axes, cell, strict=True)], limit)

    def reached(self, input: Any, limit: int = 4096) -> tuple[Term, ...]:
        """The products that one input cell takes part in, at most `limit`. Raises SpecError for a cell outside."""
        cell = self._cell("input", input, self.input_size)
        return _terms([axis.reached(i, limit) for axis, i in zip(self.axes, cell, strict=True)], limit)

    def writes(self, output: Any) -> int:
        """How many taps write one output position (of one input and one output channel)."""
        cell = self._cell("output", output, self.output_size)
        return prod(axis.writes(o) for axis, o in zip(self.axes, cell, strict=True))

    def _cell(self, name: str, value: Any, size: tuple[int, ...]) -> tuple[int, ...]:
        cell = per_dimension(name, value, self.spec.rank, 0)
        if any(c >= n for c, n in zip(cell, size, strict=True)):
            raise SpecError(f"{name} cell {cell} is outside {name} size {size}: positions count from 0")
        return cell

    def at(self, output: Any) -> Explanation:
        """The same explanation with another output cell singled out."""
        cell = self._cell("output", output, self.output_size)
        return replace(self, example=cell, view=cell)

    def save(self, path: str | PathLike[str], *, animate: bool = False) -> None:
        """Write a picture; the ending says which: svg, html, png, pdf, gif (gif moves, svg does with `animate`).

        Raises SpecError for another ending, ImportError with what to install where png, pdf or gif lack Matplotlib.
        Nothing is left behind where writing fails.
        """
        from upconv.explain.save import save

        save(self, path, animate=animate)

    def svg(self) -> str:
        """The still picture as SVG text."""
        from upconv.explain.scene import scene_of
        from upconv.explain.svg import render

        return render(scene_of(self))

    def html(self) -> str:
        """A self-contained page: the picture that answers to mouse and keyboard, the tables, the code to copy."""
        from upconv.explain.html import page

        return page(self)

    def _repr_html_(self) -> str:
        from upconv.explain.html import fragment

        return fragment(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from upconv.explain.text import blocks

        yield from blocks(self, ascii_only=options.ascii_only)

    def __str__(self) -> str:
        from upconv.explain.text import plain

        return plain(self)


def _terms(rows: list[tuple[Link, ...]], limit: int) -> tuple[Term, ...]:
    return tuple(
        Term(tuple(p.input for p in t), tuple(p.tap for p in t), tuple(p.output for p in t)) for t in islice(product(*rows), limit)
    )


def explain(layer: Any, input_size: Any) -> Explanation:
    """Everything about a layer on one input size: formula, phases, connections, overlap, round trip.

    >>> e = explain(dict(kernel_size=3, stride=2, padding=1, output_padding=1), (6, 6))
    >>> e.formula[1]
    '(6 - 1)*2 - 1 - 1 + 1*(3 - 1) + 1 + 1 = 12'
    >>> e.round_trip.size, e.even
    ((6, 6), False)

    `layer` is a ConvSpec, a layer of torch.nn, upconv.nn or upconv.torch, or a dict of arguments (a transposed layer of
    one channel where it does not say otherwise). `input_size` is spatial: an int or one int a dimension.
    Raises SpecError for arguments that no layer can have or an empty output, TypeError for what is no layer.
    """
    spec = as_spec(layer, input_size)
    size = per_dimension("input_size", input_size, spec.rank, 1)
    out = spec.output_size(size)
    axes = tuple(Axis.of(spec, d, i, o) for d, (i, o) in enumerate(zip(size, out, strict=True)))
    count = prod(spec.stride) if spec.transposed else 1
    example = tuple(_example(axis) for axis in axes)
    trip = _round_trip(spec, size, out)
    return Explanation(spec, size, out, axes, _phases(spec), count, trip, example, example)


def _phases(spec: ConvSpec) -> tuple[Phase, ...]:
    """The phases, where few enough to list; kernels and strides of millions are only counted."""
    if prod(spec.kernel_size) > 4096 or (spec.transposed and prod(spec.stride) > 4096):
        return ()
    found = phases(spec.kernel_size, spec.stride, spec.padding, spec.dilation, transposed=spec.transposed)
    return found[:PHASES_SHOWN]


def _round_trip(spec: ConvSpec, size: tuple[int, ...], out: tuple[int, ...]) -> RoundTrip | None:
    """The partner that goes back; a convolution's gets the output_padding that its remainder needs."""
    extra = (0,) * spec.rank
    if not spec.transposed:
        extra = tuple(
            (n + lo + hi - (d * (k - 1) + 1)) % s
            for n, (lo, hi), d, k, s in zip(size, spec.padding, spec.dilation, spec.kernel_size, spec.stride, strict=True)
        )
    partner = replace(
        spec,
        transposed=not spec.transposed,
        in_channels=spec.out_channels,
        out_channels=spec.in_channels,
        output_padding=extra,
        activation=None,
    )
    try:
        back = partner.output_size(out)
    except SpecError:
        return None
    return RoundTrip(partner, back, back == size)


def _example(axis: Axis) -> int:
    """An output near the middle of the first stretch with as many taps as any near."""
    near = range(min(axis.output, 2 * axis.stride + axis.before + 2))
    near = range(max(0, len(near) - 64), len(near))
    middle = (min(axis.output, 8) - 1) // 2
    return max(near, key=lambda o: (axis.writes(o), -abs(o - middle)))


def as_spec(layer: Any, input_size: Any = None) -> ConvSpec:
    """The ConvSpec of a spec, a torch-like layer, or a dict of arguments."""
    if isinstance(layer, ConvSpec):
        return layer
    if isinstance(layer, dict):
        rank = len(tuple(input_size)) if hasattr(input_size, "__iter__") else None
        ranks = [len(tuple(v)) for v in layer.values() if isinstance(v, (tuple, list))]
        arguments: dict[str, Any] = {"transposed": True, "in_channels": 1, "out_channels": 1, **layer}
        arguments.setdefault("rank", next((r for r in (rank, *ranks) if r), None))
        return ConvSpec.make(**arguments)
    held = getattr(layer, "spec", None)
    if isinstance(held, ConvSpec):
        return held
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    if not all(hasattr(layer, name) for name in names):
        raise TypeError(
            f"{type(layer).__name__} is no layer: give a ConvSpec, a layer of torch.nn, upconv.nn or upconv.torch, "
            f"or a dict such as dict(kernel_size=4, stride=2, padding=1)"
        )
    transposed = bool(getattr(layer, "transposed", "Transpose" in type(layer).__name__))
    return ConvSpec.make(
        transposed=transposed,
        output_padding=getattr(layer, "output_padding", 0) if transposed else 0,
        padding_mode=getattr(layer, "padding_mode", "zeros"),
        rank=len(tuple(layer.kernel_size)),
        **{name: getattr(layer, name) for name in names},
    )
