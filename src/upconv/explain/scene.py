"""A picture before it is drawn: marks, strokes and words in plain coordinates, which SVG, Matplotlib and Pillow draw.

Input and output differ in shape (circle, square), in lightness (dark with white words, light with black words) and in
hue (blue, orange of the Okabe-Ito palette), so that each alone tells them apart: on a screen, in grey, or printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upconv.explain.model import Explanation

PITCH = 34.0
"""Distance of neighbouring cells, in the picture's units (pixels in SVG, 1/72 inch times 0.75 in print)."""


@dataclass(frozen=True, slots=True)
class Look:
    """How one kind of mark is drawn, and its name in the legend."""

    shape: str  # circle, square or diamond
    fill: str
    line: str
    ink: str
    legend: str
    dash: bool = False
    hatch: bool = False


LOOKS = {
    "input": Look("circle", "#0072B2", "#00446b", "#ffffff", "input cell"),
    "output": Look("square", "#ffe3a8", "#8a5f00", "#000000", "output cell"),
    "tap": Look("diamond", "#ffffff", "#00664b", "#000000", "kernel tap"),
    "used": Look("diamond", "#009E73", "#003d2d", "#000000", "tap in use"),
    "cropped": Look("square", "#f4f4f4", "#777777", "#555555", "computed, then cropped by padding", dash=True, hatch=True),
    "padded": Look("circle", "#f4f4f4", "#777777", "#555555", "padding around the input", dash=True, hatch=True),
    "extra": Look("square", "#ffffff", "#8a5f00", "#000000", "added by output_padding", hatch=True),
}
INK = "#222222"
FAINT = "#b5b5b5"
STRONG = "#000000"


@dataclass(frozen=True, slots=True)
class Mark:
    """A cell. `key` names it ("x", "w", "y", or "t" for the tap on a line; then the position); `level` 0..1 darkens an output."""

    kind: str
    x: float
    y: float
    size: float
    label: str = ""
    key: tuple[str, tuple[int, ...]] | None = None
    strong: bool = False
    level: float = 0.0
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Stroke:
    """A straight line; `link` is the (input, tap, output) it stands for."""

    x1: float
    y1: float
    x2: float
    y2: float
    link: tuple[int, int, int] | None = None
    strong: bool = False
    dash: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A filled bar (the overlap map of a line)."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Words:
    x: float
    y: float
    text: str
    size: float = 11.0
    anchor: str = "start"  # start, middle or end
    bold: bool = False
    kind: str = ""  # "sum" for the singled-out sum, which a page that answers tells elsewhere


Item = Mark | Stroke | Bar | Words


@dataclass(frozen=True, slots=True)
class Scene:
    """What is drawn, in drawing order, within `width` and `height`; `told` says it in words for a screen reader."""

    width: float
    height: float
    items: tuple[Item, ...]
    title: str = ""
    told: str = ""
    kinds: tuple[str, ...] = ()

    def below(self, other: Scene, gap: float = 0.0) -> Scene:
        """This scene with `other` under it."""
        moved = tuple(_down(item, self.height + gap) for item in other.items)
        kinds = (*self.kinds, *(k for k in other.kinds if k not in self.kinds))
        size = max(self.width, other.width), self.height + gap + other.height
        return replace(self, width=size[0], height=size[1], items=self.items + moved, kinds=kinds)


def _down(item: Item, by: float) -> Item:
    if isinstance(item, Stroke):
        return replace(item, y1=item.y1 + by, y2=item.y2 + by)
    return replace(item, y=item.y + by)


@dataclass(frozen=True, slots=True)
class Window:
    """The stretch `start <= position < stop` of an axis that is drawn."""

    start: int
    stop: int
    first: int
    last: int

    @classmethod
    def around(cls, centre: int, first: int, last: int, limit: int) -> Window:
        """All of first..last (inclusive) where that is at most `limit`, else `limit` positions around `centre`."""
        if last - first + 1 <= limit:
            return cls(first, last + 1, first, last)
        start = min(max(first, centre - limit // 2), last + 1 - limit)
        return cls(start, start + limit, first, last)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, position: int) -> bool:
        return self.start <= position < self.stop


def text_width(text: str, size: float) -> float:
    """About how wide words come out in a sans-serif face."""
    return 0.56 * size * len(text)


def heading(e: Explanation) -> Scene:
    """The layer's name, sizes and verdict."""
    by_size = f"input {_by(e.input_size)}  ->  output {_by(e.output_size)}"
    if not e.spec.transposed:
        verdict = f"each output sums {_by(e.spec.kernel_size)} taps (fewer at the borders)"
    elif e.even:
        verdict = "away from the borders every output sums equally many taps: no checkerboard is built in"
    else:
        verdict = "outputs sum unequal numbers of taps: a checkerboard is built in"
    items = (
        Words(16, 24, str(e.spec), 14, bold=True),
        Words(16, 43, by_size, 12),
        Words(16, 60, verdict, 11),
    )
    width = 32 + max(text_width(w.text, w.size) for w in items)
    return Scene(width, 68, items, title=f"{e.spec}, {by_size}", told=f"{e.spec}; {by_size}; {verdict}.")


def _by(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values))


def legend(kinds: tuple[str, ...], width: float) -> Scene:
    """One sample of each kind of mark that the picture uses, wrapped to its width."""
    items: list[Item] = []
    x, y = 24.0, 16.0
    for kind in kinds:
        words = LOOKS[kind].legend
        room = 34 + text_width(words, 10.5)
        if x + room > width and x > 24:
            x, y = 24.0, y + 22
        items += [Mark(kind, x, y, 15), Words(x + 12, y + 4, words, 10.5)]
        x += room
    return Scene(width, y + 16, tuple(items))


def scene_of(e: Explanation) -> Scene:
    """The whole still picture of a layer: rank 1 as a line, rank 2 as grids, rank 3 as its depth and one slice."""
    from upconv.explain.grid import grid_scene
    from upconv.explain.line import line_scene

    scene = heading(e)
    if e.spec.rank == 1:
        scene = scene.below(line_scene(e.axes[0], e.example[0], e.view[0]))
    elif e.spec.rank == 2:
        scene = scene.below(grid_scene(e))
    else:
        depth = line_scene(e.axes[0], e.example[0], e.view[0], unit="slice", keyed=False)
        scene = scene.below(depth).below(grid_scene(e), 8)
    kinds = tuple(kind for kind in LOOKS if kind in scene.kinds)
    return scene.below(legend(kinds, max(scene.width, 480)), 4)
