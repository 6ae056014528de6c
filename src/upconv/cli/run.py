"""`upconv run`: one layer on an array in a file."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from upconv.cli import options
from upconv.cli.progress import working
from upconv.spec import SpecError


def add_to(app: typer.Typer) -> None:
    app.command("run")(run)


def _load(x: str, weight: str, bias: str | None, dtype: str | None) -> list[Any]:
    """The arrays, of `dtype` where one is given."""
    import numpy as np

    from upconv.cli import files

    if dtype not in (None, "float32", "float64"):
        raise SpecError(f"dtype is {dtype!r}: use float32 or float64")
    arrays = [files.read(x, "x"), files.read(weight, "weight"), None if bias is None else files.read(bias, "bias")]
    return [a if a is None or dtype is None else a.astype(np.dtype(dtype), copy=False) for a in arrays]


def run(
    x: Annotated[str, typer.Argument(metavar="X", help="Input: .npy, .npz, .safetensors, .png or .jpg")],
    weight: Annotated[str, typer.Option("--weight", "-w", metavar="FILE[:NAME]", help="In torch's layout")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Result: .npy, .npz, .png or .jpg")],
    bias: Annotated[str | None, typer.Option("--bias", "-b", metavar="FILE[:NAME]", help="One value a channel")] = None,
    stride: options.Stride = "1",
    padding: options.Padding = "0",
    output_padding: options.OutputPadding = "0",
    groups: options.Groups = 1,
    dilation: options.Dilation = "1",
    output_size: options.OutputSize = None,
    padding_mode: options.PaddingMode = "zeros",
    activation: options.ActivationName = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="Convert to float32 or float64")] = None,
    conv: options.Conv = False,
) -> None:
    """Run one layer on an array and write the result.

    The rank is the weight's. Pictures become (channels, height, width) in 0..1. A file of several arrays is asked for
    one by its name, as in `model.safetensors:up1.weight`.

    **Examples**

    `upconv run x.npy --weight w.npy --bias b.npy --stride 2 -o y.npy`

    `upconv run x.npy -w unet.safetensors:up1.weight -b unet.safetensors:up1.bias -s 2 -p 1 -o y.npy`

    `upconv run photo.png -w bilinear.npy -g 3 -s 2 -p 1 -o larger.png`

    `upconv run x.npy -w w.npy --conv -s 2 -p 1 -a relu -o y.npy`
    """
    import upconv
    from upconv.cli import files

    arguments: dict[str, Any] = {
        "stride": options.ints("stride", stride),
        "padding": options.padding_of(padding),
        "groups": groups,
        "dilation": options.ints("dilation", dilation),
        "padding_mode": padding_mode,
        "activation": options.activation_of(activation),
    }
    extra, size = options.ints("output padding", output_padding), options.ints("output size", output_size)
    if conv and (extra or size):
        raise SpecError("--output-size and --output-padding belong to transposed layers: leave them out, or --conv")
    if not conv:
        arguments |= {"output_padding": extra, "output_size": size}
    files.check_writable(output)
    xa, wa, ba = _load(x, weight, bias, dtype)
    function = upconv.conv if conv else upconv.conv_transpose  # imported here, not within the time
    with working(f"upconv run {x}"):
        start = perf_counter()
        y = function(xa, wa, ba, **arguments)
        took = perf_counter() - start
        files.write(output, y)
    typer.echo(f"{x} {xa.shape} -> {output} {y.shape} {y.dtype}, {took * 1e3:.1f} ms")
