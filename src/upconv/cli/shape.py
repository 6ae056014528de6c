"""`upconv shape`: output sizes, without NumPy."""

from __future__ import annotations

from typing import Annotated

import typer

from upconv import shapes
from upconv.cli import options
from upconv.spec import SpecError


def add_to(app: typer.Typer) -> None:
    app.command("shape")(shape)


def shape(
    input_size: Annotated[str, typer.Argument(metavar="INPUT_SIZE", help="Spatial size: 32 or 32,24")],
    kernel: Annotated[str, typer.Option("--kernel", "-k", metavar="N", help=options.PER_DIMENSION)],
    stride: options.Stride = "1",
    padding: options.Padding = "0",
    output_padding: options.OutputPadding = "0",
    dilation: options.Dilation = "1",
    output_size: options.OutputSize = None,
    conv: options.Conv = False,
) -> None:
    """The output size of a layer, or the output padding that gives a wanted size.

    **Examples**

    `upconv shape 50,100 --kernel 3 --stride 2` prints 101,201

    `upconv shape 12,12 --kernel 3 --stride 2 --padding 1 --conv` prints 6,6

    `upconv shape 6,6 -k 3 -s 2 -p 1 --output-size 12,12` prints the output padding, 1,1
    """
    layer = {
        "kernel_size": options.ints("kernel", kernel),
        "stride": options.ints("stride", stride),
        "padding": options.padding_of(padding),
        "dilation": options.ints("dilation", dilation),
    }
    size, extra = options.ints("input size", input_size), options.ints("output padding", output_padding)
    if conv and (output_size or extra):
        raise SpecError("--output-size and --output-padding belong to transposed layers: leave them out, or --conv")
    if conv:
        result = shapes.conv_size(size, **layer)
    elif output_size:
        result = shapes.output_padding_for(size, options.ints("output size", output_size), **layer)
    else:
        result = shapes.conv_transpose_size(size, output_padding=extra, **layer)
    typer.echo(",".join(map(str, result)))
