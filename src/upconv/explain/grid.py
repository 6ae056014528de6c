"""Two dimensions as a picture: the input grid, the kernel, the output grid with its overlap map, the phases below.

Of a rank-3 layer it draws the slice (all of height and width) that the singled-out cell lies in.
"""

from __future__ import annotations

from math import prod

from upconv.explain.axis import Axis
from upconv.explain.model import PHASES_SHOWN, Explanation
from upconv.explain.scene import PITCH, Item, Mark, Scene, Window, Words, text_width
from upconv.explain.text import at, count, sum_of

DENSE_SHOWN = 14
KERNEL_SHOWN = 9
MINI = 11.0
LEFT, TOP = 44.0, 54.0
GAP = 66.0


def grid_scene(e: Explanation) -> Scene:
    """Panels side by side: which inputs, through which taps, make the singled-out output; then the phases."""
    axes, cell = e.axes[-2:], e.example[-2:]
    depth = e.axes[0] if e.spec.rank == 3 else None
    around = depth.writes(e.example[0]) if depth else 1
    links = [{k.input: k.tap for k in axis.sources(c, 512)} for axis, c in zip(axes, cell, strict=True)]
    ins = [_window(axis, c, inputs=True) for axis, c in zip(axes, e.view[-2:], strict=True)]
    outs = [_window(axis, c, inputs=False) for axis, c in zip(axes, e.view[-2:], strict=True)]
    first = [min(row.values(), default=0) for row in links]
    kernels = [Window.around(k, 0, axis.kernel - 1, KERNEL_SHOWN) for k, axis in zip(first, axes, strict=True)]
    depth_words = f" slice {e.example[0]}" if depth else ""
    used = " slices " + ", ".join(str(k.input) for k in depth.sources(e.example[0], 8)) if depth else ""
    items: list[Item] = []
    x = LEFT
    items += _panel(f"input x{used}", x, ins, _input_marks(axes, ins, links, x), [a.input for a in axes])
    x += PITCH * len(ins[1]) + GAP
    items += _panel("kernel w", x, kernels, _tap_marks(kernels, links, x, axes, cell), [a.kernel for a in axes])
    x += PITCH * max(2, len(kernels[1])) + GAP
    title = f"output y{depth_words}: how many taps {'write' if e.spec.transposed else 'make'} each"
    items += _panel(title, x, outs, _output_marks(axes, outs, cell, around, x), [a.output for a in axes])
    width = x + max(PITCH * len(outs[1]), 240) + 24
    height = TOP + PITCH * max(len(w) for w in (ins[0], outs[0], kernels[0])) + 30
    sentence = sum_of(e, 4)
    items.append(Words(16, height - 4, sentence, 11, kind="sum"))
    width = max(width, 32 + text_width(sentence, 11))
    kinds = tuple(sorted({m.kind for m in items if isinstance(m, Mark)}))
    scene = Scene(width, height + 10, tuple(items), kinds=kinds)
    phases = _phases(e, scene.width)
    return scene.below(phases) if phases else scene


def _window(axis: Axis, cell: int, *, inputs: bool) -> Window:
    """The drawn stretch of the input or output side; on the dense side one or two padded positions show."""
    first, last = 0, (axis.input if inputs else axis.output) - 1
    links = axis.sources(cell, 512)
    centre = links[len(links) // 2].input if inputs and links else cell
    if inputs != axis.transposed:
        first, last = -min(axis.before, 2), last + min(axis.after, 2)
    return Window.around(centre, first, last, DENSE_SHOWN)


def _places(windows: list[Window], x: float) -> list[tuple[int, int, float, float]]:
    return [
        (r, c, x + PITCH * (m + 0.5), TOP + PITCH * (n + 0.5)) for n, r in enumerate(windows[0]) for m, c in enumerate(windows[1])
    ]


def _panel(title: str, x: float, windows: list[Window], marks: list[Item], sizes: list[int]) -> list[Item]:
    """Title, position numbers along both edges, and the marks."""
    items: list[Item] = [Words(x, 16, title, 12, bold=True)]
    cut = [
        f"{name} {max(w.start, 0)} to {min(w.stop, size) - 1} of {size}"
        for name, w, size in zip(("rows", "columns"), windows, sizes, strict=True)
        if len(w) < w.last - w.first + 1
    ]
    items.append(Words(x, 31, "shown: " + ", ".join(cut) if cut else f"{sizes[0]} x {sizes[1]}", 10))
    for n, r in enumerate(windows[0]):
        items.append(Words(x - 6, TOP + PITCH * (n + 0.5) + 4, str(r) if 0 <= r < sizes[0] else "", 9, "end"))
    for m, c in enumerate(windows[1]):
        items.append(Words(x + PITCH * (m + 0.5), TOP - 4, str(c) if 0 <= c < sizes[1] else "", 9, "middle"))
    return items + marks


def _input_marks(axes: tuple[Axis, ...], windows: list[Window], links: list[dict[int, int]], x: float) -> list[Item]:
    marks: list[Item] = []
    for r, c, px, py in _places(windows, x):
        if not (0 <= r < axes[0].input and 0 <= c < axes[1].input):
            folded = axes[0].fold(r) is not None and axes[1].fold(c) is not None
            marks.append(Mark("padded", px, py, 22, "" if folded else "0"))
            continue
        lit = r in links[0] and c in links[1]
        label = f"{links[0][r]},{links[1][c]}" if lit else ""
        marks.append(Mark("input", px, py, 28, label, ("x", (r, c)), strong=lit))
    return marks


def _tap_marks(
    windows: list[Window], links: list[dict[int, int]], x: float, axes: tuple[Axis, ...], cell: tuple[int, ...]
) -> list[Item]:
    used = [{link.tap for link in axis.sources(c, 512)} for axis, c in zip(axes, cell, strict=True)]
    return [
        Mark("used" if r in used[0] and c in used[1] else "tap", px, py, 32, f"{r},{c}", ("w", (r, c)))
        for r, c, px, py in _places(windows, x)
    ]


def _output_marks(axes: tuple[Axis, ...], windows: list[Window], cell: tuple[int, ...], around: int, x: float) -> list[Item]:
    spans = [(0, axis.output, axis.output - axis.output_padding) for axis in axes]
    counts = [{p: axis.writes(p) for p in w if 0 <= p < axis.output} for axis, w in zip(axes, windows, strict=True)]
    most = prod(max(c.values(), default=1) for c in counts) * around or 1
    marks: list[Item] = []
    for r, c, px, py in _places(windows, x):
        if not (0 <= r < spans[0][1] and 0 <= c < spans[1][1]):
            marks.append(Mark("cropped", px, py, 24))
            continue
        n = counts[0][r] * counts[1][c] * around
        kind = "extra" if axes[0].transposed and (r >= spans[0][2] or c >= spans[1][2]) else "output"
        marks.append(Mark(kind, px, py, 28, str(n), ("y", (r, c)), strong=(r, c) == cell, level=n / most))
    return marks


def _phases(e: Explanation, width: float) -> Scene | None:
    """A small kernel for each phase with its taps filled in."""
    if not e.spec.transposed or e.phase_count == 1 or not e.phases:
        return None
    rows, columns = (min(k, KERNEL_SHOWN) for k in e.spec.kernel_size[-2:])
    flat = [p for p in e.phases if e.spec.rank == 2 or p.index[0] == e.example[0] % e.spec.stride[0]]
    items: list[Item] = [Words(16, 18, f"phases: {e.phase_count} small convolutions with stride 1, interleaved", 12, bold=True)]
    wide, tall = max(MINI * columns, 84) + 26, MINI * rows + 44
    x, y = 24.0, 34.0
    for phase in flat:
        if x + wide > width and x > 24:
            x, y = 24.0, y + tall
        items.append(Words(x, y + 8, f"phase {at(phase.index)}", 10, bold=True))
        items.append(Words(x, y + 20, count(len(phase.taps), "tap"), 10))
        taken = {tap.kernel[-2:] for tap in phase.taps}
        for r in range(rows):
            for c in range(columns):
                kind = "used" if (r, c) in taken else "tap"
                items.append(Mark(kind, x + MINI * (c + 0.5), y + 26 + MINI * (r + 0.5), MINI))
        x += wide
    if e.phase_count > PHASES_SHOWN:
        items.append(Words(24, y + tall + 2, f"{len(flat)} of {e.phase_count} phases shown", 10))
    return Scene(width, y + tall + 8, tuple(items), kinds=("tap", "used"))
