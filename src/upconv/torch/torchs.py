"""The same layers by torch's own operators, for what the kernels here do not take: other devices, other dtypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from upconv.torch.arrays import Arguments, pairs

_PAD_MODES = {"zeros": "constant", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
_ORDINARY = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def activate(y: Tensor, kind: str | None, parameter: float) -> Tensor:
    """The activation by torch's own operator, so that its gradient is torch's too."""
    match kind:
        case None:
            return y
        case "relu":
            return torch.relu(y)
        case "leaky_relu":
            return F.leaky_relu(y, parameter)
        case "elu":
            return F.elu(y, parameter)
        case "sigmoid":
            return torch.sigmoid(y)
        case "tanh":
            return torch.tanh(y)
        case "silu":
            return F.silu(y)
    raise AssertionError(kind)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
    """The layer of a batched x, without its activation."""
    transposed, stride, padding, output_padding, dilation, groups, mode = arguments
    rank = len(stride)
    before, after = padding[::2], padding[1::2]
    plain = mode == "zeros" and before == after
    if not transposed:
        if not plain:
            edges = [e for pair in reversed(pairs(padding)) for e in pair]
            x, before = F.pad(x, edges, mode=_PAD_MODES[mode]), (0,) * rank
        return _ORDINARY[rank](x, weight, bias, stride, before, dilation, groups)
    if plain:
        return _TRANSPOSED[rank](x, weight, bias, stride, before, output_padding, groups, dilation)
    full = _TRANSPOSED[rank](x, weight, None, stride, (0,) * rank, output_padding, groups, dilation)
    for axis, (lo, hi) in enumerate(pairs(padding), start=2):
        full = _unpad(full, axis, lo, hi, mode)
    return full if bias is None else full + bias.reshape(-1, *(1,) * rank)


def _unpad(full: Tensor, axis: int, lo: int, hi: int, mode: str) -> Tensor:
    """The adjoint of padding one axis: crop, and add what is cropped to the position that padding repeats there."""
    size = full.shape[axis] - lo - hi
    if mode == "zeros" or (lo, hi) == (0, 0):
        return full.narrow(axis, lo, size)
    numbers = torch.arange(size, dtype=torch.float64, device=full.device).reshape(1, 1, size)
    source = F.pad(numbers, (lo, hi), mode=_PAD_MODES[mode]).reshape(-1).long()
    shape = (*full.shape[:axis], size, *full.shape[axis + 1 :])
    return full.new_zeros(shape).index_add(axis, source, full)
