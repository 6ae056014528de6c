"""`upconv demo`: a few layers on real arrays, timed, explained in a line, and compared with torch where it is there."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upconv.cli.progress import working

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 1e-5  # of the largest output, in float32


@dataclass(frozen=True, slots=True)
class Step:
    """A layer by its name in upconv.nn and its arguments, and the shape it has to give."""

    kind: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    output_shape: tuple[int, ...]
    output_size: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """Layers one after the other, on an input of one shape."""

    input_shape: tuple[int, ...]
    steps: tuple[Step, ...]


def _round_trip(kernel: int, small: int) -> Example:
    """A convolution to a smaller size, and a transposed one back to where it came from."""
    arguments, options = (16, 16, kernel), {"stride": 2, "padding": 1}
    down = Step("Conv2d", arguments, options, (1, 16, small, small))
    up = Step("ConvTranspose2d", arguments, options, (1, 16, 12, 12), output_size=(12, 12))
    return Example((1, 16, 12, 12), (down, up))


BATCH = (20, 16, 50, 100)
EXAMPLES = (
    Example(BATCH, (Step("ConvTranspose2d", (16, 33, 3), {"stride": 2}, (20, 33, 101, 201)),)),
    Example(
        BATCH,
        (Step("ConvTranspose2d", (16, 33, (3, 5)), {"stride": (2, 1), "padding": (4, 2)}, (20, 33, 93, 100)),),
    ),
    _round_trip(kernel=3, small=6),
    _round_trip(kernel=7, small=4),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did."""

    layer: str
    shapes: str
    first: float
    best: float
    plan: str
    rival: str
    difference: float
    largest: float
    right: bool


def add_to(app: typer.Typer) -> None:
    app.command("demo")(demo)


def _plan_in_a_line(layer: Any, x: NDArray[Any], y: NDArray[Any]) -> str:
    """The kernel that the call used."""
    from upconv import execute

    spec = layer.spec.with_output_size(x.shape[2:], y.shape[2:]) if layer.transposed else layer.spec
    return execute.make_plan(spec, x.shape[0], x.shape[2:], str(x.dtype)).summary


def _compared(layer: Any, step: Step, x: NDArray[Any], y: NDArray[Any], with_torch: bool) -> tuple[str, float]:
    """The largest difference from torch, or from the reference kernel where torch is not installed."""
    import numpy as np

    if not with_torch:
        from upconv.kernels import reference

        size = y.shape[2:]
        spec = layer.spec.with_output_size(x.shape[2:], size) if layer.transposed else layer.spec
        return "the reference kernel", float(np.abs(reference.forward(spec, x, layer.weight, layer.bias, size) - y).max())
    import torch

    twin = getattr(torch.nn, step.kind)(*step.arguments, **step.options)
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in layer.state_dict().items()})
    wanted = {"output_size": list(step.output_size)} if step.output_size else {}
    with torch.inference_mode():
        theirs = twin(torch.from_numpy(x), **wanted).numpy()
    return "torch", float(np.abs(theirs - y).max())


def _timed(layer: Any, x: NDArray[Any], size: dict[str, Any], repeats: int = 3) -> tuple[NDArray[Any], list[float]]:
    times = []
    for _ in range(1 + repeats):
        start = perf_counter()
        y = layer(x, **size)
        times.append(perf_counter() - start)
    return y, times


def play(step: Step, x: NDArray[Any], seed: int, with_torch: bool) -> tuple[NDArray[Any], Outcome]:
    """Run one step on `x`: its output, and what there is to tell about it."""
    import numpy as np

    from upconv import nn

    layer = getattr(nn, step.kind)(*step.arguments, **step.options, seed=seed)
    y, (first, *later) = _timed(layer, x, {"output_size": step.output_size} if step.output_size else {})
    rival, difference = _compared(layer, step, x, y, with_torch)
    largest = float(np.abs(y).max())
    outcome = Outcome(
        layer=repr(layer),
        shapes=f"{x.shape} -> {y.shape} {y.dtype}",
        first=first,
        best=min(later),
        plan=_plan_in_a_line(layer, x, y),
        rival=rival,
        difference=difference,
        largest=largest,
        right=y.shape == step.output_shape and difference <= TOLERANCE * largest,
    )
    return y, outcome


def _tell(outcome: Outcome) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(outcome.layer, style="bold", markup=False)
    console.print(f"  {outcome.shapes}", markup=False)
    console.print(f"  {outcome.best * 1e3:.2f} ms (first call {outcome.first * 1e3:.1f} ms)", markup=False)
    console.print(f"  {outcome.plan}", markup=False)
    verdict = "[green]ok[/green]" if outcome.right else "[red]WRONG[/red]"
    console.print(
        f"  largest difference from {outcome.rival}: {outcome.difference:.1e} (largest output {outcome.largest:.2g}) {verdict}"
    )


def demo(seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of inputs and weights")] = 0) -> None:
    """Run four layers on real arrays: sizes, times, plans, and the difference from torch where it is installed.

    **Examples**

    `upconv demo`

    `upconv demo --seed 7`
    """
    import numpy as np

    with_torch = find_spec("torch") is not None
    if not with_torch:
        typer.echo("torch is not installed: results are compared with upconv's own reference kernel")
    rng, right = np.random.default_rng(seed), True
    for example in EXAMPLES:
        x = rng.standard_normal(example.input_shape, np.float32)
        for step in example.steps:
            with working(f"{step.kind}{step.arguments}"):
                x, outcome = play(step, x, seed, with_torch)
            _tell(outcome)
            right &= outcome.right
    if not right:
        typer.echo("upconv: a result above is wrong; please report it with the output of this command", err=True)
        raise typer.Exit(1)
