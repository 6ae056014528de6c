"""`upconv explain`: a layer in words, as a picture, or as code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upconv.cli import options
from upconv.spec import ConvSpec, SpecError


def add_to(app: typer.Typer) -> None:
    app.command("explain")(explain)


def explain(
    input_size: Annotated[str, typer.Argument(metavar="INPUT_SIZE", help="Spatial size: 6 or 32,24")],
    kernel: Annotated[str, typer.Option("--kernel", "-k", metavar="N", help=options.PER_DIMENSION)],
    stride: options.Stride = "1",
    padding: options.Padding = "0",
    output_padding: options.OutputPadding = "0",
    dilation: options.Dilation = "1",
    groups: options.Groups = 1,
    output_size: options.OutputSize = None,
    padding_mode: options.PaddingMode = "zeros",
    conv: options.Conv = False,
    channels: Annotated[
        str, typer.Option("--channels", "-c", metavar="IN,OUT", help="Channels in and out, for the code and the title")
    ] = "1,1",
    at: Annotated[str | None, typer.Option("--at", metavar="POSITION", help="The output cell to single out: 3,4")] = None,
    code: Annotated[
        str | None, typer.Option("--code", metavar="NAME", help="Print code: torch, keras, jax, onnx or upconv")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A picture: .svg, .html, .png, .pdf or .gif")
    ] = None,
    animate: Annotated[bool, typer.Option("--animate", help="Let the kernel move, in an .svg (a .gif always moves)")] = False,
) -> None:
    """Explain a layer: sizes, phases, which inputs and taps make an output, the overlap, the way back.

    **Examples**

    `upconv explain 6 --kernel 4 --stride 2 --padding 1`

    `upconv explain 5,5 -k 3 -s 2 -p 1 --output-padding 1 -o layer.html`

    `upconv explain 32,32 -k 4 -s 2 -p 1 --channels 64,3 --code keras`
    """
    from upconv import explain as explanations

    size = options.ints("input size", input_size)
    size = size if isinstance(size, tuple) else (size,)
    cin, cout = _channels(channels)
    spec = ConvSpec.make(
        transposed=not conv,
        in_channels=cin,
        out_channels=cout,
        kernel_size=options.ints("kernel", kernel),
        stride=options.ints("stride", stride),
        padding=options.padding_of(padding),
        output_padding=options.ints("output padding", output_padding),
        dilation=options.ints("dilation", dilation),
        groups=groups,
        padding_mode=padding_mode,
        rank=len(size),
    )
    if output_size is not None:
        spec = spec.with_output_size(size, options.ints("output size", output_size))
    found = explanations.explain(spec, size)
    if at is not None:
        found = found.at(options.ints("position", at))
    if animate and output is None:
        raise SpecError("--animate draws a picture: say where with --output layer.gif or layer.svg")
    if code is not None:
        typer.echo(explanations.code(spec, code))
    if output is not None:
        found.save(output, animate=animate)
        typer.echo(f"{output}: {spec} on {input_size}", err=True)
    if code is None and output is None:
        from rich.console import Console

        Console().print(found)


def _channels(text: str) -> tuple[int, int]:
    pair = options.ints("channels", text)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise SpecError(f"channels is {text!r}: give channels in and out, as in 64,3")
    return pair
