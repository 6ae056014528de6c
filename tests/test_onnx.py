"""ONNX's two operators against ONNX Runtime, and whole models through the evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import upconv
from drawing import spec_error
from upconv import onnx as ours

onnx = pytest.importorskip("onnx")
helper = onnx.helper


def whole_numbers(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def one_node(operator: str, arrays: list[np.ndarray], attributes: dict[str, Any]) -> Any:
    """A model of one node whose inputs are x, w and b."""
    names = ["x", "w", "b"][: len(arrays)]
    kind = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
    types = [helper.make_tensor_value_info(name, kind, a.shape) for name, a in zip(names, arrays, strict=True)]
    out = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph([helper.make_node(operator, names, ["y"], **attributes)], "one", types, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def runtime(model: Any, arrays: list[np.ndarray]) -> np.ndarray:
    """What ONNX Runtime computes. Raises its own exceptions for what it refuses."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip("xwb", arrays, strict=False)))[0]


@st.composite
def nodes(draw: st.DrawFn, operator: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Arrays and attributes of a node, every attribute there or not."""
    rank, group = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    axes = range(rank)
    size = [draw(st.integers(2, (9, 6, 4)[rank - 1])) for _ in axes]
    kernel, stride = [draw(st.integers(1, 4)) for _ in axes], [draw(st.integers(1, 3)) for _ in axes]
    attributes: dict[str, Any] = {"strides": stride} if any(s > 1 for s in stride) or draw(st.booleans()) else {}
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    if group > 1:
        attributes["group"] = group
    names = ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]
    if operator == "ConvTranspose" and any(k < s for k, s in zip(kernel, stride, strict=True)):
        names = names[:2]  # for SAME_* the standard says size * stride; the runtime lets such layers fall short of it
    auto_pad = draw(st.sampled_from(names))
    if auto_pad != "NOTSET":
        attributes["auto_pad"] = auto_pad
    elif draw(st.booleans()):
        attributes["pads"] = [draw(st.integers(0, k - 1)) for _ in range(2) for k in kernel]
    if draw(st.booleans()) and auto_pad == "NOTSET":
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in axes]
    if operator == "ConvTranspose" and draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in stride]
    a, b = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    cin = a * group
    weight = (cin, b, *kernel) if operator == "ConvTranspose" else (b * group, a, *kernel)
    arrays = [whole_numbers((2, cin, *size)), whole_numbers(weight, 1)]
    return [*arrays, whole_numbers((b * group,), 2)] if draw(st.booleans()) else arrays, attributes


@settings(max_examples=60)
@given(nodes("ConvTranspose"))
def test_conv_transpose_is_onnx_runtimes(drawn: Any) -> None:
    arrays, attributes = drawn
    try:
        expected = runtime(one_node("ConvTranspose", arrays, attributes), arrays)
    except Exception:  # nothing left of the output, which is not what is asked here
        assume(False)
    np.testing.assert_array_equal(ours.conv_transpose(*arrays, **attributes), expected)


@settings(max_examples=60)
@given(nodes("Conv"))
def test_conv_is_onnx_runtimes(drawn: Any) -> None:
    arrays, attributes = drawn
    try:
        expected = runtime(one_node("Conv", arrays, attributes), arrays)
    except Exception:
        assume(False)
    np.testing.assert_array_equal(ours.conv(*arrays, **attributes), expected)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("wanted", [[9, 12], [10, 11], [7, 7]])
def test_output_shape_is_onnx_runtimes(auto_pad: str, wanted: list[int]) -> None:
    arrays = [whole_numbers((1, 2, 5, 6)), whole_numbers((2, 3, 3, 4), 1), whole_numbers((3,), 2)]
    attributes = {"output_shape": wanted, "strides": [2, 2], "auto_pad": auto_pad}
    y = ours.conv_transpose(*arrays, **attributes)
    assert y.shape[2:] == tuple(wanted)
    np.testing.assert_array_equal(y, runtime(one_node("ConvTranspose", arrays, attributes), arrays))


def test_same_means_size_times_stride_for_kernels_below_the_stride_too() -> None:
    x, weight = np.ones((1, 1, 3), np.float32), np.ones((1, 1, 1), np.float32)
    y = ours.conv_transpose(x, weight, strides=[2], auto_pad="SAME_UPPER")
    np.testing.assert_array_equal(y, [[[1, 0, 1, 0, 1, 0]]])


def test_an_output_shape_beyond_every_input_holds_the_bias() -> None:
    x, weight, bias = np.ones((1, 1, 2), np.float32), np.ones((1, 1, 2), np.float32), np.full(1, 7, np.float32)
    y = ours.conv_transpose(x, weight, bias, strides=[2], output_shape=[9])
    np.testing.assert_array_equal(y, [[[8, 8, 8, 8, 7, 7, 7, 7, 7]]])


def small_model(dtype: Any = np.float32) -> tuple[Any, np.ndarray]:
    """Down, up, a relu, and a skip connection."""
    rng = np.random.default_rng(3)
    arrays = {"down": rng.standard_normal((8, 3, 3, 3)), "up": rng.standard_normal((8, 3, 4, 4)), "bias": rng.standard_normal(3)}
    held = [onnx.numpy_helper.from_array(a.astype(dtype), name) for name, a in arrays.items()]
    body = [
        helper.make_node("Conv", ["x", "down"], ["small"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["small"], ["active"]),
        helper.make_node("ConvTranspose", ["active", "up", "bias"], ["large"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["large", "x"], ["y"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ends = [[helper.make_tensor_value_info(name, kind, None)] for name in "xy"]
    graph = helper.make_graph(body, "small", *ends, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, rng.standard_normal((2, 3, 8, 10)).astype(dtype)


@pytest.mark.parametrize("form", ["proto", "bytes", "path", "str"])
def test_a_model_runs_as_in_onnx_runtime(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = small_model()
    onnx.save(model, tmp_path / "m.onnx")
    given_as = {"proto": model, "bytes": model.SerializeToString(), "path": tmp_path / "m.onnx", "str": str(tmp_path / "m.onnx")}
    calls = []
    for name in ("conv", "conv_transpose"):
        function = getattr(upconv, name)
        monkeypatch.setattr(upconv.functional, name, lambda *a, f=function, n=name: calls.append(n) or f(*a))
    (y,) = ours.evaluator(given_as[form]).run(None, {"x": x})
    assert calls == ["conv", "conv_transpose"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(y, session.run(None, {"x": x})[0], atol=1e-4)


def test_half_precision_goes_to_onnxs_own_operators() -> None:
    model, x = small_model(np.float16)
    (y,) = ours.evaluator(model).run(None, {"x": x})
    assert (y.dtype, y.shape) == (np.float16, x.shape)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda x, w: ours.conv_transpose(x[0], w),
            "x has shape (2, 5) and weight (2, 3, 4): ONNX's operators take (N, C, *spatial) and a weight of as many dimensions, "
            "here 3, 4 or 5",
        ),
        (lambda x, w: ours.conv(x, w, kernel_shape=[3]), "kernel_shape is (3,): weight of shape (2, 3, 4) has (4,)"),
        (lambda x, w: ours.conv(x, w, pads=[1]), "pads (1,) has 1 values: ONNX takes 2, all befores, then all afters"),
        (lambda x, w: ours.conv(x, w, auto_pad="SAME"), "auto_pad is 'SAME': use NOTSET, VALID, SAME_UPPER or SAME_LOWER"),
        (
            lambda x, w: ours.conv_transpose(x, w, auto_pad="SAME"),
            "padding is 'SAME': onnx takes 'NOTSET' or 'VALID' or 'SAME_UPPER' or 'SAME_LOWER'",
        ),
        (lambda x, w: ours.conv_transpose(x, w, strides=[0]), "stride[0] is 0: it must be at least 1"),
    ],
)
def test_errors(call: Any, text: str) -> None:
    assert spec_error(lambda: call(np.ones((1, 2, 5), np.float32), np.ones((2, 3, 4), np.float32))) == text
