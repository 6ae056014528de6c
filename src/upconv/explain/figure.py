"""A scene drawn by Matplotlib, as PNG or PDF. Matplotlib is imported when a picture is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from upconv.explain.scene import FAINT, INK, LOOKS, STRONG, Bar, Item, Mark, Scene, Stroke, Words
from upconv.explain.svg import blend, label_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCH = 96.0  # scene units an inch, as CSS pixels
POINT = 72.0 / INCH


def need(module: str) -> Any:
    """An optional module, or an ImportError that says what to install."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        package = {"PIL": "pillow"}.get(module.partition(".")[0], module.partition(".")[0])
        raise ImportError(
            f"this picture needs {package}: install it with `pip install upconv[plot]`, or save as .svg or .html, "
            f"which need nothing"
        ) from error


def figure(scene: Scene) -> Figure:
    """The scene as a Matplotlib figure of its natural size. Raises ImportError with what to install."""
    made = need("matplotlib.figure").Figure(figsize=(scene.width / INCH, scene.height / INCH), facecolor="white")
    axes = made.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, scene.width)
    axes.set_ylim(scene.height, 0)
    axes.axis("off")
    for order, item in enumerate(scene.items):
        _draw(axes, item, 1 + order * 0.001)
    return made  # type: ignore[no-any-return]


def _draw(axes: Any, item: Item, order: float) -> None:
    match item:
        case Words():
            weight, anchor = ("bold" if item.bold else "normal"), {"start": "left", "middle": "center", "end": "right"}
            axes.text(item.x, item.y, item.text, fontsize=item.size * POINT, color=INK, weight=weight,
                      ha=anchor[item.anchor], va="baseline", zorder=order, parse_math=False)  # fmt: skip
        case Bar():
            patch = need("matplotlib.patches").Rectangle((item.x, item.y), item.width, item.height)
            patch.set(facecolor="#E69F00", edgecolor="#8a5f00", linewidth=POINT, zorder=order)
            axes.add_patch(patch)
        case Stroke():
            dash = (0, (3, 3)) if item.dash else "-"
            axes.plot([item.x1, item.x2], [item.y1, item.y2], color=STRONG if item.strong else FAINT, zorder=order,
                      linewidth=(2.2 if item.strong else 1.0) * POINT, linestyle=dash)  # fmt: skip
        case Mark():
            _mark(axes, item, order)


def _mark(axes: Any, m: Mark, order: float) -> None:
    patches, look, half = need("matplotlib.patches"), LOOKS[m.kind], m.size / 2
    match look.shape:
        case "circle":
            patch = patches.Circle((m.x, m.y), half)
        case "square":
            patch = patches.Rectangle((m.x - half, m.y - half), m.size, m.size)
        case _:
            corners = ((m.x, m.y - half), (m.x + half, m.y), (m.x, m.y + half), (m.x - half, m.y))
            patch = patches.Polygon(corners, closed=True)
    fill = blend(m.level) if m.kind == "output" and m.level else look.fill
    patch.set(facecolor=fill, edgecolor=STRONG if m.strong else look.line, zorder=order)
    patch.set(linewidth=(3.0 if m.strong else 1.2) * POINT, linestyle=(0, (3, 2)) if look.dash else "-")
    if look.hatch:
        patch.set(hatch="////", hatchcolor="#e0b34d" if m.kind == "extra" else "#cccccc", hatch_linewidth=0.6)
    axes.add_patch(patch)
    if m.label:
        axes.text(m.x, m.y, m.label, fontsize=label_size(m) * POINT, color=look.ink, ha="center", va="center_baseline",
                  zorder=order + 0.0005, parse_math=False)  # fmt: skip


def write(scene: Scene, target: Path | BinaryIO, kind: str, dpi: float = 192) -> None:
    """Write `kind` ("png" or "pdf"); without dates, so that the same layer gives the same bytes."""
    metadata = {"png": {"Software": "upconv"}, "pdf": {"CreationDate": None, "Creator": "upconv"}}[kind]
    figure(scene).savefig(target, format=kind, dpi=dpi, metadata=metadata)
