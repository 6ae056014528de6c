"""Layers as values: what they accept, what they refuse and with which words."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from drawing import Problem, problems, spec_error
from upconv.spec import Activation, ConvSpec


def make(**changes: Any) -> ConvSpec:
    arguments: dict[str, Any] = {
        "transposed": True,
        "in_channels": 4,
        "out_channels": 6,
        "kernel_size": 3,
        "stride": 2,
        "rank": 2,
    }
    return ConvSpec.make(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"in_channels": 0}, "in_channels is 0: it must be at least 1"),
        ({"out_channels": 2.5}, "out_channels is 2.5: give a whole number of at least 1"),
        ({"in_channels": True}, "in_channels is True: give a whole number of at least 1"),
        ({"groups": 3}, "in_channels 4 is not divisible by groups 3"),
        ({"groups": 4}, "out_channels 6 is not divisible by groups 4"),
        ({"groups": 0}, "groups is 0: it must be at least 1"),
        ({"rank": 4}, "4 spatial dimensions: layers have 1, 2 or 3"),
        ({"rank": None, "kernel_size": ()}, "0 spatial dimensions: layers have 1, 2 or 3"),
        (
            {"kernel_size": (3, 3, 3)},
            "kernel_size (3, 3, 3) has 3 values: give one int, or 2 ints for 2 dimensions",
        ),
        ({"kernel_size": "3"}, "kernel_size is '3': give a whole number of at least 1"),
        ({"kernel_size": (3, 0)}, "kernel_size[1] is 0: it must be at least 1"),
        ({"stride": 0}, "stride is 0: it must be at least 1"),
        ({"stride": None}, "stride is None: give a whole number of at least 1"),
        ({"dilation": -1}, "dilation is -1: it must be at least 1"),
        (
            {"padding": "full"},
            "padding is 'full': give an int, 2 ints, 2 (before, after) pairs, 'same' or 'valid'",
        ),
        ({"padding": -1}, "padding is -1: it must be at least 0"),
        (
            {"padding": (1, 1, 1)},
            "padding (1, 1, 1) has 3 values: give an int, 2 ints, 2 (before, after) pairs, 'same' or 'valid'",
        ),
        ({"padding": ((1, 2, 3), 1)}, "padding[0] is (1, 2, 3): a pair is (before, after)"),
        ({"padding": ((0, 1), (0, -2))}, "padding[1][1] is -2: it must be at least 0"),
        (
            {"padding": "same", "output_padding": 1},
            "padding 'same' fixes the size, so output_padding (1, 1) cannot be given with it",
        ),
        (
            {"transposed": False, "padding": "same"},
            "padding 'same' with stride (2, 2): a convolution keeps its size only at stride 1; use stride 1, or give "
            "the padding in numbers",
        ),
        (
            {"transposed": False, "output_padding": 1},
            "output_padding (1, 1) belongs to transposed layers; a convolution has none",
        ),
        (
            {"output_padding": (1, 2)},
            "output_padding[1] is 2: it must be smaller than stride 2 or dilation 1; use at most 1, or a larger kernel",
        ),
        (
            {"padding_mode": "constant"},
            "padding_mode is 'constant': use one of zeros, circular, reflect, replicate",
        ),
        (
            {"activation": "gelu"},
            "activation is 'gelu': use one of relu, leaky_relu, elu, sigmoid, tanh, silu, or None",
        ),
        (
            {"activation": 3},
            "activation is 3: use one of relu, leaky_relu, elu, sigmoid, tanh, silu, or None",
        ),
        ({"activation": ("relu", 1.0)}, "activation 'relu' takes no parameter, 1.0 was given"),
    ],
)
def test_errors(changes: dict[str, Any], text: str) -> None:
    assert spec_error(lambda: make(**changes)) == text


def test_output_size_of_a_convolution_is_refused() -> None:
    conv = make(transposed=False)
    assert spec_error(lambda: conv.with_output_size((12, 12), (6, 6))) == (
        "output_size belongs to transposed layers; a convolution's output size follows from its input"
    )


def test_defaults_and_forms() -> None:
    spec = make(padding=((0, 1), 2), dilation=(1,), activation=("leaky_relu", 0.2))
    assert spec.padding == ((0, 1), (2, 2))
    assert spec.dilation == (1, 1)
    assert spec.activation == Activation("leaky_relu", 0.2)
    assert make(activation="elu").activation == Activation("elu", 1.0)
    assert make(activation=spec.activation).activation is spec.activation
    assert make(padding="valid").padding == ((0, 0), (0, 0))
    assert make(kernel_size=np.int64(3)) == make(kernel_size=[3, 3])


def test_same_gives_the_odd_element_to_the_end_and_fills_small_kernels() -> None:
    assert make(kernel_size=(5, 4), stride=(2, 1), padding="same").padding == ((1, 2), (1, 2))
    small = make(kernel_size=1, stride=3, padding="same")
    assert (small.padding, small.output_padding) == (((0, 0), (0, 0)), (2, 2))


@pytest.mark.parametrize("wanted", [(12, 11), (6, 12, 11), (2, 6, 12, 11), [12, 11], np.array([12, 11])])
def test_output_size_takes_the_spatial_sizes_or_the_whole_shape(wanted: Any) -> None:
    spec = make(padding=1)
    assert spec.with_output_size((6, 6), wanted).output_padding == (1, 0)


def test_output_size_takes_one_number_for_all_dimensions() -> None:
    assert make(padding=1).with_output_size((6, 6), 12).output_padding == (1, 1)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (make(), "ConvTranspose2d 4 -> 6, kernel 3x3, stride 2x2"),
        (make(transposed=False, stride=1, rank=1), "Conv1d 4 -> 6, kernel 3"),
        (
            make(padding=(1, 0), output_padding=1, dilation=(1, 2), groups=2, activation="relu"),
            "ConvTranspose2d 4 -> 6, kernel 3x3, stride 2x2, padding 1x0, output_padding 1x1, dilation 1x2, groups 2, relu",
        ),
        (
            make(padding=((0, 1), (1, 1)), padding_mode="circular", activation=("elu", 0.5)),
            "ConvTranspose2d 4 -> 6, kernel 3x3, stride 2x2, padding ((0, 1), (1, 1)), padding_mode circular, elu(0.5)",
        ),
    ],
)
def test_text(spec: ConvSpec, text: str) -> None:
    assert str(spec) == text


def test_weight_shape_is_torch_s() -> None:
    assert make(groups=2).weight_shape == (4, 3, 3, 3)
    assert make(groups=2, transposed=False).weight_shape == (6, 2, 3, 3)


def test_macs() -> None:
    assert make(groups=2).macs((5, 7), batch=3) == 3 * 35 * 9 * 4 * 3
    assert make(transposed=False, padding=1).macs((12, 12)) == 36 * 9 * 4 * 6


@given(problems(asymmetric=True))
def test_a_layer_is_a_value(problem: Problem) -> None:
    spec = problem.spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(replace(spec)) == hash(spec)
    with pytest.raises(FrozenInstanceError):
        spec.groups = 2  # type: ignore[misc]
