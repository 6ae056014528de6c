"""`upconv plan`: what a layer's call would run, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from upconv.cli import options
from upconv.spec import ConvSpec, SpecError, integer


def add_to(app: typer.Typer) -> None:
    app.command("plan")(plan)


def plan(
    input_shape: Annotated[str, typer.Argument(metavar="INPUT_SHAPE", help="N,C,size: 1,256,32,24")],
    out_channels: Annotated[int, typer.Option("--out-channels", "-m", metavar="N", help="Channels of the output")],
    kernel: Annotated[str, typer.Option("--kernel", "-k", metavar="N", help=options.PER_DIMENSION)],
    stride: options.Stride = "1",
    padding: options.Padding = "0",
    output_padding: options.OutputPadding = "0",
    groups: options.Groups = 1,
    dilation: options.Dilation = "1",
    output_size: options.OutputSize = None,
    padding_mode: options.PaddingMode = "zeros",
    activation: options.ActivationName = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="NAME", help="float32 or float64")] = "float32",
    conv: options.Conv = False,
) -> None:
    """Print the plan of a layer: the kernel chosen, its work and traffic, and why not the others.

    **Examples**

    `upconv plan 1,256,32,24 --out-channels 256 --kernel 4 --stride 2 --padding 1`

    `upconv plan 1,16,12,12 -m 16 -k 3 -s 2 -p 1 --conv`
    """
    from upconv import execute

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
    typer.echo(str(execute.make_plan(spec, integer("batch", batch, 0), tuple(size), dtype)))
