"""The layers to time: those of bench/layers.json and bench/conv_layers.json, as real models configure them, or any other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upconv.spec import ConvSpec, Problem, SpecError

MOST_FLOPS = 8.5e9
MOST_BYTES = 140 << 20
FILES = {True: "layers.json", False: "conv_layers.json"}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with its sizes, under a name."""

    name: str
    problem: Problem
    bias: bool = True

    def too_large(self, most_flops: float = MOST_FLOPS, most_bytes: float = MOST_BYTES) -> str | None:
        """Why the layer is left out, or None."""
        if self.problem.flops > most_flops:
            return f"{self.problem.flops / 1e9:.3g} GFLOP"
        if self.problem.bytes > most_bytes:
            return f"{self.problem.bytes / 2**20:.3g} MiB"
        return None


def table(transposed: bool, path: Path | None = None) -> Path:
    """The file of layers: as given, or in the package, or in the checkout round it. Raises FileNotFoundError."""
    name = FILES[transposed]
    here = Path(__file__).resolve()
    places = [path] if path is not None else [here.with_name(name), here.parents[3] / "bench" / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no layers at {places[0]}: give a file with --layers, or one layer by its arguments")
    return found


def read(path: Path, transposed: bool) -> list[Layer]:
    """The layers of a file. Raises SpecError for one that holds something else."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["layers"]
        return [_layer(entry, transposed) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise SpecError(f'{path} holds no table of layers ({reason}): it looks like {{"layers": [{{"id": ...}}]}}') from None


def _layer(entry: Mapping[str, Any], transposed: bool) -> Layer:
    """An entry with torch's argument names, `batch`, `input_spatial` and `bias`."""
    spec = ConvSpec.make(
        transposed=transposed,
        in_channels=entry["in_channels"],
        out_channels=entry["out_channels"],
        kernel_size=tuple(entry["kernel"]),
        stride=tuple(entry["stride"]),
        padding=tuple(entry["padding"]),
        output_padding=tuple(entry["output_padding"]) if transposed else 0,
        dilation=tuple(entry["dilation"]),
        groups=entry["groups"],
    )
    size = tuple(entry["input_spatial"])
    return Layer(str(entry["id"]), Problem(spec, entry["batch"], size, spec.output_size(size)), bool(entry["bias"]))


def matching(layers: Iterable[Layer], pattern: str) -> list[Layer]:
    """The layers whose name, or description, has the regular expression somewhere. Raises SpecError where none has."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SpecError(f"{pattern!r} is no regular expression: {error}") from None
    every = list(layers)
    found = [layer for layer in every if expression.search(layer.name) or expression.search(str(layer.problem.spec))]
    if not found:
        raise SpecError(f"none of {len(every)} layers matches {pattern!r}; names are like {every[0].name}")
    return found
