"""The code to copy for a layer, in several frameworks, with what must be done where one of them cannot say it.

Every snippet takes `x` and torch's weight `w` and bias `b` as NumPy arrays, and leaves the result in `y`.
"""

from __future__ import annotations

from typing import Any

from upconv.conventions import padding_from_torch
from upconv.spec import ConvSpec, SpecError

FRAMEWORKS = {"torch": "PyTorch", "keras": "Keras", "jax": "JAX", "onnx": "ONNX", "upconv": "upconv"}
_HEAD = {True: "(in, out // groups, *kernel)", False: "(out, in // groups, *kernel)"}
_PAD = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}
_ACTIVATIONS = {
    "torch": {"relu": "F.relu(y)", "leaky_relu": "F.leaky_relu(y, {p})", "elu": "F.elu(y, {p})",
              "sigmoid": "torch.sigmoid(y)", "tanh": "torch.tanh(y)", "silu": "F.silu(y)"},
    "keras": {"relu": "keras.ops.relu(y)", "leaky_relu": "keras.ops.leaky_relu(y, negative_slope={p})",
              "elu": "keras.ops.elu(y, alpha={p})", "sigmoid": "keras.ops.sigmoid(y)", "tanh": "keras.ops.tanh(y)",
              "silu": "keras.ops.silu(y)"},
    "jax": {"relu": "jax.nn.relu(y)", "leaky_relu": "jax.nn.leaky_relu(y, {p})", "elu": "jax.nn.elu(y, {p})",
            "sigmoid": "jax.nn.sigmoid(y)", "tanh": "jax.numpy.tanh(y)", "silu": "jax.nn.silu(y)"},
}  # fmt: skip


def code(spec: ConvSpec, framework: str) -> str:
    """Code that runs this layer in a framework: torch, keras, jax, onnx or upconv.

    >>> spec = ConvSpec.make(transposed=True, in_channels=8, out_channels=4, kernel_size=4, stride=2, padding=1, rank=2)
    >>> print(code(spec, "torch"))
    import torch
    import torch.nn.functional as F
    <BLANKLINE>
    # x: (N, 8, *spatial); w: (in, out // groups, *kernel) = (8, 4, 4, 4); b: (4,)
    x, w, b = torch.as_tensor(x), torch.as_tensor(w), torch.as_tensor(b)
    layer = torch.nn.ConvTranspose2d(8, 4, (4, 4), stride=(2, 2), padding=(1, 1))
    layer.weight.data, layer.bias.data = w, b
    y = layer(x)

    Raises SpecError for an unknown framework.
    """
    writers = {"torch": _torch, "keras": _keras, "jax": _jax, "onnx": _onnx, "upconv": _upconv}
    if framework not in writers:
        raise SpecError(f"framework is {framework!r}: use one of {', '.join(writers)}")
    if framework in ("keras", "jax", "onnx") and spec.transposed and spec.padding_mode != "zeros":
        lines = [f"# {FRAMEWORKS[framework]} has no transposed layer with padding_mode {spec.padding_mode!r}: use upconv."]
        return "\n".join(lines + _upconv(spec))
    return "\n".join(writers[framework](spec))


def _told(spec: ConvSpec, last: bool = False) -> str:
    x = f"(N, *spatial, {spec.in_channels})" if last else f"(N, {spec.in_channels}, *spatial)"
    return f"# x: {x}; w: {_HEAD[spec.transposed]} = {spec.weight_shape}; b: ({spec.out_channels},)"


def _activation(spec: ConvSpec, framework: str) -> list[str]:
    if not spec.activation:
        return []
    return ["y = " + _ACTIVATIONS[framework][spec.activation.name].format(p=spec.activation.parameter)]


def _options(**options: Any) -> str:
    """Keyword arguments that differ from the defaults, as source."""
    defaults: dict[str, Any] = {"stride": 1, "strides": 1, "dilation": 1, "dilation_rate": 1, "groups": 1, "padding": 0,
                                "output_padding": 0, "padding_mode": "zeros", "activation": None}  # fmt: skip
    shown = []
    for name, value in options.items():
        default = defaults.get(name)
        plain = all(v == default for v in value) if isinstance(value, tuple) else value == default
        if not plain:
            shown.append(f"{name}={value!r}")
    return "".join(f", {text}" for text in shown)


def _cuts(crop: Any) -> str:
    """The slices of the spatial dimensions that crop does not leave whole."""
    return ", ".join(f"{lo or ''}:{-hi or ''}" for lo, hi in crop)


def _torch(spec: ConvSpec) -> list[str]:
    lines = ["import torch", "import torch.nn.functional as F", "", _told(spec)]
    lines.append("x, w, b = torch.as_tensor(x), torch.as_tensor(w), torch.as_tensor(b)")
    options = {"stride": spec.stride, "dilation": spec.dilation, "groups": spec.groups}
    name = f"torch.nn.{spec.name}({spec.in_channels}, {spec.out_channels}, {spec.kernel_size}"
    if spec.transposed and spec.padding_mode != "zeros":
        return lines + _torch_folded(spec, name, options) + _activation(spec, "torch")
    after = []
    if spec.transposed:
        native = padding_from_torch(spec, "torch")
        options |= native.arguments
        if not native.whole:
            after = ["# torch crops both ends alike: the rest is cut here", f"y = y[..., {_cuts(native.crop)}]"]
    elif all(lo == hi for lo, hi in spec.padding):
        options |= {"padding": tuple(lo for lo, _ in spec.padding), "padding_mode": spec.padding_mode}
    else:
        flat = tuple(p for pair in reversed(spec.padding) for p in pair)
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        lines.append(f"x = F.pad(x, {flat}, mode={mode!r})  # torch.nn pads both ends alike, so it is done before")
    lines.append(f"layer = {name}{_options(**options)})")
    lines += ["layer.weight.data, layer.bias.data = w, b", "y = layer(x)"]
    return lines + after + _activation(spec, "torch")


def _torch_folded(spec: ConvSpec, name: str, options: dict[str, Any]) -> list[str]:
    """padding_mode by hand: the whole output, whose ends are added to the positions they stand for."""
    lines = [f"layer = {name}{_options(**options, output_padding=spec.output_padding)}, bias=False)",
             "layer.weight.data = w", "y = layer(x)",
             f"# torch has no padding_mode {spec.padding_mode!r} here: what padding cuts off is added where it came from",
             "import numpy as np"]  # fmt: skip
    for d, (lo, hi) in enumerate(spec.padding):
        lines += [
            f"size = y.shape[{d + 2}] - {lo + hi}",
            f"index = torch.as_tensor(np.pad(np.arange(size), ({lo}, {hi}), mode={_PAD[spec.padding_mode]!r}))",
            f"y = y.new_zeros((*y.shape[:{d + 2}], size, *y.shape[{d + 3}:])).index_add({d + 2}, index, y)",
        ]
    return [*lines, f"y = y + b.reshape(-1{', 1' * spec.rank})"]


def _keras(spec: ConvSpec) -> list[str]:
    """Keras has no groups and no dilation beside a stride here: channels are split, the kernel is spread out."""
    lines = ["import keras", "import numpy as np", "", _told(spec, last=True)]
    if not spec.transposed:
        return lines + _keras_conv(spec) + _activation(spec, "keras")
    native = padding_from_torch(spec, "keras")
    kernel = spec.kernel_size
    dilation: dict[str, Any] = {"dilation_rate": spec.dilation}
    if max(spec.stride) > 1 and max(spec.dilation) > 1:
        kernel = tuple(d * (k - 1) + 1 for k, d in zip(kernel, spec.dilation, strict=True))
        every = ", ".join(f"::{d}" for d in spec.dilation)
        lines += ["# Keras takes no dilation beside a stride: the kernel is spread out with zeros",
                  f"wide = np.zeros((*w.shape[:2], {', '.join(map(str, kernel))}), w.dtype)",
                  f"wide[:, :, {every}] = w", "w = wide"]  # fmt: skip
        dilation = {}
    arguments = dict(native.arguments)
    padding = arguments.pop("padding")
    options = _options(strides=spec.stride, **dilation, **arguments) + (f", padding={padding!r}" if padding != "valid" else "")
    if padding == "valid" and "output_padding" in arguments and not any(arguments["output_padding"]):
        options += ", output_padding=0"
    if any(native.extend):
        pads = ((0, 0), *((0, m) for m in native.extend), (0, 0))
        lines.append(f"x = np.pad(x, {pads})  # for output_padding as large as the stride, which Keras refuses")
    many, out = spec.groups > 1, spec.out_channels // spec.groups
    axes = (*range(2, 2 + spec.rank), 1, 0)
    build = f"keras.layers.Conv{spec.rank}DTranspose({out}, {kernel}{options}, use_bias=False)"
    if many:
        lines += [f"# Keras has no groups here: {spec.groups} layers side by side", "parts = []",
                  f"for xg, wg in zip(np.split(x, {spec.groups}, axis=-1), np.split(w, {spec.groups})):",
                  f"    layer = {build}", "    part = layer(xg)", f"    layer.set_weights([wg.transpose{axes}])",
                  "    parts.append(layer(xg))", "y = keras.ops.concatenate(parts, axis=-1)"]  # fmt: skip
    else:
        lines += [
            f"layer = {build}",
            "layer(x)  # builds the weight",
            f"layer.set_weights([w.transpose{axes}])",
            "y = layer(x)",
        ]
    if any(map(any, native.crop)):
        lines.append("# Keras knows only 'same' and 'valid': the rest is cut here")
        lines.append(f"y = y[:, {_cuts(native.crop)}, :]")
    return [*lines, "y = y + b", *_activation(spec, "keras")]


def _keras_conv(spec: ConvSpec) -> list[str]:
    lines = []
    if any(map(any, spec.padding)):
        pads = ((0, 0), *spec.padding, (0, 0))
        lines.append(f"x = np.pad(x, {pads}, mode={_PAD[spec.padding_mode]!r})  # Keras's 'same' depends on the input size")
    options = _options(strides=spec.stride, dilation_rate=spec.dilation, groups=spec.groups)
    axes = (*range(2, 2 + spec.rank), 1, 0)
    if max(spec.stride) > 1 and max(spec.dilation) > 1:
        lines.append("# Keras takes no dilation beside a stride: every position is computed, and the strided ones kept")
        options = _options(dilation_rate=spec.dilation, groups=spec.groups)
    build = f"keras.layers.Conv{spec.rank}D({spec.out_channels}, {spec.kernel_size}{options})"
    lines += [
        f"layer = {build}",
        "layer(x)  # builds the weight",
        f"layer.set_weights([w.transpose{axes}, b])",
        "y = layer(x)",
    ]
    if max(spec.stride) > 1 and max(spec.dilation) > 1:
        lines.append(f"y = y[:, {', '.join(f'::{s}' for s in spec.stride)}, :]")
    return lines


def _jax(spec: ConvSpec) -> list[str]:
    """conv_general_dilated says every layer: the stride dilates the input, and the kernel is flipped for it."""
    lines = ["import jax", "import numpy as np", "", _told(spec)]
    letters = "DHW"[-spec.rank :]
    numbers = (f"NC{letters}", f"OI{letters}", f"NC{letters}")
    ones = (1,) * spec.rank
    if spec.transposed:
        padding = padding_from_torch(spec, "jax").arguments["padding"]
        axes = tuple(range(2, 2 + spec.rank))
        lines.append(f"w = np.flip(w, {axes})  # JAX does not flip the kernel")
        if spec.groups == 1:
            lines.append("w = w.swapaxes(0, 1)  # (out, in, *kernel)")
        else:
            g, cin, cout, k = spec.groups, spec.in_channels, spec.out_channels, spec.kernel_size
            lines.append(f"w = w.reshape({g}, {cin // g}, {cout // g}, {', '.join(map(str, k))}).swapaxes(1, 2)")
            lines.append(f"w = w.reshape({cout}, {cin // g}, {', '.join(map(str, k))})")
        strides = f"window_strides={ones}, padding={padding}, lhs_dilation={spec.stride}"
    else:
        padding = list(spec.padding)
        if spec.padding_mode != "zeros":
            pads = ((0, 0), (0, 0), *spec.padding)
            lines.append(f"x = np.pad(x, {pads}, mode={_PAD[spec.padding_mode]!r})")
            padding = [(0, 0)] * spec.rank
        strides = f"window_strides={spec.stride}, padding={padding}"
    lines += ["y = jax.lax.conv_general_dilated(", f"    x, w, {strides}, rhs_dilation={spec.dilation},",
              f"    dimension_numbers={numbers}, feature_group_count={spec.groups},", ")"]  # fmt: skip
    return [*lines, f"y = y + b.reshape(-1{', 1' * spec.rank})", *_activation(spec, "jax")]


def _onnx(spec: ConvSpec) -> list[str]:
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "from onnx import TensorProto, helper, numpy_helper",
        "",
        _told(spec),
    ]
    if spec.transposed:
        native = padding_from_torch(spec, "onnx")
        arguments = native.arguments
        if any(native.extend):
            pads = ((0, 0), (0, 0), *((0, m) for m in native.extend))
            lines.append(f"x = np.pad(x, {pads})  # for output_padding as large as the stride, which ONNX Runtime refuses")
    else:
        arguments = {"pads": [lo for lo, _ in spec.padding] + [hi for _, hi in spec.padding]}
        if spec.padding_mode != "zeros":
            pads = ((0, 0), (0, 0), *spec.padding)
            lines.append(f"x = np.pad(x, {pads}, mode={_PAD[spec.padding_mode]!r})  # Conv pads with zeros only")
            arguments = {}
    options = {"kernel_shape": list(spec.kernel_size), "strides": list(spec.stride), "dilations": list(spec.dilation),
               "group": spec.groups, **arguments}  # fmt: skip
    text = ", ".join(f"{name}={value!r}" for name, value in options.items())
    last = "conv" if spec.activation else "y"
    nodes = [f'helper.make_node("{"ConvTranspose" if spec.transposed else "Conv"}", ["x", "w", "b"], ["{last}"], {text})']
    nodes += _onnx_activation(spec)
    lines += ["nodes = [", *(f"    {node}," for node in nodes), "]"]
    lines += ['graph = helper.make_graph(nodes, "layer",',
              '    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * x.ndim)],',
              '    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * x.ndim)],',
              '    [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")])',
              'model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)',
              "session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[\"CPUExecutionProvider\"])",
              'y = session.run(None, {"x": x})[0]']  # fmt: skip
    return lines


def _onnx_activation(spec: ConvSpec) -> list[str]:
    if not spec.activation:
        return []
    name, p = spec.activation.name, spec.activation.parameter
    if name == "silu":
        return ['helper.make_node("Sigmoid", ["conv"], ["gate"])', 'helper.make_node("Mul", ["conv", "gate"], ["y"])']
    operator = {"relu": "Relu", "leaky_relu": "LeakyRelu", "elu": "Elu", "sigmoid": "Sigmoid", "tanh": "Tanh"}[name]
    return [f'helper.make_node("{operator}", ["conv"], ["y"]{f", alpha={p}" if name in ("leaky_relu", "elu") else ""})']


def _upconv(spec: ConvSpec) -> list[str]:
    act = spec.activation
    chosen = None if act is None else ((act.name, act.parameter) if act.name in ("leaky_relu", "elu") else act.name)
    padding: Any = spec.padding if any(lo != hi for lo, hi in spec.padding) else tuple(lo for lo, _ in spec.padding)
    options = _options(
        stride=spec.stride,
        padding=padding,
        output_padding=spec.output_padding,
        groups=spec.groups,
        dilation=spec.dilation,
        padding_mode=spec.padding_mode,
        activation=chosen,
    )
    return [
        "import upconv",
        "",
        _told(spec),
        f"y = upconv.conv{'_transpose' if spec.transposed else ''}(x, w, b{options})",
    ]
