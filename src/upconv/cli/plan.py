"""`upconv plan`: what a layer's call would run, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from upconv.cli import options
from upconv.cli.layer import problem_of


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

    problem = problem_of(
        input_shape,
        out_channels,
        kernel,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        output_size,
        padding_mode,
        activation,
        dtype,
        conv,
    )
    typer.echo(str(execute.make_plan(problem.spec, problem.batch, problem.input_size, problem.dtype)))
