"""One dimension as a picture: the input above, the output below, a line for every product, the overlap under it."""

from __future__ import annotations

from upconv.explain.axis import Axis
from upconv.explain.scene import PITCH, Bar, Item, Mark, Scene, Stroke, Window, Words

DENSE_SHOWN = 24
BORDER_SHOWN = 4
SPARSE_SHOWN = 16
LINKS_SHOWN = 12
LEFT = 100.0
TOP, BOTTOM = 46.0, 196.0


def line_scene(axis: Axis, example: int, view: int, unit: str = "cell", keyed: bool = True) -> Scene:
    """The picture of one dimension around output `view`, with `example` singled out; a position is a `unit`."""
    dense = _dense_window(axis, view)
    sparse = _sparse_places(axis, dense, view)
    width = LEFT + PITCH * len(dense) + 24
    items: list[Item] = [*_captions(axis, dense, sparse, unit)]
    items += _strokes(axis, dense, sparse, example)
    items += _cells(axis, dense, sparse, example, keyed)
    items += _tap_names(axis, dense, sparse, example)
    height = BOTTOM + 26
    if axis.transposed:
        items += _overlap(axis, dense)
        height = BOTTOM + 92
    kinds = {m.kind for m in items if isinstance(m, Mark)}
    return Scene(width, height, tuple(items), kinds=tuple(sorted(kinds)))


def _dense_window(axis: Axis, view: int) -> Window:
    centre = view if axis.transposed else axis.stride * view - axis.before + axis.span // 2
    first, last = -min(axis.before, BORDER_SHOWN), axis.dense - 1 + min(axis.after, BORDER_SHOWN)
    return Window.around(centre, first, last, DENSE_SHOWN)


def _x(dense: Window, position: float) -> float:
    return LEFT + PITCH * (position - dense.start + 0.5)


def _sparse_places(axis: Axis, dense: Window, view: int) -> dict[int, float]:
    """Where the sparse cells stand: over the middle of what they meet, or evenly where that falls outside."""
    s, reach = axis.stride, axis.before - (axis.span - 1) / 2
    low = max(0, (dense.start + axis.before - axis.span + s) // s)
    high = min(axis.sparse - 1, (dense.stop - 1 + axis.before) // s)
    if high < low:
        return {}
    pick = (view + axis.before) // s if axis.transposed else view
    shown = Window.around(min(max(pick, low), high), low, high, min(SPARSE_SHOWN * 2, len(dense)))
    true = {j: _x(dense, s * j - reach) for j in shown}
    left, right = _x(dense, dense.start), _x(dense, dense.stop - 1)
    inside = {j: x for j, x in true.items() if left - PITCH <= x <= right + PITCH}
    if len(inside) == len(true) or (len(inside) >= 4 and axis.span <= len(dense) // 2):
        return inside
    step = (right - left) / max(1, len(true))
    return {j: left + step * (n + 0.5) for n, j in enumerate(true)}


def _links(axis: Axis, dense: Window, sparse: dict[int, float]) -> list[tuple[int, int, int]]:
    """(sparse, tap, dense position) of every product between drawn cells, cropped ones included."""
    found = []
    for p in dense:
        for k in axis._meets(p)[: 4 * LINKS_SHOWN]:
            j = (p + axis.before - axis.dilation * k) // axis.stride
            if j in sparse:
                found.append((j, k, p))
    return found


def _strokes(axis: Axis, dense: Window, sparse: dict[int, float], example: int) -> list[Item]:
    faint: list[Item] = []
    strong: list[Item] = []
    for j, k, p in _links(axis, dense, sparse):
        real = axis.fold(p)
        i, o = (j, real) if axis.transposed else (real, j)
        strength = o == example
        top, bottom = (sparse[j], _x(dense, p)) if axis.transposed else (_x(dense, p), sparse[j])
        link = None if i is None or o is None else (i, k, o)
        stroke = Stroke(top, TOP + 13, bottom, BOTTOM - 13, link, strength, dash=not 0 <= p < axis.dense)
        (strong if strength else faint).append(stroke)
    return [*faint, *strong]


def _tap_names(axis: Axis, dense: Window, sparse: dict[int, float], example: int) -> list[Item]:
    """The tap on each line of the example, staggered so that names do not cover each other."""
    rows = [(j, k, p) for j, k, p in _links(axis, dense, sparse) if (axis.fold(p) == example if axis.transposed else j == example)]
    items: list[Item] = []
    for n, (j, k, p) in enumerate(sorted(rows)[:LINKS_SHOWN]):
        top, bottom = (sparse[j], _x(dense, p)) if axis.transposed else (_x(dense, p), sparse[j])
        t = (0.42, 0.6)[n % 2] if len(rows) > 3 else 0.5
        items.append(Mark("used", top + (bottom - top) * t, TOP + (BOTTOM - TOP) * t, 24, str(k), ("t", (k,))))
    return items


def _cells(axis: Axis, dense: Window, sparse: dict[int, float], example: int, keyed: bool) -> list[Item]:
    items: list[Item] = []
    up, down = (axis.transposed, not axis.transposed)
    lit = {link.input for link in axis.sources(example, 256)}
    dense_y, sparse_y = (BOTTOM, TOP) if axis.transposed else (TOP, BOTTOM)

    def key(side: str, position: int) -> tuple[str, tuple[int, ...]] | None:
        return (side, (position,)) if keyed else None

    for p in dense:
        x = _x(dense, p)
        if not 0 <= p < axis.dense:
            source = axis.fold(p)
            label = "0" if down else ""
            if source is not None:
                label = str(source)
            items.append(Mark("cropped" if up else "padded", x, dense_y, 22, label))
        elif axis.transposed:
            kind = "extra" if p >= axis.output - axis.output_padding else "output"
            items.append(Mark(kind, x, dense_y, 28, str(p), key("y", p), strong=p == example))
        else:
            items.append(Mark("input", x, dense_y, 28, str(p), key("x", p), strong=p in lit))
    for j, x in sparse.items():
        if axis.transposed:
            items.append(Mark("input", x, sparse_y, 28, str(j), key("x", j), strong=j in lit))
        else:
            items.append(Mark("output", x, sparse_y, 28, str(j), key("y", j), strong=j == example))
    return items


def _captions(axis: Axis, dense: Window, sparse: dict[int, float], unit: str) -> list[Item]:
    seen = [p for p in dense if 0 <= p < axis.dense]
    ranges = [
        (f"{min(sparse)}-{max(sparse)}" if sparse else "", len(sparse), axis.sparse),
        (f"{seen[0]}-{seen[-1]}" if seen else "", len(seen), axis.dense),
    ]
    if not axis.transposed:
        ranges.reverse()
    items: list[Item] = []
    for y, name, (shown, count, total) in ((TOP, "input x", ranges[0]), (BOTTOM, "output y", ranges[1])):
        items.append(Words(16, y + 4, name, 12, bold=True))
        items.append(Words(16, y + 19, f"{total} {unit}{'' if total == 1 else 's'}", 10))
        if count < total:
            items.append(Words(16, y + 32, f"{shown} shown", 10))
    return items


def _overlap(axis: Axis, dense: Window) -> list[Item]:
    """Phase and number of taps under each output."""
    y = BOTTOM + 30.0
    items: list[Item] = [
        Words(16, y + 18, "phase", 11),
        Words(16, y + 42, "taps that", 11),
        Words(16, y + 55, "write it", 11),
    ]
    counts = {p: axis.writes(p) for p in dense if 0 <= p < axis.output}
    most = max(counts.values(), default=1) or 1
    for p, count in counts.items():
        x, tall = _x(dense, p), 24.0 * count / most
        items.append(Words(x, y + 18, str(p % axis.stride), 11, "middle"))
        items.append(Bar(x - 9, y + 49 - tall, 18, tall))
        items.append(Words(x, y + 62, str(count), 10, "middle", bold=count < most))
    return items
