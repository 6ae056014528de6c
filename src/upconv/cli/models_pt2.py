"""Transposed layers of a torch.export archive, read as what it is: a zip of JSON and raw weights. No pickle is opened.

The graph's schema is that of torch/_export/serde/schema.py (versions 8); the archive's layout is that of torch >= 2.8,
or the older one with `serialized_exported_program.json`, whose weights are pickled and so are left alone.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from upconv.cli.models import WEIGHT_BYTES, Found, ModelError, decode, layer

JSON_BYTES = 1 << 28
_DTYPES = {6: "float16", 7: "float32", 8: "float64"}
_TARGETS = {
    "torch.ops.aten.conv_transpose1d.default",
    "torch.ops.aten.conv_transpose2d.input",
    "torch.ops.aten.conv_transpose3d.input",
    "torch.ops.aten.convolution.default",
    "torch.ops.upconv.conv.default",
}


class _Archive:
    """The zip, with every read bounded."""

    def __init__(self, path: Path, held: zipfile.ZipFile) -> None:
        self.path, self.held = path, held
        self.names = {info.filename.partition("/")[2] or info.filename: info for info in held.infolist()}

    def bytes(self, name: str, limit: int) -> bytes:
        with self.held.open(self.names[name]) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ModelError(f"{self.path.name}: {name} unpacks to more than {limit} bytes")
        return data

    def json(self, name: str) -> Any:
        return json.loads(self.bytes(name, JSON_BYTES))


def read(path: Path) -> tuple[Found, ...]:
    """The layers in the graph's order. Raises ModelError."""
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path.name} is no torch.export archive: write it with torch.export.save(program, {path.name!r})")
    with zipfile.ZipFile(path) as held:
        archive = _Archive(path, held)
        graphs = [n for n in archive.names if n.endswith("serialized_exported_program.json")]
        graphs += [n for n in sorted(archive.names) if n.startswith("models/") and n.endswith(".json")]
        if not graphs:
            raise ModelError(
                f"{path.name} holds no exported graph (TorchScript or a state_dict?): write it with "
                f"torch.export.save(torch.export.export(model, inputs), {path.name!r})"
            )
        return tuple(found for name in graphs for found in _layers(archive, archive.json(name)))


def _layers(archive: _Archive, program: Any) -> Iterator[Found]:
    module = program["graph_module"]
    parameters = {}
    for spec in module["signature"]["input_specs"]:
        for kind, key in (("parameter", "parameter_name"), ("buffer", "buffer_name")):
            if kind in spec:
                parameters[spec[kind]["arg"]["name"]] = spec[kind][key]
    for graph in _graphs(module["graph"]):
        for node in graph["nodes"]:
            if node["target"] in _TARGETS:
                arguments = {a["name"]: a["arg"] for a in node["inputs"]}
                if arguments.get("transposed", {}).get("as_bool", True):
                    yield _layer(archive, graph["tensor_values"], parameters, node, arguments)


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its control flow."""
    yield graph
    for node in graph["nodes"]:
        for argument in node["inputs"]:
            inner = argument["arg"].get("as_graph")
            if inner:
                yield from _graphs(inner["graph"])


def _sizes(values: Any, name: str) -> tuple[int | None, ...]:
    """A tensor's sizes; one that the model leaves open as the size it was exported with, None where not even that is."""
    found: list[int | None] = []
    for size in values[name]["sizes"]:
        hint = size.get("as_expr", {}).get("hint") or {}
        found.append(size.get("as_int", hint.get("as_int")))
    return tuple(found)


def _ints(argument: Any) -> tuple[int, ...]:
    """An argument that is a list of whole numbers, known now or hinted at."""
    if "as_ints" in argument:
        return tuple(argument["as_ints"])
    return tuple(size["as_int"] for size in argument["as_sym_ints"])


def _layer(archive: _Archive, values: Any, parameters: dict[str, str], node: Any, arguments: dict[str, Any]) -> Found:
    x, w = arguments["input" if "input" in arguments else "x"]["as_tensor"]["name"], arguments["weight"]["as_tensor"]["name"]
    parameter = parameters.get(w)
    stack = node["metadata"].get("nn_module_stack", "").split(";")[-1].split(",")
    name = stack[1] if len(stack) > 2 and stack[1] else (parameter or node["name"]).removesuffix(".weight")
    shape, sizes = _sizes(values, w), _sizes(values, x)
    if None in shape:
        raise ModelError(f"{archive.path.name}: layer {name}: its weight has no fixed shape")
    keys = ("stride", "padding", "output_padding", "dilation")
    options: dict[str, Any] = {key: _ints(arguments[key]) for key in keys if key in arguments}
    groups = arguments.get("groups", {}).get("as_int", 1)
    rank = len(shape) - 2
    if node["target"].startswith("torch.ops.upconv"):  # our own operator pads both ends, one after the other
        ends = options["padding"]
        options["padding"] = tuple(zip(ends[::2], ends[1::2], strict=True))
        options["padding_mode"] = arguments.get("padding_mode", {}).get("as_string", "zeros")
    where = f"{archive.path.name}: layer {name}"
    spec = layer(where, [int(s or 0) for s in shape], options, sizes[-rank - 1] if len(sizes) > rank else None, groups)
    spatial = sizes[-rank:]
    batch = sizes[0] if len(sizes) == rank + 2 else 1
    known = tuple(s for s in spatial if s is not None)
    weight, note = _weight(archive, parameter, spec.weight_shape)
    return Found(name, spec, batch, known if len(known) == rank else None, weight, note)


def _weight(archive: _Archive, parameter: str | None, shape: tuple[int, ...]) -> tuple[NDArray[Any] | None, str]:
    if parameter is None:
        return None, "its weight is computed as the model runs"
    for folder in ("data/weights/", "data/constants/"):
        for name in [n for n in archive.names if n.startswith(folder) and n.endswith("_config.json")]:
            entry = archive.json(name)["config"].get(parameter)
            if entry is None or entry.get("use_pickle"):
                continue
            meta, place = entry["tensor_meta"], folder + entry["path_name"]
            contiguous, step = True, 1
            for size, stride in zip(reversed(meta["sizes"]), reversed(meta["strides"]), strict=True):
                contiguous &= size["as_int"] == 1 or stride["as_int"] == step
                step *= size["as_int"]
            if meta["dtype"] not in _DTYPES or not contiguous or place not in archive.names:
                return None, "its weight is stored in a way that is not read"
            weight = decode(archive.bytes(place, WEIGHT_BYTES), _DTYPES[meta["dtype"]], shape)
            return weight, "" if weight is not None else "its weight is cut short or of another shape"
    return None, "its weight is not in the archive, or pickled"
