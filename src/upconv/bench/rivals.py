"""The contenders: each makes, of one layer's arrays, a callable that runs it once.

A rival that is not installed, or that refuses a layer, is left out; the report says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv import __version__
from upconv.spec import ConvSpec, SpecError

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One layer with its arrays; x is batched, channels first, float32."""

    spec: ConvSpec
    x: NDArray[Any]
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    threads: int


def upconv(case: Case) -> Call:
    """Our call on NumPy arrays with a weight that is known not to change, as a deployed layer's."""
    from upconv import functional
    from upconv.codegen import threads

    threads.set_num_threads(case.threads)
    return _ours(functional, case)


def _ours(functional: Any, case: Case) -> Call:
    s = case.spec
    frozen = case.weight.copy()
    frozen.flags.writeable = False
    common = {"stride": s.stride, "padding": s.padding, "dilation": s.dilation, "groups": s.groups}
    if s.transposed:
        extra = s.output_padding
        return lambda: functional.conv_transpose(case.x, frozen, case.bias, output_padding=extra, **common)
    return lambda: functional.conv(case.x, frozen, case.bias, **common)


def upconv_last(case: Case) -> Call:
    """Our call on tensors that are channels-last already."""
    import upconv.torch

    return _torch(case, True, upconv.torch)


def _torch(case: Case, channels_last: bool, functions: Any = None) -> Call:
    """A call of torch's function for the layer, or of one with its name and arguments among others."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(case.threads)
    s = case.spec
    if any(lo != hi for lo, hi in s.padding):
        raise ValueError("asymmetric padding")
    x, w = torch.from_numpy(case.x), torch.from_numpy(case.weight)
    bias = None if case.bias is None else torch.from_numpy(case.bias)
    if channels_last:
        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        if s.rank not in formats:
            raise ValueError("no channels-last format of rank 1")
        x, w = x.contiguous(memory_format=formats[s.rank]), w.contiguous(memory_format=formats[s.rank])
    padding = [lo for lo, _ in s.padding]
    arguments: tuple[Any, ...]
    if s.transposed:
        function = getattr(functions or F, f"conv_transpose{s.rank}d")
        arguments = (x, w, bias, s.stride, padding, s.output_padding, s.groups, s.dilation)
    else:
        function = getattr(functions or F, f"conv{s.rank}d")
        arguments = (x, w, bias, s.stride, padding, s.dilation, s.groups)

    def call() -> Any:
        with torch.inference_mode():
            return function(*arguments)

    return call


def torch_first(case: Case) -> Call:
    """PyTorch, channels first, as most people call it."""
    return _torch(case, channels_last=False)


def torch_last(case: Case) -> Call:
    """PyTorch on tensors that are channels-last already."""
    return _torch(case, channels_last=True)


def onnx_model(case: Case) -> bytes:
    """The layer as an ONNX model with constant weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    s = case.spec
    pads = [lo for lo, _ in s.padding] + [hi for _, hi in s.padding]
    attributes: dict[str, Any] = {
        "strides": s.stride, "pads": pads, "dilations": s.dilation, "group": s.groups, "kernel_shape": s.kernel_size,
    }  # fmt: skip
    if s.transposed:
        attributes["output_padding"] = s.output_padding
    names = ["x", "w"] + (["b"] if case.bias is not None else [])
    node = helper.make_node("ConvTranspose" if s.transposed else "Conv", names, ["y"], **attributes)
    out = (case.x.shape[0], s.out_channels, *s.output_size(case.x.shape[2:]))
    constants = [numpy_helper.from_array(case.weight, "w")]
    if case.bias is not None:
        constants.append(numpy_helper.from_array(case.bias, "b"))
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def onnx_runtime(case: Case) -> Call:
    """ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_model(case), options, providers=["CPUExecutionProvider"])
    feed = {"x": case.x}
    return lambda: session.run(None, feed)


def openvino(case: Case) -> Call:
    """OpenVINO's CPU device in float32."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": case.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(onnx_model(case)), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(case.x, shared_memory=True))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor().data

    return call


@dataclass(frozen=True, slots=True)
class Rival:
    """A contender: what makes its call, and the distributions that it needs."""

    make: Callable[[Case], Call]
    needs: tuple[str, ...]

    @property
    def missing(self) -> str | None:
        """What to install before it can take part, or None."""
        absent = [name for name in self.needs if find_spec(name) is None]
        return f"not installed: pip install {' '.join(absent)}" if absent else None


RIVALS: dict[str, Rival] = {
    "torch": Rival(torch_first, ("torch",)),
    "torch channels-last": Rival(torch_last, ("torch",)),
    "ONNX Runtime": Rival(onnx_runtime, ("onnxruntime", "onnx")),
    "OpenVINO": Rival(openvino, ("openvino", "onnx")),
}


def chosen(names: str | None) -> dict[str, Rival]:
    """The rivals of a list like "torch, onnxruntime", all of them for None, none for an empty one.

    >>> list(chosen("onnx-runtime,torch"))
    ['torch', 'ONNX Runtime']

    Raises SpecError for a name that is none of theirs.
    """
    if names is None:
        return dict(RIVALS)

    def plain(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum())

    known = {plain(name): name for name in RIVALS}
    wanted = [plain(name) for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise SpecError(f"no rival is called {name!r}: there are {', '.join(RIVALS)}")
    return {name: rival for name, rival in RIVALS.items() if plain(name) in wanted}


def torch_threads(put_back: int | None = None) -> int | None:
    """How many threads torch takes, None where it is not loaded; or sets that number."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return None
    if put_back is not None:
        torch.set_num_threads(put_back)
    return int(torch.get_num_threads())


def versions() -> dict[str, str]:
    """Installed versions of everything that plays a part; absent ones are left out."""
    found = {"upconv": __version__}
    for name in ("numpy", "llvmlite", "torch", "onnxruntime", "openvino", "onnx"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def result(value: Any) -> NDArray[Any]:
    """A contender's output as an array, for the check that all compute the same."""
    if isinstance(value, list):
        value = value[0]
    return np.asarray(value)
