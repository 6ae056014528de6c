"""The table that accelerate prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from upconv.spec import times
from upconv.torch.layers import spec_of

_HEAD = ("layer", "shape", "before ms", "after ms", "plan")


@dataclass(frozen=True)
class Row:
    """One layer: what it is called with, what it took and takes, and who runs it."""

    name: str
    shape: str
    before: float
    after: float
    plan: str
    ours: bool

    @staticmethod
    def make(
        name: str,
        modules: Sequence[nn.Module],
        calls: Sequence[tuple[Any, ...]],
        before: float,
        after: float,
        verdict: str,
        faster: bool,
    ) -> Row:
        """The row of a layer, and of what it is joined with; `verdict` is why it could not be timed, if so."""
        shape = times(calls[0][0]) + (f" and {len(calls) - 1} more" if len(calls) > 1 else "") if calls else "-"
        if verdict:
            return Row(name, shape, 0.0, 0.0, f"torch: {verdict}", False)
        joined = "".join(f" + {type(m).__name__}" for m in modules[1:])
        plan = f"{spec_of(modules[0])}{joined}" if faster else f"torch: faster here (ours {after * 1e3:.3f})"
        return Row(name, shape, before, after if faster else before, plan, faster)

    def cells(self) -> tuple[str, ...]:
        timed = self.before > 0
        return (
            self.name,
            self.shape,
            f"{self.before * 1e3:.3f}" if timed else "-",
            f"{self.after * 1e3:.3f}" if timed else "-",
            self.plan,
        )


def show(rows: Sequence[Row], note: str) -> None:
    """Print the table and the line under it, by rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        print(plain(rows))
        print(note)
        return
    table = Table(*_HEAD)
    for row in rows:
        table.add_row(*row.cells(), style=None if row.ours else "dim")
    console = Console()
    console.print(table)
    console.print(note, markup=False, highlight=False)


def plain(rows: Sequence[Row]) -> str:
    """The table as aligned text."""
    lines = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
