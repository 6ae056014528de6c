"""Reading a layer: its spec and its weight, from whatever library it comes.

Layers of torch.nn are read by their attributes, so that this package never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.spec import ConvSpec, SpecError

_FIELDS = ("kernel_size", "stride", "padding", "output_padding", "dilation", "groups", "padding_mode")


def is_layer(source: Any) -> bool:
    """Whether `source` is a convolution of either kind, by its attributes."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "weight")
    return all(hasattr(source, name) for name in names)


def weight_in(source: Any) -> Any:
    """The layer's weight; quantised layers of torch hold it packed, behind a method."""
    return source.weight() if callable(source.weight) else source.weight


def spec_of(source: Any) -> ConvSpec:
    """The spec of a ConvSpec, or of a layer of upconv.nn or torch.nn. Raises TypeError for anything else."""
    if isinstance(source, ConvSpec):
        return source
    spec = getattr(source, "spec", None)
    if isinstance(spec, ConvSpec):
        return spec
    if not is_layer(source):
        raise TypeError(f"{type(source).__name__} is not a layer: give a ConvSpec or a layer of upconv.nn or torch.nn")
    weight = weight_in(source)
    if type(weight).__name__ == "UninitializedParameter":
        raise SpecError(f"{type(source).__name__} has no weights yet, being lazy: run the model once, then ask again")
    given = {name: getattr(source, name) for name in _FIELDS if hasattr(source, name)}
    transposed = bool(getattr(source, "transposed", "Transpose" in type(source).__name__))
    if not transposed:
        given.pop("output_padding", None)
    return ConvSpec.make(
        transposed=transposed,
        in_channels=source.in_channels,
        out_channels=source.out_channels,
        rank=len(weight.shape) - 2,
        **given,
    )


def array_of(weight: Any) -> NDArray[np.float64]:
    """A weight (an array, or a tensor of any floating dtype and device) in float64."""
    if hasattr(weight, "detach"):
        if getattr(weight, "is_meta", False):
            raise SpecError("weight is on the meta device and holds no numbers: load or initialise the model first")
        weight = weight.dequantize() if getattr(weight, "is_quantized", False) else weight
        weight = weight.detach().to("cpu").double().numpy()
    return np.asarray(weight, np.float64)


def weight_of(spec: ConvSpec, weight: Any) -> NDArray[np.float64]:
    """`weight` in float64, checked against the spec; None stands for ones."""
    if weight is None:
        return np.ones(spec.weight_shape)
    array = array_of(weight)
    if array.shape != spec.weight_shape:
        raise SpecError(f"weight has shape {array.shape}: {spec} has {spec.weight_shape}")
    return array


def transposed_of(source: Any) -> ConvSpec:
    """The spec of a transposed layer. Raises SpecError for a convolution, whose outputs all take the same taps."""
    spec = spec_of(source)
    if not spec.transposed:
        raise SpecError(f"{spec} is a convolution: it has one phase and draws no checkerboard; give a transposed layer")
    return spec


def named_layers(model: Any) -> Iterator[tuple[str, Any, ConvSpec, Any]]:
    """(name, layer, spec, weight) of every convolution of either kind in a model, a layer, (spec, weight) or a list.

    Raises TypeError for something that is none of these.
    """
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], ConvSpec):
        yield "", model[0], model[0], model[1]
    elif isinstance(model, (list, tuple)):
        for i, part in enumerate(model):
            for name, *rest in named_layers(part):
                yield f"{i}.{name}".rstrip("."), rest[0], rest[1], rest[2]
    elif is_layer(model):
        yield "", model, spec_of(model), weight_in(model)
    elif hasattr(model, "named_modules"):
        for name, module in model.named_modules():
            if is_layer(module):
                yield name, module, spec_of(module), weight_in(module)
    else:
        raise TypeError(
            f"{type(model).__name__} is not a model: give a torch.nn.Module, a layer of upconv.nn or torch.nn, a "
            f"(ConvSpec, weight) pair, or a list of these"
        )
