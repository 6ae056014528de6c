"""`upconv solve`: the layers that map one size to another, without NumPy."""

from __future__ import annotations

from typing import Annotated

import typer

from upconv import shapes
from upconv.cli import options
from upconv.shapes.solve import table
from upconv.spec import SpecError

Free = "Keep to this; one number, or one a dimension: 2,1"


def add_to(app: typer.Typer) -> None:
    app.command("solve")(solve)


def solve(
    input_size: Annotated[str, typer.Argument(metavar="INPUT_SIZE", help="Spatial size: 32 or 32,24")],
    output_size: Annotated[str, typer.Argument(metavar="OUTPUT_SIZE", help="The size wanted: 64 or 64,48")],
    kernel: Annotated[str | None, typer.Option("--kernel", "-k", metavar="N", help=Free)] = None,
    stride: Annotated[str | None, typer.Option("--stride", "-s", metavar="N", help=Free)] = None,
    padding: Annotated[str | None, typer.Option("--padding", "-p", metavar="N", help=Free + ", 0:1,0:1, same")] = None,
    output_padding: Annotated[str | None, typer.Option("--output-padding", metavar="N", help=Free)] = None,
    dilation: Annotated[str | None, typer.Option("--dilation", "-d", metavar="N", help=Free)] = None,
    conv: Annotated[
        bool | None,
        typer.Option("--conv/--transposed", help="The kind of layer; by default transposed, unless the output is smaller"),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", help="How many layers to print")] = 10,
) -> None:
    """The layers that map one size to another, best first: arguments, overlap, multiply-adds of a channel pair.

    Best is: even overlap, equal padding on both sides, no output padding, then the smallest kernel.

    **Examples**

    `upconv solve 6 12` prints kernel 2, 4 and 6 with stride 2, and more

    `upconv solve 7,6 13,12 --kernel 3 --stride 2` prints the padding and output padding that go with them

    `upconv solve 64,64 16,16 --stride 4` prints convolutions
    """
    sizes = options.ints("input size", input_size), options.ints("output size", output_size)
    pins = {
        "kernel_size": options.ints("kernel", kernel),
        "stride": options.ints("stride", stride),
        "padding": None if padding is None else options.padding_of(padding),
        "output_padding": options.ints("output padding", output_padding),
        "dilation": options.ints("dilation", dilation),
        "transposed": None if conv is None else not conv,
    }
    found = shapes.solve(*sizes, **pins, limit=limit)
    if not found:
        near = " and ".join(",".join(map(str, size)) for size in shapes.nearest(*sizes, **pins))
        other = f"nearest that can be reached: {near}" if near else "these arguments leave no output at all"
        raise SpecError(f"no such layer takes {input_size} to {output_size}; {other}")
    typer.echo(table(found))
