"""Layers joined with the BatchNorm and the activation behind them, for inference, without touching what they own.

Nothing of the model is rewritten: parameters, buffers and modules stay, the folded weight is a copy beside them, made
anew whenever one of its sources has changed. A joined layer works so only while that changes no result: in eval mode,
outside tracing, and where no gradient is to reach what was folded. Otherwise every module does its own work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from upconv.torch import arrays
from upconv.torch.calls import traced

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def activation_of(module: nn.Module | None) -> tuple[str, float] | str | None:
    """The fused activation that does what a torch.nn module does, None where there is none."""
    if type(module) is nn.LeakyReLU:
        return "leaky_relu", float(module.negative_slope)
    if type(module) is nn.ELU:
        return "elu", float(module.alpha)
    names: dict[Any, str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu"}
    return names.get(type(module))


def hooked(module: nn.Module) -> bool:
    """Whether somebody watches this module's calls."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def fold(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias that do the work of `layer` and of the BatchNorm behind it, at its running statistics.

    The scale goes along the output channels: a transposed layer keeps them in its weight's dimension 1, by groups.
    """
    with torch.inference_mode(False), torch.no_grad():
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight.double()
        bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
        bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
        weight, ones = layer.weight, (1,) * len(layer.kernel_size)
        if layer.transposed:
            grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
            folded = grouped * scale.reshape(layer.groups, 1, -1, *ones)
        else:
            folded = weight * scale.reshape(-1, 1, *ones)
        return folded.reshape(weight.shape).to(weight.dtype).contiguous(), bias.to(weight.dtype)


@dataclass(eq=False)
class Fused:
    """A layer and what follows it inside `owner`'s forward; called in place of the layer's own forward."""

    owner: nn.Module
    layer: Any
    norm: Any
    activation: nn.Module | None
    _sources: list[Tensor] = field(default_factory=list, repr=False)
    _prints: list[Any] = field(default_factory=list, repr=False)
    _folded: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def modules(self) -> list[nn.Module]:
        return [m for m in (self.layer, self.norm, self.activation) if m is not None]

    def active(self) -> bool:
        """Whether this call may do all the work at once. The same for every module of one forward pass."""
        if self.owner.training or traced() or torch.fx._symbolic_trace.is_fx_tracing():
            return False
        if any(hooked(m) for m in self.modules):
            return False
        if self.norm is None:
            return True
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in self._tensors())
        return not (wanted or self.norm.training)

    def _tensors(self) -> list[Tensor]:
        layer, norm = self.layer, self.norm
        found = (layer.weight, layer.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return [t for t in found if t is not None]

    def _weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        if self.norm is None:
            return self.layer.weight, self.layer.bias
        tensors = self._tensors()
        prints = [arrays.fingerprint(t) for t in tensors]
        if self._folded is None or prints != self._prints:
            self._folded = fold(self.layer, self.norm)
            self._prints = prints
            self._sources = [t.detach() for t in tensors]  # held, so that no other tensor gets their memory
        return self._folded

    def __call__(self, input: Tensor, output_size: Any = None) -> Tensor:
        layer = self.layer
        if not self.active():
            own: Any = type(layer).forward
            return own(layer, input) if output_size is None else own(layer, input, output_size)  # type: ignore[no-any-return]
        weight, bias = self._weight_and_bias()
        return layer.run(input, weight, bias, activation_of(self.activation), output_size)  # type: ignore[no-any-return]


@dataclass(eq=False)
class Skip:
    """The forward of a module whose work `fused` has done already."""

    module: nn.Module
    fused: Fused

    def __call__(self, input: Tensor) -> Tensor:
        if self.fused.active():
            return input
        own: Any = type(self.module).forward
        return own(self.module, input)  # type: ignore[no-any-return]


@dataclass(eq=False)
class FusedSequence:
    """A Sequential's forward with some of its steps joined. Its children, called by themselves, are as they were."""

    sequence: nn.Sequential
    steps: list[Any]
    children: tuple[nn.Module, ...]

    def __call__(self, input: Any) -> Any:
        if flattened(self.sequence) != list(self.children):  # somebody has changed it since
            return nn.Sequential.forward(self.sequence, input)
        for step in self.steps:
            if isinstance(step, Fused) and not step.active():
                for module in step.modules:
                    input = module(input)
            else:
                input = step(input)
        return input


def plain_sequence(module: nn.Module) -> bool:
    """Whether a module does nothing but call its children in turn."""
    return type(module).forward is nn.Sequential.forward and "forward" not in module.__dict__ and not hooked(module)


def flattened(sequence: nn.Module) -> list[nn.Module]:
    """The modules a Sequential calls, those of Sequentials within it in their place."""
    found: list[nn.Module] = []
    for child in sequence._modules.values():
        if child is not None:
            found.extend(flattened(child) if plain_sequence(child) else [child])
    return found
