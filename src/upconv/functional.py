"""Transposed and ordinary convolution of NumPy arrays, with torch.nn.functional's argument names and order.

>>> import numpy as np, upconv
>>> x = np.ones((1, 1, 3), np.float32)
>>> w = np.ones((1, 1, 4), np.float32)
>>> upconv.conv_transpose(x, w, stride=2, padding=1)
array([[[1., 2., 2., 2., 2., 1.]]], dtype=float32)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upconv import execute, execute_reorder
from upconv.arguments import Calls
from upconv.codegen.threads import asked_for
from upconv.planner import Plan
from upconv.spec import ConvSpec, SpecError

P = ParamSpec("P")
R = TypeVar("R")

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def _array(name: str, value: ArrayLike) -> NDArray[Any]:
    """`value` as a plain, native-endian, aligned array of a supported dtype."""
    array = np.asarray(value)
    native = array.dtype.newbyteorder("=")
    if native not in _DTYPES:
        raise TypeError(
            f"{name} has dtype {array.dtype}: float32 and float64 are supported; convert it with {name}.astype(np.float32)"
        )
    if array.dtype != native or not array.flags.aligned:
        array = np.array(array, native)
    return array


def _operands(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None, rank: int | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, int]:
    """The arrays, checked against each other for dtype and rank; x may still be unbatched."""
    xa, wa = _array("x", x), _array("weight", weight)
    ba = None if bias is None else _array("bias", bias)
    found = wa.ndim - 2
    if found not in (1, 2, 3) or (rank is not None and found != rank):
        wanted = f"{rank + 2}-D for rank {rank}" if rank else "3-D, 4-D or 5-D for rank 1, 2 or 3"
        raise SpecError(f"weight has shape {wa.shape}: it must be {wanted}, (channels, channels // groups, *kernel)")
    if xa.ndim not in (found + 1, found + 2):
        raise SpecError(
            f"x has shape {xa.shape}: a rank-{found} layer takes (N, C, *spatial) with {found + 2} dimensions or "
            f"(C, *spatial) with {found + 1}"
        )
    for name, array in (("weight", wa), ("bias", ba)):
        if array is not None and array.dtype != xa.dtype:
            raise TypeError(f"x is {xa.dtype} and {name} is {array.dtype}: give both the same dtype")
    return xa, wa, ba, found


def _check_sizes(spec: ConvSpec, x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None) -> None:
    channels = x.shape[-spec.rank - 1]
    if channels != spec.in_channels:
        raise SpecError(
            f"x has {channels} channels (shape {x.shape}) and weight of shape {weight.shape} with groups {spec.groups} "
            f"takes {spec.in_channels}"
        )
    if min(x.shape[-spec.rank :]) < 1:
        raise SpecError(f"x has shape {x.shape}: every spatial size must be at least 1 (an empty batch is allowed)")
    if bias is not None and bias.shape != (spec.out_channels,):
        raise SpecError(f"bias has shape {bias.shape}: it must be ({spec.out_channels},), one value an output channel")


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: tuple[NDArray[Any] | None, ...]) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is a {type(out).__name__}: it must be a NumPy array of shape {shape}, dtype {dtype}")
    if out.shape != shape or out.dtype != dtype:
        raise SpecError(
            f"out has shape {out.shape}, dtype {out.dtype}: the result has shape {shape}, dtype {dtype}; "
            f"use np.empty({shape}, np.{dtype})"
        )
    if not (out.flags.c_contiguous and out.flags.writeable and out.flags.aligned):
        raise SpecError("out must be C-contiguous, aligned and writeable; use np.empty, and copy the result to its place")
    if any(a is not None and np.may_share_memory(out, a) for a in inputs):
        raise SpecError("out overlaps x, weight or bias: the result is written while they are read; give memory of its own")


_ready = Calls[execute.Ready](most=4096)
execute.forgetters.append(_ready.clear)


def _plain(array: Any) -> bool:
    """Whether a kernel can read the array where it stands."""
    if type(array) is not np.ndarray:
        return False
    flags = array.flags  # made anew each time that it is asked for
    return bool(flags.c_contiguous and flags.aligned)


def _readable(array: Any) -> bool:
    """Whether it can once the elements stand in order."""
    return type(array) is np.ndarray and bool(array.flags.aligned)


def _again(key: Any, x: Any, weight: Any, bias: Any, out: Any = None) -> NDArray[Any] | None:
    """The result of a call whose like has been checked before, or None. Only `out`, which may be any, is checked again."""
    known = None if key is None else _ready.find(key)
    if known is None:
        return None
    given = x, weight, bias
    if not (_plain(x) and _plain(weight) and (bias is None or _plain(bias))):
        if not all(a is None or _readable(a) for a in given):
            return None
        batched = x.ndim == weight.ndim
        x = execute_reorder.channels_first(x, execute.target()) if batched else np.ascontiguousarray(x)
        weight, bias = np.ascontiguousarray(weight), None if bias is None else np.ascontiguousarray(bias)
    if out is None:
        return known(x, weight, bias)
    _check_out(out, known.shape, known.dtype, given)
    return known(x, weight, bias, out)


def _key(x: Any, weight: Any, bias: Any, *arguments: Any) -> Any:
    """What a call's checks depend on, or None for things other than arrays."""
    try:
        of_bias = None if bias is None else (bias.shape, bias.dtype)
        return (x.shape, x.dtype, weight.shape, weight.dtype, of_bias, asked_for(), arguments)
    except AttributeError:
        return None


def _run(
    spec: ConvSpec,
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    output_size: Any,
    out: Any,
    key: Any = None,
) -> NDArray[Any]:
    """Checks the sizes and runs; a `key` lets the next such call do without."""
    _check_sizes(spec, x, weight, bias)
    spatial = x.shape[-spec.rank :]
    if output_size is not None:
        spec = spec.with_output_size(spatial, output_size)
    size = spec.output_size(spatial)
    batched = x if x.ndim == spec.rank + 2 else x[None]
    shape = (batched.shape[0], spec.out_channels, *size)
    result_shape = shape if batched is x else shape[1:]
    if out is not None:
        _check_out(out, result_shape, x.dtype, (x, weight, bias))
    y = execute.forward(spec, batched, weight, bias, None if out is None else out.reshape(shape))
    if key is not None and key[1] == x.dtype:
        known = execute.ready(spec, batched.shape, x.dtype.name, result_shape)
        if known is not None:
            _ready.keep(key, known)
    if out is not None:
        return out  # type: ignore[no-any-return]
    return y if batched is x else y[0]


def conv_transpose(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    output_size: Any = None,
    padding_mode: str = "zeros",
    activation: Any = None,
    out: NDArray[Any] | None = None,
    _rank: int | None = None,
) -> NDArray[Any]:
    """Transposed convolution of (N, C, *spatial) or (C, *spatial); the rank is the weight's.

    >>> import numpy as np
    >>> x, w = np.zeros((20, 16, 50, 100), np.float32), np.zeros((16, 33, 3, 3), np.float32)
    >>> conv_transpose(x, w, stride=2).shape
    (20, 33, 101, 201)

    `weight` is (in_channels, out_channels // groups, *kernel), `bias` (out_channels,). `padding` is torch's (it crops
    the output): an int, a tuple, (before, after) pairs, "same" (output = input * stride) or "valid". `output_size`
    chooses the output_padding. `padding_mode` other than "zeros" makes the adjoint of the convolution that pads so.
    `activation` is a name or a (name, parameter) pair, applied as the result is stored. `out` receives the result.

    Raises SpecError (a ValueError) for sizes and arguments that do not fit, TypeError for a dtype other than float32
    and float64 or a mix of the two.
    """
    layer = (True, _rank, stride, padding, output_padding, groups, dilation, output_size, padding_mode, activation)
    key = _key(x, weight, bias, *layer)
    known = _again(key, x, weight, bias, out)
    if known is not None:
        return known
    xa, wa, ba, rank = _operands(x, weight, bias, _rank)
    if isinstance(groups, int) and groups >= 1:
        spec_out = wa.shape[1] * groups
    else:
        spec_out = wa.shape[1]
    spec = ConvSpec.make(
        transposed=True,
        in_channels=wa.shape[0],
        out_channels=spec_out,
        kernel_size=wa.shape[2:],
        stride=stride,
        padding=padding,
        output_padding=0 if output_size is not None else output_padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
        activation=activation,
        rank=rank,
    )
    return _run(spec, xa, wa, ba, output_size, out, key)


def conv(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: Any = None,
    out: NDArray[Any] | None = None,
    _rank: int | None = None,
) -> NDArray[Any]:
    """Convolution (cross-correlation, as torch) of (N, C, *spatial) or (C, *spatial); the rank is the weight's.

    >>> import numpy as np
    >>> conv(np.zeros((1, 3, 12, 12), np.float32), np.zeros((8, 3, 3, 3), np.float32), stride=2, padding=1).shape
    (1, 8, 6, 6)

    `weight` is (out_channels, in_channels // groups, *kernel). The other arguments, and the errors raised, are those of
    `conv_transpose`; "same" needs stride 1.
    """
    key = _key(x, weight, bias, False, _rank, stride, padding, groups, dilation, padding_mode, activation)
    known = _again(key, x, weight, bias, out)
    if known is not None:
        return known
    xa, wa, ba, rank = _operands(x, weight, bias, _rank)
    spec = ConvSpec.make(
        transposed=False,
        in_channels=wa.shape[1] * groups if isinstance(groups, int) and groups >= 1 else wa.shape[1],
        out_channels=wa.shape[0],
        kernel_size=wa.shape[2:],
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
        activation=activation,
        rank=rank,
    )
    return _run(spec, xa, wa, ba, None, out, key)


def _ranked(function: Callable[P, R], rank: int) -> Callable[P, R]:
    """`function` for weights of one rank only, with a name, signature and help of its own."""
    name = f"{function.__name__}{rank}d"
    size, kernel, eights, ones = (", ".join([word] * rank) for word in ("size", "kernel", "8", "1"))
    signature = inspect.signature(function)

    @functools.wraps(function)
    def ranked(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **{**kwargs, "_rank": rank})  # type: ignore[arg-type]

    del ranked.__wrapped__  # type: ignore[attr-defined]
    ranked.__name__ = ranked.__qualname__ = name
    ranked.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[p for p in signature.parameters.values() if not p.name.startswith("_")]
    )
    ranked.__doc__ = f"""`{function.__name__}` of rank {rank}: any other weight raises SpecError.

    >>> import numpy as np
    >>> {name}(np.ones((1, 4, {eights}), np.float32), np.ones((4, 4, {ones}), np.float32)).shape
    (1, 4, {eights})

    Shapes: x (N, C, {size}) or (C, {size}), weight (channels, channels // groups, {kernel}).
    The arguments, and the errors raised, are those of `{function.__name__}`.
    """
    return ranked


conv_transpose1d, conv_transpose2d, conv_transpose3d = (_ranked(conv_transpose, rank) for rank in (1, 2, 3))
conv1d, conv2d, conv3d = (_ranked(conv, rank) for rank in (1, 2, 3))


def _shape(name: str, value: Any) -> tuple[int, ...]:
    """The shape of an array, or a shape given as such."""
    shape = getattr(value, "shape", value)
    if not isinstance(shape, (tuple, list)):
        raise SpecError(f"{name} is {value!r}: give an array or its shape")
    return tuple(int(n) for n in shape)


def plan(
    x: Any,
    weight: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    output_size: Any = None,
    padding_mode: str = "zeros",
    activation: Any = None,
    transposed: bool = True,
    dtype: str = "float32",
) -> Plan:
    """The plan that `conv_transpose` (or `conv`, with `transposed=False`) would use; printing it explains it.

    >>> made = plan((1, 256, 32, 24), (256, 256, 4, 4), stride=2, padding=1)
    >>> print(str(made).splitlines()[0])
    ConvTranspose2d 256 -> 256, kernel 4x4, stride 2x2, padding 1x1      (1, 256, 32, 24) -> (1, 256, 64, 48) float32

    `x` and `weight` are arrays or shapes; nothing is computed or compiled. Raises SpecError as the call would.
    """
    shape, kernel = _shape("x", x), _shape("weight", weight)
    rank = len(kernel) - 2
    if rank not in (1, 2, 3) or len(shape) not in (rank + 1, rank + 2):
        raise SpecError(f"x of shape {shape} and weight of shape {kernel} are no layer: give (N, C, *spatial) and torch's weight")
    if dtype not in ("float32", "float64"):
        raise SpecError(f"dtype is {dtype!r}: use float32 or float64")
    many = kernel[1] * (groups if isinstance(groups, int) and groups >= 1 else 1)
    spec = ConvSpec.make(
        transposed=transposed,
        in_channels=kernel[0] if transposed else many,
        out_channels=many if transposed else kernel[0],
        kernel_size=kernel[2:],
        stride=stride,
        padding=padding,
        output_padding=0 if output_size is not None else output_padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
        activation=activation,
        rank=rank,
    )
    if output_size is not None:
        spec = spec.with_output_size(shape[-rank:], output_size)
    if shape[-rank - 1] != spec.in_channels:
        raise SpecError(f"x has {shape[-rank - 1]} channels (shape {shape}) and weight of shape {kernel} takes {spec.in_channels}")
    return execute.make_plan(spec, shape[0] if len(shape) == rank + 2 else 1, shape[-rank:], dtype)
