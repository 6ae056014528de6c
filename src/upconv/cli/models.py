"""Transposed layers found in a model file. A file is data to be doubted: nothing in it is run, and every size is checked.

`read` chooses the reader by the file's ending; a reader returns a tuple of `Found`. Whatever is wrong with the file is
a ModelError of one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.spec import ConvSpec, SpecError

WEIGHT_BYTES = 1 << 29
"""The most that is read for one weight; a larger one is reported without its score."""
GRAPH_BYTES = 1 << 31


class ModelError(SpecError):
    """A model file that cannot be read, in one line."""


@dataclass(frozen=True, slots=True)
class Found:
    """One transposed layer of a model: its arguments, the sizes it was saved with, its weight where the file holds it."""

    name: str
    spec: ConvSpec
    batch: int | None
    input_size: tuple[int, ...] | None  # None where the model leaves it open
    weight: NDArray[Any] | None
    note: str = ""  # why there is no size or weight


def read(path: Path) -> tuple[Found, ...]:
    """The transposed layers of a .pt2 or .onnx file, in the model's order. Raises ModelError."""
    readers = {".pt2": "upconv.cli.models_pt2", ".onnx": "upconv.cli.models_onnx"}
    if path.suffix.lower() not in readers:
        raise ModelError(f"{path.name} ends in {path.suffix or 'nothing'!r}: give a .pt2 file (torch.export.save) or an .onnx file")
    if not path.is_file():
        raise ModelError(f"{path} is {'no file' if path.exists() else 'not there'}: give a .pt2 or .onnx file")
    if path.stat().st_size > GRAPH_BYTES:
        raise ModelError(f"{path.name} has {path.stat().st_size} bytes: at most {GRAPH_BYTES} are read")
    reader: Callable[[Path], tuple[Found, ...]] = import_module(readers[path.suffix.lower()]).read
    try:
        return reader(path)
    except ModelError:
        raise
    except ImportError:
        raise
    except RecursionError:
        raise ModelError(f"{path.name} cannot be read: it is nested too deeply") from None
    except Exception as error:  # a file may break its parser in any way; the user gets one line all the same
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{path.name} cannot be read: {said}") from error


def layer(where: str, weight_shape: Sequence[int], options: Mapping[str, Any], channels: int | None, groups: int) -> ConvSpec:
    """The spec of a layer whose arguments come from a file, its weight (in, out // groups, *kernel). Raises ModelError."""
    if len(weight_shape) not in (3, 4, 5) or min(weight_shape) < 1 or groups < 1:
        raise ModelError(f"{where}: weight {tuple(weight_shape)} with groups {groups} is no weight of a transposed layer")
    if channels is not None and channels != weight_shape[0]:
        raise ModelError(f"{where}: its input has {channels} channels and its weight takes {weight_shape[0]}")
    try:
        return ConvSpec.make(
            transposed=True,
            in_channels=weight_shape[0],
            out_channels=weight_shape[1] * groups,
            kernel_size=tuple(weight_shape[2:]),
            groups=groups,
            rank=len(weight_shape) - 2,
            **options,
        )
    except SpecError as error:
        raise ModelError(f"{where}: {error}") from error


def decode(data: bytes, dtype: str, shape: Sequence[int]) -> NDArray[Any] | None:
    """A weight from raw little-endian bytes as float32 or float64; None where bytes and shape do not agree."""
    kind = np.dtype(dtype).newbyteorder("<")
    if len(data) != prod(shape) * kind.itemsize:
        return None
    return np.frombuffer(data, kind).reshape(shape).astype(np.float64 if kind.itemsize == 8 else np.float32)
