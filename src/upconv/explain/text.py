"""An explanation for the terminal, through rich. Meaning never hangs on colour: x is input, w tap, y output."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from math import gcd
from typing import TYPE_CHECKING, Any

from upconv.explain.model import Explanation
from upconv.explain.scene import Window
from upconv.spec import times

if TYPE_CHECKING:
    from rich.table import Table

TERMS_SHOWN = 8
ROW_SHOWN, COLUMNS_SHOWN = 16, 24


def at(position: tuple[int, ...]) -> str:
    """A position as it is written in an index: `1,2`."""
    return ",".join(map(str, position))


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "tap"), count(2, "tap")
    ('1 tap', '2 taps')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def sum_of(e: Explanation, shown: int = TERMS_SHOWN) -> str:
    """The singled-out output written as the sum it is."""
    total, cell = e.writes(e.example), at(e.example)
    if not total:
        return f"y[{cell}] = bias alone: no tap writes it"
    terms = " + ".join(f"x[{at(t.input)}]*w[{at(t.tap)}]" for t in e.sources(e.example, shown))
    return f"y[{cell}] = {terms}{f' + {total - shown} more' if total > shown else ''}"


def reach_of(e: Explanation, shown: int = TERMS_SHOWN) -> str:
    """What the first input of that sum reaches in turn."""
    sources = e.sources(e.example)
    cell = sources[0].input if sources else (0,) * e.spec.rank
    terms = e.reached(cell, 4096)
    written = ", ".join(f"y[{at(t.output)}] through w[{at(t.tap)}]" for t in terms[:shown])
    more = f" and {len(terms) - shown}{' or more' if len(terms) == 4096 else ''} more" if len(terms) > shown else ""
    return f"x[{at(cell)}] reaches {written or 'nothing: padding crops all of it'}{more}"


def round_trip(e: Explanation) -> str:
    """The way back, in a sentence."""
    trip = e.round_trip
    if trip is None:
        return f"no layer of the other direction with these arguments takes an input of {times(e.output_size)}"
    ends = "back where it began" if trip.exact else f"not back to {times(e.input_size)}"
    return f"{trip.partner} takes {times(e.output_size)} to {times(trip.size)}: {ends}"


def verdict(e: Explanation) -> str:
    """What the overlap means for a checkerboard."""
    if not e.spec.transposed:
        return "A convolution has one phase: every output away from the borders sums the whole kernel."
    if e.even:
        return "Every phase has as many taps as every other: no checkerboard is built in (weights may still make one)."
    bad = [d for d, axis in enumerate(e.axes) if not axis.even]
    a = e.axes[bad[0]]
    where = f" in dimension {bad[0]}" if e.spec.rank > 1 else ""
    if gcd(a.stride, a.dilation) > 1:
        why = f"stride {a.stride} and dilation {a.dilation} share a factor{where}, so phases lack taps; use dilation 1"
    else:
        up = (a.kernel // a.stride + 1) * a.stride
        why = f"kernel {a.kernel} is not divisible by stride {a.stride}{where}; kernel {up} would be"
    return f"The phases have unequal numbers of taps, so a checkerboard is built in: {why}."


def phase_rows(e: Explanation, taps_shown: int = 6) -> list[tuple[str, str, str]]:
    """Phase, number of taps, and the taps with the input offsets they read."""
    rows = []
    for phase in e.phases:
        taps = "  ".join(f"w[{at(t.kernel)}] at {_signed(t.offset)}" for t in phase.taps[:taps_shown])
        more = f"  and {len(phase.taps) - taps_shown} more" if len(phase.taps) > taps_shown else ""
        rows.append((at(phase.index), str(len(phase.taps)), (taps or "none: bias alone") + more))
    return rows


def _signed(offset: tuple[int, ...]) -> str:
    return ",".join(f"{o:+d}" for o in offset)


def _phase_table(e: Explanation) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("phase", style="bold", no_wrap=True)
    table.add_column("taps", justify="right")
    table.add_column("tap at input offset", overflow="fold")
    for row in phase_rows(e):
        table.add_row(*row)
    return table


def _overlap(e: Explanation) -> tuple[str, str]:
    """Title and lines of the overlap map: numbers, so that it reads the same without colour."""
    rank, cell = e.spec.rank, e.example
    windows = [
        Window.around(c, 0, o - 1, limit)
        for c, o, limit in zip(cell[-2:], e.output_size[-2:], (ROW_SHOWN, COLUMNS_SHOWN)[-min(rank, 2) :], strict=True)
    ]
    names = ("rows", "columns") if rank > 1 else ("positions",)
    cut = [f"{name} {w.start} to {w.stop - 1} of {w.last + 1}" for name, w in zip(names, windows, strict=True) if len(w) <= w.last]
    slice_ = f", slice {cell[0]}" if rank == 3 else ""
    title = f"taps that write each output{slice_}{': ' + ', '.join(cut) if cut else ''}"
    around = e.axes[0].writes(cell[0]) if rank == 3 else 1
    columns = [e.axes[-1].writes(c) for c in windows[-1]]
    rows = [e.axes[-2].writes(r) * around for r in windows[0]] if rank > 1 else [1]
    wide = max(len(str(r * c)) for r in rows for c in columns)
    lines = (" ".join(f"{r * c:>{wide}}" for c in columns) for r in rows)
    return title, "\n".join("  " + line for line in lines)


def blocks(e: Explanation, ascii_only: bool = False) -> Iterator[Any]:
    """What rich prints: heading, sizes, phases, connections, overlap, round trip."""
    from rich.text import Text

    arrow = "->" if ascii_only else "→"
    yield Text(str(e.spec), style="bold")
    yield Text(f"input {times(e.input_size)} {arrow} output {times(e.output_size)}")
    yield Text("")
    yield Text("size", style="bold")
    for line in e.formula:
        yield Text("  " + line)
    yield Text("")
    shown = f", {len(e.phases)} shown" if len(e.phases) < e.phase_count else ""
    yield Text(f"phases: {e.phase_count}{shown} (output position mod stride; each is a convolution with stride 1)"
               if e.spec.transposed else "phases: 1", style="bold")  # fmt: skip
    if e.phases:
        yield _phase_table(e)
    yield Text("")
    yield Text("connections", style="bold")
    yield Text("  " + sum_of(e))
    yield Text("  " + reach_of(e))
    yield Text("")
    title, grid = _overlap(e)
    yield Text(title, style="bold")
    yield Text(grid, no_wrap=True, overflow="crop")
    yield Text("  " + verdict(e))
    yield Text("")
    yield Text("round trip", style="bold")
    yield Text("  " + round_trip(e))


def plain(e: Explanation, width: int = 100) -> str:
    """The same without colour or control codes."""
    from rich.console import Console

    held = StringIO()
    Console(file=held, width=width, color_system=None, legacy_windows=False).print(e)
    return "\n".join(line.rstrip() for line in held.getvalue().splitlines())
