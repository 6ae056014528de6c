"""`upconv tune`: measures a layer's kernels and keeps what it learns; shows, hands on and empties what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upconv.cli import options
from upconv.cli.layer import problem_of
from upconv.cli.progress import working
from upconv.spec import SpecError


def add_to(app: typer.Typer) -> None:
    app.command("tune")(tune)


def _layers(count: int) -> str:
    return f"{count} layer{'s' * (count != 1)}"


def _show() -> None:
    """Where the file is, and what it holds."""
    from upconv import advice

    book = advice.kept()
    typer.echo(f"{advice.path()}: {_layers(sum(map(len, book.values())))}")
    for processor, entries in sorted(book.items()):
        typer.echo(f"\n{processor}")
        for what, found in sorted(entries.items()):
            times = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in sorted(found.seconds, key=lambda s: s[1]))
            typer.echo(f"  {what}\n    {found.kernel}, {found.threads} thread{'s' * (found.threads > 1)}; {times}")


def tune(
    input_shape: Annotated[
        str | None, typer.Argument(metavar="[INPUT_SHAPE]", help="N,C,size of a layer: 1,256,32,24", show_default=False)
    ] = None,
    out_channels: Annotated[int | None, typer.Option("--out-channels", "-m", metavar="N", help="Channels of the output")] = None,
    kernel: Annotated[str | None, typer.Option("--kernel", "-k", metavar="N", help=options.PER_DIMENSION)] = None,
    stride: options.Stride = "1",
    padding: options.Padding = "0",
    output_padding: options.OutputPadding = "0",
    groups: options.Groups = 1,
    dilation: options.Dilation = "1",
    output_size: options.OutputSize = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="NAME", help="float32 or float64")] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Measure, and choose, for channels-last tensors")] = False,
    conv: options.Conv = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="By default as many as calls take")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, metavar="S", help="About how long to measure")] = 1.0,
    export: Annotated[Path | None, typer.Option("--export", metavar="FILE", help="Write all that is kept to a file")] = None,
    import_: Annotated[Path | None, typer.Option("--import", metavar="FILE", help="Add what a file holds")] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Empty what is kept")] = False,
) -> None:
    """Measure the kernels that can run a layer; from then on its plans follow the fastest.

    What is learnt is kept by processor, layer, sizes, dtype, threads and memory order in a readable file. Without
    arguments: print it.

    **Examples**

    `upconv tune 1,256,32,24 -m 256 -k 4 -s 2 -p 1`

    `upconv tune 1,64,320,320 -m 1 -k 2 -s 2 --channels-last` for tensors in that memory format

    `upconv tune` prints what is kept; `upconv tune --forget` empties it

    `upconv tune --export wisdom.json`, and on a machine of the same kind `upconv tune --import wisdom.json`
    """
    asked = [export is not None, import_ is not None, forget, input_shape is not None]
    if sum(asked) > 1:
        raise SpecError("give one of a layer, --export, --import and --forget at a time")
    if input_shape is None and (out_channels is not None or kernel is not None):
        raise SpecError("--out-channels and --kernel describe one layer: give its input shape too, as in 1,256,32,24")
    if not any(asked):
        return _show()
    from upconv import wisdom
    from upconv.codegen.threads import set_num_threads

    if export is not None:
        return typer.echo(f"{export}: {_layers(wisdom.export(export))}")
    if import_ is not None:
        return typer.echo(f"{_layers(wisdom.load(import_))} from {import_}")
    if forget:
        return typer.echo(f"{_layers(wisdom.forget())} forgotten")
    if out_channels is None or kernel is None:
        raise SpecError(f"a layer on {input_shape} needs --out-channels and --kernel")
    problem = problem_of(
        str(input_shape),
        out_channels,
        kernel,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        output_size,
        dtype=dtype,
        conv=conv,
    )
    if threads is not None:
        set_num_threads(threads)
    with working(f"upconv tune {input_shape}"):
        plan = wisdom.tune(problem.spec, problem.input_shape, dtype=dtype, channels_last=channels_last, seconds=seconds)
    return typer.echo(str(plan))
