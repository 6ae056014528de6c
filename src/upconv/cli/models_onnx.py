"""Transposed layers of an ONNX file: the graph is parsed and sized, never run, and weights come from its own folder only."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from upconv.cli.models import WEIGHT_BYTES, Found, ModelError, decode, layer

_DTYPES = {1: "float32", 10: "float16", 11: "float64"}
_STRIPPED = 1 << 10
"""Weights above so many bytes are left out where sizes are inferred: only their shape matters there."""


def read(path: Path) -> tuple[Found, ...]:
    """The layers in the graph's order, those of subgraphs and functions after it. Raises ModelError, ImportError."""
    onnx = _onnx()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # DecodeError, whose class moves between protobuf's versions
        raise ModelError(f"{path.name} is no ONNX model: it cannot be parsed, it may be cut short") from error
    if not model.graph.node:
        raise ModelError(f"{path.name} is no ONNX model: it has no graph, or an empty one")
    _check_order(path, model.graph)
    shapes = _shapes(onnx, model)
    found = []
    for graph in (*_graphs(model.graph), *model.functions):
        held = {t.name: t for t in getattr(graph, "initializer", ())}
        for node in graph.node:
            if node.op_type == "Constant" and node.output:
                held |= {name: a.t for name in node.output for a in node.attribute if a.name == "value"}
        computed = {o for node in graph.node for o in node.output} | {i.name if hasattr(i, "name") else i for i in graph.input}
        for number, node in enumerate(graph.node):
            if node.op_type == "ConvTranspose" and node.domain in ("", "ai.onnx"):
                found.append(_layer(path, node, number, held, computed, shapes))
    return tuple(found)


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError("reading .onnx files needs onnx: install it with `pip install upconv[onnx]`") from error
    return onnx


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _check_order(path: Path, graph: Any) -> None:
    """Raise where the graph runs in a circle: take away, again and again, the nodes whose inputs are all there."""
    nodes = list(graph.node)
    made = {output for node in nodes for output in node.output if output}
    users: dict[str, list[int]] = {}
    waiting = []  # for each node, how many of its inputs other nodes have yet to make
    for n, node in enumerate(nodes):
        needed = made.intersection(node.input)
        waiting.append(len(needed))
        for name in needed:
            users.setdefault(name, []).append(n)
    ready = [n for n, count in enumerate(waiting) if not count]
    for n in ready:  # grows as it goes
        for output in nodes[n].output:
            for user in users.pop(output, ()):
                waiting[user] -= 1
                if not waiting[user]:
                    ready.append(user)
    if len(ready) < len(nodes):
        stuck = next(node for node, count in zip(nodes, waiting, strict=True) if count)
        raise ModelError(f"{path.name} runs in a circle: node {stuck.name or stuck.op_type!r} waits for its own output")


def _shapes(onnx: Any, model: Any) -> dict[str, tuple[int | None, ...]]:
    """Sizes of every value that can be told, by ONNX's own inference on a copy without the large weights."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for graph in _graphs(light.graph):
        for tensor in graph.initializer:
            if tensor.ByteSize() > _STRIPPED:
                for field in ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data"):
                    tensor.ClearField(field)
    try:
        light = onnx.shape_inference.infer_shapes(light)
    except Exception:  # a layer can be told without its sizes
        light = model
    found = {}
    for graph in _graphs(light.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found


def _attributes(where: str, node: Any) -> dict[str, Any]:
    """The node's attributes, each of the type that the operator says."""
    ints = ("strides", "pads", "dilations", "output_padding", "output_shape", "kernel_shape")
    found: dict[str, Any] = {}
    for a in node.attribute:
        wanted = 7 if a.name in ints else 2 if a.name == "group" else 3 if a.name == "auto_pad" else a.type
        if a.type != wanted:
            raise ModelError(f"{where}: attribute {a.name} has a type that the operator does not know")
        if a.name in ints:
            found[a.name] = tuple(a.ints)
        elif a.name in ("group", "auto_pad"):
            found[a.name] = a.i if a.name == "group" else a.s.decode(errors="replace")
    return found


def _layer(path: Path, node: Any, number: int, held: dict[str, Any], computed: set[str], shapes: dict[str, Any]) -> Found:
    from upconv.conventions import padding_to_torch

    name = node.name or f"ConvTranspose_{number}"
    where = f"{path.name}: layer {name}"
    if len(node.input) < 2:
        raise ModelError(f"{where}: it has {len(node.input)} inputs; the operator takes x and a weight")
    attributes, tensor = _attributes(where, node), held.get(node.input[1])
    if tensor is None and node.input[1] not in computed:
        raise ModelError(f"{where}: its weight {node.input[1]!r} is missing from the file")
    shape = tuple(tensor.dims) if tensor is not None else shapes.get(node.input[1], ())
    if not shape or None in shape:
        raise ModelError(f"{where}: its weight {node.input[1]!r} has no fixed shape")
    sizes, rank = shapes.get(node.input[0], ()), len(shape) - 2
    for key, length in (("strides", rank), ("dilations", rank), ("output_padding", rank), ("pads", 2 * rank)):
        if len(attributes.get(key, (0,) * length)) != length:
            raise ModelError(f"{where}: {key} {attributes[key]} has {len(attributes[key])} values: {length} fit its weight")
    if attributes.get("kernel_shape", shape[2:]) != shape[2:]:
        raise ModelError(f"{where}: kernel_shape {attributes['kernel_shape']} is not its weight's, {shape[2:]}")
    size = tuple(sizes[2:]) if len(sizes) == rank + 2 and None not in sizes[2:] and min(sizes[2:], default=0) > 0 else None
    stride, dilation = attributes.get("strides", (1,) * rank), attributes.get("dilations", (1,) * rank)
    wanted, note = attributes.get("output_shape"), ""
    if wanted is not None and size is None:
        wanted, note = None, "its padding follows from an input size that the model leaves open"
    base = {"stride": stride, "dilation": dilation}
    spec = layer(where, shape, base, sizes[1] if len(sizes) == rank + 2 else None, attributes.get("group", 1))
    try:
        padding = padding_to_torch(
            "onnx",
            attributes.get("pads", (0,) * 2 * rank) if attributes.get("auto_pad", "NOTSET") == "NOTSET" else attributes["auto_pad"],
            kernel_size=shape[2:], stride=stride, dilation=dilation, rank=rank,
            output_padding=attributes.get("output_padding"), output_shape=wanted, input_size=size if wanted else None,
        )  # fmt: skip
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from error
    options = base | {"padding": padding.padding, "output_padding": padding.output_padding}
    spec = layer(where, shape, options, None, attributes.get("group", 1))
    weight, why = (None, "its weight is computed as the model runs") if tensor is None else _weight(path, tensor, shape)
    batch = sizes[0] if len(sizes) == rank + 2 else None
    return Found(name, spec, batch, size, weight, note or why)


def _weight(path: Path, tensor: Any, shape: tuple[int, ...]) -> tuple[NDArray[Any] | None, str]:
    """The weight's numbers, or why they are not read. Nothing is allocated before its length is seen to fit."""
    if tensor.data_type not in _DTYPES:
        return None, "its weight is no float16, float32 or float64"
    dtype = _DTYPES[tensor.data_type]
    if prod(shape) * int(dtype[5:]) // 8 > WEIGHT_BYTES:
        return None, f"its weight is larger than {WEIGHT_BYTES} bytes"
    if tensor.data_location == 1:
        return _external(path, {e.key: e.value for e in tensor.external_data}, dtype, shape)
    if tensor.HasField("raw_data"):
        weight = decode(tensor.raw_data, dtype, shape)
    else:
        import numpy as np

        values = tensor.double_data if dtype == "float64" else tensor.float_data
        weight = np.array(values, dtype).reshape(shape) if len(values) == prod(shape) and dtype != "float16" else None
    return weight, "" if weight is not None else "its weight is cut short or of another shape"


def _external(path: Path, told: dict[str, str], dtype: str, shape: tuple[int, ...]) -> tuple[NDArray[Any] | None, str]:
    """A weight in a file of its own, if that lies in the model's folder: a model file names no other place of the disk."""
    folder = path.resolve().parent
    place = (folder / told.get("location", "")).resolve()
    if not place.is_relative_to(folder) or place == folder:
        return None, "its weight is said to lie outside the model's folder, which is not read"
    if not place.is_file():
        return None, f"its weight's file {place.name!r} is not there"
    try:
        offset, count = int(told.get("offset", 0)), prod(shape) * int(dtype[5:]) // 8
    except ValueError:
        return None, "its weight's place is no number"
    if offset < 0 or offset + count > place.stat().st_size:
        return None, f"its weight's file {place.name!r} is cut short"
    with place.open("rb") as file:
        file.seek(offset)
        return decode(file.read(count), dtype, shape), ""
