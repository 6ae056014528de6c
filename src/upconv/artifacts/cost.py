"""Multiply-adds of layers and of whole models, only products that are kept, borders counted exactly."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

from upconv import shapes
from upconv.artifacts.layers import is_layer, spec_of


@dataclass(frozen=True, slots=True)
class Cost:
    """One call of one layer: `naive` is what a counter says that multiplies sizes and ignores the borders."""

    name: str
    kind: str
    input_shape: tuple[int, ...]
    multiply_adds: int
    naive: int


@dataclass(frozen=True, slots=True)
class Costs:
    """Every call that was counted, in order; `print` shows a table. A layer called twice is counted twice."""

    calls: tuple[Cost, ...]

    @property
    def multiply_adds(self) -> int:
        return sum(call.multiply_adds for call in self.calls)

    @property
    def naive(self) -> int:
        return sum(call.naive for call in self.calls)

    def __str__(self) -> str:
        heads = [("layer", "kind", "input", "multiply-adds", "naive")]
        rows = [(c.name, c.kind, str(c.input_shape), f"{c.multiply_adds:,}", f"{c.naive:,}") for c in self.calls]
        rows = [*heads, *rows, ("total", "", "", f"{self.multiply_adds:,}", f"{self.naive:,}")]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        sides = "<<<>>"
        return "\n".join(
            "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
            for row in rows
        )


def multiply_adds(model: Any, *inputs: Any) -> Costs:
    """Count a torch model's multiply-adds on these inputs, or a single layer's on an input shape.

    >>> from upconv import ConvSpec
    >>> spec = ConvSpec.make(transposed=True, in_channels=8, out_channels=4, kernel_size=4, stride=2, padding=1)
    >>> print(multiply_adds(spec, (1, 8, 3)))
    layer  kind             input      multiply-adds  naive
           ConvTranspose1d  (1, 8, 3)            320    384
    total                                        320    384

    A layer (a ConvSpec, or one of upconv.nn or torch.nn) takes a shape, (N, C, *spatial) or (C, *spatial), or an array.
    A torch model is run once on `inputs`, without gradients, as it is (call `model.eval()` first where that matters);
    convolutions of both kinds and Linear layers are counted, nothing else. Products that padding throws away are not
    counted. Raises TypeError for something that is neither.
    """
    single = is_layer(model) or hasattr(model, "weight_shape")
    if single and len(inputs) == 1:
        return Costs((_of_layer("", model, tuple(getattr(inputs[0], "shape", inputs[0]))),))
    if not hasattr(model, "named_modules") or not callable(model):
        raise TypeError(
            f"{type(model).__name__} with {len(inputs)} inputs: give a layer and one input shape, or a torch.nn.Module and "
            f"its inputs"
        )
    return _of_model(model, inputs)


def _of_layer(name: str, layer: Any, shape: tuple[int, ...]) -> Cost:
    spec = spec_of(layer)
    spatial = shape[-spec.rank :]
    batch = shape[0] if len(shape) == spec.rank + 2 else 1
    return Cost(name, spec.name, shape, shapes.multiply_adds(spec, spatial, batch), spec.macs(spatial, batch))


def _of_model(model: Any, inputs: tuple[Any, ...]) -> Costs:
    """Hooks on every layer while the model runs; they are gone afterwards, whatever happens."""
    calls: list[Cost] = []
    hooks = []

    def watch(name: str, module: Any) -> None:
        def note(_: Any, given: tuple[Any, ...], result: Any) -> None:
            shape = tuple(given[0].shape)
            if is_layer(module):
                calls.append(_of_layer(name, module, shape))
            else:
                products = prod(shape) * module.out_features
                calls.append(Cost(name, type(module).__name__, shape, products, products))

        hooks.append(module.register_forward_hook(note))

    torch = sys.modules.get("torch")  # loaded by whoever made the model
    try:
        for name, module in model.named_modules():
            if is_layer(module) or (hasattr(module, "in_features") and hasattr(module, "out_features")):
                watch(name, module)
        with torch.no_grad() if torch else nullcontext():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Costs(tuple(calls))
