"""The explanation as HTML that needs nothing else: hover, or go to a cell by Tab and arrow keys, and see its sum."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files

from upconv.explain.axis import Axis
from upconv.explain.code import FRAMEWORKS, code
from upconv.explain.model import Explanation
from upconv.explain.scene import heading, scene_of
from upconv.explain.svg import render
from upconv.explain.text import phase_rows, round_trip, verdict

LINKS_KEPT = 64
CELLS_KEPT = 64


def _links(axis: Axis, centre: int) -> dict[str, dict[str, list[list[int]]]]:
    """The connections of the cells that a window around `centre` can show, for the page's script."""
    outs = _near(centre, axis.output)
    source = axis.sources(centre, 1)
    ins = _near(source[0].input if source else 0, axis.input)
    return {
        "y": {str(o): [[link.input, link.tap] for link in axis.sources(o, LINKS_KEPT)] for o in outs},
        "x": {str(i): [[link.output, link.tap] for link in axis.reached(i, LINKS_KEPT)] for i in ins},
    }


def _near(centre: int, size: int) -> range:
    start = max(0, min(centre - CELLS_KEPT // 2, size - CELLS_KEPT))
    return range(start, min(size, start + CELLS_KEPT))


def _asset(name: str) -> str:
    return (files("upconv.explain") / "assets" / name).read_text(encoding="utf-8")


def fragment(e: Explanation, *, tables: bool = True) -> str:
    """A `<div>` for a notebook: picture, sum of the cell pointed at, and with `tables` tables and code. It loads nothing."""
    axes = e.axes[-2:]
    data = json.dumps([_links(axis, c) for axis, c in zip(axes, e.example[-2:], strict=True)], separators=(",", ":"))
    slice_ = f", in output slice {e.example[0]}" if e.spec.rank == 3 else ""
    start = ",".join(map(str, e.example[-2:]))
    return f"""<div class="upconv-explain" data-links="{escape(data)}" data-start="{start}" data-slice="{escape(slice_)}">
<style>{_asset("explain.css")}</style>
<div class="picture">{render(scene_of(e))}</div>
<p class="told" role="status" aria-live="polite"></p>
<p class="help">Point at an input or output cell; or press Tab to reach the cells, and arrow keys to move among them.</p>
{_tables(e) + _codes(e) if tables else ""}
<script>{_asset("explain.js")}</script>
</div>
"""


def _tables(e: Explanation) -> str:
    formula = "".join(f"<li><code>{escape(line)}</code></li>" for line in e.formula)
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(n)}</td><td>{escape(taps)}</td></tr>"
        for name, n, taps in phase_rows(e)
    )
    shown = f" (the first {len(e.phases)} of {e.phase_count})" if len(e.phases) < e.phase_count else ""
    return (
        f"<details open><summary>Size</summary><ul>{formula}</ul></details>"
        f"<details><summary>Phases{shown}</summary>"
        f"<table><thead><tr><th scope='col'>phase</th><th scope='col'>taps</th>"
        f"<th scope='col'>tap at input offset</th></tr></thead><tbody>{rows}</tbody></table>"
        f"<p>{escape(verdict(e))}</p></details>"
        f"<details open><summary>Round trip</summary><p>{escape(round_trip(e))}</p></details>"
    )


def _codes(e: Explanation) -> str:
    blocks = "".join(
        f"<details><summary>Code for {escape(label)}</summary><pre><code>{escape(code(e.spec, name))}</code></pre></details>"
        for name, label in FRAMEWORKS.items()
    )
    return f'<div class="codes">{blocks}</div>'


def page(e: Explanation) -> str:
    """A whole document, for a file."""
    title = escape(heading(e).title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>body{{margin:16px;background:#fff}}</style>\n</head>\n<body>\n<main>\n"
        f"{fragment(e)}</main>\n</body>\n</html>\n"
    )
