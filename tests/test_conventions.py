"""Other frameworks' layers against the reference: by their definitions, by ONNX Runtime, and by themselves if installed."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import upconv
from upconv import conventions
from upconv.explain import code
from upconv.spec import ConvSpec, SpecError

os.environ.setdefault("KERAS_BACKEND", "jax")


def integers(shape, seed=0):
    """Small whole numbers, whose sums float32 holds exactly."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def spec_of(**arguments):
    return ConvSpec.make(**{"transposed": True, "in_channels": 1, "out_channels": 1, **arguments})


def run(x, w, padding, **options):
    return upconv.conv_transpose(x, w, padding=padding.padding, output_padding=padding.output_padding, **options)


# The frameworks' definitions, written out with loops over one dimension of one channel.


def adjoint_of_conv(x, w, stride, dilation, before, length):
    """TensorFlow, Keras and TensorFlow Lite: the gradient of the convolution from `length` positions to len(x)."""
    y = np.zeros(length)
    for i in range(len(x)):
        for k in range(len(w)):
            position = stride * i + dilation * k - before
            if 0 <= position < length:
                y[position] += x[i] * w[k]
    return y


def same_before(length, span, stride):
    """TensorFlow's SAME for the convolution that starts from `length` positions."""
    total = max((-(-length // stride) - 1) * stride + span - length, 0)
    return total // 2


def correlate_dilated(x, w, stride, dilation, low, high):
    """JAX: the input spread out with zeros, padded (or cut, where negative), then a plain cross-correlation."""
    spread = np.zeros((len(x) - 1) * stride + 1)
    spread[::stride] = x
    spread = np.concatenate([np.zeros(max(low, 0)), spread[max(-low, 0) :]])
    spread = np.concatenate([spread[: len(spread) - max(-high, 0)], np.zeros(max(high, 0))])
    span = dilation * (len(w) - 1) + 1
    return np.array([sum(spread[o + dilation * k] * w[k] for k in range(len(w))) for o in range(len(spread) - span + 1)])


sizes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
drawn = settings(max_examples=60, deadline=None, derandomize=True)


@drawn
@given(sizes, st.sampled_from(["same", "valid"]))
def test_keras_by_definition(size, name):
    n, k, s, d = size
    d = d if s == 1 else 1  # Keras takes one or the other
    span = d * (k - 1) + 1
    length = n * s if name == "same" else (n - 1) * s + max(span, s)
    before = same_before(length, span, s) if name == "same" else 0
    x, kernel = integers((1, 1, n)), integers((k, 1, 1), 1)
    w = conventions.weight_to_torch(kernel, "keras")
    padding = conventions.padding_to_torch("keras", name, kernel_size=k, stride=s, dilation=d)
    expected = adjoint_of_conv(x[0, 0], kernel[:, 0, 0], s, d, before, length)
    np.testing.assert_array_equal(run(x, w, padding, stride=s, dilation=d)[0, 0], expected)


@drawn
@given(sizes, st.integers(0, 3))
def test_keras_same_with_output_padding_by_definition(size, extra):
    n, k, s, _ = size
    extra = min(extra, s - 1)
    length = (n - 1) * s + k % 2 + extra
    if length < 1 or -(-length // s) != n:  # TensorFlow refuses an output size whose convolution is not the input's
        return
    x, kernel = integers((1, 1, n)), integers((k, 1, 1), 1)
    padding = conventions.padding_to_torch("keras", "same", kernel_size=k, stride=s, output_padding=extra)
    expected = adjoint_of_conv(x[0, 0], kernel[:, 0, 0], s, 1, same_before(length, k, s), length)
    w = conventions.weight_to_torch(kernel, "keras")
    np.testing.assert_array_equal(run(x, w, padding, stride=s)[0, 0], expected)


@drawn
@given(sizes, st.tuples(st.integers(-2, 6), st.integers(-2, 6)))
def test_jax_pairs_by_definition(size, pair):
    n, k, s, d = size
    span = d * (k - 1) + 1
    low, high = min(pair[0], span - 1), min(pair[1], span - 1 + max(s, d) - 1)
    if (n - 1) * s + 1 + low + high < span or (n - 1) * s + 1 + min(low, 0) + min(high, 0) < 1:
        return
    x, kernel = integers((1, 1, n)), integers((k, 1, 1), 1)
    expected = correlate_dilated(x[0, 0], kernel[:, 0, 0], s, d, low, high)
    padding = conventions.padding_to_torch("jax", [(low, high)], kernel_size=k, stride=s, dilation=d)
    w = conventions.weight_to_torch(kernel, "jax")
    np.testing.assert_array_equal(run(x, w, padding, stride=s, dilation=d)[0, 0], expected)
    flipped = conventions.weight_to_torch(kernel[::-1], "jax_transpose_kernel")
    np.testing.assert_array_equal(flipped, w)


@drawn
@given(sizes, st.sampled_from(["SAME", "VALID"]), st.integers(-3, 3))
def test_tflite_by_definition(size, name, more):
    n, k, s, _ = size
    length = max(1, (n - 1) * s + k + min(more, s - 1)) if name == "VALID" else n * s
    x, kernel = integers((1, 1, n)), integers((1, k, 1), 1)
    before = max((n - 1) * s + k - length, 0) // 2 if name == "SAME" else 0
    expected = adjoint_of_conv(x[0, 0], kernel[0, :, 0], s, 1, before, length)
    padding = conventions.padding_to_torch("tflite", name, kernel_size=k, stride=s, output_shape=length, input_size=n)
    w = conventions.weight_to_torch(kernel, "tflite")
    np.testing.assert_array_equal(run(x, w, padding, stride=s)[0, 0], expected)


def onnx_layer(x, w, **attributes):
    """ONNX Runtime's ConvTranspose."""
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    shape = [None] * x.ndim
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [onnx.helper.make_tensor_value_info("x", 1, shape)],
        [onnx.helper.make_tensor_value_info("y", 1, shape)],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 2),
    st.lists(sizes, min_size=2, max_size=2),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=2),
    st.sampled_from([1, 2]),
)
def test_onnx_runtime_pads(rank, sizes, ends, groups):
    sizes, ends = sizes[:rank], ends[:rank]
    n, k, s, d = (tuple(v) for v in zip(*sizes, strict=True))
    extra = tuple(min(e[2], a - 1) for e, a in zip(ends, s, strict=True))  # ONNX Runtime refuses more
    pads = [e[0] for e in ends] + [e[1] for e in ends]
    x, w = integers((1, 2, *n)), integers((2, 4 // groups, *k), 1)
    padding = conventions.padding_to_torch("onnx", pads, kernel_size=k, stride=s, dilation=d, output_padding=extra)
    options = {"stride": s, "dilation": d, "groups": groups}
    try:
        ours = run(x, conventions.weight_to_torch(w, "onnx", groups=groups), padding, **options)
    except SpecError:
        return  # nothing would be left
    theirs = onnx_layer(x, w, pads=pads, strides=s, dilations=d, group=groups, output_padding=extra)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 2), (5, 3), (2, 2), (1, 1), (6, 4), (4, 1), (4, 3)])
def test_onnx_runtime_auto_pad(name, kernel, stride):
    x, w = integers((1, 1, 5)), integers((1, 1, kernel), 1)
    padding = conventions.padding_to_torch("onnx", name, kernel_size=kernel, stride=stride)
    np.testing.assert_array_equal(run(x, w, padding, stride=stride), onnx_layer(x, w, auto_pad=name, strides=[stride]))


@pytest.mark.parametrize("name", ["SAME_UPPER", "SAME_LOWER", "NOTSET"])
@pytest.mark.parametrize("wanted", [7, 8, 9, 10, 11])
def test_onnx_runtime_output_shape(name, wanted):
    x, w = integers((1, 1, 5)), integers((1, 1, 3), 1)
    padding = conventions.padding_to_torch("onnx", name, kernel_size=3, stride=2, output_shape=wanted, input_size=5)
    theirs = onnx_layer(x, w, auto_pad=name, strides=[2], output_shape=[wanted])
    np.testing.assert_array_equal(run(x, w, padding, stride=2), theirs)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("framework", list(conventions.TRANSPOSED))
def test_a_weight_comes_back(framework, rank, transposed):
    layouts = conventions.TRANSPOSED if transposed else conventions.ORDINARY
    if framework not in layouts:
        pytest.skip("a way of transposed layers only")
    for groups in (1, 2) if layouts[framework].divided else (1,):
        spec = spec_of(transposed=transposed, in_channels=4, out_channels=6, kernel_size=(2, 3, 5)[:rank], groups=groups)
        w = np.arange(np.prod(spec.weight_shape), dtype=np.float32).reshape(spec.weight_shape)
        there = conventions.weight_from_torch(w, framework, transposed=transposed, groups=groups)
        back = conventions.weight_to_torch(there, framework, transposed=transposed, groups=groups)
        np.testing.assert_array_equal(back, w)
        assert sorted(there.ravel()) == sorted(w.ravel())
        assert there.flags.c_contiguous


@pytest.mark.parametrize(
    ("framework", "groups", "shape"),
    [
        ("keras", 1, (2, 3, 6, 4)), ("jax", 1, (2, 3, 4, 6)), ("jax", 2, (2, 3, 2, 6)), ("onnx", 2, (4, 3, 2, 3)),
        ("tflite", 1, (6, 2, 3, 4)), ("mlx", 1, (6, 2, 3, 4)), ("mlx", 2, (6, 2, 3, 2)),
    ],
)  # fmt: skip
def test_shapes_of_weights(framework, groups, shape):
    w = np.zeros((4, 6 // groups, 2, 3), np.float32)
    assert conventions.weight_from_torch(w, framework, groups=groups).shape == shape


@drawn
@given(
    sizes,
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.integers(0, 2),
    st.sampled_from(["jax", "onnx", "torch", "mlx", "keras"]),
)
def test_padding_there_and_back(size, pair, extra, framework):
    """What a framework is told, read back, with crop and extension that it leaves to us included, is the same layer."""
    n, k, s, d = size
    spec = spec_of(kernel_size=k, stride=s, dilation=d, padding=(pair,), output_padding=min(extra, max(s, d) - 1), rank=1)
    x, w = integers((1, 1, n)), integers((1, 1, k), 1)
    try:
        expected = run(x, w, spec, stride=s, dilation=d)
    except SpecError:
        return
    native = conventions.padding_from_torch(spec, framework)
    arguments = dict(native.arguments)
    told = arguments.pop("padding", None) or arguments.pop("pads")
    if framework == "torch":
        told = tuple((p, p) for p in told)
    back = conventions.padding_to_torch(framework, told, kernel_size=k, stride=s, dilation=d, rank=1, **arguments)
    net = [(lo, hi - more) for (lo, hi), more in zip(back.padding, back.output_padding, strict=True)]
    [(low, end)], [(cut, tail)], [longer] = net, native.crop, native.extend
    assert (low + cut, end + tail - s * longer) == (spec.padding[0][0], spec.padding[0][1] - spec.output_padding[0])
    assert expected.shape[-1] == (n + longer - 1) * s + d * (k - 1) + 1 - low - cut - end - tail


ERRORS = [
    (
        lambda: conventions.weight_to_torch(np.zeros((1, 1, 1)), "caffe"),
        "framework is 'caffe': use one of torch, onnx, keras, jax, jax_transpose_kernel, flax, tflite, mlx",
    ),
    (
        lambda: conventions.weight_to_torch(np.zeros((3, 2, 2)), "keras", groups=2),
        "keras has no transposed convolution with groups (2 were asked for): split the channels into 2 layers and "
        "concatenate their outputs",
    ),
    (
        lambda: conventions.weight_to_torch(np.zeros((3, 2)), "jax"),
        "weight has shape (3, 2): it must have 3, 4 or 5 dimensions for rank 1, 2 or 3",
    ),
    (
        lambda: conventions.weight_to_torch(np.zeros((3, 2, 2)), "torch", groups=2),
        "weight of shape (3, 2, 2) has 3 channels in groups 2: not divisible",
    ),
    (
        lambda: conventions.padding_to_torch("keras", "full", kernel_size=3),
        "padding is 'full': keras takes 'same' or 'valid'",
    ),
    (
        lambda: conventions.padding_to_torch("jax", [(3, 0)], kernel_size=3),
        "this padding puts (1,) zeros before the first output, which no torch layer does: use padding 0 there and pad the result",
    ),
    (
        lambda: conventions.padding_to_torch("jax", "SAME", kernel_size=3, output_padding=1),
        "JAX and Flax have no output_padding: lengthen the second entry of the padding pair instead",
    ),
    (
        lambda: conventions.padding_to_torch("jax", [(1, 1)], kernel_size=(3, 3)),
        "padding [(1, 1)] has 1 pairs: give 2 for 2 dimensions",
    ),
    (
        lambda: conventions.padding_to_torch("onnx", [1, 1, 1], kernel_size=(3, 3)),
        "pads [1, 1, 1] has 3 values: ONNX takes 4, all befores, then all afters",
    ),
    (
        lambda: conventions.padding_to_torch("tflite", "SAME", kernel_size=3),
        "TensorFlow Lite's TRANSPOSE_CONV takes its output size as an input: give output_shape and input_size",
    ),
    (
        lambda: conventions.padding_to_torch("tflite", "SAME", kernel_size=3, output_shape=4),
        "output_shape and input_size belong together: give both or neither",
    ),
    (
        lambda: conventions.padding_from_torch(spec_of(kernel_size=3, padding_mode="circular"), "jax"),
        "padding_mode 'circular' of a transposed layer: no framework has it; use upconv itself",
    ),
    (
        lambda: conventions.padding_from_torch(spec_of(kernel_size=3, transposed=False), "jax"),
        "Conv1d 1 -> 1, kernel 3 is a convolution: its padding means the same everywhere, zeros around the input",
    ),
    (
        lambda: conventions.padding_from_torch(spec_of(kernel_size=3), "caffe"),
        "framework is 'caffe': use one of torch, onnx, keras, jax, flax, mlx",
    ),
    (lambda: code(spec_of(kernel_size=3), "caffe"), "framework is 'caffe': use one of torch, keras, jax, onnx, upconv"),
]


@pytest.mark.parametrize(("call", "text"), ERRORS)
def test_errors_say_what_to_change(call, text):
    with pytest.raises(SpecError) as caught:
        call()
    assert str(caught.value) == text


# The code to copy, run as it stands.

LAYERS = [
    dict(kernel_size=4, stride=2, padding=1, rank=2),
    dict(kernel_size=3, stride=2, padding=1, output_padding=1, rank=2),
    dict(kernel_size=5, stride=2, padding=((2, 1),), rank=1, groups=2),
    dict(kernel_size=3, stride=3, padding=0, dilation=2, rank=1, activation=("leaky_relu", 0.25)),
    dict(kernel_size=3, stride=1, padding=2, dilation=3, output_padding=2, rank=1),
    dict(kernel_size=(2, 3, 4), stride=(2, 1, 3), padding=(0, 1, 2), rank=3, activation="relu"),
    dict(kernel_size=3, stride=2, padding="same", rank=2),
    dict(kernel_size=2, stride=3, rank=1, output_padding=2),
    dict(kernel_size=4, stride=2, padding=((1, 2), (0, 1)), padding_mode="circular", rank=2),
    dict(kernel_size=3, stride=2, padding=1, padding_mode="reflect", rank=1),
    dict(transposed=False, kernel_size=3, stride=2, padding=1, rank=2, groups=2),
    dict(transposed=False, kernel_size=3, stride=2, padding=((2, 1),), dilation=2, rank=1, activation="relu"),
    dict(transposed=False, kernel_size=3, padding=2, padding_mode="circular", rank=2),
]


@pytest.mark.parametrize("framework", ["torch", "keras", "jax", "onnx", "upconv"])
@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_the_code_computes_the_layer(framework, number):
    needed = {"torch": ["torch"], "keras": ["keras", "jax"], "jax": ["jax"], "onnx": ["onnx", "onnxruntime"]}
    for module in needed.get(framework, []):
        pytest.importorskip(module)
    spec = spec_of(**{"in_channels": 4, "out_channels": 6, **LAYERS[number]})
    size = (5, 4, 3)[-spec.rank :]
    x, w, b = integers((2, 4, *size)), integers(spec.weight_shape, 1), integers((6,), 2)
    call = upconv.conv_transpose if spec.transposed else upconv.conv
    extra = {"output_padding": spec.output_padding} if spec.transposed else {}
    expected = call(
        x, w, b, stride=spec.stride, padding=spec.padding, dilation=spec.dilation, groups=spec.groups,
        padding_mode=spec.padding_mode, activation=spec.activation, **extra,
    )  # fmt: skip
    text = code(spec, framework)
    last = framework == "keras" and "import keras" in text
    names = {"x": np.moveaxis(x, 1, -1) if last else x, "w": w, "b": b}
    exec(compile(text, f"{framework} code", "exec"), names)  # the very text that people copy
    y = names["y"].detach() if hasattr(names["y"], "detach") else names["y"]
    y = np.moveaxis(np.asarray(y), -1, 1) if last else np.asarray(y)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "sigmoid", "tanh", "silu"])
@pytest.mark.parametrize("framework", ["torch", "keras", "jax", "onnx", "upconv"])
def test_activations_in_the_code(framework, activation):
    for module in {"torch": ["torch"], "keras": ["keras", "jax"], "jax": ["jax"], "onnx": ["onnx", "onnxruntime"]}.get(
        framework, []
    ):
        pytest.importorskip(module)
    spec = spec_of(kernel_size=2, stride=2, activation=activation, rank=1)
    x, w, b = integers((1, 1, 4)) / 2, integers((1, 1, 2), 1) / 2, integers((1,), 2)
    expected = upconv.conv_transpose(x, w, b, stride=2, activation=activation)
    names = {"x": np.moveaxis(x, 1, -1) if framework == "keras" else x, "w": w, "b": b}
    exec(compile(code(spec, framework), f"{framework} code", "exec"), names)
    y = np.asarray(names["y"].detach() if hasattr(names["y"], "detach") else names["y"]).reshape(expected.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_keras_itself():
    keras = pytest.importorskip("keras")
    pytest.importorskip("jax")
    for name, extra, (k, s) in [
        (name, extra, ks) for name in ("same", "valid") for ks in ((3, 2), (4, 2), (5, 3), (2, 3), (7, 4)) for extra in (None, 0, 1)
    ]:
        x, kernel = integers((1, 5, 2)), integers((k, 3, 2), 1)
        layer = keras.layers.Conv1DTranspose(3, k, strides=s, padding=name, output_padding=extra, use_bias=False)
        layer(x)
        layer.set_weights([kernel])
        padding = conventions.padding_to_torch("keras", name, kernel_size=k, stride=s, output_padding=extra)
        ours = run(np.moveaxis(x, 1, -1), conventions.weight_to_torch(kernel, "keras"), padding, stride=s)
        np.testing.assert_array_equal(np.moveaxis(np.asarray(layer(x)), -1, 1), ours, err_msg=f"{name} {extra} {k} {s}")


@pytest.mark.parametrize("padding", ["SAME", "VALID", [(1, 2)], [(0, 3)], [(-1, 1)]])
def test_jax_itself(padding):
    jax = pytest.importorskip("jax")
    for k, s, d in ((3, 2, 1), (4, 2, 1), (2, 3, 1), (5, 3, 1), (3, 2, 2)):
        x, kernel = integers((1, 5, 2)), integers((k, 2, 3), 1)
        theirs = jax.lax.conv_transpose(x, kernel, (s,), padding, rhs_dilation=(d,))
        try:
            meant = conventions.padding_to_torch("jax", padding, kernel_size=k, stride=s, dilation=d)
            ours = run(np.moveaxis(x, -1, 1), conventions.weight_to_torch(kernel, "jax"), meant, stride=s, dilation=d)
        except SpecError:
            assert isinstance(padding, list)  # pairs that torch's padding cannot say
            continue
        np.testing.assert_array_equal(np.moveaxis(np.asarray(theirs), -1, 1), ours, err_msg=f"{k} {s} {d}")
        swapped = jax.lax.conv_transpose(x, kernel[::-1].swapaxes(1, 2), (s,), padding, rhs_dilation=(d,), transpose_kernel=True)
        np.testing.assert_array_equal(np.asarray(swapped), np.asarray(theirs))


@pytest.mark.parametrize("groups", [1, 2])
def test_mlx_itself(groups):
    mx = pytest.importorskip("mlx.core")
    x, w = integers((1, 4, 5, 4)), integers((6, 3, 4, 4 // groups), 1)
    theirs = mx.conv_transpose2d(mx.array(x), mx.array(w), stride=2, padding=1, output_padding=1, groups=groups)
    ours = upconv.conv_transpose(
        np.ascontiguousarray(np.moveaxis(x, -1, 1)),
        conventions.weight_to_torch(w, "mlx", groups=groups),
        stride=2,
        padding=1,
        output_padding=1,
        groups=groups,
    )
    np.testing.assert_array_equal(np.moveaxis(np.array(theirs), -1, 1), ours)
