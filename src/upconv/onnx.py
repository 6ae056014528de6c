"""ONNX's ConvTranspose and Conv, with the operators' own attributes, and whole models whose layers run here.

>>> import numpy as np
>>> from upconv import onnx
>>> x, weight = np.ones((1, 1, 5, 5), np.float32), np.ones((1, 2, 3, 3), np.float32)
>>> onnx.conv_transpose(x, weight, strides=[2, 2], auto_pad="SAME_UPPER").shape
(1, 2, 10, 10)
>>> onnx.conv_transpose(x, weight, strides=[2, 2], output_shape=[12, 10]).shape
(1, 2, 12, 10)

`evaluator(model)` runs a model file; it needs onnx, the functions do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upconv import functional
from upconv.conventions import padding_to_torch
from upconv.spec import SpecError, effective_kernel, per_dimension

__all__ = ["conv", "conv_transpose", "evaluator"]

Ints = Sequence[int] | None


def conv_transpose(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    output_padding: Ints = None,
    output_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> NDArray[Any]:
    """ConvTranspose (opset 1 to 22) of x (N, C, *spatial) with a weight (C, out_channels // group, *kernel).

    >>> x, weight = np.ones((1, 1, 3), np.float32), np.ones((1, 1, 3), np.float32)
    >>> conv_transpose(x, weight, strides=[2], pads=[1, 0], output_padding=[1])
    array([[[1., 2., 1., 2., 1., 1., 0.]]], dtype=float32)

    The attributes are ONNX's: `pads` all befores, then all afters; `output_shape` is spatial (or the whole shape) and takes
    the place of pads, halved with the odd one before, or after for SAME_UPPER. SAME_* give size * stride, as the standard says,
    where the kernel is smaller than the stride too (there ONNX Runtime falls short of it). Raises SpecError for attributes that
    do not fit, TypeError for a dtype other than float32 and float64.
    """
    xa, wa = np.asarray(x), np.asarray(weight)
    rank = _rank(xa, wa, kernel_shape)
    size = xa.shape[2:]
    shape = None if not output_shape else tuple(output_shape)[-rank:]
    if not pads and auto_pad == "NOTSET":
        pads = (0,) * 2 * rank
    found = padding_to_torch(
        "onnx",
        pads if auto_pad == "NOTSET" else auto_pad,
        kernel_size=wa.shape[2:],
        stride=strides or 1,
        dilation=dilations or 1,
        output_padding=output_padding or None,
        output_shape=shape,
        input_size=None if shape is None else size,
        rank=rank,
    )
    stride, dilation = per_dimension("strides", strides or 1, rank, 1), per_dimension("dilations", dilations or 1, rank, 1)
    most = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    inside = tuple(map(min, found.output_padding, most))
    y = functional.conv_transpose(xa, wa, bias, stride, found.padding, inside, group, dilation)
    beyond = [more - e for more, e in zip(found.output_padding, inside, strict=True)]
    return _longer(y, beyond, bias) if any(beyond) else y


def conv(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> NDArray[Any]:
    """Conv (opset 1 to 22) of x (N, C, *spatial) with a weight (out_channels, C // group, *kernel).

    >>> x, weight = np.ones((1, 1, 5), np.float32), np.ones((1, 1, 3), np.float32)
    >>> conv(x, weight, strides=[2], auto_pad="SAME_UPPER")
    array([[[2., 3., 2.]]], dtype=float32)

    SAME_UPPER and SAME_LOWER give ceil(size / stride), the odd zero after or before. Errors are those of `conv_transpose`.
    """
    xa, wa = np.asarray(x), np.asarray(weight)
    rank = _rank(xa, wa, kernel_shape)
    stride, dilation = per_dimension("strides", strides or 1, rank, 1), per_dimension("dilations", dilations or 1, rank, 1)
    spans = [effective_kernel(k, d) for k, d in zip(wa.shape[2:], dilation, strict=True)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        padding = tuple(_same(n, k, s, auto_pad) for n, k, s in zip(xa.shape[2:], spans, stride, strict=True))
    elif auto_pad not in ("NOTSET", "VALID"):
        raise SpecError(f"auto_pad is {auto_pad!r}: use NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    else:
        flat = tuple(pads) if pads and auto_pad == "NOTSET" else (0,) * 2 * rank
        if len(flat) != 2 * rank:
            raise SpecError(f"pads {flat} has {len(flat)} values: ONNX takes {2 * rank}, all befores, then all afters")
        padding = tuple(zip(flat[:rank], flat[rank:], strict=True))
    return functional.conv(xa, wa, bias, stride, padding, dilation, group)


def evaluator(model: Any) -> Any:
    """A model (a path, bytes or a ModelProto) as `onnx.reference.ReferenceEvaluator`, its layers run by this library.

    >>> import tempfile, onnx.helper as helper
    >>> value = lambda name: helper.make_tensor_value_info(name, 1, None)
    >>> node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2])
    >>> graph = helper.make_graph([node], "one layer", [value("x"), value("w")], [value("y")])
    >>> run = evaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])).run
    >>> run(None, {"x": np.ones((1, 1, 2), np.float32), "w": np.ones((1, 1, 2), np.float32)})[0]
    array([[[1., 1., 1., 1.]]], dtype=float32)

    Its other operators are onnx's own NumPy ones, and so are these two on dtypes and ranks that are not ours: it is there to
    compare with and to look inside, where a whole model in production wants a runtime. Raises ImportError without onnx.
    """
    try:
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ImportError("upconv.onnx.evaluator needs onnx, which is not installed: pip install 'upconv[onnx]'") from error
    return ReferenceEvaluator(str(model) if isinstance(model, Path) else model, new_ops=_operators())


def _operators() -> list[type]:
    """ConvTranspose and Conv for the evaluator, named as in ONNX."""
    from onnx.reference.ops import op_conv, op_conv_transpose

    def ours(theirs: Any, function: Any) -> Any:
        def _run(self: Any, X: Any, W: Any, B: Any = None, **attributes: Any) -> tuple[Any, ...]:
            if X.dtype not in (np.float32, np.float64) or not 3 <= X.ndim <= 5:
                return super(made, self)._run(X, W, B, **attributes)  # type: ignore[no-any-return]
            given = {name: value for name, value in attributes.items() if value is not None}
            return (function(X, W, B, **given),)

        made: Any = type(theirs.__name__, (theirs,), {"_run": _run, "op_domain": ""})
        return made

    return [ours(op_conv_transpose.ConvTranspose, conv_transpose), ours(op_conv.Conv, conv)]


def _rank(x: NDArray[Any], weight: NDArray[Any], kernel_shape: Ints) -> int:
    rank = weight.ndim - 2
    if rank not in (1, 2, 3) or x.ndim != weight.ndim:
        raise SpecError(
            f"x has shape {x.shape} and weight {weight.shape}: ONNX's operators take (N, C, *spatial) and a weight of as many "
            f"dimensions, here 3, 4 or 5"
        )
    if kernel_shape and tuple(kernel_shape) != weight.shape[2:]:
        raise SpecError(f"kernel_shape is {tuple(kernel_shape)}: weight of shape {weight.shape} has {weight.shape[2:]}")
    return rank


def _same(size: int, span: int, stride: int, auto_pad: str) -> tuple[int, int]:
    """The zeros (before, after) that give ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + span - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def _longer(y: NDArray[Any], beyond: Sequence[int], bias: ArrayLike | None) -> NDArray[Any]:
    """y with so many positions more at each end: no input reaches them, so they hold the bias."""
    size = [n + more for n, more in zip(y.shape[2:], beyond, strict=True)]
    longer = np.zeros((*y.shape[:2], *size), y.dtype)
    if bias is not None:
        longer += np.asarray(bias).reshape(-1, *(1,) * len(beyond))
    longer[tuple(slice(0, n) for n in y.shape)] = y
    return longer
