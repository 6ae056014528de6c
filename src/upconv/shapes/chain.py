"""Sizes through a list of layers, which one breaks the round trip, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from upconv.shapes.geometry import Geometry, _short
from upconv.shapes.sizes import _rank
from upconv.shapes.solve import solve
from upconv.spec import SpecError, per_dimension, times

_SEARCH = 4096  # input sizes tried, at most, for one that needs no mending


@dataclass(frozen=True, slots=True)
class Step:
    """One layer of a chain.

    `partner` is the index of the layer whose input size this one should give back, `wanted` that size; both None where
    there is none. `mend` is the layer with the arguments that give it, None where nothing is broken or nothing mends.
    """

    layer: Geometry
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    partner: int | None = None
    wanted: tuple[int, ...] | None = None
    broken: bool = False
    mend: Geometry | None = None

    @property
    def advice(self) -> str:
        """What is wrong and what to change, empty where nothing is."""
        if not self.broken or self.wanted is None:
            return ""
        whose = f"the input of layer {self.partner}" if self.partner is not None else "the size it read"
        text = f"gives {times(self.output_size)}, {whose} is {times(self.wanted)}"
        if self.mend is None:
            return f"{text}: no padding does it with this kernel and stride"
        old, new = self.layer.arguments(), self.mend.arguments()
        changes = [f"{name}={_short(new[name])}" for name in new if new[name] != old.get(name)]
        return f"{text}: use {', '.join(changes)}"


@dataclass(frozen=True, slots=True)
class Chain:
    """The sizes through a list of layers; `print` shows them with what breaks and what mends it.

    `steps` holds one Step a layer: the sizes are the model's own, as long as nothing is broken; behind a broken layer
    they are those of the mended chain, so that each layer answers for itself. `output_size` is the model's own.
    `clean_input` is the smallest input size, at least the given one, for which nothing needs mending, None where none
    was found.
    """

    input_size: tuple[int, ...]
    output_size: tuple[int, ...] | None
    steps: tuple[Step, ...]
    clean_input: tuple[int, ...] | None

    @property
    def broken(self) -> tuple[int, ...]:
        """The indices of the layers that break the round trip."""
        return tuple(i for i, step in enumerate(self.steps) if step.broken)

    @property
    def mended(self) -> tuple[Geometry, ...]:
        """The layers, with the broken ones mended where they can be."""
        return tuple(step.mend or step.layer for step in self.steps)

    def __str__(self) -> str:
        rows = [(f"{i:>3} {'x' if s.broken else ' '}", str(s.layer), s) for i, s in enumerate(self.steps)]
        width = max(len(name) for _, name, _ in rows)
        text = []
        for mark, name, step in rows:
            text.append(f"{mark} {name:{width}}  {times(step.input_size)} -> {times(step.output_size)}")
            text += [f"      {step.advice}"] if step.broken else []
        return "\n".join([*text, self._summary()])

    def _summary(self) -> str:
        if not self.broken:
            return f"{times(self.input_size)} goes through"
        ends = times(self.output_size) if self.output_size else "nothing"
        layers = f"layer{'s' if len(self.broken) > 1 else ''} {', '.join(map(str, self.broken))}"
        other = f"; or pad the input to {times(self.clean_input)}" if self.clean_input else ""
        return f"{times(self.input_size)} comes out as {ends}: change {layers}{other}"


def chain(input_size: Any, layers: Iterable[Any]) -> Chain:
    """Follow a size through layers, down and up, and find what keeps it from coming back.

    >>> down = Geometry.make(kernel_size=4, stride=2, padding=1, transposed=False)
    >>> up = Geometry.make(kernel_size=4, stride=2, padding=1)
    >>> print(chain(14, [down, down, up, up]))
      0   Conv1d(kernel_size=4, stride=2, padding=1)           14 -> 7
      1   Conv1d(kernel_size=4, stride=2, padding=1)           7 -> 3
      2 x ConvTranspose1d(kernel_size=4, stride=2, padding=1)  3 -> 6
          gives 6, the input of layer 1 is 7: use output_padding=1
      3   ConvTranspose1d(kernel_size=4, stride=2, padding=1)  7 -> 14
    14 comes out as 12: change layer 2; or pad the input to 16

    `layers` are what `Geometry.of` takes: layers of torch.nn or upconv.nn, pooling layers, ConvSpecs, Geometries. A
    layer that strides down is paired with the transposed layer that comes back to it, as in a U-Net or a codec: the
    last one not yet paired, of the same stride where there is one. A layer of stride 1 should keep its size. Where there
    is no way down (a generator) nothing is paired and nothing can break.

    The mend keeps kernel, stride and dilation: another output_padding where that does it, else the best padding that
    `solve` finds. Raises SpecError where a layer has no output, TypeError for something that is not such a layer.
    """
    known = [Geometry.of(layer) for layer in layers]
    if not known:
        raise SpecError("the chain has no layers: give at least one")
    rank = known[0].rank
    for i, geometry in enumerate(known):
        if geometry.rank != rank:
            raise SpecError(f"layer {i} has {geometry.rank} dimensions and layer 0 has {rank}: give layers of one rank")
    sizes = per_dimension("input_size", input_size, max(rank, _rank(input_size)), 1)
    if len(sizes) != rank:
        raise SpecError(f"input_size {sizes} has {len(sizes)} values: the layers have {rank} dimensions")
    steps = _steps(sizes, known)
    clean = _clean(sizes, known) if any(step.broken for step in steps) else sizes
    return Chain(sizes, _through(sizes, known), steps, clean)


def _through(size: tuple[int, ...], layers: list[Geometry]) -> tuple[int, ...] | None:
    """The model's own output size; None where a size broken before leaves a later layer nothing."""
    try:
        for layer in layers:
            size = layer.output_size(size)
    except SpecError:
        return None
    return size


def _steps(size: tuple[int, ...], layers: list[Geometry], mending: bool = True) -> tuple[Step, ...]:
    steps: list[Step] = []
    open_: list[int] = []  # strided layers not yet paired
    returns = any(not layer.transposed and _strides(layer) for layer in layers)
    for index, layer in enumerate(layers):
        step = Step(layer, size, layer.output_size(size))
        if _strides(layer) and not layer.transposed:
            open_.append(index)
        elif _strides(layer) and open_:
            partner = next((i for i in reversed(open_) if layers[i].stride == layer.stride), open_[-1])
            del open_[open_.index(partner) :]
            step = replace(step, partner=partner, wanted=steps[partner].input_size)
        elif returns and not _strides(layer):
            step = replace(step, wanted=size)
        if step.wanted not in (None, step.output_size):
            step = replace(step, broken=True, mend=_mend(step) if mending else None)
        steps.append(step)
        size = step.wanted if step.mend and step.wanted else step.output_size
    return tuple(steps)


def _strides(layer: Geometry) -> bool:
    return prod(layer.stride) > 1


def _mend(step: Step) -> Geometry | None:
    """The same kernel and stride with an output_padding, else a padding, that gives the wanted size."""
    layer = step.layer
    fixed = {"kernel_size": layer.kernel_size, "stride": layer.stride, "dilation": layer.dilation}
    for padding in (layer.padding, None):
        found = solve(step.input_size, step.wanted, **fixed, padding=padding, transposed=layer.transposed, limit=1)
        if found:
            return replace(layer, padding=found[0].padding, output_padding=found[0].output_padding)
    return None


def _clean(sizes: tuple[int, ...], layers: list[Geometry]) -> tuple[int, ...] | None:
    """The smallest size at least as large for which no layer is broken, each dimension for itself."""
    found = []
    for d, size in enumerate(sizes):
        line = [_one(layer, d) for layer in layers]
        reach = min(_SEARCH, 2 * prod(g.stride[0] for g in line if not g.transposed) + 1)
        clean = next((n for n in range(size, size + reach) if _fits(n, line)), None)
        if clean is None:
            return None
        found.append(clean)
    return tuple(found)


def _one(g: Geometry, d: int) -> Geometry:
    """One dimension of a layer."""
    return Geometry((g.kernel_size[d],), (g.stride[d],), (g.pairs[d],), (g.output_padding[d],), (g.dilation[d],), g.transposed)


def _fits(size: int, layers: list[Geometry]) -> bool:
    try:
        return not any(step.broken for step in _steps((size,), layers, mending=False))
    except SpecError:
        return False
