"""The three operators torch sees, each with its fake implementation and its gradient.

With F the layer, I its input gradient and W its weight gradient, all linear in each of their two operands, the
gradients close over the same three:

    y  = F(x, w)     grad_x = I(grad, w)     grad_w = W(x, grad)
    gx = I(gy, w)    grad_gy = F(grad, w)    grad_w = W(grad, gy)
    gw = W(x, gy)    grad_x = I(gy, grad)    grad_gy = F(x, grad)

so gradients of any order are made of our kernels, and only those asked for are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from upconv.spec import conv_extent, transposed_extent
from upconv.torch import arrays

_ARGUMENTS = "bool transposed, int[] stride, int[] padding, SymInt[] output_padding, int[] dilation, int groups, str padding_mode"
_SCHEMAS = {
    "conv": f"(Tensor x, Tensor weight, Tensor? bias, {_ARGUMENTS}, str? activation, float parameter) -> Tensor",
    "input_gradient": f"(Tensor grad_output, Tensor weight, SymInt[] input_size, {_ARGUMENTS}) -> Tensor",
    "weight_gradient": f"(Tensor x, Tensor grad_output, SymInt[] weight_shape, {_ARGUMENTS}) -> Tensor",
}
_NONE = (None,) * 7  # the gradients of _ARGUMENTS


def _frozen(arguments: Sequence[Any]) -> arrays.Arguments:
    return tuple(tuple(a) if isinstance(a, (list, tuple)) else a for a in arguments)  # type: ignore[return-value]


_LIBRARY = torch.library.Library("upconv", "DEF")  # as torch.library.custom_op, with a quarter of its time a call


def _operator(implementation: Callable[..., Tensor]) -> Any:
    """Define the operator of this name with this implementation on the CPU."""
    name = implementation.__name__
    _LIBRARY.define(name + _SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CPU")
    return getattr(torch.ops.upconv, name).default


def _fake(operator: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register what the operator's result looks like, for tracing."""
    return torch.library.register_fake(operator.name(), lib=_LIBRARY)  # type: ignore[no-any-return]


@_operator
def conv(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    *arguments, activation, parameter = rest
    spec = arrays.spec_for(tuple(weight.shape), _frozen(arguments), activation, parameter)
    return arrays.forward(spec, x, weight, bias)


@_operator
def input_gradient(grad_output: Tensor, weight: Tensor, input_size: Sequence[int], *arguments: Any) -> Tensor:
    spec = arrays.spec_for(tuple(weight.shape), _frozen(arguments))
    return arrays.input_gradient(spec, grad_output, weight, input_size)


@_operator
def weight_gradient(x: Tensor, grad_output: Tensor, weight_shape: Sequence[int], *arguments: Any) -> Tensor:
    return arrays.weight_gradient(arrays.spec_for(tuple(weight_shape), _frozen(arguments)), x, grad_output)


@_fake(conv)
def _(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    transposed, stride, padding, output_padding, dilation, groups, *_ = rest
    size = []
    for d, n in enumerate(x.shape[2:]):
        k, s, l, edges = weight.shape[d + 2], stride[d], dilation[d], padding[2 * d] + padding[2 * d + 1]
        size.append(transposed_extent(n, k, s, edges, output_padding[d], l) if transposed else conv_extent(n, k, s, edges, l))
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    return x.new_empty((x.shape[0], channels, *size)).contiguous(memory_format=arrays.layout_of(x, weight))


@_fake(input_gradient)
def _(grad_output: Tensor, weight: Tensor, input_size: Sequence[int], *arguments: Any) -> Tensor:
    channels = weight.shape[0] if arguments[0] else weight.shape[1] * arguments[5]
    shape = (grad_output.shape[0], channels, *input_size)
    return grad_output.new_empty(shape).contiguous(memory_format=arrays.layout_of(grad_output, weight))


@_fake(weight_gradient)
def _(x: Tensor, grad_output: Tensor, weight_shape: Sequence[int], *arguments: Any) -> Tensor:
    return x.new_empty(tuple(weight_shape))


def _keep(ctx: Any, first: Tensor, second: Tensor, arguments: Sequence[Any]) -> None:
    """Save each operand only where the other's gradient is wanted."""
    ctx.save_for_backward(
        first if ctx.needs_input_grad[1] else None,
        second if ctx.needs_input_grad[0] else None,
    )
    ctx.arguments = arguments


def _conv_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _bias, *arguments, activation, _parameter = inputs
    if activation is not None and any(ctx.needs_input_grad):
        raise RuntimeError("upconv::conv has no gradient through its activation: call it without, then the activation")
    _keep(ctx, x, weight, arguments)
    ctx.input_size, ctx.weight_shape = x.shape[2:], weight.shape


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return (
        input_gradient(grad, weight, ctx.input_size, *ctx.arguments) if needs[0] else None,
        weight_gradient(x, grad, ctx.weight_shape, *ctx.arguments) if needs[1] else None,
        grad.sum((0, *range(2, grad.dim()))) if needs[2] else None,
        *_NONE,
        None,
        None,
    )


def _input_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, weight, _size, *arguments = inputs
    _keep(ctx, grad_output, weight, arguments)
    ctx.weight_shape = weight.shape


def _input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return (
        conv(grad, weight, None, *ctx.arguments, None, 0.0) if needs[0] else None,
        weight_gradient(grad, grad_output, ctx.weight_shape, *ctx.arguments) if needs[1] else None,
        None,
        *_NONE,
    )


def _weight_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grad_output, _shape, *arguments = inputs
    _keep(ctx, x, grad_output, arguments)
    ctx.input_size = x.shape[2:]


def _weight_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, grad_output = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return (
        input_gradient(grad_output, grad, ctx.input_size, *ctx.arguments) if needs[0] else None,
        conv(x, grad, None, *ctx.arguments, None, 0.0) if needs[1] else None,
        None,
        *_NONE,
    )


def _one_by_one(operator: Any) -> Callable[..., tuple[Tensor, int]]:
    """The vmap rule: a call for each entry (autograd's is_grads_batched and jacobians come this way)."""

    def rule(info: Any, in_dims: Sequence[Any], *operands: Any) -> tuple[Tensor, int]:
        entries = [
            operator(*(a if d is None else a.select(d, i) for a, d in zip(operands, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return torch.stack(entries), 0

    return rule


for _each, _backward, _context in (
    (conv, _conv_backward, _conv_context),
    (input_gradient, _input_backward, _input_context),
    (weight_gradient, _weight_backward, _weight_context),
):
    torch.library.register_autograd(_each.name(), _backward, setup_context=_context, lib=_LIBRARY)
    torch.library.register_vmap(_each.name(), _one_by_one(_each), lib=_LIBRARY)


def _flops(batch: int, sites: Sequence[int], weight: Sequence[int]) -> int:
    """Two for each multiply-add, counted as torch counts its own convolutions."""
    return 2 * batch * prod(sites) * prod(weight)


@register_flop_formula(torch.ops.upconv.conv)
def _(x: Any, weight: Any, bias: Any, transposed: bool, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _flops(x[0], (x if transposed else out_shape)[2:], weight)


@register_flop_formula(torch.ops.upconv.input_gradient)
def _(grad: Any, weight: Any, size: Any, transposed: bool, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _flops(grad[0], size if transposed else grad[2:], weight)


@register_flop_formula(torch.ops.upconv.weight_gradient)
def _(x: Any, grad: Any, weight: Any, transposed: bool, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _flops(x[0], (x if transposed else grad)[2:], weight)


class Recorded(torch.autograd.Function):
    """`conv` with its gradient, straight past torch's dispatcher: what eager training calls."""

    @staticmethod
    def forward(*operands: Any) -> Tensor:  # type: ignore[override]
        x, weight, bias, *arguments, _activation, _parameter = operands
        return arrays.forward(arrays.spec_for(weight.shape, tuple(arguments)), x, weight, bias)

    setup_context = staticmethod(_conv_context)
    backward = staticmethod(_conv_backward)
