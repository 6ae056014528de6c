"""Layers joined with the BatchNorm and the activation behind them, for inference, without touching what they own.

Nothing of the model is rewritten: parameters, buffers and modules stay, the folded weight is a copy beside them, made
anew whenever one of its sources has changed. A joined layer works so only while that changes no result: in eval mode,
outside tracing, and where no gradient is to reach what was folded. Otherwise every module does its own work.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from upconv.torch import arrays
from upconv.torch.choice import traced

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INERT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)  # in eval mode


def activation_of(module: nn.Module | None) -> tuple[str, float] | str | None:
    """The fused activation that does what a torch.nn module does, None where there is none."""
    if type(module) is nn.LeakyReLU:
        return "leaky_relu", float(module.negative_slope)
    if type(module) is nn.ELU:
        return "elu", float(module.alpha)
    names: dict[Any, str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu"}
    return names.get(type(module))


def hooked(module: nn.Module) -> bool:
    """Whether somebody watches this module's calls, or has replaced its forward."""
    replaced = module.__dict__.get("forward")
    watched = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(watched) or not (replaced is None or isinstance(replaced, _OURS))


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer; those that stand under their name take less time than torch's attributes."""
    for held in (module._parameters, module._buffers):
        if name in held:
            return held[name]
    return getattr(module, name)  # type: ignore[no-any-return]


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
    """A layer and what follows it inside `owner`'s forward."""

    owner: nn.Module
    modules: list[nn.Module]  # in the order of their calls: the layer, then the norm and the activation, and the inert
    norm: Any
    activation: nn.Module | None
    _sources: list[Tensor] = field(default_factory=list, repr=False)
    _seen: list[arrays.Seen] = field(default_factory=list, repr=False)
    _folded: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def layer(self) -> Any:
        return self.modules[0]

    def possible(self) -> bool:
        """Whether doing all the work at once would, just now, change nothing but the time."""
        if self.owner.training or _tracing() or any(hooked(m) for m in self.modules):
            return False
        if any(m.training for m in self.modules[1:]):
            return False
        folding_hides = self.norm is not None and torch.is_grad_enabled()
        return not (folding_hides and any(t.requires_grad for t in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        found = [tensor_of(module, name) for module in (self.layer, self.norm) for name in ("weight", "bias")]
        found += [tensor_of(self.norm, name) for name in ("running_mean", "running_var")]
        return [t for t in found if t is not None]

    def _weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        if self.norm is None:
            return self.layer.weight, self.layer.bias
        tensors = self._tensors()
        same = len(tensors) == len(self._seen) and all(seen.still(t) for seen, t in zip(self._seen, tensors, strict=True))
        folded = self._folded
        if folded is None or not same:
            seen = [arrays.Seen(t) for t in tensors]
            weight, bias = fold(self.layer, self.norm)
            folded = arrays.owned(weight), bias
            self._sources = [t.detach() for t in tensors]  # held, so that no other tensor gets their memory
            self._folded, self._seen = folded, seen  # in this order: what is seen tells other threads that the weight is of it
        return folded

    def joined(self, input: Tensor, output_size: Any = None) -> Tensor:
        """The work of all the modules at once."""
        weight, bias = self._weight_and_bias()
        layer, kind = self.layer, activation_of(self.activation)
        lasting = self.norm is not None or layer._parameters.keys() >= {"weight", "bias"}  # else made anew for each call
        if lasting and output_size is None:
            return layer.again(input, weight, bias, kind)  # type: ignore[no-any-return]
        return layer.run(input, weight, bias, kind, output_size)  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files hold: the folded weight is made anew from theirs."""
        return self.__dict__ | {"_sources": [], "_seen": [], "_folded": None}


def _tracing() -> bool:
    return traced() or bool(getattr(torch.fx._symbolic_trace, "_is_fx_tracing_flag", False))


class _Here(threading.local):
    """What is joined in the forward that this thread is inside of."""

    active: frozenset[int] = frozenset()


_here = _Here()


def _own(module: nn.Module) -> Any:
    return type(module).forward


@dataclass(eq=False)
class Owner:
    """A module's forward that settles, once for the whole pass, what is joined in it.

    Its children look here, so they do all their own work when anybody else calls them.
    """

    module: nn.Module
    fused: list[Fused]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _tracing():
            return _own(self.module)(self.module, *args, **kwargs)
        before = _here.active
        _here.active = frozenset(id(f) for f in self.fused if f.possible())
        try:
            return _own(self.module)(self.module, *args, **kwargs)
        finally:
            _here.active = before


@dataclass(eq=False)
class Joined:
    """The forward of a layer that does what follows it as well, inside its owner's forward."""

    fused: Fused

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.fused.layer
        if not _tracing() and id(self.fused) in _here.active:
            return self.fused.joined(input, *args, **kwargs)
        return _own(layer)(layer, input, *args, **kwargs)  # type: ignore[no-any-return]


@dataclass(eq=False)
class Skip:
    """The forward of a module whose work is done already, inside its owner's forward."""

    module: nn.Module
    fused: Fused

    def __call__(self, input: Tensor) -> Tensor:
        if not _tracing() and id(self.fused) in _here.active:
            return input
        return _own(self.module)(self.module, input)  # type: ignore[no-any-return]


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
            if not isinstance(step, Fused):
                input = step(input)
            elif step.possible():
                input = step.joined(input)
            else:
                for module in step.modules:
                    input = module(input)
        return input


_OURS = (Joined, Skip, Owner, FusedSequence)


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
