"""The functions, with torch.nn.functional's signatures and ours behind them, run by whom `choice` says."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from upconv.arguments import hashable
from upconv.spec import ConvSpec, SpecError, required_output_padding
from upconv.torch import arrays, memory, ops, torchs
from upconv.torch.arrays import Arguments
from upconv.torch.choice import refusal, traced


@lru_cache(maxsize=4096)
def _validated(
    transposed: bool,
    groups: int,
    kernel: tuple[int, ...],
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    padding_mode: str,
    activation: Any,
) -> tuple[Arguments, str | None, float]:
    spec = ConvSpec.make(
        transposed=transposed,
        in_channels=groups if isinstance(groups, int) and groups > 0 else 1,
        out_channels=groups if isinstance(groups, int) and groups > 0 else 1,
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
        activation=activation,
    )
    flat = tuple(edge for pair in spec.padding for edge in pair)
    arguments = (transposed, spec.stride, flat, spec.output_padding, spec.dilation, spec.groups, spec.padding_mode)
    kind = spec.activation
    return arguments, None if kind is None else kind.name, 0.0 if kind is None else kind.parameter


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant(*given: Any) -> tuple[Arguments, str | None, float]:
    return _validated(*given)


def _check(
    transposed: bool,
    groups: int,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
) -> None:
    """Raise SpecError where these shapes do not go together."""
    rank = len(weight) - 2
    channels = weight[0] if transposed else weight[1] * groups
    if x[-rank - 1] != channels:
        raise SpecError(
            f"x has {x[-rank - 1]} channels (shape {tuple(x)}) and weight of shape {tuple(weight)} with groups "
            f"{groups} takes {channels}"
        )
    if weight[0] % groups:
        raise SpecError(f"weight has shape {tuple(weight)}: its first size must be divisible by groups {groups}")
    out_channels = weight[1] * groups if transposed else weight[0]
    if bias is not None and tuple(bias) != (out_channels,):
        raise SpecError(f"bias has shape {tuple(bias)}: it must be ({out_channels},), one value an output channel")
    if 0 in x[-rank:]:
        raise SpecError(f"x has shape {tuple(x)}: every spatial size must be at least 1 (an empty batch is allowed)")


def _with_output_size(arguments: Arguments, x: tuple[int, ...], weight: tuple[int, ...], wanted: Any) -> Arguments:
    """The arguments with the output_padding that makes the output size `wanted` (spatial, or a whole shape)."""
    rank = len(weight) - 2
    if not isinstance(wanted, tuple):
        wanted = (wanted,) * rank
    if len(wanted) not in (rank, rank + 1, rank + 2):
        raise SpecError(f"output_size {wanted} has {len(wanted)} sizes: give {rank}, one a dimension, or a whole shape")
    transposed, stride, padding, _, dilation, *rest = arguments
    extra = required_output_padding(tuple(x[-rank:]), wanted[-rank:], tuple(weight[2:]), stride, arrays.pairs(padding), dilation)
    return (transposed, stride, padding, extra, dilation, *rest)  # type: ignore[return-value]


def _normalised(
    validate: Callable[..., Any],
    transposed: bool,
    rank: int,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    output_size: Any,
    groups: int,
    *given: Any,
) -> tuple[Arguments, str | None, float]:
    """A call's arguments as the operators take them, checked against the shapes of its tensors."""
    if len(weight) != rank + 2:
        raise SpecError(f"weight has shape {tuple(weight)}: a rank-{rank} layer takes {rank + 2} dimensions")
    if len(x) not in (rank + 1, rank + 2):
        raise SpecError(
            f"x has shape {tuple(x)}: a rank-{rank} layer takes (N, C, *spatial) with {rank + 2} dimensions or "
            f"(C, *spatial) with {rank + 1}"
        )
    arguments, kind, parameter = validate(transposed, groups, tuple(weight[2:]), *given)
    _check(transposed, groups, x, weight, bias)
    if output_size is not None:
        arguments = _with_output_size(arguments, x, weight, output_size)
    return arguments, kind, parameter


_remembered = lru_cache(maxsize=4096)(_normalised)


def _call(
    transposed: bool,
    rank: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
    output_size: Any,
    padding_mode: str,
    activation: Any,
) -> Tensor:
    """Check a call, choose who runs it, and run it."""
    asked = (transposed, stride, padding, output_padding, dilation, groups, output_size, padding_mode, activation)
    y = memory.again(x, weight, bias, asked)
    if y is not None:
        return y
    tracing = traced()
    arguments, kind, parameter = (_normalised if tracing else _remembered)(
        _constant if tracing else _validated,
        transposed,
        rank,
        x.shape,
        weight.shape,
        None if bias is None else bias.shape,
        hashable(output_size),
        groups,
        hashable(stride),
        hashable(padding),
        hashable(output_padding) if output_size is None else 0,
        hashable(dilation),
        padding_mode,
        activation,
    )
    batched = x if x.dim() == rank + 2 else x.unsqueeze(0)
    if refusal(x, weight, bias) is not None or (tracing and torch.onnx.is_in_onnx_export()):
        y = torchs.activate(torchs.convolve(batched, weight, bias, arguments), kind, parameter)
    elif torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        run = ops.conv if tracing else ops.Recorded.apply
        y = torchs.activate(run(batched, weight, bias, *arguments, None, 0.0), kind, parameter)
    elif tracing or x.is_neg():
        y = ops.conv(batched, weight, bias, *arguments, kind, parameter)
    else:
        spec = arrays.spec_for(weight.shape, arguments, kind, parameter)
        if not torch.is_grad_enabled():
            memory.keep(spec, batched, x, weight, bias, asked)
        y = arrays.forward(spec, batched, weight, bias)
    return y if batched is x else y.squeeze(0)


def _named(function: Callable[..., Tensor], name: str, example: str) -> Callable[..., Tensor]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = example
    return function


def _transposed(rank: int) -> Callable[..., Tensor]:
    def conv_transpose(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
        *,
        output_size: Any = None,
        padding_mode: str = "zeros",
        activation: Any = None,
    ) -> Tensor:
        if has_torch_function_variadic(input, weight):
            return handle_torch_function(  # type: ignore[no-any-return]
                conv_transpose,
                (input, weight),
                input,
                weight,
                bias,
                stride,
                padding,
                output_padding,
                groups,
                dilation,
                output_size=output_size,
                padding_mode=padding_mode,
                activation=activation,
            )
        return _call(
            True,
            rank,
            input,
            weight,
            bias,
            stride,
            padding,
            output_padding,
            dilation,
            groups,
            output_size,
            padding_mode,
            activation,
        )

    size = "x".join("5" * rank)
    return _named(
        conv_transpose,
        f"conv_transpose{rank}d",
        f"""torch.nn.functional.conv_transpose{rank}d, run by this library's kernels.

        >>> x, w = torch.ones(1, 2, {", ".join("5" * rank)}), torch.ones(2, 3, {", ".join("4" * rank)})
        >>> conv_transpose{rank}d(x, w, stride=2, padding=1).shape  # from {size}
        torch.Size([1, 3, {", ".join(["10"] * rank)}])

        Beyond torch's: `padding` may be "same", "valid" or (before, after) pairs; `output_size` chooses the
        output_padding, batched or not; `padding_mode` other than "zeros" makes the adjoint of the convolution that pads
        so; `activation` (a name, or a name and its parameter) is applied as the result is stored. Raises SpecError (a
        ValueError) for arguments that fit no layer or not the tensors.
        """,
    )


def _ordinary(rank: int) -> Callable[..., Tensor]:
    def conv(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
        activation: Any = None,
    ) -> Tensor:
        if has_torch_function_variadic(input, weight):
            return handle_torch_function(  # type: ignore[no-any-return]
                conv,
                (input, weight),
                input,
                weight,
                bias,
                stride,
                padding,
                dilation,
                groups,
                padding_mode=padding_mode,
                activation=activation,
            )
        return _call(False, rank, input, weight, bias, stride, padding, 0, dilation, groups, None, padding_mode, activation)

    return _named(
        conv,
        f"conv{rank}d",
        f"""torch.nn.functional.conv{rank}d, run by this library's kernels.

        >>> x, w = torch.ones(1, 2, {", ".join("5" * rank)}), torch.ones(3, 2, {", ".join("3" * rank)})
        >>> conv{rank}d(x, w, padding="same", activation="relu").shape
        torch.Size([1, 3, {", ".join("5" * rank)}])

        Beyond torch's: `padding` may be (before, after) pairs; `padding_mode` and `activation` are those of
        `conv_transpose{rank}d`, and so are the errors raised.
        """,
    )


conv_transpose1d, conv_transpose2d, conv_transpose3d = _transposed(1), _transposed(2), _transposed(3)
conv1d, conv2d, conv3d = _ordinary(1), _ordinary(2), _ordinary(3)
