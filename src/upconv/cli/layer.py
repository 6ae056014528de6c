"""A layer and its sizes from a command line's text."""

from __future__ import annotations

from upconv.cli import options
from upconv.spec import ConvSpec, Problem, SpecError, integer


def problem_of(
    input_shape: str,
    out_channels: int,
    kernel: str,
    stride: str = "1",
    padding: str = "0",
    output_padding: str = "0",
    groups: int = 1,
    dilation: str = "1",
    output_size: str | None = None,
    padding_mode: str = "zeros",
    activation: str | None = None,
    dtype: str = "float32",
    conv: bool = False,
) -> Problem:
    """The problem that a call on `input_shape` would be.

    >>> print(problem_of("1,16,6,6", 16, "3", "2", "1", output_size="12").output_shape)
    (1, 16, 12, 12)

    Raises SpecError for text that no layer has.
    """
    shape = options.ints("input shape", input_shape)
    if not isinstance(shape, tuple) or len(shape) not in (3, 4, 5):
        raise SpecError(f"input shape is {input_shape!r}: give batch, channels and sizes, as in 1,256,32,24")
    if dtype not in ("float32", "float64"):
        raise SpecError(f"dtype is {dtype!r}: use float32 or float64")
    batch, channels, *size = shape
    spec = ConvSpec.make(
        transposed=not conv,
        in_channels=channels,
        out_channels=out_channels,
        kernel_size=options.ints("kernel", kernel),
        stride=options.ints("stride", stride),
        padding=options.padding_of(padding),
        output_padding=options.ints("output padding", output_padding),
        dilation=options.ints("dilation", dilation),
        groups=groups,
        padding_mode=padding_mode,
        activation=options.activation_of(activation),
        rank=len(size),
    )
    if output_size is not None:
        spec = spec.with_output_size(size, options.ints("output size", output_size))
    return Problem(spec, integer("batch", batch, 0), tuple(size), spec.output_size(size), dtype)
