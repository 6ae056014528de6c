"""Arrays from and to files: .npy, .npz, safetensors, and pictures through Pillow where it is installed.

Writing is all or nothing: a file appears under its name only when it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from upconv.spec import SpecError

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
WRITABLE = (".npy", ".npz", *PICTURES)


def _need(module: str, package: str, purpose: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise SpecError(f"{purpose} needs {package}: pip install {package}") from None


def _picture(path: Path) -> NDArray[Any]:
    """A picture as (channels, height, width) in 0..1, turned as its EXIF data says."""
    image_module = _need("PIL.Image", "pillow", f"reading {path}")
    turn = import_module("PIL.ImageOps").exif_transpose
    with image_module.open(path) as image:
        picture = turn(image)
        deep = picture.mode.startswith("I")
        if not deep and picture.mode not in ("L", "RGB", "RGBA"):
            picture = picture.convert("RGB")
        pixels = np.asarray(picture, np.float32) / np.float32(65535 if deep else 255)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _numpy(path: Path) -> Any:
    with path.open("rb") as stream:
        content = np.load(stream, allow_pickle=False)
        return content if isinstance(content, np.ndarray) else dict(content)


def _safetensors(path: Path) -> Mapping[str, NDArray[Any]]:
    return _need("safetensors.numpy", "safetensors", f"reading {path}").load_file(path)  # type: ignore[no-any-return]


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _numpy,
    ".npz": _numpy,
    ".safetensors": _safetensors,
    **dict.fromkeys(PICTURES, _picture),
}


def _choose(path: Path, arrays: Mapping[str, NDArray[Any]], name: str, default: str) -> NDArray[Any]:
    """The array called `name`; without one, the only array, or the one with the usual name."""
    wanted = name or (next(iter(arrays)) if len(arrays) == 1 else default)
    if wanted not in arrays:
        shown = sorted(arrays)[:8]
        more = f" and {len(arrays) - 8} more" if len(arrays) > 8 else ""
        raise SpecError(f"{path} has no array {wanted!r}: it has {', '.join(shown) or 'none'}{more}; name one as {path}:NAME")
    return arrays[wanted]


def read(text: str, default: str) -> NDArray[Any]:
    """The array of `FILE` or `FILE:NAME`. Raises SpecError or OSError with one clear line."""
    path, name = Path(text), ""
    if not path.exists() and ":" in text:
        stem, _, name = text.rpartition(":")
        path = Path(stem)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise SpecError(f"{path} ends in {path.suffix!r}: arrays are read from {', '.join(_READERS)}")
    try:
        content = reader(path)
    except (OSError, SpecError) as error:
        known = isinstance(error, SpecError) or getattr(error, "errno", None) is not None
        raise error if known else SpecError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise SpecError(f"{path} cannot be read as {path.suffix}: {error}") from None
    if isinstance(content, np.ndarray):
        if name:
            raise SpecError(f"{path} holds one array without a name: leave out {name!r}")
        return content
    return _choose(path, content, name, default)


def check_writable(path: Path) -> None:
    """Refuse a name that could not be written before any time is spent on its content."""
    if path.suffix.lower() not in WRITABLE:
        raise SpecError(f"{path} ends in {path.suffix!r}: results are written to {', '.join(WRITABLE)}")
    if not path.parent.is_dir():
        raise SpecError(f"{path.parent} is not a folder: make it first, or choose another place for {path.name}")
    if path.suffix.lower() in PICTURES:
        _need("PIL.Image", "pillow", f"writing {path}")


def _save_picture(stream: IO[bytes], y: NDArray[Any], form: str) -> None:
    """(channels, height, width), or a batch of one, clipped to 0..1."""
    pixels = y[0] if y.ndim == 4 and y.shape[0] == 1 else y
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4):
        raise SpecError(f"the result has shape {y.shape}: a picture has 1, 3 or 4 channels; write it to a .npy file")
    if not np.isfinite(pixels).all():
        raise SpecError("the result has values that are not finite, which no picture can show; write it to a .npy file")
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    image = import_module("PIL.Image").fromarray(levels[..., 0] if levels.shape[2] == 1 else np.ascontiguousarray(levels))
    image.save(stream, form)


def write(path: Path, y: NDArray[Any]) -> None:
    """Write `y` under `path` in the form that its ending names, whole or not at all."""
    target, suffix = path.resolve(), path.suffix.lower()
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with draft.open("xb") as stream:
            if suffix == ".npy":
                np.save(stream, y)
            elif suffix == ".npz":
                np.savez(stream, y=y)
            else:
                _save_picture(stream, y, PICTURES[suffix])
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
