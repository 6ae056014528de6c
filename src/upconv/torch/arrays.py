"""Where tensors meet the kernels: NumPy views in, tensors out, nothing copied for contiguous tensors.

A channels-last tensor stays channels-last: a kernel for such arrays runs the layer, or, where that is estimated to be faster,
one for channels-first arrays, and the tensor is reordered on the way in and on the way out.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from upconv import execute, execute_reorder
from upconv.codegen.memory import address
from upconv.codegen.threads import get_num_threads
from upconv.execute_packing import Version
from upconv.kernels.fingerprint import SMALL, Samples, fingerprint
from upconv.shapes.dual import dual
from upconv.spec import Activation, ConvSpec

# transposed, stride, padding (before and after, dimension by dimension), output_padding, dilation, groups, padding_mode
Arguments: TypeAlias = tuple[bool, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int, str]


@lru_cache(maxsize=4096)
def spec_for(
    weight_shape: tuple[int, ...], arguments: Arguments, activation: str | None = None, parameter: float = 0.0
) -> ConvSpec:
    """The layer that normalised arguments and a weight's shape describe."""
    transposed, stride, padding, output_padding, dilation, groups, padding_mode = arguments
    first, second, *kernel = weight_shape
    return ConvSpec(
        transposed=transposed,
        in_channels=first if transposed else second * groups,
        out_channels=second * groups if transposed else first,
        kernel_size=tuple(kernel),
        stride=stride,
        padding=pairs(padding),
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
        activation=None if activation is None else Activation(activation, parameter),
    )


def pairs(flat: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The (before, after) pairs of a flat padding."""
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def layout_of(*tensors: Tensor) -> torch.memory_format:
    """The result's memory format: channels-last where any of the tensors is, as torch's own convolutions do."""
    for t in tensors:
        if t.is_contiguous():
            continue
        if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if t.dim() == 5 and t.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def array(t: Tensor) -> NDArray[Any]:
    """The tensor as a C-contiguous array, of the same memory where it is contiguous."""
    if t.is_contiguous():
        return t.numpy(force=True)  # type: ignore[no-any-return]
    if t.dim() < 3:
        return t.contiguous().numpy(force=True)  # type: ignore[no-any-return]
    return execute_reorder.channels_first(t.numpy(force=True), execute.target())


def _tensor(y: NDArray[Any], layout: torch.memory_format) -> Tensor:
    if layout is torch.contiguous_format:
        return torch.from_numpy(y)
    last = execute_reorder.reordered(address(y), y.shape, y.dtype, True, execute.target())
    return torch.from_numpy(y).contiguous(memory_format=layout) if last is None else torch.from_numpy(last).movedim(-1, 1)


def ready(spec: ConvSpec, shape: Sequence[int], dtype: torch.dtype, batched: bool = True) -> execute.Ready | None:
    """What runs calls of these shapes and gives the result with or without its batch; None where not a kernel alone."""
    size = spec.output_size(shape[2:])
    result = (shape[0], spec.out_channels, *size) if batched else (spec.out_channels, *size)
    return execute.ready(spec, tuple(shape), str(dtype)[6:], result)


_known = lru_cache(maxsize=4096)(lambda spec, shape, dtype, threads: ready(spec, shape, dtype))
execute.forgetters.append(_known.cache_clear)


def is_last(t: Tensor) -> bool | None:
    """Whether the tensor's memory is dense with its channels last, or (False) in order; None where neither."""
    if t.is_contiguous():
        return False
    return True if layout_of(t) is not torch.contiguous_format else None


LARGE = 1 << 18
"""Bytes of a weight beyond which torch's count of its changes is trusted, but for a sample of the content at each call."""


_numbers = count()  # each is given once, whichever threads ask at once
_numbered: dict[int, tuple[weakref.ref[Tensor], int, bool]] = {}


def _number(weight: Tensor, own: bool) -> tuple[int, bool]:
    key = id(weight)
    number = next(_numbers)
    _numbered[key] = weakref.ref(weight, lambda _: _numbered.pop(key, None)), number, own
    return number, own


def owned(weight: Tensor) -> Tensor:
    """The same, as a weight of our own: nobody else has it, so that none of it is compared while torch counts no change."""
    _number(weight, True)
    return weight


def version_of(weight: Tensor) -> Version | None:
    """What stays the same while a weight does, as far as torch knows; None where all of it is to be compared.

    Torch's count of its changes tells nothing of another tensor that comes to stand in the same memory: so each has a number too.
    """
    known = _numbered.get(id(weight))
    if known is not None and known[0]() is weight:
        return known[1], weight._version, known[2]
    if weight.nbytes <= LARGE or weight.is_inference():
        return None
    number, own = _number(weight, False)
    return number, weight._version, own


def run(known: execute.Ready, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The result by a kernel that was found before, or None where a tensor is not dense."""
    x_last, weight_last = is_last(x), is_last(weight)
    if x_last is None or weight_last is None or (bias is not None and not bias.is_contiguous()):
        return None
    at_bias = None if bias is None else bias.data_ptr()
    place = (weight.data_ptr(), weight.nbytes, lambda: array(weight), at_bias, weight_last, version_of(weight))
    if not (x_last or weight_last):
        return torch.from_numpy(known.at(x.data_ptr(), *place))
    if x.dim() != weight.dim():
        return None
    if x_last and known.last is not None:
        return torch.from_numpy(known.last.at(x.data_ptr(), *place)).movedim(-1, 1)
    first = array(x)
    return _tensor(known.at(address(first), *place), layout_of(x, weight))


def layout_note(spec: ConvSpec, x: Tensor) -> str:
    """What becomes of a channels-last x; nothing to say of another."""
    if not is_last(x):
        return ""
    known = _known(spec, x.shape, x.dtype, get_num_threads())
    if known is not None and known.last is not None:
        return ", channels-last as it is"
    return ", channels-last: reordered for a channels-first kernel, and back"


def forward(spec: ConvSpec, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's output for a batched x, in x's memory format."""
    known = _known(spec, x.shape, x.dtype, get_num_threads())
    if known is not None:
        y = run(known, x, weight, bias)
        if y is not None:
            return y
    result = execute.forward(spec, array(x), array(weight), None if bias is None else array(bias))
    return _tensor(result, layout_of(x, weight))


def input_gradient(spec: ConvSpec, grad_output: Tensor, weight: Tensor, input_size: Sequence[int]) -> Tensor:
    """The gradient for x, in grad_output's memory format."""
    other = dual(spec, tuple(input_size))
    if other.output_size(grad_output.shape[2:]) == tuple(input_size):
        return forward(other, grad_output, weight, None)
    grad_x = execute.input_gradient(spec, array(grad_output), array(weight), tuple(input_size))
    return _tensor(grad_x, layout_of(grad_output, weight))


def weight_gradient(spec: ConvSpec, x: Tensor, grad_output: Tensor) -> Tensor:
    """The gradient for the weight."""
    return torch.from_numpy(execute.weight_gradient(spec, array(x), array(grad_output)))


class Seen:
    """What tells whether a tensor still holds what it held: its memory, torch's count of its changes, and its content.

    The count misses a change made through `.data`. Of a large content it is believed but for a sample at each look, another one
    each time, as of packed weights; a small one, and one that torch counts nothing of, is compared whole.
    """

    __slots__ = ("_content", "_place")

    def __init__(self, t: Tensor):
        target, self._place = execute.target(), _place(t)
        self._content: int | bytes | Samples | None = None
        if not (t.is_cpu and is_last(t) is not None):  # its memory is not ours to read, or not in one piece
            return
        if target is None or t.nbytes <= SMALL or t.is_inference():
            self._content = _content(t)
        else:
            self._content = Samples(t.data_ptr(), t.nbytes, target)

    def still(self, t: Tensor) -> bool:
        """Whether it does, as far as a look tells."""
        if _place(t) != self._place:
            return False
        content = self._content
        if isinstance(content, Samples):
            return content.unchanged()
        return content is None or _content(t) == content


def _content(t: Tensor) -> int | bytes:
    target = execute.target()
    if target is None:
        return ctypes.string_at(t.data_ptr(), t.nbytes)
    return fingerprint(t.data_ptr(), t.nbytes, target)


def _place(t: Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), -1 if t.is_inference() else t._version, t.dtype, t.device, t.shape, t.stride()
