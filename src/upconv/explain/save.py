"""Where a picture goes: the file's ending chooses the writer, and a failed write leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
from os import PathLike
from pathlib import Path

from upconv.explain.model import Explanation
from upconv.spec import SpecError

ENDINGS = ("svg", "html", "png", "pdf", "gif")


def save(e: Explanation, path: str | PathLike[str], *, animate: bool = False) -> None:
    """Write the picture beside its place first, then move it there. See `Explanation.save`."""
    place = Path(path)
    kind = place.suffix.lower().lstrip(".")
    if kind not in ENDINGS:
        raise SpecError(f"{place.name!r} ends in {place.suffix or 'nothing'!r}: use {', '.join('.' + k for k in ENDINGS)}")
    if animate and kind not in ("svg", "gif"):
        raise SpecError(f"a .{kind} file does not move: animate into .gif or .svg")
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.stem}-", suffix=place.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            _write(e, file, kind, animate)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, place)
    except BaseException:
        os.unlink(name)
        raise


def _write(e: Explanation, file, kind: str, animate: bool) -> None:  # type: ignore[no-untyped-def]
    from upconv.explain.scene import scene_of

    if kind == "html":
        file.write(e.html().encode())
    elif kind == "gif":
        from upconv.explain.animate import write_gif

        write_gif(e, file)
    elif kind == "svg":
        from upconv.explain.animate import animated_svg

        file.write((animated_svg(e) if animate else e.svg()).encode())
    else:
        from upconv.explain.figure import write

        write(scene_of(e), file, kind)
