"""The parts that the explorer's page is put together from: its fields, and pieces of HTML."""

from __future__ import annotations

import re
from functools import partial
from html import escape
from typing import Any

from upconv.explain import Explanation
from upconv.explore import picture
from upconv.explore.settings import PER_DIMENSION, Settings
from upconv.spec import ConvSpec, SpecError, times

LABEL = re.compile("data-label='[^']*'")


def fields(mo: Any, dimensions: tuple[str, ...], start: Settings, kept: dict[str, Any], transposed: bool, ends: bool) -> Any:
    """Number fields for every setting, a dictionary of marimo's keyed "stride 0", "padding 0" and "padding after 0".

    `kept` holds what was typed so far, by the same keys, and goes on holding it; a field for all dimensions is kept for each.
    """
    made = {}
    for name in PER_DIMENSION:
        if name == "output_padding" and not transposed:
            continue
        for part in ("", " after") if name == "padding" and ends else ("",):
            for d in range(len(dimensions)):
                key = f"{name}{part} {d}"
                first = getattr(start, name)[min(d, start.rank - 1)]
                first = first[part == " after"] if name == "padding" else first
                stands_for = [
                    f"{name}{other} {e}"
                    for other in ("", " after")
                    for e in (range(3) if dimensions == ("",) else (d,))
                    if other == part or (name == "padding" and not ends)
                ]
                remember = partial(_remember, kept, stands_for)
                made[key] = mo.ui.number(start=0, step=1, value=kept.get(key, first), full_width=True, on_change=remember)
    return mo.ui.dictionary(made)


def _remember(kept: dict[str, Any], keys: list[str], value: Any) -> None:
    kept.update(dict.fromkeys(keys, value))


def arranged(mo: Any, made: Any, dimensions: tuple[str, ...]) -> list[Any]:
    """The fields for the sidebar, a line a setting, each with its label."""
    apart = any(key.startswith("padding after") for key in made.elements)
    rows: dict[str, list[Any]] = {}
    for key, element in made.elements.items():
        name, _, d = key.rpartition(" ")
        words = {"size": "input size", "padding": "padding before" if apart else "padding"}.get(name, name)
        rows.setdefault(name, []).append(labelled(mo, element, f"{words} {dimensions[int(d)]}".strip()))
    style = "display:grid;grid-auto-flow:column;grid-auto-columns:1fr;gap:.5rem;align-items:end"
    return [mo.Html(f'<div style="{style}">{"".join(field.text for field in row)}</div>') for row in rows.values()]


def labelled(mo: Any, element: Any, words: str) -> Any:
    """A marimo element with a label of plain text: its own is markup, which its fields hand on to screen readers as it is."""
    return mo.Html(LABEL.sub(f"data-label='&quot;{escape(words)}&quot;'", element.text, count=1))


def bold(mo: Any, words: str) -> Any:
    return mo.Html(f"<strong>{escape(words)}</strong>")


def values(typed: dict[str, Any], rank: int, transposed: bool) -> dict[str, Any]:
    """The fields' values as `Settings` takes them; a field for all dimensions counts for each.

    >>> typed = {f"{name} 0": 1 for name in PER_DIMENSION}
    >>> values(typed, 2, True)["padding"]
    ((1, 1), (1, 1))
    """
    found: dict[str, Any] = {}
    for name in PER_DIMENSION:
        if name == "output_padding" and not transposed:
            found[name] = (0,) * rank
            continue
        row = [typed.get(f"{name} {d}", typed[f"{name} 0"]) for d in range(rank)]
        if name == "padding":
            after = [typed.get(f"padding after {d}", typed.get("padding after 0", row[d])) for d in range(rank)]
            found[name] = tuple(zip(row, after, strict=True))
        else:
            found[name] = tuple(row)
    return found


def plain(text: str) -> str:
    """Text for Markdown, none of it markup."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#" else c for c in text)


def framed(fragment: str) -> str:
    """A document for a frame of its own, in which scripts run, that grows and shrinks with its content."""
    grow = (
        "new ResizeObserver(([main]) => { if (window.frameElement) window.frameElement.style.height = "
        'Math.ceil(main.target.getBoundingClientRect().height + 24) + "px"; }).observe(document.querySelector("main"))'
    )
    style = "html,body{margin:0;background:#fff;overflow-y:hidden}"
    return f"<!doctype html><style>{style}</style><main>{fragment}</main><script>{grow}</script>"


def alert(title: str, text: str) -> str:
    """What went wrong, said where it is seen and heard."""
    style = "border-left:6px solid #D55E00;background:#fff4ec;color:#222;padding:12px 16px;margin-bottom:12px"
    return f'<div role="alert" style="{style}"><strong>{escape(title)}</strong><br>{escape(text)}</div>'


def headline(e: Explanation | None, impossible: str, address: str = "") -> str:
    """The layer's sizes with the formula, or why there is no such layer; first, what was wrong with the page's address."""
    note = alert("The settings in the address were not used.", address) if address else ""
    if e is None:
        return note + alert("There is no such layer.", impossible)
    formulas = "".join(f'<div><code style="font-size:.9rem">{escape(line)}</code></div>' for line in e.formula)
    return (
        f'{note}<div aria-live="polite"><div style="font-size:1.9rem;font-weight:600" data-testid="sizes">{times(e.input_size)} '
        f'<span aria-label="becomes">→</span> {times(e.output_size)}</div>{formulas}</div>'
    )


def phase_table(rows: list[tuple[str, str, str]], count: int, verdict: str) -> str:
    """Each phase with its taps, as a table."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(n)}</td><td>{escape(taps)}</td></tr>' for name, n, taps in rows
    )
    shown = "" if len(rows) == count else f"<p>The first {len(rows)} of {count}.</p>"
    return (
        "<style>.phases td,.phases th{border:1px solid #bbb;padding:3px 10px;text-align:left}</style>"
        f"<p>{escape(verdict)}</p>{shown}<table class='phases'><thead><tr><th scope='col'>phase</th><th scope='col'>taps</th>"
        f"<th scope='col'>tap at input offset</th></tr></thead><tbody>{body}</tbody></table>"
    )


def enlargements(content: bytes | None, spec: ConvSpec, seed: int, zoom: int) -> str:
    """A picture (the uploaded one, or a sample) beside what the layer makes of it with each kind of weights."""
    try:
        pixels = picture.read(content) if content else picture.sample()
    except SpecError as error:
        return alert("This is no picture.", str(error))
    except ImportError:
        return alert("Pictures need Pillow.", "Install it with `pip install pillow`.")
    if spec.rank != 2 or not spec.transposed:
        return f"<p>Pictures go through transposed layers of 2 dimensions; this is a {spec.name}.</p>"
    size = f"{pixels.shape[1]} x {pixels.shape[0]}"
    parts = [_figure(picture.image(pixels, f"the input, {size}", zoom), "input" if content else "input (a sample)", size)]
    for kind in picture.WEIGHTS:
        try:
            made = picture.enlarge(pixels, spec, kind, seed)
        except SpecError as error:
            parts.append(_figure(f'<p style="max-width:24rem">{escape(str(error))}</p>', kind, "not possible here"))
            continue
        out = f"{made.pixels.shape[1]} x {made.pixels.shape[0]}"
        told = f"checkerboard: {made.score}; {made.kernel}, {made.milliseconds:.2g} ms"
        screen = max(1, round(zoom * pixels.shape[1] / made.pixels.shape[1]))  # whole, or the screen adds a pattern of its own
        drawn = picture.image(made.pixels, f"the output with {kind} weights, {out}", screen)
        parts.append(_figure(drawn, f"{kind} weights", f"{out}: {told}"))
    return f'<div style="display:flex;flex-wrap:wrap;gap:20px;align-items:flex-start">{"".join(parts)}</div>'


def _figure(inside: str, title: str, told: str) -> str:
    caption = (
        f'<figcaption style="max-width:20rem;font-size:.85rem"><strong>{escape(title)}</strong><br>{escape(told)}</figcaption>'
    )
    return f'<figure style="margin:0;max-width:100%">{inside}{caption}</figure>'
