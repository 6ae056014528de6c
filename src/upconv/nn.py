"""Layers for NumPy arrays, with torch.nn's constructor arguments, attributes, default initialisation and repr.

>>> import numpy as np
>>> from upconv import nn
>>> m = nn.ConvTranspose2d(16, 33, (3, 5), stride=(2, 1), padding=(4, 2), seed=0)
>>> m
ConvTranspose2d(16, 33, kernel_size=(3, 5), stride=(2, 1), padding=(4, 2))
>>> m(np.zeros((20, 16, 50, 100), np.float32)).shape
(20, 33, 93, 100)
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from upconv import functional
from upconv.spec import ConvSpec, SpecError

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]

Seed = int | np.random.Generator | None


def _torch_padding(spec: ConvSpec, given: Any) -> Any:
    """`padding` as torch's attribute shows it: a string as given, an int a dimension, or pairs where they differ."""
    if isinstance(given, str):
        return given
    even = all(lo == hi for lo, hi in spec.padding)
    return tuple(lo for lo, _ in spec.padding) if even else spec.padding


def _of_spec(name: str) -> Any:
    """A read-only attribute: what a layer is was checked when it was made, and does not change."""
    return property(lambda self: getattr(self.spec, name), doc=f"The layer's {name}.")


class _Layer:
    """What the two kinds share: the validated spec, the parameters, and how they are shown, saved and loaded."""

    rank: ClassVar[int]
    spec: ConvSpec
    weight: NDArray[Any]
    bias: NDArray[Any] | None

    in_channels, out_channels = _of_spec("in_channels"), _of_spec("out_channels")
    kernel_size, stride, dilation = _of_spec("kernel_size"), _of_spec("stride"), _of_spec("dilation")
    output_padding, padding_mode = _of_spec("output_padding"), _of_spec("padding_mode")
    groups, activation, transposed = _of_spec("groups"), _of_spec("activation"), _of_spec("transposed")

    def __init_subclass__(cls, rank: int | None = None) -> None:
        if rank is not None:
            cls.rank = rank

    def _set_up(self, spec: ConvSpec, padding: Any, bias: bool, dtype: DTypeLike, seed: Seed) -> None:
        self.spec = spec
        self.padding = _torch_padding(spec, padding)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"dtype is {self.dtype}: a layer computes in np.float32 or np.float64")
        self.weight = np.empty(spec.weight_shape, self.dtype)
        self.bias = np.empty(spec.out_channels, self.dtype) if bias else None
        self.reset_parameters(seed)

    def reset_parameters(self, seed: Seed = None) -> None:
        """Draw the parameters anew as torch does: uniform within 1 / sqrt(fan), fan = weight.shape[1] * kernel sites.

        That fan is torch's for transposed layers too, where dimension 1 counts the output channels.
        """
        rng, bound = np.random.default_rng(seed), 1 / np.sqrt(prod(self.spec.weight_shape[1:]))
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter[...] = rng.uniform(-bound, bound, parameter.shape)

    def _apply(self, x: ArrayLike, output_size: Any = None) -> NDArray[Any]:
        """The layer's output. The spec is known, so nothing but the arrays is left to check."""
        key = functional._key(x, self.weight, self.bias, self.spec, output_size)
        known = functional._again(key, x, self.weight, self.bias)
        if known is not None:
            return known
        xa, weight, bias, _ = functional._operands(x, self.weight, self.bias, self.rank)
        if weight.shape != self.spec.weight_shape:  # it would silently be another layer
            raise SpecError(
                f"weight has shape {weight.shape}: {self!r} has {self.spec.weight_shape}; make a layer of that size instead"
            )
        return functional._run(self.spec, xa, weight, bias, output_size, None, key)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The parameters by torch's names (the arrays themselves, not copies)."""
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Copy the parameters in; those of the same layer in torch fit. Raises SpecError where they do not.

        >>> a, b = ConvTranspose1d(2, 3, 4, seed=0), ConvTranspose1d(2, 3, 4, seed=1)
        >>> b.load_state_dict(a.state_dict())
        >>> bool((a.weight == b.weight).all())
        True
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise SpecError(f"state has {sorted(state)}: {self!r} has {sorted(own)}; give exactly these")
        new = {name: np.asarray(value) for name, value in state.items()}
        for name, value in new.items():
            if value.shape != own[name].shape:
                raise SpecError(f"{name} has shape {value.shape}: {self!r} has {own[name].shape}")
        for name, value in new.items():
            setattr(self, name, value.astype(self.dtype))

    def __repr__(self) -> str:
        ones, zeros = (1,) * self.rank, (0,) * self.rank
        shown = {
            "kernel_size": (self.kernel_size, None),
            "stride": (self.stride, None),
            "padding": (self.padding, zeros),
            "dilation": (self.dilation, ones),
            "output_padding": (zeros if self.padding == "same" else self.output_padding, zeros),
            "groups": (self.groups, 1),
            "bias": (self.bias is not None, True),
            "padding_mode": (self.padding_mode, "zeros"),
            "activation": (self.activation, None),
        }
        words = [f"{name}={value}" for name, (value, default) in shown.items() if value != default]
        return f"{type(self).__name__}({', '.join([str(self.in_channels), str(self.out_channels), *words])})"


class _ConvTranspose(_Layer):
    """A transposed convolution: ConvTranspose1d, 2d and 3d, whose arguments are in torch.nn's order.

    >>> ConvTranspose2d(16, 16, 3, stride=2, padding=1, seed=0)(
    ...     np.zeros((1, 16, 6, 6), np.float32), output_size=(12, 12)
    ... ).shape
    (1, 16, 12, 12)

    `kernel_size`, `stride`, `output_padding` and `dilation` are an int or one a dimension; `padding` (torch's: it crops
    the output) also takes (before, after) pairs, "same" and "valid". Beyond torch's: `padding_mode` other than "zeros",
    `activation` ("relu", ("leaky_relu", 0.1), ...) and `seed` (an int or a NumPy generator) for the initialisation.
    Call it with x of shape (N, in_channels, *size) or (in_channels, *size). Raises SpecError for arguments that no
    layer can have, TypeError for a dtype other than float32 and float64.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        dtype: DTypeLike = np.float32,
        *,
        activation: Any = None,
        seed: Seed = None,
    ) -> None:
        spec = ConvSpec.make(
            transposed=True,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
            activation=activation,
            rank=self.rank,
        )
        self._set_up(spec, padding, bias, dtype, seed)

    def __call__(self, x: ArrayLike, output_size: Any = None) -> NDArray[Any]:
        """The layer's output; `output_size` (spatial, or the whole shape) chooses the output_padding."""
        return self._apply(x, output_size)


class _Conv(_Layer):
    """A convolution: Conv1d, 2d and 3d, whose arguments are in torch.nn's order.

    >>> Conv2d(16, 16, 3, stride=2, padding=1, seed=0)(np.zeros((1, 16, 12, 12), np.float32)).shape
    (1, 16, 6, 6)

    Arguments, shapes and errors are those of the transposed layers, without `output_padding`; "same" needs stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        dtype: DTypeLike = np.float32,
        *,
        activation: Any = None,
        seed: Seed = None,
    ) -> None:
        spec = ConvSpec.make(
            transposed=False,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
            activation=activation,
            rank=self.rank,
        )
        self._set_up(spec, padding, bias, dtype, seed)

    def __call__(self, x: ArrayLike) -> NDArray[Any]:
        """The layer's output."""
        return self._apply(x)


class ConvTranspose1d(_ConvTranspose, rank=1): ...


class ConvTranspose2d(_ConvTranspose, rank=2): ...


class ConvTranspose3d(_ConvTranspose, rank=3): ...


class Conv1d(_Conv, rank=1): ...


class Conv2d(_Conv, rank=2): ...


class Conv3d(_Conv, rank=3): ...
