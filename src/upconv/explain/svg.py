"""A scene as SVG text. Each cell carries its position, so that html.py can answer to mouse and keyboard."""

from __future__ import annotations

from html import escape

from upconv.explain.scene import FAINT, INK, LOOKS, STRONG, Bar, Item, Mark, Scene, Stroke, Words

FONT = "font-family=\"Helvetica, Arial, 'Liberation Sans', sans-serif\""
_HATCH = (
    '<pattern id="{id}" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="5" height="5" fill="{fill}"/><line x1="0" y1="0" x2="0" y2="5" stroke="{line}" stroke-width="1.1"/>'
    "</pattern>"
)


def blend(level: float) -> str:
    """The fill of an output cell: pale where few taps write it, full orange where most do.

    >>> blend(0.0), blend(1.0)
    ('#fff6e0', '#e69f00')
    """
    pale, full = (0xFF, 0xF6, 0xE0), (0xE6, 0x9F, 0x00)
    return "#" + "".join(f"{round(a + (b - a) * min(max(level, 0.0), 1.0)):02x}" for a, b in zip(pale, full, strict=True))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def draw(item: Item) -> str:
    """One item of a scene."""
    match item:
        case Words():
            weight = ' font-weight="bold"' if item.bold else ""
            kind = f' class="{item.kind}"' if item.kind else ""
            anchor = "" if item.anchor == "start" else f' text-anchor="{item.anchor}"'
            return (
                f'<text{kind} x="{_n(item.x)}" y="{_n(item.y)}" font-size="{item.size:g}" fill="{INK}"{anchor}{weight}>'
                f"{escape(item.text)}</text>"
            )
        case Bar():
            return (
                f'<rect x="{_n(item.x)}" y="{_n(item.y)}" width="{_n(item.width)}" height="{_n(item.height)}" '
                f'fill="#E69F00" stroke="#8a5f00"/>'
            )
        case Stroke():
            return _stroke(item)
        case Mark():
            return _mark(item)


def _stroke(s: Stroke) -> str:
    data = "" if s.link is None else ' data-i="{}" data-k="{}" data-o="{}"'.format(*s.link)
    dash = ' stroke-dasharray="3 3"' if s.dash else ""
    look = f'stroke="{STRONG if s.strong else FAINT}" stroke-width="{2.2 if s.strong else 1}"'
    ends = f'x1="{_n(s.x1)}" y1="{_n(s.y1)}" x2="{_n(s.x2)}" y2="{_n(s.y2)}"'
    return f'<line class="link{" on" if s.strong else ""}" {ends} {look}{dash}{data}/>'


def _mark(m: Mark) -> str:
    look = LOOKS[m.kind]
    fill = f"url(#upconv-{m.kind})" if look.hatch else (blend(m.level) if m.kind == "output" and m.level else look.fill)
    width = 3.0 if m.strong else 1.2
    line = STRONG if m.strong else look.line
    dash = ' stroke-dasharray="3 2"' if look.dash else ""
    style = f'fill="{fill}" stroke="{line}" stroke-width="{width:g}"{dash}'
    half = m.size / 2
    match look.shape:
        case "circle":
            body = f'<circle cx="{_n(m.x)}" cy="{_n(m.y)}" r="{_n(half)}" {style}/>'
        case "square":
            body = f'<rect x="{_n(m.x - half)}" y="{_n(m.y - half)}" width="{_n(m.size)}" height="{_n(m.size)}" {style}/>'
        case _:
            points = " ".join(
                f"{_n(x)},{_n(y)}" for x, y in ((m.x, m.y - half), (m.x + half, m.y), (m.x, m.y + half), (m.x - half, m.y))
            )
            body = f'<polygon points="{points}" {style}/>'
    return _group(m, body + _label(m, look.ink))


def label_size(m: Mark) -> float:
    """The size of the words in a mark: what fits."""
    room = m.size * (0.62 if LOOKS[m.kind].shape == "diamond" else 0.85)
    return min(11.0, room / (0.56 * max(1, len(m.label))))


def _label(m: Mark, ink: str) -> str:
    if not m.label:
        return ""
    size = label_size(m)
    where = f'x="{_n(m.x)}" y="{_n(m.y + 0.36 * size)}" text-anchor="middle"'
    return f'<text {where} font-size="{size:.1f}" fill="{ink}">{escape(m.label)}</text>'


def _group(m: Mark, body: str) -> str:
    if m.key is None:
        return body
    side, position = m.key
    if side == "t":
        return f'<g class="tapname">{body}</g>'
    name = {"x": "input", "w": "tap", "y": "output"}[side]
    where = ",".join(map(str, position))
    on = " on" if m.strong or m.kind == "used" else ""
    return f'<g class="cell {side}{on}" data-at="{where}" aria-label="{name} {where}">{body}</g>'


def body(scene: Scene) -> str:
    """The drawing without its frame."""
    return "\n".join(draw(item) for item in scene.items)


def patterns() -> str:
    """The hatchings, which a page needs once."""
    found = (
        _HATCH.format(id=f"upconv-{kind}", fill=look.fill, line="#e0b34d" if kind == "extra" else "#cccccc")
        for kind, look in LOOKS.items()
        if look.hatch
    )
    return f"<defs>{''.join(found)}</defs>"


def frame(width: float, height: float, title: str, told: str, inside: str) -> str:
    """An SVG document that scales to its place and is never wider than it was laid out."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" style="max-width:100%;height:auto" {FONT} role="img">'
        f"<title>{escape(title)}</title><desc>{escape(told)}</desc>{patterns()}"
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{inside}\n</svg>\n'
    )


def render(scene: Scene) -> str:
    """A still picture.

    >>> from upconv.explain import explain
    >>> explain(dict(kernel_size=4, stride=2, padding=1), 3).svg().startswith("<svg xmlns=")
    True
    """
    return frame(scene.width, scene.height, scene.title, scene.told, body(scene))
