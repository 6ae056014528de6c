"""Inference calls whose like has been checked before: what a small layer's call takes is mostly looking things up.

Two memories: of calls by their arguments, for all who call; and in a layer its last call, where all but what may have changed
since is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from upconv import arguments, execute
from upconv.codegen.threads import asked_for
from upconv.spec import ConvSpec
from upconv.torch import arrays
from upconv.torch.choice import refusal, traced, undisturbed

_strided = torch.strided
_ready = arguments.Calls[execute.Ready](most=4096)
_era = object()
"""Another one each time that plans are forgotten."""


def _forget() -> None:
    global _era
    _era = object()
    _ready.clear()


execute.forgetters.append(_forget)


def _key(x: Tensor, weight: Tensor, bias: Tensor | None, asked: tuple[Any, ...]) -> Any:
    """What the checks of a call depend on."""
    return x.shape, x.dtype, weight.shape, None if bias is None else bias.shape, asked_for(), asked


def _find(x: Tensor, weight: Tensor, bias: Tensor | None, asked: tuple[Any, ...]) -> execute.Ready | None:
    known = _ready.find(_key(x, weight, bias, asked))
    return None if known is None or refusal(x, weight, bias) is not None or x.is_neg() else known


def again(x: Tensor, weight: Tensor, bias: Tensor | None, asked: tuple[Any, ...]) -> Tensor | None:
    """The result of a plain inference call whose like has been kept, or None.

    `asked` is transposed, stride, padding, output_padding, dilation, groups, output_size, padding_mode and activation.
    """
    if torch.is_grad_enabled() or traced() or has_torch_function_variadic(x, weight):
        return None
    known = _find(x, weight, bias, asked)
    return None if known is None else arrays.run(known, x, weight, bias)


def keep(spec: ConvSpec, batched: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, asked: tuple[Any, ...]) -> None:
    """Keep what runs calls of this kind, where a kernel alone does."""
    known = arrays.ready(spec, batched.shape, x.dtype, x.dim() == batched.dim())
    if known is not None:
        _ready.keep(_key(x, weight, bias, asked), known)


class Last:
    """A layer's last inference call. A copy of the layer starts without one.

    A parameter is known by its object, and looked at again, for `.data` and `Module.to` put other memory into the same object;
    what stands in the weight's memory is compared where the packed weight is found.
    """

    __slots__ = (
        "_activation", "_bias", "_bias_at", "_bias_shape", "_bytes", "_dtype", "_era", "_known", "_number", "_order", "_own",
        "_shape", "_threads", "_weight", "_weight_at", "_weight_order", "_weight_shape",
    )  # fmt: skip

    def __init__(self, known: execute.Ready, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Any):
        self._activation = activation
        self._known, self._era, self._threads = known, _era, asked_for()
        self._shape, self._dtype = x.shape, x.dtype
        self._order, self._weight_order = _order_of(x), _order_of(weight)
        self._weight, self._weight_shape, self._bytes, self._bias = weight, weight.shape, weight.nbytes, bias
        version = arrays.version_of(weight)
        self._number = None if version is None else version[0]
        self._own = version is not None and version[2]
        self._weight_at, self._bias_at = weight.data_ptr(), None if bias is None else bias.data_ptr()
        self._bias_shape = None if bias is None else bias.shape

    def __reduce__(self) -> Any:
        return type(None), ()

    def again(self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Any) -> Tensor | None:
        """The result, or None where the call is not as the last one was."""
        dtype, at, bias_at = self._dtype, self._weight_at, self._bias_at
        if (
            weight is self._weight
            and bias is self._bias
            and activation == self._activation
            and type(x) is Tensor
            and x.shape == self._shape
            and x.dtype is dtype
            and x.is_cpu
            and x.layout is _strided
            and (x.is_contiguous() if self._order is None else _is(x, self._order))
            and not x.is_neg()
            and weight.dtype is dtype
            and weight.data_ptr() == at
            and weight.shape == self._weight_shape
            and (weight.is_contiguous() if self._weight_order is None else _is(weight, self._weight_order))
            and (
                bias is None
                or (bias.dtype is dtype and bias.data_ptr() == bias_at and bias.shape == self._bias_shape and bias.is_contiguous())
            )
            and self._era is _era
            and asked_for() == self._threads
            and undisturbed(x)
        ):
            version = None if self._number is None else (self._number, weight._version, self._own)
            last = self._weight_order is not None
            y = self._known.at(x.data_ptr(), at, self._bytes, lambda: arrays.array(weight), bias_at, last, version)
            return torch.from_numpy(y) if self._order is None else torch.from_numpy(y).movedim(-1, 1)
        return None


def _order_of(t: Tensor) -> torch.memory_format | None:
    """The memory format of a dense tensor; None where it is contiguous, whatever else it may pass for."""
    return None if t.is_contiguous() else arrays.layout_of(t)


def _is(t: Tensor, order: torch.memory_format) -> bool:
    return t.is_contiguous(memory_format=order) and not t.is_contiguous()


def last(x: Tensor, weight: Tensor, bias: Tensor | None, asked: tuple[Any, ...]) -> Last | None:
    """The memory of a call that has just been made, where a kernel alone can run the next one from it."""
    if type(x) is not Tensor or not undisturbed(x) or (bias is not None and not bias.is_contiguous()):
        return None
    known, order = _find(x, weight, bias, asked), arrays.is_last(x)
    if known is None or order is None or arrays.is_last(weight) is None:
        return None
    if not order:  # a result in the weight's order is reordered
        return None if arrays.is_last(weight) else Last(known, x, weight, bias, asked[-1])
    lasting = known.last if x.dim() == weight.dim() else None
    return None if lasting is None else Last(lasting, x, weight, bias, asked[-1])
