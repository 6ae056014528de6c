"""A scene drawn by Pillow, for the frames of a GIF: a hundred times quicker than a plotting library."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from upconv.explain.figure import need
from upconv.explain.scene import FAINT, INK, LOOKS, STRONG, Bar, Item, Look, Mark, Scene, Stroke, Words
from upconv.explain.svg import blend, label_size

if TYPE_CHECKING:
    from PIL.Image import Image

FINE = 2  # drawn this much larger, then shrunk: smooth edges


@cache
def _font(size: float) -> Any:
    return need("PIL.ImageFont").load_default(round(size * FINE, 1))


def rasters(scenes: list[Scene], ground: list[Item], moving: list[list[Item]]) -> Iterator[Image]:
    """Each scene as an RGB picture, all of one size: `ground` drawn once, then each frame's own items over it.

    Raises ImportError with what to install.
    """
    image, brushes = need("PIL.Image"), need("PIL.ImageDraw")
    size = round(max(s.width for s in scenes)), round(max(s.height for s in scenes))
    shared = image.new("RGB", (size[0] * FINE, size[1] * FINE), "white")
    for item in ground:
        _draw(shared, brushes.Draw(shared), item)
    for items in moving:
        picture = shared.copy()
        for item in items:
            _draw(picture, brushes.Draw(picture), item)
        yield picture.resize(size, image.Resampling.BOX)


def _draw(picture: Any, brush: Any, item: Item) -> None:
    match item:
        case Words():
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[item.anchor]
            heavy = 0.5 * FINE if item.bold else 0
            where = (item.x * FINE, item.y * FINE)
            brush.text(where, item.text, INK, _font(item.size), anchor, stroke_width=heavy, stroke_fill=INK)
        case Bar():
            box = [v * FINE for v in (item.x, item.y, item.x + item.width, item.y + item.height)]
            if item.height > 0:
                brush.rectangle(box, "#E69F00", "#8a5f00", FINE)
        case Stroke():
            _stroke(brush, item)
        case Mark():
            _mark(picture, brush, item)


def _stroke(brush: Any, s: Stroke) -> None:
    colour, width = (STRONG, 2 * FINE) if s.strong else (FAINT, FINE)
    length = max(1.0, ((s.x2 - s.x1) ** 2 + (s.y2 - s.y1) ** 2) ** 0.5)
    pieces = max(1, round(length / 6)) if s.dash else 1
    for n in range(pieces):
        a, b = n / pieces, (n + (0.5 if s.dash else 1)) / pieces
        ends = [(s.x1 + (s.x2 - s.x1) * t, s.y1 + (s.y2 - s.y1) * t) for t in (a, b)]
        brush.line([(x * FINE, y * FINE) for x, y in ends], colour, width)


def _mark(picture: Any, brush: Any, m: Mark) -> None:
    look, half = LOOKS[m.kind], m.size / 2 * FINE
    x, y = m.x * FINE, m.y * FINE
    fill = blend(m.level) if m.kind == "output" and m.level else look.fill
    line, width = (STRONG, 3 * FINE) if m.strong else (look.line, FINE)
    box = [x - half, y - half, x + half, y + half]
    if look.shape == "diamond":
        brush.polygon([(x, y - half), (x + half, y), (x, y + half), (x - half, y)], fill, line, width)
    elif look.shape == "circle":
        brush.ellipse(box, fill, line, width)
    else:
        brush.rectangle(box, fill)
        _hatch(picture, m, look)
        brush.rectangle(box, None, line, width)
    if m.label:
        brush.text((x, y), m.label, look.ink, _font(label_size(m)), "mm")


def _hatch(picture: Any, m: Mark, look: Look) -> None:
    """Slanted lines within a square."""
    if not look.hatch:
        return
    side, step = round(m.size * FINE), 5 * FINE
    tile = need("PIL.Image").new("RGB", (side, side), look.fill)
    brush = need("PIL.ImageDraw").Draw(tile)
    for a in range(0, 2 * side, step):
        brush.line([(a, 0), (a - side, side)], "#e0b34d" if m.kind == "extra" else "#cccccc", FINE)
    picture.paste(tile, (round(m.x * FINE - side / 2), round(m.y * FINE - side / 2)))
