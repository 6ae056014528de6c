"""The kernel on its way over the layer: one frame for each drawn output, as a GIF or as an SVG that moves by itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import BinaryIO

from upconv.explain.model import Explanation
from upconv.explain.scene import Scene, scene_of
from upconv.explain.svg import body, frame

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


def animated_svg(e: Explanation, seconds: float = SECONDS) -> str:
    """An SVG that shows its frames in turn, without script; a viewer that cannot animate shows the first.

    What all frames share is written once.
    """
    scenes = frames(e)
    width, height = max(s.width for s in scenes), max(s.height for s in scenes)
    drawn = [body(s).split("\n") for s in scenes]
    shared = set(drawn[0]).intersection(*drawn[1:])
    still = "\n".join(line for line in drawn[0] if line in shared)
    total, groups = seconds * len(scenes), []
    for n, lines in enumerate(drawn):
        own = "\n".join(line for line in lines if line not in shared)
        start = n / len(scenes)
        times = f"0;{start:.5f};{(n + 1) / len(scenes):.5f}" if n else f"0;{1 / len(scenes):.5f}"
        values = "hidden;visible;hidden" if n else "visible;hidden"
        moves = (
            f'<animate attributeName="visibility" calcMode="discrete" values="{values}" keyTimes="{times}" '
            f'dur="{total:g}s" repeatCount="indefinite"/>'
        )
        shown = "visible" if n == 0 else "hidden"
        groups.append(f'<g visibility="{shown}">{moves if len(scenes) > 1 else ""}\n{own}\n</g>')
    told = f"{scenes[0].told} The kernel moves over the outputs, {len(scenes)} frames."
    return frame(width, height, scenes[0].title, told, still + "\n" + "\n".join(groups))


def write_gif(e: Explanation, target: BinaryIO, seconds: float = SECONDS) -> None:
    """Write the frames as a GIF that repeats. Raises ImportError with what to install."""
    from upconv.explain.figure import need
    from upconv.explain.raster import rasters

    first, *rest = rasters(frames(e))
    palette, plain = first.quantize(64), need("PIL.Image").Dither.NONE
    pictures = [palette, *(picture.quantize(palette=palette, dither=plain) for picture in rest)]
    pictures[0].save(target, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 * seconds), loop=0)
