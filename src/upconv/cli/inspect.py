"""`upconv inspect`: every transposed layer of a model file, its cost, its checkerboard, and what to change."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upconv import shapes
from upconv.spec import SpecError, times

if TYPE_CHECKING:
    from upconv.cli.models import Found

SCORED_TAPS = 1 << 14
"""Kernels and strides above so many positions are not scored: the score looks at every phase."""
COUNTED = 1 << 20


def add_to(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is printed of one layer; None where the model leaves it open."""

    name: str
    layer: str
    input_size: tuple[int, ...] | None
    output_size: tuple[int, ...] | None
    multiply_adds: int | None
    checkerboard: str
    constant_db: float | None
    noise_db: float | None
    advice: tuple[str, ...]
    note: str


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .pt2 file of torch.export.save, or an .onnx file")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for other programs")] = False,
) -> None:
    """Every transposed layer of a model: arguments, sizes, cost, checkerboard, advice.

    The file is read, never run. Exit code 2: it cannot be read; 1: it has no transposed layer.

    **Examples**

    `upconv inspect generator.onnx`

    `upconv inspect generator.pt2 --json`
    """
    from upconv.cli.models import read

    found = read(model)
    if not found:
        typer.echo(f"upconv: {model.name} has no transposed convolution", err=True)
        raise typer.Exit(1)
    facts = [_facts(layer) for layer in found]
    typer.echo(_as_json(facts) if as_json else _as_text(facts))


def _facts(found: Found) -> _Facts:
    spec, size, note = found.spec, found.input_size, found.note
    out = None
    if size is not None:
        try:
            out = spec.output_size(size)
        except SpecError as error:
            note = f"{note}; {error}" if note else str(error)
    cost = None
    if size is not None and out is not None:
        small = all(min(n, k) <= COUNTED for n, k in zip(size, spec.kernel_size, strict=True))
        batch = found.batch or 1
        cost = shapes.multiply_adds(spec, size, batch) if small else spec.macs(size, batch)
    words, constant, noise, advice = _checkerboard(found)
    return _Facts(_printable(found.name), str(spec), size, out, cost, words, constant, noise, advice, _printable(note))


def _checkerboard(found: Found) -> tuple[str, float | None, float | None, tuple[str, ...]]:
    """The score in words and in dB, and the advice. Without the weight, of all-equal weights: what the overlap does."""
    from upconv import artifacts

    spec, weight = found.spec, found.weight
    if prod(spec.kernel_size) > SCORED_TAPS or prod(spec.stride) > SCORED_TAPS:
        return "not scored: the kernel or stride is too large", None, None, ()
    if weight is None:
        spec = replace(spec, in_channels=1, out_channels=1, groups=1)
    import numpy as np

    with np.errstate(all="ignore"):  # trained weights hold infinities now and then: they score as they are
        layer = artifacts.report((spec, np.ones(spec.weight_shape) if weight is None else weight)).layers[0]
    least, most = layer.taps
    taps = f"{most} taps an output" if least == most else f"{least} to {most} taps an output"
    of = "" if found.weight is not None else " for equal weights"
    return f"{layer.score}{of}, {taps}", layer.score.constant, layer.score.noise, layer.advice


def _printable(text: str) -> str:
    """A name from a file without what would move the cursor, in at most 120 characters."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= 120 else clean[:117] + "..."


def _count(number: int) -> str:
    """
    >>> _count(1234567), _count(12)
    ('1.23 M', '12')
    """
    for unit, scale in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return str(number)


def _as_text(facts: list[_Facts]) -> str:
    lines = []
    for f in facts:
        lines.append(f"{f.name}: {f.layer}")
        if f.input_size is not None and f.output_size is not None:
            cost = f", {_count(f.multiply_adds or 0)} multiply-adds"
            lines.append(f"    {times(f.input_size)} -> {times(f.output_size)}{cost}")
        elif f.input_size is None:
            lines.append("    input size left open by the model")
        lines.append(f"    checkerboard: {f.checkerboard}")
        if f.note:
            lines.append(f"    note: {f.note}")
        lines += [f"    - {line}" for line in f.advice]
    known = [f.multiply_adds for f in facts if f.multiply_adds is not None]
    total = f", {_count(sum(known))} multiply-adds" if known else ""
    some = f" in {len(known)} of them" if known and len(known) < len(facts) else ""
    lines.append(f"{len(facts)} transposed layer{'' if len(facts) == 1 else 's'}{total}{some}")
    return "\n".join(lines)


def _as_json(facts: list[_Facts]) -> str:
    from dataclasses import asdict
    from math import isfinite

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not isfinite(value) else value

    return json.dumps([{k: plain(v) for k, v in asdict(f).items()} for f in facts], indent=2)
