"""The bench in a picture: every layer's ratio to the fastest rival and to PyTorch, and its fraction of the limit."""

from __future__ import annotations

import io
from typing import Any

from upconv.bench.report import Report

BLUE, ORANGE, GREY = "#1f6feb", "#d9730d", "#8b949e"


def draw(report: Report, form: str = "svg") -> bytes:
    """The picture as the bytes of an SVG or PNG. Raises ImportError where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("the plot needs matplotlib: pip install 'upconv[plot]', or leave it out with --plot none") from None
    outcomes = sorted(report.outcomes, key=lambda o: (o.ratio is None, o.ratio or report.fraction(o)))
    names = [o.layer.name for o in outcomes]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "upconv", "font.size": 7}):
        figure = Figure(figsize=(9, 1.6 + 0.14 * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        ratios = [(o.ratio, o.ratio_default) for o in outcomes]
        _dots(left, [r for _, r in ratios], ORANGE, "PyTorch's default")
        _dots(left, [r for r, _ in ratios], BLUE, "the fastest rival")
        left.set_xlabel("times faster than")
        theirs = [None if o.fastest is None else report.fraction(o, o.times[o.fastest].median) for o in outcomes]
        _dots(right, theirs, GREY, "the fastest rival")
        _dots(right, [report.fraction(o) for o in outcomes], BLUE, "upconv")
        right.set_xlabel("fraction of the direct-sum limit")
        left.set_yticks(range(len(names)), names)
        left.set_ylim(-0.8, len(names) - 0.2)
        for axes in (left, right):
            _frame(axes)
        file = io.BytesIO()
        figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None, dpi=120)
    return file.getvalue()


def _dots(axes: Any, values: list[float | None], colour: str, label: str) -> None:
    there = [(v, i) for i, v in enumerate(values) if v is not None]
    if there:
        axes.scatter(*zip(*there, strict=True), s=11, color=colour, label=label, zorder=3)


def _frame(axes: Any) -> None:
    """A logarithmic scale with plain numbers, a line at 1, a faint line a layer."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    axes.axvline(1, color="#24292f", linewidth=0.8)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
