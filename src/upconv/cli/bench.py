"""`upconv bench`: layers of real models, or one of your own, timed against the rivals that are installed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upconv.cli import options
from upconv.cli.layer import problem_of
from upconv.spec import SpecError

if TYPE_CHECKING:
    from upconv.bench.contest import Outcome
    from upconv.bench.report import Report
    from upconv.bench.suite import Layer


def add_to(app: typer.Typer) -> None:
    app.command("bench")(bench)


def _chosen(
    problem: Any, conv: bool, table: Path | None, only: str | None, most: tuple[float, float]
) -> tuple[list[Layer], dict[str, str]]:
    """The layers to time, and why the others of the table are left out; a layer given by itself is never too large."""
    from upconv.bench import suite

    if problem is not None:
        return [suite.Layer(str(problem.spec), problem)], {}
    layers = suite.read(suite.table(not conv, table), not conv)
    layers = layers if only is None else suite.matching(layers, only)
    reasons = {layer.name: layer.too_large(*most) for layer in layers}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    fitting = [layer for layer in layers if layer.name not in left_out]
    if not fitting:
        raise SpecError(f"all {len(layers)} layers are too large: raise --max-gflop and --max-mib")
    return fitting, left_out


class _Show:
    """A progress bar on a terminal, a line a layer elsewhere; both on standard error."""

    def __init__(self, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, soft_wrap=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self.task = self.bar.add_task("", total=total)

    def before(self, layer: Layer) -> None:
        self.bar.update(self.task, description=layer.name)

    def after(self, outcome: Outcome, report: Report) -> None:
        ratio = "" if outcome.ratio is None else f", {outcome.ratio:.2f}x {outcome.fastest}"
        limit = f"{report.fraction(outcome):.2f} of the limit"
        self.bar.advance(self.task)
        self.console.print(
            f"{outcome.layer.name}: {outcome.ours * 1e3:.3g} ms{ratio}, {limit}, {outcome.kernel}", highlight=False, markup=False
        )


def _print(report: Report) -> None:
    """The table and the summary."""
    from rich.console import Console
    from rich.table import Table

    from upconv.bench import report as reports

    console = Console(highlight=False, soft_wrap=True)
    wide = Console(highlight=False, width=None if console.is_terminal else 240)
    titles, cells = reports.rows(report)
    table = Table(box=None, pad_edge=False)
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i == 0 else "right", overflow="fold")
    for row in cells:
        table.add_row(*row)
    wide.print(table)
    for name, reason in report.missing.items():
        console.print(f"{name}: {reason}", markup=False)
    for line in reports.refusals(report):
        console.print(f"without {line}", markup=False)
    for line in reports.headline(report):
        console.print(line.removeprefix("- ").replace("**", ""), markup=False)


def _plot(report: Report, name: str) -> tuple[str, bytes] | None:
    """The plot's file name and bytes; None where it is not wanted, or where matplotlib is missing (which is said)."""
    if name == "none":
        return None
    from upconv.bench import plot

    try:
        return name, plot.draw(report, Path(name).suffix[1:])
    except ImportError as error:
        typer.echo(f"upconv: {error}", err=True)
        return None


def bench(
    input_shape: Annotated[
        str | None, typer.Argument(metavar="[INPUT_SHAPE]", help="N,C,size of one layer: 1,256,32,24", show_default=False)
    ] = None,
    out_channels: Annotated[int | None, typer.Option("--out-channels", "-m", metavar="N", help="Channels of the output")] = None,
    kernel: Annotated[str | None, typer.Option("--kernel", "-k", metavar="N", help=options.PER_DIMENSION)] = None,
    stride: options.Stride = "1",
    padding: options.Padding = "0",
    output_padding: options.OutputPadding = "0",
    groups: options.Groups = 1,
    dilation: options.Dilation = "1",
    output_size: options.OutputSize = None,
    conv: Annotated[bool, typer.Option("--conv", help="Ordinary convolutions instead of transposed ones")] = False,
    only: Annotated[str | None, typer.Option("--only", metavar="REGEX", help="Layers whose name or description has this")] = None,
    layers: Annotated[Path | None, typer.Option("--layers", metavar="FILE", help="A table of layers instead of our own")] = None,
    rivals: Annotated[
        str | None,
        typer.Option("--rivals", metavar="NAMES", help="torch, torch channels-last, onnxruntime, openvino; '' for none"),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="By default all")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, metavar="S", help="About how long to time a layer")] = 2.0,
    passes: Annotated[
        int, typer.Option("--passes", min=1, metavar="N", help="Go over all layers so often, for the median of their medians")
    ] = 1,
    max_gflop: Annotated[float, typer.Option("--max-gflop", metavar="N", help="Leave out layers of a larger direct sum")] = 8.5,
    max_mib: Annotated[float, typer.Option("--max-mib", metavar="N", help="Leave out layers that must move more")] = 140,
    cold: Annotated[bool, typer.Option("--cold/--no-cold", help="Time first calls too, in processes of their own")] = True,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Write README.md, report.json and the plot there")
    ] = None,
    plot: Annotated[str, typer.Option("--plot", metavar="NAME", help="The plot's file: .svg or .png, or none")] = "plot.svg",
    overhead: Annotated[bool, typer.Option("--overhead", help="Time a call's overhead instead")] = False,
) -> None:
    """Time layers of real models, or one layer, against PyTorch, ONNX Runtime and OpenVINO where they are installed.

    In one process, in turn and in bursts. Ctrl-C ends it early and keeps what was measured.

    **Examples**

    `upconv bench --only 'dcgan|pix2pix' --seconds 0.5`

    `upconv bench 1,256,32,24 -m 256 -k 4 -s 2 -p 1 --rivals torch`

    `upconv bench --output bench` writes bench/README.md, bench/report.json and bench/plot.svg

    `upconv bench --conv` times the ordinary convolutions beside them; `upconv bench --overhead` an empty call
    """
    problem = None
    if input_shape is not None:
        if out_channels is None or kernel is None:
            raise SpecError(f"a layer on {input_shape} needs --out-channels and --kernel; leave the shape out for the whole suite")
        problem = problem_of(
            input_shape, out_channels, kernel, stride, padding, output_padding, groups, dilation, output_size, conv=conv
        )
        if not problem.batch:
            raise SpecError(f"input shape {input_shape} has a batch of 0, and there is nothing to time")
    elif out_channels is not None or kernel is not None:
        raise SpecError("--out-channels and --kernel describe one layer: give its input shape too, as in 1,256,32,24")
    if plot != "none" and Path(plot).suffix not in (".svg", ".png"):
        raise SpecError(f"--plot is {plot!r}: give a name that ends in .svg or .png, or none")
    if overhead:
        from upconv.bench.overhead import measure

        typer.echo(str(measure()))
        return
    from upconv.bench import report as reports
    from upconv.bench.rivals import chosen
    from upconv.bench.run import run
    from upconv.codegen.threads import available

    found, left_out = _chosen(problem, conv, layers, only, (max_gflop * 1e9, max_mib * 2**20))
    show = _Show(len(found) * passes)
    with show.bar:
        report = run(
            found,
            chosen(rivals),
            min(threads or available(), available()),
            seconds,
            passes=passes,
            cold=cold,
            command=shlex.join(["upconv", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "upconv" else "upconv bench",
            left_out=left_out,
            before=show.before,
            after=show.after,
        )
    if not report.outcomes:
        raise KeyboardInterrupt
    _print(report)
    if output is not None:
        for path in reports.save(report, output, _plot(report, plot)):
            typer.echo(f"wrote {path}")
    if report.waiting:
        raise typer.Exit(130)
