"""A picture enlarged by a layer, with three kinds of weights, so that a checkerboard can be seen.

Each colour goes through the layer by itself, with one kernel: what shows is the layer's, not a mixing of colours.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from io import BytesIO
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv import artifacts
from upconv.functional import conv_transpose, plan
from upconv.spec import ConvSpec, SpecError, times

WEIGHTS = ("bilinear", "random", "ICNR")
LONGEST = 192  # a larger picture is shrunk to this: the pattern to be seen is a few pixels wide
MOST_OUTPUT = 4_000_000  # pixels
MOST_UPLOAD = 50_000_000  # pixels


@dataclass(frozen=True, slots=True)
class Enlarged:
    """What a layer made of a picture: pixels (height, width, 3) in 0..1, and how."""

    weights: str
    pixels: NDArray[np.float32]
    score: str
    kernel: str
    milliseconds: float


def sample() -> NDArray[np.float32]:
    """A picture to begin with, (48, 64, 3): flat areas, a gradient, edges, and fine stripes."""
    y, x = np.mgrid[0:48, 0:64].astype(np.float32)
    pixels = np.stack([x / 63, 0.35 + 0.5 * y / 47, 1 - x / 63], -1)
    pixels[(x - 20) ** 2 + (y - 20) ** 2 < 144] = (0.95, 0.75, 0.2)
    pixels[30:44, 36:58] = 0.85
    pixels[33:41:2, 39:55] = 0.15
    return pixels


def read(content: bytes) -> NDArray[np.float32]:
    """A PNG or JPEG as (height, width, 3) in 0..1, at most LONGEST wide or high. Raises SpecError for what is none."""
    from PIL import Image

    try:
        with Image.open(BytesIO(content), formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > MOST_UPLOAD:
                raise SpecError(f"the picture has {picture.width}x{picture.height} pixels: give one of at most {MOST_UPLOAD}")
            picture.draft("RGB", (LONGEST, LONGEST))  # a JPEG is decoded small at once
            rgba = picture.convert("RGBA")
    except SpecError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise SpecError(f"this file cannot be read as a PNG or JPEG picture: {error}") from None
    ground = Image.new("RGBA", rgba.size, "white")
    ground.alpha_composite(rgba)
    ground.thumbnail((LONGEST, LONGEST))
    return np.asarray(ground.convert("RGB"), np.float32) / np.float32(255)


def weights_of(spec: ConvSpec, kind: str, seed: int) -> NDArray[np.float32]:
    """One kernel (1, 1, *kernel) of a kind, whose phases' gains are 1 in the mean. Raises SpecError as its maker does.

    Random kernels are made positive, as brightness would vanish otherwise: what varies is the phases, not the sign.
    """
    if kind == "bilinear":
        return np.asarray(artifacts.bilinear(spec), np.float32)
    made = artifacts.icnr(spec, seed) if kind == "ICNR" else artifacts.kaiming(spec, seed)
    positive = np.abs(made)
    return np.asarray(positive * (np.prod(spec.stride) / positive.sum()), np.float32)


def enlarge(pixels: NDArray[np.float32], layer: ConvSpec, kind: str, seed: int = 0) -> Enlarged:
    """`pixels` (height, width, 3) through `layer` with weights of a kind, computed by `upconv.conv_transpose`.

    >>> layer = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=(4, 4), stride=2, padding=1)
    >>> made = enlarge(sample(), layer, "bilinear")
    >>> made.pixels.shape, made.score
    ((96, 128, 3), 'constant clean, noise clean (clean)')

    Raises SpecError for a layer that takes no picture, an output of more than MOST_OUTPUT pixels, or weights that the
    layer cannot have.
    """
    if layer.rank != 2 or not layer.transposed:
        raise SpecError(f"{layer.name} takes no picture here: choose a transposed layer of 2 dimensions")
    spec = replace(layer, in_channels=1, out_channels=1, groups=1)
    size = spec.output_size(pixels.shape[:2])
    if size[0] * size[1] > MOST_OUTPUT:
        raise SpecError(f"the output would have {times(size)} pixels: use a smaller stride or kernel")
    weight = weights_of(spec, kind, seed)
    x = np.ascontiguousarray(pixels.transpose(2, 0, 1))[:, None]
    arguments: dict[str, Any] = {name: getattr(spec, name) for name in ("stride", "padding", "output_padding", "dilation")}
    arguments["padding_mode"] = spec.padding_mode
    conv_transpose(x, weight, **arguments)  # compiles, the first time
    start = perf_counter()
    y = conv_transpose(x, weight, **arguments)
    spent = 1e3 * (perf_counter() - start)
    shown = np.clip(y[:, 0].transpose(1, 2, 0), 0, 1)
    return Enlarged(kind, shown, str(artifacts.score(spec, weight)), plan(x, weight, **arguments).kernel, spent)


def png(pixels: NDArray[np.float32]) -> bytes:
    """(height, width, 3) in 0..1 as a PNG file."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def image(pixels: NDArray[np.float32], told: str, zoom: int = 1) -> str:
    """An `<img>` of sharp square pixels, `zoom` screen pixels each; `told` says what it shows."""
    data = base64.b64encode(png(pixels)).decode()
    height, width = (n * zoom for n in pixels.shape[:2])
    style = "image-rendering:pixelated;max-width:100%;height:auto;border:1px solid #999"
    return f'<img alt="{told}" width="{width}" height="{height}" style="{style}" src="data:image/png;base64,{data}">'
