"""Who runs a call: this library's kernels, torch itself, or torch's dispatcher, which records it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function_unary

_TYPES = (torch.float32, torch.float64)
_KNOWN = (Tensor, torch.nn.Parameter)

# every call asks these: by their own names, for an attribute of a module takes as long as what it finds
_strided = torch.strided
_autocast = torch.is_autocast_enabled
_transforming = torch._C._are_functorch_transforms_active
_compiling = torch.compiler.is_compiling
_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_recording = torch.is_grad_enabled


def refusal(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why a call goes to torch itself, None where this library's kernels take it."""
    if not x.is_cpu:
        return f"x is on {x.device}; the kernels here run on the CPU"
    if x.dtype not in _TYPES:
        return f"x is {x.dtype}; the kernels here take torch.float32 and torch.float64"
    if not weight.is_cpu or weight.dtype != x.dtype:
        return f"x is {x.dtype} on {x.device} and weight {weight.dtype} on {weight.device}"
    if bias is not None and (not bias.is_cpu or bias.dtype != x.dtype):
        return f"x is {x.dtype} on {x.device} and bias {bias.dtype} on {bias.device}"
    if x.layout is not _strided or weight.layout is not _strided:
        return f"x is {x.layout} and weight {weight.layout}; the kernels here take torch.strided"
    if _autocast("cpu"):
        return f"autocast asks for {torch.get_autocast_dtype('cpu')}"
    if _transforming():
        return "a torch.func transform is active"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if type(x) not in _KNOWN or type(weight) not in _KNOWN:
        return _subclass_refusal(x, weight)
    return None


def _subclass_refusal(x: Tensor, weight: Tensor) -> str | None:
    """Wrappers with a dispatch of their own know torch's operators only; those that trace know every operator."""
    tracing = (torch._subclasses.FakeTensor, torch._subclasses.functional_tensor.FunctionalTensor)
    for t in (x, weight):
        own = type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__
        if own and not isinstance(t, tracing):
            return f"{type(t).__name__} dispatches operators by itself"
    return None


def traced() -> bool:
    """Whether operators are being recorded or watched, so that every call must go through torch's dispatcher."""
    return _compiling() or _modes() > 0 or _tracing_state() is not None


def undisturbed(x: Tensor) -> bool:
    """Whether a call on a plain tensor is no one's business but the kernels': nothing records, watches or changes it.

    A small layer's call is in a hurry here, so that what `traced` asks is asked without a call of it; that nothing is being
    compiled the caller knows.
    """
    return not (
        _recording()
        or _modes() > 0
        or _tracing_state() is not None
        or _autocast("cpu")
        or _transforming()
        or forward_ad._current_level >= 0
        or has_torch_function_unary(x)
    )
