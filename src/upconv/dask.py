"""Transposed and ordinary convolution of dask arrays, block by block: images and volumes larger than the memory.

>>> import dask.array as da, numpy as np
>>> from upconv import dask
>>> x = da.ones((1, 4, 3000, 2000), chunks=(1, 4, 1000, 1000), dtype=np.float32)
>>> y = dask.conv_transpose(x, np.ones((4, 2, 4, 4), np.float32), stride=2, padding=1)
>>> y.shape, y.chunks[2:]
((1, 2, 6000, 4000), ((1999, 2000, 2001), (1999, 2001)))
>>> float(y[0, 0, 3000, 2000].compute())  # touches the blocks it needs
16.0

Input i adds to the outputs s*i + d*k - p alone, so that a block of outputs needs its own inputs and `(span - 1) // s` before
them, where `span` is the dilated kernel's: that is all that neighbouring blocks share, and no output is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise, product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upconv import execute
from upconv.functional import _array
from upconv.spec import ConvSpec, SpecError, effective_kernel

try:
    import dask
    import dask.array as da
except ImportError as error:
    raise ImportError("upconv.dask needs dask, which is not installed: pip install 'upconv[dask]'") from error

__all__ = ["conv", "conv_transpose"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One dimension of a block: the inputs [start, stop) it reads, and the layer's padding and output_padding on them."""

    start: int
    stop: int
    padding: tuple[int, int]
    output_padding: int
    size: int


def conv_transpose(
    x: Any,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    output_size: Any = None,
    activation: Any = None,
) -> Any:
    """`upconv.conv_transpose` of a dask array (N, C, *spatial) or (C, *spatial), chunked in any way, as a dask array.

    >>> x = da.ones((1, 7), chunks=(1, 3), dtype=np.float32)
    >>> conv_transpose(x, np.ones((1, 1, 3), np.float32), stride=2).compute()
    array([[1., 1., 2., 1., 2., 1., 2., 1., 2., 1., 2., 1., 2., 1., 1.]], dtype=float32)

    `weight` and `bias` are NumPy arrays. The result's blocks are the input's, enlarged; channels make one block. It equals
    the whole's result exactly on whole numbers, else to rounding. Raises SpecError and TypeError at once, as the NumPy
    function does when it is called.
    """
    options = dict(stride=stride, padding=padding, dilation=dilation, activation=activation)
    options["output_padding"] = 0 if output_size is not None else output_padding
    spec, xa, wa, ba = _layer(x, weight, bias, True, groups, options)
    if output_size is not None:
        spec = spec.with_output_size(xa.shape[-spec.rank :], output_size)
    return _mapped(spec, xa, wa, ba)


def conv(
    x: Any,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: Any = None,
) -> Any:
    """`upconv.conv` of a dask array (N, C, *spatial) or (C, *spatial), chunked in any way, as a dask array.

    >>> x = da.ones((1, 7), chunks=(1, 3), dtype=np.float32)
    >>> conv(x, np.ones((1, 1, 3), np.float32), stride=2, padding=1).compute()
    array([[2., 3., 3., 2.]], dtype=float32)

    Arguments, blocks and errors are those of `conv_transpose`; "same" needs stride 1.
    """
    options = dict(stride=stride, padding=padding, dilation=dilation, activation=activation)
    return _mapped(*_layer(x, weight, bias, False, groups, options))


def _layer(
    x: Any, weight: ArrayLike, bias: ArrayLike | None, transposed: bool, groups: int, options: dict[str, Any]
) -> tuple[ConvSpec, Any, NDArray[Any], NDArray[Any] | None]:
    """The checked layer and its arrays."""
    if not isinstance(x, da.Array):
        raise TypeError(f"x is a {type(x).__name__}: give a dask array, da.from_array(x, chunks=...), or call upconv itself")
    wa, ba = _array("weight", weight), None if bias is None else _array("bias", bias)
    rank = wa.ndim - 2
    if rank not in (1, 2, 3) or x.ndim not in (rank + 1, rank + 2):
        raise SpecError(
            f"x has shape {x.shape} and weight {wa.shape}: give (N, C, *spatial) or (C, *spatial) and a weight of "
            f"(channels, channels, *kernel) with 1, 2 or 3 kernel sizes"
        )
    for name, array in (("weight", wa), ("bias", ba)):
        if array is not None and array.dtype != x.dtype:
            raise TypeError(f"x is {x.dtype} and {name} is {array.dtype}: give both the same dtype")
    many = wa.shape[1] * groups if isinstance(groups, int) and groups > 0 else wa.shape[1]
    ins, outs = (wa.shape[0], many) if transposed else (many, wa.shape[0])
    spec = ConvSpec.make(
        transposed=transposed, in_channels=ins, out_channels=outs, kernel_size=wa.shape[2:], groups=groups, rank=rank, **options
    )
    if x.shape[-rank - 1] != ins:
        raise SpecError(f"x has {x.shape[-rank - 1]} channels (shape {x.shape}) and weight of shape {wa.shape} takes {ins}")
    if ba is not None and ba.shape != (outs,):
        raise SpecError(f"bias has shape {ba.shape}: it must be ({outs},), one value an output channel")
    if any(np.isnan(n) for n in x.shape):
        raise SpecError(f"x has unknown sizes (shape {x.shape}): call x.compute_chunk_sizes() first")
    return spec, x, wa, ba


def _mapped(spec: ConvSpec, x: Any, weight: NDArray[Any], bias: NDArray[Any] | None) -> Any:
    """The dask array of the layer's output."""
    batched = x if x.ndim == spec.rank + 2 else x[None]
    size = spec.output_size(batched.shape[2:])
    axes = [_pieces(spec, d, batched.chunks[2 + d], size[d]) for d in range(spec.rank)]
    batches = [slice(a, b) for a, b in pairwise([0, *accumulate(batched.chunks[0])])]
    weight = weight.copy()  # what the caller writes there later is no part of this result
    weight.flags.writeable = False  # and its packed form is looked up by identity
    constants = dask.delayed((weight, None if bias is None else bias.copy()), pure=True, traverse=False)
    blocks = np.empty((len(batches), 1, *map(len, axes)), object)
    for (n, rows), *places in product(enumerate(batches), *(enumerate(axis) for axis in axes)):
        pieces = [piece for _, piece in places]
        region = batched[(rows, slice(None), *(slice(p.start, p.stop) for p in pieces))]
        local = replace(spec, padding=tuple(p.padding for p in pieces), output_padding=tuple(p.output_padding for p in pieces))
        shape = (rows.stop - rows.start, spec.out_channels, *(p.size for p in pieces))
        block = dask.delayed(partial(_block, local), pure=True)(region, constants)
        blocks[(n, 0, *(at for at, _ in places))] = da.from_delayed(block, shape, dtype=x.dtype)
    whole = da.block(blocks.tolist())
    return whole if batched is x else whole[0]


def _block(spec: ConvSpec, x: NDArray[Any], constants: tuple[NDArray[Any], NDArray[Any] | None]) -> NDArray[Any]:
    return execute.forward(spec, _array("x", x), *constants)


def _pieces(spec: ConvSpec, d: int, chunks: Sequence[int], size: int) -> list[Piece]:
    """Blocks of outputs along a dimension: as many as there are blocks of input, but for those that are left without any."""
    ends = [0, *accumulate(chunks)]
    stride, (before, _) = spec.stride[d], spec.padding[d]
    if spec.transposed:
        cuts = [stride * end - before for end in ends[1:-1]]
    else:  # no block may read padding alone
        span = effective_kernel(spec.kernel_size[d], spec.dilation[d])
        cuts = [-(-end // stride) for end in ends[1:-1]]
        cuts = [cut for cut in cuts if cut * stride - before < ends[-1] and (cut - 1) * stride - before + span > 0]
    cuts = sorted({0, size, *(cut for cut in cuts if 0 < cut < size)})
    piece = _transposed_piece if spec.transposed else _ordinary_piece
    return [piece(spec, d, ends[-1], a, b) for a, b in pairwise(cuts)]


def _transposed_piece(spec: ConvSpec, d: int, inputs: int, a: int, b: int) -> Piece:
    """Outputs [a, b): positions [low, high) of the uncropped output, and the inputs that write there."""
    s, span = spec.stride[d], effective_kernel(spec.kernel_size[d], spec.dilation[d])
    low, high = a + spec.padding[d][0], b + spec.padding[d][0]
    first = min(max(-(-(low - span + 1) // s), 0), low // s, inputs - 1)
    stop = max(min(-(-high // s), inputs), first + 1)
    surplus = (stop - first - 1) * s + span - (high - s * first)
    return Piece(first, stop, (low - s * first, max(surplus, 0)), max(-surplus, 0), b - a)


def _ordinary_piece(spec: ConvSpec, d: int, inputs: int, a: int, b: int) -> Piece:
    """Outputs [a, b): the inputs that they read, and how many zeros before and after them."""
    s, span = spec.stride[d], effective_kernel(spec.kernel_size[d], spec.dilation[d])
    low, high = a * s - spec.padding[d][0], (b - 1) * s - spec.padding[d][0] + span
    start = max(low, 0)
    stop = max(min(high, inputs), start + 1)  # a lone block may read padding only; a layer must have an input
    return Piece(start, stop, (start - low, max(high - stop, 0)), 0, b - a)
