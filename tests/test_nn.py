"""The NumPy layers, beside torch's of the same arguments."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import upconv
from drawing import Problem, problems, spec_error
from upconv import nn

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("ConvTranspose2d", (16, 33, 3), {"stride": 2}),
    ("ConvTranspose2d", (16, 33, (3, 5)), {"stride": (2, 1), "padding": (4, 2)}),
    ("ConvTranspose1d", (8, 4, 16, 8, 4), {"bias": False}),
    ("ConvTranspose1d", (8, 4, 3, 2, 1, 1, 2, False, 2), {}),
    ("ConvTranspose3d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": (1, 0, 1), "groups": 2}),
    ("ConvTranspose3d", (4, 6, (1, 2, 2)), {"stride": (1, 2, 2), "dilation": (1, 2, 1)}),
    ("Conv1d", (4, 4, 7), {"padding": "same", "dilation": 3, "groups": 4}),
    ("Conv2d", (16, 16, 3), {"stride": 2, "padding": 1}),
    ("Conv2d", (3, 8, 3, 1, 1, 1, 1, False, "circular"), {}),
    ("Conv2d", (3, 8, 3), {"padding": "valid"}),
    ("Conv3d", (2, 4, (3, 1, 1)), {"padding": (1, 0, 0), "padding_mode": "replicate"}),
]


def ids(case: Any) -> str:
    return str(case)


@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_is_torch_s_layer(case: tuple[str, tuple[Any, ...], dict[str, Any]], dtype: str) -> None:
    """Same repr, attributes, parameter shapes and outputs."""
    torch = pytest.importorskip("torch")
    kind, arguments, options = case
    ours = getattr(nn, kind)(*arguments, **options, dtype=dtype, seed=1)
    theirs = getattr(torch.nn, kind)(*arguments, **options, dtype=getattr(torch, dtype))
    assert repr(ours) == repr(theirs)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "dilation"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("groups", "padding_mode", "transposed"):
        assert getattr(ours, name) == getattr(theirs, name), name
    ours.load_state_dict(theirs.state_dict())
    np.testing.assert_array_equal(ours.weight, theirs.weight.detach().numpy())
    assert (ours.bias is None) == (theirs.bias is None)
    x = np.random.default_rng(0).standard_normal((2, ours.in_channels, *(9, 8, 7)[: ours.rank])).astype(dtype)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    y = ours(x)
    assert y.dtype == np.dtype(dtype)
    np.testing.assert_allclose(y, expected, rtol=0, atol=np.abs(expected).max() * (1e-5 if dtype == "float32" else 1e-12))
    np.testing.assert_allclose(ours(x[1]), expected[1], rtol=0, atol=np.abs(expected).max() * 1e-5)


@pytest.mark.parametrize("kind", nn.__all__)
def test_arguments_are_in_torch_s_order(kind: str) -> None:
    torch = pytest.importorskip("torch")
    ours = [p for p in inspect.signature(getattr(nn, kind)).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    theirs = [p for p in inspect.signature(getattr(torch.nn, kind)).parameters.values() if p.name != "device"]
    assert [p.name for p in ours] == [p.name for p in theirs]
    assert [p.default for p in ours[:-1]] == [p.default for p in theirs[:-1]]


@pytest.mark.parametrize(
    ("kind", "options"), [("ConvTranspose2d", {"groups": 4}), ("ConvTranspose1d", {}), ("Conv2d", {"groups": 2})]
)
def test_initialisation_has_torch_s_bounds(kind: str, options: dict[str, Any]) -> None:
    """Uniform up to 1 / sqrt(fan), with torch's fan (dimension 1, for transposed layers too)."""
    torch = pytest.importorskip("torch")
    ours = getattr(nn, kind)(64, 128, 5, **options, seed=0)
    theirs = getattr(torch.nn, kind)(64, 128, 5, **options)
    for name in ("weight", "bias"):
        mine, other = getattr(ours, name), getattr(theirs, name).detach().numpy()
        bound = 1 / np.sqrt(np.prod(ours.weight.shape[1:]))
        assert np.abs(other).max() <= bound * (1 + 1e-6), "torch draws from other bounds"
        assert bound * 0.9 < np.abs(mine).max() <= bound * (1 + 1e-6)
        assert abs(mine.mean()) < bound / np.sqrt(mine.size) * 2.5
    assert np.std(ours.weight) == pytest.approx(np.std(theirs.weight.detach().numpy()), rel=0.02)


def test_seed_decides_the_parameters() -> None:
    a, b, c = (nn.ConvTranspose1d(2, 3, 4, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(a.weight, b.weight)
    np.testing.assert_array_equal(a.bias, b.bias)
    assert (a.weight != c.weight).any()
    generator = np.random.default_rng(5)
    np.testing.assert_array_equal(nn.ConvTranspose1d(2, 3, 4, seed=generator).weight, a.weight)
    assert (nn.ConvTranspose1d(2, 3, 4, seed=generator).weight != a.weight).any()
    assert (nn.ConvTranspose1d(2, 3, 4).weight != nn.ConvTranspose1d(2, 3, 4).weight).any()


@given(problems(modes=("zeros", "circular"), asymmetric=True))
@settings(max_examples=30)
def test_calls_the_function_of_the_same_arguments(problem: Problem) -> None:
    spec = problem.spec
    x, weight, bias = problem.arrays()
    options: dict[str, Any] = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "padding_mode": spec.padding_mode,
        "activation": "relu",
    }
    call: Any = upconv.conv
    if spec.transposed:
        options["output_padding"] = spec.output_padding
        call = upconv.conv_transpose
    layer = getattr(nn, spec.name)(spec.in_channels, spec.out_channels, spec.kernel_size, **options)
    layer.load_state_dict({"weight": weight, "bias": bias})
    np.testing.assert_array_equal(layer(x), call(x, weight, bias, **options))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 7])
def test_there_and_back(rank: int, kernel: int) -> None:
    down = getattr(nn, f"Conv{rank}d")(4, 6, kernel, stride=2, padding=1, seed=0)
    up = getattr(nn, f"ConvTranspose{rank}d")(6, 4, kernel, stride=2, padding=1, seed=0)
    x = np.zeros((2, 4, *[12] * rank), np.float32)
    small = {3: 6, 7: 4}[kernel]
    assert down(x).shape == (2, 6, *[small] * rank)
    assert up(down(x), output_size=x.shape).shape == x.shape
    assert up(down(x)[0], output_size=x.shape[2:]).shape == x.shape[1:]
    assert up(down(x), output_size=11).shape == (2, 4, *[11] * rank)


def test_same_padding_of_a_transposed_layer() -> None:
    layer = nn.ConvTranspose2d(1, 2, (1, 5), stride=(3, 2), padding="same", seed=0)
    assert repr(layer) == "ConvTranspose2d(1, 2, kernel_size=(1, 5), stride=(3, 2), padding=same)"
    assert layer(np.zeros((1, 4, 4), np.float32)).shape == (2, 12, 8)


def test_repr_of_what_torch_has_not() -> None:
    layer = nn.ConvTranspose1d(1, 1, 4, padding=((1, 2),), activation=("leaky_relu", 0.1))
    assert repr(layer) == ("ConvTranspose1d(1, 1, kernel_size=(4,), stride=(1,), padding=((1, 2),), activation=leaky_relu(0.1))")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: nn.ConvTranspose2d(4, 4, 3, stride=0), "stride is 0: it must be at least 1"),
        (lambda: nn.Conv2d(4, 4, 3, groups=3), "in_channels 4 is not divisible by groups 3"),
        (
            lambda: nn.Conv2d(4, 4, 3)(np.zeros((1, 3, 8, 8), np.float32)),
            "x has 3 channels (shape (1, 3, 8, 8)) and weight of shape (4, 4, 3, 3) with groups 1 takes 4",
        ),
        (
            lambda: nn.ConvTranspose1d(2, 3, 4).load_state_dict({"weight": np.zeros((2, 3, 4))}),
            "state has ['weight']: ConvTranspose1d(2, 3, kernel_size=(4,), stride=(1,)) has ['bias', 'weight']; give exactly these",
        ),
        (
            lambda: nn.ConvTranspose1d(2, 3, 4, bias=False).load_state_dict({"weight": np.zeros((3, 2, 4))}),
            "weight has shape (3, 2, 4): ConvTranspose1d(2, 3, kernel_size=(4,), stride=(1,), bias=False) has (2, 3, 4)",
        ),
    ],
)
def test_errors(call: Any, text: str) -> None:
    assert spec_error(call) == text


def test_a_weight_of_another_shape_is_refused() -> None:
    layer = nn.ConvTranspose1d(2, 3, 4)
    layer.weight = np.zeros((2, 3, 5), np.float32)
    assert spec_error(lambda: layer(np.zeros((2, 8), np.float32))) == (
        "weight has shape (2, 3, 5): ConvTranspose1d(2, 3, kernel_size=(4,), stride=(1,)) has (2, 3, 4); make a layer "
        "of that size instead"
    )


def test_dtypes() -> None:
    with pytest.raises(TypeError) as caught:
        nn.Conv1d(1, 1, 1, dtype=np.float16)
    assert str(caught.value) == "dtype is float16: a layer computes in np.float32 or np.float64"
    with pytest.raises(TypeError) as caught:
        nn.Conv1d(1, 1, 1)(np.zeros((1, 1, 4)))
    assert str(caught.value) == "x is float64 and weight is float32: give both the same dtype"


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    layer = nn.ConvTranspose1d(2, 3, 4, seed=0)
    before = copy.deepcopy(layer.state_dict())
    spec_error(lambda: layer.load_state_dict({"weight": np.zeros((2, 3, 4)), "bias": np.zeros(2)}))
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_layers_can_be_copied_pickled_and_changed_in_place() -> None:
    layer = nn.ConvTranspose2d(2, 3, 4, stride=2, seed=0)
    x = np.ones((1, 2, 3, 3), np.float32)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(other(x), expected)
        other.weight *= 2
        other.bias *= 2
        np.testing.assert_array_equal(other(x), expected * 2)
    np.testing.assert_array_equal(layer(x), expected)


def test_what_a_layer_is_does_not_change() -> None:
    layer = nn.Conv1d(1, 1, 3)
    with pytest.raises(AttributeError):
        layer.stride = (2,)
    assert layer.stride == (1,)


@pytest.mark.parametrize("kind", nn.__all__)
def test_help_has_an_example(kind: str) -> None:
    assert ">>>" in (inspect.getdoc(getattr(nn, kind)) or "")
