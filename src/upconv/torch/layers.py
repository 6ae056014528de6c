"""torch.nn's six layers, run by this library's kernels: same constructor, parameters, state_dict and repr."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.compiler import is_compiling

from upconv.spec import ConvSpec
from upconv.torch import arrays, calls, memory
from upconv.torch.choice import refusal


class _Layer:
    """What the six share beyond torch's own class: the arguments torch does not have, and who runs a call."""

    rank: ClassVar[int]
    transposed: ClassVar[bool]
    activation: Any = None
    padding: Any
    padding_mode: Any
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    _parameters: dict[str, Any]
    run: Any
    _asked: Any

    def _extend(self, spec: ConvSpec, padding: Any, padding_mode: str, activation: Any) -> None:
        """Set what torch's constructor would have refused."""
        even = all(lo == hi for lo, hi in spec.padding)
        self.padding = padding if isinstance(padding, str) else tuple(lo for lo, _ in spec.padding) if even else spec.padding
        self.padding_mode = padding_mode
        if not self.transposed:  # torch's own forward reads this one
            self._reversed_padding_repeated_twice = [edge for pair in reversed(spec.padding) for edge in pair]
        if activation is not None:
            self.activation = activation

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        held = self._parameters
        if "weight" not in held or "bias" not in held or output_size is not None or is_compiling():
            return self.run(input, self.weight, self.bias, self.activation, output_size)
        return self.again(input, held["weight"], held["bias"], self.activation)  # torch's attributes take longer

    def again(self, input: Tensor, weight: Tensor, bias: Tensor | None, activation: Any) -> Tensor:
        """`run`, from the memory of the last call if this one is like it."""
        last = self.__dict__.get("_last")
        y = None if last is None else last.again(input, weight, bias, activation)
        if y is None:
            y = self.run(input, weight, bias, activation, None)
            self.__dict__["_last"] = memory.last(input, weight, bias, self._asked(activation))
        return y

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop("_last", None)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        shown: str = super().extra_repr()  # type: ignore[misc]
        return shown if self.activation is None else f"{shown}, activation={self.activation!r}"


class _Transposed(_Layer):
    transposed = True

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
        device: Any = None,
        dtype: Any = None,
        *,
        activation: Any = None,
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
        super().__init__(  # type: ignore[call-arg]
            in_channels,
            out_channels,
            spec.kernel_size,
            spec.stride,
            0,
            output_padding,
            groups,
            bias,
            spec.dilation,
            "zeros",
            device,
            dtype,
        )
        self._extend(spec, padding, padding_mode, activation)

    def _asked(self, activation: Any) -> tuple[Any, ...]:
        shape = self.stride, self.padding, self.output_padding, self.dilation
        return True, *shape, self.groups, None, self.padding_mode, activation

    def run(self, input: Tensor, weight: Tensor, bias: Tensor | None, activation: Any, output_size: Any) -> Tensor:
        """The layer with another weight, bias and activation in place of its own."""
        return _TRANSPOSED[self.rank](
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
            output_size=output_size,
            padding_mode=self.padding_mode,
            activation=activation,
        )


class _Ordinary(_Layer):
    transposed = False

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
        device: Any = None,
        dtype: Any = None,
        *,
        activation: Any = None,
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
        super().__init__(  # type: ignore[call-arg]
            in_channels,
            out_channels,
            spec.kernel_size,
            spec.stride,
            0,
            spec.dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._extend(spec, padding, padding_mode, activation)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input)

    def _asked(self, activation: Any) -> tuple[Any, ...]:
        return False, self.stride, self.padding, 0, self.dilation, self.groups, None, self.padding_mode, activation

    def run(self, input: Tensor, weight: Tensor, bias: Tensor | None, activation: Any, output_size: None = None) -> Tensor:
        """The layer with another weight, bias and activation in place of its own."""
        return _ORDINARY[self.rank](
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            activation=activation,
        )


class ConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d, run by this library's kernels: (N, C, L) or (C, L).

    >>> import torch
    >>> layer = ConvTranspose1d(2, 3, 16, stride=8, padding="same", activation="tanh")
    >>> layer(torch.zeros(2, 100)).shape
    torch.Size([3, 800])

    Beyond torch's: `padding` may be "same", "valid" or (before, after) pairs; `padding_mode` any of torch's four;
    `output_size` works batched and unbatched; `activation` is fused. Raises SpecError (a ValueError) for arguments no
    layer can have.
    """

    rank = 1


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d, run by this library's kernels: (N, C, H, W) or (C, H, W).

    >>> import torch
    >>> layer = ConvTranspose2d(16, 33, 3, stride=2, padding=1)
    >>> layer(torch.zeros(1, 16, 6, 6), output_size=(12, 12)).shape
    torch.Size([1, 33, 12, 12])

    What it takes beyond torch's is said at ConvTranspose1d.
    """

    rank = 2


class ConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d, run by this library's kernels: (N, C, D, H, W) or (C, D, H, W).

    >>> import torch
    >>> ConvTranspose3d(4, 2, 2, stride=2)(torch.zeros(1, 4, 3, 4, 5)).shape
    torch.Size([1, 2, 6, 8, 10])

    What it takes beyond torch's is said at ConvTranspose1d.
    """

    rank = 3


class Conv1d(_Ordinary, nn.Conv1d):
    """torch.nn.Conv1d, run by this library's kernels; `padding` may be (before, after) pairs, `activation` is fused.

    >>> import torch
    >>> Conv1d(2, 3, 3, padding=((2, 0),), activation=("leaky_relu", 0.1))(torch.zeros(1, 2, 50)).shape
    torch.Size([1, 3, 50])
    """

    rank = 1


class Conv2d(_Ordinary, nn.Conv2d):
    """torch.nn.Conv2d, run by this library's kernels; see Conv1d.

    >>> import torch
    >>> Conv2d(2, 3, 3, stride=2, padding=1)(torch.zeros(1, 2, 12, 12)).shape
    torch.Size([1, 3, 6, 6])
    """

    rank = 2


class Conv3d(_Ordinary, nn.Conv3d):
    """torch.nn.Conv3d, run by this library's kernels; see Conv1d.

    >>> import torch
    >>> Conv3d(2, 3, 3, padding="same")(torch.zeros(1, 2, 4, 5, 6)).shape
    torch.Size([1, 3, 4, 5, 6])
    """

    rank = 3


_TRANSPOSED = {1: calls.conv_transpose1d, 2: calls.conv_transpose2d, 3: calls.conv_transpose3d}
_ORDINARY = {1: calls.conv1d, 2: calls.conv2d, 3: calls.conv3d}
OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.ConvTranspose3d: ConvTranspose3d,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
}


def why(module: nn.Module, x: Tensor) -> str:
    """Who runs `module` on `x`, this library's kernels or torch itself, and why.

    >>> import torch
    >>> why(ConvTranspose2d(8, 4, 4, stride=2, padding=1), torch.zeros(1, 8, 5, 5))
    'upconv: ConvTranspose2d 8 -> 4, kernel 4x4, stride 2x2, padding 1x1 on torch.float32 (1, 8, 5, 5)'
    >>> why(ConvTranspose2d(8, 4, 4), torch.zeros(1, 8, 5, 5, dtype=torch.float16))
    'torch: x is torch.float16; the kernels here take torch.float32 and torch.float64'
    >>> why(torch.nn.ReLU(), torch.zeros(3))
    'torch: ReLU is not one of the layers of this library'
    """
    if not isinstance(module, _Layer):
        known = type(module) in OURS
        advice = "is torch.nn's; accelerate(model) replaces it" if known else "is not one of the layers of this library"
        return f"torch: {type(module).__name__} {advice}"
    layer: Any = module
    reason = refusal(x, layer.weight, layer.bias)
    if reason is not None:
        return f"torch: {reason}"
    spec = spec_of(layer)
    return f"upconv: {spec} on {x.dtype} {tuple(x.shape)}{arrays.layout_note(spec, x)}"


def spec_of(layer: Any) -> ConvSpec:
    """The spec of one of torch.nn's layers or of ours."""
    return ConvSpec.make(
        transposed=layer.transposed,
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        output_padding=layer.output_padding if layer.transposed else 0,
        dilation=layer.dilation,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
        activation=getattr(layer, "activation", None),
    )
