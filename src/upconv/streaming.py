"""A transposed convolution fed piece by piece: the pieces that come out, put together, are the whole.

>>> import numpy as np
>>> from upconv import streaming
>>> layer = streaming.ConvTranspose1d(np.ones((1, 1, 4), np.float32), stride=2, padding=1)
>>> layer(np.ones((1, 2), np.float32))
array([[1., 2., 2.]], dtype=float32)
>>> layer(np.ones((1, 1), np.float32))
array([[2., 2.]], dtype=float32)
>>> layer.flush()
array([[1.]], dtype=float32)

Input i adds to the positions s*i + d*k of the uncropped output and to no others, so that after n inputs every position below
s*n is final. What lies beyond, the sums that later inputs add to, is the state: `dilation * (kernel - 1) + 1 - stride`
positions, however long the stream (the overlap of overlap-add). No input is kept and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upconv import execute
from upconv.functional import _array
from upconv.kernels.reference import activate
from upconv.spec import ConvSpec, SpecError, effective_kernel

__all__ = ["ConvTranspose1d"]


class ConvTranspose1d:
    """A transposed convolution of rank 1 with a memory: call it with each chunk, then `flush()` for what is left.

    >>> decoder = ConvTranspose1d(np.ones((8, 4, 10), np.float32), stride=5, causal=True)
    >>> [decoder(np.zeros((8, frames), np.float32)).shape for frames in (3, 1, 0)]
    [(4, 15), (4, 5), (4, 0)]
    >>> decoder.flush().shape
    (4, 0)

    `weight` is (in_channels, out_channels // groups, kernel), `bias` (out_channels,); both are copied. `stride`, `padding`
    (torch's: it crops; an int, one (before, after) pair, "same" or "valid"), `output_padding`, `dilation` and `activation` are
    those of `upconv.conv_transpose`. `causal` crops everything that the last inputs reach beyond `stride` positions each, as
    streaming codecs do: n inputs give n*stride outputs at once, and `flush` adds none.

    Chunks are (N, in_channels, frames) or (in_channels, frames) of the weight's dtype, with any number of frames, 0 too; one
    stream keeps to one shape but for the frames. Where padding crops the end by more than the overlap, `delay` outputs wait
    until it is known that the end has not come. Sums are those of the whole in another order: equal on whole numbers, else to
    rounding.

    Raises SpecError for arguments and shapes that do not fit and TypeError for another dtype; the stream is then as it was.
    """

    _frames: int  # inputs so far
    _start: int  # where the next output stands, uncropped
    _tail: NDArray[Any]  # the sums from there on
    _lead: tuple[int, ...] | None  # a chunk's shape before its channels

    def __init__(
        self,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
        *,
        causal: bool = False,
        activation: Any = None,
    ) -> None:
        own = _array("weight", weight)
        if own.ndim != 3:
            raise SpecError(f"weight has shape {own.shape}: streams have rank 1, (in_channels, out_channels // groups, kernel)")
        self.spec = ConvSpec.make(
            transposed=True,
            in_channels=own.shape[0],
            out_channels=own.shape[1] * groups if isinstance(groups, int) and groups > 0 else own.shape[1],
            kernel_size=own.shape[2:],
            stride=stride,
            padding=_causal(own.shape[2], stride, padding, output_padding, dilation) if causal else padding,
            output_padding=_shortfall(own.shape[2], stride, dilation) if causal else output_padding,
            dilation=dilation,
            groups=groups,
            activation=activation,
            rank=1,
        )
        self.weight = _kept(own)
        self.bias = None if bias is None else _kept(_array("bias", bias))
        self._check_bias()
        self._bare = replace(self.spec, padding=((0, 0),), output_padding=(0,), activation=None)
        self.reset()

    def _check_bias(self) -> None:
        if self.bias is None:
            return
        if self.bias.shape != (self.spec.out_channels,):
            raise SpecError(
                f"bias has shape {self.bias.shape}: it must be ({self.spec.out_channels},), one value an output channel"
            )
        if self.bias.dtype != self.weight.dtype:
            raise TypeError(f"weight is {self.weight.dtype} and bias is {self.bias.dtype}: give both the same dtype")

    # -- positions of the uncropped output ---------------------------------------------------------------------------------

    def _end(self, frames: int) -> int:
        """Where the output would end if the stream ended after so many inputs."""
        span = effective_kernel(self.spec.kernel_size[0], self.spec.dilation[0])
        return (frames - 1) * self.spec.stride[0] + span + self.spec.output_padding[0] - self.spec.padding[0][1]

    @property
    def delay(self) -> int:
        """How many outputs wait for the next input because padding would crop them if it did not come."""
        return max(self.spec.stride[0] - self._end(1), 0)

    @property
    def _overlap(self) -> int:
        """How many positions beyond the final ones hold sums or wait: the length of the state."""
        span = effective_kernel(self.spec.kernel_size[0], self.spec.dilation[0])
        return max(span - self.spec.stride[0], 0) + self.delay

    # -- the stream --------------------------------------------------------------------------------------------------------

    def __call__(self, x: ArrayLike) -> NDArray[Any]:
        """The outputs that became final with this chunk, (N, out_channels, any) or (out_channels, any)."""
        chunk = self._checked(x)
        frames = self._frames + chunk.shape[-1]
        stop = max(self.spec.stride[0] * frames - self.delay, 0)
        sums = self._sums(chunk, stop + self._overlap - self._start)
        done, self._tail = np.split(sums, [stop - self._start], axis=-1)
        out = self._finished(done, self._start)
        self._tail, self._frames, self._start = self._tail.copy(), frames, stop
        self._lead = chunk.shape[:-2]
        return out

    def flush(self) -> NDArray[Any]:
        """The rest of the output; the next chunk begins a new stream. Raises SpecError where no chunk has come."""
        if self._lead is None:
            raise SpecError("flush() before any chunk: the output of an empty stream has no size; call the layer first")
        length = max(self._end(self._frames) - self._start, 0) if self._frames else 0
        rest = np.zeros((*self._tail.shape[:-1], length), self.weight.dtype)
        known = min(length, self._tail.shape[-1])
        rest[..., :known] = self._tail[..., :known]
        out = self._finished(rest, self._start)
        self.reset()
        return out

    def reset(self) -> None:
        """Forget the stream: the next chunk is a first one."""
        self._frames = self._start = 0
        self._lead = None
        self._tail = np.zeros((self.spec.out_channels, self._overlap), self.weight.dtype)

    def _checked(self, x: ArrayLike) -> NDArray[Any]:
        chunk = _array("x", x)
        if chunk.dtype != self.weight.dtype:
            raise TypeError(f"x is {chunk.dtype} and weight is {self.weight.dtype}: give both the same dtype")
        channels = self.spec.in_channels
        if chunk.ndim not in (2, 3) or chunk.shape[-2] != channels:
            raise SpecError(f"x has shape {chunk.shape}: a chunk is (N, {channels}, frames) or ({channels}, frames)")
        if self._lead is not None and chunk.shape[:-2] != self._lead:
            had = (*self._lead, channels, "frames")
            raise SpecError(
                f"x has shape {chunk.shape}: this stream's chunks are ({', '.join(map(str, had))}); "
                f"call flush() or reset() before another stream"
            )
        return chunk

    def _sums(self, chunk: NDArray[Any], length: int) -> NDArray[Any]:
        """`length` positions from `_start` on: what the state holds and what this chunk adds."""
        sums = np.zeros((*chunk.shape[:-2], self.spec.out_channels, length), chunk.dtype)
        sums[..., : self._tail.shape[-1]] = self._tail
        if chunk.shape[-1] and chunk.size:
            batched = chunk if chunk.ndim == 3 else chunk[None]
            added = execute.forward(self._bare, batched, self.weight, None).reshape(*sums.shape[:-1], -1)
            first = self.spec.stride[0] * self._frames - self._start
            sums[..., first : first + added.shape[-1]] += added
        return sums

    def _finished(self, sums: NDArray[Any], start: int) -> NDArray[Any]:
        """Cropped at the front of the stream, with bias and activation."""
        out = np.ascontiguousarray(sums[..., max(self.spec.padding[0][0] - start, 0) :])
        if self.bias is not None:
            out += self.bias[:, None]
        return np.ascontiguousarray(activate(out, self.spec.activation))

    # -- saving ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The parameters by torch's names, and the stream: `tail`, `frames` (inputs so far) and `lead` (a batch's shape).

        >>> a, b = (ConvTranspose1d(np.ones((1, 1, 3), np.float32)) for _ in range(2))
        >>> _ = a(np.ones((1, 5), np.float32))
        >>> b.load_state_dict(a.state_dict())  # b goes on where a is
        >>> b.flush()
        array([[2., 1.]], dtype=float32)
        """
        state = {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
        if self._lead is not None:
            state |= {"tail": self._tail.copy(), "frames": np.array(self._frames), "lead": np.array(self._lead, np.int64)}
        return state

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take parameters, and the stream if there is one in it (else the stream is reset).

        Raises SpecError where they are not those of such a layer, which is then left as it was.
        """
        parameters = {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
        stream = {"tail", "frames", "lead"} if "frames" in state else set()
        if set(state) != parameters.keys() | stream:
            raise SpecError(
                f"state has {sorted(state)}: this layer has {sorted(parameters)}, and of a stream frames, lead and tail"
            )
        new = {name: np.asarray(state[name]) for name in parameters}
        for name, value in new.items():
            if value.shape != parameters[name].shape:
                raise SpecError(f"{name} has shape {value.shape}: this layer has {parameters[name].shape}")
        if not stream:
            self._load_parameters(new)
            self.reset()
            return
        frames, lead = int(np.asarray(state["frames"])), tuple(int(n) for n in np.asarray(state["lead"]))
        tail, shape = np.asarray(state["tail"]), (*lead, self.spec.out_channels, self._overlap)
        if frames < 0 or len(lead) > 1 or tail.shape != shape:
            raise SpecError(f"tail has shape {tail.shape} after {frames} frames: this layer's is {shape}")
        self._load_parameters(new)
        self._frames, self._lead, self._tail = frames, lead, tail.astype(self.weight.dtype)
        self._start = max(self.spec.stride[0] * frames - self.delay, 0)

    def _load_parameters(self, new: Mapping[str, NDArray[Any]]) -> None:
        self.weight = _kept(new["weight"].astype(self.weight.dtype))
        if self.bias is not None:
            self.bias = _kept(new["bias"].astype(self.bias.dtype))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec}{'' if self.bias is not None else ', no bias'})"


def _kept(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that nobody can change: its packed form stays valid, which is looked up at every chunk."""
    copy = np.array(array, order="C")
    copy.flags.writeable = False
    return copy


def _shortfall(kernel: int, stride: Any, dilation: Any) -> int:
    """By how much a kernel falls short of its stride: the output_padding that fills a causal layer's last step."""
    numbers = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=kernel, stride=stride, dilation=dilation)
    return max(numbers.stride[0] - effective_kernel(kernel, numbers.dilation[0]), 0)


def _causal(kernel: int, stride: Any, padding: Any, output_padding: Any, dilation: Any) -> tuple[tuple[int, int], ...]:
    """The padding that crops what reaches beyond `stride` positions a frame."""
    if padding != 0 or output_padding != 0:
        raise SpecError(
            f"causal fixes the crop, so padding {padding!r} and output_padding {output_padding!r} cannot be given with it"
        )
    numbers = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=kernel, stride=stride, dilation=dilation)
    return ((0, max(effective_kernel(kernel, numbers.dilation[0]) - numbers.stride[0], 0)),)
