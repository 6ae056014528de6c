"""The kernel on its way over the layer: one frame for each drawn output, as a GIF or as an SVG that moves by itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import BinaryIO

from upconv.explain.model import Explanation
from upconv.explain.scene import Item, Mark, Scene, Stroke, scene_of
from upconv.explain.svg import draw, frame

FRAMES_A_LINE, FRAMES_A_SIDE = 16, 7
SECONDS = 0.7


def frames(e: Explanation) -> list[Scene]:
    """The pictures in turn: neighbouring outputs in reading order, at most 16 (rank 1) or 7 x 7.

    >>> from upconv.explain import explain
    >>> len(frames(explain(dict(kernel_size=4, stride=2, padding=1), 3)))
    6
    """
    side = FRAMES_A_LINE if e.spec.rank == 1 else FRAMES_A_SIDE
    starts = [max(0, min(v - side // 2, n - side)) for v, n in zip(e.view, e.output_size, strict=True)]
    paths = [range(a, min(a + side, n)) for a, n in zip(starts[-2:], e.output_size[-2:], strict=True)]
    # The view stays, so that the picture stands still while the kernel moves.
    return [scene_of(replace(e, example=(*e.example[: e.spec.rank - len(paths)], *cell))) for cell in product(*paths)]


def still_and_moving(scenes: list[Scene]) -> tuple[list[Item], list[list[Item]]]:
    """The items to draw once, and for each frame those to draw over them.

    A cell or line that is in every frame is drawn once as it mostly looks; a frame where it looks otherwise covers it.
    """
    looks: dict[object, Counter[Item]] = {}
    for scene in scenes:
        for item in scene.items:
            looks.setdefault(_place(item), Counter())[item] += 1
    ground = {}
    for place, seen in looks.items():
        item, _ = seen.most_common(1)[0]
        if seen.total() == len(scenes):
            ground[place] = item
    moving = [[item for item in scene.items if ground.get(_place(item)) != item] for scene in scenes]
    return list(ground.values()), moving


def _place(item: Item) -> object:
    """What stays itself while its look changes: a cell, a line; anything else is itself only where nothing changes."""
    if isinstance(item, Mark) and item.key is not None and item.key[0] != "t":
        return item.key
    if isinstance(item, Stroke):
        return item.x1, item.x2, item.link
    return item


def animated_svg(e: Explanation, seconds: float = SECONDS) -> str:
    """An SVG that shows its frames in turn, without script; a viewer that cannot animate shows the first."""
    scenes = frames(e)
    width, height = max(s.width for s in scenes), max(s.height for s in scenes)
    ground, moving = still_and_moving(scenes)
    groups = [*map(draw, ground)]
    for n, items in enumerate(moving):
        start, end = f"{n / len(scenes):.5f}", f"{(n + 1) / len(scenes):.5f}"
        times, values = (f"0;{start};{end}", "hidden;visible;hidden") if n else (f"0;{end}", "visible;hidden")
        moves = (
            f'<animate attributeName="visibility" calcMode="discrete" values="{values}" keyTimes="{times}" '
            f'dur="{seconds * len(scenes):g}s" repeatCount="indefinite"/>'
        )
        own = "\n".join(map(draw, items))
        groups.append(f'<g visibility="{"hidden" if n else "visible"}">{moves if len(scenes) > 1 else ""}\n{own}\n</g>')
    told = f"{scenes[0].told} The kernel moves over the outputs, {len(scenes)} frames."
    return frame(width, height, scenes[0].title, told, "\n".join(groups))


def write_gif(e: Explanation, target: BinaryIO, seconds: float = SECONDS) -> None:
    """Write the frames as a GIF that repeats. Raises ImportError with what to install."""
    from upconv.explain.figure import need
    from upconv.explain.raster import rasters

    scenes = frames(e)
    first, *rest = rasters(scenes, *still_and_moving(scenes))
    palette, plain = first.quantize(64), need("PIL.Image").Dither.NONE
    pictures = [palette, *(picture.quantize(palette=palette, dither=plain) for picture in rest)]
    pictures[0].save(target, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 * seconds), loop=0)
